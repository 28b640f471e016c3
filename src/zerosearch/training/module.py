"""The policy's training as a LightningModule.

`training_step` is one policy step: roll out, score, compare within groups, update. It keeps exact:
tokens are trained as sampled, losses normalised by global counts, failed searches left out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.core.errors import InputError, NonFiniteError
from zerosearch.core.ranges import Count, CountOrZero, Positive, Seed, Share
from zerosearch.data.loaders import QuestionBatch
from zerosearch.generation.generator import Generator, Sampling
from zerosearch.policy.critic import load_critic
from zerosearch.policy.loading import make_reference
from zerosearch.policy.reference import ReferencePolicy
from zerosearch.policy.sharding import compute_dtype_name
from zerosearch.policy.source import PolicySource
from zerosearch.reward.rubric import RewardScore, Rubric
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.engine import SearchEngine
from zerosearch.simulator.engine import answered_by
from zerosearch.training.balance import balance
from zerosearch.training.credit import Credit
from zerosearch.training.episode_sampler import EpisodeSampler
from zerosearch.training.evaluation import Evaluation
from zerosearch.training.evaluation_hooks import EvaluatingModule
from zerosearch.training.failures import RESUME, SearchOutage, find_outage
from zerosearch.training.learner import make_learner
from zerosearch.training.metrics import peak_memory_gib, reset_peak_memory, step_metrics
from zerosearch.training.optimization import (
    check_strategy,
    check_suits,
    make_optimizers,
)
from zerosearch.training.pipeline import RolloutPipeline, check_lag
from zerosearch.training.rollout_plan import RolloutPlan, make_next_plan, make_plan
from zerosearch.training.sharded_strategy import sharding_of
from zerosearch.types import Trajectory


class SearchPolicyModule(EvaluatingModule):
    """Trains a policy to search.

    Args:
        policy: the model that is trained.
        algorithm: advantages and loss.
        generator: samples tokens from the policy.
        search: answers the queries of training.
        episode: the shape of an episode, for training and evaluation alike.
        optimizer: from parameters, e.g. a partial of AdamW.
        schedule: from optimizer and number of updates, e.g. a partial of `warmup_schedule`.
        evaluations: by name; each answers the validation and test questions with its own engine.
            The first one is the headline.
        policy_steps: steps of the whole run; a step is one batch of questions.
        rubric: scores trajectories; the paper's token F1 by default.
        sampling: of training rollouts.
        tokens_per_micro_batch: padded tokens of one pass; None: of the checkpoint, or 16,384.
        logprob_chunk_tokens: rows of logits held at a time.
        gradient_clip: largest gradient norm.
        max_skipped_updates: in a row, as a loss or gradient is not finite; as many end the run.
        max_failed_share: share of trajectories, of a step or of one evaluation engine, that may
            fail by a search error before the run stops.
        lockstep: every turn waits for the slowest search of the step, so that a run repeated from
            a search cache is the same bit for bit.
        lag: 1 samples the next batch while this one is trained, see `RolloutPipeline`.
        seed: of rollouts, together with step, question, sibling and turn.
    """

    def __init__(
        self,
        *,
        policy: PolicySource,
        algorithm: Algorithm,
        generator: Generator,
        search: SearchEngine,
        episode: EpisodeSettings,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer, int], LRScheduler],
        evaluations: Mapping[str, Evaluation],
        policy_steps: Count,
        rubric: Rubric | None = None,
        sampling: Sampling | None = None,
        tokens_per_micro_batch: Count | None = None,
        logprob_chunk_tokens: Count = 4_096,
        gradient_clip: Positive = 1.0,
        max_skipped_updates: Count = 3,
        max_failed_share: Share = 0.1,
        lockstep: bool = False,
        lag: CountOrZero = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            generator=generator,
            episode=episode,
            lockstep=lockstep,
            evaluations=evaluations,
            rubric=rubric or Rubric(),
            seed=seed,
            max_failed_share=max_failed_share,
            policy=policy,
            policy_steps=policy_steps,
            tokens_per_micro_batch=tokens_per_micro_batch,
            logprob_chunk_tokens=logprob_chunk_tokens,
            gradient_clip=gradient_clip,
            max_skipped_updates=max_skipped_updates,
        )
        sampling = sampling or Sampling()
        check_lag(lag, generator)
        check_suits(algorithm, policy, policy_steps, sampling)
        self.algorithm = algorithm
        self.search = search
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.sampling = sampling
        self.lag, self.spare_rounds = lag, algorithm.resampling_rounds  # the data module reads both
        self.next_noise_probability = 0.0  # of the step after; set by the curriculum, too
        self.models_before: list[str] = []  # that wrote documents before this was resumed
        self.resumed = False  # from a checkpoint
        sampler = EpisodeSampler(
            policy=self.loaded_model,
            rollouter=lambda: self.rollouter(),  # which tests and subclasses may replace
            generator=generator,
            search=search,
            rubric=self.rubric,
            sampling=sampling,
            group_size=algorithm.group_size,
            resampling_rounds=algorithm.resampling_rounds,
            seed=seed,
        )
        self.rollouts = RolloutPipeline(sampler.sync, sampler.sample, self._find_outage)
        self.kl_coefficient = algorithm.kl_coefficient  # moved by algorithm.kl_control
        self.reference: ReferencePolicy | None = None
        self.critic: nn.Module | None = None

    # -- set-up ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load policy and tokenizer, and where the algorithm needs them reference and critic."""
        if self.model is not None:
            return
        sharding = sharding_of(self)
        model = self.load_trained(sharding)
        if self.algorithm.needs_reference:
            self.reference = make_reference(self.policy_source, model, sharding)
        if self.algorithm.critic is not None:
            check_strategy(self.algorithm, self.trainer.strategy)
            self.critic = load_critic(self.policy_source, sharding)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the policy, and of the critic where there is one."""
        policy = (self.loaded_model(), self.optimizer_factory, self.schedule_factory)
        made = make_optimizers(self.algorithm, self.policy_steps, policy, self.critic)
        self.keep_configured(made)
        return made

    def on_train_start(self) -> None:
        """After a checkpoint was loaded, if there is one."""
        self.choose_attention(self.critic, self.reference and self.reference.model)
        self.use_configured()

    # -- training ----------------------------------------------------------------------------

    def training_step(self, batch: QuestionBatch, batch_index: int) -> None:
        """One policy step on this rank's questions."""
        try:
            self._step(batch)
        except (SearchOutage, NonFiniteError):  # raised on all ranks alike
            self.record_unfinished(self.rollouts.played)
            raise

    def _step(self, batch: QuestionBatch) -> None:
        started = time.perf_counter()
        reset_peak_memory(self.device)
        sampled = self.rollouts.take(make_plan(batch, self.policy_step, self.noise_probability))
        have_sampled = time.perf_counter()
        with self.rollouts.ahead(self._next_plan(batch), self.device):
            scores = [self.rubric.score(t) if t.valid else None for t in sampled.trajectories]
            credit, metrics = self._learn(sampled.trajectories, scores)
        finished = time.perf_counter()

        metrics |= step_metrics(sampled, scores, self.costs, finished - started)
        metrics |= {
            "time/rollout_s": sampled.seconds,
            "time/wait_s": have_sampled - started - self.rollouts.sync_s,
            "time/sync_s": self.rollouts.sync_s,
            "time/train_s": finished - have_sampled,
            "memory/peak_gib": peak_memory_gib(self.device),
        }
        self.latest = self.record(
            metrics,
            phase="train",
            trajectories=sampled.trajectories,
            scores=scores,
            advantages=[credit.of_trajectories.get(t.key, 0.0) for t in sampled.trajectories],
            noise_probability=sampled.noise_probability,
            entropies=credit.entropies,
        )
        self.train_metrics = metrics
        self.policy_step += 1

    def _find_outage(self, trajectories: Sequence[Trajectory]) -> SearchOutage | None:
        return find_outage(trajectories, self.max_failed_share, whose="this step", remedy=RESUME)

    def _next_plan(self, batch: QuestionBatch) -> RolloutPlan | None:
        """What to sample while this step trains; None without a lag and in the last step."""
        if self.lag == 0 or self.policy_step + 1 >= self.policy_steps:
            return None
        return make_next_plan(batch, self.policy_step, self.next_noise_probability)

    def _learn(
        self, trajectories: Sequence[Trajectory], scores: Sequence[RewardScore | None]
    ) -> tuple[Credit, dict[str, float]]:
        """All optimizer updates of the step, on this rank's share of all trajectories."""
        assert self.model is not None and self.tokenizer is not None
        every = self.algorithm.reference_reset_steps
        if self.reference and every and self.policy_step and self.policy_step % every == 0:
            self.reference.reset(self.model)
        rewards = [0.0 if score is None else score.total for score in scores]
        share, rewards_B = balance(trajectories, rewards, self.global_rank)
        learner = make_learner(
            dataclasses.replace(self.algorithm, kl_coefficient=self.kl_coefficient),
            models=(self.model, self.critic, self.reference),
            optimizers=self.optimizers(),
            schedules=self.lr_schedulers(),
            micro_batches=self.micro_batches(),
            chunk_tokens=self.logprob_chunk_tokens,
            temperature=self.sampling.temperature,
            gradient_clip=self.gradient_clip,
            skipped=self.skipped,
            pad_id=self.tokenizer.pad_token_id,  # type: ignore[arg-type]
            backward=self.manual_backward,
        )
        place = {"seed": self.seed, "step": self.policy_step, "rank": self.global_rank}
        watched = [trajectory.key for trajectory in trajectories[: self.watched]]
        credit, metrics = learner.learn(share, rewards_B, watched=watched, **place)
        if (control := self.algorithm.kl_control) is not None and "loss/kl" in metrics:
            metrics["loss/kl_coefficient"] = self.kl_coefficient
            self.kl_coefficient = control.next(self.kl_coefficient, metrics["loss/kl"])
        return credit, metrics

    def on_validation_epoch_start(self) -> None:
        self.rollouts.drain()
        super().on_validation_epoch_start()

    # -- checkpoints and export --------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["zerosearch"] = {
            **self.progress(),
            "dtype": compute_dtype_name(self.loaded_model()),
            "episode": self.episode.as_dict(),
            "kl_coefficient": self.kl_coefficient,
            "reference": self.reference.left_out if self.reference else None,
            "costs": self.costs.totals,
            "evaluation_metrics": self.evaluation_metrics,
            "answered_by": answered_by(self.search),
            "rollouts": self.rollouts.state_dict() if self.lag else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("zerosearch")
        if saved is None or "tuned" in saved:
            raise InputError(
                "resume: the checkpoint was not written by this project's training by RL"
            )
        self.restore_progress(checkpoint, saved)
        if self.reference is not None:
            self.reference.check_origin(saved.get("reference"), self.policy_source.name)
        self.episode.check_same(saved["episode"])
        self.costs.totals = dict(saved["costs"])
        self.evaluation_metrics = saved.get("evaluation_metrics", {})
        self.models_before = saved.get("answered_by", [])
        if self.algorithm.kl_control is not None:
            self.kl_coefficient = saved["kl_coefficient"]
        # without a lag every batch comes from the present weights, also the first one
        self.rollouts.load_state_dict(saved.get("rollouts") if self.lag else None, self.global_rank)

    def export_parts(self) -> dict[str, Any]:
        """Tokenizer, and what the policy was trained for, which is kept beside its weights."""
        return {"tokenizer": self.tokenizer, "extra": self.policy_settings(self.episode)}
