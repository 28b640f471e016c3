"""How well an engine plays its part: what is measured of every search, per step and in reports.

A simulator that leaks answers into noisy documents, or misses them in useful ones, teaches the
policy something else than the curriculum says; one that repeats itself teaches it less.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zerosearch.core.text import mentions, normalize_answer
from zerosearch.types import SearchResult

_ANYWHERE = ("yes", "no")


@dataclass(kw_only=True, slots=True, frozen=True)
class SearchMeasurement:
    """What is kept of one search: a few numbers, cheap to gather over processes."""

    noisy: bool | None
    checked: bool  # there was a golden answer that can be looked for
    with_answer: int  # documents that hold a golden answer
    requested: int
    words: tuple[int, ...]  # of each document
    texts: tuple[int, ...]  # checksum of each document's normal form
    problems: tuple[str, ...]
    attempts: int
    latency_s: float
    cached: bool
    tokens: int
    cost_usd: float


def measure_search(result: SearchResult, golden_answers: Sequence[str]) -> SearchMeasurement:
    """Measure one result.

    Args:
        result: what the engine returned.
        golden_answers: of the question that was searched for; looked for in the documents' texts,
            not in their titles, which not every document style shows.
    """
    sought = findable(golden_answers)
    texts = [document.text for document in result.documents]
    return SearchMeasurement(
        noisy=result.noisy,
        checked=bool(sought),
        with_answer=sum(mentions(text, sought) for text in texts),
        requested=result.requested,
        words=tuple(len(text.split()) for text in texts),
        texts=tuple(zlib.crc32(normalize_answer(text).encode()) for text in texts),
        problems=result.problems,
        attempts=result.attempts,
        latency_s=result.latency_s,
        cached=result.cached,
        tokens=result.tokens,
        cost_usd=result.cost_usd,
    )


def findable(golden_answers: Sequence[str]) -> list[str]:
    """Golden answers that can be looked for: "yes" and "no" are in any text and tell nothing."""
    forms = {answer: normalize_answer(answer) for answer in golden_answers}
    return [answer for answer, form in forms.items() if form and form not in _ANYWHERE]


def fidelity_of(measurements: Sequence[SearchMeasurement]) -> dict[str, float]:
    """Means, shares and percentiles over searches that were answered.

    Args:
        measurements: of one step, or of one quality in a report.

    Returns:
        Per search: `answer_in_useful`, `answer_in_noisy` (share with a golden answer in any
        document; absent where no quality was chosen or no answer is known), `noisy`, `empty`,
        `incomplete` (fewer documents than asked), `cached`, `attempts`, `tokens`, `requested`,
        `documents`, `problem/<name>` (number of replies), `latency_s` and its `_p50`, `_p95`,
        `_p99`. Per document: `answer_documents_useful`, `answer_documents_noisy`, `words`,
        `words_p95`, `duplicates` (repeats one of the same search), `repeats` (repeats one of an
        earlier search). In all: `cost_usd`. Empty without measurements.
    """
    if not measurements:
        return {}
    latencies = [each.latency_s for each in measurements]
    means = {
        "empty": _mean([not each.words for each in measurements]),
        "incomplete": _mean([len(each.words) < each.requested for each in measurements]),
        "cached": _mean([each.cached for each in measurements]),
        "attempts": _mean([each.attempts for each in measurements]),
        "tokens": _mean([each.tokens for each in measurements]),
        "requested": _mean([each.requested for each in measurements]),
        "documents": _mean([len(each.words) for each in measurements]),
        "cost_usd": sum(each.cost_usd for each in measurements),
        "latency_s": _mean(latencies),
    }
    means |= {f"latency_s_p{p}": float(np.percentile(latencies, p)) for p in (50, 95, 99)}
    problems = Counter(name for each in measurements for name in each.problems)
    means |= {f"problem/{name}": n / len(measurements) for name, n in sorted(problems.items())}
    return means | _answers(measurements) | _texts(measurements)


def _answers(measurements: Sequence[SearchMeasurement]) -> dict[str, float]:
    chosen = [each for each in measurements if each.noisy is not None]
    means = {"noisy": _mean([bool(each.noisy) for each in chosen])} if chosen else {}
    for name, noisy in (("useful", False), ("noisy", True)):
        checked = [each for each in chosen if each.noisy is noisy and each.checked]
        if not checked:
            continue
        means[f"answer_in_{name}"] = _mean([each.with_answer > 0 for each in checked])
        if documents := sum(len(each.words) for each in checked):
            with_answer = sum(each.with_answer for each in checked)
            means[f"answer_documents_{name}"] = with_answer / documents
    return means


def _texts(measurements: Sequence[SearchMeasurement]) -> dict[str, float]:
    words = [count for each in measurements for count in each.words]
    if not words:
        return {}
    duplicates = repeats = 0
    seen: set[int] = set()
    for each in measurements:
        distinct = set(each.texts)
        duplicates += len(each.texts) - len(distinct)
        repeats += len(distinct & seen)
        seen |= distinct
    return {
        "words": _mean(words),
        "words_p95": float(np.percentile(words, 95)),
        "duplicates": duplicates / len(words),
        "repeats": repeats / len(words),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
