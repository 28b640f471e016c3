"""What a GPU, or a process on a CPU, has to hold in each phase, before anything is loaded.

Weights, gradients and optimizer states are exact (ZeRO, arXiv 1910.02054, section 3); activations
are counted in `activation_memory`; what FSDP2 gathers and what a weight sync needs follows from the
order of events. Fragmentation is an assumed tenth of what torch's allocator hands out in pieces.

Gradients live from the first backward pass of a step to its last update. An engine that sleeps is
asleep while the policy is trained, except when it samples meanwhile (`rollout.lag`); its CUDA
graphs stay. At the first sync of a run nothing sleeps yet, and at that of a resumed one the
optimizer's states are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from zerosearch.core.errors import InputError
from zerosearch.planning.memory_table import GIB, PHASES, MemoryRow, always, total
from zerosearch.planning.run import PlannedRun, Sampler
from zerosearch.planning.training_memory import count, spread, training_rows
from zerosearch.policy.activation_memory import kv_bytes_per_token
from zerosearch.policy.adaptation import decoder_layers
from zerosearch.policy.gathering import BUCKET_BYTES

FIXED_BYTES = int(1.5 * GIB)  # CUDA context, kernels, cuBLAS, NCCL: an assumption
PROCESS_BYTES = int(0.8 * GIB)  # the interpreter with torch, transformers and Lightning: measured
FRAGMENTATION = 0.1  # an assumption
SERVER_BYTES = GIB  # least beside a server's weights: CUDA context, work space, KV cache
# vLLM says 1.6 GiB for 51 + 35 graphs (vllm-project/vllm#39559) and 0.2 GiB for 35 of the 16 layers
# of Llama-3.2-1B (#11349). Sleep leaves them where they are (#45623); the share of the GPU counts
# them (its gpu_worker.py).
GRAPH_BYTES = 2**19  # of one layer in one graph: an assumption, about what these make
# Of one number of vLLM's logits in float32: the logits, them sorted with their places, the sums of
# their probabilities, and log-probs (v1/sample/ops/topk_topp_sampler.py): an assumption
LOGIT_BYTES = 4 + 12 + 8 + 4
_SIMULATOR = (
    "lower simulator.server.gpu_memory_utilization, or choose a smaller simulator=, or serve it "
    "elsewhere (simulator.launch=false simulator.endpoints=)"
)
_ENGINE = "lower generator.gpu_memory_utilization, or set generator.sleep_while_training=true"
_AHEAD = (
    "set rollout.lag=0, so that the engine sleeps while the policy is trained, or sample on other "
    "GPUs (generator=vllm_server), or lower generator.gpu_memory_utilization"
)


def memory_rows(plan: PlannedRun, gpu_bytes: int) -> list[MemoryRow]:
    """Everything on one GPU, or in one process on a CPU, in each of `PHASES`.

    Args:
        plan: the run.
        gpu_bytes: memory of the GPU.

    Raises:
        InputError: the engine's share cannot hold the weights and one episode.
    """
    rows = [*_state_rows(plan), *_sampler_rows(plan, gpu_bytes), *training_rows(plan)]
    pieces = [row for row in rows if not row.whole]
    sync, sampling, training, validation = (
        int(FRAGMENTATION * total(pieces, phase)) for phase in PHASES
    )
    return [
        *rows,
        *_simulator_rows(plan, gpu_bytes),
        MemoryRow(
            name="fragmentation (a tenth)",
            sync=sync,
            sampling=sampling,
            training=training,
            validation=validation,
        ),
        always("Python and libraries", PROCESS_BYTES, whole=True)
        if plan.on_cpu
        else always("CUDA, NCCL (assumed)", FIXED_BYTES, whole=True),
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


def _state_rows(plan: PlannedRun) -> list[MemoryRow]:
    kept, gradients = _trained_sizes(plan, plan.model, plan.optimizer_states)
    if plan.with_reference:
        dtype = plan.compute_dtype if plan.sharded else None  # as the policy
        kept["reference policy"] = shard_bytes(plan.model.parameters(), plan.shards, dtype)
    if plan.critic is not None:
        own, more = _trained_sizes(plan, plan.critic.model, plan.critic.optimizer_states)
        kept |= {f"critic: {name}": size for name, size in own.items()}
        gradients |= {f"critic: {name}": size for name, size in more.items()}
    here = 0 if plan.cpu_offload else 1
    rows = [always(name, here * size, spread(plan)) for name, size in kept.items()]
    if plan.gpus > 1 and not plan.sharded:  # DDP sums copies
        gradients["gradient buckets"] = sum(gradients.values())
    return rows + [
        MemoryRow(name=name, training=here * size, remedy=spread(plan))
        for name, size in gradients.items()
    ]


def _trained_sizes(
    plan: PlannedRun, model: nn.Module, optimizer_states: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by name of what training a model keeps all the time, and of its gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = shard_bytes(trained, plan.shards)
    kept = {
        "weights": shard_bytes(model.parameters(), plan.shards),
        "optimizer states": int(gradients * optimizer_states),
    }
    return kept, {"gradients": gradients}


# -- sampling -------------------------------------------------------------------------------------


def _sampler_rows(plan: PlannedRun, gpu_bytes: int) -> list[MemoryRow]:
    sampler = plan.sampler
    base = [p for name, p in plan.model.named_parameters() if ".lora_" not in name]
    weights = sum(tensor.numel() for tensor in base) * sampler.dtype.itemsize
    kv = kv_bytes_per_token(plan.shape, sampler.dtype)
    rows = [MemoryRow(name="weights being sent", sync=_sent_bytes(plan))]
    if sampler.holds_copy:
        remedy = "set generator=transformers"
        rows.append(always("the sampler's copy", weights, remedy, whole=True))  # never given back
    if sampler.kv_tokens:
        rows.append(
            MemoryRow(
                name="KV cache",
                sampling=sampler.kv_tokens * kv,
                training=sampler.kv_tokens * kv * sampler.ahead,
                validation=sampler.validation_kv_tokens * kv,
                remedy="lower generator.max_batch and generator.kv_budget_tokens",
            )
        )
    if sampler.engine_share:
        share, own = int(sampler.engine_share * gpu_bytes), weights // sampler.engine_gpus
        rows += _engine_rows(plan, share, own, plan.longest * kv // sampler.engine_gpus)
    return rows


def _engine_rows(plan: PlannedRun, share: int, weights: int, episode: int) -> list[MemoryRow]:
    """VLLM's share of the GPU; `episode` is the least KV cache."""
    sampler = plan.sampler
    captured = graphs_of(sampler.engine_rows) if sampler.engine_graphs else 0
    graphs, work = GRAPH_BYTES * plan.shape.layers * captured, _work_bytes(plan)
    kv_cache = share - weights - graphs - work
    if kv_cache < episode:
        raise InputError(
            f"generator.gpu_memory_utilization={sampler.engine_share} is {share / GIB:.1f} GiB "
            f"per GPU, too little for vLLM's weights ({weights / GIB:.1f}), its CUDA graphs "
            f"({graphs / GIB:.1f}), its work space ({work / GIB:.1f}) and the KV cache of one "
            "episode: raise it, or let it decode fewer rows "
            "('generator.engine_args={max_num_seqs: 64}')"
        )
    sizes = {"weights": weights, "work space": work, "KV cache": kv_cache}
    awake = sampler.ahead or not sampler.engine_sleeps
    rows = [
        MemoryRow(
            name=f"vLLM: {name}",
            sync=size,
            sampling=size,
            training=size * awake,
            validation=size,
            remedy=_remedy(sampler),
            whole=True,
        )
        for name, size in sizes.items()
    ]
    return [*rows, always("vLLM: CUDA graphs", graphs, _remedy(sampler), whole=True)]


def _work_bytes(plan: PlannedRun) -> int:
    """What vLLM's largest batches need: logits of all rows, or a layer's MLP (`profile_run`)."""
    sampler, shape, size = plan.sampler, plan.shape, plan.sampler.dtype.itemsize
    logits = sampler.engine_rows * shape.vocabulary * (size + LOGIT_BYTES)
    layer = 2 * shape.hidden + 3 * shape.mlp // sampler.engine_gpus
    return max(logits, sampler.engine_tokens * layer * size)


def graphs_of(rows: int) -> int:
    """CUDA graphs that vLLM captures (`_set_cudagraph_sizes` in its config/vllm.py).

    Args:
        rows: that it decodes at a time, at most.
    """
    steps = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    in_pieces = [size for size in steps if size <= 2 * rows]
    whole = [size for size in steps if size <= rows]
    return len(in_pieces) + len(whole)


def _remedy(sampler: Sampler) -> str:
    return _AHEAD if sampler.ahead and sampler.engine_sleeps else _ENGINE


def _simulator_rows(plan: PlannedRun, gpu_bytes: int) -> list[MemoryRow]:
    if plan.simulator is None:
        return []
    share, own = int(plan.simulator.share * gpu_bytes), plan.simulator.weights
    if share - own < SERVER_BYTES:
        raise InputError(
            f"simulator.server.gpu_memory_utilization={plan.simulator.share} is "
            f"{share / GIB:.1f} GiB per GPU, too little for the simulator's weights "
            f"({own / GIB:.1f}) and a GiB beside them: raise it, or choose a smaller simulator="
        )
    return [
        always("simulator: weights", own, _SIMULATOR, whole=True),
        always("simulator: KV cache, work space", share - own, _SIMULATOR, whole=True),
    ]


def _sent_bytes(plan: PlannedRun) -> int:
    """What exists of the weights while they go to a sampler: see `policy.weight_stream`.

    A bucket with this rank's part of it, or one tensor where nothing is sharded; a layer with
    adapters is merged in the dtype in which it is kept, with the float32 product of its adapters;
    and vLLM buffers a layer before it takes it over.
    """
    sampler, size = plan.sampler, plan.sampler.dtype.itemsize
    if sampler.uses_policy:
        return 0
    sizes = [
        p.numel() * (p.dtype.itemsize + 4 if ".base_layer." in name else size)
        for name, p in plan.model.named_parameters()
    ]
    sent = max(sizes)
    if plan.sharded:
        sent = max(sent, min(BUCKET_BYTES, sum(sizes)))
        sent += sent // plan.shards
    received = max(count(layer) for layer in decoder_layers(plan.model)) * size
    return sent + (received if sampler.engine_share else 0)
