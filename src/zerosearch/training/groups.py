"""Rewards compared within their groups, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zerosearch.algorithms.advantages import zero_variance_groups
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.distributed import gather_objects
from zerosearch.reward.rubric import RewardScore
from zerosearch.types import Trajectory


def global_advantages(
    algorithm: Algorithm,
    trajectories: Sequence[Trajectory],
    scores: Sequence[RewardScore | None],
    rank: int,
) -> tuple[torch.Tensor, float]:
    """Advantages of this rank's trajectories; a collective.

    Args:
        algorithm: how rewards become advantages; sees the rewards of all ranks.
        trajectories: of this rank, in any order of groups.
        scores: aligned with them; None where a search failed.
        rank: of this process.

    Returns:
        Advantages [B] of this rank, and the share of groups whose rewards are all equal.
    """
    rows = [
        (0.0 if score is None else score.total, trajectory.group, score is not None)
        for trajectory, score in zip(trajectories, scores, strict=True)
    ]
    gathered = gather_objects(rows)
    every = [row for part in gathered for row in part]
    rewards_B = torch.tensor([row[0] for row in every], dtype=torch.float32)
    group_B = torch.tensor([row[1] for row in every])
    valid_B = torch.tensor([row[2] for row in every], dtype=torch.bool)
    advantages_B = algorithm.advantage(rewards_B, group_B, valid_B)
    start = sum(len(part) for part in gathered[:rank])
    zero_groups = float(zero_variance_groups(rewards_B, group_B, valid_B))
    return advantages_B[start : start + len(rows)], zero_groups
