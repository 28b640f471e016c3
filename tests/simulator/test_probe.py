"""What an engine is asked before it is relied on, and what is made of its answers."""

from __future__ import annotations

import pytest

from tests.helpers.engines import ScriptedEngine
from tests.helpers.training import make_questions
from zerosearch.data.geography.facts import load_facts
from zerosearch.data.geography.source import GeographySource
from zerosearch.search.engine import SearchEngine
from zerosearch.simulator.measurement import choose, query_of
from zerosearch.simulator.probe import Probed, probe, warn_where_unknown
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.types import Document, Question, SearchError, SearchRequest, SearchResult

BOUNDS = {"answer_in_useful": 0.15, "answer_in_noisy": 0.7, "failed": 0.1}


class Simulator:
    """Writes the golden answer with a share, by quality; every search costs a cent."""

    def __init__(self, useful: bool, noisy: bool) -> None:
        self.tells = {False: useful, True: noisy}
        self.requests: list[SearchRequest] = []

    async def search(self, request: SearchRequest) -> SearchResult:
        self.requests.append(request)
        noisy = request.noise_probability == 1.0
        text = request.golden_answers[0] if self.tells[noisy] else "nothing"
        return SearchResult(
            documents=(Document(text=text),), requested=1, noisy=noisy, tokens=10, cost_usd=0.01
        )


async def probed_of(engine: SearchEngine, questions: list[Question]) -> Probed:
    return await probe(engine, choose(questions, 32), whose="training", top_k=3)


def test_embedded_questions_of_one_hop_are_asked_by_their_fact() -> None:
    pairs = choose(GeographySource().load(), 32)
    assert len(pairs) == 32 and {question.metadata["hops"] for question, _ in pairs} == {1}
    for question, query in pairs:
        assert query == f"{question.metadata['relation']} of {question.metadata['subject']}"
    assert pairs == choose(GeographySource().load(), 32), "always the same ones"


def test_other_questions_are_asked_as_they_are() -> None:
    two_hops = Question(
        uid="q", text="Which?", golden_answers=("x",), metadata={"hops": 2, "relation": "r"}
    )
    assert query_of(two_hops) == "Which?"
    assert choose([two_hops], 32) == [(two_hops, "Which?")]
    queries = [query for _, query in choose(make_questions(3), 2)]
    assert len(queries) == 2 and set(queries) < {"colour 0", "colour 1", "colour 2"}


async def test_the_scripted_simulator_knows_its_world_and_nothing_else() -> None:
    engine = ScriptedSimulator(load_facts(), splits=["train"])
    known = await probed_of(engine, list(GeographySource().load()))
    assert known.sentence() == (
        "simulator: useful documents hold a golden answer in 100% of the searches, "
        "noisy ones in 0% (32 training questions)"
    )
    assert known.warnings(BOUNDS, "simulator_check") == []
    for foreign in (make_questions(40), list(GeographySource(split="test").load())):
        unknown = await probed_of(engine, foreign)
        assert unknown.metrics()["answer_in_useful"] < 0.15
        (warning,) = unknown.warnings(BOUNDS, "simulator_check")
        assert warning.startswith("useful documents hold a golden answer in ")
        assert warning.endswith("below simulator_check.answer_in_useful=0.15")
    assert "The search for 'colour" in (await probed_of(engine, make_questions(9))).example()


@pytest.mark.parametrize("reliability", [1.0, 0.8, 0.6])
async def test_a_weak_simulator_that_is_swept_on_purpose_passes(reliability: float) -> None:
    engine = ScriptedSimulator(load_facts(), splits=["train"], reliability=reliability)
    probed = await probed_of(engine, list(GeographySource().load()))
    assert probed.warnings(BOUNDS, "simulator_check") == []
    assert probed.metrics()["answer_in_useful"] == pytest.approx(reliability, abs=0.2)
    assert probed.metrics()["answer_in_noisy"] == pytest.approx(1 - reliability, abs=0.2)


async def test_one_that_tells_the_answer_whatever_it_is_asked_for_does_not() -> None:
    probed = await probed_of(Simulator(useful=True, noisy=True), make_questions(8))
    (warning,) = probed.warnings(BOUNDS, "node")
    assert warning == (
        "noisy documents hold a golden answer in 100%, above node.answer_in_noisy=0.7"
    )
    assert probed.warnings({**BOUNDS, "answer_in_noisy": None}, "node") == []


async def test_an_engine_that_takes_no_wishes_is_asked_once() -> None:
    engine = ScriptedEngine(
        lambda request: ["red" if request.question.endswith("1") else "no"], real=True
    )
    probed = await probed_of(engine, make_questions(4))
    assert len(engine.requests) == 4 and not probed.chooses_quality
    assert probed.sentence() == (
        "search engine: documents hold a golden answer in 25% of the searches "
        "(4 training questions)"
    )
    assert probed.warnings(BOUNDS, "simulator_check") == [], "it finds what it finds"


async def test_searches_that_fail_are_paid_for_and_named() -> None:
    class Failing(Simulator):
        async def search(self, request: SearchRequest) -> SearchResult:
            if request.question in ("colour 0", "colour 1") and request.noise_probability == 0:
                raise SearchError("http://sim", "HTTP 401: Invalid key", tokens=7, cost_usd=0.5)
            return await super().search(request)

    probed = await probed_of(Failing(useful=True, noisy=False), make_questions(4))
    assert probed.metrics() == {
        "questions": 4,
        "failed": 0.25,
        "answer_in_useful": 1.0,
        "answer_in_noisy": 0.0,
    }
    assert probed.price() == (2 * 7 + 6 * 10, pytest.approx(2 * 0.5 + 6 * 0.01))
    (warning,) = probed.warnings(BOUNDS, "simulator_check")
    assert "searches for useful documents failed in 50%" in warning
    assert probed.example() == "One failed: search engine http://sim: HTTP 401: Invalid key"


async def test_answers_that_are_in_any_text_are_not_judged() -> None:
    probed = await probed_of(Simulator(useful=False, noisy=False), make_questions(4, golden="yes"))
    assert probed.warnings(BOUNDS, "simulator_check") == []
    assert "no golden answer that can be looked for" in probed.sentence()


async def test_held_out_questions_are_asked_once_each() -> None:
    engine = Simulator(useful=False, noisy=False)
    probed = await warn_where_unknown(engine, "mine", make_questions(6), whose="held-out")
    asked = [request.question for request in engine.requests]
    assert sorted(asked) == sorted({f"colour {number}" for number in range(6)})
    assert probed is not None and probed.price() == (6 * 10, pytest.approx(0.06))
    finds = ScriptedEngine(lambda request: ["red"], real=True)
    assert await warn_where_unknown(finds, "bm25", make_questions(6), whose="held-out") is None
    assert len(finds.requests) == 1, "an engine that takes no wishes finds what it finds"
