"""Where the weights of a policy lie, and a quick answer to whether they can be had at all.

A large model takes minutes to load; a machine without network, a typing error in a name or a gated
model should cost seconds. Nothing here reads weights.
"""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors
from safetensors import safe_open
from transformers.utils import cached_file

CONFIG_FILE = "config.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
# each group is satisfied by any of its files
NEEDED = {
    "weights": ((CONFIG_FILE,), WEIGHT_FILES),
    "config": ((CONFIG_FILE,),),
    "tokenizer": (TOKENIZER_FILES,),
}
HUB_TIMEOUT_S = 5.0
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_files(
    resolved: str,
    part: Literal["weights", "config", "tokenizer"],
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    field: str = "model.path",
) -> bool:
    """Make sure that a part of a model can be loaded from `resolved`.

    Args:
        resolved: what `resolve_path` returned.
        part: weights (with their config), config alone, or tokenizer.
        gguf_file: the GGUF file that holds all three, or None.
        revision: hub revision; ignored for folders.
        field: config key that the error names.

    Returns:
        True when everything is on this machine, so that loading need not ask the hub.

    Raises:
        ValueError: files are missing, or the hub cannot be reached; one sentence with the mend.
    """
    groups = ((gguf_file,),) if gguf_file is not None else NEEDED[part]
    folder = Path(resolved)
    if folder.is_dir():
        for group in groups:
            if not _complete(lambda name: _existing(folder / name), group):
                remedy = (
                    f"point {field} to a folder written by save_pretrained"
                    if gguf_file is None
                    else "set model.gguf_file to one that is, or to null for ordinary weights"
                )
                raise ValueError(
                    f"{field}={resolved} holds no {part}: no complete {group[0]} there; {remedy}"
                )
        return True
    if not _HUB_NAME.fullmatch(resolved):
        raise ValueError(
            f"{field}={resolved} is not a folder on this machine and cannot be a name on the "
            f"Hugging Face hub: set {field} to a folder written by save_pretrained, or to a name "
            "such as owner/model"
        )
    if all(_complete(lambda name: _in_cache(resolved, name, revision), group) for group in groups):
        return True
    _reach_hub(resolved, gguf_file or CONFIG_FILE, revision, field)
    return False


def safetensors_files(
    resolved: str, *, revision: str | None, local_files_only: bool
) -> dict[str, Path] | None:
    """Which file holds which tensor, or None where the weights are of another format.

    Args:
        resolved: what `resolve_path` returned, found complete by `check_files`; files of the hub
            that are not on this machine are downloaded.
        revision: hub revision; ignored for folders.
        local_files_only: whether the hub must not be asked.
    """
    find = _finder(resolved, revision, local_files_only)
    if (single := find(WEIGHT_FILES[0])) is not None:
        with safe_open(single, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    if (index := find(WEIGHT_FILES[1])) is None:
        return None
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = {name: find(name) for name in set(places.values())}
    return {name: file for name, place in places.items() if (file := files[place]) is not None}


def weight_files(
    resolved: str, *, gguf_file: str | None, revision: str | None, local_files_only: bool
) -> list[Path]:
    """All files of the weights, of whatever format; arguments as of `safetensors_files`."""
    find = _finder(resolved, revision, local_files_only)
    for name in WEIGHT_FILES if gguf_file is None else (gguf_file,):
        if (file := find(name)) is None:
            continue
        if not name.endswith(".index.json"):
            return [file]
        shards = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(found for shard in shards if (found := find(shard)) is not None)
    return []


def _finder(
    resolved: str, revision: str | None, local_files_only: bool
) -> Callable[[str], Path | None]:
    def find(name: str) -> Path | None:
        found = cached_file(
            resolved,
            name,
            revision=revision,
            local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False,
        )
        return None if found is None else Path(found)

    return find


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None


def _in_cache(name: str, file: str, revision: str | None) -> Path | None:
    found = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _complete(find: Callable[[str], Path | None], names: tuple[str, ...]) -> bool:
    """Whether one of `names` is there, with every shard where it is an index."""
    for name in names:
        file = find(name)
        if file is None:
            continue
        if not name.endswith(".index.json"):
            return True
        shards = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        if all(find(shard) is not None for shard in shards):
            return True
    return False


def _reach_hub(name: str, file: str, revision: str | None, field: str) -> None:
    """Ask the hub for the head of one file of the model; raise a ValueError that says the mend."""
    mend = (
        f"download it first where there is a network (`hf download {name}`), or set {field} "
        "to a local folder"
    )
    prefix = f"{field}={name} is neither a folder nor in the local hub cache"
    if hub_constants.HF_HUB_OFFLINE:
        raise ValueError(f"{prefix}, and HF_HUB_OFFLINE is set: {mend}")
    error = _head_error(name, file, revision)
    if error is None:
        return
    if isinstance(error, hub_errors.GatedRepoError):
        reason = f"{field}={name} is gated: accept its terms on the hub and set HF_TOKEN"
    elif isinstance(error, hub_errors.RepositoryNotFoundError):
        reason = f"{prefix}, and the hub has no such model: check the name (private: set HF_TOKEN)"
    elif isinstance(error, hub_errors.RevisionNotFoundError):
        reason = f"{field}={name} has no revision model.revision={revision}: choose another"
    elif isinstance(error, hub_errors.EntryNotFoundError):
        reason = f"{field}={name} on the hub has no file {file}: it is not a causal LM folder"
    else:
        reason = f"{prefix}, and the hub cannot be reached ({type(error).__name__}): {mend}"
    raise ValueError(reason) from error


def _head_error(name: str, file: str, revision: str | None) -> Exception | None:
    """The error of a HEAD request to the hub, or None where the file is there.

    A thread bounds the whole request: name resolution is not covered by any client's timeout.
    """
    url = huggingface_hub.hf_hub_url(name, file, revision=revision)
    answers: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        except Exception as error:  # carried to the caller's thread whatever it is
            answers.put(error)
        else:
            answers.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=HUB_TIMEOUT_S + 1)
    except queue.Empty:
        return TimeoutError(f"no answer in {HUB_TIMEOUT_S:.0f} s")
