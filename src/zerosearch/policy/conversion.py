"""From a checkpoint of a run, sharded or not, to a model folder.

A finished run has exported its policy; this is for any checkpoint. What it writes works as
`model.path=FOLDER`, for servers, and with plain `from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Dtype
from zerosearch.policy.checkpoints import (
    check_same_model,
    is_sharded_checkpoint,
    read_notes,
    read_weights,
    shapes_of,
)
from zerosearch.policy.export import save_policy
from zerosearch.policy.sharding import base_model
from zerosearch.policy.source import PolicySource

_PREFIX = "model."  # of the policy's tensors in the training module


def convert(checkpoint: Path, folder: Path, dtype: Dtype | None = None) -> Path:
    """Write the policy of a checkpoint as `save_policy` does, with its episode settings.

    Of the checkpoint, and into memory, comes the policy alone: no optimizer, critic or reference.

    Args:
        checkpoint: file or folder inside a run folder, whose `.hydra/config.yaml` says which model
            it is.
        folder: target; an earlier export there is replaced.
        dtype: of the weights in it; None: what the run computed in.

    Returns:
        The folder.

    Raises:
        InputError: there is no checkpoint, or it does not belong to the run's model.
    """
    if not checkpoint.is_file() and not is_sharded_checkpoint(checkpoint):
        raise InputError(
            f"{checkpoint} is no checkpoint: give a file or folder of a run's checkpoints/, such "
            "as logs/train/latest/checkpoints/last.ckpt"
        )
    source = _source_of(checkpoint)
    notes = read_notes(checkpoint)
    if "episode" not in notes:
        raise InputError(
            f"{checkpoint} is no policy: its run tuned a simulator; resume= that run, whose end "
            "exports the simulator to simulator/ in its folder"
        )
    computed = notes.get("dtype")  # None: saved by an earlier version
    kept = dtype or computed
    # adapters are merged before anything is rounded
    read_as = None if kept is None or source.lora is not None else getattr(torch, kept)
    weights = read_weights(checkpoint, _PREFIX, read_as)
    model = _empty_model(source)
    check_same_model(shapes_of(weights), shapes_of(model.state_dict()))
    model.load_state_dict(weights, assign=True)
    base_model(model).tie_weights()
    extra = {"episode": notes["episode"], "chat": source.chat}
    if computed is not None:
        extra["dtype"] = computed
    return save_policy(model, source.load_tokenizer(), folder, extra, dtype=kept)


def _empty_model(source: PolicySource) -> nn.Module:
    """The model without memory, as its files describe it."""
    if source.random_init:
        return source.build_on_meta()
    config, generation_config = source.load_file_configs()
    model = source.build_on_meta(config)
    if generation_config is not None:
        base_model(model).generation_config = generation_config
    return model


def _source_of(checkpoint: Path) -> PolicySource:
    """The policy that the run of a checkpoint trains."""
    config = checkpoint.resolve().parents[1] / ".hydra" / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{checkpoint} does not lie in the checkpoints/ of a run folder: {config}, which says "
            "whose model it is, is missing; copy it there"
        )
    return instantiate(OmegaConf.load(config).model)
