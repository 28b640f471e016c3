"""The final numbers of a sweep as text: a table, a page of Markdown, CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from zerosearch.core.runs import RUNNING
from zerosearch.core.shown import write_csv
from zerosearch.core.sweep_folder import COMPLETED, FAILED, INTERRUPTED, NOT_STARTED
from zerosearch.core.tables import Cells, as_markdown, markdown
from zerosearch.report.facts import Measured
from zerosearch.report.sweep import INTERVALS, Measure, Setting, Trial, measures_of, settings_of
from zerosearch.report.sweep_figure import CAPTION

_STATES = (COMPLETED, "stopped", FAILED, INTERRUPTED, RUNNING, NOT_STARTED)


def count(trials: Sequence[Trial]) -> str:
    """How many jobs there are, and what became of them."""
    states = [
        COMPLETED if t.finished else "stopped" if t.job.state == COMPLETED else t.job.state
        for t in trials
    ]
    parts = [f"{states.count(state)} {state}" for state in _STATES if state in states]
    return f"{len(trials)} jobs: {', '.join(parts)}"


def not_finished(trials: Sequence[Trial]) -> list[str]:
    """A line for each job whose numbers do not count, with what it said."""
    return [f"{_what(each)}: {_ending(each)}" for each in trials if not each.finished]


def _ending(trial: Trial) -> str:
    """Its state and what it said, which may begin with the state."""
    state, said = trial.job.state, trial.job.said or ""
    return said if said.startswith(state) else f"{state}, {said}" if said else state


def _what(trial: Trial) -> str:
    values = " ".join(f"{key}={value}" for key, value in trial.job.differs.items())
    return values or trial.job.folder.name


def table(
    settings: Sequence[Setting], measures: Sequence[Measure], *, short: bool = False
) -> Cells:
    """A row per setting: its values, number of seeds, means with intervals.

    Args:
        settings: in order.
        measures: of them.
        short: for a terminal, with the interval of the first measure alone.
    """
    keys = [*(settings[0].values if settings else {})]
    headings = [each.heading.partition(",")[0] if short else each.heading for each in measures]
    rows = [
        [
            *each.values.values(),
            _seeds(each),
            *(
                _text(each.estimate(measure), measure.form, interval=number == 0 or not short)
                for number, measure in enumerate(measures)
            ),
        ]
        for each in settings
    ]
    return [[*keys, "seeds", *headings], *rows]


def _seeds(setting: Setting) -> str:
    finished, planned = len(setting.finished), setting.planned
    return str(finished) if finished == planned else f"{finished} of {planned}"


def _text(found: Measured | None, form: str, *, interval: bool) -> str:
    if found is None:
        return ""
    text = format(found.value, form)
    if interval and found.low is not None and found.high is not None:
        text += f" [{format(found.low, form)}, {format(found.high, form)}]"
    return text


def as_page(title: str, trials: Sequence[Trial], picture: str | None) -> str:
    """The page `sweep.md`.

    Args:
        title: of it.
        trials: of the sweep.
        picture: name of the figure's file, if there is one.
    """
    parts = [f"# {markdown(title)}\n\n{count(trials)}.\n"]
    common = _common(trials)
    if common:
        parts.append("In all of them:\n\n" + as_markdown([["key", "value"], *common]))
    settings = settings_of(trials)
    measures = measures_of(settings)
    if measures:
        parts.append(f"## Results\n\n{as_markdown(table(settings, measures))}\n{INTERVALS}\n")
    if picture:
        parts.append(f"![final metrics by what was swept]({picture})\n\n{CAPTION}\n")
    missing = [[_what(t), t.job.state, t.job.said or ""] for t in trials if not t.finished]
    if missing:
        cells = [["job", "state", "what it said"], *missing]
        parts.append(f"## Not completed\n\n{as_markdown(cells)}")
    return "\n".join(parts)


def _common(trials: Sequence[Trial]) -> Cells:
    """Keys that all jobs were given with the same value."""
    overrides = [{*each.job.overrides} for each in trials]
    first = trials[0].job.overrides if trials else []
    return [[*item.partition("=")[::2]] for item in first if all(item in o for o in overrides)]


def as_csv(trials: Sequence[Trial]) -> str:
    """A line per setting: values, number of seeds, what is missing, unrounded means and bounds."""
    settings = settings_of(trials)
    file = io.StringIO()
    write_csv(file, [_row(each, measures_of(settings)) for each in settings])
    return file.getvalue()


def _row(setting: Setting, measures: Sequence[Measure]) -> dict[str, Any]:
    numbers: dict[str, float | None] = {}
    for measure in measures:
        found = setting.estimate(measure)
        numbers[measure.name] = None if found is None else found.value
        if measure.sampled:
            numbers[f"{measure.name}_low"] = None if found is None else found.low
            numbers[f"{measure.name}_high"] = None if found is None else found.high
    finished = len(setting.finished)
    interval = "seeds" if finished > 1 else "test questions" if finished else ""
    missing = "; ".join(not_finished(setting.trials))
    own = {"seeds": finished, "interval_over": interval, "not_completed": missing}
    return {**setting.values, **own, **numbers}
