"""Sampled batches, and their way through a checkpoint."""

from __future__ import annotations

import dataclasses
import io

import torch

from tests.helpers.policy_stub import make_trajectory
from zerosearch.training.rollout_plan import SampledBatch, put_together, take_apart
from zerosearch.types import Shown


def test_a_trajectory_survives_a_checkpoint_of_plain_containers() -> None:
    for error in (None, "search engine x: down"):
        before = make_trajectory(sibling=2, error=error)
        before.response_ids, before.sampled, before.logprobs = [5, 6], [True, False], [-0.1, 0.0]
        before.weight_versions = [3, 4]
        before.turns[0].shown = Shown(documents=1, cut_at=9)
        file = io.BytesIO()
        torch.save(take_apart(before), file)
        file.seek(0)
        after = put_together(torch.load(file, weights_only=True))
        assert after == before
        assert after.question == before.question and after.searches == before.searches


def test_the_lag_is_counted_in_policy_steps_per_turn() -> None:
    one = dataclasses.replace(make_trajectory(), weight_versions=[7, 7])
    other = dataclasses.replace(make_trajectory(), weight_versions=[7, 9])
    batch = SampledBatch(
        step=12,
        noise_probability=0.0,
        trajectories=[one, other],
        weight_steps={7: 10, 9: 12},  # evaluation synced version 8
        seconds=1.0,
    )
    assert batch.lags == [2, 2, 2, 0]
