"""Public data sets on their way into a folder.

A set appears under its name when it is whole and checked, by one rename of its folder; what was
downloaded before an interruption stays beside it and is used again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub.file_download import HfFileMetadata

from zerosearch.core.errors import InputError
from zerosearch.core.files import GIB, flush_tree
from zerosearch.core.hub import HubRefusal, file_metadata, refusal
from zerosearch.core.run_lock import locked

if TYPE_CHECKING:
    from zerosearch.data.public_sets import PublicSet

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"  # in the folder of a set: where it is from; size and rows of each file
SHA256_DIGITS = 64
Heads = Mapping[str, HfFileMetadata]  # by the key of the file
AGAIN = "the same command goes on, and keeps the files that are whole"


def whole(target: Path) -> dict[str, Any] | None:
    """What the manifest of a set says, or None where the set is not there or files have changed."""
    try:
        facts = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        as_made = {name: file["bytes"] for name, file in facts["files"].items()}
        sizes = {name: (target / name).stat().st_size for name in as_made}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return facts if sizes == as_made else None


def make(public: PublicSet, target: Path) -> dict[str, Any]:
    """Download, check, build and put in place; returns the manifest.

    Raises:
        InputError: a file cannot be had, or is damaged, or another process makes this set.
        FileError: the disk.
    """
    stage = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    heads = look_up(public, stage.parent)
    with locked(stage):
        return _make(public, heads, stage, target)


def _make(public: PublicSet, heads: Heads, stage: Path, target: Path) -> dict[str, Any]:
    commit, fetched = download(public, heads, stage)
    built = stage / "built"
    shutil.rmtree(built, ignore_errors=True)  # of a run that was killed
    built.mkdir()
    try:
        rows = public.build(fetched, built)
    except ValueError as error:
        shutil.rmtree(stage)  # whatever is wrong with it, it would be wrong again
        raise InputError(
            f"what {public.repo} holds is damaged or has changed: {error}; run the same command "
            "again, which downloads it anew"
        ) from error
    facts = {
        "repo": public.repo,
        "commit": commit,
        "files": {
            name: {"rows": count, "bytes": (built / name).stat().st_size}
            for name, count in rows.items()
        },
    }
    (built / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    flush_tree(built)
    if target.exists():  # damaged: else it would not be made
        shutil.rmtree(target)
    os.replace(built, target)
    shutil.rmtree(stage)
    return facts


def look_up(public: PublicSet, folder: Path) -> Heads:
    """What the hub says of the files of a set, for which there is room.

    Raises:
        InputError: the hub refuses one, cannot be reached, or the disk of `folder` is too small.
    """
    try:
        heads = {
            key: file_metadata(
                public.repo, file.path, revision=public.revision, repo_type="dataset"
            )
            for key, file in public.files.items()
        }
    except HubRefusal as why:
        raise InputError(_refused(public, why)) from why
    needed = sum(head.size or 0 for head in heads.values()) + public.extra_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{public.repo} needs {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free in "
            f"{folder}: free disk space, or give another place with folder=FOLDER"
        )
    return heads


def download(public: PublicSet, heads: Heads, stage: Path) -> tuple[str, dict[str, Path]]:
    """The files of a set, all of one commit, below `stage`.

    Raises:
        InputError: one cannot be had, or is damaged.
    """
    commit = next(iter(heads.values())).commit_hash or public.revision
    size = sum(head.size or 0 for head in heads.values())
    log.info("fetching %.3f GiB from %s", size / GIB, public.repo)
    fetched = {key: _one(public, file.path, commit, stage) for key, file in public.files.items()}
    for key, head in heads.items():
        if len(head.etag or "") == SHA256_DIGITS and _sha256(fetched[key]) != head.etag:
            fetched[key].unlink()
            raise InputError(
                f"{public.files[key].path} of {public.repo} was damaged on its way (its SHA-256 "
                f"differs from the hub's): {AGAIN}"
            )
    return commit, fetched


def _one(public: PublicSet, source: str, commit: str, stage: Path) -> Path:
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                public.repo, source, repo_type="dataset", revision=commit, local_dir=stage / "hub"
            )
        )
    except PermissionError:
        raise
    except Exception as error:  # of several HTTP libraries, by the version of the hub's
        why = refusal(error, file=source, revision=commit, repo_type="dataset")
        if why.unreachable:
            said = str(error).partition("\n")[0]
            why = HubRefusal(
                f"the download of {source} broke off ({type(error).__name__}: {said})",
                unreachable=True,
            )
        raise InputError(_refused(public, why)) from error


def _refused(public: PublicSet, why: HubRefusal) -> str:
    sentence = f"data set {public.repo} cannot be fetched: {why}"
    if not why.unreachable:
        return sentence
    return (
        f"{sentence}; where there is a network (a mirror: HF_ENDPOINT) {AGAIN}, or copy the folder "
        "from a machine that has it"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(facts: Mapping[str, Any]) -> int:
    """Bytes of all files of a manifest."""
    return sum(file["bytes"] for file in facts["files"].values())
