"""Asks an engine for useful and for noisy documents to the same questions, and judges them.

The report on a simulator does so (`fidelity_report`), and so do runs before they rely on one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zerosearch.data.geography.wording import word_query
from zerosearch.data.sources import fixed_selection
from zerosearch.search.engine import Checkable, SearchEngine
from zerosearch.search.fidelity import Observation, fidelity_of, findable, observe
from zerosearch.seeding import derive_seed
from zerosearch.types import Question, SearchError, SearchRequest, SearchResult

PROBED = 32  # held-out questions that an engine is asked about beforehand
LEAST_ANSWERS = 0.15  # share of them with a golden answer, as configs/simulator_check
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
    def observation(self) -> Observation | None:
        """What is measured, as of the quality that was asked for; None where the search failed."""
        if self.result is None:
            return None
        seen = observe(self.result, self.question.golden_answers)
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
        result, failure = None, None
        async with places:
            try:
                result = await engine.search(request)
            except SearchError as error:
                failure = error
        return Asked(
            question=question, query=query, quality=quality, result=result, failure=failure
        )

    return await asyncio.gather(
        *(ask(question, query, quality) for question, query in questions for quality in qualities)
    )


async def probe(
    engine: SearchEngine,
    questions: Sequence[tuple[Question, str]],
    *,
    whose: str,
    top_k: int = 5,
    timeout_s: float = 60.0,
    qualities: Sequence[str] = tuple(QUALITIES),
) -> Probed:
    """Search for every question, and again for noisy documents where the engine chooses quality.

    The seed is always the same, so that runs which share a cache share these answers.

    Args:
        engine: is asked.
        questions: with their queries.
        whose: "training", or the name of a benchmark.
        top_k: documents per search.
        timeout_s: of each search.
        qualities: to ask for, in this order.

    Raises:
        ValueError: the engine says beforehand that it cannot answer.
    """
    asked: list[Asked] = []
    for quality in qualities:
        asked += await ask_all(
            engine,
            questions,
            top_k=top_k,
            timeout_s=timeout_s,
            concurrency=len(questions),
            seed=0,
            qualities=[quality],
        )
        if not any(each.result and each.result.noisy is not None for each in asked):
            break  # an engine that takes no wishes, or one that fails
    return Probed(asked=asked, whose=whose)


async def warn_where_unknown(
    engine: SearchEngine, label: str, questions: Sequence[Question], *, whose: str
) -> Probed | None:
    """Say where an engine that answers held-out questions knows nothing of them.

    Args:
        engine: is asked for useful documents, about 32 of the questions.
        label: of the engine, for people.
        questions: held-out ones.
        whose: name of the questions, for people.

    Returns:
        What was found; None of an engine that takes no wishes: it finds what it finds.
    """
    pairs = choose(questions, PROBED)
    first = await probe(engine, pairs[:1], whose=whose, qualities=["useful"])
    if not first.chooses_quality:
        return None
    probed = await probe(engine, pairs, whose=whose, qualities=["useful"])
    log.info("%s: %s", label, probed.sentence())
    if probed.metrics().get("answer_in_useful", 1.0) < LEAST_ANSWERS:
        log.warning(
            "The engine %s knows little of these questions, and the figures will say more of "
            "it than of the policy. %s. Choose an engine that knows them, such as search=bm25 "
            "search.engine.corpus=FILE",
            label,
            probed.example(),
        )
    return probed


def summarize(asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """Per quality asked for: `searches`, `failed` (share), `fidelity_of` the others."""
    summary = {}
    for quality in QUALITIES:
        own = [each for each in asked if each.quality == quality]
        if not own:
            continue
        found = [each.observation for each in own]
        answered = [observation for observation in found if observation is not None]
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
        ValueError: a threshold is of something that is not judged.
    """
    if unknown := sorted(set(thresholds) - {metric for metric, *_ in _JUDGED}):
        raise ValueError(f"{node}.{unknown[0]} is unknown: {[m for m, *_ in _JUDGED]} are")
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


@dataclass(kw_only=True, slots=True, frozen=True)
class Probed:
    """What an engine made of a few questions."""

    asked: Sequence[Asked]
    whose: str  # questions: "training", or the name of a benchmark

    @property
    def chooses_quality(self) -> bool:
        """Whether the engine takes wishes as to quality: a simulator."""
        return any(each.result and each.result.noisy is not None for each in self.asked)

    def metrics(self) -> dict[str, float]:
        """`questions`, `failed`, and shares of searches that found a golden answer.

        `answer_in_useful` and `answer_in_noisy` of a simulator, `answer_in_documents` of another
        engine.
        """
        summary = summarize(self.asked)
        found = {
            "questions": float(sum(each.quality == "useful" for each in self.asked)),
            "failed": sum(each.result is None for each in self.asked) / len(self.asked),
        }
        for quality, part in summary.items():
            if (share := part.get(f"answer_in_{quality}")) is not None:
                found[f"answer_in_{quality}"] = share
        seen = [each.observation for each in self.asked]
        checked = [each.with_answer > 0 for each in seen if each is not None and each.checked]
        if checked and not self.chooses_quality:
            found["answer_in_documents"] = sum(checked) / len(checked)
        return found

    def sentence(self) -> str:
        """The metrics in one line."""
        found = self.metrics()
        names = {
            "answer_in_useful": "answer in useful",
            "answer_in_noisy": "in noisy",
            "answer_in_documents": "answer in documents",
        }
        parts = [f"{words} {found[name]:.2f}" for name, words in names.items() if name in found]
        if found["failed"]:
            parts.append(f"failed {found['failed']:.2f}")
        who = "simulator" if self.chooses_quality else "search engine"
        said = ", ".join(parts) or "no golden answer that can be looked for"
        return f"{who}: {said} ({found['questions']:.0f} {self.whose} questions)"

    def price(self) -> tuple[int, float]:
        """Tokens and dollars, of searches that failed, too."""
        spent = [each.result or each.failure for each in self.asked]
        tokens = sum(each.tokens for each in spent if each is not None)
        return tokens, sum(each.cost_usd for each in spent if each is not None)

    def warnings(self, thresholds: Mapping[str, float | None], node: str) -> list[str]:
        """What lies beyond its threshold; nothing is said of answers that cannot be looked for."""
        can_be_judged = self.chooses_quality and any(
            findable(each.question.golden_answers) for each in self.asked
        )
        bounds = {
            name: bound
            for name, bound in thresholds.items()
            if can_be_judged or not name.startswith("answer_in")
        }
        return warnings_of(summarize(self.asked), bounds, node=node)

    def example(self) -> str:
        """One search that shows what is wrong: one that failed, or else one without the answer."""
        for each in self.asked:
            if each.failure is not None:
                return f"One failed: {each.failure}"
        useful = [each for each in self.asked if each.quality == "useful"]
        missed = [each for each in useful if each.observation and not each.observation.with_answer]
        shown = (missed or useful)[0]
        assert shown.result is not None
        texts = [document.text for document in shown.result.documents]
        return (
            f"The search for {shown.query!r:.100} (golden answers "
            f"{list(shown.question.golden_answers)!r:.100}) found {texts!r:.200}"
        )
