"""Disks that are full from some moment on, or cannot be written to at all.

The disk is a file system in memory, which Linux lets a process mount where it has user namespaces.
A run whose disk is full ends in one sentence, and goes on as if nothing had been when it is free
again; or it needed no more of the disk.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.attack.moments import Moment
from scripts.attack.tally import Tally, leave
from scripts.attack.whole_run import WholeRun, assert_same, complete, make_whole_run
from tests.helpers.processes import run_forked

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]  # before a command that mounts
SIZE = "size=64m"


def can_mount() -> bool:
    """Whether this process may mount a file system; see `NAMESPACE`."""
    with_one = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if with_one.returncode == 0:
        subprocess.run(["umount", "/mnt"], check=True)
    return with_one.returncode == 0


def attack(folder: Path, *, full: int = 8, seed: int = 0) -> Tally:
    """Fill the disk at moments over the life of a run; then let nothing be written at all."""
    tally = Tally(what="full and read-only disks")
    if not can_mount():
        tally.what += " (not tried: nothing can be mounted here)"
        return tally
    whole, draw = make_whole_run(folder / "whole"), random.Random(seed)
    moments = [1 + int((n + draw.random()) / full * whole.operations) for n in range(full)]
    for operation in [*moments, whole.operations]:
        with (
            tally.attempt(f"full at operation {operation} of {whole.operations}"),
            _mounted(folder / f"full_{operation}") as disk,
        ):
            _filled(disk, whole, operation)
    with tally.attempt("a new run on a read-only disk"), _mounted(folder / "new", "ro") as disk:
        _one_sentence(*whole.words, f"hydra.run.dir={disk / 'run'}")
    with tally.attempt("a run whose disk became read-only"), _mounted(folder / "old") as disk:
        place = disk / "run"
        moment = Moment(folder=place, operation=whole.operations * 3 // 4)
        run_forked("train", *whole.words, f"hydra.run.dir={place}", first=moment)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        _one_sentence(f"resume={place}")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        complete(place, whole.words)
        assert_same(place, whole)
    return tally


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    words = ["-t", "tmpfs", "-o", ",".join([SIZE, *options]), "tmpfs", str(leave(folder))]
    subprocess.run(["mount", *words], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _filled(disk: Path, whole: WholeRun, operation: int) -> None:
    place, filler = disk / "run", disk / "filler"
    moment = Moment(folder=place, operation=operation, happens="full", filler=filler)
    _one_sentence(*whole.words, f"hydra.run.dir={place}", first=moment, may_complete=True)
    filler.unlink()
    complete(place, whole.words)
    assert_same(place, whole)


def _one_sentence(*words: str, first: Moment | None = None, may_complete: bool = False) -> None:
    ended = run_forked("train", *words, first=first)
    said = ended.stdout + ended.stderr
    if may_complete and ended.returncode == 0:
        return
    assert ended.returncode == 1, f"exit code {ended.returncode}: {said[-500:]}"
    assert "Traceback" not in said, said[-1800:]
    assert any(word in said for word in ("No space left", "Read-only file system")), said[-500:]
