"""A tiny policy, and vLLM beside it: in this process and as a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.policies import generate_greedily, random_prompts
from zerosearch.policy.source import PolicySource

CONTEXT = 512
SHAPE: dict[str, Any] = {"head_dim": 32, "tie_word_embeddings": True}  # 32: the CPU's kernels
ASCII = 94  # the byte tokenizer's first ids are the printable characters from "!" to "~"
PROMPTS = [[token % ASCII for token in prompt] for prompt in random_prompts(5, shortest=7)]


def make_policy() -> PreTrainedModel:
    """A policy that writes ASCII, and ends its greedy answer to the first prompt with an EOS."""
    model = make_model(3, scale=3.0, **SHAPE)
    with torch.no_grad():
        model.get_input_embeddings().weight[ASCII:] = 0  # type: ignore[index]
    greedy_ids = generate_greedily(model, PROMPTS[0], 8)
    model.generation_config.eos_token_id = [256, greedy_ids[5]]
    return model


@torch.no_grad()
def change(model: nn.Module, seed: int) -> None:
    """Move every weight, as much as it takes for other greedy answers."""
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=source)
        parameter.mul_(1 + 0.3 * noise)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server for policies of `make_policy`'s shape; yields its endpoint."""
    from zerosearch.serving.generator_server import generator_server
    from zerosearch.serving.launch import running

    make_model(0, **SHAPE).save_pretrained(folder / "policy")
    make_tokenizer().save_pretrained(folder / "policy")
    settings = generator_server(
        PolicySource(path=str(folder / "policy")),
        folder=str(folder / "served"),
        port=None,
        max_model_len=CONTEXT,
        ready_timeout_s=280,
    )
    with running(settings, folder) as servers:
        yield servers[0].command.endpoint
