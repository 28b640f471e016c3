"""Leaves the trained policy as a folder that `from_pretrained` loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from zerosearch.callbacks.graceful_stop import stopped_by_signal
from zerosearch.core.ranges import Dtype
from zerosearch.core.runs import SETTINGS_FILE

log = logging.getLogger(__name__)


class PolicyExport(Callback):
    """Exports the policy at the end of training.

    It runs at `on_train_end`: later hooks come after the strategy has been taken down, when sharded
    weights can no longer be gathered. A run stopped by a signal is not exported, because its
    checkpoint continues it and whoever sent the signal may not wait.

    Args:
        dirpath: folder of the export; an earlier one is replaced.
        dtype: of its weights; None: what was computed in, at which they are used. "float32" keeps
            every bit that was trained, for a run that trains on from there.
    """

    def __init__(self, dirpath: str | Path, dtype: Dtype | None = None) -> None:
        self.dirpath = Path(dirpath)
        self.dtype: Dtype | None = dtype

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and (self.dirpath / SETTINGS_FILE).is_file():
            log.warning("%s holds a model: it is replaced when this run ends", self.dirpath)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if stopped_by_signal(trainer) is None:
            pl_module.export_policy(self.dirpath, self.dtype)
