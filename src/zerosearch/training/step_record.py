"""What one policy step, or one evaluation, left behind for callbacks to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zerosearch.reward.rubric import RewardScore
from zerosearch.types import Trajectory


@dataclass(kw_only=True, slots=True, frozen=True)
class StepRecord:
    """Trajectories of this rank with their scores and advantages; lists are aligned.

    Tuning, of a simulator or a policy, keeps no episodes.
    """

    step: int  # policy steps completed before this one
    phase: str  # "train", "val/<engine>", "start/<engine>", "test/<engine>"
    metrics: dict[str, float]  # global values under their TensorBoard paths
    trajectories: list[Trajectory] = field(default_factory=list)
    scores: list[RewardScore | None] = field(default_factory=list)  # None: a search failed
    advantages: list[float] = field(default_factory=list)  # empty in evaluation
    noise_probability: float = 0.0
    # of the tokens after the prompt, by group and sibling; of trajectories that callbacks want
    entropies: Mapping[tuple[int, int], list[float]] = field(default_factory=dict)
