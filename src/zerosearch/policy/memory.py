"""What a run needs of each GPU: `python -m zerosearch.policy.memory experiment=NAME gpu_gib=80`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hydra

from zerosearch.commands import POSITIVE, command
from zerosearch.endings import ending_in_words

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from omegaconf import DictConfig

    from zerosearch.policy.memory_plan import Critic, Neighbour, Plan, Row, Sampler
    from zerosearch.policy.source import PolicySource

SHARDED = "FullyShardedStrategy"


def check_memory(cfg: DictConfig) -> None:
    """Raise where a run on this machine's GPUs would run out of memory; without a GPU, do nothing.

    Raises:
        ValueError: says what is too large, and which settings make it smaller.
    """
    import torch

    from zerosearch.policy.memory_plan import check_fits
    from zerosearch.policy.memory_rows import memory_rows

    if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    check_fits(memory_rows(plan_of(cfg), gpu_bytes), gpu_bytes)


def plan_of(cfg: DictConfig) -> Plan:
    """Read from the composed configuration what memory depends on; nothing is loaded.

    Raises:
        ValueError: the number of GPUs is not known here.
    """
    from zerosearch.policy.activation_memory import Shape
    from zerosearch.policy.memory_plan import Plan
    from zerosearch.policy.memory_rows import states_per_parameter

    source = hydra.utils.instantiate(cfg.model)
    model = source.build_on_meta()
    strategy = cfg.trainer.get("strategy")
    settings: Any = strategy if _class_name(strategy) == SHARDED else {}
    devices = _devices(cfg.trainer)
    gpus = len(devices) * cfg.trainer.num_nodes
    longest, sequences = _sequences(cfg)
    kept, computed = _precision(cfg.trainer.precision, model.dtype)
    return Plan(
        model=model,
        shape=Shape(model.config),
        sampler=_sampler(cfg, longest, -(-sequences // gpus), sharded=bool(settings)),
        gpus=gpus,
        sharded=bool(settings),
        kept_dtype=kept,
        compute_dtype=_dtype(settings["param_dtype"]) if settings else computed,
        reduce_dtype=_dtype(settings["reduce_dtype"]) if settings else computed,
        optimizer_states=states_per_parameter(hydra.utils.instantiate(cfg.optimizer)),
        critic=_critic(cfg, source),
        with_reference=_needs_reference(cfg) and source.lora is None,
        cpu_offload=bool(settings) and settings["cpu_offload"],
        reshard_after_forward=bool(settings) and settings["reshard_after_forward"],
        gradient_checkpointing=source.gradient_checkpointing,
        tokens_per_micro_batch=cfg.module.tokens_per_micro_batch,
        longest=longest,
        logprob_chunk_tokens=cfg.module.logprob_chunk_tokens,
        simulator=_neighbour(cfg, devices),
    )


def _sequences(cfg: DictConfig) -> tuple[int, int]:
    """Tokens of the longest sequence, and sequences sampled at a time over all GPUs."""
    if cfg.get("episode") is None:  # a simulator is tuned
        return cfg.module.max_tokens, cfg.module.fidelity_examples
    return cfg.episode.max_context_tokens, cfg.questions_per_step * cfg.algorithm.group_size


def _needs_reference(cfg: DictConfig) -> bool:
    if cfg.get("algorithm") is None:
        return False
    return hydra.utils.instantiate(cfg.algorithm, _convert_="all").needs_reference


def _critic(cfg: DictConfig, source: PolicySource) -> Critic | None:
    from omegaconf import OmegaConf

    from zerosearch.policy.critic import put_value_head
    from zerosearch.policy.memory_plan import Critic
    from zerosearch.policy.memory_rows import states_per_parameter

    settings = OmegaConf.select(cfg, "algorithm.critic")
    if settings is None:
        return None
    model = source.build_on_meta()
    put_value_head(model)
    optimizer = hydra.utils.instantiate(settings.optimizer)
    return Critic(model=model, optimizer_states=states_per_parameter(optimizer))


def _sampler(cfg: DictConfig, longest: int, sequences: int, *, sharded: bool) -> Sampler:
    """What samples `sequences` at a time on each GPU."""
    from zerosearch.policy.memory_plan import Sampler

    generator, name = cfg.generator, _class_name(cfg.generator)
    if name == "VLLMGenerator":
        return Sampler(
            engine_share=generator.gpu_memory_utilization,
            engine_gpus=generator.tensor_parallel_size,
            engine_sleeps=generator.sleep_while_training,
        )
    if name != "TransformersGenerator":
        return Sampler()  # on other GPUs
    copied = sharded or generator.get("copy_weights", False)
    return Sampler(
        uses_policy=not copied,
        holds_copy=copied,
        kv_tokens=min(
            sequences * longest, generator.max_batch * longest + generator.kv_budget_tokens
        ),
    )


def _neighbour(cfg: DictConfig, devices: Collection[int]) -> Neighbour | None:
    """The simulator that the run serves on a GPU it trains on, if any."""
    from zerosearch.policy.memory_plan import GIB, Neighbour

    simulator = cfg.get("simulator")
    if simulator is None or not simulator.get("launch", False):
        return None
    server = simulator.server
    if not set(server.gpus or range(server.tensor_parallel)) & set(devices):
        return None
    weights = int((simulator.weights_gib or 0) * GIB) // server.tensor_parallel
    return Neighbour(share=server.gpu_memory_utilization, weights=weights)


def _devices(trainer: DictConfig) -> list[int]:
    """The GPUs of each node, as Lightning counts them."""
    import torch

    devices = trainer.devices
    if devices in ("auto", -1, "-1"):
        devices = torch.cuda.device_count()
        if devices == 0:
            raise ValueError(
                "trainer.devices=auto, but no GPU is visible here: say how many each node has, "
                "such as trainer.devices=8"
            )
    return list(range(int(devices)) if isinstance(devices, int | str) else devices)


def _precision(name: Any, dtype: torch.dtype) -> tuple[torch.dtype | None, torch.dtype]:
    """What Lightning's precision converts weights to (None: nothing), and what it computes in."""
    import torch

    name = str(name)
    half = torch.bfloat16 if name.startswith("bf16") else torch.float16
    if name.endswith("true") and not name.startswith("32"):
        return half, half
    return None, half if name.endswith("mixed") else dtype


def _dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, name)


def _class_name(node: Any) -> str:
    """Of the class that a node makes; empty where it makes none."""
    is_node = hasattr(node, "get") and "_target_" in node
    return node["_target_"].rpartition(".")[2] if is_node else ""


def _print(plan: Plan, rows: list[Row], gpu_bytes: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from zerosearch.policy.memory_plan import GIB, PHASES, total

    parameters = list(plan.model.parameters())
    every = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    on = f"on each of {plan.gpus} GPUs" if plan.gpus > 1 else "on the GPU"
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for row in rows:
        sizes = [getattr(row, phase) for phase in PHASES]
        if any(sizes):
            table.add_row(row.name, *(f"{size / GIB:.2f}" if size else "" for size in sizes))
    table.add_row("sum", *(f"{total(rows, phase) / GIB:.2f}" for phase in PHASES))
    table.add_row("of", *(f"{gpu_bytes / GIB:.2f}" for _ in PHASES))
    print(f"GiB {on}; {every:,} parameters, {trained:,} trained")
    Console().print(table)


@command("memory", keys={"gpu_gib": POSITIVE})
def main(cfg: DictConfig) -> None:
    """Print the table; exit code 1 where the run does not fit."""
    from zerosearch.nodes import check_nodes
    from zerosearch.policy.memory_plan import GIB, check_fits
    from zerosearch.policy.memory_rows import memory_rows

    gpu_bytes = int(cfg.gpu_gib * GIB)
    with ending_in_words():
        check_nodes(cfg, "module", "trainer")
        plan = plan_of(cfg)
        rows = memory_rows(plan, gpu_bytes)
        _print(plan, rows, gpu_bytes)
        check_fits(rows, gpu_bytes)


if __name__ == "__main__":
    main()
