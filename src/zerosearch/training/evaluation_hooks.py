"""The validation and test hooks of a module whose batches are questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.generation.generator import Generator
from zerosearch.reward.rubric import Rubric
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.training.base_module import TrainedModule
from zerosearch.training.evaluation import Evaluation, EvaluationRun
from zerosearch.training.failures import RESUME, SearchOutage
from zerosearch.training.metrics import Costs, rollout_metrics
from zerosearch.types import Question, Trajectory


class EvaluatingModule(TrainedModule):
    """Answers held-out questions and keeps what came of it.

    Args:
        generator: samples tokens from the policy.
        episode: the shape of an episode.
        lockstep: every turn waits for the slowest search.
        evaluations: by name; the first one is the headline.
        rubric: scores trajectories.
        seed: of the rollouts.
        max_failed_share: share of one engine's trajectories that may fail by a search error.
        trained: see `TrainedModule`.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        episode: EpisodeSettings,
        lockstep: bool,
        evaluations: Mapping[str, Evaluation],
        rubric: Rubric,
        seed: int,
        max_failed_share: float,
        **trained: Any,
    ) -> None:
        super().__init__(**trained)
        if not evaluations:
            raise InputError("evaluations={}: name at least one way to answer held-out questions")
        self.generator = generator
        self.episode = episode
        self.lockstep = lockstep
        self.evaluations = dict(evaluations)
        self.rubric = rubric
        self.seed = seed
        self.max_failed_share = max_failed_share
        self.noise_probability = 0.0  # set by the curriculum before each step
        self.evaluation_metrics: dict[str, float] = {}  # of the last evaluation
        self.evaluation_outage: SearchOutage | None = None  # of the last evaluation
        self.costs = Costs()
        self._rollouter: Rollouter | None = None
        self._evaluation_run: EvaluationRun | None = None

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

    def headline(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Engine, questions and 95% intervals of the headline F1 before and after training.

        Args:
            metrics: of the evaluations, under their TensorBoard paths.
        """
        engine = next(iter(self.evaluations))
        found: dict[str, Any] = {}
        for phase in ("start", "test"):
            if f"{phase}/{engine}/f1" in metrics:
                found |= {"engine": engine, "questions": int(metrics[f"{phase}/{engine}/count"])}
                for end in ("_low", "_high"):
                    found[f"{phase}/f1{end}"] = metrics[f"{phase}/{engine}/f1{end}"]
        return found

    def record_unfinished(self, trajectories: list[Trajectory] | None) -> None:
        """Keep what a step played that ends the run; a collective.

        Args:
            trajectories: of this rank; None: the run ended before any was played.
        """
        if trajectories is None:
            return
        scores = [self.rubric.score(t) if t.valid else None for t in trajectories]
        self.latest = self.record(
            rollout_metrics(trajectories, scores),
            phase="train",
            trajectories=trajectories,
            scores=scores,
            noise_probability=self.noise_probability,
        )

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
            self.costs.add_evaluation(trajectories)
            named = {f"{self.phase}/{name}/{key}": value for key, value in metrics.items()}
            every |= named
            self.evaluation_records.append(
                self.record(
                    named,
                    phase=f"{self.phase}/{name}",
                    trajectories=trajectories,
                    scores=scores,
                    noise_probability=self.evaluations[name].noise_probability,
                )
            )
        headline = next(iter(self.evaluations))
        f1 = every[f"{self.phase}/{headline}/f1"]
        self.log("f1", f1, logger=False, batch_size=1, sync_dist=True)
        if self.phase == "start":
            self.start_metrics |= every
        self.evaluation_metrics = every
        remedy = RESUME if self.phase == "val" else "evaluate again"
        self.evaluation_outage = self._evaluation_run.outage(self.max_failed_share, remedy)
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
