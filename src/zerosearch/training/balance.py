"""Trajectories spread over ranks by tokens, so that no rank waits long for another.

Whoever samples many tokens would otherwise also train on them. Which rank trains on a trajectory
changes nothing else: losses are sums over global counts (invariant 6), and metrics and records stay
with the rank that sampled.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from zerosearch.core.distributed import gather_objects
from zerosearch.types import Trajectory


def balance(
    trajectories: Sequence[Trajectory], rewards: Sequence[float], rank: int
) -> tuple[list[Trajectory], Tensor]:
    """This rank's share of what all ranks train on; a collective.

    Trajectories hit by a failed search are left out: there is nothing to learn from them. The
    others arrive without their turns, which training does not read.

    Args:
        trajectories: that this rank sampled.
        rewards: aligned with them.
        rank: of this process.

    Returns:
        Trajectories and their rewards [B], in the order of the ranks that sampled them.
    """
    own = [
        (dataclasses.replace(trajectory, turns=[]), reward)
        for trajectory, reward in zip(trajectories, rewards, strict=True)
        if trajectory.valid
    ]
    gathered = gather_objects(own)
    every = [row for part in gathered for row in part]
    tokens = [len(t.prompt_ids) + len(t.response_ids) for t, _ in every]
    share = [every[index] for index in partition(tokens, len(gathered))[rank]]
    shared_B = torch.tensor([each for _, each in share], dtype=torch.float32)
    return [trajectory for trajectory, _ in share], shared_B


def partition(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Split items into parts of nearly equal cost, the same on every rank.

    Longest processing time first: each item, the dearest first, goes to the cheapest part so far;
    the dearest part is at most 4/3 of the best possible (Graham 1969), and near 1 with many items
    a part.

    Args:
        costs: of the items.
        parts: how many.

    Returns:
        Indices of the items of each part, in ascending order.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, part = heapq.heappop(loads)
        shares[part].append(index)
        heapq.heappush(loads, (load + costs[index], part))
    return [sorted(share) for share in shares]
