"""A launched server never outlives the process that watches over it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.waiting import wait_until
from zerosearch.serving.process import GUARD

# A server with a worker; neither is told anything when its parent dies.
SERVER = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + ".part", "w").write(f"{os.getpid()} {worker.pid}")
os.replace(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def runs(pid: int) -> bool:
    """A process that has ended and is still listed does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    command = [*GUARD, sys.executable, "-c", SERVER, str(tmp_path / "pids")]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE)
    pids: list[int] = []
    try:
        wait_until((tmp_path / "pids").exists)
        pids += map(int, (tmp_path / "pids").read_text().split())
        yield guard, pids
    finally:
        guard.kill()
        guard.wait()
        for pid in filter(runs, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_guard_is_killed(guarded_server, number: int) -> None:
    guard, pids = guarded_server
    assert all(map(runs, pids))
    guard.send_signal(number)
    wait_until(lambda: not any(map(runs, pids)))


def test_nothing_is_left_when_the_parent_goes(guarded_server) -> None:
    guard, pids = guarded_server
    guard.stdin.close()
    assert guard.wait(60) == 128 + signal.SIGTERM
    wait_until(lambda: not any(map(runs, pids)))


def test_the_exit_code_is_that_of_the_command() -> None:
    with subprocess.Popen([*GUARD, "sh", "-c", "exit 7"], stdin=subprocess.PIPE) as guard:
        assert guard.wait(60) == 7
