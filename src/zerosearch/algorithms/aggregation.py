"""From a value per token to one number: the aggregation that all per-token terms share.

Departure from the textbook: a mean is a local sum over a global count. The caller counts the whole
update once (all ranks, all micro-batches) and passes it as `normalizer`, so the losses of the parts
add up to the loss of the whole and the gradient does not depend on how a batch is split.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zerosearch.core.errors import InputError

Aggregation = Literal["token-mean", "sequence-mean", "constant"]


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
        InputError: `aggregation` is unknown, or "constant" lacks a positive `constant_length`.
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
                raise InputError(
                    f"constant_length={constant_length}: aggregation 'constant' needs the number "
                    "of tokens a sequence may have, at least 1"
                )
            return sequences * constant_length
    raise InputError(_unknown_aggregation(aggregation))


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
        InputError: `aggregation` is unknown.
    """
    mask = mask.bool()
    kept = only_sampled(values, mask)
    match aggregation:
        case "token-mean" | "constant":
            total = kept.sum()
        case "sequence-mean":
            total = (kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()
        case _:
            raise InputError(_unknown_aggregation(aggregation))
    divisor = torch.as_tensor(normalizer, dtype=total.dtype, device=total.device).detach()
    return total / torch.where(divisor > 0, divisor, 1.0)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of values where the mask is True, without gradient; for metrics. 0-dim tensor."""
    return torch.where(mask.bool(), values.detach().float(), 0.0).sum()


def only_sampled(values: Tensor, mask: Tensor) -> Tensor:
    """Zero before any arithmetic what is not sampled: an infinity there would poison gradients."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return torch.where(mask, values.to(dtype), 0.0)


def _unknown_aggregation(aggregation: str) -> str:
    return f"aggregation={aggregation!r} is unknown: use token-mean, sequence-mean or constant"
