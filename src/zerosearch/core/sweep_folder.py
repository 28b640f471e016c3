"""The jobs of a sweep, as its folder shows them: which there are to be, and what became of each.

Light on imports, as `zerosearch.core.runs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.run_lock import check_unlocked
from zerosearch.core.runs import RUNNING, read_summary

JOBS = "jobs.json"  # in the folder of a sweep: its jobs in their order, written before the first
COMMAND = "sweep.yaml"  # there: the words that made it
COMPLETED, FAILED, INTERRUPTED, NOT_STARTED = "completed", "failed", "interrupted", "not started"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepJob:
    """One job of a sweep.

    Attributes:
        folder: its run folder; need not exist yet.
        overrides: that make it, without those of Hydra.
        differs: the keys that the sweep goes over, with this job's values.
        state: completed, failed, interrupted (told to stop or killed), running or not started. One
            that a budget has stopped is completed: it has nothing left to do.
        said: of a failed one the error, of an interrupted or stopped one how it ended.
        summary: its `summary.json`; empty where it has none.
    """

    folder: Path
    overrides: list[str]
    differs: dict[str, str]
    state: str
    said: str | None
    summary: dict[str, Any]


def is_sweep_folder(folder: Path) -> bool:
    """Whether a folder is that of a sweep, as opposed to a run."""
    return (folder / JOBS).is_file() or (folder / "multirun.yaml").is_file()


def name_a_run(folder: Path) -> str:
    """What is said of a sweep's folder where a run is wanted."""
    runs = [path for path in folder.iterdir() if (path / ".hydra").is_dir()]
    if not runs:
        return "is a sweep, of which no run has begun"
    return f"is a sweep: name one of its runs, such as {min(runs)}"


def jobs_of_sweep(folder: Path) -> list[SweepJob]:
    """The jobs of a sweep in their order, those never begun included.

    A sweep of an earlier version has no list: its jobs are the run folders that there are.

    Raises:
        InputError: its list cannot be read.
    """
    return [
        read_job(folder / each["folder"], each["overrides"], each["differs"])
        for each in _list(folder)
    ]


def read_job(folder: Path, overrides: list[str], differs: dict[str, str]) -> SweepJob:
    """A job and its state; the arguments are those of `SweepJob`."""
    facts = read_summary(folder)
    status = str(facts.get("status", ""))
    state, said = FAILED, facts.get("error") or status or None
    if not facts:
        state, said = NOT_STARTED, None
    elif status == COMPLETED or status.startswith("stopped: "):
        state, said = COMPLETED, status.removeprefix(COMPLETED) or None
    elif status.startswith(INTERRUPTED):
        state = INTERRUPTED
    elif status == RUNNING:
        state, said = (RUNNING, None) if _is_held(folder) else (INTERRUPTED, "it was killed")
    return SweepJob(
        folder=folder,
        overrides=overrides,
        differs=differs,
        state=state,
        said=said,
        summary=facts,
    )


def plan_jobs(folder: Path, jobs: Iterable[SweepJob]) -> int:
    """Note which jobs a sweep is to have; earlier ones that have begun stay in the list.

    Args:
        folder: of the sweep.
        jobs: in folders of it.

    Returns:
        How many jobs the list has, those of earlier commands included.
    """
    new = {
        job.folder.name: {
            "folder": job.folder.name,
            "overrides": job.overrides,
            "differs": job.differs,
        }
        for job in jobs
    }
    old = {each["folder"]: each for each in _list(folder)} if is_sweep_folder(folder) else {}
    kept = {name: each for name, each in old.items() if name in new or (folder / name).is_dir()}
    listed = [*(kept | new).values()]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / JOBS) as file:
        file.write(json.dumps(listed, indent=1).encode() + b"\n")
    return len(listed)


def _list(folder: Path) -> list[dict[str, Any]]:
    if not (folder / JOBS).is_file():
        return _found(folder)
    try:
        listed = json.loads((folder / JOBS).read_text(encoding="utf-8"))
        for each in listed:
            name = Path(each["folder"])
            if len(name.parts) != 1 or name.is_absolute() or ".." in name.parts:
                raise InputError(f"{name} is no name of a folder")
            list(each["overrides"])
            dict(each["differs"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / JOBS} is damaged ({error}): restore it or remove it"
        ) from error
    return listed


def _found(folder: Path) -> list[dict[str, Any]]:
    """What a list would say, of the run folders in a sweep's folder."""
    runs = [path for path in folder.iterdir() if (path / ".hydra" / "overrides.yaml").is_file()]
    runs.sort(key=lambda run: (not run.name.isdigit(), run.name.zfill(9)))
    saved = [yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text()) or [] for run in runs]
    given = [dict(item.partition("=")[::2] for item in each) for each in saved]
    keys = dict.fromkeys(key for each in given for key in each)
    swept = [key for key in keys if len({each.get(key) for each in given}) > 1]
    return [
        {
            "folder": run.name,
            "overrides": overrides,
            "differs": {key: each[key] for key in swept if key in each},
        }
        for run, overrides, each in zip(runs, saved, given, strict=True)
    ]


def _is_held(folder: Path) -> bool:
    try:
        check_unlocked(folder)
    except InputError:
        return True
    return False
