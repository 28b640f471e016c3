"""Connections to OpenAI-compatible servers: pooled, limited, with every failure put in words.

One call is one attempt: retries and deadlines belong to the caller.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

CONNECT_TIMEOUT_S = 5.0  # a dead host is known by then; a busy one accepts and lets wait
_NO_KEY = "EMPTY"  # what the client sends to servers that ask for none, such as vLLM
_MAX_REASON_CHARS = 300

# The HTTP libraries under openai log a line per request: hundreds per policy step.
for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class ServerFailure(Exception):
    """One call that failed; `transient` where another attempt may succeed."""

    def __init__(self, endpoint: str, reason: str, *, transient: bool) -> None:
        super().__init__(f"{endpoint}: {reason}")
        self.endpoint = endpoint
        self.reason = reason
        self.transient = transient


@dataclass(kw_only=True, slots=True)
class _Connections:
    """What belongs to one event loop; neither sockets nor semaphores survive theirs."""

    clients: dict[str, openai.AsyncOpenAI]
    slots: asyncio.Semaphore
    closer: AsyncGenerator[None]


class ChatServers:
    """Servers that answer chat completions.

    Args:
        endpoints: base URLs; `/v1` is added to a URL without a path.
        max_concurrency: most slots held at a time, over all endpoints.
        api_key_env: environment variable with the key; it may be unset.

    Raises:
        ValueError: no endpoint is given, or one is no plain http(s) URL.
    """

    def __init__(self, endpoints: Sequence[str], *, max_concurrency: int, api_key_env: str) -> None:
        if isinstance(endpoints, str):
            raise ValueError(f"simulator.endpoints={endpoints!r}: give a list, such as [URL,URL]")
        if not endpoints:
            raise ValueError(
                "simulator.endpoints is empty: start a server with `vllm serve MODEL` and set "
                "simulator.endpoints=[http://HOST:8000/v1]"
            )
        self.endpoints = tuple(_base_url(endpoint) for endpoint in endpoints)
        self.max_concurrency = max_concurrency
        self.api_key_env = api_key_env
        self._connections: dict[asyncio.AbstractEventLoop, _Connections] = {}

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one of the `max_concurrency` places."""
        connections = await self._connect()
        async with connections.slots:
            yield

    async def complete(self, endpoint: str, *, timeout_s: float, **body: Any) -> str:
        """The text of one chat completion.

        Args:
            endpoint: one of `endpoints`.
            timeout_s: seconds for the whole call.
            **body: arguments of the API.

        Raises:
            ServerFailure: no reply, an error, or a reply that is no chat completion.
        """
        reply = await self._call(
            endpoint,
            timeout_s,
            lambda client: client.chat.completions.with_raw_response.create(**body),
        )
        try:
            text = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            reason = "the reply is not a chat completion"
            raise ServerFailure(endpoint, reason, transient=True) from error
        return text if isinstance(text, str) else ""  # null: a model that only "reasoned"

    async def model_names(self, endpoint: str, *, timeout_s: float) -> list[str]:
        """Names of the models that an endpoint serves.

        Raises:
            ServerFailure: no reply, an error, or a reply that is no list of models.
        """
        reply = await self._call(
            endpoint, timeout_s, lambda client: client.models.with_raw_response.list()
        )
        try:
            return [str(model["id"]) for model in json.loads(reply)["data"]]
        except (ValueError, LookupError, TypeError) as error:
            reason = "its reply to /models is not a list of models"
            raise ServerFailure(endpoint, reason, transient=False) from error

    def redact(self, text: str) -> str:
        """Text from a server, on one line of bounded length and without the key."""
        key = self._api_key()
        shown = text if key == _NO_KEY else text.replace(key, "***")
        shown = " ".join(shown.split())
        return shown if len(shown) <= _MAX_REASON_CHARS else shown[:_MAX_REASON_CHARS] + " ..."

    async def _call(
        self,
        endpoint: str,
        timeout_s: float,
        ask: Callable[[openai.AsyncOpenAI], Awaitable[Any]],
    ) -> str:
        client = (await self._connect()).clients[endpoint]
        try:
            async with asyncio.timeout(timeout_s):
                response = await ask(client)
        except TimeoutError:
            reason, transient = f"no reply within {timeout_s:.3g} s", True
        except openai.APIError as error:
            reason, transient = self._explain(error)
        else:
            return response.http_response.text
        # Raised outside the handlers: a chained error would show the server's words unredacted.
        raise ServerFailure(endpoint, self.redact(reason), transient=transient)

    def _explain(self, error: openai.APIError) -> tuple[str, bool]:
        """What happened, and whether another attempt may help."""
        if isinstance(error, openai.APITimeoutError):
            return f"no connection within {CONNECT_TIMEOUT_S:g} s", True
        if isinstance(error, openai.APIConnectionError):
            return f"connection failed ({error.__cause__ or error.message})", True
        if not isinstance(error, openai.APIStatusError):
            return error.message, False
        status = error.status_code
        hint = ""
        if status in (401, 403):
            hint = f"; put the server's key into the environment variable {self.api_key_env}"
        said = error.message.removeprefix(f"Error code: {status}").removeprefix(" - ")
        reason = f"HTTP {status}{f' ({said})' if said else ''}{hint}"
        return reason, status == 429 or status >= 500

    async def _connect(self) -> _Connections:
        """The running loop's connections, made on its first call."""
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            for stale in [known for known in list(self._connections) if known.is_closed()]:
                del self._connections[stale]
            closer = self._close_with_loop(loop)
            self._connections[loop] = _Connections(
                clients={endpoint: self._client(endpoint) for endpoint in self.endpoints},
                slots=asyncio.Semaphore(self.max_concurrency),
                closer=closer,
            )
            await anext(closer)
        return self._connections[loop]

    async def _close_with_loop(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        """Close the loop's clients when it ends.

        `asyncio.run` finalises started asynchronous generators before it closes its loop, the one
        hook it offers: whoever runs episodes need not know that an engine has connections.
        """
        try:
            yield
        finally:
            connections = self._connections.pop(loop)
            for client in connections.clients.values():
                await client.close()

    def _client(self, endpoint: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=endpoint,
            api_key=self._api_key(),
            max_retries=0,  # the caller retries, with its own bound
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT_S),
        )

    def _api_key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip() or _NO_KEY
        if not (key.isascii() and key.isprintable()):
            # Checked here: the HTTP library would quote the whole header in its error.
            raise ValueError(
                f"environment variable {self.api_key_env}: the key holds characters that no HTTP "
                "header may have; set it again"
            )
        return key


def _base_url(endpoint: str) -> str:
    parts = urlsplit(str(endpoint).strip())
    if parts.username or parts.password or parts.query or parts.fragment:
        # Not shown: it may hold a key.
        raise ValueError(
            "simulator.endpoints: a URL holds a user name, a password, a query or a fragment; "
            "give http://HOST:PORT/v1, and put a key into the environment variable of "
            "simulator.api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"simulator.endpoints: {endpoint!r} is no URL; give one such as http://HOST:8000/v1"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
