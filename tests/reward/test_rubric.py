import math
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.reward.rubric import MAX_LATE, RewardScore, RewardTerm, Rubric
from zerosearch.training.metrics import rollout_metrics
from zerosearch.types import Question, Trajectory, Turn


def trajectory(*turns: Turn, error: str | None = None) -> Trajectory:
    question = Question(uid="geo/7", text="Capital of France?", golden_answers=("Paris",))
    return Trajectory(
        question=question, group=0, sibling=0, prompt_ids=[1], turns=list(turns), error=error
    )


def scored(rubric: Rubric, episode: Trajectory) -> RewardScore:
    score = rubric.score(episode)
    assert score is not None
    return score


def answering(text: str) -> Trajectory:
    return trajectory(Turn(text=text, action="answer"))


def test_default_reward_is_f1_alone() -> None:
    score = Rubric().score(answering("<answer>Paris in France</answer>"))
    assert score == RewardScore(total=0.5, f1=0.5, em=0.0, cover_em=1.0, terms={"f1": 0.5})


def test_terms_are_weighted_and_summed() -> None:
    rubric = Rubric(
        {
            "constant": RewardTerm(function=lambda _: 2.0, weight=0.25),
            "turns": RewardTerm(function=lambda episode: len(episode.turns), weight=-0.1),
        }
    )
    score = scored(rubric, answering("<answer>Paris</answer>"))
    assert score.total == pytest.approx(2.0 * 0.25 - 0.1)
    assert (score.f1, score.em, score.cover_em) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("text", ["", "Paris", "<answer>Paris", "<answer></answer>"])
def test_no_answer_is_reward_zero(text: str) -> None:
    assert Rubric().score(answering(text)) == RewardScore(
        total=0.0, f1=0.0, em=0.0, cover_em=0.0, terms={"f1": 0.0}
    )


def test_invariant_03_defect_03_answer_in_a_document_does_not_count() -> None:
    searched = Turn(
        text="<search>France</search>",
        action="search",
        query="France",
        observation="<information>Doc 1: <answer>Paris</answer></information>",
    )
    assert scored(Rubric(), trajectory(searched)).total == 0.0
    assert scored(Rubric(), trajectory(searched, Turn(text="hm", action="invalid"))).total == 0.0


def test_invariant_03_defect_03_answer_in_the_prompt_or_an_earlier_turn_does_not_count() -> None:
    episode = trajectory(
        Turn(text="<answer>Paris</answer><search>x</search>", action="search", query="x"),
        Turn(text="<answer>Rome</answer>", action="answer"),
    )
    assert scored(Rubric(), episode).total == 0.0
    assert scored(Rubric(), trajectory()).total == 0.0  # nothing sampled at all


def test_invalid_trajectory_has_no_reward() -> None:
    with pytest.raises(AssertionError, match="simulator down"):
        Rubric().score(trajectory(error="simulator down"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_reward_that_is_not_finite_names_term_and_question(value: float) -> None:
    rubric = Rubric({"style": RewardTerm(function=lambda _: value, weight=0.0)})
    with pytest.raises(ValueError, match=r"'style' .* returned (nan|inf) .*for question 'geo/7'"):
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
    assert scored(rubric, answering("<answer>Paris, France</answer>")).total == 0.25
    assert scored(rubric, answering("<answer>Paris</answer>")).total == 1.0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "None (NoneType)"),
        ([1.0], "[1.0] (list)"),
        ({}, "{} (dict)"),
        ("1.0", "'1.0' (str)"),
        (torch.zeros(2), "(Tensor)"),
        (1j, "1j (complex)"),
        (10**400, "(int)"),
    ],
)
def test_a_reward_that_is_no_number_names_its_function_and_the_question(value, said) -> None:
    def graded(_: Trajectory) -> object:
        return value

    rubric = Rubric({"style": RewardTerm(function=partial(graded))})  # type: ignore[arg-type]
    with pytest.raises(ZeroSearchError) as refused:
        rubric.score(answering("<answer>Paris</answer>"))
    for part in ("reward term 'style' (tests.", "graded) returned", said, "question 'geo/7'"):
        assert part in str(refused.value)


def test_numbers_of_libraries_are_rewards() -> None:
    values: list[Any] = [True, np.float32(1), torch.ones(()), torch.ones(1)]
    for value in values:
        rubric = Rubric({"style": RewardTerm(function=lambda _, value=value: value)})
        assert scored(rubric, answering("<answer>Paris</answer>")).total == 1.0


def test_an_error_inside_a_reward_function_says_where() -> None:
    def broken(_: Trajectory) -> float:
        return {}["x"]

    with pytest.raises(KeyError) as raised:
        Rubric({"style": RewardTerm(function=broken)}).score(answering("x"))
    assert "reward term 'style' (tests" in raised.value.__notes__[0]
    assert "question 'geo/7'" in raised.value.__notes__[0]


def wait(_: Trajectory) -> float:
    time.sleep(600)
    return 1.0


def match(_: Trajectory) -> float:
    return float(bool(re.match(r"(a+)+b", "a" * 60)))  # holds the interpreter for years


def block(_: Trajectory) -> float:
    threading.Event().wait()
    return 1.0


@pytest.mark.parametrize("function", [wait, match, block])
def test_a_reward_that_never_returns_makes_its_trajectory_invalid(function, caplog) -> None:
    ends_soon = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    rubric = Rubric({"style": RewardTerm(function=function)}, timeout_s=0.05)
    episode = answering("<answer>Paris</answer>")
    assert rubric.score(episode) is None
    assert (episode.valid, episode.stop_reason) == (False, "reward_failed")
    said = f"reward term 'style' ({__name__}.{function.__qualname__}) took longer than 0.05 s"
    assert episode.error == f"{said} for question 'geo/7'" and said in caplog.text
    assert rollout_metrics([episode, answering("x")], [None, None]) == {
        "rollout/valid": 0.5,
        "reward/failed": 0.5,
        "search/failed": 0.0,
    }
    assert signal.getsignal(signal.SIGALRM) == ends_soon[0], "pytest's own timer goes on"
    assert 0 <= ends_soon[1][0] - signal.getitimer(signal.ITIMER_REAL)[0] < 5


@pytest.mark.parametrize("function", [wait, block])
def test_the_bound_holds_in_other_threads(function) -> None:
    rubric = Rubric({"style": RewardTerm(function=function)}, timeout_s=0.05)
    episode = answering("<answer>Paris</answer>")
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(rubric.score, episode).result() is None
        score = threads.submit(Rubric().score, answering("<answer>Paris</answer>")).result()
        assert score is not None and score.total == 1.0
    assert episode.stop_reason == "reward_failed"


def test_a_loop_left_behind_by_another_thread_ends() -> None:
    ended = threading.Event()

    def loop(_: Trajectory) -> float:
        try:
            while True:
                sum(range(100))
        finally:
            ended.set()

    rubric = Rubric({"style": RewardTerm(function=loop)}, timeout_s=0.05)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(rubric.score, answering("x")).result() is None
    assert ended.wait(10), "it takes no processor any more"


def test_a_function_that_never_returns_at_all_ends_the_run() -> None:
    hangs = [True]
    rubric = Rubric(
        {"style": RewardTerm(function=lambda episode: wait(episode) if hangs[0] else 1.0)},
        timeout_s=0.01,
    )
    for _ in range(MAX_LATE):
        assert rubric.score(answering("x")) is None
    hangs[0] = False
    assert rubric.score(answering("x")) is not None, "one that returns breaks the row"
    hangs[0] = True
    for _ in range(MAX_LATE):
        assert rubric.score(answering("x")) is None
    with pytest.raises(InputError, match=r"'style' .*0\.01 s .*5 trajectories before.*timeout_s"):
        rubric.score(answering("x"))


def test_a_bound_of_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rubric\.timeout_s=0"):
        Rubric(timeout_s=0)
