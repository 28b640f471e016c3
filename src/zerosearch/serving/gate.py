"""What every request to a server of ours passes before the application sees it."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zerosearch.serving.http import HttpLimits

OPEN_PATH = "/health"  # needs no key
_MOST_HELD_BYTES = 256 * 2**20  # of all bodies together


class Gate:
    """Middleware: who may ask, for what, and how much; a client that hangs up ends its request.

    Requests with a body must be JSON: a page in a browser can send no JSON to another site without
    asking first, and is never allowed to.

    Args:
        app: what is behind it.
        limits: `max_body_bytes` is kept here.
        key: that clients must send as bearer token; None: none.
        hosts: names that the header Host may hold; None: any.
        error: the JSON of a refusal, from status and message.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: HttpLimits,
        key: str | None,
        hosts: Collection[str] | None,
        error: Callable[[int, str], dict[str, Any]],
    ) -> None:
        self._app = app
        self._limits = limits
        self._key = key
        self._hosts = hosts
        self._error = error
        self._held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            if refusal := self._refusal(scope) or await self._read(receive, body):
                status, message = refusal
                headers = {"Connection": "close"}  # the rest of the body is not wanted
                if status == HTTPStatus.UNAUTHORIZED:
                    headers["WWW-Authenticate"] = "Bearer"
                if status == HTTPStatus.SERVICE_UNAVAILABLE:
                    headers["Retry-After"] = "1"
                reply = JSONResponse(self._error(status, message), status, headers)
                await reply(scope, receive, send)
            else:
                await self._answer(scope, bytes(body), receive, send)
        finally:
            self._held -= len(body)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message, where the head of a request is reason enough."""
        headers = Headers(scope=scope)
        name = _host_name(headers.get("host", ""))
        if self._hosts is not None and name not in self._hosts:
            allowed = ", ".join(self._hosts)
            return 403, f"the header Host must be one of {allowed}: this server is for this machine"
        if self._key is not None and scope["path"] != OPEN_PATH:
            scheme, _, given = headers.get("authorization", "").strip().partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._key.encode())
            if scheme.lower() != "bearer" or not right:
                return 401, "the key of the Authorization header is wrong"
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "send JSON, with the header Content-Type: application/json"
        return None

    async def _read(self, receive: Receive, body: bytearray) -> tuple[int, str] | None:
        """Read the body; the deadline for it is the connection's."""
        most, more = self._limits.max_body_bytes, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 400, "the body is not complete"  # heard by nobody
            piece = message.get("body", b"")
            if len(body) + len(piece) > most:
                return 413, f"the body is longer than {most} bytes"
            if self._held + len(piece) > _MOST_HELD_BYTES:
                return 503, "too many long requests at once: ask again in 1 s"
            body += piece
            self._held += len(piece)
            more = message.get("more_body", False)
        return None

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let the application answer, until it has or the client hangs up."""
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.create_task(_hung_up(receive))

        async def replayed() -> Message:
            if messages:
                return messages.pop()
            await asyncio.shield(gone)
            return {"type": "http.disconnect"}

        answering = asyncio.ensure_future(self._app(scope, replayed, send))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not answering.done():
                answering.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)
        if not answering.cancelled():
            answering.result()  # raises what it has raised


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _host_name(host: str) -> str:
    """The name in a header Host, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
