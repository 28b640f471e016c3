"""Ends a run in order when its searches have cost what they may cost."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Trainer

from zerosearch.callbacks.stopping import StoppingCallback
from zerosearch.core.errors import InputError

log = logging.getLogger(__name__)

KEY = "simulator.budget_usd"


class BudgetStop(StoppingCallback):
    """Stops the fit after the policy step in which the budget was used up, with a checkpoint.

    What the searches of training and evaluations have cost on all ranks counts (`Costs`), in a
    resumed run that of the run before it, too. What is under way when the budget is used up, a
    step or an evaluation, may go beyond it.

    Args:
        usd: most dollars, None: any number.

    Raises:
        InputError: `usd` is no positive number; or training or a test would begin with none left.
    """

    def __init__(self, usd: float | None = None) -> None:
        super().__init__()
        if usd is not None and not usd > 0:
            raise InputError(f"{KEY}={usd}: give dollars, more than 0, or null for no limit")
        self.usd = usd
        self.used_up = False  # whether it ended the training

    def wants_to_stop(self, trainer: Trainer, pl_module: Any) -> bool:
        if self.usd is not None and pl_module.costs.usd >= self.usd:
            self.used_up = True
        return self.used_up

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._check(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.restore_validation(trainer)
        if self.used_up and trainer.is_global_zero:
            log.warning(
                "%s after policy step %d of %d: go on with resume=<run folder> and a higher %s",
                self.describe(pl_module),
                pl_module.policy_step,
                pl_module.policy_steps,
                KEY,
            )

    def _check(self, trainer: Trainer, pl_module: Any) -> None:
        self.used_up = False
        if self.wants_to_stop(trainer, pl_module):
            self.used_up = False  # nothing was under way
            raise InputError(f"{self.describe(pl_module)}: raise it to go on")

    def describe(self, pl_module: Any) -> str:
        """That it is used up, in words."""
        return f"{KEY}={self.usd:g} is used up (${pl_module.costs.usd:.2f} spent)"


def used_up_budget(trainer: Trainer) -> BudgetStop | None:
    """The `BudgetStop` of this trainer if it ended the training, otherwise None."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BudgetStop) and callback.used_up:
            return callback
    return None
