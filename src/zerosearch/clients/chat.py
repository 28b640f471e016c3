"""A chat model behind servers, asked by simulator, judge and collecting agent.

`ChatModel` is what they need of it; a model in this process offers the same
(`zerosearch.simulator.local_chat`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from zerosearch.clients.attempts import Attempts, ServerFailure, patiently
from zerosearch.clients.bounded_replies import MAX_REPLY_BYTES
from zerosearch.clients.chat_servers import ChatReply, ChatServers
from zerosearch.clients.endpoints import AllDown, EndpointPool
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, NotNegative, Positive, check_least
from zerosearch.types import SearchError


@dataclass(slots=True)
class Tally:
    """What the calls for one purpose have used up so far, all their attempts together."""

    attempts: int = 0
    tokens: int = 0
    spent_s: float = 0.0  # of the time allowed; waiting out an outage is not in it
    tried: list[str] = field(default_factory=list)  # endpoints, one per attempt


class ChatModel(Protocol):
    """Answers chats; safe to call concurrently."""

    usd_per_million_tokens: float

    @property
    def model(self) -> str:
        """Tells models with other replies apart."""
        ...

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Wait for one of the places that bound how many chats are under way."""
        ...

    async def ask(self, body: dict[str, Any], *, timeout_s: float, tally: Tally) -> ChatReply:
        """One reply.

        Args:
            body: `messages`, `temperature`, `max_tokens`, `seed`, and `stop` if wanted, as the API
                names them.
            timeout_s: seconds for everything on this tally.
            tally: what the call uses up is added to it.

        Raises:
            SearchError: no reply; names who failed and why.
        """
        ...

    async def check(self) -> None:
        """Raise an InputError with the remedy where the model cannot answer."""
        ...

    def redact(self, text: str) -> str:
        """A reply on one line of bounded length, without secrets, for messages."""
        ...


class ChatClient:
    """A `ChatModel` behind any number of OpenAI-compatible servers.

    Connections live as long as the event loop they were made in, so one client serves any number
    of successive `asyncio.run` calls; what is known of the endpoints' health outlives them.

    Args:
        endpoints: base URLs of servers of the model, see `EndpointPool`; only a replay needs none.
        model: name under which the servers know the model.
        node: of the configuration, for messages.
        max_concurrency: most chats in progress at a time, over all endpoints. The default is a
            paper's step, 64 questions x 5 siblings: servers such as vLLM queue what they cannot
            run at once, and batch the better the more they see.
        max_retries: further attempts after a failed connection, a stall, or HTTP 429 or 5xx
            without Retry-After.
        attempt_timeout_s: how long an endpoint may say nothing before another is asked. One that is
            busy, and answers other chats or at least a probe, is waited for.
        backoff_s: wait before the first retry; doubled for each further one, with jitter.
        probe_interval_s: pause between the probes of an endpoint that is down.
        max_outage_s: how long chats wait while all endpoints are down.
        usd_per_million_tokens: price, read and written tokens alike.
        api_key_env: environment variable that holds the servers' key; vLLM needs none.
        max_reply_bytes: most bytes of a reply, unpacked; a longer one counts as failed.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        *,
        node: str = "simulator",
        max_concurrency: Count = 320,
        max_retries: CountOrZero = 3,
        attempt_timeout_s: Positive = 30.0,
        backoff_s: NotNegative = 0.5,
        probe_interval_s: Positive = 1.0,
        max_outage_s: NotNegative = 120.0,
        usd_per_million_tokens: NotNegative = 0.0,
        api_key_env: str = "OPENAI_API_KEY",
        max_reply_bytes: Count = MAX_REPLY_BYTES,
    ) -> None:
        if not model:
            raise InputError(f"{node}.model is empty: give the name that the server serves")
        for name, value in (
            ("attempt_timeout_s", attempt_timeout_s),
            ("probe_interval_s", probe_interval_s),
        ):
            if not value > 0:
                raise InputError(f"{node}.{name}={value}: give seconds above 0")
        for name, value, least in (
            ("max_concurrency", max_concurrency, 1),
            ("max_reply_bytes", max_reply_bytes, 1),
            ("max_retries", max_retries, 0),
            ("backoff_s", backoff_s, 0),
            ("max_outage_s", max_outage_s, 0),
            ("usd_per_million_tokens", usd_per_million_tokens, 0),
        ):
            check_least(node, name, value, least)
        self.node = node
        self.model = model
        self.usd_per_million_tokens = usd_per_million_tokens
        self.servers = ChatServers(
            endpoints,
            node=node,
            max_concurrency=max_concurrency,
            api_key_env=api_key_env,
            max_reply_bytes=max_reply_bytes,
        )
        self.pool = EndpointPool(
            self.servers.endpoints,
            self.servers.probe,
            probe_interval_s=probe_interval_s,
            max_outage_s=max_outage_s,
        )
        self.attempts = Attempts(max_retries=max_retries, backoff_s=backoff_s)
        self.attempt_timeout_s = attempt_timeout_s

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Wait for one of the `max_concurrency` places; InputError where there is no endpoint."""
        return self.servers.slot()

    async def ask(self, body: dict[str, Any], *, timeout_s: float, tally: Tally) -> ChatReply:
        """One reply, after failed calls and outages if need be; see `ChatModel`."""

        async def attempt(_: int) -> ChatReply:
            async with self.pool.lease(tally.tried) as endpoint:
                tally.attempts += 1
                tally.tried.append(endpoint)
                return await patiently(
                    self.servers.complete(endpoint, model=self.model, **body),
                    self.attempt_timeout_s,
                    partial(self.pool.silence, endpoint),
                )

        for _ in range(self.attempts.max_retries + 1):
            started = time.monotonic()
            with suppress(AllDown):  # waited out below, outside the time of the request
                try:
                    reply = await self.attempts.run(
                        attempt, endpoint=self.pool.names, timeout_s=timeout_s - tally.spent_s
                    )
                    tally.tokens += reply.tokens
                    return reply
                finally:
                    tally.spent_s += time.monotonic() - started
            await self.pool.recovered()
        raise SearchError(
            self.pool.names,
            "every endpoint answers probes but breaks off its calls; read the servers' logs",
        )

    async def check(self, timeout_s: float = 10.0) -> None:
        """Make sure, before any costly work, that every endpoint is up and serves the model.

        Args:
            timeout_s: bound of the whole check; endpoints are asked at once.

        Raises:
            InputError: one sentence that says which endpoints fail, why, and what to do.
        """
        await self.servers.connect()
        endpoints = self.servers.endpoints
        asked = await asyncio.gather(*(self._models(url, timeout_s) for url in endpoints))
        replies = dict(zip(endpoints, asked, strict=True))
        failed = [reply for reply in replies.values() if isinstance(reply, ServerFailure)]
        if failed:
            what = ", ".join(f"{failure.endpoint} ({failure.reason})" for failure in failed)
            role = self.node.partition(".")[0]
            raise InputError(
                f"{self.node}.endpoints: no {role} answers at {what}: start a server with "
                f"`vllm serve {self.model}` and set {self.node}.endpoints=[http://HOST:8000/v1]"
            )
        lacking = [
            f"{url} (it serves {self.redact(', '.join(names)) or 'no model'})"
            for url, names in replies.items()
            if not isinstance(names, ServerFailure) and self.model not in names
        ]
        if lacking:
            raise InputError(
                f"{self.node}.model={self.model!r} is not served at {', '.join(lacking)}: set "
                f"{self.node}.model to a served name, or {self.node}.endpoints to the servers of "
                f"`vllm serve {self.model}`"
            )

    def redact(self, text: str) -> str:
        """See `ChatModel`."""
        return self.servers.redact(text)

    async def _models(self, endpoint: str, timeout_s: float) -> list[str] | ServerFailure:
        try:
            return await self.servers.model_names(endpoint, timeout_s=timeout_s)
        except ServerFailure as failure:
            return failure
