"""The simulator without a language model: what it writes, and how its knobs weaken it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

import pytest

from tests.helpers.clock import Clock
from zerosearch.data.geography.facts import BRIDGE_SPLIT, Entity, FactStore, load_facts, name_key
from zerosearch.data.geography.source import GeographySource
from zerosearch.data.geography.wording import word_query
from zerosearch.reward.metrics import normalize_answer
from zerosearch.simulator import scripted
from zerosearch.simulator.scripted import ScriptedSimulator, mentions
from zerosearch.types import Question, SearchError, SearchRequest, SearchResult


def request(
    query: str = "country of Lyon",
    *,
    noise: float = 0.0,
    golden: Iterable[str] = ("France",),
    top_k: int = 3,
    seed: int = 0,
) -> SearchRequest:
    return SearchRequest(
        query=query,
        question="In which country is Lyon?",
        golden_answers=tuple(golden),
        noise_probability=noise,
        top_k=top_k,
        seed=seed,
    )


async def many(
    simulator: ScriptedSimulator, count: int, *, noise: float, seed: int = 0
) -> list[SearchResult]:
    requests = [request(noise=noise, seed=1000 * seed + index) for index in range(count)]
    return [await simulator.search(each) for each in requests]


def within(share: float, expected: float, count: int) -> bool:
    """Inside five standard deviations of a binomial share."""
    return abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / count)


def about_lyon(result: SearchResult) -> bool:
    return "Lyon" in [document.title for document in result.documents]


@pytest.fixture(scope="module")
def world() -> FactStore:
    return load_facts()


@pytest.fixture(scope="module")
def simulator(world: FactStore) -> ScriptedSimulator:
    return ScriptedSimulator(world)


@pytest.fixture(scope="module")
def held_out_questions() -> list[Question]:
    return list(GeographySource(split="test").load())


# -- quality --------------------------------------------------------------------------------------


async def test_useful_documents_hold_the_fact_that_was_asked_for(
    world: FactStore, simulator: ScriptedSimulator
) -> None:
    for number, entity in enumerate(list(world)[::40]):
        for relation, values in entity.facts.items():
            query = word_query(relation, entity.name)
            result = await simulator.search(request(query, golden=values, seed=number))
            assert (result.noisy, result.requested, len(result.documents)) == (False, 3, 3)
            (about,) = [d for d in result.documents if d.title == entity.name]
            assert values[0] in about.text and entity.name in about.text


async def test_useful_documents_depend_on_the_query_not_on_the_question(
    simulator: ScriptedSimulator,
) -> None:
    for query, title in (
        ("capital of Japan", "Japan"),
        ("where is peru on the map?", "Peru"),
        ("largest city of New Mexico", "New Mexico"),
        ("time zone of lyon", "Lyon"),
    ):
        result = await simulator.search(request(query))
        assert title in [document.title for document in result.documents]


async def test_a_query_about_nothing_known_gets_documents_about_anything(
    simulator: ScriptedSimulator,
) -> None:
    titles = set()
    for seed in range(20):
        result = await simulator.search(request("xyzzy qwfp", seed=seed))
        assert len(result.documents) == 3
        assert result.noisy, "nothing useful was written, and nothing else is on record"
        titles |= {document.title for document in result.documents}
    assert len(titles) > 40


async def test_defect_14_as_many_different_documents_as_asked_for(
    simulator: ScriptedSimulator,
) -> None:
    for noise in (0.0, 1.0):
        for top_k in (1, 2, 5, 10):
            result = await simulator.search(request(noise=noise, top_k=top_k))
            titles = [document.title for document in result.documents]
            assert len(titles) == len(set(titles)) == result.requested == top_k


async def test_the_useful_document_may_stand_anywhere(simulator: ScriptedSimulator) -> None:
    places = set()
    for seed in range(40):
        result = await simulator.search(request(seed=seed))
        places.add([document.title for document in result.documents].index("Lyon"))
    assert places == {0, 1, 2}


async def test_noisy_documents_never_hold_a_golden_answer_of_any_test_question(
    world: FactStore, simulator: ScriptedSimulator, held_out_questions: list[Question]
) -> None:
    for number, question in enumerate(held_out_questions):
        subject = world.get(question.metadata["subject"])
        assert subject is not None
        asked = subject.name if number % 2 else subject.bridge[0]
        query = word_query(question.metadata["relation"], asked)
        result = await simulator.search(
            request(query, noise=1.0, golden=question.golden_answers, seed=number)
        )
        assert result.noisy and len(result.documents) == 3
        for document in result.documents:
            words = f" {normalize_answer(f'{document.title} {document.text}')} "
            for answer in question.golden_answers:
                assert f" {normalize_answer(answer)} " not in words, (question, document)
        assert asked not in [document.title for document in result.documents]


async def test_noise_looks_like_what_was_asked_for(
    world: FactStore, simulator: ScriptedSimulator
) -> None:
    lyon = world.get("Lyon")
    assert lyon is not None
    same_kind = total = 0
    for result in await many(simulator, 100, noise=1.0):
        for document in result.documents:
            subject = world.get(document.title)
            assert subject is not None and document.text.strip()
            same_kind += subject.kind == lyon.kind
            total += 1
    assert same_kind / total > 0.7


# -- held-out subjects ----------------------------------------------------------------------------


async def test_a_simulator_of_training_shows_no_held_out_subject(world: FactStore) -> None:
    held_out = {name_key(e.name): e for e in world if e.split in ("validation", "test")}
    simulator = ScriptedSimulator(world, splits=["train"])
    queries = [word_query("country", entity.name) for entity in held_out.values()]
    queries += [word_query("capital", e.name) for e in world if e.split == BRIDGE_SPLIT]
    queries += ["", "country of"] * 50
    texts, titles = [], set()
    for seed, query in enumerate(queries):
        result = await simulator.search(request(query, noise=seed % 2, top_k=5, seed=seed))
        titles |= {name_key(document.title) for document in result.documents}
        texts += [document.text for document in result.documents]
    assert len(texts) > 5000 and len(titles) > 1500
    assert not titles & set(held_out)
    values = {name_key(v) for name in titles for v in _values(world.get(name))}
    assert not values & set(held_out), "nor as the value of a fact"


def _values(entity: Entity | None) -> list[str]:
    assert entity is not None
    return [value for values in entity.facts.values() for value in values]


async def test_all_splits_are_known_unless_told_otherwise(
    world: FactStore, simulator: ScriptedSimulator
) -> None:
    held_out = next(entity for entity in world if entity.split == "test")
    result = await simulator.search(request(word_query("country", held_out.name)))
    assert held_out.name in [document.title for document in result.documents]


# -- knobs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
async def test_the_share_of_noise_is_the_probability_asked_for(
    simulator: ScriptedSimulator, noise: float
) -> None:
    results = await many(simulator, 800, noise=noise)
    assert within(sum(bool(result.noisy) for result in results) / 800, noise, 800)
    for result in results:
        assert about_lyon(result) is (not result.noisy)


@pytest.mark.parametrize("reliability", [0.0, 0.6, 0.8])
@pytest.mark.parametrize("noise", [0.0, 1.0])
async def test_reliability_is_the_share_of_the_quality_asked_for(
    world: FactStore, reliability: float, noise: float
) -> None:
    simulator = ScriptedSimulator(world, reliability=reliability)
    results = await many(simulator, 800, noise=noise)
    as_asked = sum(about_lyon(result) is (noise == 0.0) for result in results) / 800
    assert within(as_asked, reliability, 800)
    assert {result.noisy for result in results} == {noise == 1.0}, "on record is what was asked"


async def test_reliability_does_not_move_the_draw_of_the_quality(world: FactStore) -> None:
    weak, strong = ScriptedSimulator(world, reliability=0.5), ScriptedSimulator(world)
    noisy = [
        [result.noisy for result in await many(each, 100, noise=0.5)] for each in (weak, strong)
    ]
    assert noisy[0] == noisy[1]


async def test_failures_are_errors_that_name_the_simulator(world: FactStore) -> None:
    simulator = ScriptedSimulator(world, failure_rate=0.2)
    failed = 0
    for seed in range(800):
        try:
            await simulator.search(request(seed=seed))
        except SearchError as error:
            failed += 1
            assert error.endpoint == "scripted simulator"
            assert "failure_rate" in error.reason
    assert within(failed / 800, 0.2, 800)


def test_latency_is_waited_for_without_blocking_others(
    world: FactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = ScriptedSimulator(world, latency_s=10.0, latency_spread=0.5)
    clock = Clock()
    monkeypatch.setattr(scripted, "time", clock)

    async def search_at_once() -> list[SearchResult]:
        return await asyncio.gather(*(simulator.search(request(seed=s)) for s in range(20)))

    started = clock.now
    latencies = [result.latency_s for result in clock.run(search_at_once())]
    assert clock.now - started == pytest.approx(max(latencies), abs=0.01)
    assert 5.0 <= min(latencies) < max(latencies) <= 15.01 and len(set(latencies)) == 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reliability": 1.5}, r"simulator.reliability=1.5: give a share between 0 and 1"),
        ({"failure_rate": -0.1}, r"simulator.failure_rate=-0.1"),
        ({"latency_spread": 2.0}, r"simulator.latency_spread=2.0"),
        ({"latency_s": -1.0}, r"simulator.latency_s=-1.0: give seconds"),
        ({"splits": ["tran"]}, r"splits=\['tran'\].*'test', 'train', 'validation'"),
    ],
)
def test_a_bad_knob_is_refused(world: FactStore, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScriptedSimulator(world, **fields)


def test_a_world_without_places_is_refused() -> None:
    with pytest.raises(ValueError, match="the facts hold nothing"):
        ScriptedSimulator(FactStore([]))


# -- position -------------------------------------------------------------------------------------


async def test_invariant_14_the_seed_alone_decides(world: FactStore) -> None:
    simulator = ScriptedSimulator(world, reliability=0.7)
    requests = [request(noise=0.5, seed=seed) for seed in range(30)]
    first = [await simulator.search(each) for each in requests]
    backwards = [await simulator.search(each) for each in reversed(requests)]
    for one, other in zip(first, reversed(backwards), strict=True):
        assert (one.noisy, one.documents) == (other.noisy, other.documents)
    assert len({result.documents for result in first}) > 25


async def test_the_noise_of_a_search_grows_with_its_probability(
    simulator: ScriptedSimulator,
) -> None:
    """With one seed, what is noisy at a low probability is noisy at every higher one."""
    low = {i for i, r in enumerate(await many(simulator, 200, noise=0.2)) if r.noisy}
    high = {i for i, r in enumerate(await many(simulator, 200, noise=0.6)) if r.noisy}
    assert low < high


# -- whole-word mentions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("It lies in China.", ("IN",), True),
        ("It belongs to China.", ("IN",), False),
        ("the state of texas", ("Texas", "TX"), True),
        ("A city, São Paulo!", ("sao paulo",), True),
        ("Its domain is .pe", (".pe",), True),
        ("Peru", ("Per", "eru"), False),
        ("Peru", (), False),
        ("Peru", ("?!",), False),
    ],
)
def test_an_answer_is_mentioned_as_whole_words(
    text: str, answers: tuple[str, ...], found: bool
) -> None:
    assert mentions(text, answers) is found
