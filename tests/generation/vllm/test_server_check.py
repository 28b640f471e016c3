"""Servers that were not made for the policy are refused, by name and with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.openai_server import free_port
from tests.helpers.policies import run
from tests.helpers.scripted_vllm import ScriptedVLLM, describe_worker
from tests.helpers.training import GivenPolicy
from zerosearch.clients.endpoints import CallFailure
from zerosearch.generation.generator import PolicyCheckable
from zerosearch.generation.vllm.server_check import Needs, check_workers
from zerosearch.generation.vllm.server_generator import VLLMServerGenerator

A, B = "http://127.0.0.1:1", "http://127.0.0.1:2"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(1)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ([{}, {}], "runs with data parallelism; start one server for each part"),
        ([{"vllm": "0.40.1"}], "it runs vLLM 0.40.1, but .* is needed"),
        ([{"sizes": {"num_hidden_layers": 9}}], "num_hidden_layers=9, the policy has 2"),
        (
            [{"dtype": "bfloat16"}],
            "computes in bfloat16, the policy in float32; start it with server.dtype=float32, "
            "or set generator.dtype=bfloat16",
        ),
    ],
)
def test_workers_that_cannot_take_the_weights(
    facts: list[dict[str, Any]], says: str, model: PreTrainedModel
) -> None:
    needs = Needs(config=model.config, tokenizer=make_tokenizer(), dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"{A}: .*{says}"):
        check_workers(A, [describe_worker(model, **each) for each in facts], needs)


def test_workers_of_a_tensor_parallel_server(model: PreTrainedModel) -> None:
    needs = Needs(config=model.config, tokenizer=make_tokenizer())
    check_workers(A, [describe_worker(model, rank=rank) for rank in (1, 0)], needs)


def check(change: Callable[[ScriptedVLLM], Any], model: PreTrainedModel) -> None:
    """What a run with two servers does before it loads its policy; the second one is changed."""
    generator = VLLMServerGenerator(endpoints=[A, B])
    assert isinstance(generator, PolicyCheckable)
    for url in (A, B):
        generator._servers[url] = ScriptedVLLM(url, model, make_tokenizer())
    changed: Any = generator._servers[B]
    change(changed)
    source = GivenPolicy(model, make_tokenizer())
    run(generator.check_policy(source, context_tokens=64))
    assert not changed.is_paused and changed.version == "default"


def test_servers_that_fit(model: PreTrainedModel) -> None:
    check(lambda server: setattr(server, "context", 65), model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: s.failing.update({"/": CallFailure(B, "no reply", kind="stalled")}),
            "no reply; start it with `zerosearch generate",
        ),
        (lambda s: setattr(s, "context", 63), "63 tokens is less than episode.max_context_tokens"),
        (lambda s: s.facts["sizes"].update(vocab_size=9), "with vocab_size=9, the policy has 259"),
        (lambda s: setattr(s, "tokenizer", WordTokenizer()), "its tokenizer is not the policy's"),
    ],
)
def test_servers_that_do_not_fit(change: Any, says: str, model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=rf"generator=vllm_server: {B}: .*{says}"):
        check(change, model)


class WordTokenizer:
    """Another one."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [len(word) for word in text.split()]


def test_nobody_listens(model: PreTrainedModel) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    generator = VLLMServerGenerator(endpoints=[url])
    with pytest.raises(
        ValueError, match=rf"{url}: connection failed .*; start it with `zerosearch gen"
    ):
        run(generator.check_policy(GivenPolicy(model, make_tokenizer()), context_tokens=8))
