"""The numbers and settings that a page begins with, as rows of text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zerosearch.core.runs import RUNNING
from zerosearch.report.run_folder import RunFolder, number

LAST_STEPS = 5  # that are averaged where a single step says little
_TESTED = re.compile(r"^(?:start|test)/([^/]+)/f1$")
_CHOICES = {  # what a run is made of: label -> configuration group
    "model": "model",
    "algorithm": "algorithm",
    "search engine": "search",
    "simulator": "simulator",
    "curriculum": "curriculum",
    "questions": "data",
    "generator": "generator",
}


@dataclass(kw_only=True, slots=True, frozen=True)
class Measured:
    """A share with its 95% interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(kw_only=True, slots=True, frozen=True)
class EngineScores:
    """F1 of the test questions with one engine, before and after training."""

    engine: str
    questions: int | None
    before: Measured | None
    after: Measured | None
    exact_match: Measured | None  # after


def engine_scores(run: RunFolder) -> list[EngineScores]:
    """By engine; the headline evaluation is the first."""
    engines = dict.fromkeys(
        found[1] for name in run.summary if (found := _TESTED.match(name)) is not None
    )
    return [
        EngineScores(
            engine=engine,
            questions=next(
                (int(n) for p in ("test", "start") if (n := _count(run, p, engine))), None
            ),
            before=tested(run, f"start/{engine}/f1"),
            after=tested(run, f"test/{engine}/f1"),
            exact_match=tested(run, f"test/{engine}/em"),
        )
        for engine in engines
    ]


def _count(run: RunFolder, phase: str, engine: str) -> float | None:
    return number(run.summary.get(f"{phase}/{engine}/count"))


def tested(run: RunFolder, name: str) -> Measured | None:
    """A number of `summary.json` with its interval."""
    value, low, high = (number(run.summary.get(name + end)) for end in ("", "_low", "_high"))
    return None if value is None else Measured(value=value, low=low, high=high)


def status(run: RunFolder) -> str:
    """How the run ended, in words; with the sentence of its error where it has one."""
    said = str(run.summary.get("status", "no summary.json"))
    if said == RUNNING:
        said = "running, or killed"
    error = run.summary.get("error")
    return f"{said}: {error}" if error else said


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """Label and value: what was run, how long it took, what it cost, how it goes on."""
    known: list[tuple[str, Any]] = [
        ("policy steps", _steps(run)),
        ("time of all continuations", duration(run.seconds)),
        ("cost", _cost(run)),
        ("loss of replies", _loss(run)),
        *((label, run.summary.get("choices", {}).get(key)) for label, key in _CHOICES.items()),
        ("per step", _per_step(run)),
        ("differs from the experiment in", ", ".join(run.overrides) or "nothing"),
        ("seed", run.summary.get("seed")),
        ("experiment", run.summary.get("choices", {}).get("experiment")),
        ("commit", run.summary.get("git_commit")),
        ("version", run.summary.get("version")),
        ("command", run.summary.get("command")),
        ("goes on with", _goes_on(run)),
        ("folder", run.path),
        ("machine", run.summary.get("host")),
    ]
    return [(label, str(value)) for label, value in known if value not in (None, "")]


def _steps(run: RunFolder) -> str | None:
    total = run.config.get("policy_steps")
    return f"{max(run.steps, default=0)} of {total}" if total else str(len(run.rows) or "") or None


def _per_step(run: RunFolder) -> str | None:
    questions = run.config.get("questions_per_step")
    group = (run.config.get("algorithm") or {}).get("group_size")
    return f"{questions} questions x {group} trajectories" if questions and group else None


def _cost(run: RunFolder) -> str | None:
    usd, searches = run.final("cost/usd"), run.final("cost/searches")
    if searches is None:
        return None
    tokens = run.final("cost/tokens") or 0
    return f"${usd or 0:,.2f}, {searches:,.0f} searches, {tokens:,.0f} tokens of language models"


def _loss(run: RunFolder) -> str | None:
    """Of a simulator that was tuned."""
    before, after = (number(run.summary.get(f"{phase}/loss")) for phase in ("start", "test"))
    return None if after is None else f"{_share(before) or '-'} before, {after:.3f} after"


def _goes_on(run: RunFolder) -> str | None:
    if run.summary.get("status") == "completed" or not (run.path / "checkpoints").is_dir():
        return None
    return f"zerosearch train resume={shlex.quote(str(run.path))}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str | None:
    """Seconds in words: "1 h 03 min", "2 min 05 s", "8 s"."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def fidelity(run: RunFolder) -> list[tuple[str, ...]]:
    """Rows on how well the simulator delivered: what was asked for, and the share with an answer.

    Columns: asked for, before training, in the first and in the last steps of training, ideal.
    """
    rows = []
    for quality, ideal in (("useful", "1"), ("noisy", "0")):
        values = [value for value in run.column(f"search/answer_in_{quality}") if value is not None]
        checked = number(run.summary.get(f"simulator_check/answer_in_{quality}"))
        if values or checked is not None:
            parts = [values[:LAST_STEPS], values[-LAST_STEPS:]]
            shown = [_share(sum(part) / len(part) if part else None) for part in parts]
            rows.append((f"{quality} documents", _share(checked), *shown, ideal))
    return rows


# -- several runs ---------------------------------------------------------------------------------

SCORES = ("F1 before", "F1 after", f"reward, last {LAST_STEPS} steps", "searches", "time", "cost")


def comparison(runs: Sequence[RunFolder]) -> tuple[list[str], list[list[str]]]:
    """A table with a row for each run: header and rows, what differs first."""
    keys = list(runs[0].differing)
    header = [*keys, "run", "status", *SCORES]
    return header, [
        [*(run.differing[key] for key in keys), run.path.name, status(run), *_scores(run)]
        for run in runs
    ]


def _scores(run: RunFolder) -> list[str]:
    first = next(iter(engine_scores(run)), None)
    usd = run.final("cost/usd")
    return [
        str((first and first.before) or ""),
        str((first and first.after) or ""),
        _share(run.mean("reward/total", last=LAST_STEPS)),
        _share(run.mean("rollout/searches", last=LAST_STEPS)),
        duration(run.seconds) or "",
        "" if usd is None else f"${usd:,.2f}",
    ]
