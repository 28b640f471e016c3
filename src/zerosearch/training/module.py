"""The policy's training as a LightningModule.

`training_step` is one policy step: roll out, score, compare within groups, update. It differs from
the reference code in what it keeps exact: tokens are trained as they were sampled, losses are
normalised by global counts, and a trajectory hit by a failed search is left out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.data.loaders import QuestionBatch
from zerosearch.errors import InputError
from zerosearch.generation.generator import Generator
from zerosearch.policy.attention import use_training_attention
from zerosearch.policy.checkpoints import check_same_model, shapes_of
from zerosearch.policy.critic import load_critic
from zerosearch.policy.export import save_policy
from zerosearch.policy.loading import load_policy, make_reference
from zerosearch.policy.logprobs import packs_sequences
from zerosearch.policy.reference import ReferencePolicy, expect_reference
from zerosearch.policy.sharding import Dtype, compute_dtype_name, record_autocast
from zerosearch.policy.source import PolicySource
from zerosearch.ranges import Count, CountOrZero, Positive, Seed, Share
from zerosearch.reward.rubric import RewardScore, Rubric
from zerosearch.rollout.rollouter import Decoding, Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.engine import SearchEngine
from zerosearch.training.balance import balance
from zerosearch.training.credit import Credit
from zerosearch.training.evaluating_module import EvaluatingModule
from zerosearch.training.evaluation import Evaluation
from zerosearch.training.failures import RESUME, SearchOutage, find_outage
from zerosearch.training.learner import make_learner
from zerosearch.training.metrics import peak_memory_gib, reset_peak_memory, step_metrics
from zerosearch.training.micro_batches import MicroBatches
from zerosearch.training.optimization import (
    check_strategy,
    check_suits,
    make_optimizers,
    restore_settings,
    settings_of,
)
from zerosearch.training.pipeline import RolloutPipeline, check_lag
from zerosearch.training.record import StepRecord
from zerosearch.training.sampled import RolloutPlan, make_next_plan, make_plan
from zerosearch.training.sampler import EpisodeSampler
from zerosearch.training.sharded_strategy import sharding_of
from zerosearch.training.trainee import SkippedUpdates
from zerosearch.training.trainer_settings import prepare_trainer
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
        decoding: of training rollouts.
        tokens_per_micro_batch: padded tokens of one forward and backward pass.
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
        decoding: Decoding | None = None,
        tokens_per_micro_batch: Count = 16_384,
        logprob_chunk_tokens: Count = 4_096,
        gradient_clip: Positive = 1.0,
        max_skipped_updates: Count = 3,
        max_failed_share: Share = 0.1,
        lockstep: bool = False,
        lag: CountOrZero = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            evaluations=evaluations,
            rubric=rubric or Rubric(),
            seed=seed,
            max_failed_share=max_failed_share,
        )
        decoding = decoding or Decoding()
        check_lag(lag, generator)
        check_suits(algorithm, policy, policy_steps, decoding)
        self.automatic_optimization = False
        self.policy_source = policy
        self.algorithm = algorithm
        self.generator = generator
        self.search = search
        self.episode = episode
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.policy_steps = policy_steps
        self.decoding = decoding
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.logprob_chunk_tokens = logprob_chunk_tokens
        self.gradient_clip = gradient_clip
        self.skipped = {
            "policy": SkippedUpdates(most=max_skipped_updates),
            "critic": SkippedUpdates(most=max_skipped_updates),
        }
        self.lockstep = lockstep
        self.lag = lag
        self.next_noise_probability = 0.0  # of the step after; set by the curriculum, too
        self.healthy = True  # set by the health monitor
        self.resumed = False  # whether training goes on from a checkpoint
        self.latest: StepRecord | None = None  # the last policy step
        self.train_metrics: dict[str, float] = {}  # of the last policy step
        sampler = EpisodeSampler(
            policy=self._policy,
            rollouter=lambda: self.rollouter(),  # which tests and subclasses may replace
            generator=generator,
            search=search,
            rubric=self.rubric,
            decoding=decoding,
            group_size=algorithm.group_size,
            resampling_rounds=algorithm.resampling_rounds,
            seed=seed,
        )
        self.rollouts = RolloutPipeline(sampler.sync, sampler.sample, self._find_outage)
        self.kl_coefficient = algorithm.kl_coefficient  # moved by algorithm.kl_control
        self.reference: ReferencePolicy | None = None
        self.critic: nn.Module | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._rollouter: Rollouter | None = None
        self._optimizer_settings: list[list[dict[str, Any]]] = []  # as configured

    # -- set-up ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before the model is loaded."""
        prepare_trainer(self.trainer, self.policy_source)

    def configure_model(self) -> None:
        """Load policy and tokenizer, and where the algorithm needs them reference and critic."""
        if self.model is not None:
            return
        self.tokenizer = self.policy_source.load_tokenizer()
        sharding = sharding_of(self)
        self.model = load_policy(self.policy_source, sharding)
        record_autocast(self.model, self.trainer.precision)
        if self.algorithm.needs_reference:
            self.reference = make_reference(self.policy_source, self.model, sharding)
        if self.algorithm.critic is not None:
            check_strategy(self.algorithm, self.trainer.strategy)
            self.critic = load_critic(self.policy_source, sharding)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the policy, and of the critic where there is one."""
        assert self.model is not None
        policy = (self.model, self.optimizer_factory, self.schedule_factory)
        made = make_optimizers(self.algorithm, self.policy_steps, policy, self.critic)
        self._optimizer_settings = [settings_of(each["optimizer"]) for each in made]
        return made

    def on_train_start(self) -> None:
        """After a checkpoint has been loaded, if there is one."""
        use_training_attention(
            self.policy_source.attn_implementation,
            (self.model, self.critic, self.reference and self.reference.model),
            self.device,
            precision=str(self.trainer.precision),
        )
        restore_settings(
            self.trainer.optimizers,
            [config.scheduler for config in self.trainer.lr_scheduler_configs],
            self._optimizer_settings,
        )

    def _policy(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def rollouter(self) -> Rollouter:
        """The rollouter over the loaded policy."""
        if self._rollouter is None:
            assert self.model is not None and self.tokenizer is not None
            self.generator.bind(self.model, self.tokenizer)
            self._rollouter = Rollouter(
                self.generator,
                self.tokenizer,
                self.episode,
                chat=self.policy_source.chat,
                lockstep=self.lockstep,
            )
        return self._rollouter

    # -- training ----------------------------------------------------------------------------

    def training_step(self, batch: QuestionBatch, batch_index: int) -> None:
        """One policy step on this rank's questions."""
        started = time.perf_counter()
        reset_peak_memory(self.device)
        plan = make_plan(batch, self.policy_step, self.noise_probability)
        sampled = self.rollouts.take(plan)
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
            sampled.trajectories,
            scores,
            metrics,
            phase="train",
            advantages=[credit.of_trajectories.get(t.key, 0.0) for t in sampled.trajectories],
            noise_probability=sampled.noise_probability,
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
            micro_batches=MicroBatches(
                tokens=self.tokens_per_micro_batch,
                device=self.device,
                packed=packs_sequences(self.model),
            ),
            chunk_tokens=self.logprob_chunk_tokens,
            temperature=self.decoding.temperature,
            gradient_clip=self.gradient_clip,
            skipped=self.skipped,
            pad_id=self.tokenizer.pad_token_id,  # type: ignore[arg-type]
            backward=self.manual_backward,
        )
        credit, metrics = learner.learn(
            share, rewards_B, seed=self.seed, step=self.policy_step, rank=self.global_rank
        )
        control = self.algorithm.kl_control
        if control is not None and "loss/kl" in metrics:
            metrics["loss/kl_coefficient"] = self.kl_coefficient
            self.kl_coefficient = control.next(self.kl_coefficient, metrics["loss/kl"])
        return credit, metrics

    # -- evaluation: see EvaluatingModule ------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.rollouts.drain()
        super().on_validation_epoch_start()

    # -- checkpoints and export --------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["zerosearch"] = {
            "policy_step": self.policy_step,
            "dtype": compute_dtype_name(self._policy()),
            "episode": self.episode.as_dict(),
            "start_metrics": self.start_metrics,
            "kl_coefficient": self.kl_coefficient,
            "reference": self.reference.left_out if self.reference else None,
            "costs": self.costs.totals,
            "skipped": {name: each.state_dict() for name, each in self.skipped.items()},
            "rollouts": self.rollouts.state_dict() if self.lag else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("zerosearch")
        if saved is None:
            raise InputError("resume: the checkpoint was not written by this project's training")
        if "state_dict" in checkpoint:  # else the strategy has checked and restored it
            expect_reference(self, checkpoint["state_dict"])
            check_same_model(shapes_of(checkpoint["state_dict"]), shapes_of(self.state_dict()))
        if self.reference is not None:
            self.reference.check_origin(saved.get("reference"), self.policy_source.name)
        self.episode.check_same(saved["episode"])
        self.policy_step = saved["policy_step"]
        self.start_metrics = saved["start_metrics"]
        self.costs.totals = dict(saved["costs"])
        for name, count in self.skipped.items():
            count.load_state_dict(saved.get("skipped", {}).get(name, {}))
        if self.algorithm.kl_control is not None:
            self.kl_coefficient = saved["kl_coefficient"]
        # without a lag every batch comes from the present weights, also the first one
        self.rollouts.load_state_dict(saved.get("rollouts") if self.lag else None, self.global_rank)
        if "loops" in checkpoint:
            # Lightning would take the end of a finished run for the end, however many steps follow
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            progress["is_last_batch"] = self.policy_step >= self.policy_steps

    def export_policy(self, folder: Path, dtype: Dtype | None = None) -> None:
        """Write the policy as a HF folder with the episode's settings beside it; collective.

        Args:
            folder: of the export.
            dtype: of its weights; None: what the policy computes in.
        """
        assert self.model is not None and self.tokenizer is not None
        computed = compute_dtype_name(self.model)
        chat, episode = self.policy_source.chat, self.episode.as_dict()
        save_policy(
            self.model,
            self.tokenizer,
            folder,
            extra={"episode": episode, "chat": chat, "dtype": computed},
            dtype=dtype or computed,
            write=self.global_rank == 0,
        )
