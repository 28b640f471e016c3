"""What the transformers generator has to know about the model and tokenizer it samples with."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerosearch.generation.stops import StopMatcher, decode

# Layers whose state per token is keys and values; a sliding window is a matter of the mask.
_KV_LAYERS = {"full_attention", "sliding_attention"}


class BoundPolicy:
    """A causal LM with its tokenizer: context, ends of text, stops, decoding.

    Args:
        model: causal LM (a PEFT wrapper too); shared with training, never copied.
        tokenizer: the one that made the prompts.

    Raises:
        ValueError: the model's layers keep another state than keys and values, or its weights are
            sharded over processes.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        model = cast(PreTrainedModel, model)  # PEFT wrappers forward what they lack to theirs
        config = model.config.get_text_config()
        _check_layers(model, getattr(config, "layer_types", None))
        _check_not_sharded(model)
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.eos_ids = _ends_of_text(model, tokenizer)
        self._tokenizer = tokenizer
        self._control_ids = self.eos_ids | {
            token
            for token in (tokenizer.bos_token_id, tokenizer.pad_token_id)
            if isinstance(token, int)
        }
        self._matchers: dict[tuple[str, ...], StopMatcher] = {}

    def matcher(self, stops: tuple[str, ...]) -> StopMatcher:
        """The matcher of these stop strings, made once."""
        if stops not in self._matchers:
            self._matchers[stops] = StopMatcher(self._tokenizer, stops)
        return self._matchers[stops]

    def text(self, token_ids: list[int]) -> str:
        """Text of the ids without EOS, BOS and padding; other special tokens may be tags."""
        return decode(self._tokenizer, [i for i in token_ids if i not in self._control_ids])


def _ends_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Union over the places that may name an EOS: chat models often have several."""
    found: set[int] = set()
    generation = model.generation_config
    named = [tokenizer.eos_token_id, generation.eos_token_id if generation else None]
    for ids in named:
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return frozenset(found)


def _check_layers(model: PreTrainedModel, layer_types: list[str] | None) -> None:
    others = sorted(set(layer_types or []) - _KV_LAYERS)
    if others or model.config.is_encoder_decoder:
        what = f"layers of type {', '.join(others)}" if others else "an encoder"
        raise ValueError(
            f"generator=transformers: {model.config.model_type} has {what}, whose state is not a "
            "key and a value per token; use a policy whose layers are all of full or sliding "
            "attention"
        )


def _check_not_sharded(model: PreTrainedModel) -> None:
    """Every forward of sharded weights is a collective, and ranks decode for different lengths."""
    if any(isinstance(p, DTensor) and p.device_mesh.size() > 1 for p in model.parameters()):
        raise ValueError(
            "generator=transformers: the policy's weights are sharded over processes, which would "
            "wait for each other for ever; give every process a whole copy (trainer=gpu)"
        )
