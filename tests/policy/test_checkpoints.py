"""Checkpoints of another model are refused; optimizer states change between names and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zerosearch.core.errors import InputError
from zerosearch.policy.checkpoints import (
    check_same_model,
    check_same_optimizers,
    optimizer_by_name,
    read_checkpoint,
    read_notes,
    shapes_of,
    state_names,
)
from zerosearch.policy.conversion import convert

SHAPES = {"model.a": (2, 3), "model.b": (4,)}


def test_the_same_model_passes() -> None:
    check_same_model(SHAPES, dict(reversed(SHAPES.items())))
    assert shapes_of({"w": torch.zeros(2, 3)}) == {"w": (2, 3)}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({**SHAPES, "model.a": (2, 4)}, r"model.a has shape \[2, 4\] there and \[2, 3\] here"),
        ({**SHAPES, "model.lora": (1,)}, r"1 tensors are only there \(model.lora\), 0 only here"),
        ({"model.a": (2, 3)}, r"0 tensors are only there \(none\), 1 only here \(model.b\)"),
    ],
)
def test_another_model_is_one_sentence(saved: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        check_same_model(saved, SHAPES)
    assert "\n" not in str(raised.value)


def test_another_optimizer_is_one_sentence() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    kept = []
    for optimizer in (torch.optim.AdamW([weight]), torch.optim.SGD([weight])):
        optimizer.step()
        kept.append(state_names(optimizer.state_dict()))
    adam, sgd = kept
    check_same_optimizers([adam, sgd], [adam, sgd])
    with pytest.raises(ValueError, match=r"keeps exp_avg, exp_avg_sq, step per.* run nothing:"):
        check_same_optimizers([adam], [sgd])
    with pytest.raises(ValueError, match=r"keeps nothing and exp_avg, .* run exp_avg.* and noth"):
        check_same_optimizers([sgd, adam], [adam, sgd])
    with pytest.raises(ValueError, match=r"keeps nothing per .* run nothing and nothing:"):
        check_same_optimizers([sgd], [sgd, sgd])


def test_positions_of_an_optimizer_become_names_of_what_it_trains() -> None:
    trained = nn.Linear(2, 1)
    module = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), trained)
    optimizer = torch.optim.AdamW(p for p in module.parameters() if p.requires_grad)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    named = optimizer_by_name(optimizer.state_dict(), module, optimizer)
    assert named["state"].keys() == {"1.weight", "1.bias"}
    assert named["param_groups"][0]["params"] == ["1.weight", "1.bias"]
    expected = optimizer.state[trained.weight]["exp_avg"]
    assert torch.equal(named["state"]["1.weight"]["exp_avg"], expected)


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "meta.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is not whole.*earlier checkpoint"):
        read_checkpoint(tmp_path)


def test_what_cannot_be_converted_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint: give a file or folder"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "checkpoints").mkdir()
    lost = tmp_path / "checkpoints" / "last.ckpt"
    torch.save({}, lost)
    with pytest.raises(ValueError, match=r"\.hydra/config\.yaml, which says whose"):
        convert(lost, tmp_path / "out")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "no checkpoint of a run: give one"),
        ([1], "no checkpoint of a run: give one"),
        ({"zerosearch": "x"}, "no checkpoint of a run: give one"),
        (None, "cut short or no checkpoint"),
    ],
)
def test_notes_of_a_file_that_is_none_of_ours(tmp_path: Path, saved: Any, message: str) -> None:
    """As model.safetensors, or what a full disk has left."""
    file = tmp_path / "last.ckpt"
    torch.save(saved if saved is not None else {"zerosearch": {}}, file)
    if saved is None:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=message):
        read_notes(file)
