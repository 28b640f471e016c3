"""Who died, and what is said of it; whole runs that lose a rank are in test_sharded_runs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment

from tests.helpers.configs import ROOT
from tests.helpers.waiting import GUARD_S
from zerosearch.training import rank_watch
from zerosearch.training.rank_watch import RankLost, WatchedLauncher, _lost_rank

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"

# rank 0, which never comes back from a C call, with a rank that has failed and one that hangs, too
HANGING = """
import signal, subprocess, sys
from zerosearch.training import rank_watch
ranks = [subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])]
ranks.append(subprocess.Popen(["sleep", sys.argv[1]]))
rank_watch._GRACE_S = 0.0
rank_watch._Watch.start_once(ranks, parent=0)
signal.pause()
"""


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


@pytest.mark.timeout(20 * GUARD_S)  # a process that imports everything, on a busy machine too
def test_a_rank_that_does_not_notice_is_ended_with_all_others() -> None:
    # returns when nobody holds the pipes any more, so not before the rank that sleeps is gone
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, str(15 * GUARD_S)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=10 * GUARD_S,
    )
    assert ended.returncode == 1
    assert "exited with 3 (its own message says why)" in ended.stderr
    assert "this rank has not noticed: it ends now" in ended.stderr
