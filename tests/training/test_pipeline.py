"""A batch sampled ahead, in a checkpoint of any number of ranks; whole runs are in test_lag.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from tests.helpers.policy_stub import make_trajectory
from tests.helpers.training import make_questions
from zerosearch.training import pipeline
from zerosearch.training.failures import SearchOutage
from zerosearch.training.pipeline import RolloutPipeline
from zerosearch.training.resampling import PlayedGroups
from zerosearch.training.rollout_plan import RolloutPlan
from zerosearch.types import Trajectory

CPU = torch.device("cpu")
SIBLINGS = 2


def make_plan(step: int, count: int = 3) -> RolloutPlan:
    return RolloutPlan(step=step, questions=make_questions(count), noise_probability=0.25)


class Made:
    """A pipeline over a sampler that numbers its trajectories.

    Args:
        broken_step: whose sampling ends in an error.
        lost_step: whose searches fail.
        dropped: trajectories of replaced groups, numbered from 100.
    """

    def __init__(
        self, broken_step: int | None = None, lost_step: int | None = None, dropped: int = 0
    ) -> None:
        self.version = 0
        self.broken_step = broken_step
        self.lost_step = lost_step
        self.dropped = dropped
        self.judged: list[int] = []  # number of trajectories that an outage was looked for in
        self.pipeline = RolloutPipeline(self.sync, self.sample, self.find_outage)

    def find_outage(self, trajectories: Sequence[Trajectory]) -> SearchOutage | None:
        self.judged.append(len(trajectories))
        return SearchOutage("connection refused") if trajectories[0].error else None

    async def sync(self) -> int:
        self.version += 1
        return self.version

    async def sample(self, plan: RolloutPlan) -> PlayedGroups:
        await asyncio.sleep(0)
        if plan.step == self.broken_step:
            raise RuntimeError("a defect in the sampler")
        kept = [self.make(plan, number) for number in range(len(plan.questions) * SIBLINGS)]
        dropped = [self.make(plan, number) for number in range(100, 100 + self.dropped)]
        return PlayedGroups(kept=kept, dropped=dropped, rounds=2 if self.dropped else None)

    def make(self, plan: RolloutPlan, number: int) -> Trajectory:
        trajectory = make_trajectory(sibling=number)
        trajectory.error = "refused" if plan.step == self.lost_step else None
        trajectory.weight_versions = [self.version] * len(trajectory.turns)
        return trajectory


def siblings(pipe: RolloutPipeline, step: int) -> list[int]:
    return [t.sibling for t in pipe.take(make_plan(step)).trajectories]


def test_a_batch_sampled_ahead_is_the_next_one_taken() -> None:
    made = Made()
    first = made.pipeline.take(make_plan(0))
    with made.pipeline.ahead(make_plan(1), CPU):
        pass
    second = made.pipeline.take(make_plan(1))
    third = made.pipeline.take(make_plan(2))
    assert [set(batch.lags) for batch in (first, second, third)] == [{0}, {1}, {0}]
    assert [batch.step for batch in (first, second, third)] == [0, 1, 2]
    assert made.version == 3, "one sync a step"


def test_nothing_ahead_leaves_nothing_to_save() -> None:
    made = Made()
    made.pipeline.take(make_plan(0))
    with made.pipeline.ahead(None, CPU):
        pass
    assert made.pipeline.state_dict() is None
    made.pipeline.load_state_dict(None, 0)
    assert set(made.pipeline.take(make_plan(1)).lags) == {0}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_saved_batch_is_shared_by_the_ranks_that_resume(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made()
    made.pipeline.take(make_plan(0))
    with made.pipeline.ahead(make_plan(1), CPU):
        pass
    state = made.pipeline.state_dict()
    assert state is not None
    monkeypatch.setattr(pipeline, "world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        resumed = Made()
        resumed.pipeline.load_state_dict(state, rank)
        batch = resumed.pipeline.take(make_plan(1, 3 // ranks))
        assert (batch.step, batch.noise_probability, set(batch.lags)) == (1, 0.25, {1})
        shares.append([t.sibling for t in batch.trajectories])
    assert [sibling for share in shares for sibling in share] == [0, 1, 2, 3, 4, 5]
    assert {len(share) for share in shares} == {6 // ranks}, "whole groups each"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_was_dropped_is_saved_too_and_looked_through_for_failures(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(dropped=4)
    made.pipeline.take(make_plan(0))
    with made.pipeline.ahead(make_plan(1), CPU):
        pass
    state = made.pipeline.state_dict()
    assert made.judged == [6 + 4, 6 + 4]
    monkeypatch.setattr(pipeline, "world_size", lambda: ranks)
    dropped = []
    for rank in range(ranks):
        resumed = Made()
        resumed.pipeline.load_state_dict(state, rank)
        batch = resumed.pipeline.take(make_plan(1, 3 // ranks))
        assert batch.rounds == 2
        assert batch.played == batch.trajectories + batch.dropped
        assert resumed.judged == [len(batch.played)]
        dropped += [t.sibling for t in batch.dropped]
    assert dropped == [100, 101, 102, 103]


def test_what_is_saved_is_trained_on_all_the_same() -> None:
    made = Made()
    made.pipeline.take(make_plan(0))
    with made.pipeline.ahead(make_plan(1), CPU):
        pass
    made.pipeline.state_dict()
    assert siblings(made.pipeline, 1) == [0, 1, 2, 3, 4, 5]


def test_what_ended_the_sampling_is_raised_by_the_step_that_needs_it_and_never_saved() -> None:
    made = Made(broken_step=1)
    made.pipeline.take(make_plan(0))
    with made.pipeline.ahead(make_plan(1), CPU):
        pass
    assert made.pipeline.state_dict() is None, "the step before is saved all the same"
    with pytest.raises(RuntimeError, match="a defect in the sampler") as raised:
        made.pipeline.take(make_plan(1))
    assert raised.traceback[-1].name == "sample", "where it happened is shown"


def test_a_batch_of_failed_searches_ends_the_step_that_needs_it_and_is_never_saved() -> None:
    made = Made(lost_step=1)
    made.pipeline.take(make_plan(0))
    with made.pipeline.ahead(make_plan(1), CPU):
        pass
    assert made.pipeline.state_dict() is None
    with pytest.raises(SearchOutage, match="connection refused"):
        made.pipeline.take(make_plan(1))
