"""A rank of a run that fails as one whose GPU does."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

SAID = "CUDA error: device-side assert triggered"
FAILURE = f"AcceleratorError: {SAID}"


class FailOn(Callback):
    """Raises on one rank, in the second step, an error of torch's."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Fail where it is time."""
        if trainer.global_rank == self.rank and trainer.global_step > 0:
            raise torch.AcceleratorError(SAID)
