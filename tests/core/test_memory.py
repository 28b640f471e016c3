"""Host memory: freed heap goes back, the peak is since a reset, limits of control groups count."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from zerosearch.core import memory
from zerosearch.core.memory import PeakMemory, available_bytes, give_back_heap, host_bytes

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
