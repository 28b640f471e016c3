"""The pump: no barrier between requests, errors and cancellations reach whom they concern."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.devices import everywhere
from tests.helpers.models import make_model
from tests.helpers.policies import (
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
from zerosearch.generation.generator import CompletionRequest
from zerosearch.generation.transformers.attention import GROUPED_SDPA, generating
from zerosearch.generation.transformers.kv import RowCache


def endless():
    """A policy that repeats its last token for ever."""
    return spelling_model()


def test_requests_join_and_leave_while_others_decode(monkeypatch):
    model = endless()
    shapes = spy_batches(model, monkeypatch)
    generator, order = make_generator(model), []

    async def one(name, tokens, delay):
        for _ in range(delay):
            await asyncio.sleep(0)
        completion = await generator.generate([65, 66], greedy(tokens))
        order.append(name)
        return len(completion.token_ids)

    async def two_turns():
        return [await one("first", 5, 0), await one("second", 5, 30)]

    assert run(one("long", 80, 0), two_turns()) == [80, [5, 5]]
    assert order == ["first", "second", "long"]
    decodes = [rows for rows, tokens in shapes if tokens == 1 and rows]
    assert decodes.count(2) == 10  # five tokens of each short one, beside the long one
    assert 80 <= len(decodes) <= 82  # the short ones cost no step; prompts of two are read alone


def test_finished_rows_resolve_before_the_others_go_on():
    generator, steps = make_generator(endless()), []

    async def short():
        await generator.generate([65], greedy(2))
        steps.append("searching")

    async def long():
        await generator.generate([66], greedy(50))
        steps.append("done")

    run(long(), short())
    assert steps == ["searching", "done"]


@pytest.mark.parametrize("max_batch", [1, 2, 3])
def test_no_more_rows_than_max_batch(max_batch, monkeypatch):
    model = make_model(scale=3.0)
    prompts = random_prompts(6)
    wanted = [generate_greedily(model, prompt, 9) for prompt in prompts]
    shapes = spy_batches(model, monkeypatch)
    generator = make_generator(model, max_batch=max_batch)
    completions = run(*(generator.generate(prompt, greedy(9)) for prompt in prompts))
    assert [c.token_ids for c in completions] == wanted
    assert max(rows for rows, _ in shapes) == max_batch


def test_prefill_is_split_by_its_bound(monkeypatch):
    model = make_model(scale=3.0)
    prompts = random_prompts(5, shortest=4)
    wanted = [generate_greedily(model, prompt, 5) for prompt in prompts]
    shapes = spy_batches(model, monkeypatch)
    generator = make_generator(model, prefill_tokens=30)
    completions = run(*(generator.generate(prompt, greedy(5)) for prompt in prompts))
    assert [c.token_ids for c in completions] == wanted
    # To read: 3, 8, 13, 18 and 23 tokens. Two rows of 8 fit 30, two rows of 18 do not.
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert prefills == [(2, 8), (1, 13), (1, 18), (1, 23)]


@pytest.mark.parametrize("where", ["forward", "reserve"])
def test_an_error_reaches_every_caller_and_leaves_the_generator_usable(where, monkeypatch):
    model = make_model()
    generator = make_generator(model, max_batch=2)
    owner = model if where == "forward" else RowCache

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    async def all_of_them():
        calls = [generator.generate([i + 1, 2], greedy(4)) for i in range(4)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, broken)
        errors = asyncio.run(all_of_them())
    assert [str(error) for error in errors] == ["out of memory"] * 4
    assert model.training
    assert not any(isinstance(result, Exception) for result in asyncio.run(all_of_them()))


def test_weights_that_are_not_finite_are_an_error():
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        run(make_generator(model).generate([1, 2], greedy(4)))


def test_a_cancelled_caller_leaves_the_batch(monkeypatch):
    model = endless()
    shapes = spy_batches(model, monkeypatch)
    generator = make_generator(model, max_batch=2)

    async def scenario():
        running = asyncio.create_task(generator.generate([65, 66], greedy(500)))
        waiting = [asyncio.create_task(generator.generate([67], greedy(4))) for _ in range(3)]
        kept = asyncio.create_task(generator.generate([68], greedy(30)))
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()
        waiting[-1].cancel()
        results = await asyncio.gather(running, *waiting, kept, return_exceptions=True)
        return [r if isinstance(r, BaseException) else len(r.token_ids) for r in results]

    first, *others = asyncio.run(scenario())
    assert isinstance(first, asyncio.CancelledError)
    assert others[:2] == [4, 4] and isinstance(others[2], asyncio.CancelledError)
    assert others[3] == 30
    assert len(shapes) < 60  # nobody decoded the 500 tokens that nobody waits for


def test_a_loop_that_ends_early_leaves_nothing_behind():
    generator = make_generator(endless())

    async def impatient():
        await asyncio.wait_for(generator.generate([65], greedy(900)), timeout=0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())

    async def abandoned():
        task = asyncio.create_task(generator.generate([65], greedy(900)))
        await asyncio.sleep(0)
        return task

    asyncio.run(abandoned())
    assert run(generator.generate([66], greedy(3)))[0].token_ids == [66, 66, 66]


def test_new_weights_are_used_from_the_sync_on():
    model = make_model(3, scale=3.0)
    generator = make_generator(model)
    prompt = list(range(20))
    (first,) = run(generator.generate(prompt, greedy(6)))
    continued = [*prompt, *first.token_ids, 1, 2, 3]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    wanted = generate_greedily(model, continued, 6)
    before = generator.prefilled_tokens
    run(generator.sync_weights(model))
    (second,) = run(generator.generate(continued, greedy(6)))
    assert second.token_ids == wanted
    assert second.logprobs == pytest.approx(forward_logprobs(model, continued, wanted), abs=1e-4)
    assert generator.prefilled_tokens - before == len(continued) - 1
    assert (first.weight_version, second.weight_version) == (0, 1)


def test_new_weights_are_used_in_the_same_autocast_region():
    model, other = make_model(3, scale=3.0), make_model(9, scale=3.0)
    generator, prompt = make_generator(model), list(range(20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.eval()(torch.tensor([prompt]))
        model.load_state_dict(other.state_dict())
        run(generator.sync_weights(model))
        (completion,) = run(generator.generate(prompt, greedy(6)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = forward_logprobs(other, prompt, completion.token_ids)
    assert completion.logprobs == pytest.approx(wanted, abs=0.15)


def test_sync_while_rows_decode_reads_them_again_with_the_new_weights(monkeypatch):
    old, new = make_model(4, scale=3.0), make_model(5, scale=3.0)
    model, prompt = make_model(4, scale=3.0), [1, 2, 3]
    shapes = spy_batches(model, monkeypatch)
    generator = make_generator(model)

    async def scenario():
        task = asyncio.create_task(generator.generate(prompt, greedy(12)))
        while shapes.count((1, 1)) < 5:
            await asyncio.sleep(0)
        model.load_state_dict(new.state_dict())
        await generator.sync_weights(model)
        return shapes.count((1, 1)), await task

    done, completion = asyncio.run(scenario())
    first, rest = completion.token_ids[:done], completion.token_ids[done:]
    assert done == 5 and len(rest) == 7
    assert first == generate_greedily(old, prompt, done)
    assert rest == generate_greedily(new, prompt + first, 7)
    assert rest != generate_greedily(old, prompt + first, 7)
    assert completion.weight_version == 0


def test_sync_refuses_another_module():
    generator = make_generator(make_model())
    with pytest.raises(ValueError, match="not the bound model"):
        run(generator.sync_weights(make_model()))


def test_release_drops_the_kv_of_finished_rows():
    model = make_model(scale=3.0)
    generator = make_generator(model)
    (first,) = run(generator.generate(list(range(20)), greedy(6)))
    run(generator.release())
    before, prompt = generator.prefilled_tokens, [*range(20), *first.token_ids, 1]
    (second,) = run(generator.generate(prompt, greedy(6)))
    assert generator.prefilled_tokens - before == len(prompt) - 1
    assert second.token_ids == generate_greedily(model, prompt, 6)


def test_the_same_arrivals_give_the_same_bits():
    model = make_model(7, scale=2.0)
    prompts = random_prompts(6)

    def rollout():
        generator = make_generator(model, max_batch=4)
        requests = [CompletionRequest(max_new_tokens=5 + i, seed=i) for i in range(6)]
        turns = run(*map(three_turns, [generator] * 6, prompts, requests))
        return [(c.token_ids, c.logprobs) for three in turns for _, c in three]

    assert rollout() == rollout()


@pytest.mark.parametrize("device", everywhere(cpu=()))
def test_turns_match_a_full_forward(device: str):
    model = make_model(8, scale=2.0)
    torch.nn.Module.to(model, torch.device(device))
    generator = make_generator(model)
    results = run(*(three_turns(generator, prompt, greedy(10)) for prompt in random_prompts(5)))
    model.cpu()
    for prompt, completion in (turn for turns in results for turn in turns):
        wanted = forward_logprobs(model, prompt, completion.token_ids)
        assert completion.logprobs == pytest.approx(wanted, abs=1e-3)


def test_bf16_autocast_and_training_after_it():
    model = make_model(scale=2.0)
    generator = make_generator(model)
    prompts = random_prompts(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = run(*(three_turns(generator, prompt, greedy(8)) for prompt in prompts))
        for prompt, completion in (turn for turns in results for turn in turns):
            wanted = forward_logprobs(model, prompt, completion.token_ids)
            assert completion.logprobs == pytest.approx(wanted, abs=0.15)
        model(torch.tensor([prompts[-1]])).logits.float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.training


def test_lora_policy_samples_with_its_adapter():
    model = get_peft_model(
        make_model(6, scale=2.0), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    with generating(model):
        assert cast(Any, model.get_base_model()).config._attn_implementation == GROUPED_SDPA
    (completion,) = run(make_generator(model).generate([1, 2, 3], greedy(10)))
    wanted = forward_logprobs(model, [1, 2, 3], completion.token_ids)
    assert completion.logprobs == pytest.approx(wanted, abs=1e-4)


def test_layers_without_keys_and_values_are_refused():
    model = make_model()
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="has layers of type linear_attention"):
        make_generator(model)
