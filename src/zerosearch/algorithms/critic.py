"""Settings of a critic: how the model that estimates returns is trained beside the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import CountOrZero, Positive


@dataclass(kw_only=True, slots=True, frozen=True)
class CriticSettings:
    """A critic with the policy's architecture and first weights, and an optimizer of its own.

    Raises:
        InputError: a setting is out of its range.
    """

    optimizer: Callable[..., Optimizer]  # from parameters, e.g. a partial of AdamW
    schedule: Callable[[Optimizer, int], LRScheduler]  # from optimizer and number of updates
    value_clip: Positive | None = 0.5  # see `value_loss`
    warmup_steps: CountOrZero = 0  # policy steps at the start in which the critic alone learns
    gradient_clip: Positive = 1.0  # largest gradient norm

    def __post_init__(self) -> None:
        if self.value_clip is not None and not self.value_clip > 0.0:
            raise InputError(f"critic.value_clip={self.value_clip}: give a positive number or null")
        if self.warmup_steps < 0:
            raise InputError(f"critic.warmup_steps={self.warmup_steps}: give 0 or more")
        if not self.gradient_clip > 0.0:
            raise InputError(f"critic.gradient_clip={self.gradient_clip}: give a positive number")
