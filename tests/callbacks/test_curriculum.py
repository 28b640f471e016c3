from __future__ import annotations

import logging
import math

import pytest

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.curriculum import NoiseCurriculum, noise_probability
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (50, (math.sqrt(2) - 1) / 3 * 0.75),  # 4^(1/4) = sqrt 2
        (100, 0.25),  # (4^0.5 - 1) / 3 = 1/3 of the way
        (150, (2 * math.sqrt(2) - 1) / 3 * 0.75),  # 4^(3/4) = 2 sqrt 2
        (200, 0.75),
    ],
)
def test_values_of_the_papers_equation(step, expected):
    assert noise_probability(step, 200, 0.0, 0.75) == pytest.approx(expected, abs=1e-12)


def test_starts_at_start_and_may_fall():
    assert noise_probability(0, 10, 0.25, 0.5) == 0.25
    assert noise_probability(5, 10, 0.9, 0.3, base=4) == pytest.approx(0.9 - 0.2)
    assert noise_probability(10, 10, 0.9, 0.3) == 0.3


@pytest.mark.parametrize("base", [1.0, 1.0 + 1e-12, 1.0 - 1e-12])
def test_base_one_is_linear(base):
    assert noise_probability(3, 12, 0.2, 0.6, base) == pytest.approx(0.3, abs=1e-9)


def test_base_below_one_changes_early():
    # (0.25^0.5 - 1) / (0.25 - 1) = 0.5 / 0.75
    assert noise_probability(1, 2, 0.0, 0.75, base=0.25) == pytest.approx(0.5)


@pytest.mark.parametrize(("step", "expected"), [(-3, 0.1), (11, 0.7), (10**9, 0.7)])
def test_step_is_clamped(step, expected):
    assert noise_probability(step, 10, 0.1, 0.7) == expected


@pytest.mark.parametrize("base", [1e-300, 1e300])
def test_extreme_bases_stay_between_start_and_end(base):
    values = [noise_probability(step, 7, 0.3, 1.0, base) for step in range(8)]
    assert values[0] == 0.3
    assert values[-1] == 1.0
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 10, -0.1, 0.5), "start=-0.1"),
        ((0, 10, 0.0, 1.5), "end=1.5"),
        ((0, 10, math.nan, 0.5), "start=nan"),
        ((0, 10, 0.0, 0.5, 0.0), "base=0"),
        ((0, 10, 0.0, 0.5, math.inf), "base=inf"),
        ((0, 0, 0.0, 0.5), "total_steps=0"),
        ((math.nan, 10, 0.0, 0.5), "step=nan"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        noise_probability(*arguments)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("exponential", [0.0, (math.sqrt(2) - 1) / 4, 0.25, (2 * math.sqrt(2) - 1) / 4, 0.75]),
        ("linear", [0.0, 0.1875, 0.375, 0.5625, 0.75]),
        ("constant", [0.0, 0.0, 0.0, 0.0, 0.0]),
        ("reversed", [0.75, (2 * math.sqrt(2) - 1) / 4, 0.25, (math.sqrt(2) - 1) / 4, 0.0]),
    ],
)
def test_shapes(shape, expected):
    curriculum = NoiseCurriculum(0.0, 0.75, shape=shape)
    assert [curriculum.value(step, 4) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"start": 0.0, "end": 2.0}, "end=2.0"),
        ({"start": 0.0, "end": 0.5, "base": -1.0}, "base=-1.0"),
        ({"start": 0.0, "end": 0.5, "shape": "cosine"}, "shape='cosine'"),
    ],
)
def test_bad_settings_fail_when_they_are_given(settings, named):
    with pytest.raises(ValueError, match=named):
        NoiseCurriculum(**settings)


def test_each_step_is_trained_with_its_own_probability():
    module = PolicyStub(policy_steps=4)
    make_trainer(4, callbacks=[NoiseCurriculum(0.0, 0.75)], val_every=None).fit(module)
    expected = [noise_probability(step, 4, 0.0, 0.75) for step in range(4)]
    assert [noise for _, _, noise in module.trained] == expected


def _interrupted_run(folder):
    """Two of four policy steps, then a checkpoint."""

    def fail(step: int) -> None:
        if step == 2:
            raise InterruptedError

    callbacks = [NoiseCurriculum(0.0, 0.75), PolicyCheckpoint(folder, 1)]
    with pytest.raises(InterruptedError):
        make_trainer(4, callbacks=callbacks, val_every=None).fit(PolicyStub(4, fail))
    return folder / "last.ckpt"


def test_resumed_run_goes_on_with_the_curriculum(tmp_path):
    checkpoint = _interrupted_run(tmp_path)
    module = PolicyStub(4)
    trainer = make_trainer(4, callbacks=[NoiseCurriculum(0.0, 0.75)], val_every=None)
    trainer.fit(module, ckpt_path=checkpoint)
    expected = [(step, noise_probability(step, 4, 0.0, 0.75)) for step in (2, 3)]
    assert [(step, noise) for step, _, noise in module.trained] == expected


def test_resumed_run_refuses_another_curriculum(tmp_path):
    checkpoint = _interrupted_run(tmp_path)
    trainer = make_trainer(4, callbacks=[NoiseCurriculum(0.0, 0.5)], val_every=None)
    with pytest.raises(ValueError, match=r"end=0\.5, but the resumed run was trained with 0\.75"):
        trainer.fit(PolicyStub(4), ckpt_path=checkpoint)


def test_a_checkpoint_can_be_evaluated_under_another_curriculum(tmp_path):
    checkpoint = _interrupted_run(tmp_path)
    module = PolicyStub(4)
    make_trainer(4, callbacks=[NoiseCurriculum(0.0, 0.5)]).test(module, ckpt_path=checkpoint)
    assert module.validated == [2]


def test_a_longer_resumed_run_is_warned_of_the_stretched_curve(tmp_path, caplog):
    checkpoint = _interrupted_run(tmp_path)
    trainer = make_trainer(8, callbacks=[NoiseCurriculum(0.0, 0.75)], val_every=None)
    with caplog.at_level(logging.WARNING, logger="zerosearch"):
        trainer.fit(PolicyStub(8), ckpt_path=checkpoint)
    assert "policy_steps=8 stretches the noise curriculum" in caplog.text
