"""Who died, and what is said of it; whole runs that lose a rank are in test_sharded_runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment

from tests.helpers.configs import ROOT
from tests.helpers.waiting import GUARD_S
from zerosearch.core import runs
from zerosearch.core.endings import in_words
from zerosearch.core.errors import RunError
from zerosearch.training import rank_watch
from zerosearch.training.rank_watch import FirstFailure, RankLost, WatchedLauncher, _lost_rank

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"

# rank 0, which never comes back from a C call, with a rank that has failed and one that hangs, too
HANGING = """
import signal, subprocess, sys
from pathlib import Path
from zerosearch.training import rank_watch
ranks = [subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])]
ranks.append(subprocess.Popen(["sleep", sys.argv[1]]))
rank_watch._GRACE_S, rank_watch._POLL_S = 0.0, 0.05
rank_watch._Watch.start_once(ranks, 0, rank_watch.FirstFailure(Path(sys.argv[2])), 0)
signal.pause()
"""


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs work as a process of a run in `tmp_path`; nothing is watched in the background."""
    monkeypatch.setattr(rank_watch._Watch, "start_once", lambda *arguments: None)
    monkeypatch.setattr(rank_watch, "_NOTICE_S", 0.1)

    def launch(work: Any, *, rank: int = 0, children: Any = (), parent: int | None = None) -> Any:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        environment = LightningEnvironment()
        environment.set_global_rank(rank)
        launcher = WatchedLauncher(environment, 3, 1)
        launcher.procs = list(children)
        if parent is not None:
            launcher._parent = parent
        return launcher.launch(work, trainer=SimpleNamespace(default_root_dir=str(tmp_path)))

    return launch


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
    assert f"rank 2 (process {killed.pid}) was killed by SIGKILL" in lost


def test_a_failed_child_is_named_and_ended_ones_are_not_missed() -> None:
    assert _lost_rank([ended("")], parent=0) is None
    assert "rank 1 (process" in str(_lost_rank([ended("raise SystemExit(3)")], parent=0))


def test_the_ranks_of_a_second_machine_have_their_own_numbers() -> None:
    ranks = [ended(""), ended("raise SystemExit(3)")]
    assert "rank 10 (process" in str(_lost_rank(ranks, parent=0, leader=8))
    assert "rank 8 (process -1) has ended" in str(_lost_rank([], parent=-1, leader=8))


def test_rank_0_is_missed_by_what_it_has_started() -> None:
    assert _lost_rank([], parent=os.getppid()) is None
    assert "rank 0 (process -1) has ended" in str(_lost_rank([], parent=-1))


LOST = [
    RuntimeError(GLOO),
    dist.DistNetworkError("reset"),
    dist.DistBackendError("NCCL communicator was aborted on rank 1"),
    RuntimeError("NCCL Error 1: unhandled cuda error"),
]


@pytest.mark.parametrize("error", LOST)
def test_a_lost_connection_says_which_rank_died(launch: Any, error: Exception) -> None:
    with pytest.raises(RankLost, match=r"rank 1 \(process \d+\) exited with 3.*resume="):
        launch(failing(error), children=[ended("raise SystemExit(3)")])


def test_what_the_first_rank_said_is_what_the_others_say(launch: Any, tmp_path: Path) -> None:
    cause = torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with ...")
    with pytest.raises(torch.AcceleratorError) as own:
        launch(failing(cause), rank=2)
    assert own.value is cause, "its traceback is shown"
    said = "rank 2 failed: AcceleratorError: CUDA error: device-side assert triggered"
    assert FirstFailure(tmp_path).read() == said
    with pytest.raises(RankLost, match=f"^{said}; go on from the last checkpoint"):
        launch(failing(RuntimeError(GLOO)), rank=0)
    with pytest.raises(SystemExit) as silent:
        launch(failing(RuntimeError(GLOO)), rank=1)
    assert silent.value.code == 1


def test_one_of_those_that_miss_rank_0_says_so(
    launch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RankLost, match=r"rank 0 .* has ended"):
        launch(failing(RuntimeError(GLOO)), rank=1, parent=-1)
    with pytest.raises(SystemExit):
        launch(failing(RuntimeError(GLOO)), rank=2, parent=-1)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of memory"),
        KeyError("gloo"),
        RunError("the servers use gloo: start them again"),
        *LOST,
    ],
)
def test_without_another_failure_an_error_is_the_rank_s_own(
    launch: Any, tmp_path: Path, error: Exception
) -> None:
    """A collective fails for other reasons too, such as NCCL's own or a wrong shape."""
    with pytest.raises(type(error)) as raised:
        launch(failing(error), rank=1)
    assert raised.value is error
    assert f"rank 1 failed: {in_words(error)}" == FirstFailure(tmp_path).read()


def test_errors_of_all_ranks_alike_stay_their_own(launch: Any) -> None:
    for rank in (1, 0):
        with pytest.raises(RunError) as raised:
            launch(failing(RunError("400 of 500 trajectories were lost")), rank=rank)
        assert not isinstance(raised.value, RankLost)


def test_what_works_stays_as_it_is(launch: Any, tmp_path: Path) -> None:
    assert launch(lambda: 5, children=[ended("")]) == 5
    assert not list(tmp_path.iterdir())


class Ended(Exception):
    """In the place of the end of a process."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the watch of a rank until it ends its process."""

    def end(code: int) -> None:
        raise Ended

    def sleep(seconds: float) -> None:
        assert seconds == rank_watch._GRACE_S, "it waits for the process to be gone"

    monkeypatch.setattr(rank_watch.os, "_exit", end)
    monkeypatch.setattr(rank_watch.time, "sleep", sleep)
    monkeypatch.setattr(rank_watch.logging, "shutdown", lambda: None)

    def watch(first: FirstFailure, *children: Any) -> None:
        with pytest.raises(Ended):
            rank_watch._Watch([*children], os.getppid(), first, 0).run()

    return watch


def test_a_rank_that_has_failed_and_cannot_exit_is_not_waited_for(
    watch: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over NCCL it waits at its exit for those that wait for it; rank 0 says why all end."""
    killed: list[int] = []
    alive = SimpleNamespace(poll=lambda: None, returncode=None, kill=lambda: killed.append(1))
    (tmp_path / "first_failure.txt").write_text("rank 1 failed: AcceleratorError: CUDA error")
    watch(FirstFailure(tmp_path))
    assert not caplog.text, "rank 1, or another one beside it"
    summary = runs.Summary(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_under_way", [summary])
        watch(FirstFailure(tmp_path), alive)
    assert killed and "ends now, since rank 1 failed: AcceleratorError" in caplog.text
    said = runs.read_summary(tmp_path)
    assert said["status"] == "failed"
    assert said["error"].startswith("RankLost: rank 1 failed: AcceleratorError: CUDA error; ")


def test_rank_0_that_cannot_exit_says_no_more_than_it_has_said(
    watch: Any, launch: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError):
        launch(failing(KeyError("own")))
    watch(
        FirstFailure(tmp_path),
        SimpleNamespace(poll=lambda: None, returncode=None, kill=lambda: None),
    )
    assert not caplog.text


@pytest.mark.timeout(20 * GUARD_S)  # a process that imports everything, on a busy machine too
def test_a_rank_that_does_not_notice_is_ended_with_all_others(tmp_path: Path) -> None:
    # returns when nobody holds the pipes any more, so not before the rank that sleeps is gone
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, str(15 * GUARD_S), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=10 * GUARD_S,
    )
    assert ended.returncode == 1
    assert "exited with 3 (its own message says why)" in ended.stderr
    assert "a rank that has not noticed it ends now" in ended.stderr
