from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.adaptive_curriculum import AdaptiveCurriculum
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint

SCORES = [0.5, 1.0, 1.0, 0.0, 0.0, 0.9]


class Killed(Exception):
    """Stands for a process that dies."""


def noise(
    folder: Path,
    resume: bool = False,
    killed_in: int | None = None,
    lost: tuple[int, ...] = (),
    **settings: Any,
) -> list[float]:
    """Noise probability of each policy step of a run whose step i scores SCORES[i], or is lost."""

    def die(step: int) -> None:
        if step == killed_in:
            raise Killed

    steps = len(SCORES)
    module = PolicyStub(steps, die)
    module.extra_metrics = lambda step: (
        {"rollout/valid": 0.0} if step in lost else {"reward/f1": SCORES[step]}
    )
    callbacks = [
        AdaptiveCurriculum(**{"start": 0.1, "end": 0.35, "rate": 0.3, **settings}),
        PolicyCheckpoint(folder, every_n_steps=1),
    ]
    trainer = make_trainer(steps, callbacks=callbacks, plugins=[AtomicCheckpointIO()])
    trainer.fit(module, ckpt_path=folder / "last.ckpt" if resume else None)
    assert module.next_noise_probability == module.noise_probability
    return [probability for _, _, probability in module.trained]


# 0.5 leaves it, 1.0 adds 0.15, the bounds hold
EXPECTED = [0.1, 0.1, 0.25, 0.35, 0.2, 0.1]


def test_noise_rises_with_success_and_falls_without(tmp_path: Path) -> None:
    assert noise(tmp_path) == pytest.approx(EXPECTED)


def test_a_step_whose_searches_all_failed_changes_nothing(tmp_path: Path) -> None:
    assert noise(tmp_path, lost=(1,)) == pytest.approx([0.1, 0.1, 0.1, 0.25, 0.1, 0.1])


def test_a_resumed_run_goes_on_with_its_noise(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        noise(tmp_path, killed_in=3)
    assert noise(tmp_path, resume=True) == pytest.approx(EXPECTED[3:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.6, "end": 0.5}, r"start=0\.6, end=0\.5"),
        ({"end": 1.5}, r"end=1\.5"),
        ({"rate": 0.0}, r"rate=0\.0"),
        ({"metric": "reward/bleu"}, r"'reward/bleu' is not measured: use reward/f1"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise(tmp_path, **settings)
