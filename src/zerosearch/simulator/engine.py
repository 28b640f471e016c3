"""The paper's search engine: a language model that writes the documents (arXiv 2505.04588).

It runs behind any OpenAI-compatible server (`vllm serve MODEL`) or in this process. Quality is
drawn once per query and told to the model in its prompt. Departures from the paper: the prompt is
our own and shows all golden answers, and a search without usable documents fails instead of reading
"no information".
"""

from __future__ import annotations

import time
from typing import Any

from zerosearch.clients.chat import ChatModel, Tally
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, NotNegative, check_least
from zerosearch.core.seeding import derive_random, derive_seed
from zerosearch.search.cache import CachedSearch
from zerosearch.search.engine import SearchEngine
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.simulator.replies import Problem, Reply, parse_reply
from zerosearch.types import SearchError, SearchRequest, SearchResult

MAX_MODELS = 100  # whose names are kept
TOKENS_PER_WORD = 4  # the authors' scripts allow 600 tokens for 5 documents of 30 words


def draw_noisy(request: SearchRequest) -> bool:
    """Whether a search is to be noisy: a function of the request's seed and noise probability."""
    return derive_random(request.seed, "simulated", "noisy").random() < request.noise_probability


class SimulatedSearch:
    """A `SearchEngine` that asks a simulation LLM for useful or noisy documents.

    Args:
        client: the simulator, behind servers (`ChatClient`) or in this process (`LocalChat`).
        prompt_template: shipped template, path of the user's own, or folder of a simulator tuned
            here, see `SimulatorPrompt`.
        temperature: of the simulator; the default is the authors' scripts'.
        max_tokens: bound of one reply; the default is the authors' scripts'. None allows as many
            per word of the documents asked for as that.
        words_per_document: length the prompt asks for; the default is the paper's.
        max_reply_retries: further attempts, with another seed, after a reply with fewer documents
            than asked for; the best reply counts.

    Raises:
        InputError: an argument is out of range, or the template is bad.
    """

    def __init__(
        self,
        client: ChatModel,
        *,
        prompt_template: str = "prompted",
        temperature: NotNegative = 0.8,
        max_tokens: Count | None = 600,
        words_per_document: Count = 30,
        max_reply_retries: CountOrZero = 1,
    ) -> None:
        for name, value, least in (
            ("temperature", temperature, 0),
            ("max_tokens", 1 if max_tokens is None else max_tokens, 1),
            ("words_per_document", words_per_document, 1),
            ("max_reply_retries", max_reply_retries, 0),
        ):
            check_least("simulator", name, value, least)
        self.client = client
        self.prompt = SimulatorPrompt(prompt_template, words_per_document)
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_reply_retries = max_reply_retries
        self.answered_by: set[str] = set()  # models, as they name themselves

    async def search(self, request: SearchRequest) -> SearchResult:
        """Ask for `request.top_k` documents of a quality drawn from `request.seed`.

        `request.timeout_s` counts from the moment the chat has a free place, and stands still
        while all its endpoints are down; the latency in the result includes both waits. Fewer
        documents than asked for show in the result, with the problems of all replies.

        Raises:
            SearchError: no document within the attempts and the time allowed.
            InputError: `top_k` is below 1, or there is no endpoint.
        """
        started = time.perf_counter()
        noisy = draw_noisy(request)
        body = self._body(request, noisy=noisy)
        tally, problems = Tally(), list[Problem]()
        try:
            async with self.client.slot():
                reply = await self._best_reply(request, body, tally, problems)
        except SearchError as error:
            error.tokens, error.cost_usd = tally.tokens, self._price(tally)
            raise
        return SearchResult(
            documents=reply.documents,
            requested=request.top_k,
            noisy=noisy,
            latency_s=time.perf_counter() - started,
            attempts=tally.attempts,
            problems=tuple(problems),
            tokens=tally.tokens,
            cost_usd=self._price(tally),
        )

    def _price(self, tally: Tally) -> float:
        return tally.tokens * self.client.usd_per_million_tokens / 1e6

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """Everything that determines the documents, as JSON values, and nothing else."""
        noisy = draw_noisy(request)
        body = self._body(request, noisy=noisy)
        return {
            "kind": "simulated",
            "model": self.client.model,
            "prompt": body["messages"],
            "temperature": body["temperature"],
            "max_tokens": body["max_tokens"],
            "max_reply_retries": self.max_reply_retries,
            "top_k": request.top_k,
            "noisy": noisy,
            "seed": request.seed,
        }

    async def check(self) -> None:
        """Make sure, before any costly work, that the simulator can answer.

        Raises:
            InputError: it cannot; says why and what to do.
        """
        await self.client.check()

    def _body(self, request: SearchRequest, *, noisy: bool) -> dict[str, Any]:
        """Arguments of the API, but for the seed, which is the attempt's."""
        if request.top_k < 1:
            raise InputError(f"top_k: {request.top_k} documents were asked for; ask for 1 or more")
        words = request.top_k * self.prompt.words_per_document
        return {
            "messages": self.prompt.messages(request, noisy=noisy),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens or words * TOKENS_PER_WORD,
        }

    async def _best_reply(
        self,
        request: SearchRequest,
        body: dict[str, Any],
        tally: Tally,
        problems: list[Problem],
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
                answer = await self.client.ask(
                    {**body, "seed": seed}, timeout_s=request.timeout_s, tally=tally
                )
            except SearchError:
                if not best.documents:
                    raise
                break
            if len(self.answered_by) < MAX_MODELS:  # a server may call itself anything
                self.answered_by.add(answer.model or self.client.model)
            reply = parse_reply(answer.text, request.top_k, answer.finish_reason)
            problems += reply.problems
            if len(reply.documents) > len(best.documents):
                best = reply
            if not reply.is_short:
                return reply
            begins = self.client.redact(answer.text)[:100]
        if not best.documents:
            what = ", ".join(dict.fromkeys(problems))
            raise SearchError(
                tally.tried[-1],
                f"no reply holds a line 'Doc 1: ...' ({what}; replies: "
                f"{self.max_reply_retries + 1}), the last begins {begins!r}; "
                "choose another simulator.model, or the simulator.prompt_template it was tuned on",
            )
        return best


def answered_by(engine: SearchEngine) -> list[str]:
    """The models that wrote documents in this process; none where the engine is no simulator."""
    asked = engine.engine if isinstance(engine, CachedSearch) else engine
    return sorted(asked.answered_by) if isinstance(asked, SimulatedSearch) else []
