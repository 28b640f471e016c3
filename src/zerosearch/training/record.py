"""What one policy step, or one evaluation, left behind for callbacks to look at."""

from __future__ import annotations

from dataclasses import dataclass

from zerosearch.reward.rubric import RewardScore
from zerosearch.types import Trajectory


@dataclass(kw_only=True, slots=True, frozen=True)
class StepRecord:
    """Trajectories of this rank with their scores and advantages; lists are aligned."""

    step: int  # policy steps completed before this one
    phase: str  # "train", "val/<engine>", "start/<engine>", "test/<engine>"
    trajectories: list[Trajectory]
    scores: list[RewardScore | None]  # None: invalid, a search failed
    advantages: list[float]  # empty in evaluation
    noise_probability: float
    metrics: dict[str, float]  # global values under their TensorBoard paths
