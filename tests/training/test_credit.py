"""Credit for rewards: what tokens get, whoever trains on them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.training import make_turns_trajectory
from zerosearch.algorithms.advantages import grpo, reinforce_pp, rloo
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.critic import CriticSettings
from zerosearch.algorithms.values import generalized_advantages
from zerosearch.training import credit as crediting
from zerosearch.training.batching import collate
from zerosearch.training.credit import Credit, assign_credit
from zerosearch.training.schedule import warmup_schedule
from zerosearch.types import PolicyBatch, Trajectory

CRITIC = CriticSettings(optimizer=torch.optim.SGD, schedule=warmup_schedule)
REWARDS = (0.0, 1.0, 0.25, 0.5, 0.5, 0.75)  # two groups of three


def make_trajectories() -> list[Trajectory]:
    rows = []
    for index in range(len(REWARDS)):
        turns = [[3 + index] * (1 + index % 3), [4] * 2]
        row = make_turns_trajectory(turns, [[9] * (1 + index % 2)])
        rows.append(dataclasses.replace(row, group=index // 3, sibling=index % 3))
    return rows


def make_batch(trajectories: list[Trajectory]) -> PolicyBatch:
    """With log-probs and values that depend on the trajectory alone."""
    batch = collate(trajectories, pad_id=0)
    place = batch.attention_mask.cumsum(1).float()
    batch.old_logprobs = -0.1 * place - 0.01 * batch.input_ids
    batch.ref_logprobs = -0.12 * place
    batch.old_values = 0.3 * torch.sin(place + batch.input_ids)
    return batch


def credit_of_ranks(
    algorithm: Algorithm, shares: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> list[Credit]:
    """What `assign_credit` gives ranks that train on these trajectories."""
    every = make_trajectories()
    found: list[Credit] = []
    calls: list[list[Any]] = []  # collective -> value of each rank

    def run(rank: int) -> Credit:
        count = iter(range(100))

        def gather(own: Any) -> list[Any]:
            call = next(count)
            while len(calls) <= call:
                calls.append([None] * len(shares))
            calls[call][rank] = own
            # a rank that has not come here yet is heard in the next pass
            return [own if value is None else value for value in calls[call]]

        monkeypatch.setattr(crediting, "gather_objects", gather)
        mine = [every[index] for index in shares[rank]]
        rewards_B = torch.tensor([REWARDS[index] for index in shares[rank]])
        return assign_credit(algorithm, mine, rewards_B, make_batch(mine))

    for _ in range(5):  # each pass sends what the collectives before it have brought
        found = [run(rank) for rank in range(len(shares))]
    return found


ALGORITHMS = {
    "grpo": Algorithm(group_size=3, advantage=grpo),
    "rloo, KL in the reward": Algorithm(
        group_size=3, advantage=rloo, kl_in="reward", kl_kind="k1", kl_coefficient=0.3
    ),
    "reinforce_pp": Algorithm(group_size=3, advantage=reinforce_pp, kl_coefficient=0.0),
    "ppo": Algorithm(
        group_size=3,
        advantage=partial(generalized_advantages, discount=0.99, trace=0.9),
        critic=CRITIC,
        kl_in="reward",
        kl_kind="k1",
        kl_coefficient=0.3,
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(
    "shares", [[[5, 0, 2, 1, 4, 3]], [[3, 0], [5, 1, 2, 4]], [[], [*range(6)]]]
)
def test_credit_does_not_depend_on_order_or_ranks(
    name: str, shares: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = ALGORITHMS[name]
    [whole] = credit_of_ranks(algorithm, [[*range(6)]], monkeypatch)
    parts = credit_of_ranks(algorithm, shares, monkeypatch)
    for rank, share in enumerate(shares):
        found = parts[rank]
        assert found.of_trajectories == pytest.approx(whole.of_trajectories, abs=1e-6)
        assert found.metrics == pytest.approx(whole.metrics)
        for row, index in enumerate(share):
            width = found.advantages.shape[1]
            expected = whole.advantages[index, :width]
            torch.testing.assert_close(found.advantages[row], expected)
        if not share:
            assert not found.advantages.any()


def test_advantages_are_on_sampled_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(make_trajectories())
    for algorithm in ALGORITHMS.values():
        [found] = credit_of_ranks(algorithm, [[*range(6)]], monkeypatch)
        assert not found.advantages[~batch.sampled_mask].any()
        assert found.advantages[batch.sampled_mask].any()
        if found.returns is not None:
            assert not found.returns[~batch.sampled_mask].any()


def test_the_kl_is_taken_off_the_rewards_before_they_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = make_batch(make_trajectories())
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    kl_B = ((batch.old_logprobs - batch.ref_logprobs) * batch.sampled_mask).sum(dim=1)
    rewards_B = torch.tensor(REWARDS) - 0.3 * kl_B
    expected_B = rloo(rewards_B, torch.tensor([0, 0, 0, 1, 1, 1]))
    [found] = credit_of_ranks(ALGORITHMS["rloo, KL in the reward"], [[*range(6)]], monkeypatch)
    torch.testing.assert_close(torch.tensor([*found.of_trajectories.values()]), expected_B)
    assert found.metrics["reward/kl_penalty"] == pytest.approx(float(0.3 * kl_B.mean()))


def by_hand(batch: PolicyBatch, discount: float, trace: float) -> Tensor:
    """Token by token: each error is handed back to the sampled tokens before it."""
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    assert batch.old_values is not None
    rows = []
    for row in range(len(REWARDS)):
        steps = batch.sampled_mask[row].nonzero()[:, 0].tolist()
        kl = 0.3 * (batch.old_logprobs[row] - batch.ref_logprobs[row])
        values = [float(batch.old_values[row, step]) for step in steps] + [0.0]
        rewards = [-float(kl[step]) for step in steps]
        rewards[-1] += REWARDS[row]
        errors = [rewards[i] + discount * values[i + 1] - values[i] for i in range(len(steps))]
        filled = torch.zeros(batch.input_ids.shape[1])
        for i, step in enumerate(steps):
            later = range(i, len(steps))
            filled[step] = sum((discount * trace) ** (j - i) * errors[j] for j in later)
        rows.append(filled)
    return torch.stack(rows)


def test_ppo_agrees_with_a_computation_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(make_trajectories())
    raw = by_hand(batch, 0.99, 0.9)
    mask = batch.sampled_mask
    expected = torch.where(mask, (raw - raw[mask].mean()) / raw[mask].std(), 0.0)
    [found] = credit_of_ranks(ALGORITHMS["ppo"], [[*range(6)]], monkeypatch)
    torch.testing.assert_close(found.advantages, expected, atol=1e-6, rtol=1e-5)
    assert found.returns is not None and batch.old_values is not None
    returns = torch.where(mask, raw + batch.old_values, 0.0)
    torch.testing.assert_close(found.returns, returns, atol=1e-6, rtol=1e-5)
    errors = (returns - batch.old_values)[mask]
    explained = 1 - float(errors.var() / returns[mask].var())
    assert found.metrics["critic/explained_variance"] == pytest.approx(explained, abs=1e-5)
    assert found.metrics["critic/return"] == pytest.approx(float(returns[mask].mean()), abs=1e-6)


def test_equal_rewards_are_counted_before_the_kl_tells_them_apart() -> None:
    rows = make_trajectories()[:3]
    algorithm = ALGORITHMS["rloo, KL in the reward"]
    found = assign_credit(algorithm, rows, torch.ones(3), make_batch(rows))
    assert found.metrics["advantage/zero_groups"] == 1.0
    assert found.advantages.any()


def test_a_step_without_a_valid_trajectory_has_no_credit_to_give() -> None:
    for algorithm in (ALGORITHMS["grpo"], ALGORITHMS["reinforce_pp"], ALGORITHMS["ppo"]):
        batch = make_batch([])
        found = assign_credit(algorithm, [], torch.zeros(0), batch)
        assert found.of_trajectories == {} and not found.advantages.any()
        assert found.metrics["advantage/zero_groups"] == 0.0
