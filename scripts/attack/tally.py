"""What an attack has come to: tried, survived, lost, and the memory that it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

MIB = 2**20


@dataclass(kw_only=True, slots=True)
class Tally:
    """One row of the table."""

    what: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)  # each attempt that did harm, in words
    ran: int = 0  # attempts whose code was run
    peak_mib: float = 0.0  # most of any process, above this one at rest
    seconds: float = 0.0

    @property
    def survived(self) -> int:
        return self.tried - len(self.lost)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Within, whatever is raised is a loss; the attack goes on."""
        self.tried += 1
        try:
            yield
        except Exception as error:
            said = " ".join(str(error).split())[:500]
            self.lost.append(f"{name}: {type(error).__name__}: {said}")
            print(f"LOST {self.what}: {self.lost[-1]}", flush=True)


class Watched:
    """Context manager: looks at the memory of this process and all below it, and at the clock."""

    def __init__(self, tally: Tally, *, every_s: float = 0.05) -> None:
        self._tally, self._every_s = tally, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._idle = psutil.Process().memory_info().rss
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._tally.seconds = time.monotonic() - self._started

    def _look(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(self._every_s):
            most = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    most = max(most, process.memory_info().rss)
                except psutil.Error:  # it has ended
                    continue
            self._tally.peak_mib = max(self._tally.peak_mib, (most - self._idle) / MIB)


def leave(folder: Path) -> Path:
    """A folder that is there, for the files of an attack."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
