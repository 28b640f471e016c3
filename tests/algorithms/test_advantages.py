import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.algorithms.advantages import (
    grpo,
    reinforce,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    zero_variance_groups,
)

COMPARE_SIBLINGS = [
    pytest.param(grpo, id="grpo"),
    pytest.param(partial(grpo, scale="none"), id="dr_grpo"),
    pytest.param(rloo, id="rloo"),
    pytest.param(partial(reinforce, baseline="leave_one_out"), id="leave_one_out"),
    pytest.param(reinforce_pp_baseline, id="reinforce_pp_baseline"),
]
ALL = [
    *COMPARE_SIBLINGS,
    pytest.param(reinforce, id="reinforce"),
    pytest.param(partial(reinforce, baseline="batch"), id="batch"),
    pytest.param(reinforce_pp, id="reinforce_pp"),
]

# Groups 7 and -3, rows interleaved. Group 7: 0, 1, 0.5 -> mean 0.5, unbiased std 0.5.
# Group -3: 0.2, 0.8 -> mean 0.5, unbiased std sqrt(0.18).
REWARDS = torch.tensor([0.0, 0.2, 1.0, 0.8, 0.5])
GROUPS = torch.tensor([7, -3, 7, -3, 7])


def test_grpo_matches_hand_computed_values() -> None:
    std_7, std_3 = 0.5 + 1e-6, math.sqrt(0.18) + 1e-6
    expected = torch.tensor([-0.5 / std_7, -0.3 / std_3, 0.5 / std_7, 0.3 / std_3, 0.0])
    torch.testing.assert_close(grpo(REWARDS, GROUPS), expected)


def test_grpo_without_scale_is_the_difference_to_the_mean() -> None:
    expected = torch.tensor([-0.5, -0.3, 0.5, 0.3, 0.0])
    torch.testing.assert_close(grpo(REWARDS, GROUPS, scale="none"), expected)


def test_rloo_compares_with_the_other_siblings() -> None:
    # 0 - mean(1, 0.5), 0.2 - 0.8, 1 - mean(0, 0.5), 0.8 - 0.2, 0.5 - mean(0, 1)
    expected = torch.tensor([-0.75, -0.6, 0.75, 0.6, 0.0])
    torch.testing.assert_close(rloo(REWARDS, GROUPS), expected)
    torch.testing.assert_close(reinforce(REWARDS, GROUPS, baseline="leave_one_out"), expected)


def test_reinforce_baselines() -> None:
    torch.testing.assert_close(reinforce(REWARDS, GROUPS), REWARDS)
    torch.testing.assert_close(reinforce(REWARDS, GROUPS, baseline="batch"), REWARDS - 0.5)


def test_reinforce_pp_normalises_over_the_batch() -> None:
    std = math.sqrt((0.25 + 0.09 + 0.25 + 0.09) / 4)  # batch mean 0.5
    torch.testing.assert_close(reinforce_pp(REWARDS, GROUPS), (REWARDS - 0.5) / (std + 1e-6))


@pytest.mark.parametrize("advantage", COMPARE_SIBLINGS)
def test_the_lone_survivor_of_a_group_is_compared_with_nobody(advantage) -> None:
    """Row 4 has lost its sibling, row 5, to a failed search: its raw reward is no comparison."""
    rewards = torch.tensor([0.1, 0.2, 1.0, 0.7, 0.6, math.nan])
    groups = torch.tensor([5, 9, 5, 9, 7, 7])
    valid = torch.tensor([True, True, True, True, True, False])
    result = advantage(rewards, groups, valid)
    assert result[4:].tolist() == [0.0, 0.0]
    assert result[:4].sign().tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert advantage(torch.tensor([0.75]), torch.tensor([12])).tolist() == [0.0]


def test_without_a_baseline_groups_of_one_keep_their_rewards() -> None:
    rewards = torch.tensor([0.75, 0.0, 1.0])
    assert reinforce(rewards, torch.tensor([12, 3, 5])).tolist() == rewards.tolist()
    assert reinforce(rewards[:1], torch.tensor([12])).tolist() == [0.75]


@pytest.mark.parametrize("advantage", ALL)
def test_invalid_rows_are_as_if_absent(advantage) -> None:
    valid = torch.tensor([True, True, False, True, True, False])
    rewards = torch.tensor([0.0, 0.2, math.nan, 1.0, 0.8, math.inf])
    groups = torch.tensor([1, 2, 1, 1, 2, 3])
    result = advantage(rewards, groups, valid)
    torch.testing.assert_close(result[valid], advantage(rewards[valid], groups[valid]))
    assert result[~valid].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("advantage", ALL)
def test_all_invalid_gives_zeros_and_no_rows_give_no_advantages(advantage) -> None:
    invalid = torch.zeros(5, dtype=torch.bool)
    assert advantage(REWARDS, GROUPS, invalid).tolist() == [0.0] * 5
    assert advantage(torch.empty(0), torch.empty(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("advantage", [grpo, rloo])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, 1e6])
def test_equal_rewards_give_exactly_zero(advantage, reward: float) -> None:
    """Rounding of the mean over std + 1e-6 would otherwise leave a visible advantage."""
    for count in (3, 5, 9, 11, 16):
        result = advantage(torch.full((count,), reward), torch.zeros(count, dtype=torch.long))
        assert result.tolist() == [0.0] * count


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 8), st.integers(-3, 3), st.booleans()), min_size=1, max_size=24
    ),
    seed=st.integers(0, 1000),
)
def test_row_order_and_group_names_do_not_matter(rows, seed: int) -> None:
    rewards = torch.tensor([row[0] / 8 for row in rows])
    groups = torch.tensor([row[1] for row in rows])
    valid = torch.tensor([row[2] for row in rows])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for advantage in (grpo, rloo, reinforce_pp):
        result = advantage(rewards, groups, valid)
        moved = advantage(rewards[order], 1000 - 17 * groups[order], valid[order])
        torch.testing.assert_close(moved, result[order])


def test_grpo_agrees_with_a_loop_over_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(64, generator=generator)
    groups = torch.randint(10, (64,), generator=generator)
    expected = torch.empty(64)
    for group in groups.unique():
        rows = groups == group
        expected[rows] = (rewards[rows] - rewards[rows].mean()) / (rewards[rows].std() + 1e-6)
    torch.testing.assert_close(grpo(rewards, groups), expected)


def test_defect_08_rows_of_different_questions_share_no_statistics() -> None:
    """Two data sets both start at index 0: grouping by that index would mix their questions."""
    rewards = torch.tensor([0.9, 1.0, 0.0, 0.1])  # an easy question, then a hard one
    index_in_data_set = torch.tensor([0, 0, 0, 0])
    made_by_rollouter = torch.tensor([0, 0, 1, 1])
    signs = grpo(rewards, made_by_rollouter).sign().tolist()
    assert signs == [-1.0, 1.0, -1.0, 1.0]
    assert grpo(rewards, index_in_data_set).sign().tolist() != signs


def test_zero_variance_groups_is_a_share_of_groups() -> None:
    rewards = torch.tensor([0.7, 0.7, 0.0, 1.0, 0.3, math.nan, 0.2, 0.2])
    groups = torch.tensor([1, 1, 2, 2, 3, 4, 5, 5])
    valid = torch.tensor([True] * 5 + [False] + [True] * 2)
    # 1 and 5 are flat, 2 is not, 3 has one member, 4 has no valid member.
    assert zero_variance_groups(rewards, groups, valid).item() == pytest.approx(2 / 4)


def test_zero_variance_ignores_invalid_siblings() -> None:
    rewards, groups = torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3, dtype=torch.long)
    assert zero_variance_groups(rewards, groups).item() == 0.0
    assert zero_variance_groups(rewards, groups, torch.tensor([True, True, False])).item() == 1.0


def test_zero_variance_of_nothing_is_zero() -> None:
    assert zero_variance_groups(torch.empty(0), torch.empty(0, dtype=torch.long)).item() == 0.0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards_B\[1\] is nan"):
        grpo(torch.tensor([0.0, math.nan]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"group_B has shape \(3,\)"):
        grpo(torch.zeros(2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"rewards_B has shape \(2, 1\)"):
        rloo(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="scale='max'"):
        grpo(REWARDS, GROUPS, scale="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="baseline='median'"):
        reinforce(REWARDS, GROUPS, baseline="median")  # pyright: ignore[reportArgumentType]


def test_integer_rewards_are_accepted() -> None:
    result = grpo(torch.tensor([0, 1]), torch.tensor([3, 3]), scale="none")
    torch.testing.assert_close(result, torch.tensor([-0.5, 0.5]))
