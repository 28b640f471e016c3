"""Policy losses per token, and the frame around them: masks, importance weights, aggregation.

A loss function has the signature of `TokenLossFunction` and options of its own. With r the ratio
exp(logprobs - old_logprobs) of a token and A its advantage:

| function | loss of a token | source |
|---|---|---|
| `ppo_clip` | -min(r A, clip(r, 1 - low, 1 + high) A) | PPO, arXiv 1707.06347, eq. 7 |
| `gspo` | the same with the ratio of the whole sequence | GSPO, arXiv 2507.18071 |
| `cispo` | -constant(clip(r, low, high)) A log p | CISPO, arXiv 2506.13585, eq. 4 and 5 |
| `reinforce` | -constant(r) A log p | Williams 1992, with the ratio of the off-policy gradient |

All tensors are [B, T] unless said otherwise; a value at t belongs to the token at t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zerosearch.algorithms.aggregation import Aggregation, aggregate, masked_sum, only_sampled
from zerosearch.algorithms.importance import ImportanceCorrection, bounded_exp
from zerosearch.core.errors import InputError

RATIO_TAIL = 2.0  # a token that became twice or half as likely within a policy step is an outlier


class TokenLoss(NamedTuple):
    """What a loss function gives for each token, [B, T] each."""

    values: Tensor  # carries the gradient
    ratio: Tensor  # of the policy to the old policy, before any bound
    clipped: Tensor  # True where a bound took the gradient away or changed its size


TokenLossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], TokenLoss]


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLoss:
    """Clipped surrogate objective of PPO (arXiv 1707.06347, eq. 7), negated.

    Args:
        logprobs: policy log-probs; carries the gradient.
        old_logprobs: log-probs of the policy before this step's updates; a constant.
        advantages: a constant.
        mask: True on sampled tokens; elsewhere all others are 0.
        clip_low: ratios below 1 - clip_low are clipped (DAPO, arXiv 2503.14476: low != high).
        clip_high: ratios above 1 + clip_high are clipped.
        dual_clip: bound c > 1 on ratio * |advantage| where the advantage is negative
            (dual-clip PPO, arXiv 1912.09729); None for no bound.

    Raises:
        InputError: an option is out of its range.
    """
    _check_clips(clip_low, clip_high)
    if dual_clip is not None and dual_clip <= 1.0:
        raise InputError(f"dual_clip={dual_clip}: must be above 1 (3 is usual), or null for none")
    ratio = bounded_exp(logprobs - old_logprobs)
    surrogate = torch.minimum(
        ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    )
    if dual_clip is not None:
        surrogate = torch.where(
            advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate
        )
    return TokenLoss(-surrogate, ratio, surrogate != ratio * advantages)


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> TokenLoss:
    """PPO's objective with one ratio for a sequence, exp(mean over its tokens of the log-ratio).

    Source: GSPO, arXiv 2507.18071, clip range of section 5.1. The gradient is that of GSPO-token
    (section 4.3): the value is the sequence's ratio, each token's gradient its own, so that
    advantages may differ between the tokens of a sequence.

    Args:
        logprobs: policy log-probs; carries the gradient.
        old_logprobs: log-probs of the policy before this step's updates; a constant.
        advantages: a constant.
        mask: True on sampled tokens; elsewhere all others are 0.
        clip_low: ratios below 1 - clip_low are clipped; a mean log-ratio is much smaller than that
            of a token, so is its range.
        clip_high: ratios above 1 + clip_high are clipped.

    Raises:
        InputError: an option is out of its range.
    """
    length = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (logprobs - old_logprobs).sum(dim=1, keepdim=True).detach() / length
    return ppo_clip(
        logprobs - logprobs.detach() + mean,
        torch.zeros_like(old_logprobs),
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
    )


def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio_low: float = 0.0,
    ratio_high: float = 5.0,
) -> TokenLoss:
    """REINFORCE weighed by a bounded ratio (CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4 and 5).

    Unlike a clipped surrogate it keeps the gradient of every token: the bound is on its weight.

    Args:
        logprobs: policy log-probs; carries the gradient.
        old_logprobs: log-probs of the policy before this step's updates; a constant.
        advantages: a constant.
        mask: True on sampled tokens; elsewhere all others are 0.
        ratio_low: smallest weight; 0, as in the paper, is no bound.
        ratio_high: largest weight (ScaleRL, arXiv 2510.13786, tries 4 to 8).

    Raises:
        InputError: an option is out of its range.
    """
    if not 0.0 <= ratio_low <= 1.0:
        raise InputError(f"ratio_low={ratio_low}: must be between 0 (no bound) and 1")
    if ratio_high < 1.0:
        raise InputError(f"ratio_high={ratio_high}: must be at least 1, 5 is usual")
    ratio = bounded_exp(logprobs - old_logprobs).detach()
    weight = ratio.clamp(ratio_low, ratio_high)
    return TokenLoss(-weight * advantages * logprobs, ratio, weight != ratio)


def reinforce(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> TokenLoss:
    """REINFORCE (Williams 1992): -A log p, weighed by the ratio after a step's first update.

    Without the weight, updates after the first would take old trajectories for fresh ones. What
    older weights or other kernels sampled is weighed by `importance_correction`.
    """
    ratio = bounded_exp(logprobs - old_logprobs).detach()
    return TokenLoss(-ratio * advantages * logprobs, ratio, torch.zeros_like(mask))


def policy_loss(
    function: TokenLossFunction,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    normalizer: float | Tensor,
    aggregation: Aggregation = "token-mean",
    behaviour_logprobs: Tensor | None = None,
    importance_correction: ImportanceCorrection | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a micro-batch.

    Args:
        function: loss per token, such as `ppo_clip`.
        logprobs: policy log-probs; carries the gradient.
        old_logprobs: log-probs of the policy before this step's updates; a constant.
        advantages: [B] or [B, T]; a constant.
        mask: True on sampled tokens of valid trajectories. Values elsewhere are never read.
        normalizer: sum of `loss_normalizer` over all ranks and micro-batches of this update.
        aggregation: see `aggregate`.
        behaviour_logprobs: log-probs under the distribution that was sampled from; read by the
            correction alone.
        importance_correction: weighs each token by a bounded exp(old - behaviour), a constant.

    Returns:
        The loss (0-dim; 0 with a gradient path where the mask is empty), and detached sums over
        sampled tokens: `tokens`, `ratio_sum`, `clipped_sum`, `tail_sum` (tokens whose probability
        has changed by more than `RATIO_TAIL`), and with a correction `importance_sum` (of the
        weights) and `importance_cut_sum` (tokens whose ratio was truncated or masked).

    Raises:
        InputError: shapes differ or an option is out of its range.
    """
    _check_shapes(
        mask, logprobs=logprobs, old_logprobs=old_logprobs, behaviour_logprobs=behaviour_logprobs
    )
    mask = mask.bool()
    logprobs, old = only_sampled(logprobs, mask), only_sampled(old_logprobs, mask).detach()
    values, ratio, clipped = function(logprobs, old, _per_token(advantages, mask), mask)
    metrics = {
        "tokens": mask.sum().float(),
        "ratio_sum": masked_sum(ratio, mask),
        "clipped_sum": masked_sum(clipped, mask),
        "tail_sum": masked_sum((ratio < 1 / RATIO_TAIL) | (ratio > RATIO_TAIL), mask),
    }
    if importance_correction is not None:
        if behaviour_logprobs is None:
            raise InputError(
                "importance_correction needs behaviour_logprobs: pass them, or set it to null"
            )
        weights, cut = importance_correction.weights(old, behaviour_logprobs, mask)
        values = values * weights
        metrics["importance_sum"] = masked_sum(weights, mask)
        metrics["importance_cut_sum"] = masked_sum(cut, mask)
    return aggregate(values, mask, aggregation, normalizer), metrics


def _per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B] or [B, T] advantages as a constant [B, T], 0 on tokens that are not sampled."""
    if advantages.shape == mask.shape[:1]:
        advantages = advantages[:, None].expand_as(mask)
    _check_shapes(mask, advantages=advantages)
    return only_sampled(advantages.detach(), mask)


def _check_shapes(mask: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != mask.shape:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}, mask {tuple(mask.shape)}: pass one value "
                "per token, [B, T]"
            )


def _check_clips(clip_low: float, clip_high: float) -> None:
    if not 0.0 <= clip_low <= 1.0:
        raise InputError(f"clip_low={clip_low}: must be between 0 and 1, 0.2 is usual")
    if clip_high < 0.0:
        raise InputError(f"clip_high={clip_high}: must not be negative, 0.2 is usual")
