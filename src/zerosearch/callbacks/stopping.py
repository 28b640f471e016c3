"""Ending a fit in order after a policy step: with a checkpoint that a resumed run continues."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from zerosearch.callbacks.policy_checkpoint import validation_follows


class StoppingCallback(Callback, ABC):
    """Stops the fit when `wants_to_stop`, after the policy step and a validation due after it.

    `PolicyCheckpoint` saves then, because `trainer.should_stop` is set, and `trainer.fit` returns.
    The resumed run continues exactly there.
    """

    def __init__(self) -> None:
        self._limit_val_batches: int | float | None = None

    @abstractmethod
    def wants_to_stop(self, trainer: Trainer, pl_module: Any) -> bool:
        """Whether to stop now; called by all ranks, and says the same on all."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if not self.wants_to_stop(trainer, pl_module) or trainer.should_stop:
            return
        if not validation_follows(trainer):
            # should_stop makes Lightning validate once more, which the run without an interruption
            # would not have done at this step
            self._limit_val_batches = trainer.limit_val_batches
            trainer.limit_val_batches = 0
        trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self.wants_to_stop(trainer, pl_module):
            trainer.should_stop = True

    def restore_validation(self, trainer: Trainer) -> None:
        """Undo what kept a validation from running."""
        if self._limit_val_batches is not None:
            trainer.limit_val_batches = self._limit_val_batches
            self._limit_val_batches = None
