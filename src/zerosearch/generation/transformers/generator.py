"""Generator on the policy's transformers module or a copy: continuous batching on the event loop.

One task, the pump, runs while anything waits or decodes: it lets coroutines submit, admits what
waits, samples one token for every row, and resolves finished rows at once, so that their searches
run while the others decode. There is no thread: given the same order of arrivals, batches and so
results are the same bit for bit. Nothing here outlives its event loop but the KV of finished turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero
from zerosearch.generation.generator import Completion, CompletionRequest, CompletionStop
from zerosearch.generation.stops import StopMatcher
from zerosearch.generation.transformers.attention import generating, sampling_step
from zerosearch.generation.transformers.bound_policy import BoundPolicy
from zerosearch.generation.transformers.decoder import BatchDecoder, DecodingRow
from zerosearch.generation.transformers.sampling import draw_uniforms

# A coroutine whose search came back passes through a few callbacks before it submits again.
_QUIET_TURNS = 3

# A prefill stops all decoding rows, and a few prompts cost little less than many: wait until this
# share of the decoding rows is replaced, but for so many tokens at most.
_ADMIT_SHARE = 1 / 8
_ADMIT_WITHIN_STEPS = 8


@dataclass(kw_only=True, slots=True, eq=False)
class _PendingRow(DecodingRow):
    """A row and its caller."""

    future: asyncio.Future[Completion]
    limit: int  # sampled tokens at most
    matcher: StopMatcher
    on_text: Callable[[str], None] | None
    weight_version: int


class TransformersGenerator:
    """Samples with a causal LM of transformers, on any device, in the caller's precision.

    Bit-for-bit replay needs deterministic arrivals: engines that do not wait for a clock.

    Args:
        max_batch: rows that decode together at most; further requests wait.
        reuse_kv: keep the KV of finished rows for prompts that continue them.
        kv_budget_tokens: tokens of finished rows to keep KV of; the oldest go first.
        prefill_tokens: tokens that one prefill forward reads at most (at least one prompt).
        copy_weights: sample from a copy, made at each sync, with adapters merged: for the memory of
            one more model, rollouts may go on while the policy is trained. A sharded policy is
            copied in any case.
        copy_dtype: of the copy; None is the dtype that the weights have in the policy's forward
            pass. Under autocast "bfloat16" halves its memory, at the price of small differences.
    """

    def __init__(
        self,
        *,
        max_batch: Count = 256,
        reuse_kv: bool = True,
        kv_budget_tokens: CountOrZero = 131_072,
        prefill_tokens: Count = 4_096,
        copy_weights: bool = False,
        copy_dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise InputError(f"generator.{name}={value}: must be at least 1")
        if kv_budget_tokens < 0:
            raise InputError(f"generator.kv_budget_tokens={kv_budget_tokens}: must be >= 0")
        if copy_dtype not in (None, "float32", "bfloat16"):
            raise InputError(f"generator.copy_dtype={copy_dtype!r}: give float32, bfloat16 or null")
        self.own_weights = copy_weights
        self.weight_version = 0
        self._max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._keep_kv = reuse_kv and kv_budget_tokens > 0
        self._copy_dtype: torch.dtype | None = getattr(torch, copy_dtype) if copy_dtype else None
        self._kv_budget_tokens = kv_budget_tokens if self._keep_kv else 0
        self._policy: BoundPolicy | None = None
        self._decoder: BatchDecoder[_PendingRow] | None = None
        self._waiting: deque[_PendingRow] = deque()
        self._arrivals = 0
        self._held_steps = 0
        self._pump: asyncio.Task[None] | None = None

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Say which policy samples; see `BoundPolicy` for what is refused.

        Args:
            model: causal LM (a PEFT wrapper too) on its final device.
            tokenizer: the one that made the prompts.
        """
        if self._pump is not None:
            raise InputError("generator.bind: requests are running; bind before or after a rollout")
        self._policy = BoundPolicy(
            model, tokenizer, copied=self.own_weights, copy_dtype=self._copy_dtype
        )
        self._decoder = BatchDecoder(
            self._policy.model, self._kv_budget_tokens, self._prefill_tokens
        )

    async def generate(self, prompt_ids: list[int], request: CompletionRequest) -> Completion:
        """Sample one completion together with whatever else is waiting; see `Generator`."""
        row = self._row(prompt_ids, request)
        self._waiting.append(row)
        self._arrivals += 1
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name="generator")
        return await row.future

    async def sync_weights(self, policy: nn.Module) -> None:
        """Count a new version of the policy's weights and drop all KV of the old one.

        Call it after every change of the weights, on every rank where they are sharded. Rows that
        are decoding go on with the new weights: their KV is computed anew.

        Raises:
            InputError: `policy` is not the bound module.
        """
        bound, decoder = self._binding()
        if policy is not bound.policy:
            raise InputError(
                f"sync_weights got a {type(policy).__name__} that is not the bound model: this "
                "generator samples from the module that it was bound to; call bind() with it"
            )
        bound.refresh()
        self.weight_version += 1
        torch.clear_autocast_cache()  # casts of the old weights
        decoder.forget()
        self._waiting.extendleft(reversed(decoder.evict()))

    async def release(self) -> None:
        """Drop the KV of finished rows."""
        self._binding()[1].forget()

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of prompts read by the model so far: the fewer, the more was reused."""
        return self._binding()[1].prefilled_tokens

    def _binding(self) -> tuple[BoundPolicy, BatchDecoder[_PendingRow]]:
        if self._policy is None or self._decoder is None:
            raise InputError("generator: no model yet; call bind(model, tokenizer) first")
        return self._policy, self._decoder

    def _row(self, prompt_ids: list[int], request: CompletionRequest) -> _PendingRow:
        policy, _ = self._binding()
        if not prompt_ids:
            raise InputError("prompt_ids is empty: start the prompt with BOS or a template")
        limit = request.max_new_tokens
        if policy.context is not None:
            limit = min(limit, policy.context - len(prompt_ids))
        if limit < 1:
            raise InputError(
                f"prompt_ids has {len(prompt_ids)} tokens, the model's context "
                f"(max_position_embeddings) is {policy.context}: shorten the prompt or lower the "
                "rollout's context budget"
            )
        return _PendingRow(
            ids=list(prompt_ids),
            prompt_length=len(prompt_ids),
            sampling=request.sampling,
            uniforms=draw_uniforms(request),
            future=asyncio.get_running_loop().create_future(),
            limit=limit,
            matcher=policy.matcher(request.stop),
            on_text=request.on_text,
            weight_version=self.weight_version,
        )

    async def _run(self) -> None:
        """The pump: ends when nothing waits or decodes, and leaves no state of its loop behind."""
        policy, decoder = self._binding()
        try:
            with generating(policy.model):
                while self._waiting or decoder.rows:
                    await self._let_callers_submit()
                    with sampling_step(policy.device):
                        self._step(policy, decoder)
        except Exception as error:
            for row in [*self._waiting, *decoder.rows]:
                if not row.future.done():
                    row.future.set_exception(error)
        finally:
            for row in [*self._waiting, *decoder.evict()]:
                row.future.cancel()
            self._waiting.clear()
            self._held_steps = 0
            self._pump = None

    async def _let_callers_submit(self) -> None:
        quiet, seen = 0, self._arrivals
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._arrivals == seen else 0
            seen = self._arrivals

    def _step(self, policy: BoundPolicy, decoder: BatchDecoder[_PendingRow]) -> None:
        """Cancelled rows out, waiting requests in, one token for every row, finished rows out."""
        gone = [slot for slot, row in enumerate(decoder.rows) if row.future.done()]
        decoder.remove(gone, keep_kv=False)
        admitted = self._next_requests(len(decoder.rows))
        if admitted:
            decoder.admit(admitted)
        if not decoder.rows:
            return
        decoder.step()
        slots: list[int] = []
        completions: list[tuple[_PendingRow, Completion]] = []
        for slot, row in enumerate(decoder.rows):
            reason = _stop_reason(row, policy.tokens.eos_ids)
            if reason is not None:
                slots.append(slot)
                completions.append((row, _completion(row, reason, policy)))
            elif row.on_text is not None:
                _tell(row, row.on_text, policy)
        decoder.remove(slots, keep_kv=self._keep_kv)
        for row, completion in completions:
            row.future.set_result(completion)

    def _next_requests(self, running: int) -> list[_PendingRow]:
        """Waiting requests that join now, in the order of arrival."""
        enough = len(self._waiting) >= running * _ADMIT_SHARE
        if not self._waiting or not (enough or self._held_steps >= _ADMIT_WITHIN_STEPS):
            self._held_steps += bool(self._waiting)
            return []
        self._held_steps = 0
        admitted: list[_PendingRow] = []
        while self._waiting and running + len(admitted) < self._max_batch:
            row = self._waiting.popleft()
            if not row.future.done():
                admitted.append(row)
        return admitted


def _stop_reason(row: _PendingRow, eos_ids: frozenset[int]) -> CompletionStop | None:
    if row.ids[-1] in eos_ids:
        return "eos"
    if row.matcher.completes(row.ids, row.prompt_length):
        return "stop"
    if len(row.logprobs) >= row.limit:
        return "length"
    return None


def _tell(row: _PendingRow, on_text: Callable[[str], None], policy: BoundPolicy) -> None:
    text = policy.tokens.text(row.sampled)
    if not text.endswith("\ufffd"):  # a character of several tokens, half-written
        on_text(text)


def _completion(row: _PendingRow, reason: CompletionStop, policy: BoundPolicy) -> Completion:
    return Completion(
        token_ids=row.sampled,
        logprobs=row.logprobs,
        text=policy.tokens.text(row.sampled),
        stop_reason=reason,
        weight_version=row.weight_version,
    )
