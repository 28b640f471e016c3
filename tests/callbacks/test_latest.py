"""`latest` leads to a run that has begun, not to one that failed before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.callbacks.latest import LatestRun


@pytest.mark.parametrize("evaluates", [True, False])
def test_the_link_moves_when_the_first_step_or_evaluation_begins(
    evaluates: bool, tmp_path: Path
) -> None:
    seen: list[bool] = []

    class Watched(PolicyStub):
        def configure_optimizers(self):
            seen.append((tmp_path / "latest").exists())
            return super().configure_optimizers()

        def on_train_start(self) -> None:
            seen.append((tmp_path / "latest").exists())

        def test_step(self, batch: int, batch_index: int) -> None:
            seen.append((tmp_path / "latest").exists())

    def step(number: int) -> None:
        seen.append((tmp_path / "latest").resolve() == tmp_path / "runs" / "a")

    trainer = make_trainer(1, callbacks=[LatestRun(tmp_path / "runs" / "a", tmp_path)])
    (tmp_path / "runs" / "a").mkdir(parents=True)
    module = Watched(1, on_step=step)
    if evaluates:
        trainer.test(module, verbose=False)
        assert seen == [True]
    else:
        trainer.fit(module)
        assert seen == [False, False, True]


def test_a_run_that_fails_before_leaves_the_link(tmp_path: Path) -> None:
    class Broken(PolicyStub):
        def on_train_start(self) -> None:
            raise ValueError("no memory")

    trainer = make_trainer(1, callbacks=[LatestRun(tmp_path / "a", tmp_path)])
    with pytest.raises(ValueError, match="no memory"):
        trainer.fit(Broken(1))
    assert not (tmp_path / "latest").is_symlink()
