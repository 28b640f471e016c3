"""Who died, and what is said of it; whole runs that lose a rank are in test_sharded_runs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment

from zerosearch.training import rank_watch
from zerosearch.training.rank_watch import RankLost, WatchedLauncher, _lost_rank

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> WatchedLauncher:
    """Of a process that was started by another one; nothing is watched in the background."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(rank_watch._Watch, "start_once", lambda children, parent: None)
    monkeypatch.setattr(rank_watch, "_NOTICE_S", 0.1)
    return WatchedLauncher(LightningEnvironment(), 2, 1)


def ended(code: str) -> subprocess.Popen[Any]:
    process = subprocess.Popen([sys.executable, "-c", code])
    process.wait()
    return process


def failing(error: Exception) -> Any:
    def work() -> None:
        raise error

    return work


def test_a_killed_child_is_named_with_its_signal() -> None:
    killed = ended("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    lost = _lost_rank([ended(""), killed], parent=0)
    assert lost is not None
    assert f"rank 2 (process {killed.pid}) was killed by SIGKILL" in lost and "resume=" in lost


def test_a_failed_child_is_named_and_ended_ones_are_not_missed() -> None:
    assert _lost_rank([ended("")], parent=0) is None
    assert "rank 1 (process" in str(_lost_rank([ended("raise SystemExit(3)")], parent=0))


def test_rank_0_is_missed_by_what_it_has_started() -> None:
    assert _lost_rank([], parent=os.getppid()) is None
    assert "rank 0 (process -1) has ended" in str(_lost_rank([], parent=-1))


@pytest.mark.parametrize("error", [RuntimeError(GLOO), dist.DistNetworkError("reset")])
def test_a_lost_connection_says_which_rank(launcher: WatchedLauncher, error: Exception) -> None:
    launcher.procs = [ended("raise SystemExit(3)")]
    with pytest.raises(RankLost, match=r"rank 1 \(process \d+\) exited with 3"):
        launcher.launch(failing(error))
    launcher.procs = []
    with pytest.raises(RankLost, match="connection to another rank was lost"):
        launcher.launch(failing(error))


def test_own_errors_stay_as_they_are(launcher: WatchedLauncher) -> None:
    launcher.procs = [ended("raise SystemExit(3)")]
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        launcher.launch(failing(RuntimeError("out of memory")))
    assert not isinstance(raised.value, RankLost)
    assert launcher.launch(lambda: 5) == 5
