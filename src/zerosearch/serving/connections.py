"""Bounds on the connections of a server, which uvicorn does not have.

It waits for ever for the rest of a request, and its `limit_concurrency` leaves unfinished ones
open (https://github.com/Kludex/uvicorn/issues/157).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)

log = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """Uvicorn's protocol with a bound on open connections and a deadline for requests."""

    max_connections: int
    receive_timeout_s: float
    idle_since = 0.0  # time of the loop
    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._await_request()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE:
            self._await_request()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.receive_timeout_s, self._too_late)

    def _stop_waiting(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _too_late(self) -> None:
        self.deadline = None
        self.transport.abort()

    def _make_room(self) -> None:
        log.warning("limits.max_connections: %d are open, one is closed", self.max_connections)
        others = [each for each in self.connections if isinstance(each, BoundedProtocol)]
        idle = [each for each in others if each is not self and each.is_idle]
        if idle:
            min(idle, key=lambda each: each.idle_since).transport.abort()
        else:
            self.transport.write(_BUSY)
            self.transport.close()

    @property
    def is_idle(self) -> bool:
        return not self.transport.is_closing() and (
            self.cycle is None or self.cycle.response_complete
        )


def bounded_protocol(max_connections: int, receive_timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol of one server; uvicorn makes the objects itself.

    Args:
        max_connections: most that are open; beyond it, the one that has been without a request
            for longest is closed, or where all have one, the new one.
        receive_timeout_s: from the first byte of a request, or from the connection's beginning,
            to the last byte of the request.
    """
    bounds = {"max_connections": max_connections, "receive_timeout_s": receive_timeout_s}
    return type("BoundedProtocol", (BoundedProtocol,), bounds)
