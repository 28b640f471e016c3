"""The policy's training as a LightningModule.

`training_step` is one policy step: roll out, score, compare within groups, update. It differs from
the reference code in what it keeps exact: tokens are trained as they were sampled, losses are
normalised by global counts, and a trajectory hit by a failed search is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.generation.generator import Generator
from zerosearch.policy.export import save_policy
from zerosearch.policy.reference import ReferencePolicy
from zerosearch.policy.source import PolicySource
from zerosearch.reward.rubric import RewardScore, Rubric
from zerosearch.rollout.rollouter import Decoding, Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.engine import SearchEngine
from zerosearch.training.batching import collate
from zerosearch.training.evaluation import Evaluation, EvaluationRun
from zerosearch.training.failures import SearchOutage, find_outage
from zerosearch.training.groups import global_advantages
from zerosearch.training.learner import Learner
from zerosearch.training.metrics import Costs, peak_memory_gib, rollout_metrics, throughput
from zerosearch.training.record import StepRecord
from zerosearch.training.update import PolicyUpdater
from zerosearch.types import Question, Trajectory

_RESUME = "go on with resume=<run folder>"


class SearchPolicyModule(LightningModule):
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
        max_failed_share: share of trajectories, of a step or of one evaluation engine, that may
            fail by a search error before the run stops.
        lockstep: every turn waits for the slowest search of the step, so that a run repeated from
            a search cache is the same bit for bit.
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
        policy_steps: int,
        rubric: Rubric | None = None,
        decoding: Decoding | None = None,
        tokens_per_micro_batch: int = 16_384,
        logprob_chunk_tokens: int = 4_096,
        gradient_clip: float = 1.0,
        max_failed_share: float = 0.1,
        lockstep: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if policy_steps < 1:
            raise ValueError(f"policy_steps={policy_steps}: give 1 or more")
        decoding = decoding or Decoding()
        if decoding.temperature == 0:
            raise ValueError("decoding.temperature=0: greedy siblings are all alike; use 1.0")
        if not evaluations:
            raise ValueError("evaluations={}: name at least one way to answer held-out questions")
        self.automatic_optimization = False
        self.policy_source = policy
        self.algorithm = algorithm
        self.generator = generator
        self.search = search
        self.episode = episode
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.evaluations = dict(evaluations)
        self.policy_steps = policy_steps
        self.rubric = rubric or Rubric()
        self.decoding = decoding
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.logprob_chunk_tokens = logprob_chunk_tokens
        self.gradient_clip = gradient_clip
        self.max_failed_share = max_failed_share
        self.lockstep = lockstep
        self.seed = seed
        self.policy_step = 0  # completed policy steps
        self.noise_probability = 0.0  # set by the curriculum before each step
        self.phase = "val"  # or "start", "test": under which name evaluations are logged
        self.latest: StepRecord | None = None  # the last policy step
        self.evaluation_records: list[StepRecord] = []  # the last evaluation, one per engine
        self.train_metrics: dict[str, float] = {}  # of the last policy step
        self.costs = Costs()
        self.start_metrics: dict[str, float] = {}  # evaluation before training, kept for resume
        self.evaluation_metrics: dict[str, float] = {}  # of the last evaluation
        self.evaluation_outage: SearchOutage | None = None  # of the last evaluation
        self.model: nn.Module | None = None
        self.reference: ReferencePolicy | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._rollouter: Rollouter | None = None
        self._evaluation_run: EvaluationRun | None = None

    # -- set-up ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load policy, tokenizer and, where the loss needs it, the reference policy."""
        if self.model is not None:
            return
        self.tokenizer = self.policy_source.load_tokenizer()
        self.model = self.policy_source.load_model()
        if self.algorithm.needs_reference:
            self.reference = ReferencePolicy.from_policy(self.model)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.model is not None
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = self.optimizer_factory(trainable)
        updates = self.policy_steps * self.algorithm.inner_epochs * self.algorithm.mini_batches
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule_factory(optimizer, updates)},
        }

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

    def training_step(self, batch: list[Question], batch_index: int) -> None:
        """One policy step on this rank's questions."""
        started = time.perf_counter()
        trajectories, sync_s = self._roll_out(batch)
        rolled_out = time.perf_counter()
        scores = self._score(trajectories)
        advantages, zero_groups = global_advantages(
            self.algorithm, trajectories, scores, self.global_rank
        )
        metrics = self._learn(trajectories, advantages)
        finished = time.perf_counter()

        metrics |= rollout_metrics(trajectories, scores) | self.costs.add(trajectories)
        metrics |= throughput(trajectories, finished - started)
        metrics |= {
            "advantage/zero_groups": zero_groups,
            "curriculum/noise_probability": self.noise_probability,
            "time/rollout_s": rolled_out - started - sync_s,
            "time/sync_s": sync_s,
            "time/train_s": finished - rolled_out,
            "memory/peak_gib": peak_memory_gib(self.device),
        }
        self.latest = self._record(trajectories, scores, advantages.tolist(), metrics)
        self.train_metrics = metrics
        self.policy_step += 1

    def _roll_out(self, questions: list[Question]) -> tuple[list[Trajectory], float]:
        """Sample this step's trajectories from the present weights; also seconds of the sync."""
        rollouter, model = self.rollouter(), self.model
        assert model is not None

        async def run() -> tuple[list[Trajectory], float]:
            started = time.perf_counter()
            await self.generator.sync_weights(model)
            sync_s = time.perf_counter() - started
            trajectories = await rollouter.rollout(
                questions,
                self.search,
                group_size=self.algorithm.group_size,
                noise_probability=self.noise_probability,
                seed=self.seed,
                step=self.policy_step,
                decoding=self.decoding,
                first_group=self.global_rank * len(questions),
            )
            await self.generator.release()
            return trajectories, sync_s

        trajectories, sync_s = asyncio.run(run())
        outage = find_outage(trajectories, self.max_failed_share, whose="this step", mend=_RESUME)
        if outage is not None:
            raise outage
        return trajectories, sync_s

    def _score(self, trajectories: list[Trajectory]) -> list[RewardScore | None]:
        return [self.rubric.score(t) if t.valid else None for t in trajectories]

    def _learn(self, trajectories: list[Trajectory], advantages: torch.Tensor) -> dict[str, float]:
        """All optimizer updates of the step."""
        assert self.model is not None and self.tokenizer is not None
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LRScheduler)
        learner = Learner(
            updater=PolicyUpdater(
                self.algorithm,
                tokens_per_micro_batch=self.tokens_per_micro_batch,
                chunk_tokens=self.logprob_chunk_tokens,
                temperature=self.decoding.temperature,
                device=self.device,
            ),
            model=self.model.train(),
            reference=self.reference,
            backward=self.manual_backward,
            optimizer=self.optimizers(),
            schedule=schedule,
            gradient_clip=self.gradient_clip,
        )
        pad_id = self.tokenizer.pad_token_id
        batch = collate(trajectories, advantages, pad_id=pad_id)  # type: ignore[arg-type]
        return learner.learn(batch, self.seed, self.policy_step, self.global_rank)

    def _record(
        self,
        trajectories: list[Trajectory],
        scores: list[RewardScore | None],
        advantages: list[float],
        metrics: dict[str, float],
        phase: str = "train",
    ) -> StepRecord:
        """Send metrics to every logger; returns what callbacks look at."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.policy_step)
        return StepRecord(
            step=self.policy_step,
            phase=phase,
            trajectories=trajectories,
            scores=scores,
            advantages=advantages,
            noise_probability=self.noise_probability,
            metrics=metrics,
        )

    # -- evaluation --------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._evaluation_run = EvaluationRun(
            self.evaluations, self.rubric, seed=self.seed, device=self.device
        )

    def validation_step(self, batch: list[Question], batch_index: int) -> None:
        """Answer some questions greedily with every evaluation engine."""
        assert self._evaluation_run is not None and self.model is not None
        self._evaluation_run.answer(self.rollouter(), self.model, batch)

    def on_validation_epoch_end(self) -> None:
        assert self._evaluation_run is not None
        every: dict[str, float] = {}
        self.evaluation_records = []
        for name, (trajectories, scores, metrics) in self._evaluation_run.results().items():
            named = {f"{self.phase}/{name}/{key}": value for key, value in metrics.items()}
            every |= named
            record = self._record(trajectories, scores, [], named, f"{self.phase}/{name}")
            self.evaluation_records.append(record)
        headline = next(iter(self.evaluations))
        f1 = every[f"{self.phase}/{headline}/f1"]
        self.log("f1", f1, prog_bar=True, logger=False, batch_size=1, sync_dist=True)
        if self.phase == "start":
            self.start_metrics = every
        self.evaluation_metrics = every
        mend = _RESUME if self.phase == "val" else "evaluate again"
        self.evaluation_outage = self._evaluation_run.outage(self.max_failed_share, mend)
        self._evaluation_run = None

    def on_validation_end(self) -> None:
        """Stop training where an engine is lost, after callbacks have kept what there is."""
        if self.evaluation_outage is not None:
            raise self.evaluation_outage

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: list[Question], batch_index: int) -> None:
        """As `validation_step`, on the test questions."""
        self.validation_step(batch, batch_index)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    # -- checkpoints and export --------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["zerosearch"] = {
            "policy_step": self.policy_step,
            "episode": self.episode.as_dict(),
            "start_metrics": self.start_metrics,
            "costs": self.costs.totals,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("zerosearch")
        if saved is None:
            raise ValueError("resume: the checkpoint was not written by this project's training")
        self.episode.check_same(saved["episode"])
        self.policy_step = saved["policy_step"]
        self.start_metrics = saved["start_metrics"]
        self.costs.totals = dict(saved["costs"])
        if "loops" in checkpoint:
            # Lightning would take the end of a finished run for the end, however many steps follow
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            progress["is_last_batch"] = self.policy_step >= self.policy_steps

    def export_policy(self, folder: Path) -> None:
        """Write the policy as a HF folder with the episode's settings beside it; collective."""
        assert self.model is not None and self.tokenizer is not None
        extra = {"episode": self.episode.as_dict(), "chat": self.policy_source.chat}
        if self.global_rank == 0:
            save_policy(self.model, self.tokenizer, folder, extra)
