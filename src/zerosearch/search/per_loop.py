"""Resources that belong to one event loop: sockets and semaphores do not survive theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a resource on a loop's first use and closes it when that loop ends.

    `asyncio.run` finalises started asynchronous generators before it closes its loop, the one hook
    it offers: whoever runs episodes need not know that an engine has connections.

    Args:
        make: builds the resource, inside the running loop.
        close: ends it.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._held: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]] = {}

    async def get(self) -> T:
        """The running loop's resource."""
        loop = asyncio.get_running_loop()
        if loop not in self._held:
            for stale in [known for known in list(self._held) if known.is_closed()]:
                del self._held[stale]
            closer = self._close_with_loop(loop)
            self._held[loop] = (self._make(), closer)
            await anext(closer)
        return self._held[loop][0]

    async def _close_with_loop(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            resource, _ = self._held.pop(loop)
            await self._close(resource)
