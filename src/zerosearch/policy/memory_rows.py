"""What a GPU has to hold in each phase of a policy step, known before anything is loaded.

Weights, gradients and optimizer states are exact (ZeRO, arXiv 1910.02054, section 3); activations
are counted in `activation_memory`; what FSDP2 gathers and what a weight sync needs follows from the
order of events. Fragmentation is an assumed tenth of what torch's allocator hands out in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from zerosearch.policy.activation_memory import (
    kept_bytes,
    kv_bytes_per_token,
    layer_backward_bytes,
    logits_bytes,
)
from zerosearch.policy.adaptation import decoder_layers
from zerosearch.policy.memory_plan import GIB, PHASES, Plan, Row, total

FIXED_BYTES = int(1.5 * GIB)  # CUDA context, kernels, cuBLAS, NCCL: an assumption

_SPREAD = (
    "spread the policy over more GPUs (trainer=fsdp trainer.devices= trainer.num_nodes=), or keep "
    "it in host memory (trainer.strategy.cpu_offload=true), or train adapters (docs/scale.md)"
)
FRAGMENTATION = 0.1  # an assumption
SERVER_BYTES = GIB  # least beside a server's weights: CUDA context, work space, KV cache
_SIMULATOR = (
    "lower simulator.server.gpu_memory_utilization, or choose a smaller simulator=, or serve it "
    "elsewhere (simulator.launch=false simulator.endpoints=)"
)
_ENGINE = "lower generator.gpu_memory_utilization, or set generator.sleep_while_training=true"
_TOKENS = "lower module.tokens_per_micro_batch"


def memory_rows(plan: Plan, gpu_bytes: int) -> list[Row]:
    """Everything on one GPU while weights are synced, trajectories sampled, and the policy trained.

    Args:
        plan: the run.
        gpu_bytes: memory of the GPU.

    Raises:
        ValueError: the engine's share cannot hold the weights and one episode.
    """
    rows = [*_state_rows(plan), *_sampler_rows(plan, gpu_bytes), *_training_rows(plan)]
    pieces = [row for row in rows if not row.whole]
    sync, sampling, training = (int(FRAGMENTATION * total(pieces, phase)) for phase in PHASES)
    return [
        *rows,
        *_simulator_rows(plan, gpu_bytes),
        Row(name="fragmentation (a tenth)", sync=sync, sampling=sampling, training=training),
        _always("CUDA, NCCL (assumed)", FIXED_BYTES, whole=True),
    ]


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
    sizes, gradients = _trained_sizes(plan, plan.model, plan.optimizer_states)
    if plan.with_reference:
        dtype = plan.compute_dtype if plan.sharded else plan.kept_dtype
        sizes["reference policy"] = shard_bytes(plan.model.parameters(), plan.shards, dtype)
    if plan.critic is not None:
        own, more = _trained_sizes(plan, plan.critic.model, plan.critic.optimizer_states)
        sizes |= {f"critic: {name}": size for name, size in own.items()}
        gradients += more
    rows = [_always(name, 0 if plan.cpu_offload else n, _SPREAD) for name, n in sizes.items()]
    if plan.gpus > 1 and not plan.sharded:  # DDP sums copies
        rows.append(Row(name="gradient buckets", training=gradients, remedy=_SPREAD))
    return rows


def _trained_sizes(
    plan: Plan, model: nn.Module, optimizer_states: float
) -> tuple[dict[str, int], int]:
    """Bytes by name of what training a model keeps, and of its gradients alone."""
    gradients = shard_bytes(_trained(model), plan.shards, plan.kept_dtype)
    sizes = {
        "weights": shard_bytes(model.parameters(), plan.shards, plan.kept_dtype),
        "gradients": gradients,
        "optimizer states": int(gradients * optimizer_states),
    }
    return sizes, gradients


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _always(name: str, size: int, remedy: str = "", *, whole: bool = False) -> Row:
    return Row(name=name, sync=size, sampling=size, training=size, remedy=remedy, whole=whole)


# -- sampling -------------------------------------------------------------------------------------


def _sampler_rows(plan: Plan, gpu_bytes: int) -> list[Row]:
    sampler, dtype = plan.sampler, plan.compute_dtype
    weights = sum(tensor.numel() for tensor in _base_weights(plan)) * dtype.itemsize
    kv = kv_bytes_per_token(plan.shape, dtype)
    rows = [Row(name="weights being sent", sync=_sent_bytes(plan))]
    if sampler.holds_copy:
        remedy = "set generator=transformers"
        rows.append(_always("the sampler's copy", weights, remedy, whole=True))  # never given back
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
            Row(
                name="vLLM: weights",
                sync=own,
                sampling=own,
                training=own * awake,
                remedy=_ENGINE,
                whole=True,
            ),
            Row(
                name="vLLM: KV cache, work space",
                sync=(share - own) * awake,
                sampling=share - own,
                training=(share - own) * awake,
                remedy=_ENGINE,
                whole=True,
            ),
        ]
    return rows


def _simulator_rows(plan: Plan, gpu_bytes: int) -> list[Row]:
    if plan.simulator is None:
        return []
    share, own = int(plan.simulator.share * gpu_bytes), plan.simulator.weights
    if share - own < SERVER_BYTES:
        raise ValueError(
            f"simulator.server.gpu_memory_utilization={plan.simulator.share} is "
            f"{share / GIB:.1f} GiB per GPU, too little for the simulator's weights "
            f"({own / GIB:.1f}) and a GiB beside them: raise it, or choose a smaller simulator="
        )
    return [
        _always("simulator: weights", own, _SIMULATOR, whole=True),
        _always("simulator: KV cache, work space", share - own, _SIMULATOR, whole=True),
    ]


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
    """The policy's pass. That of a critic, at another time, is smaller: it makes no logits."""
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
        (
            "the head's gradients",
            _root(plan, plan.model, trained=True) * plan.reduce_dtype.itemsize,
            _SPREAD,
        ),
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
    ahead; and of a critic what its pass without gradient has left gathered. Autocast without shards
    holds a copy of everything that is kept in another precision.
    """
    c, layers = plan.compute_dtype.itemsize, decoder_layers(plan.model)
    if not plan.sharded:
        kept = [plan.kept_dtype or parameter.dtype for parameter in plan.model.parameters()]
        copies = _count(plan.model) * c if plan.compute_dtype not in kept else 0
        sampling = copies if plan.sampler.uses_policy else 0
        return Row(name="weights computed with", sampling=sampling, training=copies)
    largest = max(layers, key=_count)
    forward = (_root(plan, plan.model) + 2 * _count(largest)) * c
    gathered = forward if plan.reshard_after_forward else _count(plan.model) * c
    if plan.critic is not None:
        critic = plan.critic.model
        gathered += (_root(plan, critic) if plan.reshard_after_forward else _count(critic)) * c
    summed = _count(largest, trained=True) * (c + plan.reduce_dtype.itemsize)
    return Row(
        name="gathered weights, gradients",
        sampling=forward if plan.sampler.uses_policy else 0,
        training=gathered + _root(plan, plan.model, trained=True) * c + summed,
        remedy=""
        if plan.reshard_after_forward
        else "set trainer.strategy.reshard_after_forward=true",
    )


def _root(plan: Plan, model: nn.Module, *, trained: bool = False) -> int:
    """Numbers of the root's group under FSDP2, else 0."""
    within = sum(_count(layer, trained=trained) for layer in decoder_layers(model))
    return _count(model, trained=trained) - within if plan.sharded else 0


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
