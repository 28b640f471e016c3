"""Whether an engine knows some questions: it is asked about a few of them before it is relied on.

Training asks its own engine, and refuses one that is no use; whoever evaluates is warned of one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from zerosearch.search.engine import SearchEngine
from zerosearch.simulator.fidelity import findable
from zerosearch.simulator.measurement import (
    QUALITIES,
    Asked,
    ask_all,
    choose,
    summarize,
    warnings_of,
)
from zerosearch.types import Question

PROBED = 32  # held-out questions that an engine is asked about beforehand
LEAST_ANSWERS = 0.15  # share of them with a golden answer, as configs/simulator_check

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class Probed:
    """What an engine made of a few questions."""

    asked: Sequence[Asked]
    whose: str  # questions: "training", or the name of a benchmark

    @property
    def chooses_quality(self) -> bool:
        """Whether the engine can be asked for a quality: a simulator."""
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
        seen = [each.measured for each in self.asked]
        checked = [each.with_answer > 0 for each in seen if each is not None and each.checked]
        if checked and not self.chooses_quality:
            found["answer_in_documents"] = sum(checked) / len(checked)
        return found

    def sentence(self) -> str:
        """The metrics in one line."""
        found = self.metrics()
        names = {
            "answer_in_useful": "useful documents",
            "answer_in_noisy": "noisy ones",
            "answer_in_documents": "documents",
        }
        shares = {whose: found[name] for name, whose in names.items() if name in found}
        parts = [f"{whose} in {share:.0%}" for whose, share in shares.items()]
        if parts:
            parts[0] = f"{parts[0].replace(' in ', ' hold a golden answer in ')} of the searches"
        if found["failed"]:
            parts.append(f"{found['failed']:.0%} of the searches failed")
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
        missed = [each for each in useful if each.measured and not each.measured.with_answer]
        shown = (missed or useful)[0]
        assert shown.result is not None
        texts = [document.text for document in shown.result.documents]
        return (
            f"The search for {shown.query!r:.100} (golden answers "
            f"{list(shown.question.golden_answers)!r:.100}) found {texts!r:.200}"
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
        InputError: the engine says beforehand that it cannot answer.
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
            break  # an engine that cannot be asked for a quality, or one that fails
    return Probed(asked=asked, whose=whose)


async def warn_where_unknown(
    engine: SearchEngine,
    label: str,
    questions: Sequence[Question],
    *,
    whose: str,
    top_k: int = 5,
    timeout_s: float = 60.0,
) -> Probed | None:
    """Say where an engine that answers held-out questions knows nothing of them.

    Args:
        engine: is asked for useful documents, about 32 of the questions.
        label: of the engine, for people.
        questions: held-out ones.
        whose: name of the questions, for people.
        top_k: documents per search.
        timeout_s: of each search.

    Returns:
        What was found; None of an engine that cannot be asked for useful documents.
    """
    ask = partial(
        probe, engine, whose=whose, top_k=top_k, timeout_s=timeout_s, qualities=["useful"]
    )
    pairs = choose(questions, PROBED)
    first = await ask(pairs[:1])
    if not first.chooses_quality:
        return None
    rest = await ask(pairs[1:])
    probed = Probed(asked=[*first.asked, *rest.asked], whose=whose)
    log.info("evaluation engine %s, a %s", label, probed.sentence())
    if probed.metrics().get("answer_in_useful", 1.0) < LEAST_ANSWERS:
        log.warning(
            "The engine %s knows little of these questions, and the figures will say more of "
            "it than of the policy. %s. Choose an engine that knows them, such as search=bm25 "
            "search.engine.corpus=FILE",
            label,
            probed.example(),
        )
    return probed
