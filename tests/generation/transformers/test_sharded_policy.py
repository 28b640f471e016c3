"""A sharded policy is sampled from a whole copy, which follows it at every sync."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.helpers.models import make_model
from tests.helpers.policies import greedy, make_generator, random_prompts, run
from zerosearch.policy.loading import load_policy
from zerosearch.policy.sharding import Sharding, is_sharded
from zerosearch.policy.source import PolicySource

PROMPTS = random_prompts(3)


@pytest.fixture(scope="module")
def sharding() -> Iterator[Sharding]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Sharding(
        mesh=init_device_mesh("cpu", (1,)),
        device=torch.device("cpu"),
        param_dtype=torch.float32,
    )
    dist.destroy_process_group()


def move(model: nn.Module) -> None:
    """One large step of every trainable parameter, the same for whole and sharded ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.ones_like(parameter), alpha=0.05)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, target_modules="all-linear")])
@pytest.mark.parametrize("tied", [False, True])
def test_greedy_tokens_and_logprobs_are_those_of_the_whole_policy(
    tmp_path: Path, sharding: Sharding, lora: LoraConfig | None, tied: bool
) -> None:
    make_model(5, scale=3.0, tie_word_embeddings=tied).save_pretrained(tmp_path)
    source = PolicySource(path=str(tmp_path), lora=lora)
    whole, sharded = source.load_model(), load_policy(source, sharding)
    told: list[list[list[int]]] = []
    generators = [make_generator(whole), make_generator(sharded)]
    for _ in range(2):
        completions = []
        for generator, policy in zip(generators, (whole, sharded), strict=True):
            asyncio.run(generator.sync_weights(policy))
            requests = [generator.generate(prompt, greedy(12)) for prompt in PROMPTS]
            completions.append(run(*requests))
            move(policy)
        for one, other in zip(*completions, strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
            assert one.weight_version == other.weight_version
        told.append([completion.token_ids for completion in completions[0]])
    assert told[0] != told[1], "the move changes what is said"
    assert is_sharded(sharded) and sharded.training


def test_another_model_cannot_be_synced(tmp_path: Path, sharding: Sharding) -> None:
    make_model(5).save_pretrained(tmp_path)
    generator = make_generator(load_policy(PolicySource(path=str(tmp_path)), sharding))
    with pytest.raises(ValueError, match="not the bound model"):
        asyncio.run(generator.sync_weights(make_model(5)))
