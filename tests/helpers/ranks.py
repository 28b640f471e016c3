"""Real processes that train together over gloo on this machine, started fast."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.helpers.openai_server import free_port
from tests.helpers.processes import PRELOADED


def run_ranks(world_size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(rank, world_size, *arguments)` in new processes; raises what any of them raised.

    Args:
        world_size: number of processes; Lightning takes them for its own, started elsewhere.
        work: a function of a module; what it has to say it writes to files.
        arguments: can be pickled.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(
        _enter,
        args=(world_size, free_port(), work, arguments),
        nprocs=world_size,
        start_method="forkserver",
    )


def _enter(
    rank: int, world_size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where a trainer without a folder of its own leaves what it writes
        work(rank, world_size, *arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
