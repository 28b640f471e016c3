import math

import pytest
import torch

from zerosearch.algorithms.aggregation import aggregate, loss_normalizer, masked_sum

AGGREGATIONS = ["token-mean", "sequence-mean", "constant"]

# Two sequences with 3 and 1 sampled tokens; the rest is inserted text or padding.
MASK = torch.tensor([[True, True, False, True], [False, True, False, False]])
VALUES = torch.tensor([[1.0, 2.0, 50.0, 3.0], [70.0, 8.0, 90.0, -4.0]])


@pytest.mark.parametrize(
    ("aggregation", "count", "expected"),
    [
        ("token-mean", 4.0, (1 + 2 + 3 + 8) / 4),
        ("sequence-mean", 2.0, ((1 + 2 + 3) / 3 + 8) / 2),
        ("constant", 20.0, (1 + 2 + 3 + 8) / 20),
    ],
)
def test_aggregations_match_hand_computed_values(aggregation, count, expected) -> None:
    normalizer = loss_normalizer(MASK, aggregation, constant_length=10)
    assert normalizer.item() == count
    result = aggregate(VALUES, MASK, aggregation, normalizer)
    assert result.item() == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_without_sampled_tokens_do_not_count(aggregation) -> None:
    more = torch.cat([MASK, torch.zeros(3, 4, dtype=torch.bool)])
    alone = loss_normalizer(MASK, aggregation, constant_length=10)
    assert loss_normalizer(more, aggregation, constant_length=10) == alone


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_sampled_anywhere_gives_zero(aggregation) -> None:
    nothing = torch.zeros_like(MASK)
    normalizer = loss_normalizer(nothing, aggregation, constant_length=10)
    assert aggregate(VALUES, nothing, aggregation, normalizer).item() == 0.0
    assert aggregate(VALUES, nothing, aggregation, 0.0).item() == 0.0


def test_masked_sum_skips_what_is_not_finite() -> None:
    values = torch.tensor([[1.0, math.nan, math.inf, 2.5]], requires_grad=True)
    result = masked_sum(values, torch.tensor([[True, False, False, True]]))
    assert result.item() == 3.5
    assert not result.requires_grad


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_local_normalizers_add_up(aggregation) -> None:
    mask = torch.rand((10, 6), generator=torch.Generator().manual_seed(0)) < 0.6
    whole = loss_normalizer(mask, aggregation, constant_length=6)
    parts = [loss_normalizer(part, aggregation, 6) for part in mask.split([3, 1, 6])]
    assert torch.stack(parts).sum() == whole


def test_constant_aggregation_needs_a_length() -> None:
    with pytest.raises(ValueError, match="constant_length=None"):
        loss_normalizer(MASK, "constant")
    with pytest.raises(ValueError, match="aggregation='mean'"):
        loss_normalizer(MASK, "mean")  # pyright: ignore[reportArgumentType]
