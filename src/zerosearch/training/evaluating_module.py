"""The validation and test hooks of a LightningModule whose batches are questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torch import nn

from zerosearch.errors import InputError
from zerosearch.reward.rubric import RewardScore, Rubric
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.training.evaluation import Evaluation, EvaluationRun
from zerosearch.training.failures import RESUME, SearchOutage
from zerosearch.training.metrics import Costs
from zerosearch.training.record import StepRecord
from zerosearch.types import Question, Trajectory


class EvaluatingModule(LightningModule, ABC):
    """Answers held-out questions and keeps what came of it.

    Args:
        evaluations: by name; the first one is the headline.
        rubric: scores trajectories.
        seed: of the rollouts.
        max_failed_share: share of one engine's trajectories that may fail by a search error.
    """

    def __init__(
        self,
        *,
        evaluations: Mapping[str, Evaluation],
        rubric: Rubric,
        seed: int,
        max_failed_share: float,
    ) -> None:
        super().__init__()
        if not evaluations:
            raise InputError("evaluations={}: name at least one way to answer held-out questions")
        self.evaluations = dict(evaluations)
        self.rubric = rubric
        self.seed = seed
        self.max_failed_share = max_failed_share
        self.policy_step = 0  # completed policy steps
        self.noise_probability = 0.0  # set by the curriculum before each step
        self.model: nn.Module | None = None
        self.phase = "val"  # or "start", "test": under which name evaluations are logged
        self.evaluation_records: list[StepRecord] = []  # the last evaluation, one per engine
        self.evaluation_metrics: dict[str, float] = {}  # of the last evaluation
        self.evaluation_outage: SearchOutage | None = None  # of the last evaluation
        self.start_metrics: dict[str, float] = {}  # from before training, kept for resume
        self.costs = Costs()
        self._evaluation_run: EvaluationRun | None = None

    @abstractmethod
    def rollouter(self) -> Rollouter:
        """The rollouter over the loaded policy, with a generator that is at rest."""

    def record(
        self,
        trajectories: list[Trajectory],
        scores: list[RewardScore | None],
        metrics: dict[str, float],
        *,
        phase: str,
        advantages: list[float],
        noise_probability: float,
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
            noise_probability=noise_probability,
            metrics=metrics,
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
                    trajectories,
                    scores,
                    named,
                    phase=f"{self.phase}/{name}",
                    advantages=[],
                    noise_probability=self.noise_probability,
                )
            )
        headline = next(iter(self.evaluations))
        f1 = every[f"{self.phase}/{headline}/f1"]
        self.log("f1", f1, prog_bar=True, logger=False, batch_size=1, sync_dist=True)
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
