"""Runs that are made to collapse, the rules that end them, and how they go on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from tests.helpers.configs import compose_config
from tests.helpers.policy_stub import make_trainer
from tests.helpers.training import CopiedPolicy, Records, make_data, make_questions, make_training
from tests.helpers.words import make_word_model, make_word_tokenizer
from zerosearch.algorithms import algorithm as algorithms
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.algorithms.kl import kl_estimate
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.health import HealthMonitor
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.training.failures import TrainingCollapse
from zerosearch.training.step_record import StepRecord

STEPS = 30
GOOD_RATE = 0.1


def train(
    folder: Path,
    *,
    rate: float,
    kl: float = 0.01,
    resume: Path | None = None,
    records: Records | None = None,
) -> list[StepRecord]:
    """A run under the default rules, with a checkpoint after every step."""
    records = records or Records()
    rules = hydra.utils.instantiate(compose_config(folder).health)
    module = make_training(
        policy=CopiedPolicy(make_word_model(), make_word_tokenizer()),
        algorithm=Algorithm(group_size=8, kl_coefficient=kl),
        optimizer=partial(torch.optim.SGD, lr=rate),
        policy_steps=STEPS,
    )
    saving = PolicyCheckpoint(folder, every_n_steps=1, keep=1)
    trainer = make_trainer(
        STEPS,
        callbacks=[records, HealthMonitor(rules), saving],
        plugins=[AtomicCheckpointIO()],
        val_every=None,
    )
    questions = make_questions(8 * STEPS)
    data = make_data(questions, questions_per_step=8)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return records.steps


def collapse(folder: Path, caplog: pytest.LogCaptureFixture, **settings: Any) -> int:
    """Train until a rule ends the run; returns how many steps it made."""
    message = r"policy step \d+: health rule (reward_collapse|no_answers): .* its best average"
    records = Records()
    with pytest.raises(TrainingCollapse, match=message) as stopped:
        train(folder, records=records, **settings)
    assert "optimizer.lr" in str(stopped.value), "and says what to try"
    assert "The last checkpoint of a healthy policy is" in caplog.text
    rewards = [record.metrics["reward/total"] for record in records.steps]
    assert max(rewards) > 0.9 and rewards[-1] < 0.3 and len(rewards) < STEPS
    return len(rewards)


def test_a_learning_rate_100_times_too_high_is_stopped_and_the_run_goes_on_with_a_lower_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = collapse(tmp_path, caplog, rate=100 * GOOD_RATE)
    late = train(tmp_path, rate=GOOD_RATE, resume=tmp_path / "last.ckpt")
    assert late[0].metrics["optimizer/learning_rate"] == pytest.approx(GOOD_RATE)
    assert late[0].step < made - 2, "from before the collapse"
    assert late[-1].metrics["reward/total"] > 0.9


def test_defect_01_a_subtracted_kl_is_stopped_and_the_run_goes_on_with_an_added_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(algorithms, "kl_estimate", lambda *given: -kl_estimate(*given))
        made = collapse(tmp_path, caplog, rate=3 * GOOD_RATE, kl=300.0)
    late = train(tmp_path, rate=GOOD_RATE, kl=0.01, resume=tmp_path / "last.ckpt")
    assert late[0].step < made - 2, "from before the collapse"
    assert late[0].metrics["reward/total"] > 0.5, "the reward was not lost for good"
    assert late[-1].metrics["reward/total"] > 0.9
