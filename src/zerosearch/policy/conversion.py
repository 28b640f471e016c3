"""From a checkpoint of a run, sharded or not, to a model folder.

A finished run has exported its policy; this is for any checkpoint. What it writes works as
`model.path=FOLDER`, for servers, and with plain `from_pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig
from torch import nn

from zerosearch.core.errors import InputError
from zerosearch.core.plain import check_plain, from_plain
from zerosearch.core.ranges import Dtype
from zerosearch.core.run_date import read_date
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

_OF_HYDRA = ("_target_", "_convert_", "_recursive_", "_partial_", "_args_")
_LORA: dict[str, Any] = {
    "task_type": str | None,
    "r": int,
    "lora_alpha": int | float,
    "lora_dropout": float,
    "bias": str,
    "target_modules": str | list[str] | None,
    "exclude_modules": str | list[str] | None,
    "modules_to_save": list[str] | None,
    "layers_to_transform": int | list[int] | None,
    "layers_pattern": str | list[str] | None,
    "rank_pattern": dict[str, int],
    "alpha_pattern": dict[str, float],
    "init_lora_weights": bool | str,
    "use_rslora": bool,
    "use_dora": bool,
    "fan_in_fan_out": bool,
}
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
    check_plain(Dtype | None, computed, f"{checkpoint}: dtype")
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
    date = read_date(notes["date"], f"{checkpoint}: date") if "date" in notes else None
    return save_policy(model, source.load_tokenizer(date), folder, extra, dtype=kept)


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
    """The policy that the run of a checkpoint trains.

    The folder may come from anybody: its configuration is read as data. Nothing in it is imported,
    looked up or interpolated.

    Raises:
        InputError: it does not describe a model in plain values.
    """
    config = checkpoint.resolve().parents[1] / ".hydra" / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{checkpoint} does not lie in the checkpoints/ of a run folder: {config}, which says "
            "whose model it is, is missing; copy it there"
        )
    try:
        values = yaml.safe_load(config.read_bytes())["model"]
        values = {name: values[name] for name in values if name not in _OF_HYDRA}
    except (yaml.YAMLError, RecursionError, LookupError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{config} has no model ({said}): copy the run folder again") from error
    for name, value in values.items():
        if "${" in json.dumps(value, default=str):
            raise InputError(
                f"{config}: model.{name} refers to another setting, and in the folder of a policy "
                "nothing is looked up: write the value itself there"
            )
    if values.get("trust_remote_code") not in (None, False):
        raise InputError(
            f"{config}: model.trust_remote_code is set, and the folder of a policy may not ask for "
            "that: let the run end (resume=), and load what it exports with "
            "model.path=<run folder>/policy model.trust_remote_code=true"
        )
    lora = values.pop("lora", None)
    source = from_plain(PolicySource, values, f"{config}: model")
    source.lora = None if lora is None else _adapters(lora, f"{config}: model.lora")
    return source


def _adapters(values: Any, where: str) -> LoraConfig:
    """Their settings; others than these may name modules that the library imports."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is {values!r:.80}: it should hold fields by name")
    values = {name: value for name, value in values.items() if name not in _OF_HYDRA}
    for name, value in values.items():
        if name not in _LORA:
            raise InputError(f"{where}.{name} is not read from the folder of a policy: take it out")
        check_plain(_LORA[name], value, f"{where}.{name}")
    return LoraConfig(**values)
