"""Jobs of a sweep on this machine, each in a process of its own.

Within the process of the sweep, where Hydra's launchers run a job, one that dies takes the others
along, and one of several processes cannot work at all: Lightning starts its further ranks by
repeating the command line, which would be that of the whole sweep. Joblib's processes, which Hydra
would start for jobs side by side, end all jobs when one of theirs is killed, and at Ctrl-C in the
middle of a step. Threads that wait for the jobs' own processes do neither.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

from zerosearch.core.job_share import shares_of_machine
from zerosearch.core.runs import REQUEUE_SIGNALS
from zerosearch.core.shown import shown

# What a job is sent: SIGTERM for SIGHUP (of a terminal that closes), at which it ends in order.
PASSED_ON = {
    **{number: number for number in (signal.SIGINT, signal.SIGTERM, *REQUEUE_SIGNALS)},
    signal.SIGHUP: signal.SIGTERM,
}
SWEEP = "ZEROSEARCH_SWEEP"  # tells a job's process the number of the sweep's
_PR_SET_PDEATHSIG = 1  # of Linux, prctl(2)


class JobProcesses:
    """Runs commands, some at a time, each with its share of cores and GPUs.

    A signal that tells this process to stop is passed on: the jobs end in order, and no further one
    begins. What this process was told to ignore (by nohup) it goes on ignoring.

    Args:
        at_a_time: how many run side by side.
        environment: of each; None: this process's.

    Attributes:
        stopped_by: the signal that came meanwhile, if one did.
    """

    def __init__(self, at_a_time: int = 1, environment: Mapping[str, str] | None = None) -> None:
        self.at_a_time = at_a_time
        self._environment = os.environ if environment is None else environment
        self.stopped_by: int | None = None
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.RLock()  # the handler of a signal may come while it is held

    def run(
        self,
        commands: Sequence[Callable[[], list[str]]],
        titles: Sequence[str],
        ended: Callable[[int, int], None] = lambda place, code: None,
    ) -> list[int | None]:
        """Run commands to their end.

        Args:
            commands: each is asked for its words when its turn comes.
            titles: stand before the lines of jobs that run side by side.
            ended: told the place of a command and its exit code, one at a time.

        Returns:
            Exit codes; None where one was not begun, since a signal came.
        """
        shares: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for share in shares_of_machine(self.at_a_time):
            shares.put(share)

        def work(place: int) -> int | None:
            share = shares.get()
            try:
                code = self._run(commands[place], titles[place], share)
            finally:
                shares.put(share)
            with self._lock:
                if code is not None and self.stopped_by is None:
                    ended(place, code)
            return code

        with self._passing_on(), ThreadPoolExecutor(self.at_a_time) as pool:
            try:
                return list(pool.map(work, range(len(commands))))
            except BaseException:
                self._send(signal.SIGTERM)  # none outlives the sweep
                raise

    def _run(
        self, command: Callable[[], list[str]], title: str, share: dict[str, str]
    ) -> int | None:
        alone = self.at_a_time == 1
        with self._lock:
            if self.stopped_by is not None:
                return None
            # In a group of its own: Ctrl-C reaches it once, from here. Such a group may not read
            # the terminal; one that tried would be stopped.
            process = subprocess.Popen(
                command(),
                process_group=0,
                stdin=subprocess.DEVNULL,
                stdout=None if alone else subprocess.PIPE,
                stderr=None if alone else subprocess.STDOUT,
                env={**self._environment, **share, SWEEP: str(os.getpid())},
                text=True,
                errors="replace",
            )
            self._running.add(process)
        try:
            if process.stdout is not None:
                for line in process.stdout:
                    print(f"[{title}] {shown(line.rstrip())}", flush=True)
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def _send(self, number: int) -> None:
        with self._lock:
            self.stopped_by = self.stopped_by or number
            for process in self._running:
                process.send_signal(PASSED_ON[signal.Signals(number)])

    @contextmanager
    def _passing_on(self) -> Iterator[None]:
        """Within, signals that tell this process to stop reach the jobs."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            self._send(number)

        earlier: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # others receive no signals
            earlier = {each: signal.getsignal(each) for each in PASSED_ON}
        mine = [each for each, handler in earlier.items() if handler is not signal.SIG_IGN]
        for each in mine:
            signal.signal(each, pass_on)
        try:
            yield
        finally:
            for each in mine:
                signal.signal(each, earlier[each])


def end_with_sweep() -> None:
    """In a job's process: end in order when the sweep's process dies, however it does.

    Else a sweep that was killed would leave jobs behind, which hold their folders.
    """
    sweep = os.environ.pop(SWEEP, None)  # further processes of the job are the job's own affair
    if sweep is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sweep):  # it has died before
        signal.raise_signal(signal.SIGTERM)
