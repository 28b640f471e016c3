"""One RL algorithm as a value: how rewards become advantages, and advantages a loss.

loss = policy loss + kl_coefficient * KL(policy || reference) - entropy_coefficient * entropy

The KL is added: minimising the loss pulls the policy towards the reference. (The public reference
code subtracts it.) All three terms share one aggregation and one global count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from zerosearch.algorithms.advantages import grpo, reinforce, reinforce_pp_baseline, rloo
from zerosearch.algorithms.aggregation import (
    Aggregation,
    aggregate,
    loss_normalizer,
    masked_sum,
)
from zerosearch.algorithms.importance import ImportanceCorrection
from zerosearch.algorithms.kl import KLKind, kl_estimate
from zerosearch.algorithms.losses import TokenLossFunction, gspo, policy_loss, ppo_clip
from zerosearch.types import PolicyBatch

_SET_BY_ALGORITHM = ("normalizer", "aggregation", "behaviour_logprobs", "importance_correction")


@dataclass(kw_only=True, slots=True, frozen=True)
class Algorithm:
    """Settings of an algorithm; in YAML `advantage` and `loss` are nodes with `_partial_: true`.

    Raises:
        ValueError: a setting, or a combination of settings, cannot work.
    """

    group_size: int  # siblings sampled per question
    resampling_rounds: int = 0  # times that groups of equal rewards are replaced in a step
    advantage: Callable[[Tensor, Tensor, Tensor | None], Tensor] = grpo  # (rewards, group, valid)
    loss: TokenLossFunction = ppo_clip
    aggregation: Aggregation = "token-mean"
    constant_length: int | None = None  # tokens per sequence that "constant" divides by
    kl_coefficient: float = 0.001  # authors' scripts of arXiv 2505.04588
    kl_kind: KLKind = "k3"  # authors' scripts
    entropy_coefficient: float = 0.0
    importance_correction: ImportanceCorrection | None = None  # sampler vs policy; None: off
    inner_epochs: int = 1  # passes over the trajectories of one policy step
    mini_batches: int = 1  # optimizer updates per pass

    def __post_init__(self) -> None:
        for name in ("group_size", "inner_epochs", "mini_batches"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        for name in ("kl_coefficient", "entropy_coefficient"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name}={value}: must be a finite number, 0 to switch it off")
        self._check_group()
        self._check_kl()
        self._check_aggregation()
        self._check_importance()
        self._try_functions()

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probs have to be computed."""
        return self.kl_coefficient > 0.0

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether log-probs have to be recomputed before the updates of a step.

        With a single update per step the policy of the loss is the old policy.
        """
        return self.inner_epochs * self.mini_batches > 1

    def local_normalizer(self, mask: Tensor) -> Tensor:
        """Local part of the global count (see `loss_normalizer`). Mask [B, T]; 0-dim tensor."""
        return loss_normalizer(mask, self.aggregation, self.constant_length)

    def token_loss(
        self, logprobs: Tensor, entropy: Tensor, batch: PolicyBatch, normalizer: float | Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch.

        Args:
            logprobs: [B, T] policy log-probs of `batch.input_ids`; carries the gradient.
            entropy: [B, T] entropy of the policy at each token; needs a gradient only where
                `entropy_coefficient` is positive.
            batch: the micro-batch.
            normalizer: sum of `local_normalizer` over all ranks and micro-batches of the update.

        Returns:
            The loss (0-dim), and detached 0-dim metrics that add up over micro-batches and ranks:
            `policy_loss` (already divided by the normalizer) and, as sums over sampled tokens,
            `tokens`, `ratio_sum`, `clipped_sum`, `entropy_sum`, `logprob_gap_sum` (|log-prob in
            training - log-prob when sampled|), `kl_sum` where reference log-probs are given, and
            `importance_sum` and `importance_cut_sum` with an importance correction.

        Raises:
            ValueError: `batch` lacks the old or reference log-probs that the settings need.
        """
        mask = batch.sampled_mask
        old_logprobs = self._old_logprobs(logprobs, batch)
        loss, metrics = policy_loss(
            self.loss,
            logprobs,
            old_logprobs,
            batch.advantages,
            mask,
            normalizer=normalizer,
            aggregation=self.aggregation,
            behaviour_logprobs=batch.behaviour_logprobs,
            importance_correction=self.importance_correction,
        )
        metrics["policy_loss"] = loss.detach()
        metrics["entropy_sum"] = masked_sum(entropy, mask)
        gap = (old_logprobs - batch.behaviour_logprobs).abs()
        metrics["logprob_gap_sum"] = masked_sum(gap, mask)
        if self.entropy_coefficient > 0.0:
            bonus = aggregate(entropy, mask, self.aggregation, normalizer)
            loss = loss - self.entropy_coefficient * bonus
        if batch.ref_logprobs is not None:
            kl = self._kl(logprobs, batch.ref_logprobs, mask)
            metrics["kl_sum"] = masked_sum(kl, mask)
            if self.needs_reference:
                penalty = aggregate(kl, mask, self.aggregation, normalizer)
                loss = loss + self.kl_coefficient * penalty
        elif self.needs_reference:
            raise ValueError(
                f"ref_logprobs is None but kl_coefficient={self.kl_coefficient}: compute them with "
                "the reference policy, or set kl_coefficient to 0"
            )
        return loss, metrics

    def _old_logprobs(self, logprobs: Tensor, batch: PolicyBatch) -> Tensor:
        if batch.old_logprobs is not None:
            return batch.old_logprobs
        if self.inner_epochs * self.mini_batches > 1:
            raise ValueError(
                f"old_logprobs is None but inner_epochs={self.inner_epochs} and mini_batches="
                f"{self.mini_batches} make several updates a step: recompute them before the first"
            )
        return logprobs.detach()

    def _kl(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
        # Padding may hold infinities, whose gradient would be NaN even behind a mask of 0.
        mask = mask.bool()
        sampled, reference = (torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
        return kl_estimate(sampled, reference, self.kl_kind)

    def _check_group(self) -> None:
        function = getattr(self.advantage, "func", self.advantage)
        options = getattr(self.advantage, "keywords", {})
        if self.resampling_rounds < 0:
            raise ValueError(f"resampling_rounds={self.resampling_rounds}: give 0 (off) or more")
        if self.resampling_rounds and self.group_size == 1:
            raise ValueError(
                f"resampling_rounds={self.resampling_rounds} replaces groups of equal rewards, but "
                "group_size=1 leaves nothing to compare: sample 2 or more, or set "
                "resampling_rounds to 0"
            )
        compares = function in (grpo, rloo, reinforce_pp_baseline) or (
            function is reinforce and options.get("baseline") == "leave_one_out"
        )
        if compares and self.group_size == 1:
            raise ValueError(
                f"group_size=1 leaves {function.__name__} no siblings to compare a reward with: "
                "sample 2 or more, or use algorithm=reinforce"
            )

    def _check_kl(self) -> None:
        kinds = get_args(KLKind)
        if self.kl_kind not in kinds:
            raise ValueError(f"kl_kind={self.kl_kind!r} is unknown: use one of {', '.join(kinds)}")
        if self.kl_kind == "k1" and self.needs_reference:
            raise ValueError(
                "kl_kind='k1' has expected gradient 0 as a loss and cannot pull towards the "
                "reference: use k2 or k3, or set kl_coefficient to 0"
            )

    def _check_aggregation(self) -> None:
        if self.aggregation != "constant" and self.constant_length is not None:
            raise ValueError(
                f"constant_length={self.constant_length} has no effect with aggregation="
                f"{self.aggregation!r}: use aggregation 'constant' or set constant_length to null"
            )
        self.local_normalizer(torch.ones(1, 1))

    def _check_importance(self) -> None:
        level = self.importance_correction and self.importance_correction.level
        if level == "token" and getattr(self.loss, "func", self.loss) is gspo:
            raise ValueError(
                "importance_correction.level='token' would weigh tokens inside the sequences that "
                "the loss gspo compares as wholes: set importance_correction.level=sequence"
            )

    def _try_functions(self) -> None:
        """Call both functions once, so that a wrong option fails before any model is loaded."""
        given = [name for name in _SET_BY_ALGORITHM if name in getattr(self.loss, "keywords", {})]
        if given:
            raise ValueError(f"loss.{given[0]} would be ignored: set algorithm.{given[0]} instead")
        two, one = torch.ones(2), torch.ones(1, 1)
        self.advantage(two, two.long(), two.bool())
        self.loss(one, one, one, one.bool())
