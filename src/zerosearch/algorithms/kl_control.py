"""A KL coefficient that keeps the policy at a given distance from the reference."""

from __future__ import annotations

from dataclasses import dataclass

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Positive


@dataclass(kw_only=True, slots=True, frozen=True)
class AdaptiveKL:
    """Raises the coefficient while the KL is above its target, and lowers it below.

    After each policy step: coefficient *= 1 + rate * clip(KL / target - 1, -0.2, 0.2).
    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593,
    section 2.2, with a rate of 0.1.

    Raises:
        InputError: a setting is not positive.
    """

    target: Positive  # mean KL per sampled token (`loss/kl`)
    rate: Positive = 0.1

    def __post_init__(self) -> None:
        for name in ("target", "rate"):
            if not (value := getattr(self, name)) > 0.0:
                raise InputError(f"kl_control.{name}={value}: must be positive")

    def next(self, coefficient: float, kl: float) -> float:
        """The coefficient of the next policy step.

        Args:
            coefficient: of the last one.
            kl: measured in the last one, over all ranks.
        """
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return coefficient * (1.0 + self.rate * error)
