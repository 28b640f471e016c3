"""Write a policy as a folder that plain `from_pretrained` loads, or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

SETTINGS_FILE = "zerosearch.json"


def save_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    extra: dict[str, Any],
) -> Path:
    """Export model, tokenizer and settings; `folder` is whole or untouched, never half-written.

    The files are written to a folder beside it, flushed to disk and then renamed; an earlier
    export under the same name is replaced. LoRA adapters are merged into copies of the weights:
    the model in training is not changed. (Replacing takes two renames: a machine that dies just
    between them leaves the earlier export as `.<name>.<pid>.old`.)

    Args:
        model: causal LM or PeftModel around one.
        tokenizer: saved with its chat template.
        folder: target; its parents are made.
        extra: JSON values that inference must share with training (max turns, top-k, formatter,
            prompt template), written to `zerosearch.json`.

    Returns:
        The folder.

    Raises:
        ValueError: `extra` is not JSON.
        OSError: the folder could not be written, for example because the disk is full.
    """
    folder = Path(folder)
    settings = _to_json(extra)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        _plain_model(model).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / SETTINGS_FILE).write_text(settings, encoding="utf-8")
        _flush(temporary)
        _replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the policy could not be exported to {folder} ({error}): free disk space or choose "
            "another folder; an earlier export there is still whole"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def load_settings(folder: str | Path) -> dict[str, Any]:
    """Read the settings that `save_policy` stored beside the weights.

    Raises:
        ValueError: the folder was not written by `save_policy`.
    """
    file = Path(folder) / SETTINGS_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {SETTINGS_FILE}: it is not a policy exported by a training run; "
            "give the settings yourself or choose the export folder of a run"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a causal LM under their Hugging Face names, adapters merged in.

    Returns:
        Name -> tensor; merged ones are new, the others are the model's own (detached).
    """
    if not isinstance(model, PeftModel):
        return {name: tensor.detach() for name, tensor in model.state_dict().items()}
    base = model.get_base_model()
    adapted = {
        f"{prefix}.": module
        for prefix, module in base.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    }
    state = {
        name: tensor.detach()
        for name, tensor in base.state_dict().items()
        if not name.startswith(tuple(adapted))
    }
    for prefix, module in adapted.items():
        for name, tensor in _merged_layer(module).state_dict().items():
            state[prefix + name] = tensor.detach()
    return state


@torch.no_grad()
def _merged_layer(module: BaseTunerLayer | ModulesToSaveWrapper) -> nn.Module:
    """The plain layer with what its adapter has learned; `module` itself is left as it is."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.modules_to_save[module.active_adapters[0]]
    merged = copy.deepcopy(module)
    merged.merge()
    return merged.get_base_layer()


def _plain_model(model: nn.Module) -> PreTrainedModel:
    """A plain causal LM that shares the model's weights, built without memory of its own."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(copy.deepcopy(base.config), dtype=base.dtype)
    plain.load_state_dict(merged_state_dict(model), assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(base.generation_config)
    return plain


def _to_json(extra: dict[str, Any]) -> str:
    try:
        return json.dumps(extra, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"extra={extra!r} cannot be stored in {SETTINGS_FILE} ({error}): use numbers, strings, "
            "lists and dictionaries"
        ) from error


def _flush(folder: Path) -> None:
    """Bring every file of `folder`, and the folder, from the page cache to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(temporary: Path, folder: Path) -> None:
    """Put `temporary` in the place of `folder`; an earlier folder goes only once it has moved."""
    if not folder.exists():
        os.rename(temporary, folder)
        return
    earlier = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    os.rename(folder, earlier)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(earlier, folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
