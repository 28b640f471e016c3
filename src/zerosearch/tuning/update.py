"""Cross-entropy of what is learned from examples, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerosearch.algorithms.aggregation import aggregate, loss_normalizer
from zerosearch.policy.logprobs import TokenStats, token_logprobs
from zerosearch.training.micro_batches import Backward, MicroBatches
from zerosearch.types import PolicyBatch


@dataclass(kw_only=True, slots=True, frozen=True)
class SupervisedUpdater:
    """Cross-entropy of the tokens in `sampled_mask`."""

    micro_batches: MicroBatches
    chunk_tokens: int  # rows of logits held at a time

    def score(self, model: nn.Module, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
        """Without gradient: log-probs [B, T], and 1 where the token is the likeliest [B, T]."""

        def of_micro_batch(micro: PolicyBatch) -> Tensor:
            stats = self._stats(model, micro, with_top=True)
            return torch.stack([stats.logprobs, stats.top])

        logprobs, top = self.micro_batches.compute(of_micro_batch, batch)
        return logprobs, top

    def accumulate(
        self, model: nn.Module, batch: PolicyBatch, backward: Backward
    ) -> dict[str, float]:
        """Add the gradient of the mean over all tokens of all ranks to the parameters.

        Returns:
            That mean as `loss`, in nats per token.
        """

        def loss(micro: PolicyBatch, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            losses = -self._stats(model, micro).logprobs
            mean = aggregate(losses, micro.sampled_mask, "token-mean", normalizer)
            return mean, {"loss": mean.detach()}

        normalizer = loss_normalizer(batch.sampled_mask, "token-mean")
        return self.micro_batches.accumulate(loss, batch, normalizer, backward)

    def _stats(self, model: nn.Module, batch: PolicyBatch, *, with_top: bool = False) -> TokenStats:
        return token_logprobs(
            model,
            batch.input_ids,
            batch.attention_mask,
            batch.sampled_mask,
            chunk_tokens=self.chunk_tokens,
            with_entropy=False,
            with_top=with_top,
            packed=self.micro_batches.packed,
        )
