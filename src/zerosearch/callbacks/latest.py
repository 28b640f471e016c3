"""`logs/<task>/latest` leads to the newest run that has done something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from zerosearch.core.runs import link_latest


class LatestRun(Callback):
    """Moves the link when the run's first step or first evaluation begins.

    A run that fails before (a setting, a missing model, no memory) leaves nothing that anybody
    would look for under that name.

    Args:
        run_folder: of this run.
        task_folder: takes the link.
    """

    def __init__(self, run_folder: str | Path, task_folder: str | Path) -> None:
        self.run_folder = Path(run_folder)
        self.task_folder = Path(task_folder)
        self._begun = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._begin(trainer)

    def on_test_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        if not self._begun and trainer.is_global_zero:
            link_latest(self.run_folder, self.task_folder)
        self._begun = True
