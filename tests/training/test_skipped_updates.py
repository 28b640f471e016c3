"""Updates whose loss or gradient is not finite: skipped, counted, and not for ever."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import (
    CopiedPolicy,
    Records,
    fit,
    make_data,
    make_questions,
    make_training,
    weights,
)
from tests.helpers.words import make_word_model, make_word_tokenizer
from tests.training.test_ppo import make_ppo
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.callbacks.health import HealthMonitor
from zerosearch.callbacks.health_rules import HealthRule
from zerosearch.callbacks.metrics_csv import MetricsCsv, read_rows
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.callbacks.transcripts import TranscriptWriter
from zerosearch.training.module import SearchPolicyModule
from zerosearch.training.schedule import warmup_schedule
from zerosearch.training.step_record import StepRecord
from zerosearch.training.trainee import SkippedUpdates

UPDATED = ("optimizer/gradient_norm", "optimizer/learning_rate", "loss/policy", "loss/kl")


class Poisoned(SearchPolicyModule):
    """In some steps the first number of a model's gradient is none."""

    steps: Collection[int] = ()
    victim = "model"  # or "critic"

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().manual_backward(loss, *args, **kwargs)
        gradient = next(getattr(self, self.victim).parameters()).grad
        if self.policy_step in self.steps and gradient is not None:
            gradient[0, 0] = math.nan


def make(steps: Collection[int], victim: str = "model", **fields: Any) -> Poisoned:
    settings = {
        "policy": CopiedPolicy(make_word_model(), make_word_tokenizer()),
        "algorithm": Algorithm(group_size=4, kl_coefficient=0.01),
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "schedule": partial(warmup_schedule, decay="linear"),
        "policy_steps": 4,
        **fields,
    }
    module = make_training(module=Poisoned, **settings)
    assert isinstance(module, Poisoned)
    module.steps, module.victim = steps, victim
    return module


class Watch(Records):
    """Keeps weights and optimizer steps after each policy step, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, Tensor]] = []
        self.updates: list[float] = []  # as Adam counts them

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        super().on_train_batch_end(trainer, pl_module)
        self.weights.append(weights(pl_module))
        states = [*trainer.optimizers[0].state.values()]
        self.updates.append(float(states[0]["step"]) if states else 0.0)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = Watch()
    records = fit(make({1}), make_questions(4), watch)
    assert same(watch.weights[0], watch.weights[1]) and not same(*watch.weights[1:3])
    assert watch.updates == [1.0, 1.0, 2.0, 3.0]
    assert [record.metrics["optimizer/skipped"] for record in records] == [0.0, 1.0, 1.0, 1.0]
    assert not set(UPDATED) & set(records[1].metrics)
    assert all(math.isfinite(value) for record in records for value in record.metrics.values())
    rates = [r.metrics["optimizer/learning_rate"] for r in records if r is not records[1]]
    assert rates == pytest.approx([0.01, 0.0075, 0.005]), "the schedule counts updates made"
    assert "'gradient_norm': nan} is not finite (1 in a row" in caplog.text


def test_a_first_update_may_be_skipped_too(recwarn: pytest.WarningsRecorder) -> None:
    watch = Watch()
    fit(make({0}), make_questions(4), watch)
    assert same(watch.weights[0], make_word_model().state_dict())
    assert not [each for each in recwarn if "lr_scheduler.step" in str(each.message)]


@pytest.mark.parametrize(
    ("steps", "most", "ended"),
    [({0}, 1, 0), ({0, 1}, 2, 1), ({0, 2, 3}, 2, 3), ({0, 2}, 2, None), ({0, 1, 2}, 4, None)],
)
def test_so_many_in_a_row_end_the_run(steps: set[int], most: int, ended: int | None) -> None:
    module = make(steps, max_skipped_updates=most)
    if ended is None:
        fit(module, make_questions(2))
        return
    message = rf"'gradient_norm': nan\}} is not finite, in {most} updates.*lower optimizer\.lr or"
    with pytest.raises(FloatingPointError, match=message):
        fit(module, make_questions(2))
    assert module.policy_step == ended


def test_the_step_that_ends_the_run_is_in_all_its_records(tmp_path: Path) -> None:
    module = make({1}, max_skipped_updates=1)
    trainer = make_trainer(
        4,
        callbacks=[MetricsCsv(tmp_path), TranscriptWriter(tmp_path / "transcripts")],
        val_every=None,
        logger=TensorBoardLogger(tmp_path, name="tensorboard", version=""),
    )
    with pytest.raises(FloatingPointError, match="is not finite"):
        trainer.fit(module, make_data(make_questions(4), make_questions(1)))
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["0", "1"]
    assert rows[1]["reward/f1"] and not rows[1]["loss/policy"]
    assert (tmp_path / "transcripts" / "train" / "step_000001.jsonl").read_text().count("\n") > 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("reward/f1")] == [0, 1]
    assert [event.step for event in events.Scalars("loss/policy")] == [0]


def test_a_critic_has_a_count_of_its_own() -> None:
    module = make({0, 1}, "critic", algorithm=make_ppo())
    watch = Watch()
    records = fit(module, make_questions(4), watch)
    last = records[-1].metrics
    assert (last["critic/skipped"], last["optimizer/skipped"]) == (2.0, 0.0)
    assert "critic/loss" not in records[1].metrics and "critic/loss" in last
    assert watch.updates == [1.0, 2.0, 3.0, 4.0], "of the policy"
    with pytest.raises(FloatingPointError, match=r"lower algorithm\.critic\.optimizer\.lr"):
        fit(make({0, 1, 2}, "critic", algorithm=make_ppo()), make_questions(4))


def train_saving(
    module: SearchPolicyModule, folder: Path, resume: Path | None = None
) -> list[StepRecord]:
    records, saving = Records(), PolicyCheckpoint(folder, every_n_steps=1, keep=None)
    trainer = make_trainer(4, callbacks=[records, saving], val_every=None)
    data = make_data(make_questions(6), questions_per_step=3)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return records.steps


def test_invariant_13_a_resumed_run_knows_what_was_skipped(tmp_path: Path) -> None:
    whole, resumed = make({1}), make({1})
    every = train_saving(whole, tmp_path)
    late = train_saving(resumed, tmp_path / "b", tmp_path / "step_000002.ckpt")
    assert same(weights(whole), weights(resumed))
    for one, other in zip(late, every[2:], strict=True):
        for name in ("optimizer/skipped", *UPDATED):
            assert one.metrics[name] == other.metrics[name], name


def test_invariant_13_a_row_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="in 3 updates in a row"):
        train_saving(make({0, 1, 2}), tmp_path)
    resumed = make({2})
    with pytest.raises(FloatingPointError, match="in 3 updates in a row"):
        train_saving(resumed, tmp_path, tmp_path / "last.ckpt")
    assert resumed.policy_step == 2


def test_the_health_of_a_run_does_not_hang_on_an_update_that_was_not_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rule = HealthRule(metric="optimizer/gradient_norm", above=1e9, steps=1, action="stop")
    module = make({1})
    fit(module, make_questions(4), HealthMonitor({"gradient_norm": rule}))
    assert module.policy_step == 4 and module.healthy and "health rule" not in caplog.text


def test_a_number_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"module\.max_skipped_updates=0: give 1 "):
        make((), max_skipped_updates=0)


def test_checkpoints_from_before_updates_were_skipped_begin_at_0() -> None:
    skipped = SkippedUpdates(most=3)
    skipped.load_state_dict({})
    assert skipped == SkippedUpdates(most=3, in_a_row=0, total=0)
