"""Compare two methods: `python -m zerosearch.commands.compare RUN:METHOD RUN:METHOD`.

`logs/evaluate/latest:policy/search` is a row of a run, as `table.csv` names it; a run of one row
needs no name. Compared are all benchmarks that both have.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.evaluation.tables import Cells, as_markdown, as_rich

if TYPE_CHECKING:
    from zerosearch.evaluation.comparison import Difference

ANSWERS = "answers"  # in a run folder


def answers_of(place: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by benchmark of `RUN` or `RUN:METHOD`.

    Raises:
        InputError: there is no such run or method, or the run has several.
    """
    run, _, method = place.partition(":")
    root = Path(run) / ANSWERS
    methods = sorted({str(path.parent.relative_to(root)) for path in root.rglob("*.jsonl")})
    if not methods:
        raise InputError(f"{run} holds no answers/: give the run folder of a finished evaluation")
    if not method and len(methods) == 1:
        method = methods[0]
    if method not in methods:
        raise InputError(f"{place}: give {run}:METHOD with one of {', '.join(methods)}")
    return {
        path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in sorted((root / method).glob("*.jsonl"))
    }


def comparison_table(first: str, second: str) -> Cells:
    """A line per benchmark and score.

    Raises:
        InputError: as `answers_of` and `compare`, or no benchmark is in both.
    """
    from zerosearch.evaluation.comparison import compare

    ours, theirs = answers_of(first), answers_of(second)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise InputError(f"no benchmark is in both: {sorted(ours)} there, {sorted(theirs)} here")
    cells = [["benchmark", "score", "first", "second", "difference", "95%", "p", "wins : losses"]]
    for name in shared:
        cells += [[name, *_cells(each)] for each in compare(ours[name], theirs[name])]
    return cells


def _cells(found: Difference) -> list[str]:
    return [
        found.score,
        f"{100 * found.first:.1f}",
        f"{100 * found.second:.1f}",
        f"{100 * (found.second - found.first):+.1f}",
        f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
        f"{found.p_value:.4f}",
        f"{found.wins} : {found.losses}",
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="zerosearch compare")
    parser.add_argument("first", help="RUN or RUN:METHOD")
    parser.add_argument("second", help="the same of the other")
    parser.add_argument("--markdown", action="store_true", help="for a report")
    arguments = parser.parse_args()
    try:
        cells = comparison_table(arguments.first, arguments.second)
    except (ZeroSearchError, OSError) as error:
        sys.exit(str(error))
    if arguments.markdown:
        print(as_markdown(cells), end="")
    else:
        Console().print(as_rich(cells, f"{arguments.first} -> {arguments.second}, x 100"))


if __name__ == "__main__":
    main()
