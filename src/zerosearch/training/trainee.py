"""One optimizer update of a model, whatever its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.policy.weight_stream import gather
from zerosearch.training.micro_batches import Backward
from zerosearch.types import PolicyBatch


class Updater(Protocol):
    """Adds the gradient of a batch to a model's parameters."""

    def accumulate(
        self, model: nn.Module, batch: PolicyBatch, backward: Backward, /
    ) -> dict[str, float]:
        """Returns global metrics."""
        ...


U = TypeVar("U", bound=Updater)


@dataclass(kw_only=True, slots=True)
class Trainee(Generic[U]):
    """A model with what changes it."""

    model: nn.Module
    updater: U
    optimizer: Any  # torch's or Lightning's wrapper of it
    schedule: LRScheduler
    gradient_clip: float  # largest gradient norm

    def update(self, batch: PolicyBatch, backward: Backward, *, mend: str) -> dict[str, float]:
        """One optimizer update.

        Returns:
            The updater's metrics with `gradient_norm` and `learning_rate`.

        Raises:
            FloatingPointError: a metric or the gradient is not finite; nothing was changed.
        """
        self.optimizer.zero_grad()
        found = self.updater.accumulate(self.model, batch, backward)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        found["gradient_norm"] = float(gather(norm))
        broken = {name: value for name, value in found.items() if not abs(value) < float("inf")}
        if broken:
            raise FloatingPointError(
                f"{broken} is not finite. The weights were not updated: resume from the last "
                f"checkpoint with a lower {mend}"
            )
        found["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        return found
