"""Few descriptors: a run that may open few files, and servers under unfinished connections."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from scripts.attack.tally import Tally, leave
from scripts.attack.whole_run import assert_same, complete, make_whole_run
from tests.helpers.our_servers import FLOOD, connected, get
from tests.helpers.processes import run_forked
from tests.helpers.waiting import GUARD_S, wait_until

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
        _flood(leave(folder / "server") / "log", connections)
    return tally


def _allow(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def _flood(log: Path, connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with log.open("w") as file:
        command = [sys.executable, "-c", FLOOD]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        wait_until(lambda: get(url, "/health").status_code == 200)
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(connected(url, b"GET /health HTTP/1.1\r\n"))
            for _ in range(20):
                assert get(url, "/health").status_code == 200
    finally:
        server.terminate()
        server.wait(GUARD_S)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert log.stat().st_size < 100_000, "its log was flooded"
