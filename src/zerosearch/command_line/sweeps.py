"""Jobs of a sweep, each in a process of its own.

Hydra's launchers run a job within the process of the sweep. There a job that dies takes the others
along, and a job of several processes cannot work at all: Lightning starts its further ranks by
repeating the command line, which is that of the whole sweep.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.core.runs import REQUEUE_SIGNALS, read_summary

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Of Hydra's own settings those that make a sweep: a job has none of them.
OF_SWEEPS = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra/launcher", "hydra.launcher")
# What a job is sent: SIGTERM for SIGHUP (of a terminal that closes), at which it ends in order.
PASSED_ON = {
    **{number: number for number in (signal.SIGINT, signal.SIGTERM, *REQUEUE_SIGNALS)},
    signal.SIGHUP: signal.SIGTERM,
}
ON_CLUSTER = "SUBMITIT_EXECUTOR"  # set by submitit, whose jobs are processes of their own

log = logging.getLogger(__name__)
_failures: list[str] = []  # of this sweep's jobs, in words


class JobFailed(ZeroSearchError):
    """A job of a sweep did not end well; the others run all the same."""


def is_sweep() -> bool:
    """Whether this process launches a job of a sweep, as opposed to being one."""
    return HydraConfig.get().mode == RunMode.MULTIRUN and ON_CLUSTER not in os.environ


def run_in_process(command: str, cfg: DictConfig) -> Any:
    """Run the present job of the sweep as `zerosearch COMMAND` with the job's own overrides.

    Args:
        command: its name.
        cfg: of the job.

    Returns:
        What `optimized_value` finds in its `summary.json`.

    Raises:
        JobFailed: it ended with an error, or without what the sweep goes by.
        SystemExit: the sweep was told to stop; the job has ended in order.
    """
    job, overrides = HydraConfig.get().job, HydraConfig.get().overrides
    folder = Path(HydraConfig.get().runtime.output_dir)
    kept = [item for item in overrides.hydra if not item.startswith(OF_SWEEPS)]
    own = ["hydra.mode=RUN", f"hydra.run.dir='{folder}'", f"hydra.job.num={job.num}"]
    words = [sys.executable, "-m", "zerosearch", command, *overrides.task, *kept, *own]
    before = read_summary(folder)  # of an earlier run in the same folder
    code, stopped_by = _run(words)
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)
    facts = read_summary(folder)
    if code != 0:
        said = facts.get("error") or facts.get("status") if code > 0 and facts != before else None
        # Hydra writes true as True, ~key as ~key=null, and a colon within a list as \\:
        same = {f"{word}=null" if word[:1] == "~" else word.lower() for word in sys.argv}
        given = [item.replace("\\", "") for item in overrides.task]
        differing = [item for item in given if item.lower() not in same]
        failure = f"job {job.num} ({', '.join(differing)}): {said or _ending(code)}"
        _failures.append(failure)
        log.error(failure)
        raise JobFailed(failure)
    return optimized_value(cfg, facts)


def check_optimized(cfg: DictConfig) -> None:
    """Check what a sweep that searches for the best settings goes by.

    Raises:
        InputError: `optimized` names no direction, or another one than the sweeper, or a metric
            that no job will have.
    """
    if "optimized" not in cfg:
        return
    metric, direction = str(cfg.optimized.metric), cfg.optimized.direction
    if direction not in ("maximize", "minimize"):
        raise InputError(f"optimized.direction={direction}: give maximize or minimize")
    phase, _, name = metric.partition("/")
    if not name:
        raise InputError(f"optimized.metric={metric}: give a name of summary.json, such as test/f1")
    evaluations = cfg.get("evaluation") or {}
    if phase in ("start", "test") and evaluations:
        known = [*("f1", "em", "cover_em"), *evaluations]
        if name.split("/")[0] not in known:
            found = ", ".join(f"{phase}/{each}" for each in known)
            raise InputError(f"optimized.metric={metric} is not measured; there are {found}")
    if not _searches():
        return
    if phase in ("start", "test") and not cfg.test:
        raise InputError(f"optimized.metric={metric} is not measured with test=false")
    wanted = HydraConfig.get().sweeper.get("direction")
    wanted = wanted.name if isinstance(wanted, Enum) else wanted
    if isinstance(wanted, str) and wanted != direction:
        raise InputError(
            f"optimized.direction={direction}, and hydra.sweeper.direction={wanted}: give the same"
        )


def optimized_value(cfg: DictConfig, facts: Mapping[str, Any]) -> float | None:
    """What a sweep goes by, of a job's summary; None where it lacks it and nobody searches.

    Raises:
        JobFailed: the sweeper searches by it.
    """
    metric = OmegaConf.select(cfg, "optimized.metric")
    value = facts.get(metric)
    if value is None and metric is not None and _searches():
        raise JobFailed(f"optimized.metric={metric}: summary.json has none; choose one that it has")
    return value


def _searches() -> bool:
    """Whether this process is of a sweep whose sweeper goes by what its jobs return."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return "BasicSweeper" not in HydraConfig.get().sweeper["_target_"]


def report_failures(error: JobFailed) -> None:
    """Say at the end of a sweep which of its jobs failed, a line for each.

    Args:
        error: the first of them; a launcher that runs jobs elsewhere brings back no more.
    """
    failures = _failures or [str(error)]
    log.error("jobs that failed: %d\n%s", len(failures), "\n".join(failures))


def _run(command: list[str]) -> tuple[int, int | None]:
    """Run a job to its end.

    A signal that tells this process to stop is passed on: the job ends in order, and then the
    sweep. What this process was told to ignore (by nohup) it goes on ignoring.

    Returns:
        Exit code of the job, and the signal that came meanwhile, if one did.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(PASSED_ON[signal.Signals(number)])

    earlier: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # others receive no signals
        earlier = {each: signal.getsignal(each) for each in PASSED_ON}
    mine = [each for each, handler in earlier.items() if handler is not signal.SIG_IGN]
    for each in mine:
        signal.signal(each, pass_on)
    try:
        # In a group of its own: Ctrl-C reaches it once, from here. Such a group may not read the
        # terminal; one that tried would be stopped.
        process = subprocess.Popen(command, process_group=0, stdin=subprocess.DEVNULL)
        for each in received:  # while it was started
            process.send_signal(PASSED_ON[signal.Signals(each)])
        return process.wait(), received[0] if received else None
    finally:
        for each in mine:
            signal.signal(each, earlier[each])


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}; its output is above"
