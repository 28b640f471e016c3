"""What is to be sampled for a policy step, and what was; the latter also as plain containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.data.loaders import QuestionBatch
from zerosearch.types import Document, Question, SearchResult, Shown, Trajectory, Turn


@dataclass(kw_only=True, slots=True, frozen=True)
class RolloutPlan:
    """What this rank samples for one policy step."""

    step: int  # policy steps completed before it
    questions: Sequence[Question]
    spares: Sequence[Question] = ()  # to ask in place of those that teach nothing
    noise_probability: float


def make_plan(batch: QuestionBatch, step: int, noise_probability: float) -> RolloutPlan:
    """What a step samples for itself."""
    return RolloutPlan(
        step=step,
        questions=list(batch),
        spares=batch.spares,
        noise_probability=noise_probability,
    )


def make_next_plan(batch: QuestionBatch, step: int, noise_probability: float) -> RolloutPlan:
    """What a step samples for the one after it.

    Raises:
        InputError: the batch does not know the questions of that step.
    """
    if batch.following is None:
        raise InputError(
            "rollout.lag=1 samples the questions of the next step, which the data module does not "
            "hand out as QuestionBatch.following: let it, as QADataModule does, or set "
            "rollout.lag=0"
        )
    return make_plan(batch.following, step + 1, noise_probability)


@dataclass(kw_only=True, slots=True, frozen=True)
class SampledBatch:
    """Trajectories of this rank for one policy step."""

    step: int  # policy steps completed before the one that trains on them
    noise_probability: float
    trajectories: list[Trajectory]
    dropped: list[Trajectory] = field(default_factory=list)  # in whose place others are trained on
    rounds: float | None = None  # of replacing groups; None: groups are not replaced
    weight_steps: Mapping[int, int]  # weight version -> policy steps completed when it was synced
    seconds: float  # that sampling took

    @property
    def played(self) -> list[Trajectory]:
        """All that were sampled."""
        return self.trajectories + self.dropped

    @property
    def lags(self) -> list[int]:
        """Policy steps between the weights that sampled a turn and those it trains, per turn."""
        return [
            self.step - self.weight_steps[version]
            for trajectory in self.trajectories
            for version in trajectory.weight_versions
        ]


def take_apart(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as containers that any checkpoint format can hold."""
    plain = {each.name: getattr(trajectory, each.name) for each in dataclasses.fields(trajectory)}
    plain["question"] = dataclasses.asdict(trajectory.question)
    plain["turns"] = [dataclasses.asdict(turn) for turn in trajectory.turns]
    return plain


def put_together(plain: Mapping[str, Any]) -> Trajectory:
    """The trajectory that `take_apart` took apart."""
    question = Question(**plain["question"])
    return Trajectory(**{**plain, "question": question, "turns": [*map(_turn, plain["turns"])]})


def _turn(plain: Mapping[str, Any]) -> Turn:
    result = plain["result"]
    if result is not None:
        documents = tuple(Document(**document) for document in result["documents"])
        result = SearchResult(**{**result, "documents": documents})
    shown = plain.get("shown")
    return Turn(**{**plain, "result": result, "shown": None if shown is None else Shown(**shown)})
