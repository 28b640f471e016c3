"""A policy step and a tuning step as on a GPU: packed, and the same as padded ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import zerosearch.training.base_module
from tests.helpers.flex import flex_on_cpu
from tests.helpers.models import save_policy_folder
from tests.helpers.training import fit, make_questions, make_training, weights
from tests.helpers.tuning import make_data, make_module, tune, write_rows
from tests.helpers.words import make_word_model
from zerosearch.policy.attention import use_training_attention
from zerosearch.policy.logprobs import packs_sequences
from zerosearch.policy.source import PolicySource


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention is chosen as for a GPU."""

    def choose(name: str, models: Any, device: torch.device) -> None:
        assert device == torch.device("cpu")
        use_training_attention(name, models, torch.device("cuda", 0))

    monkeypatch.setattr(zerosearch.training.base_module, "use_training_attention", choose)
    with flex_on_cpu():
        yield


def policy_step(*, packed: bool) -> dict[str, torch.Tensor]:
    """The weights after a step."""
    module = make_training(make_word_model(3, head_dim=16))
    fit(module, make_questions(6))
    assert module.reference is not None
    for model in (module.model, module.reference.model):
        assert model is not None and packs_sequences(model) == packed
    return weights(module)


def tuning_step(folder: Path, *, packed: bool) -> dict[str, float]:
    """Loss and gradient norm of the second step."""
    data = make_data(write_rows(folder / "rows.jsonl"))
    source = PolicySource(path=str(save_policy_folder(folder / "policy", bos=True)))
    module = make_module(source, data, steps=2)
    tune(module, data)
    assert module.model is not None and packs_sequences(module.model) == packed
    return {name: module.train_metrics[name] for name in ("loss/reply", "optimizer/gradient_norm")}


@pytest.fixture
def padded_policy() -> dict[str, torch.Tensor]:
    return policy_step(packed=False)


@pytest.fixture
def padded_tuning(tmp_path: Path) -> dict[str, float]:
    return tuning_step(tmp_path, packed=False)


def test_a_packed_policy_step_is_a_padded_one(
    padded_policy: dict[str, torch.Tensor], gpu: None
) -> None:
    for name, tensor in policy_step(packed=True).items():
        torch.testing.assert_close(tensor, padded_policy[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_packed_tuning_step_is_a_padded_one(
    padded_tuning: dict[str, float], gpu: None, tmp_path: Path
) -> None:
    assert tuning_step(tmp_path, packed=True) == pytest.approx(padded_tuning, rel=1e-4)
