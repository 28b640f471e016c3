from __future__ import annotations

from pathlib import Path

import hydra
import pytest

from tests.helpers.configs import compose_config
from zerosearch.reward.terms import overlong, retrieved_answer, well_formed
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
    ("name", "expected"), [("f1", 0.5), ("exact_match", 0.0), ("cover_match", 1.0), ("shaped", 0.8)]
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
