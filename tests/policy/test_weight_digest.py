"""The digest of weights tells other values, places and names apart, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import make_model
from zerosearch.policy import weight_digest
from zerosearch.policy.weight_digest import weight_digest as digest


def test_the_same_values_have_the_same_digest() -> None:
    half = make_model(3).bfloat16()
    assert digest(make_model(3)) == digest(make_model(3)) != digest(make_model(4))
    assert digest(half) == digest(make_model(3).bfloat16().float()) != digest(make_model(3))


def test_the_last_bit_of_one_value_counts() -> None:
    model = make_model(3)
    before = digest(model)
    with torch.no_grad():
        model.lm_head.weight[7, 5].view(torch.int32).add_(1)
    assert digest(model) != before


def swap_places(weight: Tensor) -> None:
    weight[0] = weight[0].flip(0)


def swap_rows(weight: Tensor) -> None:
    weight.copy_(weight.flip(0))


@pytest.mark.parametrize("change", [swap_places, swap_rows])
def test_the_order_of_values_counts(change, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(3)
    before = digest(model)
    monkeypatch.setattr(weight_digest, "_CHUNK", 1000)
    assert digest(model) == before, "parts of any size"
    with torch.no_grad():
        change(model.lm_head.weight)
    assert digest(model) != before


def test_names_count() -> None:
    model = make_model(3)
    before = digest(model)
    layers = model.model.layers
    model.model.layers = nn.ModuleList(reversed(layers))
    assert digest(model) != before
