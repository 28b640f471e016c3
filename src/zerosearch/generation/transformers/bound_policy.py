"""What the transformers generator has to know about the model and tokenizer it samples with."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from zerosearch.core.errors import InputError
from zerosearch.generation.policy_tokens import PolicyTokens
from zerosearch.generation.stops import StopMatcher
from zerosearch.policy.attention import plain_attention
from zerosearch.policy.sharding import (
    base_model,
    compute_buffers,
    compute_device,
    compute_dtype,
    is_sharded,
)
from zerosearch.policy.weight_stream import stream_weights

# Layers whose state per token is keys and values; a sliding window is a matter of the mask.
_KV_LAYERS = {"full_attention", "sliding_attention"}


class BoundPolicy:
    """A causal LM with its tokenizer: context, ends of text, stops, decoding.

    A sharded policy is always sampled from a whole copy on every rank: forward passes of sharded
    weights are collectives, and ranks decode for different lengths.

    Args:
        model: causal LM (a PEFT wrapper too) on its final device.
        tokenizer: the one that made the prompts.
        copied: sample from a whole copy with merged adapters, which `refresh` fills.
        copy_dtype: of the copy; None is the dtype that the weights have in the policy's forward
            pass, which autocast then casts in the copy as it does in the policy.

    Raises:
        InputError: the model's layers keep another state than keys and values.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        copied: bool = False,
        copy_dtype: torch.dtype | None = None,
    ) -> None:
        model = cast(PreTrainedModel, model)  # PEFT wrappers forward what they lack to theirs
        config = model.config.get_text_config()
        _check_layers(model, getattr(config, "layer_types", None))
        self.policy: nn.Module = model  # the one that is trained
        self.model = model  # the one that samples
        if copied or is_sharded(model):
            own = compute_dtype(model) if is_sharded(model) else next(model.parameters()).dtype
            self.model = _empty_copy(model, copy_dtype or own)
        self.device: torch.device = next(self.model.parameters()).device
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.tokens = PolicyTokens(model, tokenizer)
        self._matchers: dict[tuple[str, ...], StopMatcher] = {}

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the policy's present weights into the copy; a collective where it is sharded."""
        if self.model is not self.policy:
            own = self.model.state_dict()
            for name, tensor in stream_weights(self.policy, dtype=self.model.dtype):
                own[name].copy_(tensor)

    def matcher(self, stops: tuple[str, ...]) -> StopMatcher:
        """The matcher of these stop strings, made once."""
        if stops not in self._matchers:
            self._matchers[stops] = StopMatcher(self.tokens.tokenizer, stops)
        return self._matchers[stops]


def _check_layers(model: PreTrainedModel, layer_types: list[str] | None) -> None:
    others = sorted(set(layer_types or []) - _KV_LAYERS)
    if others or model.config.is_encoder_decoder:
        what = f"layers of type {', '.join(others)}" if others else "an encoder"
        raise InputError(
            f"generator=transformers: {model.config.model_type} has {what}, whose state is not a "
            "key and a value per token; use a policy whose layers are all of full or sliding "
            "attention"
        )


def _empty_copy(model: nn.Module, dtype: torch.dtype) -> PreTrainedModel:
    """A plain model of the same configuration, on this rank's device; its weights are to come."""
    base = base_model(model)
    config = copy.deepcopy(base.config)
    with torch.device("meta"):  # draws no random numbers
        whole = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=plain_attention(config._attn_implementation)
        )
    whole.to_empty(device=compute_device(model))
    whole.tie_weights()
    compute_buffers(whole)
    whole.generation_config = copy.deepcopy(base.generation_config)
    # autocast keeps its cast of a weight for the next token only where the weight has a gradient
    return whole.eval()
