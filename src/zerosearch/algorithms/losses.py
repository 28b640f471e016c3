"""Clipped policy loss and the aggregation that all per-token terms share.

Departure from the textbook: a mean is a local sum over a global count. The caller counts the whole
update once (all ranks, all micro-batches) and passes it as `normalizer`, so the losses of the parts
add up to the loss of the whole and the gradient does not depend on how a batch is split.

All tensors are [B, T] unless said otherwise; a value at t belongs to the token at t.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zerosearch.algorithms.importance import ImportanceCorrection, bounded_exp

Aggregation = Literal["token-mean", "sequence-mean", "constant"]
RatioLevel = Literal["token", "sequence"]


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    normalizer: float | Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_level: RatioLevel = "token",
    aggregation: Aggregation = "token-mean",
    behaviour_logprobs: Tensor | None = None,
    importance_correction: ImportanceCorrection | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative clipped surrogate objective (PPO, arXiv 1707.06347, eq. 7) over sampled tokens.

    Args:
        logprobs: policy log-probs; carries the gradient.
        old_logprobs: log-probs of the policy before this step's updates; a constant.
        advantages: [B] or [B, T]; a constant.
        mask: True on sampled tokens of valid trajectories. Values elsewhere are never read.
        normalizer: sum of `loss_normalizer` over all ranks and micro-batches of this update.
        clip_low: ratios below 1 - clip_low are clipped (DAPO, arXiv 2503.14476: low != high).
        clip_high: ratios above 1 + clip_high are clipped.
        dual_clip: bound c > 1 on ratio * |advantage| where the advantage is negative
            (dual-clip PPO, arXiv 1912.09729); None for no bound.
        ratio_level: "token", or "sequence" for the length-normalised ratio of a whole sequence
            (GSPO, arXiv 2507.18071; gradient in its GSPO-token form, section 4.3).
        aggregation: see `aggregate`.
        behaviour_logprobs: log-probs under the distribution that was sampled from; read by the
            correction alone.
        importance_correction: weighs each token by a bounded exp(old - behaviour), a constant.

    Returns:
        The loss (0-dim; 0 with a gradient path where the mask is empty), and detached sums over
        sampled tokens: `tokens`, `ratio_sum`, `clipped_sum` (tokens whose gradient the clips
        removed), and with a correction `importance_sum` (of the weights) and `importance_cut_sum`
        (tokens whose ratio was truncated or masked).

    Raises:
        ValueError: shapes differ or an option is out of its range.
    """
    _check_options(clip_low, clip_high, dual_clip)
    _check_shapes(
        mask, logprobs=logprobs, old_logprobs=old_logprobs, behaviour_logprobs=behaviour_logprobs
    )
    mask = mask.bool()
    logprobs, old = _only_sampled(logprobs, mask), _only_sampled(old_logprobs, mask).detach()
    advantages = _per_token(advantages, mask)
    ratio = _probability_ratio(logprobs, old, mask, ratio_level)
    surrogate = torch.minimum(
        ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    )
    if dual_clip is not None:
        surrogate = torch.where(
            advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate
        )
    clipped = surrogate != ratio * advantages
    metrics = {
        "tokens": mask.sum().float(),
        "ratio_sum": masked_sum(ratio, mask),
        "clipped_sum": masked_sum(clipped, mask),
    }
    if importance_correction is not None:
        if behaviour_logprobs is None:
            raise ValueError(
                "importance_correction needs behaviour_logprobs: pass them, or set it to null"
            )
        weights, cut = importance_correction.weights(old, behaviour_logprobs, mask)
        surrogate = surrogate * weights
        metrics["importance_sum"] = masked_sum(weights, mask)
        metrics["importance_cut_sum"] = masked_sum(cut, mask)
    return aggregate(-surrogate, mask, aggregation, normalizer), metrics


def loss_normalizer(
    mask: Tensor, aggregation: Aggregation, constant_length: int | None = None
) -> Tensor:
    """The local part of the global count that `aggregate` divides by.

    Args:
        mask: [B, T] True on sampled tokens of valid trajectories.
        aggregation: "token-mean" counts tokens, "sequence-mean" sequences with at least one such
            token, "constant" these sequences times `constant_length`.
        constant_length: tokens per sequence that "constant" assumes, e.g. the response budget.

    Returns:
        0-dim float tensor: sum it over ranks and micro-batches of one update.

    Raises:
        ValueError: `aggregation` is unknown, or "constant" lacks a positive `constant_length`.
    """
    mask = mask.bool()
    sequences = mask.any(dim=1).sum().float()
    match aggregation:
        case "token-mean":
            return mask.sum().float()
        case "sequence-mean":
            return sequences
        case "constant":
            if constant_length is None or constant_length < 1:
                raise ValueError(
                    f"constant_length={constant_length}: aggregation 'constant' needs the number "
                    "of tokens a sequence may have, at least 1"
                )
            return sequences * constant_length
    raise ValueError(_unknown_aggregation(aggregation))


def aggregate(
    values: Tensor, mask: Tensor, aggregation: Aggregation, normalizer: float | Tensor
) -> Tensor:
    """Sum of masked values over a global count, one rule for policy, KL and entropy terms.

    - "token-mean": every token weighs the same (DAPO, arXiv 2503.14476, section 3.3).
    - "sequence-mean": every sequence weighs the same, averaged over its own tokens first (GRPO,
      arXiv 2402.03300, eq. 3).
    - "constant": every token weighs the same and the divisor does not depend on lengths (Dr. GRPO,
      arXiv 2503.20783).

    Args:
        values: [B, T] per-token terms.
        mask: [B, T] True on sampled tokens of valid trajectories.
        aggregation: as above.
        normalizer: sum of `loss_normalizer` over all ranks and micro-batches; 0 only where no token
            was sampled anywhere, and then the result is 0.

    Returns:
        0-dim tensor; over a split of the rows the parts add up to the whole.

    Raises:
        ValueError: `aggregation` is unknown.
    """
    mask = mask.bool()
    kept = _only_sampled(values, mask)
    match aggregation:
        case "token-mean" | "constant":
            total = kept.sum()
        case "sequence-mean":
            total = (kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()
        case _:
            raise ValueError(_unknown_aggregation(aggregation))
    divisor = torch.as_tensor(normalizer, dtype=total.dtype, device=total.device).detach()
    return total / torch.where(divisor > 0, divisor, 1.0)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of values where the mask is True, without gradient; for metrics. 0-dim tensor."""
    return torch.where(mask.bool(), values.detach().float(), 0.0).sum()


def _probability_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, ratio_level: RatioLevel
) -> Tensor:
    log_ratio = logprobs - old_logprobs
    match ratio_level:
        case "token":
            return bounded_exp(log_ratio)
        case "sequence":
            length = mask.sum(dim=1, keepdim=True).clamp(min=1)
            mean_log_ratio = log_ratio.sum(dim=1, keepdim=True) / length
            # The value is the sequence's ratio; the gradient of each token is its own, so that
            # advantages may differ between the tokens of a sequence.
            return bounded_exp(logprobs - logprobs.detach() + mean_log_ratio.detach())
    raise ValueError(f"ratio_level={ratio_level!r} is unknown: use 'token' or 'sequence'")


def _only_sampled(values: Tensor, mask: Tensor) -> Tensor:
    """Zero before any arithmetic what is not sampled: an infinity there would poison gradients."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return torch.where(mask, values.to(dtype), 0.0)


def _per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B] or [B, T] advantages as a constant [B, T], 0 on tokens that are not sampled."""
    if advantages.shape == mask.shape[:1]:
        advantages = advantages[:, None].expand_as(mask)
    _check_shapes(mask, advantages=advantages)
    return _only_sampled(advantages.detach(), mask)


def _check_shapes(mask: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, mask {tuple(mask.shape)}: pass one value "
                "per token, [B, T]"
            )


def _check_options(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not 0.0 <= clip_low <= 1.0:
        raise ValueError(f"clip_low={clip_low}: must be between 0 and 1, 0.2 is usual")
    if clip_high < 0.0:
        raise ValueError(f"clip_high={clip_high}: must not be negative, 0.2 is usual")
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"dual_clip={dual_clip}: must be above 1 (3 is usual), or null for none")


def _unknown_aggregation(aggregation: str) -> str:
    return f"aggregation={aggregation!r} is unknown: use token-mean, sequence-mean or constant"
