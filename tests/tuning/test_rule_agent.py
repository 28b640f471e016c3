"""The agent by rule: it reads what it answers, asks again where it must, and shows several hops."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engines import ScriptedEngine
from zerosearch.core.journal import Journal
from zerosearch.core.text import mentions
from zerosearch.data.geography.facts import asset, load_facts
from zerosearch.data.geography.source import GeographySource
from zerosearch.reward.metrics import exact_match
from zerosearch.rollout.agent import PlayedEpisode
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.bm25 import BM25Search
from zerosearch.search.engine import SearchEngine
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.tuning.budget import Budget
from zerosearch.tuning.collection import Collector
from zerosearch.tuning.episode_checks import malformed
from zerosearch.tuning.records import RecordedEpisode, read_episodes
from zerosearch.tuning.rule_agent import UNKNOWN, RuleAgent
from zerosearch.types import Question, Shown

EPISODE = EpisodeSettings(prompt_template="plain", max_turns=4, top_k=1)
QUESTIONS = GeographySource(limit=120).load()


@pytest.fixture(scope="module")
def bm25() -> BM25Search:
    return BM25Search(corpus=str(asset("corpus.jsonl.gz")))


def agent(**fields: Any) -> RuleAgent:
    return RuleAgent(load_facts(), EPISODE, **fields)


def play(
    engine: SearchEngine, question: Question, attempt: int = 0, **fields: Any
) -> PlayedEpisode:
    return asyncio.run(agent(**fields).play(question, engine, seed=0, attempt=attempt))


def collected(
    folder: Path, engine: SearchEngine, noise_probability: float
) -> list[RecordedEpisode]:
    collector = Collector(
        agent=agent(),
        engine=engine,
        score=exact_match,
        documents_per_search=1,
        noise_probability=noise_probability,
    )
    budget = Budget(folder / "spent.jsonl", queries=None, usd=None)
    with Journal(folder / "episodes.jsonl", key="id") as journal:
        asyncio.run(collector.run(QUESTIONS, journal, budget))
    budget.close()
    return read_episodes(str(folder / "episodes.jsonl"))


def check_honest(episodes: list[RecordedEpisode]) -> None:
    """Every answer was read, no query is repeated, every episode may be shown to a policy."""
    for each in episodes:
        assert all(search.shown == Shown(documents=1) for search in each.searches)
        read = [document.text for search in each.searches for document in search.documents]
        assert each.answer is not None
        assert each.answer == UNKNOWN or any(mentions(text, [each.answer]) for text in read)
        queries = [search.query for search in each.searches]
        assert len({*queries}) == len(queries)
        assert malformed(each) is None


def test_with_a_real_engine_it_is_nearly_always_right(tmp_path: Path, bm25: BM25Search) -> None:
    episodes = collected(tmp_path, bm25, 0.0)
    check_honest(episodes)
    assert sum(each.correct for each in episodes) >= 0.95 * len(episodes)
    hops = {question.text: question.metadata["hops"] for question in QUESTIONS}
    assert all(len(each.searches) >= hops[each.question] for each in episodes)
    assert all(each.correct or each.answer == UNKNOWN for each in episodes)


def test_with_noise_it_asks_again_in_other_words(tmp_path: Path) -> None:
    simulator = ScriptedSimulator(load_facts(), splits=["train"])
    episodes = collected(tmp_path, simulator, 0.5)
    check_honest(episodes)
    right = [each for each in episodes if each.correct]
    assert {*Counter(len(each.searches) for each in right)} == {1, 2, 3, 4}
    assert 0.6 < len(right) / len(episodes) < 1.0, "some find nothing in four searches"


def test_the_second_query_holds_what_the_first_documents_said(bm25: BM25Search) -> None:
    for question in QUESTIONS[:40]:
        place = load_facts().get(question.metadata["subject"])
        turns = play(bm25, question).trajectory.turns
        asked = [turn.query for turn in turns if turn.query is not None]
        assert place is not None and place.name in asked[0]
        if question.metadata["hops"] == 2 and len(asked) == 2:
            assert place.bridge[0] in asked[1] and place.name not in asked[1]


def test_the_golden_answer_is_not_looked_at(bm25: BM25Search) -> None:
    for question in QUESTIONS[:10]:
        other = dataclasses.replace(question, golden_answers=("nonsense",))
        assert play(bm25, other).texts == play(bm25, question).texts


def test_draws_come_from_seed_question_and_attempt(bm25: BM25Search) -> None:
    first = [play(bm25, question).texts for question in QUESTIONS[:10]]
    assert [play(bm25, question).texts for question in QUESTIONS[:10]] == first
    assert [play(bm25, question, attempt=1).texts for question in QUESTIONS[:10]] != first


def test_thoughts_stand_before_actions_where_there_is_room(bm25: BM25Search) -> None:
    texts = play(bm25, QUESTIONS[1]).texts
    assert all(text.startswith(("<search>", "<answer>")) for text in texts)
    thinking = play(bm25, QUESTIONS[1], thinks=True).texts
    assert len(thinking) == len(texts)
    assert all(text.startswith("<think> ") and "</think> <" in text for text in thinking)
    short = dataclasses.replace(EPISODE, max_turn_tokens=32)
    with pytest.raises(ValueError, match=r"episode\.max_turn_tokens=32: raise that, or leave"):
        RuleAgent(load_facts(), short, thinks=True)


def test_held_out_subjects_are_refused(bm25: BM25Search) -> None:
    [question, *_] = GeographySource(split="test", limit=1).load()
    with pytest.raises(ValueError, match=r"of the split 'test', and agent\.splits=\['train'\]"):
        play(bm25, question)
    assert play(bm25, question, splits=["test"]).texts


@pytest.mark.parametrize("metadata", [{}, {"subject": "Lyon", "relation": "mayor", "hops": 1}])
def test_other_questions_are_refused(bm25: BM25Search, metadata: dict[str, Any]) -> None:
    question = Question(uid="q", text="Who?", golden_answers=("Ada",), metadata=metadata)
    with pytest.raises(ValueError, match=r"question 'q' .*questions=geography, or another agent"):
        play(bm25, question)


def test_a_failed_search_makes_the_episode_invalid() -> None:
    engine = ScriptedEngine(["x"], failing=(QUESTIONS[0].text,))
    assert play(engine, QUESTIONS[0]).trajectory.error is not None
