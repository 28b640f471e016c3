"""Micro-batches that fit into the memory of this machine; nothing is loaded."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from zerosearch.core.errors import InputError
from zerosearch.core.job_share import jobs_on_gpu, jobs_on_host

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from zerosearch.planning.memory_table import MemoryRow
    from zerosearch.planning.run import PlannedRun

log = logging.getLogger(__name__)


def fit_memory(cfg: DictConfig, saved: int | None = None) -> int:
    """Tokens of a micro-batch for this machine; where nothing is known of it, the most.

    What the configuration says stays, then what the checkpoint does. Else it is the largest power
    of two, `MOST_TOKENS` at most, with which training fits into the GPU, or into half of what the
    processes of this machine or container may take: the rest is for the files it reads and for
    other programs. That is no matter of what is free just now, so that a run repeated on its
    machine is the same bit for bit.

    Args:
        cfg: of a training.
        saved: tokens of a micro-batch in the checkpoint that it goes on from, if any.

    Raises:
        InputError: a run would run out of memory; says what is too large, and which settings make
            it smaller.
    """
    from zerosearch.planning.memory import memory_rows
    from zerosearch.planning.memory_table import check_fits
    from zerosearch.planning.reading import devices_of, plan_of
    from zerosearch.policy.activation_memory import MOST_TOKENS

    on_cpu, size = _memory_here(cfg.trainer)
    if size is None:
        return cfg.module.tokens_per_micro_batch or saved or MOST_TOKENS
    plan = plan_of(cfg, on_cpu=on_cpu)
    if cfg.module.tokens_per_micro_batch is None:
        fitting = with_fitting_batches(plan, size // 2 if on_cpu else size)
        if saved is None:
            plan = fitting
        else:
            plan = dataclasses.replace(plan, tokens_per_micro_batch=saved)
            _check_saved(plan, fitting, size)
    rows = memory_rows(plan, size)
    check_fits(rows, size, on_cpu=on_cpu)
    if on_cpu:
        _warn_of_others(rows, len(devices_of(cfg.trainer, on_cpu=True)))
    return plan.tokens_per_micro_batch


def _check_saved(plan: PlannedRun, fitting: PlannedRun, size: int) -> None:
    """Refuse micro-batches of a checkpoint, perhaps of a larger machine, where others would fit."""
    from zerosearch.planning.memory import memory_rows
    from zerosearch.planning.memory_table import GIB, PHASES, total

    def fits(planned: PlannedRun) -> bool:
        rows = memory_rows(planned, size)
        return all(total(rows, phase) <= size for phase in PHASES)

    if fits(fitting) and not fits(plan):
        raise InputError(
            f"resume: the checkpoint's micro-batches of {plan.tokens_per_micro_batch} tokens do "
            f"not fit into the {size / GIB:.1f} GiB of a GPU or process here: add "
            f"module.tokens_per_micro_batch={fitting.tokens_per_micro_batch}"
        )


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


def process_bytes(trainer: DictConfig) -> int:
    """Memory of one process of a training on this machine's CPUs, which those of a node share, and
    jobs of a sweep beside it.

    Args:
        trainer: the node of that name.
    """
    from zerosearch.core.memory import host_bytes
    from zerosearch.planning.reading import devices_of

    return host_bytes() // len(devices_of(trainer, on_cpu=True)) // jobs_on_host()


def _memory_here(trainer: DictConfig) -> tuple[bool, int | None]:
    """Whether training is on CPUs, and the bytes for each process or GPU; None: not known."""
    import torch

    gpus = torch.cuda.is_available()
    if trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not gpus):
        return True, process_bytes(trainer)
    if not gpus:
        return False, None
    return False, torch.cuda.get_device_properties(0).total_memory // jobs_on_gpu()


def _warn_of_others(rows: list[MemoryRow], processes: int) -> None:
    """Say where what other programs hold now leaves too little for the processes of this node."""
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
