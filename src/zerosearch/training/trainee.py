"""One optimizer update of a model, whatever its loss."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.core.distributed import rank
from zerosearch.core.errors import InputError, NonFiniteError
from zerosearch.policy.weight_stream import gather
from zerosearch.training.micro_batches import Backward
from zerosearch.types import PolicyBatch

log = logging.getLogger(__name__)


class Updater(Protocol):
    """Adds the gradient of a batch to a model's parameters."""

    def accumulate(
        self, model: nn.Module, batch: PolicyBatch, backward: Backward, /
    ) -> dict[str, float]:
        """Returns global metrics."""
        ...


@dataclass(kw_only=True, slots=True)
class SkippedUpdates:
    """Counts the updates of a model that were not made, as a loss or gradient was not finite.

    Raises:
        InputError: `most` is below 1.
    """

    most: int  # in a row, which end the run
    in_a_row: int = 0
    total: int = 0  # of the whole run, resumptions included

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InputError(
                f"module.max_skipped_updates={self.most}: give 1 (the first update that is not "
                "finite ends the run) or more"
            )

    def add(self, broken: dict[str, float], remedy: str) -> None:
        """Count one.

        Args:
            broken: what was not finite.
            remedy: settings to lower.

        Raises:
            NonFiniteError: it is the last one that is allowed in a row.
        """
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row >= self.most:
            raise NonFiniteError(
                f"{broken} is not finite, in {self.in_a_row} updates in a row (module."
                f"max_skipped_updates={self.most}). The weights were not updated: resume from the "
                f"last checkpoint with a lower {remedy}"
            )
        if rank() == 0:
            log.warning(
                "an update was skipped, as %s is not finite (%d in a row; module."
                "max_skipped_updates=%d in a row end the run)",
                broken,
                self.in_a_row,
                self.most,
            )

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # empty in checkpoints from before updates were skipped
        self.in_a_row, self.total = state.get("in_a_row", 0), state.get("total", 0)


U = TypeVar("U", bound=Updater)


@dataclass(kw_only=True, slots=True)
class Trainee(Generic[U]):
    """A model with what changes it."""

    model: nn.Module
    updater: U
    optimizer: Any  # torch's or Lightning's wrapper of it
    schedule: LRScheduler
    gradient_clip: float  # largest gradient norm
    skipped: SkippedUpdates
    remedy: str  # settings to lower where gradients are not finite

    def update(self, batch: PolicyBatch, backward: Backward) -> dict[str, float] | None:
        """One optimizer update, or none where a metric or the gradient is not finite.

        Then weights, optimizer state and learning rate stay as they are, as if the update had not
        been due. All ranks decide alike: metrics are sums over ranks, and the norm is that of the
        reduced gradient. Gradients are freed either way: sampling needs their memory.

        Returns:
            The updater's metrics with `gradient_norm` and `learning_rate`; None without an update.

        Raises:
            NonFiniteError: see `SkippedUpdates`; nothing was changed.
        """
        found = self.updater.accumulate(self.model, batch, backward)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        found["gradient_norm"] = float(gather(norm))
        found["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        broken = {name: value for name, value in found.items() if not abs(value) < float("inf")}
        if not broken:
            self.skipped.in_a_row = 0
            self.optimizer.step()
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if broken:
            self.skipped.add(broken, self.remedy)
            return None
        return found
