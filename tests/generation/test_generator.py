"""Sampling refuses what no sampler could do, and the scripted fake behaves like a sampler."""

from __future__ import annotations

import pytest

from tests.helpers.generators import ScriptedGenerator
from tests.helpers.models import make_model, make_tokenizer
from zerosearch.generation.generator import CompletionRequest, Generator, Sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
    ],
)
def test_sampling_names_the_field_and_value_it_refuses(field, value):
    with pytest.raises(ValueError, match=f"sampling.{field}=") as error:
        Sampling(**{field: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", ("",)),
        ("stop", "</search>"),
    ],
)
def test_a_request_names_the_field_and_value_it_refuses(field, value):
    with pytest.raises(ValueError, match=f"CompletionRequest.{field}=") as error:
        CompletionRequest(**{"max_new_tokens": 4, "seed": 0, field: value})
    assert repr(value) in str(error.value) or str(value) in str(error.value)


async def test_scripted_generator_ends_texts_as_a_sampler_would():
    tokenizer = make_tokenizer()
    generator: Generator = ScriptedGenerator(
        tokenizer, ["<search>Rome</search> more", "no tag", "abcdefgh"], logprob=-0.5
    )
    prompt = tokenizer.encode("Q")
    wide = CompletionRequest(max_new_tokens=30, seed=0, stop=("</search>",))
    stopped = await generator.generate(prompt, wide)
    assert (stopped.text, stopped.stop_reason) == ("<search>Rome</search>", "stop")
    ended = await generator.generate(prompt, wide)
    assert (ended.text, ended.stop_reason, ended.token_ids[-1]) == ("no tag", "eos", 256)
    await generator.sync_weights(make_model())
    cut = await generator.generate(prompt, CompletionRequest(max_new_tokens=3, seed=0))
    assert (cut.text, cut.stop_reason, cut.weight_version) == ("abc", "length", 1)
    assert cut.logprobs == [-0.5] * 3


async def test_scripted_generator_may_answer_by_prompt():
    tokenizer = make_tokenizer()
    generator = ScriptedGenerator(tokenizer, lambda prompt: prompt.upper())
    completion = await generator.generate(
        tokenizer.encode("abc"), CompletionRequest(max_new_tokens=9, seed=0)
    )
    assert completion.text == "ABC"
    assert generator.prompts == [tokenizer.encode("abc")]
