"""A run that collapses is ended, and can go on from its last healthy state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.health import HealthMonitor
from zerosearch.callbacks.health_rules import HealthRule
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.training.failures import TrainingCollapse

STEPS = 10
STOP = HealthRule(metric="reward/total", below=0.5, of="best", average=1, steps=3, action="stop")
WARN = HealthRule(metric="reward/total", below=0.9, average=1, steps=2, advice="Do something.")


def fit(
    folder: Path,
    rewards: list[float],
    rules: dict[str, HealthRule | None],
    resume: str | None = None,
    keep: int = 1,
    lag: int = 0,
) -> PolicyStub:
    """A run whose step i has the reward i, with a checkpoint after every step."""
    module = PolicyStub(STEPS)
    module.lag = lag
    module.extra_metrics = lambda step: {"reward/total": rewards[step]}
    callbacks = [HealthMonitor(rules), PolicyCheckpoint(folder, every_n_steps=1, keep=keep)]
    trainer = make_trainer(STEPS, callbacks=callbacks, plugins=[AtomicCheckpointIO()])
    trainer.fit(module, ckpt_path=folder / resume if resume else None)
    return module


COLLAPSE = [0.4, 0.6, 0.8, 0.7, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]
HEALTHY = [0.9] * STEPS


def test_a_collapse_ends_the_run_at_its_last_healthy_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        TrainingCollapse, match=r"policy step 7.*reward_collapse.*0\.5 times .*0\.8"
    ):
        fit(tmp_path, COLLAPSE, {"reward_collapse": STOP})
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == {"step_000006.ckpt", "healthy.ckpt", "last.ckpt"}
    assert "The last checkpoint of a healthy policy is" in caplog.text
    resumed = fit(tmp_path, HEALTHY, {"reward_collapse": STOP}, resume="last.ckpt")
    # step 4 sampled the collapse from its checkpoint: the one before is the last healthy one
    assert [step for step, *_ in resumed.trained] == [3, 4, 5, 6, 7, 8, 9]
    assert {path.name for path in tmp_path.iterdir()} == {"step_000010.ckpt", "last.ckpt"}


def test_a_short_dip_is_no_collapse(tmp_path: Path) -> None:
    rewards = [0.8, 0.1, 0.1, 0.8, 0.1, 0.1, 0.8, 0.8, 0.1, 0.8]
    module = fit(tmp_path, rewards, {"reward_collapse": STOP})
    assert module.policy_step == STEPS and module.healthy


def test_what_a_rule_counted_survives_a_resumption(tmp_path: Path) -> None:
    """The checkpoint after step 6 has seen two of the three unhealthy steps."""
    with pytest.raises(TrainingCollapse):
        fit(tmp_path, COLLAPSE, {"reward_collapse": STOP}, keep=3)
    with pytest.raises(TrainingCollapse, match="policy step 7"):
        fit(tmp_path, COLLAPSE, {"reward_collapse": STOP}, resume="step_000006.ckpt")


def test_a_collapse_before_the_first_checkpoint_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    always = HealthRule(metric="reward/total", below=1.0, average=1, steps=1, action="stop")
    with pytest.raises(TrainingCollapse, match="policy step 1"):
        fit(tmp_path, HEALTHY, {"strict": always})
    assert "No checkpoint of a healthy policy" in caplog.text and not list(tmp_path.iterdir())


def test_a_warning_is_given_once_until_the_run_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = [1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5]
    with caplog.at_level(logging.WARNING):
        module = fit(tmp_path, rewards, {"low": WARN, "off": None})
    told = [record.message for record in caplog.records if "health rule" in record.message]
    assert [text.split(":")[0] for text in told] == ["policy step 3", "policy step 8"]
    assert all(text.endswith("Do something.") for text in told)
    assert module.healthy, "a warning keeps no checkpoint back"


def test_a_metric_that_the_run_does_not_have_is_not_watched(tmp_path: Path) -> None:
    other: Any = {"kl": HealthRule(metric="loss/kl", above=0.0, action="stop", steps=1)}
    assert fit(tmp_path, HEALTHY, other).policy_step == STEPS


def test_a_metric_that_is_misspelt_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules: dict[str, HealthRule | None] = {
        "mine": HealthRule(metric="rewards/total", below=0.9),
        "later": HealthRule(metric="x", below=0.9),
    }
    fit(tmp_path, COLLAPSE, rules)
    said = [each.getMessage() for each in caplog.records if "did you mean" in each.getMessage()]
    assert said == [
        "health.mine.metric=rewards/total is not among the metrics of this step, without which the "
        "rule cannot fire: did you mean reward/total?"
    ]


def test_an_average_that_still_looks_well_makes_no_checkpoint_healthy(tmp_path: Path) -> None:
    slow = HealthRule(
        metric="reward/total", below=0.5, of="best", average=4, steps=2, action="stop"
    )
    with pytest.raises(TrainingCollapse, match="policy step 8"):
        fit(tmp_path, COLLAPSE, {"reward_collapse": slow}, keep=3)
    resumed = fit(tmp_path, HEALTHY, {"reward_collapse": slow}, resume="last.ckpt")
    assert resumed.trained[0][0] == 3


@pytest.mark.parametrize("lag", [0, 1])
def test_a_checkpoint_is_healthy_when_a_step_that_sampled_from_it_is(
    tmp_path: Path, lag: int
) -> None:
    rewards = [0.8, 0.8, 0.8, 0.8, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1]  # step 5 saw the collapse
    with pytest.raises(TrainingCollapse, match="policy step 8"):
        fit(tmp_path, rewards, {"reward_collapse": STOP}, lag=lag)
    assert len(list(tmp_path.glob("step_*.ckpt"))) == 1, "keep=1, others are links"
    resumed = fit(tmp_path, HEALTHY, {"reward_collapse": STOP}, resume="last.ckpt")
    assert resumed.trained[0][0] == 4 - lag


def test_a_run_that_recovers_keeps_no_old_checkpoint(tmp_path: Path) -> None:
    rewards = [0.8, 0.8, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    fit(tmp_path, rewards, {"reward_collapse": STOP})
    assert {path.name for path in tmp_path.iterdir()} == {"step_000010.ckpt", "last.ckpt"}
