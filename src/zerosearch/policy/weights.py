"""Where the weights of a policy lie; `zerosearch.core.hub` says whether they can be had at all.

Nothing here reads weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from transformers.utils import cached_file

from zerosearch.core.hub import WEIGHT_FILES, weight_map


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
    places = weight_map(index)
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
        shards = set(weight_map(file).values())
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
