"""What an algorithm is told, and what follows from it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from zerosearch.algorithms.advantages import grpo
from zerosearch.algorithms.aggregation import Aggregation, loss_normalizer
from zerosearch.algorithms.critic import CriticSettings
from zerosearch.algorithms.importance import ImportanceCorrection
from zerosearch.algorithms.kl import KLKind
from zerosearch.algorithms.kl_control import AdaptiveKL
from zerosearch.algorithms.losses import TokenLossFunction, ppo_clip
from zerosearch.core.ranges import Count, CountOrZero, NotNegative

# (rewards [B], groups [B], valid [B] or None) -> [B]; or `values.generalized_advantages`
AdvantageFunction = Callable[..., Any]


@dataclass(kw_only=True, slots=True, frozen=True)
class AlgorithmSettings:
    """The fields of `Algorithm`, as they stand in its YAML."""

    group_size: Count  # siblings sampled per question
    resampling_rounds: CountOrZero = 0  # times that groups of equal rewards are replaced in a step
    advantage: AdvantageFunction = grpo
    loss: TokenLossFunction = ppo_clip
    critic: CriticSettings | None = None  # for advantage generalized_advantages, and for it alone
    aggregation: Aggregation = "token-mean"
    constant_length: Count | None = None  # tokens per sequence that "constant" divides by
    kl_coefficient: NotNegative = 0.001  # authors' scripts of arXiv 2505.04588
    kl_kind: KLKind = "k3"  # authors' scripts
    kl_in: Literal["loss", "reward"] = "loss"
    kl_control: AdaptiveKL | None = None  # moves the coefficient; None: it stays
    reference_reset_steps: Count | None = None  # the reference becomes the policy; None: never
    entropy_coefficient: NotNegative = 0.0
    importance_correction: ImportanceCorrection | None = None  # sampler vs policy; None: off
    train_on_documents: bool = False  # True only to show what masking them is worth
    inner_epochs: Count = 1  # passes over the trajectories of one policy step
    mini_batches: Count = 1  # optimizer updates per pass

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probs have to be computed."""
        return self.kl_coefficient > 0.0

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one policy step."""
        return self.inner_epochs * self.mini_batches

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether log-probs have to be recomputed before the updates of a step.

        With a single update per step the policy of the loss is the old policy.
        """
        return self.updates_per_step > 1 or (self.needs_reference and self.kl_in == "reward")

    def local_normalizer(self, mask: Tensor) -> Tensor:
        """Local part of the global count (see `loss_normalizer`). Mask [B, T]; 0-dim tensor."""
        return loss_normalizer(mask, self.aggregation, self.constant_length)
