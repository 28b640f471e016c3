"""What vLLM is told of the policy: a folder without weights, a dtype, the kind of weights sent."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from zerosearch.core.errors import InputError
from zerosearch.generation.policy_tokens import PolicyTokens
from zerosearch.generation.vllm.llm_engine import LORA_RANKS
from zerosearch.policy.sharding import base_model, compute_device, compute_dtype
from zerosearch.policy.weight_stream import adapter_weights, stream_weights

LoraSync = Literal["merged", "adapter"]


class VLLMPolicy:
    """The policy as an engine of vLLM sees it.

    Args:
        model: causal LM (a PEFT wrapper too), plain or sharded.
        tokenizer: the one that made the prompts; the engine gets the same.
        dtype: of the engine's weights; "auto" is the one that the model computes in.
        lora: whether adapters are sent merged into all weights, or by themselves.

    Raises:
        InputError: adapters are to be sent by themselves and vLLM cannot read them, or there are
            none.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str,
        lora: LoraSync,
    ) -> None:
        self.model = model
        self.tokens = PolicyTokens(model, tokenizer)
        self.base = base_model(model)
        # A policy with float32 master weights may compute, and so is to be sampled, in bfloat16.
        self.dtype = compute_dtype(model) if dtype == "auto" else getattr(torch, dtype)
        text_config = self.base.config.get_text_config()
        self.context: int | None = getattr(text_config, "max_position_embeddings", None)
        self.lora_rank = adapter_rank(_lora_config(model)) if lora == "adapter" else None
        self._folder = tempfile.TemporaryDirectory(prefix="zerosearch-vllm-")
        config = copy.deepcopy(self.base.config)
        config.architectures = [_plain_class(self.base).__name__]
        config.save_pretrained(self._folder.name)
        tokenizer.save_pretrained(self._folder.name)

    @property
    def folder(self) -> Path:
        """Config and tokenizer, as `from_pretrained` reads them."""
        return Path(self._folder.name)

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return compute_device(self.model)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The engine's model: with adapters merged in, or without where they are sent alone."""
        return stream_weights(self.model, dtype=self.dtype, merge=self.lora_rank is None)

    def adapter(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and configuration of the adapter."""
        model = cast(PeftModel, self.model)
        config = model.peft_config[model.active_adapters[0]].to_dict()
        return adapter_weights(model), config


def _plain_class(model: nn.Module) -> type:
    """The class of a model, which `fully_shard` has replaced by one of its own making."""
    return next(each for each in type(model).__mro__ if not issubclass(each, FSDPModule))


def _lora_config(model: nn.Module) -> Any:
    return model.peft_config[model.active_adapters[0]] if isinstance(model, PeftModel) else None


def adapter_rank(config: LoraConfig | None) -> int:
    """The least rank that vLLM can be built for and that holds the adapter.

    Raises:
        InputError: vLLM cannot read such adapters, or there are none.
    """
    if not isinstance(config, LoraConfig):
        raise InputError(
            "generator.lora_sync=adapter, but the policy has no LoRA adapter: set model.lora, or "
            "generator.lora_sync=merged"
        )
    if config.use_dora or config.modules_to_save:
        what = "use_dora" if config.use_dora else "modules_to_save"
        raise InputError(
            f"generator.lora_sync=adapter: vLLM cannot read adapters with model.lora.{what}; set "
            "generator.lora_sync=merged"
        )
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    for possible in LORA_RANKS:
        if possible >= rank:
            return possible
    raise InputError(
        f"generator.lora_sync=adapter: vLLM takes ranks up to {LORA_RANKS[-1]}, model.lora has "
        f"{rank}; set generator.lora_sync=merged"
    )
