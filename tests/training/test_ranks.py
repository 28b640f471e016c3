"""A policy step shared by two processes is the step of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.training_ranks import BUDGET, PPO, RANKS, run_rank, train_rank
from zerosearch.training.batching import split_micro_batches

MEASURED = ("time/", "throughput/", "memory/", "search/latency_s")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes made of the same runs."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(RANKS, run_rank, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def assert_same(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for name, tensor in alone["weights"].items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
        torch.testing.assert_close(ranks[0]["weights"][name], tensor, rtol=0, atol=1e-6)
    assert ranks[0]["metrics"].keys() == alone["metrics"].keys()
    for name, value in alone["metrics"].items():
        if not name.startswith(MEASURED):
            for rank in ranks:
                assert rank["metrics"][name] == pytest.approx(value, abs=1e-5), name


def test_invariant_06_invariant_09_two_ranks_make_the_step_of_one(
    ranks: list[dict[str, Any]],
) -> None:
    steps = [rank["one step"] for rank in ranks]
    own = [len(split_micro_batches(step["lengths"], BUDGET)) for step in steps]
    passes = [step["backward_passes"] for step in steps]
    assert own[0] > own[1] >= 2, "the ranks sampled unequal work"
    assert passes[0] == passes[1] < own[0], "and trained on equal shares of it"
    assert steps[0]["failed"] == 0 and steps[1]["failed"] > 0
    alone = train_rank(1)
    assert_same(steps, alone)
    assert alone["metrics"]["optimizer/gradient_norm"] > 1e-2
    assert steps[0]["entropies"] == steps[1]["entropies"]
    assert len(steps[0]["entropies"]) == steps[0]["watched"] + steps[1]["watched"]
    for key in alone["entropies"].keys() & steps[0]["entropies"].keys():
        assert steps[0]["entropies"][key] == pytest.approx(alone["entropies"][key], abs=1e-5)


def test_invariant_06_two_ranks_that_sample_ahead_train_as_one(
    ranks: list[dict[str, Any]],
) -> None:
    alone = train_rank(1, lag=1, steps=3)
    assert alone["metrics"]["rollout/lag"] == 1.0
    assert_same([rank["lagging"] for rank in ranks], alone)


def test_two_ranks_skip_the_update_that_is_not_finite_on_one(ranks: list[dict[str, Any]]) -> None:
    alone = train_rank(1, steps=2, poisoned_step=0)
    assert alone["metrics"]["optimizer/skipped"] == 1.0
    assert_same([rank["skipping"] for rank in ranks], alone)


def test_invariant_06_two_ranks_with_a_critic_train_as_one(ranks: list[dict[str, Any]]) -> None:
    alone = train_rank(1, algorithm=PPO, steps=2)
    assert any(name.startswith("critic.") for name in alone["weights"])
    assert alone["metrics"]["critic/gradient_norm"] > 1e-3
    assert_same([rank["critic"] for rank in ranks], alone)
