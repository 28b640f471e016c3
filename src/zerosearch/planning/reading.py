"""A plan from a composed configuration; nothing is loaded."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import hydra

from zerosearch.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from omegaconf import DictConfig

    from zerosearch.planning.memory_table import MemoryRow
    from zerosearch.planning.run import Critic, Neighbour, PlannedRun, Sampler
    from zerosearch.policy.source import PolicySource

SHARDED = "FullyShardedStrategy"

log = logging.getLogger(__name__)


def fit_memory(cfg: DictConfig) -> int:
    """Tokens of a micro-batch for this machine; where nothing is known of it, the most.

    What the configuration says stays. Else it is the largest power of two, `MOST_TOKENS` at most,
    with which training fits into the GPU, or into half of what the processes of this machine or
    container may take: the rest is for the files it reads and for other programs. That is no matter
    of what is free just now, so that a run repeated on its machine is the same bit for bit.

    Raises:
        InputError: a run would run out of memory; says what is too large, and which settings make
            it smaller.
    """
    from zerosearch.planning.memory import memory_rows
    from zerosearch.planning.memory_table import check_fits
    from zerosearch.policy.activation_memory import MOST_TOKENS

    on_cpu, size = _memory_here(cfg.trainer)
    if size is None:
        return cfg.module.tokens_per_micro_batch or MOST_TOKENS
    plan = plan_of(cfg, on_cpu=on_cpu)
    if cfg.module.tokens_per_micro_batch is None:
        plan = with_fitting_batches(plan, size // 2 if on_cpu else size)
    rows = memory_rows(plan, size)
    check_fits(rows, size, on_cpu=on_cpu)
    if on_cpu:
        _warn_of_others(rows, plan.gpus)
    return plan.tokens_per_micro_batch


def with_fitting_batches(plan: PlannedRun, size: int) -> PlannedRun:
    """The plan with the largest micro-batches that fit; the smallest sensible ones if none do.

    Args:
        plan: with the largest there may be.
        size: bytes that a GPU or process may take.
    """
    from zerosearch.planning.memory import memory_rows
    from zerosearch.planning.memory_table import total

    while plan.tokens_per_micro_batch > plan.longest:  # of one sequence in any case
        if total(memory_rows(plan, size), "training") <= size:
            break
        plan = dataclasses.replace(plan, tokens_per_micro_batch=plan.tokens_per_micro_batch // 2)
    return plan


def _memory_here(trainer: DictConfig) -> tuple[bool, int | None]:
    """Whether training is on CPUs, and the bytes for each process or GPU; None: not known."""
    import torch

    from zerosearch.core.memory import host_bytes

    gpus = torch.cuda.is_available()
    if trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not gpus):
        return True, host_bytes() // len(_devices(trainer, on_cpu=True))
    return False, torch.cuda.get_device_properties(0).total_memory if gpus else None


def _warn_of_others(rows: list[MemoryRow], processes: int) -> None:
    """Say where what other programs hold now leaves too little."""
    from zerosearch.core.memory import available_bytes
    from zerosearch.planning.memory_table import GIB, PHASES, total

    needed = processes * max(total(rows, phase) for phase in PHASES)
    free = available_bytes()
    if free is not None and needed > free:
        log.warning(
            "this run may take %.1f GiB, and other programs leave %.1f: end some, or lower "
            "module.tokens_per_micro_batch, or the kernel may end the run without a word",
            needed / GIB,
            free / GIB,
        )


def plan_of(cfg: DictConfig, *, on_cpu: bool | None = None) -> PlannedRun:
    """Read from the composed configuration what memory depends on; nothing is loaded.

    Micro-batches whose size is left to the memory are as large as they may be.

    Args:
        cfg: of a training.
        on_cpu: whether it runs on CPUs; None: where the trainer says so.

    Raises:
        InputError: the number of GPUs is not known here.
    """
    from zerosearch.planning.memory import states_per_parameter
    from zerosearch.planning.run import PlannedRun
    from zerosearch.policy.activation_memory import MOST_TOKENS, Shape
    from zerosearch.policy.attention import packs_on_gpus

    if on_cpu is None:
        on_cpu = bool(cfg.trainer.accelerator == "cpu")
    source = hydra.utils.instantiate(cfg.model)
    model = source.build_on_meta()
    strategy = cfg.trainer.get("strategy")
    settings: Any = strategy if class_name(strategy) == SHARDED else {}
    devices = _devices(cfg.trainer, on_cpu=on_cpu)
    gpus = len(devices) * cfg.trainer.num_nodes
    longest, training, validation = _sequences(cfg)
    computed = _computed(cfg.trainer.precision, model.dtype)
    computed = _dtype(settings["param_dtype"]) if settings else computed
    return PlannedRun(
        model=model,
        shape=Shape(model.config),
        sampler=dataclasses.replace(
            _sampler(cfg, model.dtype, computed, sharded=bool(settings)),
            kv_tokens=_kv_tokens(cfg, longest, -(-training // gpus)),
            validation_kv_tokens=_kv_tokens(cfg, longest, -(-validation // gpus)),
        ),
        gpus=gpus,
        sharded=bool(settings),
        compute_dtype=computed,
        residual_dtype=computed if settings else model.dtype,
        packed=not on_cpu and packs_on_gpus(source.attn_implementation, model),
        reduce_dtype=_dtype(settings["reduce_dtype"]) if settings else computed,
        optimizer_states=states_per_parameter(hydra.utils.instantiate(cfg.optimizer)),
        critic=_critic(cfg, source),
        with_reference=_needs_reference(cfg) and source.lora is None,
        cpu_offload=bool(settings) and settings["cpu_offload"],
        reshard_after_forward=bool(settings) and settings["reshard_after_forward"],
        gradient_checkpointing=source.gradient_checkpointing,
        tokens_per_micro_batch=cfg.module.tokens_per_micro_batch or MOST_TOKENS,
        longest=longest,
        logprob_chunk_tokens=cfg.module.logprob_chunk_tokens,
        simulator=_neighbour(cfg, devices),
        on_cpu=on_cpu,
    )


def _sequences(cfg: DictConfig) -> tuple[int, int, int]:
    """Tokens of the longest sequence; sequences sampled at a time over all GPUs by training, and by
    validation.
    """
    if cfg.get("algorithm") is None:  # a model is tuned, and samples in validations alone
        if cfg.get("episode") is None:
            return cfg.module.max_tokens, cfg.module.fidelity_examples, cfg.module.fidelity_examples
        questions = cfg.module.evaluated_questions if cfg.evaluation else 0
        return cfg.episode.max_context_tokens, questions, questions
    training = cfg.questions_per_step * cfg.algorithm.group_size
    return cfg.episode.max_context_tokens, training, cfg.data.validation_batch


def _needs_reference(cfg: DictConfig) -> bool:
    if cfg.get("algorithm") is None:
        return False
    return hydra.utils.instantiate(cfg.algorithm, _convert_="all").needs_reference


def _critic(cfg: DictConfig, source: PolicySource) -> Critic | None:
    from omegaconf import OmegaConf

    from zerosearch.planning.memory import states_per_parameter
    from zerosearch.planning.run import Critic
    from zerosearch.policy.critic import put_value_head

    settings = OmegaConf.select(cfg, "algorithm.critic")
    if settings is None:
        return None
    model = source.build_on_meta()
    put_value_head(model)
    optimizer = hydra.utils.instantiate(settings.optimizer)
    return Critic(model=model, optimizer_states=states_per_parameter(optimizer))


def _sampler(
    cfg: DictConfig, kept: torch.dtype, computed: torch.dtype, *, sharded: bool
) -> Sampler:
    """What samples, without its KV cache."""
    from omegaconf import OmegaConf

    from zerosearch.generation.vllm.llm_engine import GPU_BATCH
    from zerosearch.planning.run import Sampler

    generator, name = cfg.generator, class_name(cfg.generator)
    dtype = generator.get("copy_dtype") or generator.get("dtype", "auto")
    dtype = computed if dtype == "auto" else _dtype(dtype)
    ahead = bool(OmegaConf.select(cfg, "rollout.lag"))
    if name == "VLLMGenerator":
        batch = GPU_BATCH | dict(generator.engine_args)
        return Sampler(
            dtype=dtype,
            engine_share=generator.gpu_memory_utilization,
            engine_gpus=generator.tensor_parallel_size,
            engine_sleeps=generator.sleep_while_training,
            engine_rows=batch["max_num_seqs"],
            engine_tokens=batch["max_num_batched_tokens"],
            engine_graphs=not generator.engine_args.get("enforce_eager"),
            ahead=ahead,
        )
    if name != "TransformersGenerator":
        return Sampler(dtype=dtype)  # on other GPUs
    copied = sharded or generator.get("copy_weights", False)
    if copied and not sharded and not generator.get("copy_dtype"):
        dtype = kept  # which autocast then casts
    return Sampler(dtype=dtype, uses_policy=not copied, holds_copy=copied, ahead=ahead)


def _kv_tokens(cfg: DictConfig, longest: int, sequences: int) -> int:
    """Of the transformers generator, for sequences sampled at a time on one GPU."""
    generator = cfg.generator
    if class_name(generator) != "TransformersGenerator":
        return 0
    most = generator.max_batch * longest + generator.kv_budget_tokens
    return min(sequences * longest, most)


def _neighbour(cfg: DictConfig, devices: Collection[int]) -> Neighbour | None:
    """The simulator that the run serves on a GPU it trains on, if any."""
    from zerosearch.planning.memory_table import GIB
    from zerosearch.planning.run import Neighbour

    simulator = cfg.get("simulator")
    if simulator is None or not simulator.get("launch", False):
        return None
    server = simulator.server
    if not set(server.gpus or range(server.tensor_parallel)) & set(devices):
        return None
    weights = int((simulator.weights_gib or 0) * GIB) // server.tensor_parallel
    return Neighbour(share=server.gpu_memory_utilization, weights=weights)


def _devices(trainer: DictConfig, *, on_cpu: bool) -> list[int]:
    """The GPUs, or processes on CPUs, of each node, as Lightning counts them."""
    import torch

    devices = trainer.devices
    if on_cpu and devices == "auto":
        devices = 1
    if devices in ("auto", -1, "-1"):
        devices = torch.cuda.device_count()
        if devices == 0:
            raise InputError(
                "trainer.devices=auto, but no GPU is visible here: say how many each node has, "
                "such as trainer.devices=8"
            )
    return list(range(int(devices)) if isinstance(devices, int | str) else devices)


def _computed(precision: Any, dtype: torch.dtype) -> torch.dtype:
    """What matrices are multiplied in under a trainer's precision."""
    import torch

    return torch.bfloat16 if str(precision).startswith("bf16") else dtype


def _dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, name)


def class_name(node: Any) -> str:
    """Of the class that a node makes; empty where it makes none."""
    is_node = hasattr(node, "get") and "_target_" in node
    return node["_target_"].rpartition(".")[2] if is_node else ""
