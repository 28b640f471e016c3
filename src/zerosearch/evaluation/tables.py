"""Tables of an evaluation: Markdown and LaTeX for people, CSV for programs.

The first has the shape of the paper's main table (arXiv 2505.04588): a row per method, a column per
benchmark, strict EM x 100; the paper's own rows stand beside ours where it has the benchmark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from zerosearch.core.errors import InputError
from zerosearch.core.shown import from_csv_cell, shown, write_csv
from zerosearch.core.tables import Cells

# heading -> metric, factor, format
DETAILS = {
    "EM": ("em", 100, ".1f"),
    "cover EM": ("cover_em", 100, ".1f"),
    "F1": ("f1", 100, ".1f"),
    "official EM": ("official_em", 100, ".1f"),
    "official F1": ("official_f1", 100, ".1f"),
    "searches": ("searches", 1, ".2f"),
    "tokens": ("sampled_tokens", 1, ".0f"),
    "answered %": ("answered", 100, ".1f"),
    "failed %": ("failed", 100, ".1f"),
    "failed searches %": ("failed_searches", 100, ".1f"),
    "empty searches %": ("empty_searches", 100, ".1f"),
    "US$": ("cost_usd", 1, ".4f"),
}
_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
_INTERVALS = ("em", "cover_em", "f1")
MARK = "*"  # of rows that are the paper's
NOTE = f"{MARK} as the paper reports it (arXiv 2505.04588), on its own choice of questions."


@dataclass(kw_only=True, slots=True, frozen=True)
class Results:
    """All cells of a table.

    Args:
        benchmarks: name -> heading, in the order of the columns.
        rows: name -> label, in the order of the rows.
        cells: (row, benchmark) -> metrics of `cell_metrics`.
    """

    benchmarks: Mapping[str, str]
    rows: Mapping[str, str]
    cells: Mapping[tuple[str, str], Mapping[str, float]]


def main_table(results: Results, *, policies: Sequence[str] | None = None) -> Cells:
    """EM x 100 by method and benchmark, the paper's rows first.

    Args:
        results: ours.
        policies: whose of the paper's rows are shown; None: all.
    """
    names = list(results.benchmarks)
    cells = [["method", *results.benchmarks.values(), *(["avg"] if len(names) > 1 else [])]]
    for row in _paper_rows():
        if not any(row.get(name) for name in names):
            continue
        if policies is None or row["policy"] in policies:
            label = f"{row['policy']} {row['method']}{MARK}"
            values = [float(row[name]) if row.get(name) else None for name in names]
            cells.append([label, *_with_average(values, ".2f")])
    for row, label in results.rows.items():
        found = [results.cells.get((row, name)) for name in names]
        values = [None if each is None else 100 * each["em"] for each in found]
        cells.append([label, *_with_average(values, ".2f")])
    return cells


def detail_table(results: Results) -> Cells:
    """All numbers of every cell, scores with their 95% intervals."""
    known = {name for metrics in results.cells.values() for name in metrics}
    shown = {heading: each for heading, each in DETAILS.items() if each[0] in known}
    cells = [["method", "benchmark", "questions", *shown]]
    for (row, benchmark), metrics in _in_order(results):
        values = []
        for name, factor, form in shown.values():
            text = format(factor * metrics[name], form) if name in metrics else ""
            if name in _INTERVALS:
                low, high = (format(factor * metrics[f"{name}_{end}"], form) for end in _ENDS)
                text += f" [{low}, {high}]"
            values.append(text)
        count = f"{metrics['count']:.0f}"
        cells.append([results.rows[row], results.benchmarks[benchmark], count, *values])
    return cells


def as_csv(results: Results) -> str:
    """A line per cell with every metric, unrounded; nothing where a benchmark lacks one."""
    lines = []
    for (row, benchmark), metrics in _in_order(results):
        labels = {"label": results.rows[row], "heading": results.benchmarks[benchmark]}
        lines.append({"method": row, "benchmark": benchmark, **labels, **metrics})
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO()
    write_csv(file, [{name: line.get(name, "") for name in names} for line in lines])
    return file.getvalue()


def from_csv(text: str) -> Results:
    """What `as_csv` wrote.

    Raises:
        InputError: it is something else.
    """
    benchmarks: dict[str, str] = {}
    rows: dict[str, str] = {}
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for read in csv.DictReader(io.StringIO(text)):
        line = {from_csv_cell(name): from_csv_cell(value) for name, value in read.items()}
        try:
            row, benchmark = line.pop("method"), line.pop("benchmark")
            rows[row], benchmarks[benchmark] = line.pop("label"), line.pop("heading")
            cells[row, benchmark] = {name: float(value) for name, value in line.items() if value}
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"it is no table of an evaluation ({error})") from error
    return Results(benchmarks=benchmarks, rows=rows, cells=cells)


def merged(runs: Sequence[Path]) -> Results:
    """All cells of some run folders; a name that is there before is told apart by its run.

    Raises:
        InputError: one holds no table, or a damaged one.
    """
    benchmarks: dict[str, str] = {}
    rows: dict[str, str] = {}
    cells = {}
    for run in runs:
        path = run / "table.csv"
        try:
            found = from_csv(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{run} holds no table.csv: give finished evaluations") from error
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        benchmarks |= found.benchmarks
        for (row, benchmark), metrics in found.cells.items():
            taken = (row, benchmark) in cells or (row in rows and rows[row] != found.rows[row])
            name = f"{run.resolve().name}:{row}" if taken else row
            rows[name] = found.rows[row]
            cells[name, benchmark] = metrics
    return Results(benchmarks=benchmarks, rows=rows, cells=cells)


def as_latex(cells: Cells) -> str:
    """A tabular of booktabs; the best in each column is bold."""
    heading, *rows = cells
    best = [_best([row[column] for row in rows]) for column in range(len(heading))]
    lines = [r"\begin{tabular}{l" + "r" * (len(heading) - 1) + "}", r"\toprule"]
    lines += [" & ".join(map(_escape, heading)) + r" \\", r"\midrule"]
    for row in rows:
        shown = [
            rf"\textbf{{{cell}}}" if column and cell == best[column] else _escape(cell)
            for column, cell in enumerate(row)
        ]
        lines.append(" & ".join(shown) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_ENDS = ("low", "high")


def _in_order(results: Results) -> list[tuple[tuple[str, str], Mapping[str, float]]]:
    keys = [(row, name) for row in results.rows for name in results.benchmarks]
    return [(key, results.cells[key]) for key in keys if key in results.cells]


def _with_average(values: Sequence[float | None], form: str) -> list[str]:
    """Values as text; of several that are all there, their mean too."""
    texts = ["" if value is None else format(value, form) for value in values]
    if len(values) == 1:
        return texts
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    return [*texts, format(sum(known) / len(known), form) if whole else ""]


def _paper_rows() -> list[dict[str, str]]:
    text = (resources.files("zerosearch.evaluation") / "paper.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def _best(texts: Sequence[str]) -> str | None:
    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return float("-inf")

    return max(texts, key=number, default=None)


def _escape(text: str) -> str:
    return shown(text).translate(_LATEX)
