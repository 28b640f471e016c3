"""The published shape of a model, by which its size is known before its files are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from zerosearch.core.errors import InputError

# fields that decide the size of a model, compared when `architecture` and weights are both given
SIZE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def check_architecture(architecture: Mapping[str, Any] | None, config: PretrainedConfig) -> None:
    """Raise where weights are not of the size that `model.architecture` gives.

    Args:
        architecture: published fields; None: none are given.
        config: of the weights.

    Raises:
        InputError: names the field that differs.
    """
    for name in SIZE_FIELDS:
        loaded = getattr(config, name, None)
        if architecture and name in architecture and architecture[name] != loaded:
            raise InputError(
                f"model.architecture.{name}={architecture[name]}, but the weights of "
                f"model.path have {loaded}: correct it, or set model.architecture=null"
            )
