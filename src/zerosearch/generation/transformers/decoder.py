"""The synchronous engine of continuous batching: rows join, get one token per step, and leave.

A row joins with the KV of all its tokens but the last; the last one is the first that the next
step feeds, together with those of all other rows, so tokens are sampled in one place only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from transformers import PreTrainedModel

from zerosearch.core.errors import NonFiniteError
from zerosearch.generation.generator import Sampling
from zerosearch.generation.transformers.kv import PrefixStore, RowCache, RowKV
from zerosearch.generation.transformers.sampling import RowSampling, sample_tokens, stack_sampling


@dataclass(kw_only=True, slots=True, eq=False)
class DecodingRow:
    """One completion in the making."""

    ids: list[int]  # prompt and sampled tokens so far [P + R]
    prompt_length: int
    sampling: Sampling
    uniforms: list[float]  # [max_new_tokens]
    logprobs: list[float] = field(default_factory=list)  # [R]

    @property
    def sampled(self) -> list[int]:
        """The sampled token ids [R]."""
        return self.ids[self.prompt_length :]


AnyRow = TypeVar("AnyRow", bound=DecodingRow)


@dataclass(slots=True)
class _Prefill:
    """Tokens that the model has to read before rows with this prompt can decode."""

    slots: list[int]  # siblings have the same prompt: read once, put in all their slots
    past: RowKV | None
    tokens: list[int]

    @property
    def past_length(self) -> int:
        return self.past[0].shape[2] if self.past else 0


class BatchDecoder(Generic[AnyRow]):
    """Rows that decode together, and the KV of rows that may come back.

    Args:
        model: causal LM, in eval mode while this is used.
        prefix_budget_tokens: tokens of finished rows to keep KV of; 0 keeps none.
        prefill_tokens: tokens, with padding, that one prefill forward reads at most; bounds the
            memory of activations.
    """

    def __init__(
        self, model: PreTrainedModel, prefix_budget_tokens: int, prefill_tokens: int
    ) -> None:
        self.rows: list[AnyRow] = []
        self.prefilled_tokens = 0  # read by the model before decoding, without padding
        self._model = model
        self._device = next(model.parameters()).device
        self._num_layers: int = model.config.get_text_config().num_hidden_layers
        self._prefill_tokens = prefill_tokens
        self._store = PrefixStore(prefix_budget_tokens)
        self._cache = RowCache(self._num_layers)
        self._sampling: RowSampling | None = None

    def admit(self, rows: list[AnyRow]) -> None:
        """Let rows join: read what is not cached of their tokens."""
        first = len(self.rows)
        self.rows += rows
        self._sampling = None
        self._cache.reserve(len(self.rows), max(len(row.ids) - 1 for row in rows))
        prefills: dict[tuple[int, ...], _Prefill] = {}
        for slot, row in enumerate(rows, start=first):
            past = self._store.take(row.ids)
            known = prefills.get(prompt := tuple(row.ids[:-1]))
            if known is not None:
                known.slots.append(slot)
                continue
            cached = past[0].shape[2] if past else 0
            prefills[prompt] = _Prefill([slot], past, row.ids[cached:-1])
        for chunk in self._chunks(list(prefills.values())):
            self._read(chunk)

    def step(self) -> list[tuple[int, float]]:
        """Sample one token for every row and append it.

        Returns:
            (token id, log-prob) of each row, in order.

        Raises:
            NonFiniteError: the model's logits are not finite.
        """
        self._cache.reserve(len(self.rows), 0)
        if self._sampling is None:
            self._sampling = stack_sampling([row.sampling for row in self.rows], self._device)
        fed = torch.tensor(
            [[row.ids[-1] for row in self.rows], [len(row.ids) - 1 for row in self.rows]],
            device=self._device,
        )
        uniforms = torch.tensor(
            [row.uniforms[len(row.logprobs)] for row in self.rows],
            dtype=torch.float64,
            device=self._device,
        )
        logits = self._forward(self._cache, fed[0, :, None], fed[1, :, None], fed[1])
        ids, logprobs = sample_tokens(logits, uniforms, self._sampling)
        # One read-back for both; float64 holds any id exactly.
        values = torch.stack([ids.double(), logprobs.double()]).tolist()
        sampled = [(int(token), logprob) for token, logprob in zip(*values, strict=True)]
        for row, (token, logprob) in zip(self.rows, sampled, strict=True):
            if not logprob > -torch.inf:
                raise NonFiniteError(
                    "the policy's logits are not finite: its weights hold nan or inf, "
                    "look at the last updates (learning rate, gradient clipping)"
                )
            row.ids.append(token)
            row.logprobs.append(logprob)
        return sampled

    def remove(self, slots: list[int], *, keep_kv: bool) -> None:
        """Let rows leave; the last rows take their slots.

        Args:
            slots: indices into `rows`.
            keep_kv: whether to keep the KV for a prompt that continues the row.
        """
        if not slots:
            return
        cache = self._cache
        if keep_kv:
            for slot in slots:
                ids = self.rows[slot].ids
                self._store.put(ids, cache.view(slot, cache.end - len(ids) + 1, cache.end))
        leaving = set(slots)
        remaining = len(self.rows) - len(leaving)
        targets = [slot for slot in sorted(leaving) if slot < remaining]
        sources = [slot for slot in range(remaining, len(self.rows)) if slot not in leaving]
        cache.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[remaining:]
        self._sampling = None
        if self.rows:
            cache.start = cache.end - max(len(row.ids) - 1 for row in self.rows)
        else:
            self._cache = RowCache(self._num_layers)

    def evict(self) -> list[AnyRow]:
        """Let all rows leave as they are; admitted again, they go on where they were."""
        rows, self.rows = self.rows, []
        self._cache = RowCache(self._num_layers)
        self._sampling = None
        return rows

    def forget(self) -> None:
        """Drop the KV of rows that left."""
        self._store.clear()

    def _chunks(self, prefills: list[_Prefill]) -> list[list[_Prefill]]:
        """Group by length, so that little is padded, within the bound on tokens."""
        chunks: list[list[_Prefill]] = []
        for prefill in sorted(prefills, key=lambda p: (len(p.tokens), p.past_length)):
            width = len(prefill.tokens)
            if not chunks or (len(chunks[-1]) + 1) * width > self._prefill_tokens:
                chunks.append([])
            chunks[-1].append(prefill)
        return chunks

    def _read(self, chunk: list[_Prefill]) -> None:
        """Prefill one chunk and put the KV into the slots of the rows.

        Pasts are padded on the left and new tokens on the right, so that rows are contiguous;
        what is computed on the right padding is seen by no real token and copied nowhere.
        """
        past = max(prefill.past_length for prefill in chunk)
        width = max(len(prefill.tokens) for prefill in chunk)
        if past + width == 0:  # prompts of one token: the next step reads it
            return
        scratch = RowCache(self._num_layers, rows=len(chunk), past=past, new=width)
        for index, prefill in enumerate(chunk):
            if prefill.past:
                scratch.put(index, prefill.past)
        if width:
            # Any id pads; its position must still be one that the model has.
            ids = [prefill.tokens + [0] * (width - len(prefill.tokens)) for prefill in chunk]
            lengths = [[p.past_length, p.past_length + len(p.tokens)] for p in chunk]
            tokens = torch.tensor(ids, device=self._device)
            firsts, stops = torch.tensor(lengths, device=self._device).unbind(dim=1)
            positions = firsts[:, None] + torch.arange(width, device=self._device)
            positions = torch.minimum(positions, (stops[:, None] - 1).clamp_(min=0))
            self._forward(scratch, tokens, positions, firsts if past else None)
            self.prefilled_tokens += sum(len(prefill.tokens) for prefill in chunk)
        for index, prefill in enumerate(chunk):
            kv = scratch.view(index, past - prefill.past_length, past + len(prefill.tokens))
            for slot in prefill.slots:
                self._cache.put(slot, kv)

    def _forward(
        self,
        cache: RowCache,
        ids: torch.Tensor,
        positions: torch.Tensor,
        past_lengths: torch.Tensor | None,
    ) -> torch.Tensor:
        """Feed tokens [B, Q] at their positions; returns the last logits [B, V].

        `past_lengths` [B] are the tokens of each row before these; None where no row has any, and
        then no mask is needed: causal attention alone hides padding on the right.
        """
        visible = None
        queries = ids.shape[1]
        if past_lengths is not None:
            columns = torch.arange(cache.window + queries, device=ids.device)
            visible = columns >= (cache.window - past_lengths)[:, None]
        output = self._model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            past_key_values=cache.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.end += queries
        return output.logits[:, -1]
