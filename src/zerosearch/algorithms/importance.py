"""Correction for trajectories that another distribution sampled than the one that is trained.

The sampler may have older weights (`rollout.lag`), another precision or other kernels. Each token's
term of the policy loss is therefore weighted by a bounded probability ratio between the policy
before the step's updates ("old") and the sampler ("behaviour"). The clipped ratio of PPO stays
between the present and the old policy, as in the decoupled objective of AReaL (arXiv 2505.24298).

All tensors are [B, T]; a value at t belongs to the token at t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import NotNegative, Positive

Kind = Literal["truncate", "mask"]
Level = Literal["token", "sequence"]

# exp(20) = 4.9e8 leaves room for products and sums in float32; a ratio that far out is noise and
# gets no gradient.
MAX_LOG_RATIO = 20.0


@dataclass(kw_only=True, slots=True, frozen=True)
class ImportanceCorrection:
    """Bounded importance weights.

    The ratio of a token is r = exp(old - behaviour); that of a sequence is the product over its
    sampled tokens, and each of its tokens gets it. The weight is

    - "truncate": min(max(r, low), high), truncated importance sampling (Ionides 2008; for the gap
      between sampler and trainer Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
      Off-Policy RL Training", token level with high = 2);
    - "mask": r where low <= r <= high, else 0 (IcePop, arXiv 2510.18855, token level with low = 0.5
      and high = 5; sequence level in arXiv 2510.26788).

    Token weights ignore that earlier tokens, too, came from the other distribution; sequence
    weights do not, at the price of a variance that grows with the length. Weights apply to the
    policy term alone, and a masked token still counts in the normaliser: the loss of the others
    stays as it is.

    Raises:
        InputError: an option is unknown or out of its range.
    """

    kind: Kind = "truncate"
    level: Level = "token"
    low: NotNegative = 0.0  # smallest ratio that is kept
    high: Positive = 2.0  # largest ratio that is kept

    def __post_init__(self) -> None:
        for name, options in (("kind", get_args(Kind)), ("level", get_args(Level))):
            if (value := getattr(self, name)) not in options:
                raise InputError(
                    f"importance_correction.{name}={value!r} is unknown: use {' or '.join(options)}"
                )
        if not 0.0 <= self.low <= 1.0:
            raise InputError(
                f"importance_correction.low={self.low}: must lie in [0, 1]; 0 leaves small ratios "
                "as they are, 0.5 is usual with kind=mask"
            )
        if not 1.0 <= self.high < float("inf"):
            raise InputError(
                f"importance_correction.high={self.high}: must be a finite number from 1 on; 2 is "
                "usual with kind=truncate, 5 with kind=mask"
            )

    def weights(
        self, old_logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights of the tokens, and where a bound changed them; constants, without gradient.

        Args:
            old_logprobs: under the policy before this step's updates.
            behaviour_logprobs: under the distribution that was sampled from.
            mask: True on sampled tokens; values elsewhere are never read.

        Returns:
            Weights, 1 where the mask is False, and a bool tensor, False there.
        """
        mask = mask.bool()
        log_ratio = torch.where(mask, old_logprobs - behaviour_logprobs, 0.0).detach()
        if self.level == "sequence":
            log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
        ratio = bounded_exp(log_ratio)
        outside = mask & ((ratio < self.low) | (ratio > self.high))
        if self.kind == "truncate":
            bounded = ratio.clamp(self.low, self.high)
        else:
            bounded = torch.where(outside, 0.0, ratio)
        return torch.where(mask, bounded, 1.0), outside


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """Exponential of a log-ratio, bounded so that a product of it stays finite in float32."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
