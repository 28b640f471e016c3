"""Generators bound to tiny policies, references to compare them with, and a policy that spells."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.helpers.models import make_model, make_tokenizer
from zerosearch.generation.generator import GREEDY, Completion, CompletionRequest
from zerosearch.generation.transformers.generator import TransformersGenerator


def make_generator(model: nn.Module, **fields: Any) -> TransformersGenerator:
    """A generator bound to the model and the byte tokenizer."""
    generator = TransformersGenerator(**fields)
    generator.bind(model, make_tokenizer())
    return generator


def greedy(max_new_tokens: int, **fields: Any) -> CompletionRequest:
    return CompletionRequest(max_new_tokens=max_new_tokens, seed=0, sampling=GREEDY, **fields)


def run(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run them together on an event loop of their own."""

    async def together() -> list[Any]:
        return await asyncio.gather(*coroutines)

    return asyncio.run(together())


def random_prompts(count: int, shortest: int = 1) -> list[list[int]]:
    """Prompts of unequal lengths."""
    source = torch.Generator().manual_seed(count)
    return [
        torch.randint(256, (shortest + 5 * i,), generator=source).tolist() for i in range(count)
    ]


async def three_turns(
    generator: TransformersGenerator, prompt: list[int], request: CompletionRequest
) -> list[tuple[list[int], Completion]]:
    """(prompt, completion) of three turns with an observation after each."""
    ids, turns = list(prompt), []
    for turn in range(3):
        completion = await generator.generate(ids, request)
        turns.append((ids, completion))
        ids = [*ids, *completion.token_ids, *range(7 * turn, 7 * turn + 11 + len(prompt) % 4)]
    return turns


@torch.no_grad()
def forward_logprobs(model: nn.Module, prompt: list[int], token_ids: list[int]) -> list[float]:
    """Log-probs of the tokens by one forward over everything."""
    model.eval()
    logprobs = model(torch.tensor([prompt + token_ids])).logits[0].float().log_softmax(-1)
    model.train()
    return [
        logprobs[len(prompt) + index - 1, token].item() for index, token in enumerate(token_ids)
    ]


def generate_greedily(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    """What transformers' own `generate` gives, EOS included."""
    model.eval()
    sampler: Any = model
    output = sampler.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=258,
    )
    model.train()
    assert isinstance(output, torch.Tensor)
    return output[0, len(prompt) :].tolist()


def spelling_model(*links: tuple[str | int, str | int]) -> PreTrainedModel:
    """A policy whose next token depends on the last one only, almost surely.

    Args:
        links: (from, to), characters or ids; others follow themselves.
    """
    tokenizer, model = make_tokenizer(), make_model(hidden_size=260)

    def token(item: str | int) -> int:
        return item if isinstance(item, int) else tokenizer.encode(item)[0]

    follows = {index: index for index in range(259)}
    follows.update({token(a): token(b) for a, b in links})
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(259, 260))
        model.lm_head.weight.zero_()
        for index, successor in follows.items():
            model.lm_head.weight[successor, index] = 3.0  # times sqrt(260), by the norm
    return model


def chain(text: str) -> Iterable[tuple[str, str]]:
    """Links that spell a text; no character may occur twice."""
    assert len(set(text)) == len(text)
    return pairwise(text)


def spy_batches(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The list that (rows, tokens) of every forward with a cache are appended to."""
    shapes: list[tuple[int, int]] = []
    forward = model.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    return shapes
