"""A run as far as memory and time depend on it, known before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from zerosearch.policy.activation_memory import Shape


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampler:
    """What samples, as far as it takes memory of the GPUs that train."""

    dtype: torch.dtype  # of its weights and KV cache
    engine_share: float = 0.0  # of the GPU's memory, for all that vLLM takes
    engine_gpus: int = 1  # that share the engine's weights (tensor parallel)
    engine_sleeps: bool = False  # gives its memory back when it has sampled
    engine_rows: int = 0  # that it decodes at a time, at most
    engine_tokens: int = 0  # that it reads at a time, at most
    engine_graphs: bool = False  # captures CUDA graphs
    uses_policy: bool = False  # the weights that are trained
    holds_copy: bool = False  # a second model, whole
    kv_tokens: int = 0  # KV cache of these two, for training's episodes
    validation_kv_tokens: int = 0  # and for those of a validation
    ahead: bool = False  # samples the next batch while this one is trained (rollout.lag)


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
class PlannedRun:
    """A run, as it is configured."""

    model: nn.Module  # with its adapters, on the meta device
    shape: Shape
    sampler: Sampler
    gpus: int  # or processes on CPUs
    sharded: bool  # each GPU keeps 1/gpus of the policy; False: all of it
    compute_dtype: torch.dtype
    residual_dtype: torch.dtype  # of activations between layers
    packed: bool  # sequences share rows, without padding
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
    on_cpu: bool = False  # what is planned is host memory

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and optimizer states are cut into."""
        return self.gpus if self.sharded else 1
