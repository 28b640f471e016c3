"""HTTP connections whose bookkeeping does not grow with their number.

The pool of httpx walks all of its connections, several times over, whenever a request starts or
ends: with 320 searches in progress that alone takes 26 ms of processor time a search. Here each
request borrows a pool of one connection, which leaves nothing to walk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from zerosearch.clients.bounded_replies import HEADERS, MAX_REPLY_BYTES, no_cookies, reply_reader

CONNECT_TIMEOUT_S = 5.0  # a dead host is known by then; a busy one accepts and lets wait
# Below the 5 s after which common servers close an idle connection: reused later, it would be dead.
KEEPALIVE_S = 4.0


def open_client(url: str, max_reply_bytes: int = MAX_REPLY_BYTES) -> httpx.AsyncClient:
    """A client for one server, without bounds on connections or time: its caller sets them.

    It belongs to the running loop, and raises `UnusableReply` for replies that are not read.

    Args:
        url: of the server. A proxy that the environment names for it is used (`HTTPS_PROXY`,
            `NO_PROXY` and the like), never for a server on this machine.
        max_reply_bytes: most bytes of a reply's body, unpacked.
    """
    return httpx.AsyncClient(
        headers=HEADERS,
        cookies=no_cookies(),
        event_hooks={"response": [reply_reader(max_reply_bytes)]},
        transport=SpreadTransport(proxy_for(url)),
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
    )


class SpreadTransport(httpx.AsyncBaseTransport):
    """Transport of httpx that gives each request in progress a connection to itself.

    Args:
        proxy: URL of the proxy to go through, or None.
    """

    def __init__(self, proxy: str | None = None) -> None:
        self._proxy = proxy
        self._ssl_context = httpx.create_ssl_context()  # one for all: it takes 20 ms to make
        self._free: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # The one used last comes first, so that idle connections are those of the busiest moment.
        transport = self._free.pop() if self._free else self._connection()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await transport.aclose()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Borrowed(response.stream, transport, self._free)
        return response

    async def aclose(self) -> None:
        while self._free:
            await self._free.pop().aclose()

    def _connection(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S)
        return httpx.AsyncHTTPTransport(verify=self._ssl_context, limits=limits, proxy=self._proxy)


class _Borrowed(httpx.AsyncByteStream):
    """The body of a reply, whose end makes its connection free for another request."""

    def __init__(
        self,
        stream: httpx.AsyncByteStream,
        transport: httpx.AsyncHTTPTransport,
        free: list[httpx.AsyncHTTPTransport],
    ) -> None:
        self._stream = stream
        self._transport = transport
        self._free = free
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        if self._is_closed:  # httpx closes what a hook has closed again, where the hook raises
            return
        self._is_closed = True  # given back twice, the connection would serve two at a time
        await self._stream.aclose()
        self._free.append(self._transport)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a server, if any; never for one on this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("127.0.0.1", "::1", "localhost") or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"
