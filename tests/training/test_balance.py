"""Shares of equal tokens, and nothing lost on the way; two real ranks are in test_ranks.py."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.helpers.training import make_turns_trajectory
from zerosearch.training import balance as balancing
from zerosearch.training.balance import balance, partition
from zerosearch.types import Trajectory


@hypothesis.given(costs=st.lists(st.integers(1, 4000), max_size=60), parts=st.integers(1, 9))
def test_every_item_is_in_one_part_of_nearly_equal_cost(costs: list[int], parts: int) -> None:
    shares = partition(costs, parts)
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[index] for index in share) for share in shares]
    # the last item of the dearest part went to what was then the cheapest
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_the_longest_go_first() -> None:
    # 9 | 7 | 7+... : 6 to 7, 5 to 7, 5 to 9 -> loads 13, 12, 14
    assert partition([7, 5, 9, 6, 5, 7], 3) == [[2, 4], [0, 3], [1, 5]]
    assert partition([], 2) == [[], []]
    assert partition([3], 2) == [[0], []], "a rank may get nothing"


def test_lengths_of_episodes_balance_to_a_percent() -> None:
    source = torch.Generator().manual_seed(0)
    lengths = (300 + 1200 * torch.rand(320, generator=source).exponential_()).clamp(max=4096)
    costs = [int(length) for length in lengths]
    loads = [sum(costs[i] for i in share) for share in partition(costs, 8)]
    assert max(loads) * 8 <= 1.01 * sum(costs)


def spread(
    ranks: list[list[Trajectory]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[Trajectory], torch.Tensor]]:
    """What `balance` gives each rank; rewards are 0.5, 1.5, ... over all ranks."""
    first = [sum(len(part) for part in ranks[:rank]) for rank in range(len(ranks))]

    def rewards(rank: int) -> list[float]:
        return [first[rank] + index + 0.5 for index in range(len(ranks[rank]))]

    sent: list[list] = []
    monkeypatch.setattr(balancing, "gather_objects", lambda own: sent.append(own) or [own])
    for rank, own in enumerate(ranks):
        balance(own, rewards(rank), 0)
    monkeypatch.setattr(balancing, "gather_objects", lambda own: sent)
    return [balance(own, rewards(rank), rank) for rank, own in enumerate(ranks)]


def test_trajectories_keep_their_tokens_and_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(length: int) -> Trajectory:
        return make_turns_trajectory([[length] * length])

    shares = spread([[of(9), of(8), of(7), of(6)], [of(1), of(2)]], monkeypatch)
    lengths = [[len(t.response_ids) for t in kept] for kept, _ in shares]
    assert [sum(2 + length for length in share) for share in lengths] == [23, 22]
    assert lengths == [[9, 6, 2], [8, 7, 1]], "in the order in which they were sampled"
    assert [rewards_B.tolist() for _, rewards_B in shares] == [[0.5, 3.5, 5.5], [1.5, 2.5, 4.5]]
    assert all(t.response_ids == [len(t.response_ids)] * len(t.response_ids) for t in shares[0][0])


def test_invariant_04_what_a_failed_search_ended_is_not_trained_on() -> None:
    failed = make_turns_trajectory([[1, 2]], error="search engine x: down")
    kept, rewards_B = balance([failed, make_turns_trajectory([[3]])], [0.0, 2.0], 0)
    assert [t.response_ids for t in kept] == [[3]] and rewards_B.tolist() == [2.0]
    assert balance([failed], [0.0], 0)[0] == []


def test_a_rank_alone_keeps_the_order() -> None:
    every = [make_turns_trajectory([[n] * n]) for n in (3, 1, 2)]
    kept, rewards_B = balance(every, [1.0, 2.0, 3.0], 0)
    assert [len(t.response_ids) for t in kept] == [3, 1, 2]
    assert rewards_B.tolist() == [1.0, 2.0, 3.0]
