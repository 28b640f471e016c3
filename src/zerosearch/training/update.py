"""One optimizer update from any number of trajectories, split as memory allows.

The loss of a micro-batch is a local sum over a global count, so that the gradient does not depend
on how the trajectories are spread over micro-batches and ranks (invariant 6).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.distributed import all_reduce, world_size
from zerosearch.policy.logprobs import TokenStats, token_logprobs
from zerosearch.training.batching import (
    pack_micro_batches,
    select,
    split_micro_batches,
    to_device,
)
from zerosearch.types import PolicyBatch

Backward = Callable[[Tensor], None]


class PolicyUpdater:
    """Computes log-probs and gradients of batches in micro-batches of a token budget.

    Args:
        algorithm: turns log-probs into a loss.
        tokens_per_micro_batch: tokens of one forward and backward pass, at most; padding counts.
        chunk_tokens: rows of logits held at a time.
        temperature: at which the trajectories were sampled.
        device: of the policy.
        packed: read a micro-batch as one row without padding (see `packs_sequences`).
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        tokens_per_micro_batch: int,
        chunk_tokens: int,
        temperature: float,
        device: torch.device,
        packed: bool = False,
    ) -> None:
        self.algorithm = algorithm
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.chunk_tokens = chunk_tokens
        self.temperature = temperature
        self.device = device
        self.packed = packed

    def micro_batches(self, batch: PolicyBatch) -> Iterator[tuple[list[int], PolicyBatch]]:
        """Rows and tensors of each micro-batch; every rank yields equally many (invariant 9)."""
        lengths = batch.attention_mask.sum(dim=1).tolist()
        split = pack_micro_batches if self.packed else split_micro_batches
        groups = split(lengths, self.tokens_per_micro_batch)
        most = all_reduce(torch.tensor(len(groups), device=self.device), dist.ReduceOp.MAX)
        for rows in groups:
            yield rows, to_device(select(batch, rows), self.device)
        for _ in range(int(most) - len(groups)):
            yield [], to_device(select(batch, []), self.device)

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
            packed=self.packed,
        )

    @torch.no_grad()
    def all_logprobs(
        self, compute: Callable[[PolicyBatch], TokenStats], batch: PolicyBatch
    ) -> Tensor:
        """Log-probs [B, T] of a whole batch on the CPU, without gradient."""
        logprobs = torch.zeros_like(batch.behaviour_logprobs)
        for rows, micro in self.micro_batches(batch):
            values = compute(micro).logprobs.cpu()
            if rows:
                logprobs[torch.tensor(rows), : values.shape[1]] = values
        return logprobs

    def accumulate(
        self, model: nn.Module, batch: PolicyBatch, backward: Backward
    ) -> dict[str, float]:
        """Add the gradient of one mini-batch to the parameters.

        Returns:
            Global metric sums of `Algorithm.token_loss`.
        """
        normalizer = self.algorithm.local_normalizer(batch.sampled_mask).to(self.device)
        all_reduce(normalizer)
        zero = torch.zeros((), dtype=torch.float32, device=self.device)
        sums: dict[str, Tensor] = defaultdict(zero.clone)
        for _, micro in self.micro_batches(batch):
            stats = self.token_stats(model, micro)
            loss, metrics = self.algorithm.token_loss(
                stats.logprobs, stats.entropy, micro, normalizer
            )
            # Data-parallel strategies average gradients over ranks; the loss is already a share
            # of the global mean, so the average is undone here.
            backward(loss * world_size())
            for name, value in metrics.items():
                sums[name] += value
        names = sorted(sums)
        values = all_reduce(torch.stack([sums[name].float() for name in names]))
        return dict(zip(names, values.tolist(), strict=True))
