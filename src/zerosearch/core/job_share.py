"""What a job of a sweep may take of its machine, where others run beside it.

Light on imports, as `zerosearch.core.runs`.
"""

from __future__ import annotations

import os
import shutil
import subprocess

ON_HOST, ON_GPU = "ZEROSEARCH_JOBS_ON_HOST", "ZEROSEARCH_JOBS_ON_GPU"  # how many share it


def jobs_on_host() -> int:
    """How many jobs of a sweep share the memory of this machine, this one included."""
    return int(os.environ.get(ON_HOST, "1"))


def jobs_on_gpu() -> int:
    """How many jobs of a sweep share a GPU at most, this one included."""
    return int(os.environ.get(ON_GPU, "1"))


def shares_of_machine(count: int) -> list[dict[str, str]]:
    """Environment variables that give each of so many jobs its share of cores, GPUs and memory.

    Compute threads of all jobs together are the cores; a number that the user has set stays. With
    as many GPUs as jobs or more, no two jobs are on one; with fewer, some are.
    """
    if count == 1:
        return [{}]
    cores, gpus = len(os.sched_getaffinity(0)), visible_gpus()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    shares = []
    for place in range(count):
        each = len(gpus) // count
        own = gpus[place * each : (place + 1) * each] or gpus[place % max(1, len(gpus)) :][:1]
        share = {"OMP_NUM_THREADS": threads, ON_HOST: str(count)}
        if gpus:
            share |= {"CUDA_VISIBLE_DEVICES": ",".join(own), ON_GPU: str(-(-count // len(gpus)))}
        shares.append(share)
    return shares


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for each in visible.split(",") if (name := each.strip()) not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(found))]
