"""The number of compute threads is a run's own and survives a resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.policy_checkpoint import PolicyCheckpoint
from zerosearch.callbacks.threads import ComputeThreads

STEPS = 4


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """A machine on which torch chooses three threads; what a run sets is undone."""
    earlier = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(earlier)


def run(folder: Path, number: int | None = None, *, resume: bool = False) -> list[int]:
    """The threads that each step of a run was computed with."""
    seen: list[int] = []
    module = PolicyStub(STEPS, on_step=lambda step: seen.append(torch.get_num_threads()))
    callbacks = [ComputeThreads(number), PolicyCheckpoint(folder, 2, keep=None)]
    checkpoint = folder / "step_000002.ckpt" if resume else None
    make_trainer(STEPS, callbacks=callbacks).fit(module, ckpt_path=checkpoint)
    return seen


def test_a_new_run_takes_the_number_asked_for_or_leaves_it_to_torch(tmp_path: Path) -> None:
    assert run(tmp_path / "own") == [3] * STEPS
    assert run(tmp_path / "asked", 2) == [2] * STEPS


def test_a_resumed_run_keeps_the_number_it_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, 2)
    torch.set_num_threads(3)
    with caplog.at_level(logging.INFO):
        assert run(tmp_path, resume=True) == [2, 2]
    assert "threads: 2, as the checkpoint was computed with (torch's choice here: 3)" in caplog.text


def test_another_number_given_on_purpose_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, 2)
    assert run(tmp_path, 1, resume=True) == [1, 1]
    [warning] = [each for each in caplog.records if each.name.endswith("callbacks.threads")]
    assert "threads=1, but the checkpoint was computed with 2: figures will differ" in caplog.text
    assert warning.levelno == logging.WARNING
    caplog.clear()
    run(tmp_path, 2, resume=True)
    assert "threads" not in caplog.text, "the same number needs no word"


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "two"])
def test_other_values_are_refused(number: object) -> None:
    with pytest.raises(ValueError, match=rf"threads={number}: give a whole number of 1 or more"):
        ComputeThreads(number)  # type: ignore[arg-type]
