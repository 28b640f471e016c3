"""Advantages of whole trajectories from their rewards.

Every function takes `rewards_B`, `group_B`, `valid_B` and returns [B]. Rows may come in any order
and groups may differ in size. An invalid trajectory enters no statistic and gets advantage 0, as if
its row were absent. A comparison needs two: a trajectory whose siblings are all invalid gets
advantage 0, where the reference code (verl) hands it its raw reward, (reward - 0) / 1, which is
never negative: whatever it did would be praised. Without a baseline it keeps its reward.
Statistics over the whole batch mean the rows passed in: gather the ranks first.

Shape suffixes: `_B` trajectories, `_G` groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zerosearch.core.errors import InputError

EPSILON = 1e-6


def grpo(
    rewards_B: Tensor,
    group_B: Tensor,
    valid_B: Tensor | None = None,
    scale: Literal["std", "none"] = "std",
) -> Tensor:
    """Reward relative to the group: (reward - group mean) / (group std + 1e-6).

    Source: GRPO, arXiv 2402.03300, section 4.1.2; `scale="none"` is Dr. GRPO, arXiv 2503.20783.

    Args:
        rewards_B: [B] rewards; rows that are not valid may hold anything.
        group_B: [B] integers; siblings share one.
        valid_B: [B] bool; None means all.
        scale: "std" divides by the unbiased standard deviation, "none" leaves the difference.

    Returns:
        [B] advantages.

    Raises:
        InputError: shapes differ, a valid reward is not finite, or `scale` is unknown.
    """
    if scale not in ("std", "none"):
        raise InputError(f"scale={scale!r} is unknown: use 'std' or 'none'")
    groups = _compare(rewards_B, group_B, valid_B)
    if scale == "none":
        return groups.relative_B
    freedom_G = (groups.count_G - 1).clamp(min=1)
    std_G = (groups.sum(groups.relative_B.square()) / freedom_G).sqrt()
    return groups.relative_B / (std_G + EPSILON)[groups.index_B]


def reinforce(
    rewards_B: Tensor,
    group_B: Tensor,
    valid_B: Tensor | None = None,
    baseline: Literal["none", "batch", "leave_one_out"] = "none",
) -> Tensor:
    """Reward minus a baseline (Williams 1992).

    Args:
        rewards_B: [B] rewards; rows that are not valid may hold anything.
        group_B: [B] integers; siblings share one.
        valid_B: [B] bool; None means all.
        baseline: "none" is 0, "batch" the mean of all valid rewards, "leave_one_out" the mean of
            the other valid siblings (see `rloo`).

    Returns:
        [B] advantages.

    Raises:
        InputError: shapes differ, a valid reward is not finite, or `baseline` is unknown.
    """
    match baseline:
        case "none":
            groups = _compare(rewards_B, group_B, valid_B)
            return groups.rewards_B
        case "batch":
            return _compare(rewards_B, torch.zeros_like(group_B), valid_B).relative_B
        case "leave_one_out":
            return rloo(rewards_B, group_B, valid_B)
    raise InputError(f"baseline={baseline!r} is unknown: use 'none', 'batch' or 'leave_one_out'")


def rloo(rewards_B: Tensor, group_B: Tensor, valid_B: Tensor | None = None) -> Tensor:
    """Reward minus the mean reward of the other siblings (RLOO, arXiv 2402.14740).

    Args:
        rewards_B: [B] rewards; rows that are not valid may hold anything.
        group_B: [B] integers; siblings share one.
        valid_B: [B] bool; None means all.

    Returns:
        [B] advantages.

    Raises:
        InputError: shapes differ, or a valid reward is not finite.
    """
    groups = _compare(rewards_B, group_B, valid_B)
    # r - mean of others = n / (n - 1) * (r - mean of all), which needs no pass over pairs.
    factor_G = groups.count_G / (groups.count_G - 1).clamp(min=1)
    return groups.relative_B * factor_G[groups.index_B]


def reinforce_pp(rewards_B: Tensor, group_B: Tensor, valid_B: Tensor | None = None) -> Tensor:
    """Reward normalised over the whole batch: (reward - batch mean) / (batch std + 1e-6).

    Source: REINFORCE++, arXiv 2501.03262 (global advantage normalisation), with one reward per
    trajectory, discount 1 and the KL in the loss, so that the normalisation is over trajectories.

    Args:
        rewards_B: [B] rewards; rows that are not valid may hold anything.
        group_B: [B] integers; not used, all rows are compared with one another.
        valid_B: [B] bool; None means all.

    Returns:
        [B] advantages.

    Raises:
        InputError: shapes differ, or a valid reward is not finite.
    """
    return grpo(rewards_B, torch.zeros_like(group_B), valid_B)


def reinforce_pp_baseline(
    rewards_B: Tensor, group_B: Tensor, valid_B: Tensor | None = None
) -> Tensor:
    """Reward minus the group mean, divided by the standard deviation over the batch + 1e-6.

    Source: REINFORCE++ with a group baseline (arXiv 2501.03262): siblings are compared with one
    another, while the scale, which within a small group is mostly noise, is that of the batch.

    Args:
        rewards_B: [B] rewards; rows that are not valid may hold anything.
        group_B: [B] integers; siblings share one.
        valid_B: [B] bool; None means all.

    Returns:
        [B] advantages.

    Raises:
        InputError: shapes differ, or a valid reward is not finite.
    """
    groups = _compare(rewards_B, group_B, valid_B)
    scaled_B = grpo(groups.relative_B, torch.zeros_like(group_B), valid_B)
    # where nothing was compared, the batch mean is all there is, and that is a rounding error
    return torch.where(groups.count_G[groups.index_B] > 1, scaled_B, 0.0)


def zero_variance_groups(
    rewards_B: Tensor, group_B: Tensor, valid_B: Tensor | None = None
) -> Tensor:
    """Share of groups that teach nothing because all their valid rewards are equal.

    Groups without a valid trajectory do not count; a group of one is never such a group.

    Args:
        rewards_B: [B] rewards.
        group_B: [B] integers; siblings share one.
        valid_B: [B] bool; None means all.

    Returns:
        0-dim tensor in [0, 1]; 0 if there is no group.

    Raises:
        InputError: shapes differ, or a valid reward is not finite.
    """
    groups = _compare(rewards_B, group_B, valid_B)
    spread_G = groups.sum((groups.relative_B != 0).to(groups.relative_B.dtype))
    flat_G = (groups.count_G > 1) & (spread_G == 0)
    present_G = groups.count_G > 0
    return flat_G.sum() / present_G.sum().clamp(min=1)


@dataclass(kw_only=True, slots=True, frozen=True)
class _GroupedRewards:
    """Rewards compared within groups.

    `relative_B` is reward - group mean, 0 in a group of one; `rewards_B` and `relative_B` are 0 on
    invalid rows; `count_G` counts valid rows; `index_B` in [0, G).
    """

    rewards_B: Tensor
    relative_B: Tensor
    index_B: Tensor
    count_G: Tensor

    def sum(self, values_B: Tensor) -> Tensor:
        return torch.zeros_like(self.count_G).index_add(0, self.index_B, values_B)


def _compare(rewards_B: Tensor, group_B: Tensor, valid_B: Tensor | None) -> _GroupedRewards:
    """Check the input and centre rewards within their groups."""
    valid_B = torch.ones_like(group_B, dtype=torch.bool) if valid_B is None else valid_B.bool()
    for name, tensor in (("rewards_B", rewards_B), ("group_B", group_B), ("valid_B", valid_B)):
        if tensor.dim() != 1 or len(tensor) != len(rewards_B):
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}: rewards_B, group_B and valid_B hold one "
                "value per trajectory, shape [B]"
            )
    dtype = torch.promote_types(rewards_B.dtype, torch.float32)
    rewards_B = torch.where(valid_B, rewards_B.to(dtype), 0.0)
    if not rewards_B.isfinite().all():
        row = int((~rewards_B.isfinite()).nonzero()[0])
        raise InputError(
            f"rewards_B[{row}] is {float(rewards_B[row])} in a valid trajectory: make the reward "
            "finite, or mark the trajectory invalid"
        )
    ids_G, index_B = torch.unique(group_B, return_inverse=True)
    zeros_G = torch.zeros(len(ids_G), dtype=dtype, device=rewards_B.device)
    count_G = zeros_G.index_add(0, index_B, valid_B.to(dtype))
    # Subtracting the lowest reward first keeps equal rewards at exactly 0: a rounding error of the
    # mean would be blown up by the division by a standard deviation of about 1e-6.
    low_G = torch.full_like(zeros_G, torch.inf).scatter_reduce(
        0, index_B, torch.where(valid_B, rewards_B, torch.inf), "amin"
    )
    shifted_B = torch.where(valid_B, rewards_B - low_G[index_B], 0.0)
    mean_G = zeros_G.index_add(0, index_B, shifted_B) / count_G.clamp(min=1)
    relative_B = torch.where(valid_B, shifted_B - mean_G[index_B], 0.0)
    return _GroupedRewards(
        rewards_B=rewards_B, relative_B=relative_B, index_B=index_B, count_G=count_G
    )


def zero(rewards_B: Tensor, group_B: Tensor, valid_B: Tensor | None = None) -> Tensor:
    """No advantage for anyone, [B]: a control run that must not learn."""
    return torch.zeros_like(rewards_B)
