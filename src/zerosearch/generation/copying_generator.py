"""Generator on a second copy of the policy: it may sample while the policy is trained.

Weights are copied at each sync, in whatever precision the copy has; a policy that is sharded or has
adapters is copied whole and merged. It costs the memory of one more model, and on one device the
two share its arithmetic: vLLM on other devices is faster, this one runs anywhere.
"""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from zerosearch.generation.transformers_generator import TransformersGenerator
from zerosearch.policy.weight_stream import stream_weights


class CopyingGenerator(TransformersGenerator):
    """Samples with a copy of the policy.

    Args:
        max_batch: this and the next three as of `TransformersGenerator`.
        reuse_kv: see there.
        kv_budget_tokens: see there.
        prefill_tokens: see there.
        dtype: of the copy; None is the policy's own. Under mixed precision "bfloat16" samples as
            the policy computes.
    """

    own_weights = True

    def __init__(
        self,
        *,
        max_batch: int = 256,
        reuse_kv: bool = True,
        kv_budget_tokens: int = 131_072,
        prefill_tokens: int = 4_096,
        dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        if dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"generator.dtype={dtype!r}: give float32, bfloat16 or null")
        super().__init__(
            max_batch=max_batch,
            reuse_kv=reuse_kv,
            kv_budget_tokens=kv_budget_tokens,
            prefill_tokens=prefill_tokens,
        )
        self._dtype = dtype
        self._copied: PreTrainedModel | None = None

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make an empty copy of the model, which the first sync fills."""
        self._copied = _empty_copy(model, self._dtype)
        super().bind(self._copied, tokenizer)

    async def sync_weights(self, policy: nn.Module) -> None:
        """Copy the policy's present weights; where they are sharded, a collective.

        Raises:
            ValueError: `policy` is another model than the bound one.
        """
        if self._copied is None:
            raise ValueError("generator: no model yet; call bind(model, tokenizer) first")
        own = self._copied.state_dict()
        with torch.no_grad():
            for name, tensor in stream_weights(policy):
                if name not in own or own[name].shape != tensor.shape:
                    raise ValueError(
                        f"sync_weights: the policy's weight {name} {tuple(tensor.shape)} has no "
                        "like in the bound model: call bind() with this policy first"
                    )
                own[name].copy_(tensor)
        await super().sync_weights(self._copied)


def _empty_copy(model: nn.Module, dtype: str | None) -> PreTrainedModel:
    """A plain model of the same configuration, device and ends of text, weights not yet set."""
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    weight = next(base.parameters())
    with torch.device(weight.device):
        copied = AutoModelForCausalLM.from_config(
            copy.deepcopy(base.config),
            dtype=getattr(torch, dtype) if dtype else weight.dtype,
            attn_implementation=base.config._attn_implementation,
        )
    copied.generation_config = copy.deepcopy(base.generation_config)
    return copied.requires_grad_(False).eval()
