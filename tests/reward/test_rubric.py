import math

import hydra
import pytest
from omegaconf import OmegaConf

from zerosearch.reward.rubric import RewardScore, RewardTerm, Rubric
from zerosearch.types import Question, Trajectory, Turn


def trajectory(*turns: Turn, error: str | None = None) -> Trajectory:
    question = Question(uid="geo/7", text="Capital of France?", golden_answers=("Paris",))
    return Trajectory(
        question=question, group=0, sibling=0, prompt_ids=[1], turns=list(turns), error=error
    )


def answering(text: str) -> Trajectory:
    return trajectory(Turn(text=text, action="answer"))


def test_default_reward_is_f1_alone() -> None:
    score = Rubric().score(answering("<answer>Paris in France</answer>"))
    assert score == RewardScore(total=0.5, f1=0.5, em=0.0, cover_em=1.0)


def test_terms_are_weighted_and_summed() -> None:
    rubric = Rubric(
        {
            "constant": RewardTerm(function=lambda _: 2.0, weight=0.25),
            "turns": RewardTerm(function=lambda episode: len(episode.turns), weight=-0.1),
        }
    )
    score = rubric.score(answering("<answer>Paris</answer>"))
    assert score.total == pytest.approx(2.0 * 0.25 - 0.1)
    assert (score.f1, score.em, score.cover_em) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("text", ["", "Paris", "<answer>Paris", "<answer></answer>"])
def test_no_answer_is_reward_zero(text: str) -> None:
    assert Rubric().score(answering(text)) == RewardScore(total=0.0, f1=0.0, em=0.0, cover_em=0.0)


def test_invariant_03_defect_03_answer_in_a_document_does_not_count() -> None:
    searched = Turn(
        text="<search>France</search>",
        action="search",
        query="France",
        observation="<information>Doc 1: <answer>Paris</answer></information>",
    )
    assert Rubric().score(trajectory(searched)).total == 0.0
    assert Rubric().score(trajectory(searched, Turn(text="hm", action="invalid"))).total == 0.0


def test_invariant_03_defect_03_answer_in_the_prompt_or_an_earlier_turn_does_not_count() -> None:
    episode = trajectory(
        Turn(text="<answer>Paris</answer><search>x</search>", action="search", query="x"),
        Turn(text="<answer>Rome</answer>", action="answer"),
    )
    assert Rubric().score(episode).total == 0.0
    assert Rubric().score(trajectory()).total == 0.0  # nothing sampled at all


def test_invalid_trajectory_has_no_reward() -> None:
    with pytest.raises(AssertionError, match="simulator down"):
        Rubric().score(trajectory(error="simulator down"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_reward_that_is_not_finite_names_term_and_question(value: float) -> None:
    rubric = Rubric({"style": RewardTerm(function=lambda _: value, weight=0.0)})
    with pytest.raises(ValueError, match=r"'style' is (nan|inf) for question 'geo/7'"):
        rubric.score(answering("<answer>Paris</answer>"))


def test_bad_terms_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        Rubric({})
    with pytest.raises(ValueError, match=r"terms\.style\.weight=nan"):
        Rubric({"style": RewardTerm(function=lambda _: 1.0, weight=math.nan)})


def test_rubric_is_made_from_yaml() -> None:
    node = OmegaConf.create(
        """
        _target_: zerosearch.reward.rubric.Rubric
        terms:
          em:
            _target_: zerosearch.reward.rubric.RewardTerm
            weight: 0.75
            function: {_target_: zerosearch.reward.rubric.answer_exact_match, _partial_: true}
          cover:
            _target_: zerosearch.reward.rubric.RewardTerm
            weight: 0.25
            function: {_target_: zerosearch.reward.rubric.answer_cover_match, _partial_: true}
        """
    )
    rubric = hydra.utils.instantiate(node)
    assert rubric.score(answering("<answer>Paris, France</answer>")).total == 0.25
    assert rubric.score(answering("<answer>Paris</answer>")).total == 1.0
