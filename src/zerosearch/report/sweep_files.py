"""`sweep.md`, `sweep.csv` and the figure of a sweep, in its folder; its table on the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from zerosearch.core.files import replacing
from zerosearch.core.outcome import short_path
from zerosearch.core.shown import shown
from zerosearch.core.tables import Cells, as_rich
from zerosearch.report.figures import save
from zerosearch.report.sweep import Trial, measures_of, settings_of
from zerosearch.report.sweep_figure import draw_sweep
from zerosearch.report.sweep_tables import as_csv, as_page, count, not_finished, table

NAME = "sweep"  # of the files, without their ends
_AFTER = ("test/", "reward/", "rollout/", "curriculum/")  # on the console: what came out


def write_sweep(folder: Path, trials: Sequence[Trial]) -> list[Path]:
    """Write the tables and, where a run has finished, the figure of a sweep.

    Args:
        folder: takes them.
        trials: of the sweep.

    Returns:
        The files.

    Raises:
        FileError: one could not be written.
    """
    figure = draw_sweep(settings_of(trials))
    drawn = [] if figure is None else [folder / f"{NAME}.png", folder / f"{NAME}.svg"]
    title, picture = folder.resolve().name, drawn[0].name if drawn else None
    tables = {f"{NAME}.md": as_page(title, trials, picture), f"{NAME}.csv": as_csv(trials)}
    for name, text in tables.items():
        with replacing(folder / name) as file:
            file.write(text.encode())
    for path in drawn:
        assert figure is not None
        save(figure, path)
    return [*(folder / name for name in tables), *drawn]


def show_sweep(folder: Path, trials: Sequence[Trial], files: Sequence[Path]) -> None:
    """Print the table of a sweep, what was not completed, and where the files are."""
    settings = settings_of(trials)
    measures = [each for each in measures_of(settings) if each.name.startswith(_AFTER)]
    if measures:
        console = Console()
        while True:
            cells = table(settings, measures, short=True)
            if len(measures) == 1 or _width(cells) <= console.width:
                break
            measures.pop()
        console.print(as_rich(cells, count(trials)))
    else:
        print(count(trials))
    for line in not_finished(trials):
        print(shown(line))
    names = ", ".join(path.name for path in files)
    print(f"{names} in {short_path(folder.resolve())}", flush=True)


def _width(cells: Cells) -> int:
    """Characters of a table whose headings may break at spaces and whose cells may not."""
    words = [[max(heading.split(), key=len, default="")] for heading in cells[0]]
    rows = [
        [*each, *column] for each, column in zip(words, zip(*cells[1:], strict=True), strict=True)
    ]
    return sum(max(map(len, each)) + 2 for each in rows)
