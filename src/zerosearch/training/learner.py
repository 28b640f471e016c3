"""All optimizer updates of one policy step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.policy.logprobs import TokenStats
from zerosearch.policy.reference import ReferencePolicy
from zerosearch.policy.weight_stream import gather
from zerosearch.training.batching import select, split_mini_batches
from zerosearch.training.metrics import Means
from zerosearch.training.update import Backward, PolicyUpdater
from zerosearch.types import PolicyBatch

_TOKEN_MEANS = {
    "loss/entropy": "entropy_sum",
    "loss/kl": "kl_sum",
    "ratio/mean": "ratio_sum",
    "ratio/clipped": "clipped_sum",
    "ratio/tail": "tail_sum",
    "ratio/importance": "importance_sum",
    "ratio/importance_cut": "importance_cut_sum",
    "rollout/logprob_gap": "logprob_gap_sum",
}


@dataclass(kw_only=True, slots=True)
class Learner:
    """Improves the policy on one batch of trajectories."""

    updater: PolicyUpdater
    model: nn.Module
    reference: ReferencePolicy | None
    backward: Backward
    optimizer: Any  # torch's or Lightning's wrapper of it
    schedule: LRScheduler
    gradient_clip: float  # largest gradient norm

    def learn(self, batch: PolicyBatch, *coordinates: int) -> dict[str, float]:
        """Run every inner epoch over every mini-batch.

        Args:
            batch: this rank's trajectories.
            coordinates: seed, policy step and rank: of the draw of mini-batches.

        Returns:
            Global metrics under their TensorBoard paths.

        Raises:
            FloatingPointError: a loss or gradient is not finite; that update was not made.
        """
        algorithm, updater = self.updater.algorithm, self.updater
        if algorithm.needs_old_logprobs:
            batch.old_logprobs = updater.all_logprobs(
                lambda micro: updater.token_stats(self.model, micro), batch
            )
        if self.reference is not None:
            batch.ref_logprobs = updater.all_logprobs(self._reference_stats, batch)
        means = Means()
        rows = batch.input_ids.shape[0]
        for epoch in range(algorithm.inner_epochs):
            for part in split_mini_batches(rows, algorithm.mini_batches, *coordinates, epoch):
                self._update(select(batch, part), means)
        return means.reduced()

    def _reference_stats(self, micro: PolicyBatch) -> TokenStats:
        assert self.reference is not None
        return self.reference.token_logprobs(
            micro.input_ids,
            micro.attention_mask,
            micro.sampled_mask,
            temperature=self.updater.temperature,
            chunk_tokens=self.updater.chunk_tokens,
            packed=self.updater.packed,
        )

    def _update(self, batch: PolicyBatch, means: Means) -> None:
        """One optimizer update; its metrics are added to `means`."""
        self.optimizer.zero_grad()
        sums = self.updater.accumulate(self.model, batch, self.backward)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(gather(torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)))
        _check_finite({**sums, "gradient_norm": norm})
        means.add("optimizer/gradient_norm", norm)
        means.add("optimizer/learning_rate", self.optimizer.param_groups[0]["lr"])
        means.add("loss/policy", sums["policy_loss"])
        for name, source in _TOKEN_MEANS.items():
            if source in sums:
                means.add(name, sums[source], sums["tokens"])
        self.optimizer.step()
        self.schedule.step()


def _check_finite(values: dict[str, float]) -> None:
    broken = {name: value for name, value in values.items() if not abs(value) < float("inf")}
    if broken:
        raise FloatingPointError(
            f"{broken} is not finite. The weights were not updated: resume from the last "
            "checkpoint with a lower optimizer.lr or module.gradient_clip"
        )
