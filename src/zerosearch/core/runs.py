"""Run folders: their checkpoints, the link to the latest run, the summary.

Light on imports: it is loaded before the command line is parsed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerosearch import __version__
from zerosearch.core import run_names, sweep_names
from zerosearch.core.endings import report_error
from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.outcome import arranged, ending, is_complete, of_command, seconds_of
from zerosearch.core.run_lock import locked, this_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
_SHIPPED = _PACKAGE / "configs"  # of a wheel; a checkout has them at its top
CHECKOUT = None if _SHIPPED.is_dir() else _PACKAGE.parents[1]
CONFIGS = _SHIPPED if CHECKOUT is None else CHECKOUT / "configs"
PROJECT_ROOT = CHECKOUT or Path.cwd()  # takes logs/ and data/
LATEST = "latest"  # in a task folder: the newest run that has begun
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"  # in a run folder
EXPORT = "policy"  # in a run folder: what was trained, as a model
SETTINGS_FILE = "zerosearch.json"  # in an export, written last
JOURNAL = "journal"  # in the folder of an evaluation: what was answered
RUNNING = "running"  # status of a run that has begun
SUMMARY = "summary.json"  # in a run folder, written when the run begins and ends
PROMPT_FILE = "prompt.j2"  # in the folder of a simulator that was tuned here
_OF_0_1 = re.compile(r"^job: zerosearch\.", re.MULTILINE)  # in the configuration of a training
REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # of SLURM and submitit, before time is up

run_names.register()  # before Hydra composes anything
sweep_names.register()


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint: a file, or the folder of a sharded one."""
    return path.is_file() or (path / "meta.pt").is_file()


def find_checkpoint(resume: str | None, run_folder: Path) -> Path | None:
    """The checkpoint that a run starts from, if any.

    A new run has a new folder. One whose folder holds a checkpoint was started before, by SLURM,
    torchrun or the user, and goes on from there whatever it was started from at first.

    Args:
        resume: a checkpoint, or a run folder whose last one is meant, or None.
        run_folder: of this run.

    Raises:
        InputError: there is none where `resume` says, which is not this run's own folder.
    """
    own = run_folder / LAST_CHECKPOINT
    if is_checkpoint(own):
        log.info("Continuing from %s", own)
        return own
    if resume is None:
        return None
    path = Path(resume)
    if path.is_dir() and not is_checkpoint(path):
        if path.resolve() == run_folder.resolve():
            log.warning("%s has no checkpoint yet: this run starts from the beginning", resume)
            return None
        path = path / LAST_CHECKPOINT
    if not is_checkpoint(path):
        raise InputError(f"resume={resume}: there is no checkpoint {path}; start without resume=")
    return path


def check_version(place: str, run: Path) -> None:
    """Refuse to go on with a run of 0.1, whose settings and checkpoints have other names.

    Args:
        place: as it was given.
        run: its folder.

    Raises:
        InputError: says with which version it can go on.
    """
    saved = run / ".hydra" / "config.yaml"
    if saved.is_file() and re.search(_OF_0_1, saved.read_text(errors="replace")):
        raise of_old_version(f"resume={place}", read_summary(run).get("git_commit"))


def of_old_version(what: str, commit: str | None = None) -> InputError:
    """That a run of 0.1 does not go on here, and where it does.

    Args:
        what: cannot go on.
        commit: of the checkout that began it, where it is known.
    """
    began = f" (commit {commit})" if commit else ""
    return InputError(
        f"{what} is of ZeroSearch 0.1, and this is {__version__}: go on with 0.1{began}, or start "
        "a new run; what it has exported serves here, too"
    )


def link_latest(run_folder: Path, task_folder: Path) -> None:
    """Point `<task folder>/latest` at a run, atomically; when its first step or question begins."""
    task_folder.mkdir(parents=True, exist_ok=True)
    if (task_folder / LATEST).is_dir() and not (task_folder / LATEST).is_symlink():
        log.warning("%s is a folder: it is left as it is, no link", task_folder / LATEST)
        return
    temporary = task_folder / f".latest-{uuid.uuid4().hex}"  # its own, on whatever host
    temporary.symlink_to(os.path.relpath(run_folder, task_folder), target_is_directory=True)
    os.replace(temporary, task_folder / LATEST)


def git_commit() -> str | None:
    """Commit of the checkout, with "+changes" where files differ from it; None outside git."""
    if CHECKOUT is None:
        return None
    try:
        run = ["git", "-C", str(CHECKOUT)]
        commit = subprocess.check_output([*run, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL)
        dirty = subprocess.check_output([*run, "status", "--porcelain"], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.decode().strip() + ("+changes" if dirty.strip() else "")


def read_summary(run: Path) -> dict[str, Any]:
    """What the `summary.json` of a run folder says; empty where there is none."""
    try:
        found = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_under_way: list[Summary] = []  # of this process's job


class Summary:
    """`summary.json` of a run folder: written when the run begins and when it ends.

    One that says "running" is that of a run which runs, or was killed: `process` on `host`.

    Attributes:
        before: what the run that goes on here has noted; empty for a new one.
    """

    def __init__(self, folder: Path, **facts: Any) -> None:
        self.path = folder / SUMMARY
        self._started = time.time()
        self.before = read_summary(folder)
        self._seconds_before = seconds_of(self.before, folder)
        command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
        self.facts: dict[str, Any] = {
            "status": RUNNING,
            **this_process(),
            "began": round(self._started, 1),  # this process, in seconds since 1970
            "command": self.before.get("command", command),  # the first one
            **({"version": __version__} if CHECKOUT is None else {"git_commit": git_commit()}),
            **facts,
        }

    def keep_complete(self, steps: int) -> bool:
        """Whether the run has ended in order, with the same settings; then what it noted stays.

        Args:
            steps: that are asked for.
        """
        saved = is_checkpoint(self.path.parent / LAST_CHECKPOINT)
        if not saved or not is_complete(self.before, self.facts, steps):
            return False
        said = "Continuing from %s: this run is complete, its %d steps are done"
        log.info(said, self.path.parent, steps)
        self.facts = {**self.before, **self.facts, "status": self.before["status"]}
        return True

    def end(self) -> None:
        """Write it for the last time: as failed where nothing else was said."""
        if self.facts["status"] == RUNNING:
            self.facts["status"] = "failed"
        self.write()

    def write(self) -> None:
        """Replace the file atomically, on rank 0.

        Raises:
            FileError: it could not be written; names the path, the free space and the remedy.
        """
        if global_rank() != 0:
            return
        seconds = time.time() - self._started
        self.facts["seconds"] = round(seconds, 1)  # of this process
        self.facts["seconds_of_all"] = round(self._seconds_before + seconds, 1)
        with replacing(self.path) as file:
            file.write(json.dumps(arranged(self.facts), indent=2, default=str).encode() + b"\n")


def run_job(cfg: DictConfig, work: Callable[[DictConfig, Summary], None]) -> dict[str, Any]:
    """Run a job of Hydra in its folder, with a summary however it ends.

    Args:
        cfg: the composed configuration.
        work: does the job and notes its metrics and its status in `Summary.facts`.

    Returns:
        These facts.

    Raises:
        SystemExit: the job failed, or a signal interrupted it.
        InputError: another process writes to its folder.
    """
    folder = Path(cfg.paths.output_dir)
    if global_rank() != 0:
        logging.getLogger().setLevel(logging.WARNING)  # the first process says what goes well
    with locked(folder) if global_rank() == 0 else nullcontext():  # for all of the run's processes
        return _run_locked(cfg, folder, work)


def _run_locked(
    cfg: DictConfig, folder: Path, work: Callable[[DictConfig, Summary], None]
) -> dict[str, Any]:
    summary = Summary(folder, **of_command(folder), seed=cfg.seed, tags=list(cfg.tags))
    summary.write()
    _under_way[:] = [summary]
    try:
        work(cfg, summary)
        summary.write()
        if global_rank() == 0:  # which knows the time of all continuations
            log.info(ending(summary.facts, folder))
    except KeyboardInterrupt:
        summary.facts["status"] = "interrupted by SIGINT"
        saved = is_checkpoint(folder / LAST_CHECKPOINT) or (folder / JOURNAL).is_dir()
        log.warning(
            "interrupted: %s",
            f"go on with resume={folder}" if saved else "nothing was saved yet, so start again",
        )
    except Exception as error:
        summary.facts["error"] = report_error(error)
        raise SystemExit(1) from error
    finally:
        summary.end()
    if code := exit_code(summary.facts["status"]):
        _pass_on(code - 128)
        raise SystemExit(code)
    return summary.facts


def note_failure(error: str) -> None:
    """Write the summary of the job under way, if any, for a process that is about to be ended.

    Args:
        error: as `report_error` gives it.
    """
    for summary in _under_way:
        summary.facts["error"] = error
        summary.end()


def _pass_on(number: int) -> None:
    """Let whoever launched the run act on its signal too: submitit then requeues the job."""
    if number in REQUEUE_SIGNALS and callable(signal.getsignal(number)):
        signal.raise_signal(number)


def global_rank() -> int:
    """This process's number in the run; before Lightning is loaded, as it will count it."""
    if "lightning" in sys.modules:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        return rank_zero_only.rank or 0
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def exit_code(status: str) -> int:
    """0 for a completed run, 128 + signal number for an interrupted one."""
    if not status.startswith("interrupted by "):
        return 0
    return 128 + signal.Signals[status.rpartition(" ")[2]].value
