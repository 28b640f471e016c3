"""Which groups are replaced, by which questions, and where that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tests.helpers.engines import ScriptedEngine
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import (
    Records,
    make_data,
    make_questions,
    make_training,
    make_turns_trajectory,
)
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.data.loaders import QuestionBatch
from zerosearch.reward.rubric import Rubric
from zerosearch.training.resampling import PlayedGroups, is_flat, play_groups
from zerosearch.training.rollout_plan import RolloutPlan
from zerosearch.training.step_record import StepRecord
from zerosearch.types import Question, Trajectory

# one letter per sibling: right, wrong, or lost to a failed search
MIXED, RIGHT, WRONG, LOST, ONE_LEFT = "rwr", "rrr", "www", "xxx", "xrx"


def make_group(outcomes: str, number: int = 0, uid: str = "q:0") -> list[Trajectory]:
    question = Question(uid=uid, text="colour", golden_answers=("red",))
    group = []
    for sibling, outcome in enumerate(outcomes):
        colour = "red" if outcome == "r" else "blue"
        trajectory = make_turns_trajectory(
            [[1]],
            text=f"<answer> {colour} </answer>",
            group=number,
            sibling=sibling,
            error="search engine x: down" if outcome == "x" else None,
        )
        trajectory.question = question
        group.append(trajectory)
    return group


class Script:
    """Plays the same outcome of a question every time and remembers what it was asked."""

    def __init__(self, outcomes: Sequence[str]) -> None:
        self.outcomes = {f"q:{n}": each for n, each in enumerate(outcomes)}
        self.calls: list[tuple[list[str], int]] = []

    async def play(self, questions: Sequence[Question], first_group: int) -> list[Trajectory]:
        self.calls.append(([question.uid for question in questions], first_group))
        return [
            trajectory
            for number, question in enumerate(questions, first_group)
            for trajectory in make_group(self.outcomes[question.uid], number, question.uid)
        ]


def play(script: Script, own: int, *, rounds: int, **place: int) -> PlayedGroups:
    """The first `own` questions of the script are the step's, the others are spares."""
    questions = make_questions(len(script.outcomes))
    plan = RolloutPlan(
        step=0, questions=questions[:own], spares=questions[own:], noise_probability=0.0
    )
    where: Any = {"rank": 0, "world_size": 1, **place}
    return asyncio.run(play_groups(script.play, plan, Rubric(), rounds=rounds, **where))


def uids(trajectories: Sequence[Trajectory]) -> list[str]:
    return list(dict.fromkeys(trajectory.question.uid for trajectory in trajectories))


@pytest.mark.parametrize(
    ("outcomes", "flat"),
    [
        (MIXED, False),
        (RIGHT, True),
        (WRONG, True),
        ("rxr", True),  # what is left is equal
        ("rxw", False),
        (ONE_LEFT, False),  # it lost the others, a new group may lose them as well
        (LOST, True),
        ("r", False),
    ],
)
def test_a_group_is_flat_where_all_valid_rewards_are_equal(outcomes: str, flat: bool) -> None:
    assert is_flat(make_group(outcomes), Rubric()) == flat


def test_flat_groups_are_replaced_until_none_is_left() -> None:
    script = Script([RIGHT, MIXED, WRONG, MIXED, WRONG, MIXED, MIXED, MIXED, MIXED])
    played = play(script, 3, rounds=2)
    assert script.calls == [(["q:0", "q:1", "q:2"], 0), (["q:3", "q:4"], 3), (["q:5"], 6)]
    assert uids(played.kept) == ["q:1", "q:3", "q:5"]
    assert uids(played.dropped) == ["q:0", "q:2", "q:4"]
    assert played.rounds == 2
    assert [trajectory.sibling for trajectory in played.kept] == [0, 1, 2] * 3


def test_a_batch_without_flat_groups_is_played_once() -> None:
    script = Script([MIXED, ONE_LEFT, MIXED, MIXED])
    played = play(script, 2, rounds=1)
    assert len(script.calls) == 1
    assert (uids(played.kept), played.dropped, played.rounds) == (["q:0", "q:1"], [], 0)


def test_after_the_last_round_the_first_flat_groups_fill_the_batch() -> None:
    script = Script([WRONG, LOST, MIXED, WRONG, MIXED, RIGHT, WRONG, WRONG, WRONG])
    played = play(script, 3, rounds=2)
    assert script.calls[1:] == [(["q:3", "q:4"], 3), (["q:5"], 6)]
    assert uids(played.kept) == ["q:2", "q:4", "q:0"]
    assert uids(played.dropped) == ["q:1", "q:3", "q:5"]
    assert played.rounds == 2


def test_every_rank_keeps_its_number_of_groups_whatever_happens() -> None:
    for outcomes in ([WRONG] * 8, [LOST] * 8, [RIGHT, WRONG, *[MIXED] * 6], [MIXED] * 8):
        played = play(Script(outcomes), 2, rounds=3)
        assert len(played.kept) == 2 * 3
        assert (len(played.kept) + len(played.dropped)) % 3 == 0


def test_invariant_05_groups_have_numbers_of_their_own_on_all_ranks_in_all_rounds() -> None:
    numbers: list[int] = []
    for rank in range(3):
        played = play(Script([WRONG] * 8), 2, rounds=3, rank=rank, world_size=3)
        groups = {trajectory.group for trajectory in played.kept + played.dropped}
        assert len(groups) == 2 * (1 + 3)
        numbers += groups
    assert sorted(numbers) == list(range(3 * 2 * (1 + 3)))


def test_without_rounds_nothing_is_replaced_or_scored() -> None:
    class Unused(Rubric):
        def score(self, trajectory: Trajectory):
            raise AssertionError("scored")

    script = Script([WRONG, RIGHT])
    plan = RolloutPlan(step=0, questions=make_questions(2), noise_probability=0.0)
    played = asyncio.run(play_groups(script.play, plan, Unused(), rounds=0, rank=1, world_size=2))
    assert script.calls == [(["q:0", "q:1"], 2)]
    assert (uids(played.kept), played.dropped, played.rounds) == (["q:0", "q:1"], [], None)


def test_too_few_spares_are_an_error_before_anything_is_sampled() -> None:
    script = Script([WRONG, RIGHT, MIXED])
    with pytest.raises(
        ValueError, match=r"resampling_rounds=1.*up to 2 .*hands out 1 as QuestionBatch\.spares"
    ):
        play(script, 2, rounds=1)
    assert not script.calls


# -- whole policy steps ---------------------------------------------------------------------------


def train(rounds: int, engine: ScriptedEngine | None = None) -> list[StepRecord]:
    """Two steps of four pairs; of two answers, most are both wrong."""
    algorithm = Algorithm(group_size=2, kl_coefficient=0.0, resampling_rounds=rounds)
    module = make_training(algorithm=algorithm, search=engine, policy_steps=2)
    records = Records()
    data = make_data(make_questions(40), questions_per_step=4)
    make_trainer(2, callbacks=[records], val_every=None).fit(module, data)
    return records.steps


def test_a_step_trains_on_groups_that_teach_something() -> None:
    engine = ScriptedEngine(["red"])
    without, replaced = train(0), train(4, engine)
    for record in replaced:
        assert (
            len(record.trajectories) == 4 * 2 and len({t.group for t in record.trajectories}) == 4
        )
        assert record.metrics["advantage/zero_groups"] == 0.0
        assert record.metrics["sampling/dropped_groups"] > 0.0
        assert 1 <= record.metrics["sampling/rounds"] <= 4
        assert all(advantage != 0 for advantage in record.advantages)
    assert max(record.metrics["advantage/zero_groups"] for record in without) > 0.0
    assert replaced[-1].metrics["cost/searches"] == len(engine.requests), "dropped ones as well"


def test_data_without_spares_is_an_error_that_says_so() -> None:
    algorithm = Algorithm(group_size=2, kl_coefficient=0.0, resampling_rounds=2)
    module = make_training(algorithm=algorithm)
    questions: Any = [QuestionBatch(make_questions(4))]
    with pytest.raises(ValueError, match=r"resampling_rounds=2.*0 as QuestionBatch\.spares"):
        make_trainer(1, callbacks=[], val_every=None).fit(
            module, DataLoader(questions, batch_size=None)
        )
