"""A plan from a composed configuration; nothing is loaded."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import hydra

from zerosearch.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from omegaconf import DictConfig

    from zerosearch.planning.run import Critic, Neighbour, PlannedRun, Sampler
    from zerosearch.policy.source import PolicySource

SHARDED = "FullyShardedStrategy"


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
    devices = devices_of(cfg.trainer, on_cpu=on_cpu)
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


def card_of(cfg: DictConfig) -> str:
    """Name of the card that time is planned for; of a CPU, a core in the precision of training.

    Args:
        cfg: of `configs/plan.yaml`.
    """
    if cfg.card or cfg.trainer.accelerator != "cpu":
        return cfg.card or "h100"
    return "cpu_bfloat16" if str(cfg.trainer.precision).startswith("bf16") else "cpu"


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


def devices_of(trainer: DictConfig, *, on_cpu: bool) -> list[int]:
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
    if isinstance(devices, str) and "," in devices:
        return [int(each) for each in devices.split(",") if each.strip()]
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
