"""The paper's search engine: a language model that writes the documents (arXiv 2505.04588).

It runs behind any OpenAI-compatible server (`vllm serve MODEL`). Quality is drawn once per query
and told to the model in its prompt. Departures from the paper: the prompt is our own and shows all
golden answers, and a search without usable documents fails instead of reading "no information".
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from zerosearch.search.chat_servers import ChatServers, ServerFailure
from zerosearch.search.replies import parse_documents
from zerosearch.search.simulator_prompt import SimulatorPrompt
from zerosearch.seeding import derive_random, derive_seed
from zerosearch.types import Document, SearchError, SearchRequest, SearchResult

MAX_BACKOFF_S = 10.0

log = logging.getLogger(__name__)


def draw_noisy(request: SearchRequest) -> bool:
    """Whether a search is to be noisy: a function of the request's seed and noise probability."""
    return derive_random(request.seed, "simulated", "noisy").random() < request.noise_probability


class SimulatedSearch:
    """A `SearchEngine` that asks a simulation LLM for useful or noisy documents.

    Connections live as long as the event loop they were made in, so one engine serves any number
    of successive `asyncio.run` calls.

    Args:
        endpoints: base URLs of servers of the model, taken in turn; a retry goes to the next one.
        model: name under which the servers know the simulator.
        prompt_template: shipped template or path of the user's own, see `SimulatorPrompt`.
        temperature: of the simulator; the default is the authors' scripts'.
        max_tokens: bound of one reply; the default is the authors' scripts'.
        words_per_document: length the prompt asks for; the default is the paper's.
        max_concurrency: most searches in progress at a time, over all endpoints.
        max_retries: further attempts after a failed connection, a timeout, HTTP 429 or 5xx, or a
            reply without documents.
        attempt_timeout_s: bound of one attempt, so that an endpoint that hangs leaves time to ask
            another; `SearchRequest.timeout_s` bounds the whole search.
        backoff_s: wait before the first retry; doubled for each further one, with jitter.
        api_key_env: environment variable that holds the servers' key; vLLM needs none.

    Raises:
        ValueError: an argument is out of range, or the template is bad.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        *,
        prompt_template: str = "simulator",
        temperature: float = 0.8,
        max_tokens: int = 600,
        words_per_document: int = 30,
        max_concurrency: int = 64,
        max_retries: int = 3,
        attempt_timeout_s: float = 30.0,
        backoff_s: float = 0.5,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        if not model:
            raise ValueError("simulator.model is empty: give the name that the server serves")
        for name, value, least in (
            ("temperature", temperature, 0),
            ("max_tokens", max_tokens, 1),
            ("words_per_document", words_per_document, 1),
            ("max_concurrency", max_concurrency, 1),
            ("max_retries", max_retries, 0),
            ("backoff_s", backoff_s, 0),
        ):
            if not value >= least:
                raise ValueError(f"simulator.{name}={value}: give {least} or more")
        if not attempt_timeout_s > 0:
            raise ValueError(
                f"simulator.attempt_timeout_s={attempt_timeout_s}: give seconds above 0"
            )
        self.servers = ChatServers(
            endpoints, max_concurrency=max_concurrency, api_key_env=api_key_env
        )
        self.model = model
        self.prompt = SimulatorPrompt(prompt_template, words_per_document)
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_retries = max_retries
        self.attempt_timeout_s = attempt_timeout_s
        self.backoff_s = backoff_s
        self._searches = itertools.count()  # balances load only: no result depends on it

    async def search(self, request: SearchRequest) -> SearchResult:
        """Ask for `request.top_k` documents of a quality drawn from `request.seed`.

        `request.timeout_s` counts from the moment a place among `max_concurrency` is free; the
        latency in the result includes the wait for it. Fewer documents than asked for are
        accepted and show in the result.

        Raises:
            SearchError: no usable reply within the attempts and the time allowed.
            ValueError: `top_k` is below 1.
        """
        if request.top_k < 1:
            raise ValueError(f"top_k: {request.top_k} documents were asked for; ask for 1 or more")
        started = time.perf_counter()
        noisy = draw_noisy(request)
        prompt = self.prompt.render(request, noisy=noisy)
        async with self.servers.slot():
            documents = await self._ask(request, prompt)
        return SearchResult(
            documents=tuple(documents),
            requested=request.top_k,
            noisy=noisy,
            latency_s=time.perf_counter() - started,
        )

    async def check(self, timeout_s: float = 10.0) -> None:
        """Make sure, before any costly work, that every endpoint is up and serves the model.

        Args:
            timeout_s: bound of the whole check; endpoints are asked at once.

        Raises:
            ValueError: one sentence that says which endpoints fail, why, and what to do.
        """
        endpoints = dict.fromkeys(self.servers.endpoints)
        replies = dict(
            zip(
                endpoints,
                await asyncio.gather(*(self._models(url, timeout_s) for url in endpoints)),
                strict=True,
            )
        )
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

    async def _ask(self, request: SearchRequest, prompt: str) -> list[Document]:
        """Attempts until one is usable, within their number and the request's time."""
        endpoints = self.servers.endpoints
        first = next(self._searches)
        endpoint = ""
        failures: list[ServerFailure] = []

        def note(state: RetryCallState) -> None:
            failure = state.outcome.exception() if state.outcome else None
            assert isinstance(failure, ServerFailure)
            failures.append(failure)
            log.info("simulated search, attempt %d failed: %s", len(failures), failure)

        async def attempt() -> list[Document]:
            nonlocal endpoint
            endpoint = endpoints[(first + len(failures)) % len(endpoints)]
            return await self._attempt(endpoint, request, prompt, len(failures))

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.max_retries + 1),
            wait=wait_exponential(multiplier=self.backoff_s, max=MAX_BACKOFF_S)
            + wait_random(0, self.backoff_s),
            retry=retry_if_exception(lambda e: isinstance(e, ServerFailure) and e.transient),
            before_sleep=note,
            reraise=True,
        )
        try:
            async with asyncio.timeout(request.timeout_s):
                return await retrying(attempt)
        except ServerFailure as failure:
            reason = f"{failure.reason} (attempt {len(failures) + 1} of {self.max_retries + 1})"
        except TimeoutError:
            reason = f"no usable reply within {request.timeout_s:.3g} s"
            if failures:
                reason += f" (failed attempts: {len(failures)}, the last: {failures[-1]})"
        # Raised outside the handlers: the reason says all, without a page of transport traceback.
        raise SearchError(endpoint, reason)

    async def _attempt(
        self, endpoint: str, request: SearchRequest, prompt: str, number: int
    ) -> list[Document]:
        """One call of the simulator.

        Raises:
            ServerFailure: the call failed, or the reply holds no document.
        """
        reply = await self.servers.complete(
            endpoint,
            timeout_s=self.attempt_timeout_s,
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            # A new seed per attempt, or an unusable reply would come again; servers differ in the
            # width they accept, 31 bits pass everywhere.
            seed=derive_seed(request.seed, "simulated", number) >> 32,
        )
        documents = parse_documents(reply, request.top_k)
        if not documents:
            shown = self.servers.redact(reply)[:100]
            reason = f"the reply holds no line 'Doc 1: ...', it begins {shown!r}"
            raise ServerFailure(endpoint, reason, transient=True)
        return documents
