"""Base of the callbacks that look at each policy step and each evaluation exactly once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer

from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.training.step_record import StepRecord


class RecordCallback(Callback, ABC):
    """Calls `on_record` for every policy step and for every evaluation of a validation or test.

    Attributes:
        of_unfinished: also for the step in which the run died, where something of it is known; not
            by all ranks together.
    """

    of_unfinished = False

    @abstractmethod
    def on_record(self, trainer: Trainer, pl_module: PolicyModule, record: StepRecord) -> None:
        """Act on one policy step (`record.phase` is "train") or one evaluation."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.latest is not None:
            self.on_record(trainer, pl_module, pl_module.latest)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        record = pl_module.latest
        if self.of_unfinished and record is not None and record.step == pl_module.policy_step:
            self.on_record(trainer, pl_module, record)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            for record in pl_module.evaluation_records:
                self.on_record(trainer, pl_module, record)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        for record in pl_module.evaluation_records:
            self.on_record(trainer, pl_module, record)
