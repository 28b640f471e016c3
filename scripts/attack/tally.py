"""What an attack has come to: tried, survived, lost, and the memory that it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

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


def watched(attack: Callable[[], Tally]) -> Tally:
    """Run an attack; its memory, of this process or any below it, and its time go into its row."""
    idle, started = psutil.Process().memory_info().rss, time.monotonic()
    ended, peak = threading.Event(), [0]

    def look() -> None:
        own = psutil.Process()
        while not ended.wait(0.05):
            for process in (own, *own.children(recursive=True)):
                with suppress(psutil.Error):  # it has ended
                    peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        tally = attack()
    finally:
        ended.set()
        thread.join()
    tally.peak_mib = max(0, peak[0] - idle) / MIB
    tally.seconds = time.monotonic() - started
    return tally


def leave(folder: Path) -> Path:
    """A folder that is there, for the files of an attack."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
