"""All optimizer updates of one policy step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.core.distributed import gather_objects
from zerosearch.core.memory import give_back_heap
from zerosearch.policy.reference import ReferencePolicy
from zerosearch.training.batching import collate, select, split_mini_batches
from zerosearch.training.credit import Credit, TrajectoryKey, assign_credit
from zerosearch.training.metrics import Means
from zerosearch.training.micro_batches import Backward, MicroBatches
from zerosearch.training.token_values import keep_entropies, token_entropies
from zerosearch.training.trainee import SkippedUpdates, Trainee
from zerosearch.training.update import CriticUpdater, PolicyUpdater
from zerosearch.types import PolicyBatch, Trajectory

_MEANS = {  # metric -> sum and count
    "loss/entropy": ("entropy_sum", "tokens"),
    "loss/kl": ("kl_sum", "tokens"),
    "ratio/mean": ("ratio_sum", "tokens"),
    "ratio/clipped": ("clipped_sum", "tokens"),
    "ratio/tail": ("tail_sum", "tokens"),
    "ratio/importance": ("importance_sum", "tokens"),
    "ratio/importance_cut": ("importance_cut_sum", "tokens"),
    "rollout/logprob_gap": ("logprob_gap_sum", "sampled_tokens"),
}


@dataclass(kw_only=True, slots=True)
class Learner:
    """Improves the policy, and its critic where there is one, on one batch of trajectories."""

    policy: Trainee[PolicyUpdater]
    critic: Trainee[CriticUpdater] | None
    reference: ReferencePolicy | None
    pad_id: int
    backward: Backward

    def learn(
        self,
        trajectories: Sequence[Trajectory],
        rewards_B: Tensor,
        *,
        seed: int,
        step: int,
        rank: int,
        watched: Sequence[TrajectoryKey] = (),
    ) -> tuple[Credit, dict[str, float]]:
        """Run every inner epoch over every mini-batch; a collective.

        Args:
            trajectories: that this rank trains on, all valid.
            rewards_B: [B], aligned with them.
            seed: of the draw of mini-batches, together with step, rank and epoch.
            step: policy steps completed.
            rank: of this process.
            watched: trajectories that this rank sampled and whose entropies it wants, of the pass
                that learns from them first.

        Returns:
            Who got credit, and global metrics under their TensorBoard paths; an update that was
            skipped has none but the count.

        Raises:
            NonFiniteError: too many updates in a row were skipped, see `SkippedUpdates`.
        """
        algorithm = self.policy.updater.algorithm
        batch = collate(
            trajectories, pad_id=self.pad_id, with_documents=algorithm.train_on_documents
        )
        self._describe(batch)
        every_watched = {key for keys in gather_objects([*watched]) for key in keys}
        if every_watched:
            batch.entropies = torch.full_like(batch.behaviour_logprobs, torch.nan)
        credit = assign_credit(algorithm, trajectories, rewards_B, batch)
        batch.advantages, batch.returns = credit.advantages, credit.returns
        settings, means = algorithm.critic, Means()
        policy_rests = settings is not None and step < settings.warmup_steps
        rows = batch.input_ids.shape[0]
        for epoch in range(algorithm.inner_epochs):
            for part in split_mini_batches(rows, algorithm.mini_batches, seed, step, rank, epoch):
                mini_batch = select(batch, part)
                self._update_critic(mini_batch, means)
                if not policy_rests:
                    self._update_policy(mini_batch, means)
                if epoch == 0:
                    keep_entropies(batch, mini_batch, part)
        skipped = {"optimizer/skipped": float(self.policy.skipped.total)}
        if self.critic is not None:
            skipped["critic/skipped"] = float(self.critic.skipped.total)
        credit = replace(credit, entropies=token_entropies(batch, trajectories, every_watched))
        return credit, credit.metrics | means.reduced() | skipped

    def _describe(self, batch: PolicyBatch) -> None:
        """Add what the models say about the tokens before any of them changes."""
        updater = self.policy.updater
        if updater.algorithm.needs_old_logprobs:
            batch.old_logprobs = updater.logprobs(self.policy.model, batch)
        if self.reference is not None:
            batch.ref_logprobs = updater.reference_logprobs(self.reference, batch)
        if self.critic is not None:
            batch.old_values = self.critic.updater.values(self.critic.model, batch)
        give_back_heap()  # the passes of the update allocate other sizes

    def _update_critic(self, batch: PolicyBatch, means: Means) -> None:
        if self.critic is None:
            return
        found = self.critic.update(batch, self.backward)
        if found is None:
            return
        means.add("critic/loss", found["value_loss"])
        means.add("critic/gradient_norm", found["gradient_norm"])
        means.add("critic/learning_rate", found["learning_rate"])

    def _update_policy(self, batch: PolicyBatch, means: Means) -> None:
        found = self.policy.update(batch, self.backward)
        if found is None:
            return
        means.add("optimizer/gradient_norm", found["gradient_norm"])
        means.add("optimizer/learning_rate", found["learning_rate"])
        means.add("loss/policy", found["policy_loss"])
        for name, (total, count) in _MEANS.items():
            if total in found:
                means.add(name, found[total], found[count])


def make_learner(
    algorithm: Algorithm,
    *,
    models: tuple[nn.Module, nn.Module | None, ReferencePolicy | None],
    optimizers: Any,
    schedules: Any,
    micro_batches: MicroBatches,
    chunk_tokens: int,
    temperature: float,
    gradient_clip: float,
    skipped: Mapping[str, SkippedUpdates],
    pad_id: int,
    backward: Backward,
) -> Learner:
    """Put together what learns.

    Args:
        algorithm: with the present KL coefficient.
        models: policy, critic and reference; the last two where the algorithm has them.
        optimizers: of the policy; with a critic, of both.
        schedules: likewise.
        micro_batches: of both models.
        chunk_tokens: rows of logits held at a time.
        temperature: at which trajectories were sampled.
        gradient_clip: of the policy.
        skipped: counts of "policy" and "critic", which go on from step to step.
        pad_id: of the tokenizer.
        backward: from a loss to gradients.
    """
    model, critic_model, reference = models
    critic, settings = None, algorithm.critic
    if critic_model is not None and settings is not None:
        optimizers, critic_optimizer = optimizers
        schedules, critic_schedule = schedules
        critic = Trainee(
            model=critic_model.train(),
            updater=CriticUpdater(micro_batches=micro_batches, value_clip=settings.value_clip),
            optimizer=critic_optimizer,
            schedule=critic_schedule,
            gradient_clip=settings.gradient_clip,
            skipped=skipped["critic"],
            remedy="algorithm.critic.optimizer.lr or algorithm.critic.gradient_clip",
        )
    updater = PolicyUpdater(
        algorithm=algorithm,
        micro_batches=micro_batches,
        chunk_tokens=chunk_tokens,
        temperature=temperature,
    )
    policy = Trainee(
        model=model.train(),
        updater=updater,
        optimizer=optimizers,
        schedule=schedules,
        gradient_clip=gradient_clip,
        skipped=skipped["policy"],
        remedy="optimizer.lr or module.gradient_clip",
    )
    return Learner(
        policy=policy, critic=critic, reference=reference, pad_id=pad_id, backward=backward
    )
