"""Seconds and memory that a weight sync takes: between ranks, to vLLM here, to a server of it.

Run:  python benchmarks/bench_sync.py [--device cuda --dtype bfloat16] [--repeats 3] [--help]

The default shape is that of SmolLM2-135M, with random weights. Ranks that each keep a share of them
make them whole over gloo, in bfloat16, as for an engine that computes in it; bytes are what a rank
sends. Times of syncs are also given as multiples of copying all weights once in memory. Memory is
what the policy's process needs at its peak beyond what it held before the sync, also as a multiple
of the largest matrix; the server's own is not seen here. vLLM builds each of its layers anew and
then takes it over; its CPU build also packs a second copy of each matrix, so that 2 is what to
expect in process on a CPU, and 1 on a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench_generation import make_policy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.generation.vllm.server_generator import VLLMServerGenerator
from zerosearch.policy.sharding import Sharding, shard_model
from zerosearch.policy.source import PolicySource
from zerosearch.policy.weight_stream import stream_weights
from zerosearch.serving.generator_server import generator_server
from zerosearch.serving.launch import running

MIB = 2**20


class PeakMemory:
    """Highest memory of this process inside the context, beyond that at its beginning."""

    def __enter__(self) -> PeakMemory:
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._before = self._peak = _resident()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._peak = torch.cuda.max_memory_allocated()
            return
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self._peak = max(self._peak, _resident())

    @property
    def mib(self) -> float:
        return (self._peak - self._before) / MIB


def _resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def copy_seconds(model: nn.Module, repeats: int) -> float:
    """Median seconds of copying every weight once, into memory that is there."""
    targets = [torch.empty_like(parameter) for parameter in model.parameters()]

    def copy() -> None:
        for target, parameter in zip(targets, model.parameters(), strict=True):
            target.copy_(parameter.detach())
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return _median(copy, repeats)


def _median(work: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def report(name: str, generator: Any, model: nn.Module, copied_s: float, repeats: int) -> None:
    """Print what syncs cost after the first one, which builds or connects."""
    start = time.perf_counter()
    asyncio.run(generator.sync_weights(model))
    first_s = time.perf_counter() - start
    with PeakMemory() as memory:
        seconds = _median(lambda: asyncio.run(generator.sync_weights(model)), repeats)
    largest_mib = max(matrix_sizes(model)) / MIB
    print(
        f"{name:12}  {first_s:7.2f}  {seconds:6.3f}  {seconds / copied_s:10.1f}  "
        f"{memory.mib:14.1f}  {memory.mib / largest_mib:13.2f}",
        flush=True,
    )


def matrix_sizes(model: nn.Module) -> list[int]:
    """Bytes of every weight."""
    return [parameter.numel() * parameter.element_size() for parameter in model.parameters()]


class Sent(TorchDispatchMode):
    """Collectives inside the context, and the bytes that this rank gives to them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # what it does with its shard is seen
        if "all_gather" in func.name():
            part: Tensor = args[0]
            self.calls += 1
            self.bytes += part.numel() * part.element_size()
        return func(*args, **kwargs or {})


def gather_as_rank(rank: int, folder: str, args: argparse.Namespace) -> None:
    """Make the weights whole as one of the ranks; the first one prints the row of the table."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/ranks"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.ranks)
    model, _ = make_policy(args)
    mesh = init_device_mesh("cpu", (args.ranks,))
    shard_model(model, Sharding(mesh=mesh, device=torch.device("cpu")))

    def gather() -> None:
        dist.barrier()
        for _ in stream_weights(model, dtype=torch.bfloat16):
            continue

    gather()
    with Sent() as sent:
        gather()
    seconds = _median(gather, args.repeats)
    if rank == 0:
        print("ranks  collectives  sent_MiB  gather_s")
        print(f"{args.ranks:5d}  {sent.calls:11d}  {sent.bytes / MIB:8.1f}  {seconds:8.3f}")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("layers", 30), ("width", 576), ("kv-heads", 3), ("head-dim", 64), ("vocab", 49152),
        ("threads", 1), ("repeats", 3), ("ranks", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--no-server", action="store_true")
    parser.add_argument("--only-ranks", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(gather_as_rank, (folder, args), args.ranks)
    if args.only_ranks:
        return
    model, tokenizer = make_policy(args)
    tokenizer.eos_token = "!"  # nothing is sampled, but every policy has an end of text
    sizes = matrix_sizes(model)
    copied_s = copy_seconds(model, args.repeats)
    print(
        f"{sum(sizes) / MIB:.0f} MiB of weights, the largest matrix {max(sizes) / MIB:.1f} MiB; "
        f"copied once in {copied_s:.3f} s"
    )
    print("sync          first_s  sync_s  times_copy  peak_extra_MiB  times_largest")
    generator = VLLMGenerator(max_model_len=512, sleep_while_training=False)
    generator.bind(model, tokenizer)
    report("in process", generator, model, copied_s, args.repeats)
    generator.close()
    if args.no_server:
        return
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        source = PolicySource(path=folder, random_init=True, dtype=args.dtype)
        settings = generator_server(source, folder=f"{folder}/served", port=None, max_model_len=512)
        with running(settings, Path(folder)) as servers:
            remote = VLLMServerGenerator(endpoints=[servers[0].command.endpoint])
            remote.bind(model, tokenizer)
            report("to a server", remote, model, copied_s, args.repeats)


if __name__ == "__main__":
    main()
