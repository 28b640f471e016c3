"""The few collectives of the processes that train; each is the identity in a single process."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_object_groups: dict[Any, Any] = {}  # by the default group they were made beside


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
    """The value of every rank, in order of rank.

    Args:
        value: of this rank; it can be pickled.
        group: of gloo, of some ranks; None: `object_group`, of all.
    """
    if world_size() == 1:
        return [value]
    group = group or object_group()
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def object_group() -> dist.ProcessGroup | None:
    """The group over which objects go: over gloo in host memory, from whatever thread.

    NCCL would take them to the current GPU of the calling thread. Where that is all the processes
    have met over, the first call makes a group: in the main thread, in which all ranks make their
    groups in the same order.
    """
    if world_size() == 1 or "cpu:gloo" in dist.get_backend_config():
        return None
    world = dist.group.WORLD
    if world not in _object_groups:
        assert threading.current_thread() is threading.main_thread(), "made there at first"
        _object_groups.clear()
        _object_groups[world] = dist.new_group(backend="gloo", timeout=_timeout(world))
    return _object_groups[world]


def _timeout(group: Any) -> timedelta:
    """How long the ranks of a group wait for one another."""
    return group._get_backend(group._device_types[0]).options._timeout
