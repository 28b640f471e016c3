"""vLLM in this process: what goes on beside it, how it fails, and LoRA."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.policies import forward_logprobs, greedy, make_generator, run
from tests.helpers.vllm import CONTEXT, PROMPTS, SHAPE, make_policy
from zerosearch.generation.generator import CompletionRequest
from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.generation.vllm.llm_engine import VLLMEngine

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def model() -> Any:
    return make_policy()


@pytest.fixture(scope="module")
def generator(model: Any) -> Iterator[VLLMGenerator]:
    made = VLLMGenerator(max_model_len=CONTEXT)
    made.bind(model, make_tokenizer())
    run(made.sync_weights(model))
    yield made
    made.close()


def test_building_an_engine_leaves_the_process_alone() -> None:
    """Random numbers and threads are as without it: runs with other generators compare."""
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    threads = torch.set_num_threads
    small = make_model(1, head_dim=32)
    made = VLLMGenerator(max_model_len=64)
    made.bind(small, make_tokenizer())
    with pytest.raises(ValueError, match="no weights yet; call sync_weights"):
        run(made.generate([1], greedy(1)))
    run(made.sync_weights(small))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.set_num_threads is threads
    made.close()


def test_the_event_loop_goes_on_while_tokens_are_sampled(
    generator: VLLMGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that waits for something on the loop gets it, so searches go on meanwhile."""
    step, came_back = VLLMEngine.step, threading.Event()

    def waiting_step(self: VLLMEngine) -> Any:
        assert came_back.wait(60), "the loop stood still"
        return step(self)

    async def search_meanwhile() -> Any:
        sampling = asyncio.create_task(generator.generate(PROMPTS[1], greedy(4)))
        await asyncio.sleep(0.05)
        came_back.set()
        return await sampling

    monkeypatch.setattr(VLLMEngine, "step", waiting_step)
    assert run(search_meanwhile())[0].token_ids


def test_a_sync_while_requests_run(generator: VLLMGenerator, model: Any) -> None:
    """They keep the version of their first token and end with the new weights."""

    async def sync_between() -> list[Any]:
        request = CompletionRequest(max_new_tokens=300, seed=9)
        running = [asyncio.create_task(generator.generate(p, request)) for p in PROMPTS]
        while not generator._running:
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        await generator.sync_weights(model)
        running.append(asyncio.create_task(generator.generate(PROMPTS[1], request)))
        return await asyncio.gather(*running)

    before = generator.weight_version
    *early, late = run(sync_between())[0]
    assert late.weight_version == before + 1
    assert {c.weight_version for c in early} <= {before, before + 1}
    for prompt, completion in zip(PROMPTS, early, strict=True):
        wanted = forward_logprobs(model, prompt, completion.token_ids)
        assert completion.logprobs == pytest.approx(wanted, abs=1e-3)


def test_an_error_of_the_engine_reaches_every_caller(
    model: Any, generator: VLLMGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = VLLMGenerator(max_model_len=CONTEXT)
    broken.bind(model, make_tokenizer())
    broken._engine = copy.copy(generator._engine)  # the failure stays with the copy

    def fail(self: VLLMEngine) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    async def both() -> list[Any]:
        calls = [broken.generate(prompt, greedy(4)) for prompt in PROMPTS]
        return await asyncio.gather(*calls, return_exceptions=True)

    monkeypatch.setattr(VLLMEngine, "step", fail)
    for error in run(both())[0]:
        assert isinstance(error, RuntimeError)
        assert "lower generator.gpu_memory_utilization or generator.max_model_len" in str(error)
    with pytest.raises(RuntimeError, match="the engine failed before"):
        run(broken.generate(PROMPTS[0], greedy(4)))
    monkeypatch.undo()
    assert generator._engine is not None
    engine = generator._engine._engine
    while engine.is_busy:
        engine.step()


# -- LoRA -----------------------------------------------------------------------------------------


def lora_policy(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **settings)
    return get_peft_model(make_model(3, scale=3.0, **SHAPE), config)


def change_adapter(policy: Any, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("lora", ["merged", "adapter"])
def test_lora_is_synced(lora: Any) -> None:
    policy = lora_policy()
    made, reference = VLLMGenerator(max_model_len=CONTEXT, lora_sync=lora), make_generator(policy)
    made.bind(policy, make_tokenizer())
    seen = []
    for seed in range(2):
        change_adapter(policy, seed)
        before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
        run(made.sync_weights(policy))
        assert all(torch.equal(before[name], now) for name, now in policy.state_dict().items())
        run(reference.sync_weights(policy))
        mine, right = (
            run(*(each.generate(prompt, greedy(16)) for prompt in PROMPTS))
            for each in (made, reference)
        )
        assert [c.token_ids for c in mine] == [c.token_ids for c in right]
        for one, other in zip(mine, right, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        seen.append([c.token_ids for c in mine])
    assert seen[0] != seen[1], "the change shows"
    made.close()


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (lambda: make_model(3), "the policy has no LoRA adapter: set model.lora"),
        (lambda: lora_policy(use_dora=True), r"adapters with model.lora.use_dora; set"),
        (lambda: lora_policy(modules_to_save=["lm_head"]), r"model.lora.modules_to_save; set"),
        (lambda: lora_policy(rank_pattern={"q_proj": 600}), "takes ranks up to 512, .* has 600"),
    ],
)
def test_adapters_that_vllm_cannot_read(policy: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        VLLMGenerator(lora_sync="adapter").bind(policy(), make_tokenizer())


# -- bad input ------------------------------------------------------------------------------------


def build(model: Any, **settings: Any) -> None:
    made = VLLMGenerator(**settings)
    made.bind(model, make_tokenizer())
    run(made.sync_weights(model))


def test_a_model_that_vllm_does_not_know() -> None:
    # Transformers' implementation cannot stand in, because its attention is its own.
    unknown = make_model(1, model_type="xglm", d_model=64, attention_heads=2, num_layers=1)
    with pytest.raises(
        ValueError, match=r"vLLM has no model of type xglm .* generator=transformers"
    ):
        build(unknown)


def test_memory_for_no_single_request(model: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"change generator.gpu_memory_utilization=0.4 .*lower generator.max_model_len=512",
    ):
        build(model, max_model_len=512, engine_args={"kv_cache_memory_bytes": 1 << 15})


def test_arguments_that_vllm_does_not_know(model: Any) -> None:
    with pytest.raises(ValueError, match=r"correct generator.engine_args=\{'blocksize': 32\}"):
        build(model, max_model_len=64, engine_args={"blocksize": 32})


def test_more_context_than_the_model_has(model: Any) -> None:
    with pytest.raises(ValueError, match=r"max_model_len=5000 is more than the policy's context"):
        build(model, max_model_len=5000)
