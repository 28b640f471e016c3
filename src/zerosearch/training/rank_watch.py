"""A rank that fails takes the others with it soon, and the run ends with what that rank said.

Lightning's launcher kills everything without a word when one of its processes fails, and its
processes wait for ever when the launching one dies. torchrun and SLURM watch theirs themselves
(`srun --kill-on-bad-exit`), so that this is for processes that Lightning has started.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _set_num_threads_if_needed
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from zerosearch.core.endings import in_words
from zerosearch.core.errors import RunError, ZeroSearchError
from zerosearch.core.runs import note_failure

log = logging.getLogger(__name__)

_POLL_S = 1.0
_NOTICE_S = 10.0  # between a broken connection and the exit status of the process behind it
_GRACE_S = 30.0  # to end in an orderly way, with a summary, before being ended
_RESUME = "go on from the last checkpoint with resume=<run folder>"


class RankLost(RunError):
    """Another process of the run has failed; says which, and what it said."""


class FirstFailure:
    """Which rank failed first, and how, in a file of the run folder that all ranks can read.

    The others fail in consequence, with errors of NCCL or gloo, and often end later. They must not
    have the last word. torchrun's error files serve the same end.

    Args:
        folder: of the run.
    """

    _own: ClassVar[set[Path]] = set()  # what this process has said, in whatever stage of a run

    def __init__(self, folder: Path) -> None:
        self._path = folder / "first_failure.txt"

    @property
    def is_own(self) -> bool:
        """Whether this process said it."""
        return self._path in self._own

    def forget(self) -> None:
        """Remove what an earlier start of the run has left."""
        self._path.unlink(missing_ok=True)
        self._own.discard(self._path)

    def read(self) -> str | None:
        """What is known of the first failure; None where no rank has failed yet."""
        with suppress(OSError):
            return self._path.read_text(encoding="utf-8") or None
        return None

    def claim(self, said: str) -> bool:
        """Keep what is said, unless another rank was faster; whether it was kept."""
        try:
            with self._path.open("x", encoding="utf-8") as file:
                file.write(said)
                self._own.add(self._path)
        except OSError:  # there is one, or the disk is full
            return self.read() is None
        return True


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts a process per further rank, in the first process of a machine; the others only watch.

    What a rank raises by itself stays as it is. What it raises because it has lost another one
    becomes `RankLost` with the words of the rank that failed first; one process says them, and
    rank 0. A process that does not notice the loss (because NCCL waits, or because it computes for
    long) is ended after half a minute.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parent = os.getppid()
        self._leader = self.cluster_environment.node_rank() * self.num_processes

    def launch(self, function: Callable, *args: Any, trainer: Any, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        first = FirstFailure(Path(trainer.default_root_dir))
        if not self.cluster_environment.creates_processes_externally:
            first.forget()
            self._call_children_scripts()
        if self.num_processes * self.num_nodes == 1:
            return function(*args, **kwargs)
        _Watch.start_once(self.procs, self._parent, first, self._leader)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            rank = self.cluster_environment.global_rank()
            lost = self._who_failed(first) if _is_lost_connection(error) else None
            if lost is None:
                first.claim(f"rank {rank} failed: {in_words(error)}")
                raise
            if not first.claim(lost) and rank != 0:
                raise SystemExit(1) from error  # that rank, or rank 0, says why
            raise RankLost(f"{first.read() or lost}; {_RESUME}") from error

    def _who_failed(self, first: FirstFailure) -> str | None:
        """What is known of another rank's failure, soon after it; None where none has failed."""
        deadline = time.monotonic() + _NOTICE_S
        while time.monotonic() < deadline:
            if lost := first.read() or _lost_rank(self.procs, self._parent, self._leader):
                return lost
            time.sleep(_POLL_S / 4)
        return None


class WatchedProcesses:
    """What makes a strategy of Lightning's start its processes by `WatchedLauncher`."""

    cluster_environment: Any
    num_processes: int
    num_nodes: int

    def _configure_launcher(self) -> None:
        # also where Lightning has started this process: its children watch rank 0
        if isinstance(self.cluster_environment, LightningEnvironment):
            self._launcher = WatchedLauncher(
                self.cluster_environment, self.num_processes, self.num_nodes
            )


class ReplicatedStrategy(WatchedProcesses, DDPStrategy):
    """The Lightning strategy of `trainer=ddp`: every rank keeps the whole model.

    Args:
        find_unused_parameters: a backward pass need not reach every parameter, as with a critic.
    """

    def __init__(self, *, find_unused_parameters: bool = False) -> None:
        super().__init__(find_unused_parameters=find_unused_parameters)


class _Watch(threading.Thread):
    """Ends this process some time after a process that it cannot do without has failed.

    That need not have ended: at the exit of a process torch waits for NCCL's collectives, and with
    it for ranks that wait in one for this very process.
    """

    _running: _Watch | None = None

    def __init__(
        self, children: list[subprocess.Popen], parent: int, first: FirstFailure, leader: int
    ) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self._children = children
        self._parent = parent
        self._first = first
        self._leader = leader

    @classmethod
    def start_once(cls, *arguments: Any) -> None:
        """One thread for all stages of a run."""
        if cls._running is None:
            cls._running = cls(*arguments)
            cls._running.start()

    def run(self) -> None:
        while (lost := self._lost()) is None:
            if self._children and all(child.returncode == 0 for child in self._children):
                return
            time.sleep(_POLL_S)
        has_failed = self._first.is_own
        if self._children:  # the others see the one that has started them alone
            self._first.claim(lost)
        time.sleep(_GRACE_S)
        if not has_failed:
            self._say(lost)
        logging.shutdown()
        for child in self._children:
            child.kill()
        os._exit(1)

    def _lost(self) -> str | None:
        """Which rank has died, or has failed and cannot exit."""
        return _lost_rank(self._children, self._parent, self._leader) or self._first.read()

    def _say(self, lost: str) -> None:
        """What the main thread would say: where a rank has said why it fails, only rank 0."""
        said = self._first.read()
        if said is None or self._children:
            words = f"{said or lost}; {_RESUME}"
            log.error("a rank that has not noticed it ends now, since %s", words)
            note_failure(f"{RankLost.__name__}: {words}")


def _lost_rank(children: list[subprocess.Popen], parent: int, leader: int = 0) -> str | None:
    """Which rank has died, of those that this process can see.

    Args:
        children: that this process has started.
        parent: id of the process that has started this one, where it has no children.
        leader: the rank that starts the others of its machine, and sees all of them.
    """
    if not children and os.getppid() != parent:
        return f"rank {leader} (process {parent}) has ended before this rank"
    for rank, child in enumerate(children, start=leader + 1):
        if code := child.poll():
            if code < 0:
                how = f"was killed by {signal.Signals(-code).name} (often for lack of memory)"
            else:
                how = f"exited with {code} (its own message says why)"
            return f"rank {rank} (process {child.pid}) {how}"
    return None


def _is_lost_connection(error: Exception) -> bool:
    """Whether a collective failed, as it does where a process is gone.

    gloo raises plain RuntimeErrors, and a torch call that finds NCCL aborted one with its name.
    """
    if isinstance(error, ZeroSearchError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
