"""Asks an engine for useful and for noisy documents to the same questions, and judges them.

The report on a simulator does so (`measurement_report`), and so do runs before they rely on one
(`probe`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zerosearch.core.errors import InputError
from zerosearch.core.seeding import derive_seed
from zerosearch.data.geography.wording import word_query
from zerosearch.data.sources import fixed_selection
from zerosearch.search.engine import Checkable, SearchEngine
from zerosearch.simulator.fidelity import SearchMeasurement, fidelity_of, measure_search
from zerosearch.types import Question, SearchError, SearchRequest, SearchResult

QUALITIES = {"useful": 0.0, "noisy": 1.0}  # noise probability of the request
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


log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class Asked:
    """One search: what was asked for and what came of it."""

    question: Question
    query: str
    quality: str  # that was asked for
    result: SearchResult | None
    failure: SearchError | None = None

    @property
    def measured(self) -> SearchMeasurement | None:
        """What is measured, as of the quality that was asked for; None where the search failed."""
        if self.result is None:
            return None
        seen = measure_search(self.result, self.question.golden_answers)
        if seen.noisy is None:
            return seen
        return dataclasses.replace(seen, noisy=self.quality == "noisy")


def query_of(question: Question) -> str:
    """What an agent would search for: the fact of an embedded question, else the question."""
    known = question.metadata
    if known.get("hops") == 1 and {"relation", "subject"} <= set(known):
        return word_query(known["relation"], known["subject"])
    return question.text


def choose(questions: Sequence[Question], count: int) -> list[tuple[Question, str]]:
    """Questions with their queries: always the same ones, of one hop where the data tells.

    One search cannot hold the answer to a question of two hops, however good the engine is.
    """
    one_hop = [question for question in questions if question.metadata.get("hops") == 1]
    pool = one_hop or questions
    chosen = [pool[index] for index in fixed_selection(len(pool), count)]
    return [(question, query_of(question)) for question in chosen]


async def ask_all(
    engine: SearchEngine,
    questions: Sequence[tuple[Question, str]],
    *,
    top_k: int,
    timeout_s: float,
    concurrency: int,
    seed: int,
    qualities: Sequence[str] = tuple(QUALITIES),
) -> list[Asked]:
    """Search for every question once per quality, at most `concurrency` at a time.

    Raises:
        InputError: the engine says beforehand that it cannot answer.
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
        result, failure = None, None
        async with places:
            try:
                result = await engine.search(request)
            except SearchError as error:
                failure = error
            except InputError:  # which every other search would meet, too
                raise
            except Exception as error:  # whatever it is, the searches beside it are measured
                log.exception("the search for %r failed", query)
                failure = SearchError(type(engine).__name__, f"{type(error).__name__}: {error}")
        return Asked(
            question=question, query=query, quality=quality, result=result, failure=failure
        )

    return await asyncio.gather(
        *(ask(question, query, quality) for question, query in questions for quality in qualities)
    )


def summarize(asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """Per quality asked for: `searches`, `failed` (share), `fidelity_of` the others."""
    summary = {}
    for quality in QUALITIES:
        own = [each for each in asked if each.quality == quality]
        if not own:
            continue
        found = [each.measured for each in own]
        answered = [each for each in found if each is not None]
        summary[quality] = {
            "searches": len(own),
            "failed": 1 - len(answered) / len(own),
            **fidelity_of(answered),
        }
    return summary


def warnings_of(
    summary: Mapping[str, Mapping[str, float]],
    thresholds: Mapping[str, float | None],
    *,
    node: str = "thresholds",
) -> list[str]:
    """What lies beyond its threshold, in words.

    Args:
        summary: of `summarize`.
        thresholds: by metric; None is no bound.
        node: of the configuration that holds them.

    Raises:
        InputError: a threshold is of something that is not judged.
    """
    if unknown := sorted(set(thresholds) - {metric for metric, *_ in _JUDGED}):
        raise InputError(f"{node}.{unknown[0]} is unknown: {[m for m, *_ in _JUDGED]} are")
    warnings = []
    for metric, quality, more_is_better, words in _JUDGED:
        bound = thresholds.get(metric)
        if bound is None or quality not in summary:
            continue
        value = summary[quality].get(metric)
        if value is None:
            if metric.startswith("answer_in"):
                warnings.append(
                    f"{metric} is not known: no search of that quality was answered, "
                    "or no golden answer can be looked for"
                )
        elif value < bound if more_is_better else value > bound:
            side = "below" if more_is_better else "above"
            warnings.append(f"{words} {value:.0%}, {side} {node}.{metric}={bound:g}")
    return warnings
