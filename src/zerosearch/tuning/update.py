"""Log-probs of replies and their gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zerosearch.algorithms.aggregation import aggregate, loss_normalizer
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.training.micro_batches import Backward, MicroBatches
from zerosearch.types import PolicyBatch


@dataclass(kw_only=True, slots=True, frozen=True)
class ReplyUpdater:
    """Cross-entropy of the tokens in `sampled_mask`."""

    micro_batches: MicroBatches
    chunk_tokens: int  # rows of logits held at a time

    def logprobs(self, model: nn.Module, batch: PolicyBatch) -> Tensor:
        """Log-probs [B, T] of a whole batch, without gradient."""
        return self.micro_batches.compute(lambda micro: self._logprobs(model, micro), batch)

    def accumulate(
        self, model: nn.Module, batch: PolicyBatch, backward: Backward
    ) -> dict[str, float]:
        """Add the gradient of the mean over all tokens of all ranks to the parameters.

        Returns:
            That mean as `loss`, in nats per token.
        """

        def loss(micro: PolicyBatch, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            losses = -self._logprobs(model, micro)
            mean = aggregate(losses, micro.sampled_mask, "token-mean", normalizer)
            return mean, {"loss": mean.detach()}

        normalizer = loss_normalizer(batch.sampled_mask, "token-mean")
        return self.micro_batches.accumulate(loss, batch, normalizer, backward)

    def _logprobs(self, model: nn.Module, batch: PolicyBatch) -> Tensor:
        return token_logprobs(
            model,
            batch.input_ids,
            batch.attention_mask,
            batch.sampled_mask,
            chunk_tokens=self.chunk_tokens,
            with_entropy=False,
            packed=self.micro_batches.packed,
        ).logprobs
