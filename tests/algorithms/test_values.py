from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zerosearch.algorithms.values import (
    generalized_advantages,
    mean_and_variance,
    moments,
    token_rewards,
    value_loss,
    whiten,
)

# two turns with a document of two tokens between them; an invalid row; one token
MASK = torch.tensor(
    [
        [False, True, True, False, False, True, False],
        [False, False, False, False, False, False, False],
        [False, False, True, False, False, False, False],
    ]
)
NO_PENALTY = torch.zeros(3, 7)


def random_rows(seed: int, rows: int = 6, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = (rows, length)
    mask = torch.rand(shape, generator=draw) < 0.6
    mask[0] = False
    rewards = torch.randn(shape, generator=draw, dtype=torch.float64)
    values = torch.randn(shape, generator=draw, dtype=torch.float64)
    return rewards, values, mask


def test_the_reward_is_at_the_last_sampled_token() -> None:
    penalties = torch.full((3, 7), 0.25)
    found = token_rewards(torch.tensor([2.0, 9.0, 1.0]), penalties, MASK)
    expected = torch.zeros(3, 7)
    expected[0, [1, 2]] = -0.25
    expected[0, 5] = 1.75
    expected[2, 2] = 0.75
    torch.testing.assert_close(found, expected)


def test_documents_are_no_time_steps() -> None:
    """By hand: tokens 1, 2 and 5 are three successive steps."""
    rewards = token_rewards(torch.tensor([1.0, 0.0, 1.0]), NO_PENALTY, MASK)
    values = torch.full((3, 7), math.nan)
    values[0, [1, 2, 5]] = torch.tensor([0.5, 0.2, 0.4])
    values[2, 2] = 0.3
    advantages, returns = generalized_advantages(rewards, values, MASK, discount=0.9, trace=0.8)
    last = 1.0 - 0.4
    middle = 0.9 * 0.4 - 0.2 + 0.72 * last
    first = 0.9 * 0.2 - 0.5 + 0.72 * middle
    expected = torch.zeros(3, 7)
    expected[0, [1, 2, 5]] = torch.tensor([first, middle, last])
    expected[2, 2] = 0.7
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns[MASK], (advantages + values)[MASK])
    assert not returns[~MASK].any()


def test_defect_09_inserted_tokens_change_nothing() -> None:
    """Taking the inserted tokens out gives the same advantages for the others."""
    rewards, values, mask = random_rows(0)
    whole, _ = generalized_advantages(rewards, values, mask, discount=0.9, trace=0.7)
    for row in range(1, len(mask)):
        kept = mask[row]
        alone, _ = generalized_advantages(
            rewards[row : row + 1, kept],
            values[row : row + 1, kept],
            torch.ones(1, int(kept.sum()), dtype=torch.bool),
            discount=0.9,
            trace=0.7,
        )
        torch.testing.assert_close(whole[row, kept], alone[0])


def test_without_discount_and_trace_it_is_the_return_minus_the_value() -> None:
    rewards, values, mask = random_rows(1)
    advantages, returns = generalized_advantages(rewards, values, mask)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, (to_go - values) * mask)


@pytest.mark.slow  # importing torchrl takes some seconds
@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_those_of_torchrl(seed: int) -> None:
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    rewards, values, mask = random_rows(seed)
    found, returns = generalized_advantages(rewards, values, mask, discount=0.95, trace=0.8)
    for row in range(1, len(mask)):
        kept = mask[row]
        reward, value = rewards[row, kept][:, None], values[row, kept][:, None]
        done = torch.zeros_like(reward, dtype=torch.bool)
        done[-1] = True
        following = torch.cat([value[1:], torch.zeros(1, 1, dtype=value.dtype)])
        expected, target = generalized_advantage_estimate(
            0.95, 0.8, value, following, reward, done, done
        )
        torch.testing.assert_close(found[row, kept], expected[:, 0], rtol=0, atol=1e-6)
        torch.testing.assert_close(returns[row, kept], target[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        (1.2, 0.5 * 0.8**2, -0.8),
        (1.9, 0.5 * 0.5**2, 0.0),  # 0.4 beyond the clip: the error of 1.5 is the larger one
        (0.5, 0.5 * 1.5**2, -1.5),  # a move away from the return is never clipped
        (3.0, 0.5 * 1.0**2, 1.0),  # the present error is the larger one
    ],
)
def test_value_loss_is_clipped_around_the_old_value(
    value: float, loss: float, slope: float
) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    found = value_loss(values, torch.tensor([[1.0]]), torch.tensor([[2.0]]), clip=0.5)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert found.item() == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)


def test_value_loss_without_a_clip_is_half_the_squared_error() -> None:
    values, old, returns = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.mse_loss(values, returns, reduction="none") / 2
    torch.testing.assert_close(value_loss(values, old, returns, clip=None), expected)


@pytest.mark.parametrize(
    ("options", "message"), [({"discount": 1.1}, "discount=1.1"), ({"trace": -0.1}, "trace=-0.1")]
)
def test_bad_factors_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generalized_advantages(NO_PENALTY, NO_PENALTY, MASK, **options)


def test_moments_of_parts_add_up_and_whiten_to_mean_0_and_variance_1() -> None:
    source = torch.Generator().manual_seed(0)
    values = 3.0 + 5.0 * torch.randn(6, 9, generator=source)
    mask = torch.rand(6, 9, generator=source) < 0.6
    values[~mask] = torch.nan  # never read
    whole = moments(values, mask)
    torch.testing.assert_close(moments(values[:2], mask[:2]) + moments(values[2:], mask[2:]), whole)
    mean, variance = mean_and_variance(whole)
    assert float(mean) == pytest.approx(float(values[mask].mean()))
    assert float(variance) == pytest.approx(float(values[mask].var()))

    white = whiten(values, mask, whole)
    assert not white[~mask].any()
    assert float(white[mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(white[mask].std()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_equal_values_whiten_to_0(count: int) -> None:
    values, mask = torch.full((1, 4), 0.7), torch.arange(4)[None] < count
    assert not whiten(values, mask, moments(values, mask)).any()
