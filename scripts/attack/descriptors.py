"""Few descriptors: a run that may open few files, and servers under unfinished connections."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

from scripts.attack.tally import Tally, leave
from scripts.attack.whole_run import assert_same, complete, make_whole_run
from tests.helpers.our_servers import flood
from tests.helpers.processes import run_forked

FEW = (16, 24, 32, 48, 64)


def attack(folder: Path, *, connections: int = 1024) -> Tally:
    """Let a run have few descriptors, and open so many connections to a server that has 1,024."""
    tally, whole = Tally(what="few descriptors"), make_whole_run(folder / "whole")
    for limit in FEW:
        with tally.attempt(f"a run with {limit} descriptors"):
            place, few = folder / f"run_{limit}", partial(_allow, limit)
            ended = run_forked("train", *whole.words, f"hydra.run.dir={place}", first=few)
            said = ended.stdout + ended.stderr
            assert ended.returncode == 0 or "Too many open files" in said, said[-500:]
            complete(place, whole.words)
            assert_same(place, whole)
    with tally.attempt(f"{connections} unfinished connections to a server"):
        flood(leave(folder / "server") / "log", connections)
    return tally


def _allow(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
