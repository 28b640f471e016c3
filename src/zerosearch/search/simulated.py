"""The paper's search engine: a language model that writes the documents (arXiv 2505.04588).

It runs behind any OpenAI-compatible server (`vllm serve MODEL`). Quality is drawn once per query
and told to the model in its prompt. Departures from the paper: the prompt is our own and shows all
golden answers, and a search without usable documents fails instead of reading "no information".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from zerosearch.search.attempts import Attempts, ServerFailure
from zerosearch.search.chat_servers import ChatReply, ChatServers
from zerosearch.search.endpoints import AllDown, EndpointPool
from zerosearch.search.replies import Problem, Reply, parse_reply
from zerosearch.search.simulator_prompt import SimulatorPrompt
from zerosearch.seeding import derive_random, derive_seed
from zerosearch.types import SearchError, SearchRequest, SearchResult

TOKENS_PER_WORD = 4  # the authors' scripts allow 600 tokens for 5 documents of 30 words


def draw_noisy(request: SearchRequest) -> bool:
    """Whether a search is to be noisy: a function of the request's seed and noise probability."""
    return derive_random(request.seed, "simulated", "noisy").random() < request.noise_probability


@dataclass(slots=True)
class _Tally:
    """What one search has used up so far, all its attempts together."""

    attempts: int = 0
    tokens: int = 0
    spent_s: float = 0.0  # of the request's time; waiting out an outage is not in it
    problems: list[Problem] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)  # endpoints, one per attempt


class SimulatedSearch:
    """A `SearchEngine` that asks a simulation LLM for useful or noisy documents.

    Connections live as long as the event loop they were made in, so one engine serves any number
    of successive `asyncio.run` calls; what is known of the endpoints' health outlives them.

    Args:
        endpoints: base URLs of servers of the model, see `EndpointPool`; only a replay needs none.
        model: name under which the servers know the simulator.
        prompt_template: shipped template or path of the user's own, see `SimulatorPrompt`.
        temperature: of the simulator; the default is the authors' scripts'.
        max_tokens: bound of one reply; the default is the authors' scripts'. None allows as many
            per word of the documents asked for as that.
        words_per_document: length the prompt asks for; the default is the paper's.
        max_concurrency: most searches in progress at a time, over all endpoints. The default is a
            paper's step, 64 questions x 5 siblings: servers such as vLLM queue what they cannot
            run at once, and batch the better the more they see.
        max_retries: further attempts after a failed connection, a timeout, HTTP 429 or 5xx.
        max_reply_retries: further attempts, with another seed, after a reply with fewer documents
            than asked for; the best reply counts.
        attempt_timeout_s: bound of one attempt, so that an endpoint that hangs leaves time to ask
            another; `SearchRequest.timeout_s` bounds the whole search.
        backoff_s: wait before the first retry; doubled for each further one, with jitter.
        probe_interval_s: pause between the probes of an endpoint that is down.
        max_outage_s: how long searches wait while all endpoints are down.
        usd_per_million_tokens: price, read and written tokens alike.
        api_key_env: environment variable that holds the servers' key; vLLM needs none.

    Raises:
        ValueError: an argument is out of range, or the template is bad.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        *,
        prompt_template: str = "prompted",
        temperature: float = 0.8,
        max_tokens: int | None = 600,
        words_per_document: int = 30,
        max_concurrency: int = 320,
        max_retries: int = 3,
        max_reply_retries: int = 1,
        attempt_timeout_s: float = 30.0,
        backoff_s: float = 0.5,
        probe_interval_s: float = 1.0,
        max_outage_s: float = 120.0,
        usd_per_million_tokens: float = 0.0,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        if not model:
            raise ValueError("simulator.model is empty: give the name that the server serves")
        _check_numbers(
            (("attempt_timeout_s", attempt_timeout_s), ("probe_interval_s", probe_interval_s)),
            (
                ("temperature", temperature, 0),
                ("max_tokens", 1 if max_tokens is None else max_tokens, 1),
                ("words_per_document", words_per_document, 1),
                ("max_concurrency", max_concurrency, 1),
                ("max_retries", max_retries, 0),
                ("max_reply_retries", max_reply_retries, 0),
                ("backoff_s", backoff_s, 0),
                ("max_outage_s", max_outage_s, 0),
                ("usd_per_million_tokens", usd_per_million_tokens, 0),
            ),
        )
        self.servers = ChatServers(
            endpoints, max_concurrency=max_concurrency, api_key_env=api_key_env
        )
        self.pool = EndpointPool(
            self.servers.endpoints,
            self.servers.probe,
            probe_interval_s=probe_interval_s,
            max_outage_s=max_outage_s,
        )
        self.model = model
        self.prompt = SimulatorPrompt(prompt_template, words_per_document)
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.attempts = Attempts(max_retries=max_retries, backoff_s=backoff_s)
        self.max_reply_retries = max_reply_retries
        self.attempt_timeout_s = attempt_timeout_s
        self.usd_per_million_tokens = usd_per_million_tokens

    async def search(self, request: SearchRequest) -> SearchResult:
        """Ask for `request.top_k` documents of a quality drawn from `request.seed`.

        `request.timeout_s` counts from the moment a place among `max_concurrency` is free, and
        stands still while all endpoints are down; the latency in the result includes both waits.
        Fewer documents than asked for show in the result, with the problems of all replies.

        Raises:
            SearchError: no document within the attempts and the time allowed.
            ValueError: `top_k` is below 1, or there is no endpoint.
        """
        started = time.perf_counter()
        noisy = draw_noisy(request)
        body = self._body(request, noisy=noisy)
        tally = _Tally()
        async with self.servers.slot():
            reply = await self._best_reply(request, body, tally)
        return SearchResult(
            documents=reply.documents,
            requested=request.top_k,
            noisy=noisy,
            latency_s=time.perf_counter() - started,
            attempts=tally.attempts,
            problems=tuple(tally.problems),
            tokens=tally.tokens,
            cost_usd=tally.tokens * self.usd_per_million_tokens / 1e6,
        )

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """Everything that determines the documents, as JSON values, and nothing else."""
        noisy = draw_noisy(request)
        body = self._body(request, noisy=noisy)
        return {
            "kind": "simulated",
            "model": body["model"],
            "prompt": body["messages"],
            "temperature": body["temperature"],
            "max_tokens": body["max_tokens"],
            "max_reply_retries": self.max_reply_retries,
            "top_k": request.top_k,
            "noisy": noisy,
            "seed": request.seed,
        }

    async def check(self, timeout_s: float = 10.0) -> None:
        """Make sure, before any costly work, that every endpoint is up and serves the model.

        Args:
            timeout_s: bound of the whole check; endpoints are asked at once.

        Raises:
            ValueError: one sentence that says which endpoints fail, why, and what to do.
        """
        await self.servers.connect()
        endpoints = self.servers.endpoints
        asked = await asyncio.gather(*(self._models(url, timeout_s) for url in endpoints))
        replies = dict(zip(endpoints, asked, strict=True))
        failed = [reply for reply in replies.values() if isinstance(reply, ServerFailure)]
        if failed:
            what = ", ".join(f"{failure.endpoint} ({failure.reason})" for failure in failed)
            raise ValueError(
                f"simulator.endpoints: no simulator answers at {what}: start a server with "
                f"`vllm serve {self.model}` and set simulator.endpoints=[http://HOST:8000/v1]"
            )
        lacking = [
            f"{url} (it serves {', '.join(names) or 'no model'})"
            for url, names in replies.items()
            if not isinstance(names, ServerFailure) and self.model not in names
        ]
        if lacking:
            raise ValueError(
                f"simulator.model={self.model!r} is not served at {', '.join(lacking)}: set "
                "simulator.model to a served name, or simulator.endpoints to the servers of "
                f"`vllm serve {self.model}`"
            )

    async def _models(self, endpoint: str, timeout_s: float) -> list[str] | ServerFailure:
        try:
            return await self.servers.model_names(endpoint, timeout_s=timeout_s)
        except ServerFailure as failure:
            return failure

    def _body(self, request: SearchRequest, *, noisy: bool) -> dict[str, Any]:
        """Arguments of the API, but for the seed, which is the attempt's."""
        if request.top_k < 1:
            raise ValueError(f"top_k: {request.top_k} documents were asked for; ask for 1 or more")
        words = request.top_k * self.prompt.words_per_document
        return {
            "model": self.model,
            "messages": self.prompt.messages(request, noisy=noisy),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens or words * TOKENS_PER_WORD,
        }

    async def _best_reply(
        self, request: SearchRequest, body: dict[str, Any], tally: _Tally
    ) -> Reply:
        """The first reply with all documents, or the one with the most.

        Raises:
            SearchError: none has any.
        """
        best, begins = Reply(), ""
        for number in range(self.max_reply_retries + 1):
            # A seed of its own, or the same reply would come again; a retry after a failed call
            # keeps it, so that the documents do not depend on the network's luck. Servers differ
            # in the width they accept, 31 bits pass everywhere.
            seed = derive_seed(request.seed, "simulated", number) >> 32
            try:
                answer = await self._ask({**body, "seed": seed}, request.timeout_s, tally)
            except SearchError:
                if not best.documents:
                    raise
                break
            reply = parse_reply(answer.text, request.top_k, answer.finish_reason)
            tally.tokens += answer.tokens
            tally.problems += reply.problems
            if len(reply.documents) > len(best.documents):
                best = reply
            if not reply.is_short:
                return reply
            begins = self.servers.redact(answer.text)[:100]
        if not best.documents:
            what = ", ".join(dict.fromkeys(tally.problems))
            raise SearchError(
                tally.tried[-1],
                f"no reply holds a line 'Doc 1: ...' ({what}; replies: "
                f"{self.max_reply_retries + 1}), the last begins {begins!r}; give "
                "simulator.prompt_template or simulator.model the means to write documents",
            )
        return best

    async def _ask(self, body: dict[str, Any], timeout_s: float, tally: _Tally) -> ChatReply:
        """One reply, after failed calls and outages if need be.

        Raises:
            SearchError: the attempts, the time or the wait for an endpoint are used up.
        """

        async def attempt(_: int) -> ChatReply:
            async with self.pool.lease(tally.tried) as endpoint:
                tally.attempts += 1
                tally.tried.append(endpoint)
                return await self.servers.complete(
                    endpoint, timeout_s=self.attempt_timeout_s, **body
                )

        for _ in range(self.attempts.max_retries + 1):
            started = time.monotonic()
            with suppress(AllDown):  # waited out below, outside the time of the request
                try:
                    return await self.attempts.run(
                        attempt, endpoint=self.pool.names, timeout_s=timeout_s - tally.spent_s
                    )
                finally:
                    tally.spent_s += time.monotonic() - started
            await self.pool.recovered()
        raise SearchError(
            self.pool.names,
            "every endpoint answers probes but breaks off its calls; read the servers' logs",
        )


def _check_numbers(
    positive: Sequence[tuple[str, float]], bounded: Sequence[tuple[str, float, float]]
) -> None:
    for name, value in positive:
        if not value > 0:
            raise ValueError(f"simulator.{name}={value}: give seconds above 0")
    for name, value, least in bounded:
        if not value >= least:
            raise ValueError(f"simulator.{name}={value}: give {least} or more")
