"""Run folders: resuming in place, the link to the latest run, the summary at the end.

Light on imports: it is loaded before the command line is parsed.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zerosearch import run_names
from zerosearch.endings import report_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

log = logging.getLogger(__name__)

PROJECT_ROOT = Path(__file__).resolve().parents[2]
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"  # in a run folder
PROMPT_FILE = "prompt.j2"  # in the folder of a simulator that was tuned here
REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # of SLURM and submitit, before time is up

run_names.register()  # before Hydra composes anything


def expand_resume(arguments: list[str]) -> list[str]:
    """Turn `resume=<run folder>` into the saved overrides of that run, in that folder.

    Overrides given again on the command line win. A checkpoint file is left as it is: it starts a
    new run folder.

    Raises:
        ValueError: nothing to resume there.
    """
    given = [item.removeprefix("resume=") for item in arguments if item.startswith("resume=")]
    if not given or given[-1] in ("null", ""):
        return arguments
    folder = Path(given[-1])
    if is_checkpoint(folder):
        return arguments
    saved_file = folder / ".hydra" / "overrides.yaml"
    if not saved_file.is_file():
        raise ValueError(
            f"resume={given[-1]} is neither a checkpoint file nor a run folder (it has no "
            ".hydra/overrides.yaml): give logs/train/latest, a folder of logs/train/runs or a .ckpt"
        )
    saved = yaml.safe_load(saved_file.read_text())
    if saved is None:
        raise ValueError(f"resume={given[-1]}: {saved_file} is empty; give a .ckpt of that run")
    folder = folder.resolve()
    taken = {_key(item) for item in arguments}
    kept = [item for item in saved if _key(item) not in taken]
    return [*kept, *arguments, f"hydra.run.dir='{folder}'"]


def expand_simulator(arguments: list[str]) -> list[str]:
    """Turn `simulator=<folder of a tuned simulator>` into the choice that uses such folders."""
    expanded = []
    for item in arguments:
        value = item.removeprefix("simulator=")
        if item != value and (Path(value) / PROMPT_FILE).is_file():
            expanded += ["simulator=exported", f"simulator.folder='{value}'"]
        else:
            expanded.append(item)
    return expanded


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


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
        ValueError: there is none where `resume` says.
    """
    own = run_folder / LAST_CHECKPOINT
    if is_checkpoint(own):
        log.info("Continuing from %s", own)
        return own
    if resume is None:
        return None
    path = Path(resume)
    if path.is_dir() and not is_checkpoint(path):
        path = path / LAST_CHECKPOINT
    if not is_checkpoint(path):
        raise ValueError(f"resume={resume}: there is no checkpoint {path}; start without resume=")
    return path


def link_latest(run_folder: Path, task_folder: Path) -> None:
    """Point `<task folder>/latest` at a run, atomically."""
    task_folder.mkdir(parents=True, exist_ok=True)
    temporary = task_folder / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(run_folder, task_folder), target_is_directory=True)
    os.replace(temporary, task_folder / "latest")


def git_commit() -> str | None:
    """Commit of the checkout, with "+changes" where files differ from it; None outside git."""
    try:
        run = ["git", "-C", str(PROJECT_ROOT)]
        commit = subprocess.check_output([*run, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL)
        dirty = subprocess.check_output([*run, "status", "--porcelain"], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.decode().strip() + ("+changes" if dirty.strip() else "")


class Summary:
    """`summary.json` of a run folder: written when the run ends, however it ends."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        self.path = folder / "summary.json"
        self._started = time.time()
        self.facts: dict[str, Any] = {
            "status": "failed",
            "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "git_commit": git_commit(),
            **facts,
        }

    def headline(self) -> str:
        """The run in one line: status, headline before and after, where to look."""
        names = ("start/f1", "test/f1", "start/loss", "test/loss")  # of a policy, of a simulator
        shown = [f"{name} {self.facts[name]:.3f}" for name in names if name in self.facts]
        said = ", ".join(shown) or "not evaluated"
        return f"{self.facts['status']}: {said}; see {self.path.parent}"

    def write(self) -> None:
        """Replace the file atomically, on rank 0."""
        if _rank() != 0:
            return
        self.facts["seconds"] = round(time.time() - self._started, 1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.facts, indent=2, default=str) + "\n")
        os.replace(temporary, self.path)


def check_early(cfg: DictConfig, *checks: Callable[[DictConfig], None]) -> None:
    """Check a job before anything heavy is imported; a refusal is kept in its run folder.

    Raises:
        SystemExit: one of the checks raised a ValueError, which was shown.
    """
    try:
        for check in checks:
            check(cfg)
    except ValueError as error:
        summary = Summary(Path(cfg.paths.output_dir), seed=cfg.seed, tags=list(cfg.tags))
        summary.facts["error"] = report_error(error)
        summary.write()
        raise SystemExit(1) from error


def _rank() -> int:
    """This process's rank, from Lightning where it is loaded, else from what launchers set."""
    if "lightning" in sys.modules:  # not for this: it takes seconds to load
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        return rank_zero_only.rank or 0
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def run_job(cfg: DictConfig, work: Callable[[DictConfig, Summary], None]) -> dict[str, Any]:
    """Run a job of Hydra in its folder, with a summary however it ends.

    Args:
        cfg: the composed configuration.
        work: does the job and notes its metrics and its status in `Summary.facts`.

    Returns:
        These facts.

    Raises:
        SystemExit: the job failed, or a signal interrupted it.
    """
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    folder = Path(cfg.paths.output_dir)
    if rank_zero_only.rank == 0:
        link_latest(folder, Path(cfg.paths.log_dir) / cfg.task_name)
    else:
        logging.getLogger().setLevel(logging.WARNING)  # the first process says what goes well
    summary = Summary(folder, seed=cfg.seed, tags=list(cfg.tags))
    try:
        work(cfg, summary)
        log.info(summary.headline())
    except KeyboardInterrupt:
        summary.facts["status"] = "interrupted by SIGINT"
        log.warning("interrupted: go on with resume=%s", folder)
    except Exception as error:
        summary.facts["error"] = report_error(error)
        raise SystemExit(1) from error
    finally:
        summary.write()
    if code := exit_code(summary.facts["status"]):
        _pass_on(code - 128)
        raise SystemExit(code)
    return summary.facts


def _pass_on(number: int) -> None:
    """Let whoever launched the run act on its signal too: submitit then requeues the job."""
    if number in REQUEUE_SIGNALS and callable(signal.getsignal(number)):
        signal.raise_signal(number)


def exit_code(status: str) -> int:
    """0 for a completed run, 128 + signal number for an interrupted one."""
    if not status.startswith("interrupted by "):
        return 0
    return 128 + signal.Signals[status.rpartition(" ")[2]].value
