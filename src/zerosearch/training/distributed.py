"""The few collectives training needs; each is the identity in a single process."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(value: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce a tensor over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(value, op=operation)
    return value


def gather_objects(value: T) -> list[T]:
    """The value of every rank, in order of rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
