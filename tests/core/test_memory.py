"""Host memory: freed heap goes back, the peak is since a reset, limits of control groups count."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.configs import ROOT
from zerosearch.core import memory
from zerosearch.core.memory import (
    PeakMemory,
    available_bytes,
    bound_kernel_caches,
    give_back_heap,
    host_bytes,
)

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * memory._PAGE


def fragment_heap() -> list[torch.Tensor]:
    """Free 200 MiB of a heap whose end is in use, as a step of training does; returns the rest."""
    raised = torch.ones(30 * MIB // 4)  # freed, it raises glibc's bound of blocks of their own
    del raised
    blocks = [torch.ones(MIB // 8) for _ in range(401)]  # of half a MiB
    return blocks[-1:]


@linux
@pytest.mark.skipif(memory._malloc_trim() is None, reason="not the C library of GNU")
def test_what_was_freed_goes_back_to_the_system() -> None:
    give_back_heap()
    before = resident()
    kept = fragment_heap()
    held = resident()
    assert held > before + 150 * MIB, "else there is nothing to give back"
    give_back_heap()
    assert resident() < before + 50 * MIB and len(kept) == 1


def test_another_c_library_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    give_back_heap()


CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
NEW_SHAPES = """
from zerosearch.core.memory import bound_kernel_caches, give_back_heap
bound_kernel_caches()
import torch
from tests.core.test_memory import resident
torch.set_num_threads(1)
weight = torch.ones(512, 512, dtype=torch.bfloat16)
def held_after(first):
    for rows in range(first, first + 80):
        torch.ones(rows, 512, dtype=torch.bfloat16) @ weight
    give_back_heap()
    return resident()
held = [held_after(first) for first in (1, 81, 161)]
print(held[2] - held[1])
"""


@pytest.mark.parametrize("given", [None, "7"])
def test_kernels_that_are_kept_are_bounded_unless_the_user_says_how(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    bound_kernel_caches()
    assert [os.environ[name] for name in CACHES] == 2 * [given or "128"]


@linux
@pytest.mark.slow  # 3 s: torch is loaded anew
def test_products_of_ever_new_shapes_take_no_more_memory() -> None:
    """80 shapes more take 45 MiB where CPUs multiply bfloat16 and the caches are torch's own."""
    environment = {name: value for name, value in os.environ.items() if name not in CACHES}
    environment["PYTHONPATH"] = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", NEW_SHAPES],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 15 * MIB


def fake_process(folder: Path) -> Path:
    """A process whose peak the kernel does not reset."""
    folder.mkdir()
    (folder / "status").write_text("VmHWM:\t9999999 kB\n", encoding="ascii")
    (folder / "statm").write_text("0 100 0", encoding="ascii")
    (folder / "clear_refs").mkdir()  # which cannot be written
    return folder


@linux
@pytest.mark.parametrize("by", ["kernel", "thread"])
def test_the_peak_is_since_the_last_reset(by: str, tmp_path: Path) -> None:
    process = Path("/proc/self") if by == "kernel" else fake_process(tmp_path / "process")

    def hold(mib: int) -> None:
        if by == "kernel":
            torch.ones(mib * MIB // 4)
            return
        (process / "statm").write_text(f"0 {mib * MIB // memory._PAGE} 0", encoding="ascii")
        time.sleep(3 * memory._SAMPLE_S)
        (process / "statm").write_text("0 100 0", encoding="ascii")

    peak = PeakMemory(process)
    peak.reset()
    hold(600)
    large = peak.bytes()
    peak.reset()
    hold(100)
    small = peak.bytes()
    peak.reset()
    assert large >= 600 * MIB and small < large - 400 * MIB and small >= 100 * MIB


@linux
def test_without_proc_the_peak_is_that_of_the_whole_process(tmp_path: Path) -> None:
    peak = PeakMemory(tmp_path / "nowhere")
    peak.reset()
    assert 50 * MIB < peak.bytes() < 2**40


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/a/b", {"a/memory.max": "300", "a/b/memory.max": "max"}, 300),
        ("0::/a/b", {"memory.max": "500", "a/b/memory.max": "400"}, 400),
        ("0::/of/the/host", {"memory.max": "200"}, 200),
        ("4:memory:/job\n1:cpu:/x", {"memory/job/memory.limit_in_bytes": "100"}, 100),
    ],
)
def test_limits_of_control_groups_count(
    groups: str, files: dict[str, str], limit: int, tmp_path: Path
) -> None:
    assert host_bytes(tmp_path) > 2**28  # the machine's own, where nothing else is said
    named = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}
    for name, text in named.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    assert host_bytes(tmp_path) == limit


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\nMemAvailable: 7 kB\n", encoding="ascii")
    assert available_bytes(tmp_path) == 7 * 1024
