"""Any number of trajectories through a model, split as memory allows.

The loss of a micro-batch is a local sum over a global count, so that the gradient does not depend
on how the trajectories are spread over micro-batches and ranks (invariant 6).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from zerosearch.core.distributed import all_reduce, world_size
from zerosearch.policy.hidden_states import shared_prefix
from zerosearch.training.batching import (
    pack_micro_batches,
    select,
    split_micro_batches,
    to_device,
)
from zerosearch.types import PolicyBatch

Backward = Callable[[Tensor], None]

# Of the memory of a token that each row reads, a row that shares it keeps keys and values alone: a
# seventh in a Llama or Qwen layer (`policy.activation_memory.layer_bytes`), with room for rounding.
_KEPT_PARTS = 5


@dataclass(kw_only=True, slots=True, frozen=True)
class MicroBatches:
    """Splits batches into micro-batches of a token budget."""

    tokens: int  # of one forward and backward pass, at most; padding counts
    device: torch.device  # of the model
    packed: bool = False  # read a micro-batch as one row without padding (see `packs_sequences`)
    shares: bool = False  # read what all rows begin with once (see `shares_prefixes`)

    def split(self, batch: PolicyBatch) -> Iterator[tuple[list[int], PolicyBatch]]:
        """Rows and tensors of each micro-batch; every rank yields equally many (invariant 9)."""
        lengths, budget = batch.attention_mask.sum(dim=1).tolist(), self.tokens
        if self.shares and not self.packed:
            read = (batch.input_ids, batch.attention_mask, batch.sampled_mask)
            shared = min(shared_prefix(*read), budget // 2)
            lengths = [length - shared + shared // _KEPT_PARTS for length in lengths]
            budget -= shared
        groups = (pack_micro_batches if self.packed else split_micro_batches)(lengths, budget)
        most = all_reduce(torch.tensor(len(groups), device=self.device), dist.ReduceOp.MAX)
        for rows in groups:
            yield rows, to_device(select(batch, rows), self.device)
        for _ in range(int(most) - len(groups)):
            yield [], to_device(select(batch, []), self.device)

    @torch.no_grad()
    def compute(self, function: Callable[[PolicyBatch], Tensor], batch: PolicyBatch) -> Tensor:
        """Values per token of a whole batch on the CPU, without gradient.

        Args:
            function: of a micro-batch; returns [..., B, T].
            batch: of this rank.

        Returns:
            [..., B, T]; 0 in the columns that a micro-batch does not have.
        """
        found = torch.zeros_like(batch.behaviour_logprobs)
        for rows, micro in self.split(batch):
            values = function(micro).cpu()
            if found.dim() < values.dim():  # the first ones
                found = found.expand(*values.shape[:-2], *found.shape).clone()
            if rows:
                found[..., torch.tensor(rows), : values.shape[-1]] = values
        return found

    def accumulate(
        self,
        loss: Callable[[PolicyBatch, Tensor], tuple[Tensor, dict[str, Tensor]]],
        batch: PolicyBatch,
        normalizer: Tensor,
        backward: Backward,
    ) -> dict[str, float]:
        """Add the gradient of a batch to the parameters.

        Args:
            loss: of a micro-batch, from it and the global normalizer; with sums for metrics.
            batch: of this rank.
            normalizer: 0-dim, this rank's part of what the loss is divided by.
            backward: from a loss to gradients.

        Returns:
            The sums over all micro-batches and ranks.
        """
        normalizer = all_reduce(normalizer.to(self.device))
        zero = torch.zeros((), dtype=torch.float32, device=self.device)
        sums: dict[str, Tensor] = defaultdict(zero.clone)
        for rows, micro in self.split(batch):
            value, metrics = loss(micro, normalizer)
            if batch.entropies is not None and micro.entropies is not None:
                found = micro.entropies.cpu()
                batch.entropies[torch.tensor(rows), : found.shape[1]] = found
            # Data-parallel strategies average gradients over ranks; the loss is already a share
            # of the global mean, so the average is undone here.
            backward(value * world_size())
            for name, each in metrics.items():
                sums[name] += each
        names = sorted(sums)
        values = all_reduce(torch.stack([sums[name].float() for name in names]))
        return dict(zip(names, values.tolist(), strict=True))
