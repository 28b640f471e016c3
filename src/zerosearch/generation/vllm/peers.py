"""The training processes that run one tensor-parallel engine together.

Each has a part of the engine's model and requests of its own. vLLM's schedulers in these processes
decide alike as long as they are told the same in the same order: before every step the processes
exchange what has arrived at each of them.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from zerosearch.core.distributed import gather_objects, rank, world_size
from zerosearch.core.errors import InputError


class Peers:
    """This process and those with the other parts of its engine; made by all processes at once.

    Args:
        size: processes per engine, neighbours in rank.

    Raises:
        InputError: the processes cannot be divided so.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rank = 0
        self._group: Any = None
        world = world_size()
        if world % size:
            raise InputError(
                f"generator.tensor_parallel_size={size} does not divide the number of training "
                f"processes, {world}: give a divisor of it"
            )
        if size > 1:
            self.rank = rank() % size
            self._group, _ = dist.new_subgroups(size, backend="gloo")

    def exchange(self, message: Any) -> list[Any]:
        """Every peer's message, in order of rank; a collective."""
        return [message] if self.size == 1 else gather_objects(message, self._group)
