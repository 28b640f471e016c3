"""Write a policy as a folder that plain `from_pretrained` loads, or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from zerosearch.core.errors import FileError, InputError
from zerosearch.core.runs import SETTINGS_FILE
from zerosearch.policy.sharding import base_model, is_sharded
from zerosearch.policy.weight_stream import stream_weights


def save_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    extra: dict[str, Any],
    *,
    dtype: str | None = None,
    texts: Mapping[str, str] | None = None,
    write: bool = True,
) -> Path:
    """Export model, tokenizer and settings; `folder` is whole or untouched, never half-written.

    A collective where the model is sharded: every rank calls it, one of them writes, and its host
    memory holds the whole model.

    The files are written to a folder beside it, flushed to disk and then renamed; an earlier
    export under the same name is replaced. LoRA adapters are merged into copies of the weights:
    the model in training is not changed. (Replacing takes two renames: a machine that dies just
    between them leaves the earlier export as `.<name>.*.old`.)

    Args:
        model: causal LM or PeftModel around one.
        tokenizer: saved with its chat template.
        folder: target; its parents are made.
        extra: JSON values that inference must share with training (max turns, top-k, formatter,
            prompt template), written to `zerosearch.json`.
        dtype: of the weights in the files, by its name; None: as they are.
        texts: further files by name, byte for byte.
        write: whether this process writes, or only takes part in gathering.

    Returns:
        The folder.

    Raises:
        InputError: `extra` is not JSON.
        FileError: the folder could not be written, for example because the disk is full.
    """
    folder = Path(folder)
    settings = _to_json(extra)
    sharded = is_sharded(model)
    kept = getattr(torch, dtype) if dtype else None
    if not write:
        for _ in stream_weights(model, dtype=kept) if sharded else ():
            continue
        return folder
    weights = {n: t.cpu() if sharded else t for n, t in stream_weights(model, dtype=kept)}
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        _plain_model(base_model(model), weights, kept).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for name, text in {SETTINGS_FILE: settings, **(texts or {})}.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="")
        _flush(temporary)
        _replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"the policy could not be exported to {folder} ({error}): free disk space or choose "
            "another folder; an earlier export there is still whole"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def load_settings(folder: str | Path) -> dict[str, Any]:
    """Read the settings that `save_policy` stored beside the weights.

    Raises:
        InputError: the folder was not written by `save_policy`, or was changed.
    """
    file = Path(folder) / SETTINGS_FILE
    if not file.is_file():
        raise InputError(
            f"{folder} has no {SETTINGS_FILE}: it is not a policy exported by a training run; "
            "give the settings yourself or choose the export folder of a run"
        )
    try:
        settings = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON ({error}): copy the folder again") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file} holds no settings by name: copy the folder again")
    return settings


def _plain_model(
    base: PreTrainedModel, weights: dict[str, Tensor], dtype: torch.dtype | None
) -> PreTrainedModel:
    """A plain causal LM around given weights, built without memory of its own."""
    with torch.device("meta"):
        config = copy.deepcopy(base.config)
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype or base.dtype)
    plain.load_state_dict(weights, strict=False, assign=True)  # a tied head comes once
    plain.tie_weights()
    assert not any(tensor.is_meta for tensor in plain.state_dict().values())
    if base.generation_config is not None:
        plain.generation_config = _writable(base.generation_config)
    return plain


def _writable(own: GenerationConfig) -> GenerationConfig:
    """What transformers writes.

    It reads temperature or top_p beside greedy decoding (vicuna-7b-v1.5), and refuses to write
    them. Of such files the token ids are kept: nothing here draws by the rest.
    """
    try:
        own.validate(strict=True)
    except ValueError:
        ids = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id")}
        pad = own.pad_token_id
        return GenerationConfig(**ids, pad_token_id=pad if pad is None or pad >= 0 else None)
    return copy.deepcopy(own)


def _to_json(extra: dict[str, Any]) -> str:
    try:
        return json.dumps(extra, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
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
    earlier = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
    os.rename(folder, earlier)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(earlier, folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
