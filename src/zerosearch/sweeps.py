"""Jobs of a sweep, each in a process of its own.

Hydra's launchers run a job within the process of the sweep. There a job that dies takes the others
along, and a job of several processes cannot work at all: Lightning starts its further ranks by
repeating the command line, which is that of the whole sweep.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

# Of Hydra's own settings those that make a sweep: a job has none of them.
OF_SWEEPS = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra/launcher", "hydra.launcher")
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ON_CLUSTER = "SUBMITIT_EXECUTOR"  # set by submitit, whose jobs are processes of their own

log = logging.getLogger(__name__)
_failures: list[str] = []  # of this sweep's jobs, in words


class JobFailed(Exception):
    """A job of a sweep did not end well; the others run all the same."""


def is_sweep() -> bool:
    """Whether this process launches a job of a sweep, as opposed to being one."""
    return HydraConfig.get().mode == RunMode.MULTIRUN and ON_CLUSTER not in os.environ


def run_in_process(module: str) -> Any:
    """Run the present job of the sweep as `python -m <module>` with the job's own overrides.

    Args:
        module: of the command.

    Returns:
        `test/f1` of its `summary.json`, None where it has none.

    Raises:
        JobFailed: it ended with an error.
        SystemExit: the sweep was told to stop; the job has ended in order.
    """
    job, overrides = HydraConfig.get().job, HydraConfig.get().overrides
    folder = Path(HydraConfig.get().runtime.output_dir)
    kept = [item for item in overrides.hydra if not item.startswith(OF_SWEEPS)]
    own = ["hydra.mode=RUN", f"hydra.run.dir='{folder}'", f"hydra.job.num={job.num}"]
    command = [sys.executable, "-m", module, *overrides.task, *kept, *own]
    process = subprocess.Popen(command, process_group=0)  # Ctrl-C reaches it once: from here
    stopped_by = _wait(process)
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)
    facts = _summary(folder)
    if process.returncode != 0:
        said = facts.get("error") or facts.get("status") if process.returncode > 0 else None
        reason = said or _ending(process.returncode)
        same = {word.lower() for word in sys.argv}  # Hydra writes true as True
        differing = [item for item in overrides.task if item.lower() not in same]
        failure = f"job {job.num} ({', '.join(differing)}): {reason}"
        _failures.append(failure)
        log.error(failure)
        raise JobFailed(failure)
    return facts.get("test/f1")


def report_failures() -> None:
    """Say at the end of a sweep which of its jobs failed, a line for each."""
    log.error("jobs that failed: %d\n%s", len(_failures), "\n".join(_failures))


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a job; returns the signal that told this process to stop, if one did.

    The signal is passed on: the job ends in order, and then the sweep.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():  # it receives no signals
        process.wait()
        return None
    earlier = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    return received[0] if received else None


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        return {}


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}; its output is above"
