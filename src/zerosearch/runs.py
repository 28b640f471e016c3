"""Run folders: resuming in place, the link to the latest run, the summary at the end.

Light on imports: it is loaded before the command line is parsed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

PROJECT_ROOT = Path(__file__).resolve().parents[2]


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
    if folder.is_file():
        return arguments
    saved_file = folder / ".hydra" / "overrides.yaml"
    if not saved_file.is_file():
        raise ValueError(
            f"resume={given[-1]} is neither a checkpoint file nor a run folder (it has no "
            ".hydra/overrides.yaml): give logs/train/latest, a folder of logs/train/runs or a .ckpt"
        )
    folder = folder.resolve()
    taken = {_key(item) for item in arguments}
    saved = [item for item in yaml.safe_load(saved_file.read_text()) or []]
    kept = [item for item in saved if _key(item) not in taken]
    return [*kept, *arguments, f"hydra.run.dir='{folder}'"]


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def find_checkpoint(resume: str | None) -> Path | None:
    """The checkpoint that `resume` names: the file itself, or the last one of a run folder.

    Raises:
        ValueError: the run folder has no checkpoint.
    """
    if resume is None:
        return None
    path = Path(resume)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
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
        """The run in one line: status, headline F1 before and after, where to look."""
        f1 = [
            f"{name} {self.facts[name]:.3f}"
            for name in ("start/f1", "test/f1")
            if name in self.facts
        ]
        return f"{self.facts['status']}: {', '.join(f1) or 'not evaluated'}; see {self.path.parent}"

    def write(self) -> None:
        """Replace the file atomically, on rank 0."""
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        if rank_zero_only.rank != 0:
            return
        self.facts["seconds"] = round(time.time() - self._started, 1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.facts, indent=2, default=str) + "\n")
        os.replace(temporary, self.path)
