"""What a GPU has to hold in each phase of a policy step, known before anything is loaded.

Weights, gradients and optimizer states are exact (ZeRO, arXiv 1910.02054, section 3); activations
are counted in `activation_memory`; what FSDP2 gathers and what a weight sync needs follows from the
order of events, and nothing accounts for fragmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerosearch.policy.activation_memory import (
    Shape,
    kept_bytes,
    kv_bytes_per_token,
    layer_backward_bytes,
    logits_bytes,
)
from zerosearch.policy.adaptation import decoder_layers

GIB = 2**30
FIXED_BYTES = int(1.5 * GIB)  # CUDA context, kernels, cuBLAS, NCCL: an assumption
PHASES = ("sync", "sampling", "training")

_SPREAD = (
    "spread the policy over more GPUs (trainer=fsdp trainer.devices= trainer.num_nodes=), or keep "
    "it in host memory (trainer.strategy.cpu_offload=true), or train adapters (docs/scale.md)"
)
_ENGINE = "lower generator.gpu_memory_utilization, or set generator.sleep_while_training=true"
_TOKENS = "lower module.tokens_per_micro_batch"


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
    with_reference: bool  # a frozen copy of the policy
    cpu_offload: bool
    reshard_after_forward: bool
    gradient_checkpointing: bool
    tokens_per_micro_batch: int
    longest: int  # tokens of an episode
    logprob_chunk_tokens: int

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


def memory_rows(plan: Plan, gpu_bytes: int) -> list[Row]:
    """Everything on one GPU while weights are synced, trajectories sampled, and the policy trained.

    Args:
        plan: the run.
        gpu_bytes: memory of the GPU.

    Raises:
        ValueError: the engine's share cannot hold the weights and one episode.
    """
    return [
        *_state_rows(plan),
        *_sampler_rows(plan, gpu_bytes),
        *_training_rows(plan),
        _always("CUDA, NCCL (assumed)", FIXED_BYTES),
    ]


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


# -- the policy -----------------------------------------------------------------------------------


def shard_bytes(tensors: Iterable[Tensor], shards: int, dtype: torch.dtype | None = None) -> int:
    """Bytes of the first rank's part, the largest: FSDP2 cuts rows as `torch.chunk` does.

    Args:
        tensors: whole parameters.
        shards: ranks.
        dtype: of the parts; None keeps that of each tensor.
    """
    return sum(
        -(-tensor.shape[0] // shards) * tensor[0].numel() * (dtype or tensor.dtype).itemsize
        for tensor in tensors
    )


def states_per_parameter(optimizer: Callable[..., torch.optim.Optimizer]) -> float:
    """Numbers that an optimizer keeps for each trained one (AdamW: 2), seen in one step of it.

    Args:
        optimizer: makes it from parameters.
    """
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.zeros_like(parameter)
    stepped = optimizer([parameter])
    stepped.step()
    states = stepped.state[parameter].values()
    return sum(each.numel() for each in states if isinstance(each, Tensor) and each.dim()) / 64**2


def _state_rows(plan: Plan) -> list[Row]:
    every = list(plan.model.parameters())
    trained = [parameter for parameter in every if parameter.requires_grad]
    gradients = shard_bytes(trained, plan.shards, plan.kept_dtype)
    sizes = {
        "weights": shard_bytes(every, plan.shards, plan.kept_dtype),
        "gradients": gradients,
        "optimizer states": int(gradients * plan.optimizer_states),
    }
    if plan.with_reference:
        dtype = plan.compute_dtype if plan.sharded else plan.kept_dtype
        sizes["reference policy"] = shard_bytes(every, plan.shards, dtype)
    rows = [_always(name, 0 if plan.cpu_offload else n, _SPREAD) for name, n in sizes.items()]
    if plan.gpus > 1 and not plan.sharded:  # DDP sums copies
        rows.append(Row(name="gradient buckets", training=gradients, remedy=_SPREAD))
    return rows


def _always(name: str, size: int, remedy: str = "") -> Row:
    return Row(name=name, sync=size, sampling=size, training=size, remedy=remedy)


# -- sampling -------------------------------------------------------------------------------------


def _sampler_rows(plan: Plan, gpu_bytes: int) -> list[Row]:
    sampler, dtype = plan.sampler, plan.compute_dtype
    weights = sum(tensor.numel() for tensor in _base_weights(plan)) * dtype.itemsize
    kv = kv_bytes_per_token(plan.shape, dtype)
    rows = [Row(name="weights being sent", sync=_sent_bytes(plan))]
    if sampler.holds_copy:
        rows.append(_always("the sampler's copy", weights, "set generator=transformers"))
    if sampler.kv_tokens:
        remedy = "lower generator.max_batch and generator.kv_budget_tokens"
        rows.append(Row(name="KV cache", sampling=sampler.kv_tokens * kv, remedy=remedy))
    if sampler.engine_share:
        share = int(sampler.engine_share * gpu_bytes)
        own = weights // sampler.engine_gpus
        if share - own < plan.longest * kv // sampler.engine_gpus:
            raise ValueError(
                f"generator.gpu_memory_utilization={sampler.engine_share} is {share / GIB:.1f} GiB "
                f"per GPU, too little for vLLM's weights ({own / GIB:.1f}) and the KV cache of one "
                "episode: raise it"
            )
        awake = not sampler.engine_sleeps
        rows += [
            Row(name="vLLM: weights", sync=own, sampling=own, training=own * awake, remedy=_ENGINE),
            Row(
                name="vLLM: KV cache, work space",
                sync=(share - own) * awake,
                sampling=share - own,
                training=(share - own) * awake,
                remedy=_ENGINE,
            ),
        ]
    return rows


def _sent_bytes(plan: Plan) -> int:
    """The largest weight whole, as it is kept and as it is sent, and a layer at the receiver."""
    if not (plan.sharded or plan.sampler.engine_share):
        return 0
    largest = max(_base_weights(plan), key=Tensor.numel)
    kept = (plan.kept_dtype or largest.dtype).itemsize
    layer = max(_count(layer) for layer in decoder_layers(plan.model))
    return (
        largest.numel() * (kept + plan.compute_dtype.itemsize) + layer * plan.compute_dtype.itemsize
    )


def _base_weights(plan: Plan) -> list[Tensor]:
    return [p for name, p in plan.model.named_parameters() if ".lora_" not in name]


# -- training -------------------------------------------------------------------------------------


def _training_rows(plan: Plan) -> list[Row]:
    tokens = max(plan.tokens_per_micro_batch, plan.longest)
    sizes = (plan.shape, tokens, plan.longest, plan.compute_dtype)
    checkpointing = plan.gradient_checkpointing
    # never at the same time: logits, then one layer after the other, then the root's gradients
    name, size, remedy = max(
        (
            "a chunk of logits",
            logits_bytes(plan.shape, min(plan.logprob_chunk_tokens, tokens)),
            "lower module.logprob_chunk_tokens",
        ),
        (
            "a layer's backward pass",
            layer_backward_bytes(*sizes, checkpointing=checkpointing),
            _TOKENS,
        ),
        ("the head's gradients", _root(plan, trained=True) * plan.reduce_dtype.itemsize, _SPREAD),
        key=lambda each: each[1],
    )
    kept_remedy = (
        _TOKENS if checkpointing else f"set model.gradient_checkpointing=true, or {_TOKENS}"
    )
    return [
        _gathered_row(plan),
        Row(
            name="activations",
            training=kept_bytes(*sizes, checkpointing=checkpointing),
            remedy=kept_remedy,
        ),
        Row(name=name, training=size, remedy=remedy),
    ]


def _gathered_row(plan: Plan) -> Row:
    """Weights in the precision they are computed in, and gradients until they are summed.

    FSDP2 holds the root's group (embeddings, final norm, head) and two layers, one of them fetched
    ahead. Autocast without shards holds a copy of everything that is kept in another precision.
    """
    c, layers = plan.compute_dtype.itemsize, decoder_layers(plan.model)
    if not plan.sharded:
        kept = [plan.kept_dtype or parameter.dtype for parameter in plan.model.parameters()]
        copies = _count(plan.model) * c if plan.compute_dtype not in kept else 0
        return Row(name="weights computed with", sampling=copies, training=copies)
    largest = max(layers, key=_count)
    forward = (_root(plan) + 2 * _count(largest)) * c
    gathered = forward if plan.reshard_after_forward else _count(plan.model) * c
    summed = _count(largest, trained=True) * (c + plan.reduce_dtype.itemsize)
    return Row(
        name="gathered weights, gradients",
        sampling=forward if plan.sampler.uses_policy else 0,
        training=gathered + _root(plan, trained=True) * c + summed,
        remedy=""
        if plan.reshard_after_forward
        else "set trainer.strategy.reshard_after_forward=true",
    )


def _root(plan: Plan, *, trained: bool = False) -> int:
    """Numbers of the root's group under FSDP2, else 0."""
    layers = decoder_layers(plan.model)
    within = sum(_count(layer, trained=trained) for layer in layers)
    return _count(plan.model, trained=trained) - within if plan.sharded else 0


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
