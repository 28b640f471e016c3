"""Seconds and memory that a weight sync takes, to vLLM in this process and to a server of it.

Run:  python benchmarks/bench_sync.py [--device cuda --dtype bfloat16] [--repeats 3] [--help]

The default shape is that of SmolLM2-135M, with random weights. Times are also given as multiples of
copying all weights once in memory. Memory is what the policy's process needs at its peak beyond
what it held before the sync, also as a multiple of the largest matrix; the server's own is not seen
here. vLLM builds each of its layers anew and then takes it over; its CPU build also packs a second
copy of each matrix, so that 2 is what to expect in process on a CPU, and 1 on a GPU.
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
from bench_generation import make_policy
from torch import nn

from zerosearch.generation.vllm_engine import VLLMGenerator
from zerosearch.generation.vllm_server import VLLMServerGenerator
from zerosearch.generation.vllm_serving import generator_server
from zerosearch.policy.source import PolicySource
from zerosearch.simulator.launch import running

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("layers", 30), ("width", 576), ("kv-heads", 3), ("head-dim", 64), ("vocab", 49152),
        ("threads", 1), ("repeats", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--no-server", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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
