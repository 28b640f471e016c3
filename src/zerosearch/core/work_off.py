"""Many rows under way at a time, of which none is lost to another's error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def work_off(
    rows: Iterable[T], work: Callable[[T], Awaitable[None]], *, concurrency: int
) -> None:
    """Do the work of each row, at most `concurrency` at a time, in order of their beginning.

    After an error no further row is begun. Those under way come to their end, so that what they
    have paid for is kept, where a task group would cancel them. A cancellation cancels all and
    returns when each has cleaned up.

    Args:
        rows: read as they are begun.
        work: an error of one row that is no reason to end the run is caught in there.
        concurrency: rows under way at a time.

    Raises:
        Exception: the first that `work` or `rows` raised, when nothing is under way any more.
    """
    waiting, errors = iter(rows), list[BaseException]()

    async def worker() -> None:
        while not errors:
            try:
                await work(next(waiting))
            except StopIteration:
                return
            except Exception as error:
                errors.append(error)

    workers = (worker() for _ in range(concurrency))
    # else a cancellation would return with the first that has cleaned up
    ended = await asyncio.gather(*workers, return_exceptions=True)
    errors += [each for each in ended if each is not None]
    if errors:
        raise errors[0]
