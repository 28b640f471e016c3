"""Importance weights against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from zerosearch.algorithms.importance import ImportanceCorrection

# ratios old / behaviour; False: not sampled
RATIOS = torch.tensor([[0.25, 2.0, 3.0, 9.0], [0.5, 0.5, 9.0, 9.0]])
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def weights_of(correction: ImportanceCorrection) -> tuple[Tensor, Tensor]:
    behaviour = torch.full_like(RATIOS, -1.5)
    return correction.weights(behaviour + RATIOS.log(), behaviour, MASK)


@pytest.mark.parametrize(
    ("options", "weights", "cut"),
    [
        # min(r, 2)
        (
            {"kind": "truncate", "high": 2.0},
            [[0.25, 2.0, 2.0, 1.0], [0.5, 0.5, 1.0, 1.0]],
            [[0, 0, 1, 0], [0, 0, 0, 0]],
        ),
        (
            {"kind": "truncate", "low": 0.4, "high": 2.5},
            [[0.4, 2.0, 2.5, 1.0], [0.5, 0.5, 1.0, 1.0]],
            [[1, 0, 1, 0], [0, 0, 0, 0]],
        ),
        # r where 0.4 <= r <= 2.5, else 0
        (
            {"kind": "mask", "low": 0.4, "high": 2.5},
            [[0.0, 2.0, 0.0, 1.0], [0.5, 0.5, 1.0, 1.0]],
            [[1, 0, 1, 0], [0, 0, 0, 0]],
        ),
        # 0.25 * 2 * 3 = 1.5 and 0.5 * 0.5 = 0.25
        (
            {"level": "sequence", "low": 0.3, "high": 1.2},
            [[1.2, 1.2, 1.2, 1.0], [0.3, 0.3, 1.0, 1.0]],
            [[1, 1, 1, 0], [1, 1, 0, 0]],
        ),
        (
            {"kind": "mask", "level": "sequence", "low": 0.3, "high": 2.0},
            [[1.5, 1.5, 1.5, 1.0], [0.0, 0.0, 1.0, 1.0]],
            [[0, 0, 0, 0], [1, 1, 0, 0]],
        ),
    ],
)
def test_weights(options: dict[str, Any], weights: list, cut: list) -> None:
    found, outside = weights_of(ImportanceCorrection(**options))
    torch.testing.assert_close(found, torch.tensor(weights))
    assert outside.tolist() == [[bool(flag) for flag in row] for row in cut]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_invariant_02_values_of_inserted_tokens_are_never_read(level: Any) -> None:
    old, behaviour = torch.zeros(2, 4), torch.zeros(2, 4)
    old[~MASK], behaviour[~MASK] = math.nan, -math.inf
    found, outside = ImportanceCorrection(level=level).weights(old, behaviour, MASK)
    assert torch.equal(found, torch.ones(2, 4)) and not outside.any()


def test_a_ratio_beyond_all_measure_is_bounded() -> None:
    old, behaviour = torch.zeros(1, 1), torch.full((1, 1), -1e4)
    mask = torch.ones(1, 1, dtype=torch.bool)
    found, outside = ImportanceCorrection(kind="mask").weights(old, behaviour, mask)
    assert (found.item(), outside.item()) == (0.0, True)
    found, _ = ImportanceCorrection(kind="mask").weights(behaviour, old, mask)
    assert found.item() == pytest.approx(0.0, abs=1e-8)


def test_weights_are_constants() -> None:
    old = torch.zeros(1, 2, requires_grad=True)
    found, _ = ImportanceCorrection().weights(old, torch.ones(1, 2), torch.ones(1, 2))
    assert not found.requires_grad


def test_expected_weight_of_the_samplers_own_distribution_is_one() -> None:
    """E[r] = 1 under the sampler: the untruncated estimate is unbiased."""
    behaviour, old = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.35, 0.25])
    mask = torch.ones(3, 1, dtype=torch.bool)
    found, _ = ImportanceCorrection(high=100.0).weights(
        old.log()[:, None], behaviour.log()[:, None], mask
    )
    assert (behaviour * found[:, 0]).sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "clip"}, r"importance_correction\.kind='clip' is unknown: use truncate or mask"),
        ({"level": "turn"}, r"importance_correction\.level='turn'"),
        ({"low": -0.1}, r"importance_correction\.low=-0\.1"),
        ({"low": 1.5}, r"importance_correction\.low=1\.5"),
        ({"high": 0.9}, r"importance_correction\.high=0\.9"),
        ({"high": math.inf}, r"importance_correction\.high=inf"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImportanceCorrection(**options)
