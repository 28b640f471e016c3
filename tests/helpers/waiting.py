"""Waiting for what must come. No bound here measures speed: the machine may be slow and busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GUARD_S = 60.0  # ends what hangs; without a defect it is over in a fraction of this
HANG_S = 3600.0  # a server that hangs, as whoever waits for it must not


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(GUARD_S):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool]) -> None:
    """Let other threads and processes run until the condition holds."""
    end = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextmanager
def guarded() -> Iterator[None]:
    """For a body that, with the defect it guards against, takes minutes or hours."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < GUARD_S, "it hangs, or needs more than linear time"
