"""Google through a service that is paid per query: rate-limited, bounded, with its cost counted.

The service sees the query alone: neither the question, nor the golden answers, nor the noise. Its
results change with time, so a run that is to be repeated needs a cache around this engine.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from zerosearch.clients.attempts import Attempts, ServerFailure
from zerosearch.clients.bounded_replies import MAX_REPLY_BYTES
from zerosearch.clients.http_failures import call, checked_url, json_body, key_from_env, understood
from zerosearch.clients.http_pool import open_client
from zerosearch.clients.per_loop import PerLoop
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, NotNegative, Positive
from zerosearch.search.web_providers import WebQuery, get_provider
from zerosearch.types import Document, SearchError, SearchRequest, SearchResult

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

# Requests of this process by base URL: a quota holds for all engines that use one service.
_SENT: Counter[str] = Counter()


@dataclass(kw_only=True, slots=True, frozen=True)
class _WebConnections:
    client: httpx.AsyncClient
    limiter: AsyncLimiter


@dataclass(kw_only=True, slots=True)
class _Spent:
    """What one search has used so far."""

    calls: int = 0
    paid: int = 0  # both services charge for replies, not for errors


class WebSearch:
    """A `SearchEngine` that asks Serper or SerpApi.

    The key comes from the environment, `SERPER_API_KEY` or `SERPAPI_API_KEY`, and is shown nowhere.

    Args:
        provider: "serper" or "serpapi".
        usd_per_query: what the plan charges, for the cost counter.
        max_queries: requests to the service, repeated ones included, that this process makes at
            most; searches beyond fail.
        queries_per_second: requests are spaced to this rate.
        language: code of the interface language, such as "en".
        country: code of the country searched from, such as "us".
        max_retries: further attempts after a failed connection, a timeout, HTTP 429 or 5xx, or a
            reply that cannot be read.
        attempt_timeout_s: bound of one attempt; `SearchRequest.timeout_s` bounds the whole search.
        backoff_s: wait before the first retry; doubled for each further one, with jitter.
        base_url: of a server that speaks like the service, in its place.
        max_reply_bytes: most bytes of a reply, unpacked; a longer one counts as failed.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        provider: str = "serper",
        *,
        usd_per_query: NotNegative,
        max_queries: Count,
        queries_per_second: Positive = 5.0,
        language: str = "en",
        country: str = "us",
        max_retries: CountOrZero = 3,
        attempt_timeout_s: Positive = 20.0,
        backoff_s: NotNegative = 0.5,
        base_url: str | None = None,
        max_reply_bytes: Count = MAX_REPLY_BYTES,
    ) -> None:
        if not usd_per_query >= 0:
            raise InputError(f"usd_per_query={usd_per_query}: give dollars, 0 or more")
        for name, value in (
            ("max_queries", max_queries),
            ("queries_per_second", queries_per_second),
            ("attempt_timeout_s", attempt_timeout_s),
            ("max_reply_bytes", max_reply_bytes),
        ):
            if not value > 0:
                raise InputError(f"{name}={value}: give a number above 0")
        self.provider_name = provider
        self.provider = get_provider(provider)
        self.base_url = checked_url("base_url", base_url or self.provider.base_url)
        self.usd_per_query = usd_per_query
        self.max_queries = max_queries
        self.queries_per_second = queries_per_second
        self.language = language
        self.country = country
        self.attempts = Attempts(max_retries=max_retries, backoff_s=backoff_s)
        self.attempt_timeout_s = attempt_timeout_s
        self._max_reply_bytes = max_reply_bytes
        self._connections = PerLoop(self._connect, lambda held: held.client.aclose())

    async def search(self, request: SearchRequest) -> SearchResult:
        """The first `request.top_k` results; none at all is a result too.

        `request.timeout_s` counts from the moment the rate allows the first request; the latency
        in the result includes the wait for it.

        Raises:
            SearchError: no usable reply within the attempts and the time allowed, a key that is
                refused, no credit, or the quota is used up.
            InputError: `top_k` is below 1, or there is no key.
        """
        if request.top_k < 1:
            raise InputError(f"top_k: {request.top_k} documents were asked for; ask for 1 or more")
        started = time.perf_counter()
        key, spent = self._key(), _Spent()
        query = WebQuery(text=request.query, language=self.language, country=self.country)
        held = await self._connections.get()

        async def attempt(failures: int) -> list[Document]:
            if failures:
                await held.limiter.acquire()
            return await self._ask(held.client, key, query, spent)

        await held.limiter.acquire()
        try:
            documents = await self.attempts.run(
                attempt, endpoint=self.base_url, timeout_s=request.timeout_s
            )
        except SearchError as error:
            error.cost_usd = spent.paid * self.usd_per_query
            raise
        return SearchResult(
            documents=tuple(documents[: request.top_k]),
            requested=request.top_k,
            latency_s=time.perf_counter() - started,
            attempts=spent.calls,
            cost_usd=spent.paid * self.usd_per_query,
        )

    async def check(self) -> None:
        """Make sure that there is a key; the service is not asked, since that costs.

        Raises:
            InputError: the environment holds no key, or a library is missing.
        """
        self._key()
        await self._connections.get()

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """The service, its settings and the query."""
        return {
            "engine": "web",
            "provider": self.provider_name,
            "language": self.language,
            "country": self.country,
            "query": request.query,
            "top_k": request.top_k,
        }

    async def _ask(
        self, client: httpx.AsyncClient, key: str, query: WebQuery, spent: _Spent
    ) -> list[Document]:
        """One request.

        Raises:
            ServerFailure: no reply, an error, a reply in another form, or no quota left.
        """
        self._count_request()
        secrets = (key, quote(key, safe=""))
        spent.calls += 1
        try:
            response = await call(
                client,
                self.provider.build(client, self.base_url, key, query),
                endpoint=self.base_url,
                timeout_s=self.attempt_timeout_s,
                secrets=secrets,
            )
            spent.paid += 1
            return understood(
                json_body(response, endpoint=self.base_url, secrets=secrets),
                self.provider.parse,
                what=f"answer of {self.provider_name}",
                endpoint=self.base_url,
                secrets=secrets,
            )
        except ServerFailure as failure:
            explained = self._explain(failure)
        raise explained

    def _explain(self, failure: ServerFailure) -> ServerFailure:
        """The failure, with its remedy where the account is the reason."""
        reason, remedy = failure.reason, ""
        if any(phrase in reason.casefold() for phrase in self.provider.out_of_credit):
            remedy = f"buy credit at {self.provider.sign_up}; search.cache=use keeps what was paid"
        elif reason.startswith(("HTTP 401", "HTTP 403")):
            remedy = f"put a valid key into the environment variable {self.provider.key_env}"
        if not remedy:
            return failure
        return ServerFailure(self.base_url, f"{reason}; {remedy}", transient=False)

    def _count_request(self) -> None:
        if _SENT[self.base_url] >= self.max_queries:
            reason = (
                f"this process has made its search.engine.max_queries={self.max_queries} requests "
                f"(about ${self.max_queries * self.usd_per_query:.2f}); raise it to go on"
            )
            raise ServerFailure(self.base_url, reason, transient=False)
        _SENT[self.base_url] += 1

    def _key(self) -> str:
        variable = self.provider.key_env
        key = key_from_env(variable)
        if not key:
            raise InputError(
                f"search.engine.provider={self.provider_name} needs a key from "
                f"{self.provider.sign_up} in the environment variable {variable}, which is not set"
            )
        return key

    def _connect(self) -> _WebConnections:
        try:
            from aiolimiter import AsyncLimiter
        except ImportError as error:
            raise InputError(
                "search=web needs aiolimiter: pip install 'zerosearch[web]'"
            ) from error
        # One request per period instead of many per second: no bursts.
        limiter = AsyncLimiter(1, 1 / self.queries_per_second)
        return _WebConnections(
            client=open_client(self.base_url, self._max_reply_bytes), limiter=limiter
        )
