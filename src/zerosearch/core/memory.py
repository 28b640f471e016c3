"""Host memory: how much there is, the most that a process took, and giving back what is free.

Light on imports. All of it is Linux; elsewhere less is known, and nothing is given back.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any

_PROCESS = Path("/proc/self")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_S = 0.05  # between two looks at what the process holds, where the kernel keeps no peak


@cache
def _malloc_trim() -> Any:
    """The function of glibc; None with another C library, which has its own ways."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def bound_kernel_caches() -> None:
    """Let torch keep fewer of the products of matrices that oneDNN has compiled for a CPU.

    Two caches, oneDNN's of primitives and torch's of what wraps them, keep 1024 each by default,
    of half a MiB and more, and every new width or number of rows is a new one: batches of ever new
    shapes, as in sampling and in evaluations, fill them with gigabytes that nothing empties. A pass
    makes the same few dozen in every layer, so that 128 do. No figure depends on it. Read when
    torch first computes; what the user has set wins.
    """
    for capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(capacity, "128")


def give_back_heap() -> None:
    """Let the C allocator return what was freed to the system.

    glibc keeps freed blocks of up to 32 MiB for the next allocation of their size. The phases of a
    training step allocate other sizes, so that a process otherwise grows to a multiple of what it
    holds. It takes about 50 ms per GiB given back, and nothing where there is nothing to give.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


class PeakMemory:
    """The most memory that this process took since the last `reset`.

    The kernel keeps the peak and lets a process reset its own (proc(5), `clear_refs`); where that
    is not permitted a thread looks every 50 ms; without /proc it is the peak since the start.

    Args:
        process: its folder below /proc.
    """

    def __init__(self, process: Path = _PROCESS) -> None:
        self._process = process
        self._sampled: _SampledPeak | None = None

    def reset(self) -> None:
        """Begin anew."""
        if self._sampled is not None:
            self._sampled.stop()
            self._sampled = None
        try:
            (self._process / "clear_refs").write_text("5", encoding="ascii")
        except OSError:
            if (self._process / "statm").exists():
                self._sampled = _SampledPeak(self._process / "statm")

    def bytes(self) -> int:
        """Since the last `reset`, or since the process began."""
        if self._sampled is not None:
            return self._sampled.bytes()
        with suppress(OSError):
            text = (self._process / "status").read_text(encoding="ascii", errors="replace")
            if (found := re.search(r"^VmHWM:\s*(\d+) kB", text, re.MULTILINE)) is not None:
                return int(found[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _SampledPeak:
    """Looks at the resident pages of a process until it is stopped."""

    def __init__(self, statm: Path) -> None:
        self._statm = statm
        self._peak = self._now()
        self._stopped = Event()
        self._thread = Thread(target=self._look, name="peak memory", daemon=True)
        self._thread.start()

    def bytes(self) -> int:
        self._peak = max(self._peak, self._now())
        return self._peak

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(_SAMPLE_S):
            self.bytes()

    def _now(self) -> int:
        return int(self._statm.read_text(encoding="ascii").split()[1]) * _PAGE


OWN_PEAK = PeakMemory()


def host_bytes(root: Path = Path("/")) -> int:
    """Memory that the processes of this container or machine may take together.

    Args:
        root: of /proc and /sys.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * _PAGE
    return min([machine, *_limits(root)])


def available_bytes(root: Path = Path("/")) -> int | None:
    """What could be taken now without swapping; None: not known.

    Args:
        root: of /proc.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:")]
    return found[0] if found else None


def _limits(root: Path) -> Iterator[int]:
    """Of the control groups that this process is in, version 2 and 1 (cgroups(7))."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        top = root / "sys/fs/cgroup" / controllers
        own = top / path.lstrip("/")
        # in a container the path may be that of the host, and only the top is there
        for folder in dict.fromkeys([own, *own.parents, top]):
            if folder != top and top not in folder.parents:
                continue
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if text.isdigit():  # "max" is none
                yield int(text)
