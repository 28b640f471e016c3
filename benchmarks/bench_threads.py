"""What waiting threads cost: steps of the quickstart, alone and beside a busy core.

Run:  python benchmarks/bench_threads.py [--steps 3] [--runs 5] [--threads 1 2] [--help]

Whole processes, one after the other: threads that spin while they wait (what GNU's OpenMP does by
itself) and threads that sleep (`zerosearch.core.threads`, which every command calls), on the
machine as it is and beside a loop that keeps one core busy. The kinds take turns: what else happens
on the machine meets all of them. A step is rollout and training, the first one, which also warms
up, left out; a process is everything from its start. Least, median, most.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAITING = {
    "spins": {
        "GOMP_SPINCOUNT": "300000"
    },  # its default, which the runtime's own variable brings back
    "sleeps": {"OMP_WAIT_POLICY": "passive"},
}


def run(threads: int, waiting: str, steps: int, folder: Path) -> tuple[list[float], float]:
    """Seconds of every step but the first, and of the process."""
    known = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    environment |= {"OMP_NUM_THREADS": str(threads), **WAITING[waiting]}
    command = [
        *(sys.executable, "-m", "zerosearch", "train", "trainer=cpu", "test=false"),
        *(f"policy_steps={steps}", "trainer.val_check_interval=1000000"),
        *(f"paths.log_dir={folder}", f"hydra.run.dir={folder}"),
    ]
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))[1:]
    return [float(row["time/rollout_s"]) + float(row["time/train_s"]) for row in rows], seconds


@contextmanager
def busy_core() -> Iterator[None]:
    """A loop that wants a core, while this lasts."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def spread(seconds: list[float]) -> str:
    """Least, median, most."""
    return f"{min(seconds):6.2f} {statistics.median(seconds):6.2f} {max(seconds):6.2f}"


def measure(args: argparse.Namespace) -> None:
    """Print a line per kind of run."""
    kinds = [(threads, waiting) for threads in args.threads for waiting in WAITING]
    steps: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    processes: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(args.runs):
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                each, whole = run(*kind, args.steps, Path(folder))
            steps[kind] += each
            processes[kind].append(whole)
    for threads, waiting in kinds:
        key = (threads, waiting)
        print(f"{threads:7}  {waiting:7} {spread(steps[key])}   {spread(processes[key])}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    head = "threads  waiting         s per step             s per process"
    print(f"machine as it is (load {os.getloadavg()[0]:.1f})\n{head}")
    measure(args)
    print(f"beside a busy core\n{head}")
    with busy_core():
        measure(args)


if __name__ == "__main__":
    main()
