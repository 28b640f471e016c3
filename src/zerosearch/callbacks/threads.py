"""The number of threads that compute: chosen once, kept by every resumed run."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from zerosearch.core.errors import InputError

log = logging.getLogger(__name__)


class ComputeThreads(Callback):
    """Sets the threads of each process, and stores their number in the checkpoint.

    Sums are split among the threads, so that figures depend on their number in the last digits. A
    run that is resumed, also on a machine with more or fewer cores, therefore keeps the number it
    began with. It never depends on how busy the machine is.

    Args:
        number: of threads per process; None: that of the checkpoint, or torch's own choice for a
            new run (the cores that the process may use, or `OMP_NUM_THREADS`; fewer where Lightning
            starts several processes).

    Raises:
        InputError: `number` is not a whole number of 1 or more.
    """

    def __init__(self, number: int | None = None) -> None:
        if number is not None and (type(number) is not int or number < 1):
            raise InputError(
                f"threads={number}: give a whole number of 1 or more, or null for torch's choice"
            )
        self.number = number

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.number is not None:
            torch.set_num_threads(self.number)

    def state_dict(self) -> dict[str, Any]:
        return {"threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, present = state_dict["threads"], torch.get_num_threads()
        if saved == present:
            return
        if self.number is None:
            torch.set_num_threads(saved)
            log.info(
                "threads: %d, as the checkpoint was computed with (torch's choice here: %d)",
                saved,
                present,
            )
        else:
            log.warning(
                "threads=%d, but the checkpoint was computed with %d: figures will differ in their "
                "last digits from those of a run that was never stopped",
                self.number,
                saved,
            )
