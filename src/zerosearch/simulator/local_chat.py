"""A chat model in this process: a simulator small enough to sit beside the policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from zerosearch.clients.chat import Tally
from zerosearch.clients.chat_servers import ChatReply
from zerosearch.clients.http_failures import one_line
from zerosearch.core.errors import InputError
from zerosearch.generation.generator import CompletionRequest, Generator, Sampling
from zerosearch.generation.loading import load_to_sample
from zerosearch.policy.source import PolicySource
from zerosearch.policy.tokenizer import render_prompt, without_own_controls
from zerosearch.types import SearchError


class LocalChat:
    """A `ChatModel` that samples with a generator of this process; loaded when first needed.

    Args:
        source: the model. Its chat template is used where `source.chat` says so.
        generator: samples; chats under way at the same time share its batches.
        device: "auto" takes a GPU where there is one.
        node: of the configuration, for messages.
    """

    usd_per_million_tokens = 0.0

    def __init__(
        self,
        source: PolicySource,
        generator: Generator,
        *,
        device: str = "auto",
        node: str = "simulator",
    ) -> None:
        self.source = source
        self.generator = generator
        self.node = node
        self._device = device
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._loading = asyncio.Lock()
        self._name: str | None = None

    @property
    def model(self) -> str:
        """Path, and a digest of the weights: one tuned anew under the same path is another."""
        if self._name is None:
            self._name = self.source.fingerprint()
        return self._name

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """No bound of its own: the generator queues what does not fit its batch."""
        yield

    async def ask(self, body: dict[str, Any], *, timeout_s: float, tally: Tally) -> ChatReply:
        """One reply; see `ChatModel`.

        Raises:
            SearchError: the prompt is longer than the model's context, or the time is over.
        """
        tokenizer = await self._loaded()
        tally.attempts += 1
        tally.tried.append(self.source.name)
        messages = without_own_controls(tokenizer, body["messages"])
        prompt_ids = render_prompt(tokenizer, messages, chat=self.source.chat)
        request = CompletionRequest(
            max_new_tokens=body["max_tokens"],
            seed=body["seed"],
            sampling=Sampling(temperature=body["temperature"]),
            stop=tuple(body.get("stop", ())),
        )
        try:
            async with asyncio.timeout(timeout_s - tally.spent_s):
                completion = await self.generator.generate(prompt_ids, request)
        except (InputError, TimeoutError) as error:
            reason = str(error) or f"no reply within {timeout_s:.3g} s"
            raise SearchError(self.source.name, reason) from error
        tokens = len(prompt_ids) + len(completion.token_ids)
        tally.tokens += tokens
        return ChatReply(
            text=completion.text,
            finish_reason="length" if completion.stop_reason == "length" else "stop",
            tokens=tokens,
            sampled=len(completion.token_ids),
        )

    async def check(self) -> None:
        """Load the model.

        Raises:
            InputError: it cannot be had; says why and what to do.
        """
        try:
            await self._loaded()
        except InputError as error:
            raise InputError(
                f"{self.node}: no model in {self.source.name} ({error}); tune one first "
                "(docs/simulator.md), or correct the path"
            ) from error

    def redact(self, text: str) -> str:
        """See `ChatModel`."""
        return one_line(text, [])

    async def _loaded(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is not None:
            return self._tokenizer
        async with self._loading:  # the first of many chats loads
            if self._tokenizer is None:
                self._tokenizer = await load_to_sample(self.source, self.generator, self._device)
            return self._tokenizer
