"""The report on a simulator: which questions it is asked, and how its answers are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count
from zerosearch.core.shown import shown, write_csv
from zerosearch.data.geography.source import GeographySource
from zerosearch.data.readers import hub_file, local_files
from zerosearch.data.rows import Columns, row_to_question
from zerosearch.data.sources import fixed_selection
from zerosearch.simulator.measurement import Asked, query_of
from zerosearch.types import Question

_COUNTS = ("attempts", "tokens", "requested", "documents", "words", "words_p95", "cost_usd")
_FIRST = ("searches", "failed", "answer_in", "answer_documents", "requested", "documents")


def read_questions(
    files: Sequence[str] | None,
    limit: Count | None,
    query_column: str | None,
    columns: Columns,
    split: str = "train",
) -> list[tuple[Question, str]]:
    """Questions with the query to search for.

    Args:
        files: see `docs/data.md`; None: embedded ones of one hop, with the query that asks for
            just that.
        limit: use this many, a fixed selection; None: all.
        query_column: where a row holds its query; None: the question is the query.
        columns: where a row holds the rest.
        split: of the embedded questions.

    Raises:
        InputError: a file or a row cannot be read.
    """
    pairs = []
    if files is None:
        pairs = [
            (question, query_of(question))
            for question in GeographySource(split=split, hops=1).load()
        ]
    for path in files or ():
        for file in local_files(path) or [hub_file(path, None, "test", streaming=False)]:
            for _, location, row in file.read_all():
                question = row_to_question(row, location=location, source=path, columns=columns)
                query = question.text if query_column is None else row.get(query_column)
                if not isinstance(query, str) or not query.strip():
                    raise InputError(
                        f"{location}: data.query_column={query_column} holds no query but "
                        f"{query!r:.60}; name another column, or null to search for the question"
                    )
                pairs.append((question, query.strip()))
    if not pairs:
        raise InputError(f"data.files={files}: no question in them; check the files")
    return [pairs[index] for index in fixed_selection(len(pairs), limit)]


# -- output ---------------------------------------------------------------------------------------


def print_summary(
    summary: Mapping[str, Mapping[str, float]], warnings: Sequence[str], asked: Sequence[Asked]
) -> None:
    """The report on the screen."""
    console = Console()
    table = Table("", *summary, title="Fidelity of the simulator")
    columns = [
        {name.removesuffix(f"_{quality}"): value for name, value in part.items()}
        for quality, part in summary.items()
    ]
    for name in sorted({name for column in columns for name in column}, key=_position):
        table.add_row(name, *(_cell(name, column.get(name)) for column in columns))
    console.print(table)
    for error in list(dict.fromkeys(str(each.failure) for each in asked if each.failure))[:3]:
        console.print(f"failed: {shown(error)}", markup=False)
    for warning in warnings:
        console.print(f"[yellow]warning[/yellow]: {warning}")
    if not warnings:
        console.print("[green]within all thresholds[/green]")


def _position(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "searches":
        return f"{value:.0f}"
    if name.startswith("latency"):
        return f"{value:.2f} s"
    return f"{value:.4g}" if name in _COUNTS or name.startswith("problem/") else f"{value:.1%}"


def write_report(folder: Path, summary: dict[str, Any], asked: Sequence[Asked]) -> None:
    """`fidelity.json` with the summary, `searches.csv` with a row per search and its documents."""
    (folder / "fidelity.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    with (folder / "searches.csv").open("w", encoding="utf-8", newline="") as file:
        write_csv(file, map(_row, asked))


def _row(asked: Asked) -> dict[str, Any]:
    result, seen = asked.result, asked.measured
    return {
        "question": asked.question.text,
        "golden_answers": json.dumps(asked.question.golden_answers, ensure_ascii=False),
        "query": asked.query,
        "quality": asked.quality,
        "error": str(asked.failure or ""),
        "with_answer": seen.with_answer if seen and seen.checked else "",
        "documents_count": len(result.documents) if result else "",
        "latency_s": round(result.latency_s, 4) if result else "",
        "attempts": result.attempts if result else "",
        "problems": " ".join(result.problems) if result else "",
        "tokens": result.tokens if result else "",
        "cost_usd": result.cost_usd if result else "",
        "documents": json.dumps([d.text for d in result.documents], ensure_ascii=False)
        if result
        else "",
    }
