"""What a run has left in its folder, read as data: numbers, settings, how it ended."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from zerosearch.core.errors import InputError
from zerosearch.core.metrics_file import METRICS_FILE, STEP, Row, read_rows
from zerosearch.core.outcome import choices_first
from zerosearch.core.runs import LATEST, PROJECT_ROOT, SUMMARY, read_summary
from zerosearch.core.sweep_folder import is_sweep_folder, jobs_of_sweep

TRANSCRIPTS = "transcripts"  # in a run folder
_LEFT_BY_A_RUN = (SUMMARY, METRICS_FILE, TRANSCRIPTS)
_OF_THE_MACHINE = ("hydra.", "hydra/", "threads=", "resume=", "paths.")  # say nothing of a method
_TIME = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+\]")  # of a line of the log
_BEGUN_AGAIN = ("Continuing from ", "has no checkpoint yet")  # what core.runs says then


@dataclass(kw_only=True, slots=True)
class RunFolder:
    """One run: `rows` of `metrics.csv`, one for each policy step, in order."""

    path: Path
    name: str  # by which a reader tells it from the others
    summary: dict[str, Any]
    rows: list[Row]
    config: dict[str, Any]  # as it was composed; empty where it was not kept
    overrides: list[str]  # of the command line, without those of Hydra and of the machine
    differing: dict[str, str]  # those in which the runs of the page differ, by key

    @property
    def steps(self) -> list[int]:
        """Policy steps completed, row by row."""
        return [int(row[STEP]) + 1 for row in self.rows]

    @property
    def metrics(self) -> list[str]:
        """Names of all columns of `metrics.csv`."""
        return [name for name in (self.rows[0] if self.rows else {}) if name != STEP]

    def column(self, metric: str) -> list[float | None]:
        """A metric, row by row; None where a step has none, or none that is finite."""
        return [number(row.get(metric)) for row in self.rows]

    def final(self, metric: str) -> float | None:
        """A metric of `summary.json`, or else the last one of `metrics.csv`."""
        found = number(self.summary.get(metric))
        if found is not None:
            return found
        return next((value for value in reversed(self.column(metric)) if value is not None), None)

    def mean(self, metric: str, *, last: int) -> float | None:
        """Average of a metric over the last policy steps that have it."""
        values = [value for value in self.column(metric) if value is not None][-last:]
        return sum(values) / len(values) if values else None

    @property
    def seconds(self) -> float | None:
        """Time of all continuations together, without the time between them.

        `summary.json` knows the last one, the log also those before.
        """
        own = number(self.summary.get("seconds"))
        spans = [_span(part) for part in _continuations(self.path.glob("*.log"))]
        if not spans:
            return own
        return sum(spans[:-1]) + max(spans[-1], own or 0.0)


def number(value: Any) -> float | None:
    """A finite number, also from text; None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def find_runs(places: Sequence[str]) -> list[RunFolder]:
    """The runs that are meant.

    Args:
        places: run folders, sweeps of them, or `latest`, the newest run of `zerosearch train`.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    folders = [folder for place in places for folder in _runs_at(place)]
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    _name_apart(runs)
    return runs


def _runs_at(place: str) -> list[Path]:
    path = PROJECT_ROOT / "logs" / "train" / LATEST if place == LATEST else Path(place)
    if not path.is_dir():
        remedy = "train one first (`zerosearch train`), or name" if place == LATEST else "give"
        raise InputError(
            f"{place}: there is no folder {path}; {remedy} a run of logs/train/runs, or a sweep of "
            "logs/train/multiruns"
        )
    if _is_run(path):
        return [path.resolve()]
    sweep = is_sweep_folder(path)
    inside = [job.folder for job in jobs_of_sweep(path)] if sweep else sorted(path.iterdir())
    runs = [folder.resolve() for folder in inside if folder.is_dir() and _is_run(folder)]
    if not runs:
        raise InputError(
            f"{place} is neither a run (it has none of {', '.join(_LEFT_BY_A_RUN)}) nor a folder "
            "of runs: give a folder of logs/train/runs, or a sweep of logs/train/multiruns"
        )
    return runs


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _LEFT_BY_A_RUN)


def read_run(folder: Path) -> RunFolder:
    """A run by its folder, named after that."""
    metrics = folder / METRICS_FILE
    said = _yaml(folder / ".hydra" / "overrides.yaml")
    config = _yaml(folder / ".hydra" / "config.yaml")
    return RunFolder(
        path=folder,
        name=folder.name,
        summary=read_summary(folder),
        rows=read_rows(metrics) if metrics.is_file() else [],
        config=config if isinstance(config, dict) else {},
        overrides=[
            str(item)
            for item in (said if isinstance(said, list) else [])
            if not str(item).lstrip("+~").startswith(_OF_THE_MACHINE)
        ],
        differing={},
    )


def _yaml(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML; restore it, or move it away: {error}") from error


def _name_apart(runs: list[RunFolder]) -> None:
    """Name runs by the overrides in which they differ; a lone one keeps the name of its folder."""
    given: list[dict[str, str]] = [
        {key: value for key, _, value in (item.partition("=") for item in run.overrides)}
        for run in runs
    ]
    keys = dict.fromkeys(key for one in given for key in one)
    kept = choices_first(key for key in keys if len({one.get(key) for one in given}) > 1)
    for run, one in zip(runs, given, strict=True):
        run.differing = {key: one.get(key, "") for key in kept}
        if kept:
            run.name = " ".join(f"{key}={one[key]}" for key in kept if key in one) or run.name
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:  # the same once more, or in different sweeps
            run.name = f"{run.name} ({run.path.parent.name}/{run.path.name})"


def _continuations(logs: Iterable[Path]) -> list[list[datetime]]:
    """Times of the lines of each process that worked on the run, in order."""
    parts: list[list[datetime]] = []
    for line in (line for file in sorted(logs) for line in file.open(errors="replace")):
        if time := _TIME.match(line):
            if not parts or any(words in line for words in _BEGUN_AGAIN):
                parts.append([])
            parts[-1].append(datetime.fromisoformat(time[1]))
    return parts


def _span(times: list[datetime]) -> float:
    return (times[-1] - times[0]).total_seconds()
