"""What sampling one batch ahead hides: the quickstart's steps with rollout.lag=0 and 1.

Run:  python benchmarks/bench_lag.py [--steps 5] [--latency 0.0 0.5] [--help]

Both runs sample with a second copy of the policy, one thread each for sampling and training. With
the lag a step should take the longer of rollout and training in place of their sum; on two cores
they share caches and memory, on one they share the core. With --latency each search waits so long,
log-normal with that median in seconds, which no core is needed for.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, Trainer, seed_everything

from zerosearch.assembly import assemble
from zerosearch.core.runs import PROJECT_ROOT
from zerosearch.core.seeding import derive_random
from zerosearch.search.engine import SearchEngine
from zerosearch.types import SearchRequest, SearchResult

SIGMA = math.log(10) / 2.326  # of a log-normal whose 99th percentile is ten times its median


class SlowSearch:
    """An engine behind a wait."""

    def __init__(self, engine: SearchEngine, median_s: float) -> None:
        self._engine = engine
        self._median_s = median_s

    async def search(self, request: SearchRequest) -> SearchResult:
        draw = derive_random("latency", request.seed)
        await asyncio.sleep(self._median_s * draw.lognormvariate(0.0, SIGMA))
        return await self._engine.search(request)


class Times(Callback):
    """Keeps the metrics of every policy step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(pl_module.train_metrics)


def run(args: argparse.Namespace, lag: int, latency_s: float, folder: Path) -> dict[str, float]:
    """Median seconds of a step and its parts, the first step left out."""
    overrides = [
        f"rollout.lag={lag}",
        "generator=transformers_copy",
        f"policy_steps={args.steps}",
        "trainer=cpu",
        "logger.tensorboard=null",
        f"paths.output_dir='{folder}'",
        f"paths.log_dir='{folder}'",
    ]
    os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))
    with initialize_config_dir(str(PROJECT_ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    seed_everything(0, verbose=False)
    job = assemble(cfg)
    times = Times()
    job.trainer.callbacks.append(times)  # type: ignore[attr-defined]
    job.trainer.limit_val_batches = 0
    job.module.search = SlowSearch(job.module.search, latency_s)
    job.fit(None)
    steps = times.steps[1:]
    parts = {
        name: statistics.median(step[f"time/{name}_s"] for step in steps)
        for name in ("wait", "sync", "train", "rollout")
    }
    total = statistics.median(
        sum(step[f"time/{name}_s"] for name in ("wait", "sync", "train")) for step in steps
    )
    return {**parts, "step": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 0.5])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("median seconds of a step and of its parts")
    print("latency  lag   step  rollout  train  wait  sync")
    for latency_s in args.latency:
        found = []
        for lag in (0, 1):
            with tempfile.TemporaryDirectory() as folder:
                times = run(args, lag, latency_s, Path(folder))
            found.append(times)
            print(
                f"{latency_s:7.2f}  {lag:3d}  {times['step']:5.2f}  {times['rollout']:7.2f}  "
                f"{times['train']:5.2f}  {times['wait']:4.2f}  {times['sync']:4.2f}",
                flush=True,
            )
        exact, ahead = found
        best = max(exact["rollout"], exact["train"]) + exact["sync"]
        print(
            f"         a step is {exact['step'] / ahead['step']:.2f}x as fast; at best "
            f"{exact['step'] / best:.2f}x, the longer of rollout and training alone"
        )


if __name__ == "__main__":
    main()
