"""`logs/<task>/latest` leads to the newest run that has done something, and TensorBoard to all."""

from __future__ import annotations

import logging
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zerosearch.core.outcome import name_of
from zerosearch.core.runs import link_latest, read_summary
from zerosearch.core.shown import shown

_LONGEST = 160  # bytes of a name in TensorBoard

log = logging.getLogger(__name__)


class LatestRun(Callback):
    """Moves the link when the run's first step or first evaluation begins.

    A run that fails before (a setting, a missing model, no memory) leaves nothing that anybody
    would look for under that name. For TensorBoard every run gets a link of its own in
    `logs/tensorboard/<task>`, by which it is shown once, and by what differs in it.

    Args:
        run_folder: of this run.
        task_folder: takes the link.
    """

    def __init__(self, run_folder: str | Path, task_folder: str | Path) -> None:
        self.run_folder = Path(run_folder)
        self.task_folder = Path(task_folder)
        self.charts = self.task_folder.parent / "tensorboard" / self.task_folder.name
        self._begun = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._begin(trainer)

    def on_test_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        if not self._begun and trainer.is_global_zero:
            link_latest(self.run_folder, self.task_folder)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    name = name_of(read_summary(self.run_folder)) or self.run_folder.name
                    link_charts(Path(logger.log_dir), self.charts, name)
        self._begun = True


def link_charts(files: Path, charts: Path, name: str) -> None:
    """Give TensorBoard's files of a run a name among those of other runs.

    It keeps the one that it has, date and all, unless it goes on with other settings.

    Links to what is gone are removed. A disk without links has none.

    Args:
        files: folder of the event files; made where it is not there yet.
        charts: folder of the links.
        name: of the run; the date is put behind it.
    """
    files.mkdir(parents=True, exist_ok=True)
    charts.mkdir(parents=True, exist_ok=True)
    links = [link for link in charts.iterdir() if link.is_symlink()]
    for link in links:
        if not link.exists():
            link.unlink(missing_ok=True)
    short = shown(name).replace("/", "_").encode()[:_LONGEST].decode(errors="ignore")
    began = time.strftime("%m-%d %H.%M")
    for link in links:
        if link.resolve() == files.resolve():
            if link.name.rpartition(", ")[0] == short:
                return
            began = link.name.rpartition(", ")[2].partition(" (")[0]
            link.unlink(missing_ok=True)
    dated = f"{short}, {began}"
    target = os.path.relpath(files.resolve(), charts.resolve())
    try:
        for number in count(1):
            try:
                (charts / (dated if number == 1 else f"{dated} ({number})")).symlink_to(target)
                return
            except FileExistsError:  # of another run of that minute
                continue
    except OSError as error:
        log.warning("%s gets no link in %s: %s", files, charts, error)
