"""What vLLM takes from its process and does to it, kept within bounds while an engine is built."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def set_environment() -> None:
    """What vLLM reads when it is imported or built; its own variables for logging come first."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",  # it warns a dozen times of what is meant here
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else training's threads are pinned with its own
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def process_left_alone() -> Iterator[None]:
    """Undo what vLLM does to its process: it seeds, bars the number of threads, switches TF32 off.

    Without this, a run with another generator would draw other random numbers, and training would
    multiply float32 matrices otherwise than `tf32` says.
    """
    from lightning.pytorch.utilities.seed import isolate_rng

    set_num_threads, precision = torch.set_num_threads, torch.get_float32_matmul_precision()
    try:
        with isolate_rng():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_float32_matmul_precision(precision)


@contextmanager
def launched_by_trainer(device: torch.device) -> Iterator[None]:
    """Variables by which vLLM finds its place among processes that Lightning has started."""
    is_distributed = dist.is_initialized()
    place = {
        "RANK": str(dist.get_rank() if is_distributed else 0),
        "LOCAL_RANK": str(device.index or 0),
        "WORLD_SIZE": str(dist.get_world_size() if is_distributed else 1),
    }
    if not is_distributed:
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def without_llvmlite() -> Iterator[None]:
    """Hide one module of llvmlite, which numba brings, from vLLM's CPU build.

    The build looks for kernels in the objects of all modules, by their `__dict__`; llvmlite's C
    library answers to any name, that one too, and the search ends in an error.
    """
    name = "llvmlite.binding.ffi"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
