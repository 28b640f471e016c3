"""From the rewards of trajectories to advantages of tokens, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zerosearch.algorithms.advantages import zero_variance_groups
from zerosearch.algorithms.aggregation import only_sampled
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.checks import uses_critic
from zerosearch.algorithms.values import mean_and_variance, moments, token_rewards, whiten
from zerosearch.core.distributed import gather_objects
from zerosearch.types import PolicyBatch, Trajectory

TrajectoryKey = tuple[int, int]  # group, sibling


@dataclass(kw_only=True, slots=True, frozen=True)
class Credit:
    """Who is praised for the rewards of a step."""

    advantages: Tensor  # [B, T] of this rank's batch
    returns: Tensor | None  # [B, T], where there is a critic
    of_trajectories: dict[
        TrajectoryKey, float
    ]  # mean over its tokens, of every rank's trajectories
    metrics: dict[str, float]  # global
    # of tokens, of trajectories that are watched
    entropies: dict[TrajectoryKey, list[float]] = field(default_factory=dict)


def assign_credit(
    algorithm: Algorithm,
    trajectories: Sequence[Trajectory],
    rewards_B: Tensor,
    batch: PolicyBatch,
) -> Credit:
    """Advantages of a step; a collective.

    Rows of all ranks are compared in the order of their groups: how they are spread over ranks
    changes nothing.

    Args:
        algorithm: how rewards become advantages.
        trajectories: that this rank trains on, all valid; any part of any group.
        rewards_B: [B], aligned with them.
        batch: the same as tensors, with old and reference log-probs where the KL is in the reward,
            and with values where there is a critic.
    """
    mask = batch.sampled_mask
    penalties = algorithm.kl_penalties(batch)
    keys = [trajectory.key for trajectory in trajectories]
    penalties_B = penalties.sum(dim=1)[: len(keys)]
    own = zip(keys, rewards_B.tolist(), penalties_B.tolist(), strict=True)
    every = sorted(row for part in gather_objects([*own]) for row in part)
    group_B = torch.tensor([group for (group, _), _, _ in every], dtype=torch.long)
    raw_B = torch.tensor([reward for _, reward, _ in every], dtype=torch.float32)
    penalty_B = torch.tensor([penalty for _, _, penalty in every], dtype=torch.float32)
    metrics = {"advantage/zero_groups": float(zero_variance_groups(raw_B, group_B))}
    if algorithm.needs_reference and algorithm.kl_in == "reward":
        metrics["reward/kl_penalty"] = float(penalty_B.mean())

    if uses_critic(algorithm):
        return _from_values(algorithm, keys, rewards_B, penalties, batch, metrics)
    advantages_B = algorithm.advantage(raw_B - penalty_B, group_B, None).tolist()
    of_trajectories = {key: each for (key, _, _), each in zip(every, advantages_B, strict=True)}
    own_B = torch.zeros(len(mask), dtype=torch.float32)
    own_B[: len(keys)] = torch.tensor([of_trajectories[key] for key in keys])
    return Credit(
        advantages=only_sampled(own_B[:, None].expand(mask.shape), mask),
        returns=None,
        of_trajectories=of_trajectories,
        metrics=metrics,
    )


def _from_values(
    algorithm: Algorithm,
    keys: Sequence[TrajectoryKey],
    rewards_B: Tensor,
    penalties: Tensor,
    batch: PolicyBatch,
    metrics: dict[str, float],
) -> Credit:
    assert batch.old_values is not None
    mask = batch.sampled_mask
    rows_B = torch.zeros(
        len(mask), dtype=torch.float32
    )  # also where the one row is that of a rank without data
    rows_B[: len(keys)] = rewards_B
    rewards = token_rewards(rows_B, penalties, mask)
    raw, returns = algorithm.advantage(rewards, batch.old_values, mask)
    advantages = whiten(raw, mask, _global_moments(raw, mask))
    means_B = advantages.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    own = dict(zip(keys, means_B.tolist(), strict=False))  # no key for the row of an empty rank
    mean, variance = mean_and_variance(_global_moments(returns, mask))
    _, unexplained = mean_and_variance(_global_moments(returns - batch.old_values, mask))
    metrics = metrics | {"critic/return": float(mean)}
    if variance > 0.0:
        metrics["critic/explained_variance"] = 1.0 - float(unexplained / variance)
    return Credit(
        advantages=advantages,
        returns=returns,
        of_trajectories={key: each for part in gather_objects(own) for key, each in part.items()},
        metrics=metrics,
    )


def _global_moments(values: Tensor, mask: Tensor) -> Tensor:
    ranks = gather_objects(moments(values, mask).tolist())
    return torch.tensor(ranks, dtype=torch.float64).sum(dim=0)
