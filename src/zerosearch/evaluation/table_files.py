"""Writes and shows the tables of one or several evaluations."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from zerosearch.core.files import replacing
from zerosearch.core.shown import write_csv
from zerosearch.core.tables import as_markdown, as_rich
from zerosearch.evaluation.tables import (
    MARK,
    NOTE,
    Results,
    as_csv,
    as_latex,
    detail_table,
    main_table,
)

_SHOWN = ("method", "benchmark", "questions", "EM", "cover EM", "F1", "searches", "failed %")

_CLOCK = ["s per episode", "questions per s"]  # latency while others are under way, throughput

CellTimes = Mapping[tuple[str, str], Mapping[str, float]]


def write_tables(folder: Path, results: Results, policies: Sequence[str] | None) -> None:
    """Write `table.md`, `table.csv` and `table.tex`; equal runs write them in equal bytes.

    Args:
        folder: that takes them.
        results: the numbers.
        policies: whose of the paper's rows are shown; None: all.
    """
    main = main_table(results, policies=policies)
    note = f"\n{NOTE}\n" if any(row[0].endswith(MARK) for row in main) else ""
    markdown = f"Exact match x 100\n\n{as_markdown(main)}{note}\n"
    markdown += "Every number, with 95% intervals\n\n"
    for name, text in {
        "table.md": markdown + as_markdown(detail_table(results)),
        "table.csv": as_csv(results),
        "table.tex": as_latex(main),
    }.items():
        with replacing(folder / name) as file:
            file.write(text.encode())


def write_times(folder: Path, times: CellTimes) -> None:
    """Write `times.csv`: latency and throughput by row and benchmark, see `cell_times`."""
    with replacing(folder / "times.csv") as file:
        file.write(_times_csv(times).encode())


def show(results: Results, times: CellTimes) -> None:
    """Print the numbers that matter most, and the clock."""
    every = detail_table(results)
    shown = [every[0].index(name) for name in _SHOWN]
    keys = [(row, name) for row in results.rows for name in results.benchmarks]
    clock = [_CLOCK]
    clock += [
        [f"{times[key]['episode_s_mean']:.2f}", f"{times[key]['questions_per_s']:.3g}"]
        for key in keys
        if key in results.cells
    ]
    cells = [
        [*(row[index].partition(" [")[0] for index in shown), *seconds]
        for row, seconds in zip(every, clock, strict=True)
    ]
    cells[0][shown.index(every[0].index("questions"))] = "n"  # leaves the names their width
    title = "EM, cover EM and F1 x 100, n questions; latency of an episode, throughput of all"
    Console().print(as_rich(cells, title))


def _times_csv(times: CellTimes) -> str:
    file = io.StringIO()
    lines = [{"method": row, "benchmark": name, **s} for (row, name), s in times.items()]
    write_csv(file, lines)
    return file.getvalue()
