"""A rank that dies takes the others with it soon, and the run says which one it was.

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
from typing import Any

import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

log = logging.getLogger(__name__)

_POLL_S = 1.0
_NOTICE_S = 10.0  # between a broken connection and the exit status of the process behind it
_GRACE_S = 30.0  # to end in an orderly way, with a summary, before being ended
_MEND = "go on from the last checkpoint with resume=<run folder>"


class RankLost(RuntimeError):
    """Another process of the run has died."""


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts a process per further rank, in the process of rank 0; in the others it only watches.

    A lost connection is raised as `RankLost`. A process that does not notice the loss (because
    NCCL waits, or because it computes for long) is ended after half a minute.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parent = os.getppid()

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        _Watch.start_once(self.procs, self._parent)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            raise RankLost(self._who_died()) from error

    def _who_died(self) -> str:
        deadline = time.monotonic() + _NOTICE_S
        while time.monotonic() < deadline:
            if lost := _lost_rank(self.procs, self._parent):
                return lost
            time.sleep(_POLL_S / 4)
        return "the connection to another rank was lost: its own message, or rank 0's, says why"


class _Watch(threading.Thread):
    """Ends this process some time after a process that it cannot do without."""

    _running: _Watch | None = None

    def __init__(self, children: list[subprocess.Popen], parent: int) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self._children = children
        self._parent = parent

    @classmethod
    def start_once(cls, children: list[subprocess.Popen], parent: int) -> None:
        """One thread for all stages of a run."""
        if cls._running is None:
            cls._running = cls(children, parent)
            cls._running.start()

    def run(self) -> None:
        while (lost := _lost_rank(self._children, self._parent)) is None:
            if self._children and all(child.returncode == 0 for child in self._children):
                return
            time.sleep(_POLL_S)
        time.sleep(_GRACE_S)
        log.error("%s, and this rank has not noticed: it ends now", lost)
        logging.shutdown()
        for child in self._children:
            child.kill()
        os._exit(1)


def _lost_rank(children: list[subprocess.Popen], parent: int) -> str | None:
    """Which rank has died, of those that this process can see; rank 0 sees all of its machine."""
    if not children and os.getppid() != parent:
        return f"rank 0 (process {parent}) has ended before this rank; {_MEND}"
    for rank, child in enumerate(children, start=1):
        if code := child.poll():
            if code < 0:
                how = f"was killed by {signal.Signals(-code).name} (often for lack of memory)"
            else:
                how = f"exited with {code} (its own message says why)"
            return f"rank {rank} (process {child.pid}) {how}; {_MEND}"
    return None


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because a process is gone; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
