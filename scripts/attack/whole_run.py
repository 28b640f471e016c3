"""The run that was not disturbed, and how another one differs from it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from scripts.attack.moments import Moment
from scripts.attack.tally import leave
from tests.helpers.processes import run_forked
from tests.helpers.runs import differing, small_run


@dataclass(kw_only=True, slots=True)
class WholeRun:
    """A run of seconds: six steps, validations, checkpoints, an export and a test."""

    folder: Path
    words: list[str]  # its overrides
    seconds: float  # from the fork of its process to its end
    operations: int  # that changed files in its folder

    @property
    def size(self) -> int:
        """Bytes in its folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def make_whole_run(folder: Path) -> WholeRun:
    """Train twice, so that the libraries are loaded when the second one is timed."""
    words = small_run(leave(folder))
    counted, seconds = folder / "operations", 0.0
    for name in ("warm", "whole"):
        counted.unlink(missing_ok=True)
        started = time.monotonic()
        watch = Moment(folder=folder / name, counted=counted)
        ended = run_forked("train", *words, f"hydra.run.dir={folder / name}", first=watch)
        seconds = time.monotonic() - started
        assert ended.returncode == 0, ended.stdout + ended.stderr
    operations = counted.stat().st_size
    return WholeRun(folder=folder / "whole", words=words, seconds=seconds, operations=operations)


def complete(folder: Path, words: list[str]) -> None:
    """Do what a user does with a run that ended early: go on, or where it had not begun, begin."""
    saved = folder / ".hydra" / "overrides.yaml"
    begun = saved.is_file() and saved.stat().st_size > 0
    arguments = [f"resume={folder}"] if begun else [*words, f"hydra.run.dir={folder}"]
    ended = run_forked("train", *arguments)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, f"it does not go on: {said[-1500:]}"


def assert_same(folder: Path, whole: WholeRun) -> None:
    """Raise where a run differs in anything but times: metrics, facts, transcripts, the export."""
    names = differing(folder, whole.folder)
    assert not names, f"these differ: {names[:8]}"
