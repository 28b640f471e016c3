"""A generator that answers with given texts, for tests of whatever stands above generation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.generation.generator import Completion, CompletionRequest, CompletionStop


class ScriptedGenerator:
    """Answers each prompt with a given text, token by token, as a sampler would.

    A text ends where it completes a stop string (the rest is not given), at `max_new_tokens`, or
    with an EOS token after its last character.

    Args:
        tokenizer: turns texts into ids; needs an EOS token.
        script: the texts in the order of the calls, or a function of the decoded prompt for
            callers whose calls come in no fixed order.
        logprob: log-prob of every token.
    """

    own_weights = True  # none at all

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        script: Iterable[str] | Callable[[str], str],
        *,
        logprob: float = -1.0,
    ) -> None:
        self.prompts: list[list[int]] = []
        self.requests: list[CompletionRequest] = []
        self.weight_version = 0
        self.released = 0
        self._tokenizer = tokenizer
        self._logprob = logprob
        if callable(script):
            self._answer = script
        else:
            texts = iter(script)
            self._answer = lambda _: next(texts)

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Nothing to say: the script samples."""

    async def generate(self, prompt_ids: list[int], request: CompletionRequest) -> Completion:
        """The next text of the script, ended as `request` says."""
        if not prompt_ids:
            raise ValueError("prompt_ids is empty")
        self.prompts.append(list(prompt_ids))
        self.requests.append(request)
        text = self._answer(self._decode(prompt_ids))
        await asyncio.sleep(0)
        ids, reason = self._end(self._tokenizer.encode(text, add_special_tokens=False), request)
        eos = self._tokenizer.eos_token_id
        return Completion(
            token_ids=ids,
            logprobs=[self._logprob] * len(ids),
            text=self._decode([token for token in ids if token != eos]),
            stop_reason=reason,
            weight_version=self.weight_version,
        )

    async def sync_weights(self, policy: nn.Module) -> None:
        """Count one more version."""
        self.weight_version += 1

    async def release(self) -> None:
        """Count one more release."""
        self.released += 1

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids)
        assert isinstance(text, str)
        return text

    def _end(self, ids: list[int], request: CompletionRequest) -> tuple[list[int], CompletionStop]:
        for length in range(1, min(len(ids), request.max_new_tokens) + 1):
            text = self._decode(ids[:length])
            if any(stop in text for stop in request.stop):
                return ids[:length], "stop"
        if len(ids) >= request.max_new_tokens:
            return ids[: request.max_new_tokens], "length"
        eos = self._tokenizer.eos_token_id
        assert isinstance(eos, int), "the script's tokenizer needs an EOS token"
        return [*ids, eos], "eos"
