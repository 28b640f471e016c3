"""What a critic adds: advantages of single tokens from values, and the loss of the values.

All tensors are [B, T]; a value at t belongs to the token at t. Only sampled tokens are time steps:
from the last token of one turn to the first of the next it is one step, however long the documents
in between (the public reference code gives inserted tokens returns and a critic loss).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerosearch.algorithms.aggregation import only_sampled
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Share


def token_rewards(rewards_B: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """Reward of every token: the trajectory's at its last sampled one, minus each token's penalty.

    Args:
        rewards_B: [B] of the trajectories.
        penalties: per token, for example a KL times its coefficient; 0 for none.
        mask: True on sampled tokens.

    Returns:
        [B, T], 0 where the mask is False.
    """
    mask = mask.bool()
    later = mask.flip(1).cumsum(1).flip(1)  # sampled tokens from here on
    last = mask & (later == 1)
    return only_sampled(rewards_B[:, None] * last - penalties, mask)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: Share = 1.0, trace: Share = 1.0
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) over sampled tokens.

    Args:
        rewards: of the tokens.
        values: the critic's, of the state in which each token was sampled.
        mask: True on sampled tokens; values elsewhere are never read.
        discount: gamma.
        trace: lambda; 1 is the return minus the value.

    Returns:
        Advantages and returns (advantage + value), 0 where the mask is False; without gradient.

    Raises:
        InputError: a factor is not in [0, 1].
    """
    for name, factor in (("discount", discount), ("trace", trace)):
        if not 0.0 <= factor <= 1.0:
            raise InputError(f"{name}={factor}: must be between 0 and 1")
    mask = mask.bool()
    rewards, values = only_sampled(rewards, mask).detach(), only_sampled(values, mask).detach()
    # sampled tokens of each row first, in their order, so that neighbours are successive steps
    order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)
    reward, value = rewards.gather(1, order), values.gather(1, order)
    advantage = torch.zeros_like(reward)
    running = torch.zeros_like(reward[:, 0])
    following = torch.zeros_like(running)  # value of the next state; nothing follows the last
    for step in range(int(mask.sum(dim=1).max()) - 1, -1, -1):
        error = reward[:, step] + discount * following - value[:, step]
        running = error + discount * trace * running
        # columns beyond a row's own tokens hold rewards and values of 0 and so leave it at 0
        advantage[:, step] = running
        following = value[:, step]
    advantages = only_sampled(torch.zeros_like(advantage).scatter(1, order, advantage), mask)
    return advantages, only_sampled(advantages + values, mask)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Number, sum and sum of squares of the values in the mask, [3] float64; add up over ranks."""
    kept = only_sampled(values.double(), mask.bool())
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


def mean_and_variance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (0 of a single value) from the moments of all values."""
    count, total, squares = moments.unbind()
    mean = total / count.clamp(min=1)
    variance = (squares - count * mean.square()) / (count - 1).clamp(min=1)
    return mean, variance.clamp(min=0.0)


def whiten(values: Tensor, mask: Tensor, moments: Tensor) -> Tensor:
    """(value - mean) / (std + 1e-8) in the mask, 0 elsewhere.

    Source: normalisation of advantages, detail 7 of Huang et al., "The 37 Implementation Details of
    Proximal Policy Optimization", 2022.

    Args:
        values: to shift and scale.
        mask: True on the values that count.
        moments: of the whole step, over all ranks.
    """
    mean, variance = mean_and_variance(moments)
    scaled = (values.double() - mean) / (variance.sqrt() + 1e-8)
    return only_sampled(scaled, mask.bool()).to(values.dtype)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = 0.5
) -> Tensor:
    """Half the squared error of each value; with a clip, the larger one of two.

    The second is that of the value moved by at most `clip` from the old one (PPO's reference
    implementation, github.com/openai/baselines, ppo2).

    Args:
        values: of the critic; carries the gradient.
        old_values: of the critic before this step's updates.
        returns: what the values should be.
        clip: largest move that is rewarded, above 0; None for no bound.

    Returns:
        [B, T]; see `aggregate`.
    """
    error = (values - returns).square()
    if clip is None:
        return error / 2
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(error, (near - returns).square()) / 2
