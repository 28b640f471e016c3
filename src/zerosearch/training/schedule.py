"""Learning-rate schedules over optimizer updates."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Share


def warmup_schedule(
    optimizer: Optimizer,
    total_updates: int,
    *,
    warmup_fraction: Share = 0.0,
    decay: Literal["constant", "linear", "cosine"] = "constant",
    final_share: Share = 0.0,
) -> LambdaLR:
    """Linear warm-up, then constant, linear or cosine decay.

    Args:
        optimizer: whose peak rates are scaled.
        total_updates: optimizer updates of the whole run.
        warmup_fraction: share of them that warms up, in [0, 1].
        decay: after the warm-up.
        final_share: share of the peak rate at the end of a decay, in [0, 1].

    Raises:
        InputError: an option is out of its range.
    """
    for name, value in (("warmup_fraction", warmup_fraction), ("final_share", final_share)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"schedule.{name}={value}: give a share from 0 to 1")
    if decay not in ("constant", "linear", "cosine"):
        raise InputError(f"schedule.decay={decay!r}: give constant, linear or cosine")
    warmup = round(warmup_fraction * total_updates)

    def share(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        if decay == "constant":
            return 1.0
        progress = min(1.0, (update - warmup) / max(1, total_updates - warmup))
        left = 1.0 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return final_share + (1.0 - final_share) * left

    return LambdaLR(optimizer, share)
