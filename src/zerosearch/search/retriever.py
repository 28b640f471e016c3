"""Search behind an HTTP retrieval server: ours (`zerosearch retrieve`) or a known other.

The server sees the query alone: neither the question, nor the golden answers, nor the noise.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx

from zerosearch.clients.attempts import PROBE_TIMEOUT_S, Attempts, ServerFailure, patiently
from zerosearch.clients.bounded_replies import MAX_REPLY_BYTES, UnusableReply
from zerosearch.clients.http_failures import call, checked_url, json_body, key_from_env, understood
from zerosearch.clients.http_pool import open_client
from zerosearch.clients.per_loop import PerLoop
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, NotNegative, Positive
from zerosearch.search.dialects import get_dialect
from zerosearch.types import Document, SearchRequest, SearchResult


@dataclass(kw_only=True, slots=True, frozen=True)
class _RetrieverConnections:
    client: httpx.AsyncClient
    key: str  # "" where none is sent
    slots: asyncio.Semaphore


class RetrieverSearch:
    """A `SearchEngine` that asks a retrieval server.

    Args:
        url: where queries are posted; `/retrieve` is added to a URL without a path.
        dialect: what the server speaks, a key of `zerosearch.search.dialects.DIALECTS`.
        max_concurrency: most searches in progress at a time.
        max_retries: further attempts after a failed connection, a stall, HTTP 429 or 5xx without
            Retry-After, or a reply that cannot be read.
        attempt_timeout_s: how long the server may say nothing before it is asked again. One that is
            busy, and answers others or at least a GET, is waited for.
        backoff_s: wait before the first retry; doubled for each further one, with jitter.
        api_key_env: environment variable with a key, sent as bearer token; None sends none.
        max_reply_bytes: most bytes of a reply, unpacked; a longer one counts as failed.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        url: str,
        dialect: str = "search_r1",
        *,
        max_concurrency: Count = 256,
        max_retries: CountOrZero = 3,
        attempt_timeout_s: Positive = 30.0,
        backoff_s: NotNegative = 0.5,
        api_key_env: str | None = None,
        max_reply_bytes: Count = MAX_REPLY_BYTES,
    ) -> None:
        self.url = checked_url("url", url)
        if not urlsplit(self.url).path:
            self.url += "/retrieve"
        if max_concurrency < 1:
            raise InputError(f"max_concurrency={max_concurrency}: give 1 or more")
        if max_reply_bytes < 1:
            raise InputError(f"max_reply_bytes={max_reply_bytes}: give 1 or more")
        if not attempt_timeout_s > 0:
            raise InputError(f"attempt_timeout_s={attempt_timeout_s}: give seconds above 0")
        self.dialect_name = dialect
        self.dialect = get_dialect(dialect)
        self.attempts = Attempts(max_retries=max_retries, backoff_s=backoff_s)
        self.attempt_timeout_s = attempt_timeout_s
        self._max_concurrency = max_concurrency
        self._api_key_env = api_key_env
        self._max_reply_bytes = max_reply_bytes
        self._answered_at = -math.inf
        self._connections = PerLoop(self._connect, lambda held: held.client.aclose())

    async def search(self, request: SearchRequest) -> SearchResult:
        """The first `request.top_k` documents of the server's reply; none at all is a result too.

        `request.timeout_s` counts from the moment a place among `max_concurrency` is free; the
        latency in the result includes the wait for it.

        Raises:
            SearchError: no usable reply within the attempts and the time allowed.
            InputError: `top_k` is below 1, or the variable holds no key.
        """
        if request.top_k < 1:
            raise InputError(f"top_k: {request.top_k} documents were asked for; ask for 1 or more")
        started = time.perf_counter()
        failed = 0

        async def attempt(failures: int) -> list[Document]:
            nonlocal failed
            failed = failures
            documents = await patiently(
                self._ask(held, request.query, request.top_k, request.timeout_s),
                self.attempt_timeout_s,
                partial(self._silence, held),
            )
            self._answered_at = time.monotonic()
            return documents

        held = await self._connections.get()
        async with held.slots:
            documents = await self.attempts.run(
                attempt, endpoint=self.url, timeout_s=request.timeout_s
            )
        return SearchResult(
            documents=tuple(documents[: request.top_k]),
            requested=request.top_k,
            latency_s=time.perf_counter() - started,
            attempts=failed + 1,
        )

    async def check(self, timeout_s: float = 10.0) -> None:
        """Ask one small query before any costly work.

        Raises:
            InputError: one sentence that says why no answer came or that there is no key, and what
                to do.
        """
        held = await self._connections.get()
        try:
            await self._ask(held, "test", 1, min(timeout_s, self.attempt_timeout_s))
        except ServerFailure as failure:
            reason = f"url={self.url}, dialect={self.dialect_name}: {failure.reason}"
        else:
            return
        raise InputError(
            f"{reason}; start a server with `zerosearch retrieve`, or set search.engine.url and "
            "search.engine.dialect to those of yours"
        )

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """The URL stands for the corpus behind it: empty the cache when that changes."""
        return {
            "engine": "retriever",
            "url": self.url,
            "dialect": self.dialect_name,
            "query": request.query,
            "top_k": request.top_k,
        }

    async def _ask(
        self, held: _RetrieverConnections, query: str, top_k: int, timeout_s: float
    ) -> list[Document]:
        """One attempt.

        Raises:
            ServerFailure: no reply, an error, or a reply in another form.
        """
        request = held.client.build_request("POST", self.url, json=self.dialect.body(query, top_k))
        secrets = [held.key]
        response = await call(
            held.client, request, endpoint=self.url, timeout_s=timeout_s, secrets=secrets
        )
        return understood(
            json_body(response, endpoint=self.url, secrets=secrets),
            self.dialect.parse,
            what=f"answer in dialect {self.dialect_name}",
            endpoint=self.url,
            secrets=secrets,
        )

    async def _silence(self, held: _RetrieverConnections, since: float) -> ServerFailure | None:
        """The failure of a server that has said nothing to anyone; see `patiently`."""
        if self._answered_at >= since:
            return None
        said = f"no reply within {time.monotonic() - since:.3g} s"
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await held.client.get(self.url)  # any answer shows that it is alive
        except UnusableReply:
            return None
        except Exception:
            return ServerFailure(self.url, said, transient=True)
        return None

    def _connect(self) -> _RetrieverConnections:
        key = self._key()
        client = open_client(self.url, self._max_reply_bytes)
        if key:
            client.headers["Authorization"] = f"Bearer {key}"
        slots = asyncio.Semaphore(self._max_concurrency)
        return _RetrieverConnections(client=client, key=key, slots=slots)

    def _key(self) -> str:
        if not self._api_key_env:
            return ""
        key = key_from_env(self._api_key_env)
        if not key:
            raise InputError(
                f"search.engine.api_key_env={self._api_key_env}: the environment variable is not "
                "set; put the server's key into it, or set search.engine.api_key_env=null"
            )
        return key
