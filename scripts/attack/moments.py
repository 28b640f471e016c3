"""What happens to a command at a moment of its life that is counted in its own file operations."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tests.helpers.processes import Forked

MADE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.link", "os.truncate", "os.mkdir", "os.symlink"}


@dataclass(kw_only=True, slots=True)
class Moment:
    """Called in the process of a command, before it: waits for an operation in its run folder.

    Args:
        folder: of the run; what changes files in it counts.
        operation: number of the one before which it happens, from 1; 0: none.
        row: the one of all that it adds to journals, from 1, in whose middle it is killed; 0: none.
        happens: the process is killed, or its disk is full from then on.
        counted: file that grows by a byte for each operation.
        filler: file that takes the rest of the disk.
    """

    folder: Path
    operation: int = 0
    row: int = 0
    happens: Literal["killed", "full"] = "killed"
    counted: Path | None = None
    filler: Path | None = None

    def __call__(self) -> None:
        if self.row:
            self._watch_rows()
        seen, prefix = 0, str(self.folder)
        counter = self.counted and os.open(self.counted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "open":
                path, _, flags = arguments
                changes = isinstance(flags, int) and bool(flags & MADE)
            else:
                path, changes = arguments[0] if arguments else "", event in CHANGES
            if not changes or not str(path).startswith(prefix):
                return
            seen += 1
            if counter is not None:
                os.write(counter, b".")
            if seen == self.operation:
                self._happen()

        sys.addaudithook(watch)

    def _watch_rows(self) -> None:
        from zerosearch.core.journal import Journal

        append, written = Journal.append, count(1)

        def watched(journal: Journal, row: Mapping[str, Any]) -> None:
            if next(written) == self.row:
                with journal.path.open("ab") as file:
                    file.write(json.dumps(row).encode()[:20])
                os.kill(os.getpid(), signal.SIGKILL)
            append(journal, row)

        Journal.append = watched  # type: ignore[method-assign]

    def _happen(self) -> None:
        if self.happens == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        assert self.filler is not None
        fill(self.filler)


def kill_at(moment: Moment, *words: str) -> None:
    """Run a command until it is killed."""
    running = Forked(*words, first=moment)
    said = running.communicate()
    assert running.wait() == -signal.SIGKILL, ("it was not killed", said)


def fill(filler: Path, spared: int = 0) -> None:
    """Take the disk's free bytes but for some."""
    disk = os.statvfs(filler.parent)
    taken = disk.f_bavail * disk.f_frsize - spared
    with filler.open("ab") as file:
        if taken > 0:
            os.posix_fallocate(file.fileno(), file.tell(), taken)
