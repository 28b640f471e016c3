"""One RL algorithm as a value: how rewards become advantages, and advantages a loss.

loss = policy loss + kl_coefficient * KL(policy || reference) - entropy_coefficient * entropy

The KL is added: minimising the loss pulls the policy towards the reference. (The public reference
code subtracts it.) All three terms share one aggregation and one global count. With
`kl_in="reward"` the KL is taken off the rewards instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zerosearch.algorithms.aggregation import aggregate, masked_sum, only_sampled
from zerosearch.algorithms.checks import check_algorithm
from zerosearch.algorithms.kl import kl_estimate
from zerosearch.algorithms.losses import policy_loss
from zerosearch.algorithms.settings import AlgorithmSettings
from zerosearch.core.errors import InputError
from zerosearch.types import PolicyBatch


@dataclass(kw_only=True, slots=True, frozen=True)
class Algorithm(AlgorithmSettings):
    """Settings with what they compute; in YAML `advantage` and `loss` have `_partial_: true`.

    Raises:
        InputError: a setting, or a combination of settings, cannot work.
    """

    def __post_init__(self) -> None:
        check_algorithm(self)

    def kl_penalties(self, batch: PolicyBatch) -> Tensor:
        """What the KL takes off the reward of each token, [B, T]; 0 with `kl_in="loss"`.

        Args:
            batch: where the penalty is not 0, with its old and reference log-probs.
        """
        if not self.needs_reference or self.kl_in == "loss":
            return torch.zeros_like(batch.behaviour_logprobs)
        assert batch.old_logprobs is not None and batch.ref_logprobs is not None
        kl = self._kl(batch.old_logprobs, batch.ref_logprobs, batch.sampled_mask)
        return self.kl_coefficient * kl

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
            `tokens`, `ratio_sum`, `clipped_sum`, `tail_sum`, `entropy_sum`, `logprob_gap_sum`
            (|log-prob in training - log-prob when sampled|, over `sampled_tokens`), `kl_sum` where
            reference log-probs are given, and `importance_sum` and `importance_cut_sum` with an
            importance correction.

        Raises:
            InputError: `batch` lacks the old or reference log-probs that the settings need.
        """
        mask = batch.sampled_mask.bool()
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
        metrics |= _sampler_gap(old_logprobs, batch.behaviour_logprobs, mask)
        if self.entropy_coefficient > 0.0:
            bonus = aggregate(entropy, mask, self.aggregation, normalizer)
            loss = loss - self.entropy_coefficient * bonus
        if batch.ref_logprobs is not None:
            kl = self._kl(logprobs, batch.ref_logprobs, mask)
            metrics["kl_sum"] = masked_sum(kl, mask)
            if self.needs_reference and self.kl_in == "loss":
                penalty = aggregate(kl, mask, self.aggregation, normalizer)
                loss = loss + self.kl_coefficient * penalty
        elif self.needs_reference:
            raise InputError(
                f"ref_logprobs is None but kl_coefficient={self.kl_coefficient}: compute them with "
                "the reference policy, or set kl_coefficient to 0"
            )
        return loss, metrics

    def _old_logprobs(self, logprobs: Tensor, batch: PolicyBatch) -> Tensor:
        if batch.old_logprobs is not None:
            return batch.old_logprobs
        if self.updates_per_step > 1:
            raise InputError(
                f"old_logprobs is None but inner_epochs={self.inner_epochs} and mini_batches="
                f"{self.mini_batches} make several updates a step: recompute them before the first"
            )
        return logprobs.detach()

    def _kl(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
        # Padding may hold infinities, whose gradient would be NaN even behind a mask of 0.
        sampled, reference = only_sampled(logprobs, mask), only_sampled(ref_logprobs, mask)
        return kl_estimate(sampled, reference, self.kl_kind)


def _sampler_gap(old_logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> dict[str, Tensor]:
    sampled = mask & ~behaviour.isnan()  # where documents are trained on, nobody sampled them
    return {
        "logprob_gap_sum": masked_sum((old_logprobs - behaviour).abs(), sampled),
        "sampled_tokens": sampled.sum().float(),
    }
