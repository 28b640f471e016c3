"""One table of several evaluations: `python -m zerosearch.commands.merge RUN RUN --into FOLDER`.

Rows keep the labels they were given (`methods.policy.label=Search-R1`); a row whose name was there
before is told apart by its run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.evaluation.report import write_tables
from zerosearch.evaluation.tables import Results, as_rich, from_csv, main_table


def merged(runs: Sequence[Path]) -> Results:
    """All cells of some run folders.

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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="zerosearch merge")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--into", type=Path, help="folder that takes table.md, .csv and .tex")
    parser.add_argument("--paper", nargs="*", help="policies whose rows of the paper are shown")
    arguments = parser.parse_args()
    try:
        results = merged(arguments.runs)
        if arguments.into is not None:
            write_tables(arguments.into, results, arguments.paper)
    except (ZeroSearchError, OSError) as error:
        sys.exit(str(error))
    Console().print(as_rich(main_table(results, policies=arguments.paper), "Exact match x 100"))


if __name__ == "__main__":
    main()
