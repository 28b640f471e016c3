"""What is done to a model once it is made: no dropout, checkpointing, compilation, adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from zerosearch.core.errors import InputError

_LORA_MATRICES = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator inside, and leave the caller's generator untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def switch_off_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Set every dropout to zero: with it, the trained distribution is not the sampled one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that can be recomputed, compiled and gathered one by one."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def check_lora(lora: LoraConfig) -> None:
    """Refuse LoRA settings under which sampling, training and reference differ silently.

    Raises:
        InputError: names the setting and the remedy.
    """
    if lora.lora_dropout:
        raise InputError(
            f"model.lora.lora_dropout={lora.lora_dropout} makes importance ratios noise: set it "
            "to 0"
        )
    if lora.bias != "none":
        raise InputError(
            f"model.lora.bias={lora.bias} changes the reference policy, which is the model with "
            "adapters off: set it to none"
        )
    if lora.init_lora_weights not in (True, "gaussian", "orthogonal"):
        raise InputError(
            f"model.lora.init_lora_weights={lora.init_lora_weights} does not start from the base "
            "model, so that adapters off would not be the initial policy: use true or gaussian"
        )


def add_lora(model: PreTrainedModel, lora: LoraConfig, seed: int) -> PeftModel:
    """Put adapters around the layers that `lora` names; the model's own weights are frozen.

    What is trained is float32 whatever the model is in, also modules that are trained whole
    (`modules_to_save`), which PEFT leaves in the model's dtype.

    Raises:
        InputError: one tied matrix would be adapted in one of its two places.
    """
    with seeded(seed):
        adapted = get_peft_model(model, copy.deepcopy(lora))
    if model.config.get_text_config().tie_word_embeddings and any(
        isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    ):
        raise InputError(
            "model.lora adapts the embeddings or the head, which are one tied matrix in "
            f"{model.config.model_type} and could not be exported: leave them out of "
            "target_modules and modules_to_save"
        )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return cast(PeftModel, adapted)


def start_adapters(model: nn.Module, lora: LoraConfig, seed: int) -> None:
    """Draw the adapters' first values on the CPU, whether or not the base has its weights.

    PEFT draws while it builds, which a base on the meta device turns into nothing; adapters drawn
    here are the same in a whole and in a sharded model, and on every rank.
    """
    if not base_free(model, lora):
        return
    with seeded(seed):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for part in _LORA_MATRICES:
                    getattr(module, part).to_empty(device="cpu")
                for adapter in module.active_adapters:
                    module.reset_lora_parameters(adapter, lora.init_lora_weights)


def base_free(model: nn.Module, lora: LoraConfig) -> bool:
    """Whether the adapters' first values do not depend on the base (as those of DoRA do)."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    return lora.init_lora_weights in (True, "gaussian") and all(
        any(part in name.split(".") for part in _LORA_MATRICES) for name in trained
    )
