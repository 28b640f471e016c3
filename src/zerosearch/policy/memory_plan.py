"""A run as far as its memory depends on it, and what it takes of a GPU, phase by phase."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from zerosearch.policy.activation_memory import Shape

GIB = 2**30
PHASES = ("sync", "sampling", "training")


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampler:
    """What samples, as far as it takes memory of the GPUs that train."""

    engine_share: float = 0.0  # of the GPU's memory, for vLLM's weights and KV cache
    engine_gpus: int = 1  # that share the engine's weights (tensor parallel)
    engine_sleeps: bool = False  # gives its memory back while the policy is trained
    uses_policy: bool = False  # the weights that are trained
    holds_copy: bool = False  # a second model, whole
    kv_tokens: int = 0  # KV cache of these two


@dataclass(kw_only=True, slots=True, frozen=True)
class Critic:
    """The critic, sharded and computed as the policy is."""

    model: nn.Module  # on the meta device
    optimizer_states: float  # numbers for each trained one


@dataclass(kw_only=True, slots=True, frozen=True)
class Neighbour:
    """A simulator's server on the GPU that trains: a process of its own, there all the time."""

    share: float  # of the GPU's memory, for weights, KV cache and all else
    weights: int  # bytes on this GPU; 0: not known


@dataclass(kw_only=True, slots=True, frozen=True)
class Plan:
    """A run, as far as its memory depends on it."""

    model: nn.Module  # with its adapters, on the meta device
    shape: Shape
    sampler: Sampler
    gpus: int
    sharded: bool  # each GPU keeps 1/gpus of the policy; False: all of it
    kept_dtype: torch.dtype | None  # that the trainer converts weights to; None: they stay
    compute_dtype: torch.dtype
    reduce_dtype: torch.dtype  # of the sum of gradients over shards
    optimizer_states: float  # numbers for each trained one, see `states_per_parameter`
    critic: Critic | None
    with_reference: bool  # a frozen copy of the policy
    cpu_offload: bool
    reshard_after_forward: bool
    gradient_checkpointing: bool
    tokens_per_micro_batch: int
    longest: int  # tokens of an episode
    logprob_chunk_tokens: int
    simulator: Neighbour | None = None

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and optimizer states are cut into."""
        return self.gpus if self.sharded else 1


@dataclass(kw_only=True, slots=True, frozen=True)
class Row:
    """Bytes of one kind on one GPU by phase, and what would lower them."""

    name: str
    sync: int = 0
    sampling: int = 0
    training: int = 0
    remedy: str = ""
    whole: bool = False  # taken in one piece, so that fragmentation costs nothing


def total(rows: Iterable[Row], phase: str) -> int:
    """Bytes of one phase."""
    return sum(getattr(row, phase) for row in rows)


def check_fits(rows: list[Row], gpu_bytes: int) -> None:
    """Raise where a phase needs more than the GPU has.

    Raises:
        ValueError: names the phase, its largest parts and what lowers them.
    """
    for phase in PHASES:
        needed = total(rows, phase)
        if needed <= gpu_bytes:
            continue
        largest = sorted(rows, key=lambda row: getattr(row, phase), reverse=True)[:3]
        parts = ", ".join(f"{row.name} {getattr(row, phase) / GIB:.1f}" for row in largest)
        remedies = dict.fromkeys(row.remedy for row in largest if row.remedy)
        raise ValueError(
            f"not enough GPU memory: {phase} needs {needed / GIB:.1f} GiB per GPU, which has "
            f"{gpu_bytes / GIB:.1f} (largest: {parts}); {'; or '.join(remedies)}"
        )
