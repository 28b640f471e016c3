"""The paper's figure of a run, or of several: reward with the noise beside it, and held-out F1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from zerosearch.core.errors import InputError
from zerosearch.report.charts import evaluations
from zerosearch.report.facts import Measured
from zerosearch.report.figures import COLOURS, DASHES, GREY, MARKERS, label, style
from zerosearch.report.health import firings
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.sweep import mean_of, settings_of, trials_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NOISE = "curriculum/noise_probability"
_SMOOTHED = 5  # steps, where a run has thrice as many
_UNCHANGED = "the experiment as it is"
_LONGEST = 70  # characters of what differs
_MOST_FIRINGS = 4  # that are drawn
_LEAST_RUNS = 3  # of an interval between runs: that of two is wider than the figure
Curve = dict[int, Measured]  # by policy steps completed


def draw_runs(runs: Sequence[RunFolder]) -> Figure:
    """Draw reward and noise per policy step, and F1 of held-out questions.

    Runs that differ in their seed alone have one colour: thin lines are theirs, a bold one is their
    mean. Of a single run F1 is that of each engine, and where a health rule fired there is a line;
    of several F1 is that of the headline's engine. F1 of one time alone is left out.

    Raises:
        InputError: no run has a reward yet, or there are more settings than can be told apart.
    """
    groups = [
        (each.label, [trial.run for trial in each.trials if trial.run is not None])
        for each in settings_of(trials_of([run for run in runs if _curve(run, "reward/total")]))
    ]
    if not groups:
        raise InputError(f"{runs[0].path}: there is no reward in its metrics.csv yet to be drawn")
    most = len(COLOURS) * len(DASHES)
    if len(groups) > most:
        raise InputError(f"{len(groups)} settings are too many for a figure: give at most {most}")
    from matplotlib.figure import Figure

    every = [run for _, group in groups for run in group]
    held_out = [series for run in every for series in evaluations(run, 0, several=True)]
    tested = len({step for series in held_out for step in series["x"]}) > 1
    with style():
        figure = Figure(figsize=(9.0 if tested else 5.2, 3.6), layout="constrained")
        axes = figure.subplots(1, 2 if tested else 1, squeeze=False)[0]
        _reward(axes[0], groups)
        if len(every) == 1:
            _health(axes[0], every[0])
        if tested:
            _held_out(axes[1], groups)
        _legend(figure, axes)
    return figure


def _reward(axis: Axes, groups: Sequence[tuple[str, list[RunFolder]]]) -> None:
    _steps_below(axis, "policy step")
    axis.set_ylabel("reward, mean of a step's trajectories")
    longest = max(len(_curve(run, "reward/total")) for _, group in groups for run in group)
    window = _SMOOTHED if longest >= 3 * _SMOOTHED else 1
    noises = []
    for number, (name, group) in enumerate(groups):
        colour, dashes = _look(number)
        curves = [_curve(run, "reward/total") for run in group]
        if window > 1 or len(curves) > 1:
            for curve in curves:
                axis.plot([*curve], [*curve.values()], color=colour, alpha=0.35, linewidth=0.8)
        mean = _smoothed(_mean(curves), window)
        own = label(name or _UNCHANGED, _LONGEST) if len(groups) > 1 else "reward"
        axis.plot([*mean], [*mean.values()], dashes, color=colour, linewidth=2, label=own)
        noises.append(_mean([_curve(run, _NOISE) for run in group]))
    if min(value for _, group in groups for run in group for value in _rewards(run)) >= 0:
        axis.set_ylim(bottom=0)
    if window > 1:
        axis.set_title(f"bold: mean of {window} steps", color=GREY, fontsize=8, loc="left")
    _noise(axis, noises)


def _health(axis: Axes, run: RunFolder) -> None:
    for number, each in enumerate(firings(run)[:_MOST_FIRINGS]):
        does = "stops the run" if each.action == "stop" else "warns"
        said = f"step {each.first}: {label(each.rule)} {does}"
        axis.axvline(each.first, color="black", dashes=(8 - 2 * number, 2), label=label(said))


def _noise(axis: Axes, noises: Sequence[dict[int, float]]) -> None:
    """On an axis of its own: once where all runs have the same."""
    known = [(number, noise) for number, noise in enumerate(noises) if any(noise.values())]
    if not known:
        return
    right = axis.twinx()
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    right.set_ylim(0, 1)
    right.set_ylabel("noise probability of a search (dotted)")
    longest = max((noise for _, noise in known), key=len)
    same = len(known) == len(noises) and all(n.items() <= longest.items() for _, n in known)
    for number, noise in [(0, longest)] if same else known:
        colour = GREY if same else _look(number)[0]
        right.plot([*noise], [*noise.values()], ":", color=colour, linewidth=1.6)
    axis.plot([], [], ":", color=GREY, linewidth=1.6, label="noise probability (right)")


def _held_out(axis: Axes, groups: Sequence[tuple[str, list[RunFolder]]]) -> None:
    _steps_below(axis, "policy steps completed")
    for number, (_, group) in enumerate(groups):
        found = [evaluations(run, 0, several=len(groups) > 1) for run in group]
        names = dict.fromkeys(series["label"] for run in found for series in run)
        for hue, name in enumerate(dict.fromkeys(each.partition(", ")[0] for each in names)):
            colour, dashes = _look(number if len(groups) > 1 else hue)
            for kind, marker in (("validation", ""), ("test", "D")):
                curves = [
                    _evaluated(series)
                    for run in found
                    for series in run
                    if series["label"] == f"{name}, {kind}"
                ]
                if curves:
                    own = f"{label(name)}, {kind}" if len(groups) == 1 else None
                    _points(axis, curves, colour, dashes if not marker else "", marker, own)
    engines = {
        s["label"].partition(", ")[0] for _, g in groups for s in evaluations(g[0], 0, several=True)
    }
    engine = f", {label(engines.pop())}" if len(groups) > 1 and len(engines) == 1 else ""
    axis.set_ylabel(f"F1 of held-out questions{engine}")
    axis.set_ylim(bottom=0)
    wide = any(1 < len(group) < _LEAST_RUNS for _, group in groups)
    bars = "thin: single runs" if wide else "95% intervals"
    shown = f"{bars}; diamonds: test questions before and after"
    axis.set_title(shown, color=GREY, fontsize=8, loc="left")


def _points(
    axis: Axes,
    curves: Sequence[Curve],
    colour: str,
    dashes: str,
    marker: str,
    name: str | None,
) -> None:
    """Of one run with its own intervals, of several their mean with that between them; of two there
    is none, and both are drawn.
    """
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    if len(curves) == 1:
        found = [curves[0][step] for step in steps]
    else:
        found = [mean_of([curve[step].value for curve in curves], (0.0, 1.0)) for step in steps]
    values = [each.value for each in found]
    few = 1 < len(curves) < _LEAST_RUNS
    for curve in curves if few else []:
        single = [curve[step].value for step in steps]
        look = {"linestyle": dashes or "none", "marker": marker or MARKERS[0], "markersize": 3}
        axis.plot(steps, single, color=colour, alpha=0.35, linewidth=0.8, **look)
    ends = [
        [each.value - each.low if each.low is not None else 0.0 for each in found],
        [each.high - each.value if each.high is not None else 0.0 for each in found],
    ]
    ends = [[max(0.0, size) for size in side] for side in ends]
    axis.errorbar(
        steps,
        values,
        None if few else ends,
        color=colour,
        linestyle=dashes or "none",
        marker=marker or MARKERS[0],
        markersize=6 if marker else 4,
        elinewidth=1,
        capsize=2.5,
        label=name,
    )


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    pairs = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    longest = max(len(word) for _, word in pairs)
    columns = 1 if longest > 44 else 2 if longest > 30 else 4
    figure.legend(
        [handle for handle, _ in pairs],
        [word for _, word in pairs],
        loc="outside upper center",
        ncols=min(columns, len(pairs)),
    )


def _steps_below(axis: Axes, words: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel(words)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _look(number: int) -> tuple[str, str]:
    """Colour and dashes of one among several."""
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def _curve(run: RunFolder, metric: str) -> dict[int, float]:
    return {x: y for x, y in zip(run.steps, run.column(metric), strict=True) if y is not None}


def _rewards(run: RunFolder) -> Iterable[float]:
    return _curve(run, "reward/total").values()


def _mean(curves: Sequence[dict[int, float]]) -> dict[int, float]:
    """Of the steps that all have."""
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return {step: sum(curve[step] for curve in curves) / len(curves) for step in steps}


def _smoothed(curve: dict[int, float], window: int) -> dict[int, float]:
    """The mean of each step and its neighbours, fewer at the ends."""
    steps, values, half = [*curve], [*curve.values()], window // 2
    parts = [values[max(0, n - half) : n + half + 1] for n in range(len(values))]
    return {step: sum(part) / len(part) for step, part in zip(steps, parts, strict=True)}


def _evaluated(series: dict[str, list[float]]) -> Curve:
    rows = zip(series["x"], series["y"], series["low"], series["high"], strict=True)
    return {int(x): Measured(value=y, low=low, high=high) for x, y, low, high in rows}
