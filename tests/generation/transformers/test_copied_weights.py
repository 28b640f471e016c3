"""A generator with a copy of the weights samples what the policy was at the last sync."""

from __future__ import annotations

import asyncio

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.models import make_model, make_tokenizer
from zerosearch.generation.generator import Completion, CompletionRequest, Generator
from zerosearch.generation.transformers.generator import TransformersGenerator

PROMPT = list(range(40, 52))


def complete(generator: Generator, policy: nn.Module | None) -> Completion:
    """One completion, after a sync where a policy is given."""

    async def run() -> Completion:
        if policy is not None:
            await generator.sync_weights(policy)
        return await generator.generate(PROMPT, CompletionRequest(max_new_tokens=20, seed=3))

    return asyncio.run(run())


def disturb(model: nn.Module) -> None:
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=noise)


@pytest.mark.parametrize("tied", [False, True])
def test_it_samples_what_the_shared_module_samples(tied: bool) -> None:
    model = make_model(1, scale=3.0, tie_word_embeddings=tied)
    copying, sharing = TransformersGenerator(copy_weights=True), TransformersGenerator()
    copying.bind(model, make_tokenizer())
    sharing.bind(model, make_tokenizer())
    before = complete(copying, model)
    assert before.token_ids == complete(sharing, model).token_ids
    disturb(model)
    assert complete(copying, None).token_ids == before.token_ids, "until it is told"
    after = complete(copying, model)
    assert after.token_ids == complete(sharing, model).token_ids != before.token_ids
    assert after.logprobs == pytest.approx(complete(sharing, model).logprobs, abs=1e-5)
    assert (before.weight_version, after.weight_version) == (1, 2)
    assert copying.own_weights and not sharing.own_weights


def test_adapters_are_merged() -> None:
    model = get_peft_model(
        make_model(1, scale=3.0), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    copying, sharing = TransformersGenerator(copy_weights=True), TransformersGenerator()
    copying.bind(model, make_tokenizer())
    sharing.bind(model, make_tokenizer())
    assert complete(copying, model).token_ids == complete(sharing, model).token_ids


def test_the_policy_stays_as_it_is() -> None:
    model = make_model(1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = TransformersGenerator(copy_weights=True, copy_dtype="bfloat16")
    generator.bind(model, make_tokenizer())
    complete(generator, model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_a_narrower_copy_has_the_weights_it_can_have() -> None:
    model = make_model(1, scale=3.0)
    generator = TransformersGenerator(copy_weights=True, copy_dtype="bfloat16")
    generator.bind(model, make_tokenizer())
    narrow = complete(generator, model)
    for parameter in model.parameters():  # `model.to` would round the frequencies of RoPE as well
        parameter.data = parameter.data.to(torch.bfloat16)
    rounded = TransformersGenerator()
    rounded.bind(model, make_tokenizer())
    assert narrow.token_ids == complete(rounded, model).token_ids


@pytest.mark.parametrize("copied", [False, True])
def test_autocast_casts_a_weight_once_for_all_tokens(copied: bool) -> None:
    class Casts(TorchDispatchMode):
        """Counts the casts of matrices that are as large as a weight."""

        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16:
                self.number += found.shape in shapes
            return found

    model = make_model(1, scale=3.0)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    shapes = {p.shape for p in matrices} | {p.t().shape for p in matrices}
    generator = TransformersGenerator(copy_weights=copied)
    generator.bind(model, make_tokenizer())
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False), Casts() as casts:
        assert len(complete(generator, model).token_ids) > 5
    assert 0 < casts.number <= len(matrices)


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"generator\.copy_dtype='int8'"):
        TransformersGenerator(copy_weights=True, copy_dtype="int8")  # type: ignore[arg-type]
    generator = TransformersGenerator(copy_weights=True)
    with pytest.raises(ValueError, match="no model yet"):
        complete(generator, make_model())
    generator.bind(make_model(), make_tokenizer())
    with pytest.raises(ValueError, match=r"is not the bound model.*bind\(\)"):
        complete(generator, make_model())
