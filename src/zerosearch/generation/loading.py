"""A model that only samples, in this process."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch.core.devices import numbered_device
from zerosearch.generation.generator import Generator
from zerosearch.policy.source import PolicySource


async def load_to_sample(
    source: PolicySource, generator: Generator, device: str
) -> PreTrainedTokenizerBase:
    """Load a model, let a generator sample from it, and return its tokenizer.

    Args:
        source: the model.
        generator: samples from it from now on.
        device: "auto" takes a GPU where there is one.

    Raises:
        InputError: the model cannot be had; names the field and the remedy.
    """
    tokenizer = source.load_tokenizer()
    model = source.load_model(trained=False).requires_grad_(False).eval()
    generator.bind(nn.Module.to(model, numbered_device(device)), tokenizer)
    await generator.sync_weights(model)
    return tokenizer
