"""Connections to OpenAI-compatible servers: pooled, limited, with every failure put in words.

One call is one attempt: retries and deadlines belong to the caller. The client library sends
through aiohttp: the pool of its usual transport walks all connections at every request, which with
320 searches in progress costs three times the processor time (`benchmarks/bench_search.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import openai

from zerosearch.clients.attempts import PROBE_TIMEOUT_S
from zerosearch.clients.bounded_replies import (
    HEADERS,
    MAX_REPLY_BYTES,
    UnusableReply,
    no_cookies,
    reply_reader,
)
from zerosearch.clients.connection_failures import explain
from zerosearch.clients.endpoints import CallFailure, FailureKind
from zerosearch.clients.http_failures import checked_url, key_from_env, one_line, retry_after_s
from zerosearch.clients.http_pool import CONNECT_TIMEOUT_S, KEEPALIVE_S
from zerosearch.clients.per_loop import PerLoop
from zerosearch.core.errors import InputError
from zerosearch.core.text import whole_characters

_MAX_NAME_CHARS = 200  # of a model, as a server says it
_MAX_TOKENS = 10**9  # that a server may count for one reply
_NO_KEY = "EMPTY"  # what the client sends to servers that ask for none, such as vLLM
# The client describes the machine it runs on in every request: nobody's business, and not free.
_UNSENT = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
# A proxy of the environment cannot reach the servers of this machine.
_NOT_THROUGH_PROXY = ("all://127.0.0.1", "all://localhost", "all://[::1]")

# The HTTP libraries under openai log a line per request: hundreds per policy step.
for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(kw_only=True, slots=True, frozen=True)
class ChatReply:
    """One chat completion."""

    text: str
    finish_reason: str | None  # "stop", "length" or what else the server says
    tokens: int  # read and written; 0 where the server does not count
    sampled: int = 0  # of these, written
    model: str = ""  # who says it answered; empty where the server does not say


class _ChatConnections:
    """What belongs to one event loop; neither sockets nor semaphores survive theirs."""

    def __init__(
        self, endpoints: Sequence[str], max_concurrency: int, key: str, max_reply_bytes: int
    ) -> None:
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=max_concurrency + len(endpoints),  # probes need no place of a search
            keepalive_expiry=KEEPALIVE_S,
        )
        self._http = openai.DefaultAioHttpClient(
            limits=limits,
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT_S),
            mounts=dict.fromkeys(_NOT_THROUGH_PROXY),
            follow_redirects=False,
            headers=HEADERS,
            cookies=no_cookies(),
            event_hooks={"response": [self._forget_cookies, reply_reader(max_reply_bytes)]},
        )
        unsent: dict[str, Any] = {f"X-Stainless-{name}": openai.Omit() for name in _UNSENT}
        self.client = openai.AsyncOpenAI(
            base_url=endpoints[0],  # never used: calls give whole URLs, which costs less
            api_key=key,
            max_retries=0,  # the caller retries, with its own bound
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT_S),
            http_client=self._http,
            default_headers=unsent,
        )
        self.slots = asyncio.Semaphore(max_concurrency)

    async def close(self) -> None:
        await self.client.close()

    async def _forget_cookies(self, _: Any) -> None:
        """Empty the jars of aiohttp, which its transport in openai cannot be made without."""
        for transport in (self._http._transport, *self._http._mounts.values()):
            session = getattr(transport, "client", None)
            if isinstance(session, aiohttp.ClientSession):
                session.cookie_jar.clear()


class ChatServers:
    """Servers that answer chat completions.

    Args:
        endpoints: base URLs; `/v1` is added to a URL without a path. A replay needs none.
        node: of the configuration, for messages.
        max_concurrency: most slots held at a time, over all endpoints.
        api_key_env: environment variable with the key; it may be unset.
        max_reply_bytes: most bytes of a reply, unpacked.

    Raises:
        InputError: an endpoint is no plain http(s) URL.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        node: str = "simulator",
        max_concurrency: int,
        api_key_env: str,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        field = f"{node}.endpoints"
        if isinstance(endpoints, str):
            raise InputError(f"{field}={endpoints!r}: give a list, such as [URL,URL]")
        self.endpoints = tuple(dict.fromkeys(_base_url(field, each) for each in endpoints))
        self.node = node
        self.max_concurrency = max_concurrency
        self.api_key_env = api_key_env
        self.max_reply_bytes = max_reply_bytes
        self._connections = PerLoop(self._connect, _ChatConnections.close)

    async def connect(self) -> None:
        """Make sure that there is what connections need; no server is asked.

        Raises:
            InputError: no endpoint is given, or no HTTP header may hold the key.
        """
        await self._connections.get()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one of the `max_concurrency` places.

        Raises:
            InputError: as `connect`.
        """
        async with (await self._connections.get()).slots:
            yield

    async def complete(self, endpoint: str, **body: Any) -> ChatReply:
        """One chat completion, however long it takes.

        Args:
            endpoint: one of `endpoints`.
            **body: arguments of the API.

        Raises:
            CallFailure: no reply, an error, or a reply that is no chat completion.
        """
        url = f"{endpoint}/chat/completions"
        reply = await self._call(
            endpoint,
            None,
            lambda client: client.post(url, cast_to=httpx.Response, body=body),
        )
        try:
            return _chat_reply(json.loads(reply))
        except Exception:  # whatever it raises is the reply's fault
            shown = self.redact(reply.decode(errors="replace"))[:100]
            reason = f"the reply is not a chat completion, it begins {shown!r}"
        raise CallFailure(endpoint, reason, kind="faulty")

    async def model_names(self, endpoint: str, *, timeout_s: float) -> list[str]:
        """Names of the models that an endpoint serves.

        Raises:
            CallFailure: no reply, an error, or a reply that is no list of models.
        """
        reply = await self._call(
            endpoint,
            timeout_s,
            lambda client: client.get(f"{endpoint}/models", cast_to=httpx.Response),
        )
        try:
            return [str(model["id"])[:_MAX_NAME_CHARS] for model in json.loads(reply)["data"]]
        except Exception:
            reason = "its reply to /models is not a list of models"
        raise CallFailure(endpoint, reason, kind="rejected")

    async def probe(self, endpoint: str) -> None:
        """Ask a server for a sign of life.

        Raises:
            CallFailure: none came, or one that shows a server that runs but says no.
        """
        await self.model_names(endpoint, timeout_s=PROBE_TIMEOUT_S)

    def redact(self, text: str) -> str:
        """Text from a server, on one line of bounded length and without the key."""
        return one_line(text, [self._key()])

    async def _call(
        self,
        endpoint: str,
        timeout_s: float | None,
        ask: Callable[[openai.AsyncOpenAI], Awaitable[httpx.Response]],
    ) -> bytes:
        client = (await self._connections.get()).client
        try:
            async with asyncio.timeout(timeout_s):
                return (await ask(client)).content
        except TimeoutError:
            within = "in time" if timeout_s is None else f"within {timeout_s:.3g} s"
            failure = CallFailure(endpoint, f"no reply {within}", kind="stalled")
        except UnusableReply as error:
            kind = "faulty" if error.transient else "rejected"
            failure = CallFailure(endpoint, self.redact(str(error)), kind=kind)
        except openai.APIStatusError as error:
            failure = self._status_failure(endpoint, error)
        except (openai.APIError, aiohttp.ClientError) as error:
            kind, reason = explain(error)
            failure = CallFailure(endpoint, self.redact(reason), kind=kind)
        except Exception as error:  # whatever a reply makes the libraries raise is its fault
            reason = f"what it sends cannot be read ({type(error).__name__}: {error})"
            failure = CallFailure(endpoint, self.redact(reason), kind="faulty")
        # Raised outside the handlers: a chained error would show the server's words unredacted.
        raise failure

    def _status_failure(self, endpoint: str, error: openai.APIStatusError) -> CallFailure:
        status = error.status_code
        said = error.message.removeprefix(f"Error code: {status}").removeprefix(" - ")
        reason = f"HTTP {status}" + (f" ({self.redact(said)})" if said else "")
        wait_s = retry_after_s(error.response.headers)
        kind: FailureKind = "rejected"
        if status in (502, 503, 504) and not wait_s:
            kind = "unreachable"  # the words of a gateway whose server is gone, or still starts
        elif status in (408, 429) or status >= 500:
            kind = "faulty"
        return CallFailure(
            endpoint,
            reason + self._remedy(status),
            kind=kind,
            retry_after_s=wait_s,
        )

    def _remedy(self, status: int) -> str:
        if status in (401, 403) and self._key():
            return f"; renew the key in the environment variable {self.api_key_env}"
        if status in (401, 403):
            return f"; put the server's key into the environment variable {self.api_key_env}"
        if status == 404:
            return f"; set {self.node}.model to a name that the server serves"
        if status in (400, 413, 422):
            return f"; bring {self.node}.max_tokens and the prompt within the server's limits"
        return ""

    def _connect(self) -> _ChatConnections:
        if not self.endpoints:
            raise InputError(
                f"{self.node}.endpoints is empty: start a server with `vllm serve MODEL` and set "
                f"{self.node}.endpoints=[http://HOST:8000/v1]"
            )
        return _ChatConnections(
            self.endpoints, self.max_concurrency, self._key() or _NO_KEY, self.max_reply_bytes
        )

    def _key(self) -> str:
        return key_from_env(self.api_key_env)


def _base_url(field: str, endpoint: str) -> str:
    url = checked_url(field, endpoint)
    return url if url.count("/") > 2 else f"{url}/v1"


def _chat_reply(values: Any) -> ChatReply:
    """What the JSON of a chat completion says; raises anything where it is none."""
    choice = values["choices"][0]
    text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    usage, model = values.get("usage"), values.get("model")
    return ChatReply(
        # null: a model that only "reasoned"
        text=whole_characters(text) if isinstance(text, str) else "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        tokens=_count(usage, "total_tokens"),
        sampled=_count(usage, "completion_tokens"),
        model=whole_characters(model)[:_MAX_NAME_CHARS] if isinstance(model, str) else "",
    )


def _count(usage: Any, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 < count < _MAX_TOKENS else 0
