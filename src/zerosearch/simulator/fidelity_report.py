"""Asks an engine for useful and for noisy documents to the same questions, and compares."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zerosearch.data.geography.source import GeographySource
from zerosearch.data.geography.wording import word_query
from zerosearch.data.readers import hub_file, local_files
from zerosearch.data.rows import Columns, row_to_question
from zerosearch.data.sources import fixed_selection
from zerosearch.ranges import Count
from zerosearch.search.engine import Checkable, SearchEngine
from zerosearch.search.fidelity import Observation, fidelity_of, observe
from zerosearch.seeding import derive_seed
from zerosearch.types import Question, SearchError, SearchRequest, SearchResult

QUALITIES = {"useful": 0.0, "noisy": 1.0}  # noise probability of the request
_COUNTS = ("attempts", "tokens", "requested", "documents", "words", "words_p95", "cost_usd")
_FIRST = ("searches", "failed", "answer_in", "answer_documents", "requested", "documents")
# What is compared with a threshold: metric, quality, whether more is better, words for people.
_JUDGED = (
    ("answer_in_useful", "useful", True, "useful documents hold a golden answer in"),
    ("answer_in_noisy", "noisy", False, "noisy documents hold a golden answer in"),
    ("incomplete", "useful", False, "fewer useful documents than asked for came in"),
    ("incomplete", "noisy", False, "fewer noisy documents than asked for came in"),
    ("duplicates", "useful", False, "useful documents repeat one of the same search in"),
    ("duplicates", "noisy", False, "noisy documents repeat one of the same search in"),
    ("failed", "useful", False, "searches for useful documents failed in"),
    ("failed", "noisy", False, "searches for noisy documents failed in"),
)


@dataclass(kw_only=True, slots=True, frozen=True)
class Asked:
    """One search of the report: what was asked for and what came of it."""

    question: Question
    query: str
    quality: str
    result: SearchResult | None
    error: str | None

    @property
    def observation(self) -> Observation | None:
        """What is measured; None where the search failed."""
        if self.result is None:
            return None
        return observe(self.result, self.question.golden_answers)


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
        ValueError: a file or a row cannot be read.
    """
    pairs = []
    if files is None:
        pairs = [
            (question, word_query(question.metadata["relation"], question.metadata["subject"]))
            for question in GeographySource(split=split, hops=1).load()
        ]
    for path in files or ():
        for file in local_files(path) or [hub_file(path, None, "test", streaming=False)]:
            for _, location, row in file.read_all():
                question = row_to_question(row, location=location, source=path, columns=columns)
                query = question.text if query_column is None else row.get(query_column)
                if not isinstance(query, str) or not query.strip():
                    raise ValueError(
                        f"{location}: data.query_column={query_column} holds no query but "
                        f"{query!r:.60}; name another column, or null to search for the question"
                    )
                pairs.append((question, query.strip()))
    if not pairs:
        raise ValueError(f"data.files={files}: no question in them; check the files")
    return [pairs[index] for index in fixed_selection(len(pairs), limit)]


async def ask_all(
    engine: SearchEngine,
    questions: Sequence[tuple[Question, str]],
    *,
    top_k: int,
    timeout_s: float,
    concurrency: int,
    seed: int,
) -> list[Asked]:
    """Search for every question once per quality, at most `concurrency` at a time.

    Raises:
        ValueError: the engine says beforehand that it cannot answer.
    """
    if isinstance(engine, Checkable):
        await engine.check()
    places = asyncio.Semaphore(concurrency)

    async def ask(question: Question, query: str, quality: str) -> Asked:
        request = SearchRequest(
            query=query,
            question=question.text,
            golden_answers=question.golden_answers,
            noise_probability=QUALITIES[quality],
            top_k=top_k,
            seed=derive_seed(seed, "fidelity", question.uid, query, quality),
            timeout_s=timeout_s,
        )
        result, reason = None, None
        async with places:
            try:
                result = await engine.search(request)
            except SearchError as error:
                reason = str(error)
        return Asked(question=question, query=query, quality=quality, result=result, error=reason)

    return await asyncio.gather(
        *(ask(question, query, quality) for question, query in questions for quality in QUALITIES)
    )


def summarize(asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """Per quality: `searches`, `failed` (share), and what `fidelity_of` says of the others."""
    summary = {}
    for quality in QUALITIES:
        own = [each for each in asked if each.quality == quality]
        found = [each.observation for each in own]
        answered = [observation for observation in found if observation is not None]
        summary[quality] = {
            "searches": len(own),
            "failed": 1 - len(answered) / len(own),
            **fidelity_of(answered),
        }
    return summary


def warnings_of(
    summary: Mapping[str, Mapping[str, float]], thresholds: Mapping[str, float]
) -> list[str]:
    """What lies beyond its threshold, in words.

    Raises:
        ValueError: a threshold is of something that is not judged.
    """
    if unknown := sorted(set(thresholds) - {metric for metric, *_ in _JUDGED}):
        raise ValueError(f"thresholds.{unknown[0]} is unknown: {[m for m, *_ in _JUDGED]} are")
    warnings = []
    for metric, quality, more_is_better, words in _JUDGED:
        bound, value = thresholds.get(metric), summary[quality].get(metric)
        if bound is None:
            continue
        if value is None:
            if metric.startswith("answer_in"):
                warnings.append(
                    f"{metric} is not known: no search of that quality was answered, "
                    "or no golden answer can be looked for"
                )
        elif value < bound if more_is_better else value > bound:
            side = "below" if more_is_better else "above"
            warnings.append(f"{words} {value:.0%}, {side} thresholds.{metric}={bound:g}")
    return warnings


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
    for error in list(dict.fromkeys(each.error for each in asked if each.error))[:3]:
        console.print(f"failed: {error}", markup=False)
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
        writer = csv.DictWriter(file, fieldnames=list(_row(asked[0])))
        writer.writeheader()
        writer.writerows(_row(each) for each in asked)


def _row(asked: Asked) -> dict[str, Any]:
    result, seen = asked.result, asked.observation
    return {
        "question": asked.question.text,
        "golden_answers": json.dumps(asked.question.golden_answers, ensure_ascii=False),
        "query": asked.query,
        "quality": asked.quality,
        "error": asked.error or "",
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
