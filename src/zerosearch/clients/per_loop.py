"""Resources that belong to one event loop: sockets and semaphores do not survive theirs."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a resource on a loop's first use and closes it when that loop ends, or before.

    `asyncio.run` finalises started asynchronous generators before it closes its loop, the one hook
    it offers: whoever runs episodes need not know that an engine has connections. The same hook
    closes the resource when this object is dropped while the loop goes on.

    Args:
        make: builds the resource, inside the running loop. A resource that refers to whoever has
            this object keeps it until the loop ends.
        close: ends it.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._held: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]] = {}
        # Held by this call too: collected together with this object, connections would complain
        # of being unclosed before their generator has a chance to close them.
        weakref.finalize(self, self._held.clear).atexit = False

    async def get(self) -> T:
        """The running loop's resource."""
        loop = asyncio.get_running_loop()
        if loop not in self._held:
            for stale in [known for known in list(self._held) if known.is_closed()]:
                del self._held[stale]
            resource = self._make()
            closer = _closing(resource, self._close, self._held, loop)
            self._held[loop] = (resource, closer)
            await anext(closer)
        return self._held[loop][0]


async def _closing(
    resource: T,
    close: Callable[[T], Awaitable[None]],
    held: dict[asyncio.AbstractEventLoop, Any],
    loop: asyncio.AbstractEventLoop,
) -> AsyncGenerator[None]:
    """Closes a resource when it is finalised; does not refer to the `PerLoop`, which may go."""
    try:
        yield
    finally:
        held.pop(loop, None)
        await close(resource)
