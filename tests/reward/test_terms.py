from __future__ import annotations

from pathlib import Path

import hydra
import pytest

from tests.helpers.configs import compose_config
from zerosearch.reward.terms import (
    malformed,
    no_answer,
    no_search,
    overlong,
    repeated_query,
    retrieved_answer,
    well_formed,
)
from zerosearch.types import Action, Document, Question, SearchResult, Trajectory, Turn


def make_trajectory(*turns: Turn, sampled: int = 0, inserted: int = 0) -> Trajectory:
    return Trajectory(
        question=Question(uid="geo/7", text="Capital of France?", golden_answers=("Paris",)),
        group=0,
        sibling=0,
        prompt_ids=[1],
        turns=list(turns),
        sampled=[True] * sampled + [False] * inserted,
    )


def acting(*actions: Action) -> Trajectory:
    return make_trajectory(*(Turn(text="", action=action) for action in actions))


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (["answer"], 1.0),
        (["search", "search", "answer"], 1.0),
        (["search"], 0.0),  # the last turn did not answer
        (["invalid", "answer"], 0.0),
        (["search", "invalid"], 0.0),
        ([], 0.0),
    ],
)
def test_form_is_that_every_turn_acts_and_the_last_answers(
    actions: list[Action], expected: float
) -> None:
    assert well_formed(acting(*actions)) == expected


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([], 0.0),
        ([Document(text="It is large.", title="France")], 0.0),
        ([Document(text="no"), Document(text="Its capital is PARIS.")], 1.0),
        ([Document(text="A city.", title="Paris")], 1.0),
        ([Document(text="The Parisian way.", title="Comparison")], 0.0),  # words, not characters
    ],
)
def test_retrieval_is_a_document_with_the_answer(
    documents: list[Document], expected: float
) -> None:
    result = SearchResult(documents=tuple(documents), requested=3)
    turns = [Turn(text="", action="search", result=result), Turn(text="", action="answer")]
    assert retrieved_answer(make_trajectory(*turns)) == expected
    assert retrieved_answer(make_trajectory(turns[1])) == 0.0, "nothing was searched"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> Rome </answer>", 0.0),  # wrong, but an answer
        ("It is Paris.", -1.0),
        ("<answer> Paris", -1.0),
        ("<answer></answer>", -1.0),
        ("<answer> The ?! </answer>", -1.0),  # no word that could score
        ("<answer> \u5df4\u9ece </answer>", 0.0),
    ],
)
def test_an_answer_is_missed_where_nothing_could_score(text: str, expected: float) -> None:
    earlier = Turn(text="<answer>Paris</answer>", action="invalid")
    assert no_answer(make_trajectory(earlier, Turn(text=text, action="answer"))) == expected


def test_an_episode_of_no_turn_answers_and_searches_nothing() -> None:
    empty = make_trajectory()
    assert (no_answer(empty), no_search(empty)) == (-1.0, -1.0)
    assert (repeated_query(empty), malformed(empty)) == (0.0, 0.0)


def test_a_search_is_one_that_was_made() -> None:
    found = SearchResult(documents=(), requested=3)
    asked = Turn(text="", action="search", query="x", result=found)
    too_late = Turn(text="", action="search", query="x")  # the last turn had to answer
    assert no_search(make_trajectory(asked)) == 0.0
    assert no_search(make_trajectory(too_late)) == -1.0


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ([], 0.0),
        (["a river"], 0.0),
        (["a river", "a town"], 0.0),
        (["a river", "a town", "The River?"], -1 / 3),
        (["x", "x", "x", "x"], -3 / 4),
    ],
)
def test_queries_that_were_asked_before_are_counted(queries: list[str], expected: float) -> None:
    turns = [Turn(text="", action="search", query=query) for query in queries]
    episode = make_trajectory(*turns, Turn(text="", action="answer"))
    assert repeated_query(episode) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (["search", "answer"], 0.0),
        (["invalid", "search", "invalid", "answer"], -0.5),
        (["invalid"], -1.0),
    ],
)
def test_turns_without_an_action_are_counted(actions: list[Action], expected: float) -> None:
    assert malformed(acting(*actions)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sampled", "expected"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1), (300, -1)]
)
def test_length_is_punished_from_the_buffer_on(sampled: int, expected: float) -> None:
    long = make_trajectory(sampled=sampled, inserted=1_000)
    assert overlong(long, limit=100, buffer=20) == pytest.approx(expected)


@pytest.mark.parametrize("buffer", [0, 101])
def test_a_buffer_that_cannot_be_is_refused(buffer: int) -> None:
    with pytest.raises(ValueError, match=rf"buffer={buffer} .*limit=100"):
        overlong(make_trajectory(), limit=100, buffer=buffer)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1", 0.5),
        ("exact_match", 0.0),
        ("cover_match", 1.0),
        ("shaped", 0.8),
        ("search_r1pp", 0.5),
    ],
)
def test_every_rubric_can_be_named(name: str, expected: float, tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, f"rubric={name}")
    rubric = hydra.utils.instantiate(cfg.module.rubric, _convert_="all")
    found = SearchResult(documents=(Document(text="Paris is its capital."),), requested=1)
    episode = make_trajectory(
        Turn(text="<search>France</search>", action="search", query="France", result=found),
        Turn(text="<answer>Paris in France</answer>", action="answer"),
        sampled=20,
    )
    score = rubric.score(episode)
    assert score is not None and score.total == pytest.approx(expected)


def score_of(tmp_path: Path, episode: Trajectory, *overrides: str) -> float:
    cfg = compose_config(tmp_path, "rubric=search_r1pp", *overrides)
    score = hydra.utils.instantiate(cfg.module.rubric, _convert_="all").score(episode)
    assert score is not None
    return score.total


def test_the_reward_of_search_r1pp_is_f1_less_a_tenth_for_each_action_that_is_missing(
    tmp_path: Path,
) -> None:
    found = SearchResult(documents=(), requested=1)
    ask = Turn(text="<search>France</search>", action="search", query="France", result=found)
    right = Turn(text="<answer>Paris</answer>", action="answer")
    silent = Turn(text="I do not know.", action="invalid")
    assert score_of(tmp_path, make_trajectory(ask, right)) == 1.0
    assert score_of(tmp_path, make_trajectory(right)) == pytest.approx(0.9)
    assert score_of(tmp_path, make_trajectory(ask, silent)) == pytest.approx(-0.1)
    assert score_of(tmp_path, make_trajectory(silent)) == pytest.approx(-0.2)
    ours = [f"rubric.terms.{name}.weight=0.1" for name in ("repeated_query", "malformed")]
    episode = make_trajectory(ask, ask, ask, silent)  # -0.1 and 0.1 of -2/3 and of -1/4
    assert score_of(tmp_path, episode, *ours) == pytest.approx(-0.1 - 0.2 / 3 - 0.1 / 4)
