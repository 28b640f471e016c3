"""What the objects of a run do together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.assembly import Run


@pytest.mark.parametrize("wanted", [2, 3])
def test_a_run_that_has_done_more_than_is_asked_for_says_so(
    wanted: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(steps: int) -> Any:
        trainer = make_trainer(steps, callbacks=[], val_every=None)
        return Run(trainer=trainer, module=PolicyStub(steps), data=None)  # type: ignore[type-var, arg-type]

    first = run(3)
    first.fit(None)
    first.trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = run(wanted)
    again.fit(tmp_path / "last.ckpt")
    said = f"last.ckpt has done 3 steps, and {wanted} are asked for: nothing was trained"
    assert (said in caplog.text) == (wanted == 2)
    assert again.module.policy_step == 3
