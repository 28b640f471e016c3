"""A run of hundreds of steps: what grows in it with each step is lost in the end."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from scripts.attack.tally import MIB, Tally, leave
from tests.helpers.processes import Forked
from tests.helpers.runs import small_run

# The most that each may grow from a sixth of the steps to the last one.
BOUNDS = {"memory, MiB": 48.0, "open files": 2.0, "threads": 2.0}
WRITTEN = ("bytes of the log", "bytes of TensorBoard", "bytes of metrics.csv")
# Times as many bytes in the last sixth but one of the steps as in the second one: histograms have
# as many buckets as their values need, and a curve begins with its first value that is not zero.
# What grows with the number of steps would have more than twice as many.
_MORE = 1.25


def attack(folder: Path, *, steps: int = 300) -> Tally:
    """Train, and compare the process and its files after a sixth of the steps and at the end."""
    tally, place = Tally(what=f"growth over {steps} steps"), folder / "run"
    words = [*small_run(leave(folder)), f"policy_steps={steps}", f"hydra.run.dir={place}"]
    words += [
        "trainer.val_check_interval=50",
        "callbacks.checkpoint.every_n_steps=50",
        "test=false",
    ]
    running, seen = Forked("train", *words), list[tuple[int, dict[str, float]]]()
    early = max(1, steps // 6)
    process = psutil.Process(running.pid)
    while running.poll() is None:
        done = _steps(place)
        if done >= early + len(seen) * early:
            seen.append((done, _measured(process, place)))
        time.sleep(0.02)
    assert running.wait() == 0, running.communicate()
    (at, first), (end, last) = seen[0], seen[-1]
    print(f"growth from step {at} to {end}: {first} to {last}", flush=True)
    for name, bound in BOUNDS.items():
        with tally.attempt(name):
            assert last[name] - first[name] <= bound, f"{first[name]:.0f} became {last[name]:.0f}"
    (next_at, second), (before_at, before), (late_at, late) = seen[1], *seen[-3:-1]
    for name in WRITTEN:
        with tally.attempt(f"{name} a step"):
            early_rate = (second[name] - first[name]) / (next_at - at)
            late_rate = (late[name] - before[name]) / (late_at - before_at)
            assert late_rate <= _MORE * early_rate, f"{early_rate:.0f} became {late_rate:.0f}"
    return tally


def _steps(place: Path) -> int:
    try:
        return (place / "metrics.csv").read_bytes().count(b"\n") - 1
    except OSError:
        return 0


def _measured(process: psutil.Process, place: Path) -> dict[str, float]:
    events = sum(path.stat().st_size for path in (place / "tensorboard").rglob("*tfevents*"))
    sizes = ((place / "train.log").stat().st_size, events, (place / "metrics.csv").stat().st_size)
    return {
        "memory, MiB": process.memory_info().rss / MIB,
        "open files": float(process.num_fds()),
        "threads": float(process.num_threads()),
        **{name: float(size) for name, size in zip(WRITTEN, sizes, strict=True)},
    }
