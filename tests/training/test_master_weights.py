"""At the paper's learning rate the weights that are trained move, whatever `model.dtype` is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from tests.helpers import tuning
from tests.helpers.models import save_policy_folder
from tests.helpers.policy_stub import make_trainer
from tests.helpers.sharded_training import GRPO, make_ppo, variety
from tests.helpers.training import make_data, make_questions, make_training
from tests.helpers.words import save_word_policy
from zerosearch.algorithms.critic import CriticSettings
from zerosearch.policy.source import PolicySource
from zerosearch.reward.rubric import RewardTerm, Rubric
from zerosearch.training.schedule import warmup_schedule

PAPER_LR = 1e-6
SLOW_ADAM = partial(torch.optim.AdamW, lr=PAPER_LR)


def changed(module: LightningModule, data: Any, **trainer: Any) -> float:
    """Share of the numbers with a gradient that two steps change."""
    start: dict[Tensor, Tensor] = {}

    def keep() -> None:
        start.update({p: p.detach().clone() for p in module.parameters() if p.requires_grad})

    module.on_fit_start = keep
    made = make_trainer(2, callbacks=[], val_every=None, **trainer)
    made.fit(module, data)
    states = {p: state for each in made.optimizers for p, state in each.state.items()}
    assert states.keys() == start.keys()
    moved = [
        (parameter.detach() != start[parameter])[state["exp_avg_sq"] != 0]
        for parameter, state in states.items()
    ]
    return torch.cat(moved).float().mean().item()


def search(folder: Path, **fields: Any) -> tuple[LightningModule, Any]:
    save_word_policy(folder / "policy")
    source = PolicySource(path=str(folder / "policy"), dtype="bfloat16")
    rubric = Rubric({"new": RewardTerm(function=variety)})
    fields = {"algorithm": GRPO, "optimizer": SLOW_ADAM, "policy_steps": 2, **fields}
    return make_training(policy=source, rubric=rubric, **fields), make_data(make_questions(4))


def with_critic(folder: Path) -> tuple[LightningModule, Any]:
    critic = CriticSettings(optimizer=SLOW_ADAM, schedule=warmup_schedule)
    return search(folder, algorithm=dataclasses.replace(make_ppo(SLOW_ADAM), critic=critic))


def simulator(folder: Path) -> tuple[LightningModule, Any]:
    save_policy_folder(folder / "policy", bos=True)
    source = PolicySource(path=str(folder / "policy"), dtype="bfloat16")
    data = tuning.make_data(tuning.write_rows(folder / "rows.jsonl"))
    return tuning.make_module(source, data, steps=2, lr=PAPER_LR), data


@pytest.mark.parametrize(
    ("made", "trainer"),
    [
        (search, {}),
        (search, {"precision": "bf16-mixed"}),
        (with_critic, {}),
        (simulator, {}),
    ],
    ids=["policy", "under autocast", "critic", "simulator"],
)
def test_two_small_updates_change_what_is_trained(
    made: Callable[[Path], tuple[LightningModule, Any]], trainer: dict[str, Any], tmp_path: Path
) -> None:
    # a few numbers near 1 come back by a second update of the opposite sign
    assert changed(*made(tmp_path), **trainer) > 0.9, "0.06 of them where they are bfloat16"
