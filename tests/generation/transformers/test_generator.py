"""What is sampled is what the model says: alone, in a batch, and with KV of earlier turns."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.policies import (
    chain,
    forward_logprobs,
    generate_greedily,
    greedy,
    make_generator,
    random_prompts,
    run,
    spelling_model,
    spy_batches,
    three_turns,
)
from zerosearch.generation.generator import CompletionRequest, Sampling
from zerosearch.generation.transformers.generator import TransformersGenerator

MODELS = {
    "llama": {},
    "qwen2": {"model_type": "qwen2"},
    "sliding": {
        "model_type": "gemma3_text",
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "learned positions": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize("reuse_kv", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_turns_equal_generate_and_a_full_forward(name, reuse_kv):
    model = make_model(0, scale=3.0, **MODELS[name])
    generator = make_generator(model, reuse_kv=reuse_kv)
    prompts = random_prompts(5)
    results = run(*(three_turns(generator, prompt, greedy(10)) for prompt in prompts))
    for prompt, completion in (turn for turns in results for turn in turns):
        assert completion.token_ids == generate_greedily(model, prompt, 10)
        wanted = forward_logprobs(model, prompt, completion.token_ids)
        assert completion.logprobs == pytest.approx(wanted, abs=1e-4)
    lengths = [[len(prompt) for prompt, _ in turns] for turns in results]
    everything = sum(length - 1 for turns in lengths for length in turns)
    # With reuse: the prompt, then per turn the last sampled token and the observation.
    cached = sum(len(completion.token_ids) for turns in results for _, completion in turns[:2])
    new = sum(last - 1 for _, _, last in lengths) - cached
    assert generator.prefilled_tokens == (new if reuse_kv else everything)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
def test_a_request_is_sampled_the_same_alone_and_in_a_batch(fields):
    model = make_model(1, scale=2.0)
    prompts = random_prompts(7)
    sampling = Sampling(**fields)
    requests = [
        CompletionRequest(max_new_tokens=12 + i, seed=i, sampling=sampling) for i in range(7)
    ]

    async def alone(prompt, request):
        return await make_generator(model).generate(prompt, request)

    together = make_generator(model, max_batch=5, prefill_tokens=20)
    batch = run(*map(together.generate, prompts, requests))
    for prompt, request, got in zip(prompts, requests, batch, strict=True):
        (wanted,) = run(alone(prompt, request))
        assert (got.token_ids, got.stop_reason) == (wanted.token_ids, wanted.stop_reason)
        assert got.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
    assert len({tuple(c.token_ids[:5]) for c in batch}) == 7


def test_sampled_tokens_follow_the_models_distribution():
    model = make_model(2, scale=4.0)
    generator = make_generator(model)
    prompt, draws = [1, 2, 3], 2000
    completions = run(
        *(
            generator.generate(prompt, CompletionRequest(max_new_tokens=1, seed=s))
            for s in range(draws)
        )
    )
    model.eval()
    probs = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=259)
    top = probs.topk(8).indices  # the likeliest tokens, and all others as one more class
    wanted = torch.cat([probs[top], 1 - probs[top].sum(0, keepdim=True)]) * draws
    found = torch.cat([counts[top], draws - counts[top].sum(0, keepdim=True)])
    chi_square = ((found - wanted) ** 2 / wanted).sum().item()
    assert chi_square < 26.1  # 0.1% point of chi-square with 8 degrees of freedom
    assert completions[0].logprobs == pytest.approx(
        [probs[completions[0].token_ids[0]].log().item()], abs=1e-5
    )


def test_siblings_share_one_reading_of_their_prompt(monkeypatch):
    model = make_model()
    shapes = spy_batches(model, monkeypatch)
    generator = make_generator(model)
    prompt = list(range(30))
    requests = [CompletionRequest(max_new_tokens=6, seed=seed) for seed in range(4)]
    completions = run(*(generator.generate(prompt, request) for request in requests))
    assert shapes[0] == (1, 29) and generator.prefilled_tokens == 29
    assert all(shape == (4, 1) for shape in shapes[1:])
    for completion in completions:
        wanted = forward_logprobs(model, prompt, completion.token_ids)
        assert completion.logprobs == pytest.approx(wanted, abs=1e-4)


def test_stop_in_the_middle_keeps_every_sampled_token():
    model = spelling_model(*chain("x</search>"), (">", "!"))
    generator = make_generator(model)
    request = CompletionRequest(max_new_tokens=50, seed=0, stop=("</answer>", "</search>"))
    prompt = make_tokenizer().encode("</search>x")  # a stop in the prompt is none
    (completion,) = run(generator.generate(prompt, request))
    assert (completion.text, completion.stop_reason) == ("</search>", "stop")
    assert completion.token_ids == make_tokenizer().encode("</search>")
    assert len(completion.logprobs) == 9


def test_eos_is_kept_in_the_ids_and_left_out_of_the_text():
    model = spelling_model(*chain("abc"), ("c", 256))
    (completion,) = run(make_generator(model).generate(make_tokenizer().encode("a"), greedy(50)))
    assert completion.token_ids == [*make_tokenizer().encode("bc"), 256]
    assert (completion.text, completion.stop_reason) == ("bc", "eos")
    assert len(completion.logprobs) == 3 and completion.logprobs[-1] > -1e-3


def test_every_eos_of_the_generation_config_ends_the_text():
    model = spelling_model(*chain("ab"), ("b", 7))
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [256, 7]
    (completion,) = run(make_generator(model).generate(make_tokenizer().encode("a"), greedy(50)))
    assert (completion.token_ids[1:], completion.stop_reason) == ([7], "eos")


def test_length_limits_by_request_and_by_context():
    model = make_model(max_position_embeddings=40, eos_token_id=None)
    generator = TransformersGenerator()
    generator.bind(model, make_tokenizer(eos=False))
    asked, cut = run(
        generator.generate(list(range(10)), greedy(3)),
        generator.generate(list(range(36)), greedy(30)),
    )
    assert (len(asked.token_ids), asked.stop_reason) == (3, "length")
    assert (len(cut.token_ids), cut.stop_reason) == (4, "length")


def test_positions_of_padding_stay_inside_the_context():
    """A long past beside a long prompt: padding must not run past the learned positions."""
    fields = {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "max_position_embeddings": 64,
    }
    model = make_model(eos_token_id=None, **fields)
    generator = TransformersGenerator()
    generator.bind(model, make_tokenizer(eos=False))

    async def continued():
        first = await generator.generate(list(range(40)), greedy(10))
        prompt = [*range(40), *first.token_ids, 3, 4]
        return prompt, await generator.generate(prompt, greedy(9))

    async def late():
        await generator.generate([1], greedy(10))
        return await generator.generate(list(range(30)), greedy(2))

    (prompt, completion), _ = run(continued(), late())
    assert completion.token_ids == generate_greedily(model, prompt, 9)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt_ids is empty"), (list(range(40)), "40 tokens.*context.*is 40")],
)
def test_impossible_prompts_are_refused(prompt, message):
    generator = make_generator(make_model(max_position_embeddings=40))
    with pytest.raises(ValueError, match=message):
        run(generator.generate(prompt, greedy(4)))
    assert len(run(generator.generate([1, 2], greedy(4)))[0].token_ids) >= 1


def test_unbound_generator_says_what_to_do():
    with pytest.raises(ValueError, match="call bind"):
        run(TransformersGenerator().generate([1], greedy(1)))


@pytest.mark.parametrize("field", ["max_batch", "prefill_tokens", "kv_budget_tokens"])
def test_impossible_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"generator.{field}=-1"):
        TransformersGenerator(**cast(dict[str, Any], {field: -1}))
