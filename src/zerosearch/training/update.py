"""What policy and critic compute on a batch: log-probs or values, and their gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zerosearch.algorithms.aggregation import aggregate, loss_normalizer
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.values import value_loss
from zerosearch.policy.critic import token_values
from zerosearch.policy.logprobs import TokenStats, token_logprobs
from zerosearch.policy.reference import ReferencePolicy
from zerosearch.training.micro_batches import Backward, MicroBatches
from zerosearch.types import PolicyBatch


@dataclass(kw_only=True, slots=True, frozen=True)
class PolicyUpdater:
    """Log-probs and gradients of a policy."""

    algorithm: Algorithm  # turns log-probs into a loss
    micro_batches: MicroBatches
    chunk_tokens: int  # rows of logits held at a time
    temperature: float  # at which the trajectories were sampled

    def token_stats(self, model: nn.Module, batch: PolicyBatch) -> TokenStats:
        """Log-probs and entropy of one micro-batch under the policy."""
        return token_logprobs(
            model,
            batch.input_ids,
            batch.attention_mask,
            batch.sampled_mask,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            entropy_gradient=self.algorithm.entropy_coefficient > 0.0,
            packed=self.micro_batches.packed,
        )

    def logprobs(self, model: nn.Module, batch: PolicyBatch) -> Tensor:
        """Log-probs [B, T] of a whole batch, without gradient."""
        return self.micro_batches.compute(
            lambda micro: self.token_stats(model, micro).logprobs, batch
        )

    def reference_logprobs(self, reference: ReferencePolicy, batch: PolicyBatch) -> Tensor:
        """The same under the reference policy."""

        def of_micro_batch(micro: PolicyBatch) -> Tensor:
            return reference.token_logprobs(
                micro.input_ids,
                micro.attention_mask,
                micro.sampled_mask,
                temperature=self.temperature,
                chunk_tokens=self.chunk_tokens,
                packed=self.micro_batches.packed,
            ).logprobs

        return self.micro_batches.compute(of_micro_batch, batch)

    def accumulate(
        self, model: nn.Module, batch: PolicyBatch, backward: Backward
    ) -> dict[str, float]:
        """Add the gradient of one mini-batch to the parameters.

        Returns:
            Global metric sums of `Algorithm.token_loss`.
        """

        def loss(micro: PolicyBatch, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            stats = self.token_stats(model, micro)
            if micro.entropies is not None:
                micro.entropies = stats.entropy.detach()
            return self.algorithm.token_loss(stats.logprobs, stats.entropy, micro, normalizer)

        normalizer = self.algorithm.local_normalizer(batch.sampled_mask)
        return self.micro_batches.accumulate(loss, batch, normalizer, backward)


@dataclass(kw_only=True, slots=True, frozen=True)
class CriticUpdater:
    """Values and gradients of a critic."""

    micro_batches: MicroBatches
    value_clip: float | None  # see `value_loss`

    def values(self, critic: nn.Module, batch: PolicyBatch) -> Tensor:
        """Values [B, T] of a whole batch, without gradient."""
        return self.micro_batches.compute(lambda micro: self._values(critic, micro), batch)

    def accumulate(
        self, critic: nn.Module, batch: PolicyBatch, backward: Backward
    ) -> dict[str, float]:
        """Add the gradient of one mini-batch, the mean over its tokens, to the parameters.

        Args:
            critic: see `load_critic`.
            batch: with the values before this step's updates, and with returns.
            backward: from a loss to gradients.

        Returns:
            The global `value_loss`.
        """

        def loss(micro: PolicyBatch, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            assert micro.old_values is not None and micro.returns is not None
            values = self._values(critic, micro)
            errors = value_loss(values, micro.old_values, micro.returns, clip=self.value_clip)
            mean = aggregate(errors, micro.sampled_mask, "token-mean", normalizer)
            return mean, {"value_loss": mean.detach()}

        normalizer = loss_normalizer(batch.sampled_mask, "token-mean")
        return self.micro_batches.accumulate(loss, batch, normalizer, backward)

    def _values(self, critic: nn.Module, batch: PolicyBatch) -> Tensor:
        return token_values(
            critic,
            batch.input_ids,
            batch.attention_mask,
            batch.sampled_mask,
            packed=self.micro_batches.packed,
        )
