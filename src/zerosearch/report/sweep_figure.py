"""The figure of a sweep: final metrics by what was swept, with intervals and single seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerosearch.report.figures import COLOURS, GREY, MARKERS, label, style
from zerosearch.report.sweep import Measure, Setting, all_numbers, measures_of, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Bars or lines: means over seeds; white dots: single seeds; whiskers: the 95% intervals of the "
    "table; dashed: before training."
)
_ENGINES = 2  # whose F1 is drawn
_OTHERS = ("test/loss", "reward/total", "rollout/searches")  # further panels
_MOST_BARS = 12  # values of what is no number
_MOST_ROWS = 20  # of a list
_MOST_TICKS = 6
_BEFORE, _MISSING = "before training", "no run completed"  # in the legend
_WIDE = 50.0  # ratio of numbers from which their axis is logarithmic


@dataclass(kw_only=True, slots=True, frozen=True)
class _Layout:
    """Which key is the axis; the others are told apart by colour, in words."""

    axis: str
    values: list[str]  # of it
    colours: list[str]  # one word for each colour
    title: str  # keys of the colours

    def place(self, setting: Setting) -> tuple[int, int]:
        """Number of its value on the axis, and of its colour."""
        value = setting.values.get(self.axis, "")
        return self.values.index(value), self.colours.index(_others(setting, self.axis))

    def shifted(self, value: str, colour: int) -> float:
        """A number, moved a little so that curves do not hide one another's intervals."""
        numbers = [float(each) for each in self.values]
        part = 0.015 * (colour - (len(self.colours) - 1) / 2)
        if _is_wide(numbers):
            return float(value) * (max(numbers) / min(numbers)) ** part
        return float(value) + part * (max(numbers) - min(numbers))

    @property
    def wide(self) -> float:
        """Inches of a panel: room for bars and words, within the width of a page."""
        words = max(len(label(value)) for value in self.values) * len(self.values)
        bars = 0 if self.is_line else 0.4 * len(self.values) * len(self.colours)
        return min(5.5, max(3.3, bars, 0 if self.is_line else 0.8 + 0.078 * words))

    @property
    def is_line(self) -> bool:
        return len(self.values) > 1 and all_numbers(self.values)

    @property
    def fits(self) -> bool:
        """Whether people can still tell it all apart."""
        few = self.is_line or len(self.values) <= _MOST_BARS
        return few and len(self.colours) <= len(COLOURS)


def draw_sweep(settings: Sequence[Setting]) -> Figure | None:
    """Draw a panel for each of the main metrics; None where no run has finished.

    A numeric key is an axis with lines, any other one gives bars; a second key, or all further ones
    together, is a colour. What has more values than that can show is a list, the best first.
    """
    measures = _panels(measures_of(settings))
    if not measures:
        return None
    from matplotlib.figure import Figure

    layout = _layout(settings)
    with style():
        if not layout.fits:
            return _ranking(settings, measures)
        columns = 1 if len(measures) == 1 else 2
        rows = -(-len(measures) // columns)
        figure = Figure(figsize=(layout.wide * columns, 2.7 * rows + 0.6), layout="constrained")
        axes = [*figure.subplots(rows, columns, squeeze=False).flat]
        for axis, measure in zip(axes, measures, strict=False):
            _panel(axis, layout, settings, measure)
            _line_before(axis, settings, measure)
        for axis in axes[len(measures) :]:
            axis.remove()
        _legend(figure, axes[0], layout)
    return figure


def _legend(figure: Figure, axis: Axes, layout: _Layout) -> None:
    found = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    words = sorted(found, key=lambda word: word in (_BEFORE, _MISSING))
    if words:
        figure.legend(
            [found[word] for word in words],
            words,
            loc="outside upper center",
            ncols=min(len(words), max(1, int(layout.wide))),
            title=label(layout.title) or None,
        )


def _panels(measures: Sequence[Measure]) -> list[Measure]:
    f1 = [each for each in measures if each.name.startswith("test/") and each.name.endswith("/f1")]
    others = {each.name: each for each in measures}
    return [*f1[:_ENGINES], *(others[name] for name in _OTHERS if name in others)]


def _layout(settings: Sequence[Setting]) -> _Layout:
    """The axis: a number if there is one, else what has most values."""
    keys = [*settings[0].values]
    values = {key: values_of(settings, key) for key in keys}
    axis = max(keys, key=lambda k: (all_numbers(values[k]), len(values[k])), default="")
    return _Layout(
        axis=axis,
        values=values.get(axis, [""]),
        colours=[*dict.fromkeys(_others(each, axis) for each in settings)],
        title=", ".join(key for key in keys if key != axis),
    )


def _others(setting: Setting, axis: str) -> str:
    return ", ".join(value or "default" for key, value in setting.values.items() if key != axis)


def _panel(axis: Axes, layout: _Layout, settings: Sequence[Setting], measure: Measure) -> None:
    draw = _lines if layout.is_line else _bars
    for number, word in enumerate(layout.colours):
        draw(
            axis,
            layout,
            [each for each in settings if layout.place(each)[1] == number],
            measure,
            number,
            label(word),
        )
    axis.set_ylabel(measure.heading.replace(", ", "\n"))
    axis.set_xlabel(label(layout.axis))
    if layout.is_line:
        _numbers_below(axis, layout.values)
        return
    texts = [label(value or "default") for value in layout.values]
    steep = 0.8 + 0.078 * max(map(len, texts)) * len(texts) > layout.wide
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if steep else {}
    axis.set_xticks(range(len(texts)), texts, **turned)
    axis.grid(visible=False, axis="x")
    axis.set_xlim(-0.6, len(texts) - 0.4)


def _is_wide(numbers: Sequence[float]) -> bool:
    return min(numbers) > 0 and max(numbers) / min(numbers) >= _WIDE


def _numbers_below(axis: Axes, values: Sequence[str]) -> None:
    """A numeric axis with the values as they were given; of many, some."""
    numbers = [float(value) for value in values]
    if _is_wide(numbers):
        axis.set_xscale("log")
    every = -(-len(values) // _MOST_TICKS)
    axis.set_xticks(numbers[::every], [label(value) for value in values[::every]])
    axis.set_xticks([], minor=True)


def _bars(
    axis: Axes,
    layout: _Layout,
    settings: Sequence[Setting],
    measure: Measure,
    number: int,
    word: str,
) -> None:
    width = 0.8 / len(layout.colours)
    shift = (number - (len(layout.colours) - 1) / 2) * width
    for each in settings:
        x = layout.place(each)[0] + shift
        found = each.estimate(measure)
        if found is None:
            axis.plot([x], [0], marker="x", color=GREY, linestyle="", label=_once(axis, _MISSING))
            continue
        axis.bar(
            [x],
            [found.value],
            0.9 * width,
            color=COLOURS[number],
            alpha=0.75,
            label=_once(axis, word),
        )
        _whisker(axis, x, found.value, found.low, found.high, "black")
        _dots(axis, x, 0.3 * width, each.seeds(measure), "black")


def _lines(
    axis: Axes,
    layout: _Layout,
    settings: Sequence[Setting],
    measure: Measure,
    number: int,
    word: str,
) -> None:
    points = [
        (layout.shifted(each.values[layout.axis], number), found, each.seeds(measure))
        for each in settings
        if (found := each.estimate(measure)) is not None
    ]
    if not points:
        return
    axis.plot(
        [x for x, _, _ in points],
        [found.value for _, found, _ in points],
        color=COLOURS[number],
        marker=MARKERS[number],
        markersize=5,
        label=word or None,
    )
    for x, found, seeds in points:
        _whisker(axis, x, found.value, found.low, found.high, COLOURS[number])
        _dots(axis, x, 0.0, seeds, COLOURS[number])


def _once(axis: Axes, word: str) -> str | None:
    """A word of the legend, unless it is there."""
    return None if word in axis.get_legend_handles_labels()[1] or not word else word


def _whisker(
    axis: Axes, x: float, value: float, low: float | None, high: float | None, colour: str
) -> None:
    if low is not None and high is not None:
        ends = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.errorbar([x], [value], ends, fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)


def _dots(axis: Axes, x: float, half: float, seeds: Sequence[float], colour: str) -> None:
    """Single seeds beside one another, where there are several."""
    if len(seeds) < 2:
        return
    step = 2 * half / (len(seeds) - 1)
    places = [x - half + step * number for number in range(len(seeds))]
    axis.plot(places, seeds, "o", markersize=3.5, markerfacecolor="white", color=colour, zorder=4)


def _line_before(axis: Axes, settings: Sequence[Setting], measure: Measure) -> None:
    """Where the same metric was before training."""
    before = measure.before
    if before is None:
        return
    runs = [run for each in settings for run in each.finished]
    values = [found.value for run in runs if (found := before(run)) is not None]
    if values:
        mean = sum(values) / len(values)
        axis.axhline(mean, color=GREY, linestyle="--", linewidth=1, label=_BEFORE)


def _ranking(settings: Sequence[Setting], measures: Sequence[Measure]) -> Figure:
    """Settings from top to bottom, the best of the first metric on top."""
    from matplotlib.figure import Figure

    first = measures[0]
    sign = 1 if first.name == "test/loss" else -1
    known = [(found.value, each) for each in settings if (found := each.estimate(first))]
    best = [each for _, each in sorted(known, key=lambda pair: sign * pair[0])][:_MOST_ROWS]
    figure = Figure(figsize=(4 + 2.6 * len(measures), 1.4 + 0.28 * len(best)), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axis, measure in zip(axes, measures, strict=True):
        for row, each in enumerate(best):
            if (found := each.estimate(measure)) is None:
                continue
            axis.plot([found.value], [row], "o", markersize=5, color=COLOURS[0])
            if found.low is not None and found.high is not None:
                axis.plot([found.low, found.high], [row, row], color=COLOURS[0], linewidth=1.2)
        axis.set_xlabel(measure.heading)
    axes[0].set_yticks(range(len(best)), [label(each.label) for each in best])
    axes[0].invert_yaxis()
    if len(known) > len(best):
        figure.suptitle(f"the best {len(best)} of {len(known)} settings, by {first.heading}")
    return figure
