"""The few collectives of the processes that train; each is the identity in a single process."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce(value: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce a tensor over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(value, op=operation)
    return value


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The value of every rank, of a group or of all, in order of rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
