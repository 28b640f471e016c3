"""Replies of servers, read within bounds: whatever one sends, a call holds no more than it may.

What this does for a client of httpx (or of httpx2, its successor under newer versions of openai) is
a hook of its, called with each reply between the head and the body.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from zerosearch.core.errors import InputError

MAX_REPLY_BYTES = 8 * 2**20  # by default; a simulator's reply has about 3,000
HEADERS = {"Accept-Encoding": "gzip"}  # what can be unpacked here
# Of a reply beyond the first, only the second are read at a time: together they hold some 100 MiB,
# and 320 that wait as much again.
_SHORT_BYTES = 2**18
_LONG_AT_ONCE = 16
_PIECE_BYTES = 2**16  # unpacked at a time
_GZIP = 16 + zlib.MAX_WBITS

Hook = Callable[[Any], Awaitable[None]]


class UnusableReply(Exception):
    """A reply that is not read, or not to its end; the message holds what the server said.

    Args:
        reason: what is wrong with it.
        transient: whether another attempt may bring a better one.
    """

    def __init__(self, reason: str, *, transient: bool = True) -> None:
        super().__init__(reason)
        self.transient = transient


def reply_reader(max_reply_bytes: int) -> Hook:
    """A response hook that reads the whole body, unpacked, and keeps of the head what is used.

    No redirect is followed: it would carry the prompt, and a key, to whom nobody named. Nor do
    character sets and encodings that a server makes up reach the client library.

    Args:
        max_reply_bytes: most bytes of a body, unpacked.

    Raises:
        InputError: that is below 1.
        UnusableReply: by the hook; the body is longer or damaged, or the reply is a redirect.
    """
    if max_reply_bytes < 1:
        raise InputError(f"max_reply_bytes={max_reply_bytes}: give 1 or more")
    long_ones = asyncio.Semaphore(_LONG_AT_ONCE)

    async def read(response: Any) -> None:
        stream, headers = response.stream, response.headers
        try:
            if 300 <= response.status_code < 400 and "location" in headers:
                target = headers["location"].partition("?")[0]
                reason = f"HTTP {response.status_code}: it moved to {target}; set the URL to that"
                raise UnusableReply(reason, transient=False)
            packed = headers.get("content-encoding", "").strip().lower()
            body = await _body(stream, packed, max_reply_bytes, long_ones)
        finally:
            await stream.aclose()
        wait = headers.get("retry-after")
        response.headers = type(headers)({} if wait is None else {"retry-after": wait})
        response.stream = type(response)(200, content=body).stream

    return read


def no_cookies() -> CookieJar:
    """A jar that takes none: a server could fill it, and every request that follows."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


async def _body(stream: Any, packed: str, most: int, long_ones: asyncio.Semaphore) -> bytes:
    if packed not in ("", "identity", "gzip", "x-gzip"):
        raise UnusableReply(f"the reply is damaged: packed as {packed!r}, which was not asked for")
    body = bytearray()
    async with aclosing(_pieces(stream, "gzip" in packed)) as pieces:
        try:
            async for piece in pieces:
                _add(body, piece, most)
                if len(body) >= _SHORT_BYTES:
                    break
            async with long_ones if len(body) >= _SHORT_BYTES else nullcontext():
                async for piece in pieces:
                    _add(body, piece, most)
            return bytes(body)
        finally:
            body.clear()  # an error would keep it while the connection is closed


async def _pieces(stream: Any, packed: bool) -> AsyncGenerator[bytes]:
    """What comes, unpacked a piece at a time: a kilobyte may hold a megabyte.

    What follows the end of gzip data is passed over; zlib would keep all of it.
    """
    unpacker, came = zlib.decompressobj(_GZIP), False
    async with aclosing(aiter(stream)) as chunks:
        async for chunk in chunks:
            came = came or bool(chunk)
            if not packed:
                yield chunk
            while packed and chunk and not unpacker.eof:
                try:
                    piece = unpacker.decompress(chunk, _PIECE_BYTES)
                except zlib.error as error:
                    raise UnusableReply(f"the reply is damaged: {error}") from None
                yield piece
                if chunk := unpacker.unconsumed_tail:
                    await asyncio.sleep(0)  # 64 KB may hold 64 MiB: others go on meanwhile
    if packed and came and not unpacker.eof:
        raise UnusableReply("the reply is damaged: its gzip data end too early")


def _add(body: bytearray, piece: bytes, most: int) -> None:
    if len(piece) > most - len(body):
        raise UnusableReply(f"the reply has more than max_reply_bytes={most}", transient=True)
    body += piece
