"""A quick answer to whether a model or a data set can be had at all, on this machine or on the hub.

The hub's own libraries try for a minute before they give up, and their errors name none of our
keys. A machine without a network, a typing error in a name or a gated repository should cost
seconds and say what to change. Light on imports: no torch, no transformers.
"""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.file_download import HfFileMetadata

from zerosearch.core.errors import InputError

CONFIG_FILE = "config.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# each group is satisfied by any of its files
NEEDED = {
    "weights": ((CONFIG_FILE,), WEIGHT_FILES),
    "config": ((CONFIG_FILE,),),
    "tokenizer": (TOKENIZER_FILES,),
}
HUB_TIMEOUT_S = 5.0
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class HubRefusal(InputError):
    """Why something cannot be had from the hub; `unreachable`: nobody there could be asked."""

    def __init__(self, reason: str, *, unreachable: bool) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


def show_downloads_alone() -> None:
    """Switch off the bars of transformers, over what takes seconds; those of a download stay.

    Transformers itself switches off both.
    """
    from transformers.utils import logging

    downloads = not huggingface_hub.utils.are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        huggingface_hub.utils.enable_progress_bars()


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
        resolved: a folder, or a name on the hub.
        part: weights (with their config), config alone, or tokenizer.
        gguf_file: the GGUF file that holds all three, or None.
        revision: hub revision; ignored for folders.
        field: config key that the error names.

    Returns:
        True when everything is on this machine, so that loading need not ask the hub.

    Raises:
        InputError: files are missing, or the hub cannot be reached; one sentence with the remedy.
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
                raise InputError(
                    f"{field}={resolved} holds no {part}: no complete {group[0]} there; {remedy}"
                )
        return True
    if field == "model.path" and folder.is_absolute():
        raise InputError(
            f"{field}={resolved}: there is no such folder; if a run exports it at its end, as a "
            f"cold start does (docs/cold_start.md), run that first; else correct {field}"
        )
    if not HUB_NAME.fullmatch(resolved):
        raise InputError(
            f"{field}={resolved} is not a folder on this machine and cannot be a name on the "
            f"Hugging Face hub: set {field} to a folder written by save_pretrained, or to a name "
            "such as owner/model"
        )
    if all(_complete(lambda name: _in_cache(resolved, name, revision), group) for group in groups):
        return True
    try:
        file_metadata(resolved, gguf_file or CONFIG_FILE, revision=revision)
    except HubRefusal as why:
        remedy = (
            f": download it first where there is a network (`hf download {resolved}`), or set "
            f"{field} to a local folder"
        )
        raise InputError(
            f"{field}={resolved} is neither a folder nor in the local hub cache, and {why}"
            f"{remedy if why.unreachable else ''}"
        ) from why
    return False


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
        shards = set(weight_map(file).values())
        if all(find(shard) is not None for shard in shards):
            return True
    return False


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index of shards says.

    Raises:
        InputError: it is none.
    """
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is no index of weights ({error}): copy it again") from error
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise InputError(f"{index}: weight_map is no table of files: copy it again")
    return found


def file_metadata(
    name: str, file: str, *, revision: str | None = None, repo_type: str = "model"
) -> HfFileMetadata:
    """What the hub says of one file (size, etag, commit), asked once and within seconds.

    A thread bounds the whole request: name resolution is not covered by any client's timeout.

    Args:
        name: owner/name of the repository.
        file: path in it.
        revision: branch, tag or commit; None: main.
        repo_type: "model" or "dataset".

    Raises:
        HubRefusal: the file cannot be had; its message is a clause that says why.
    """
    if hub_constants.HF_HUB_OFFLINE:
        raise HubRefusal("HF_HUB_OFFLINE is set", unreachable=True)
    url = huggingface_hub.hf_hub_url(name, file, revision=revision, repo_type=repo_type)
    answers: queue.Queue[HfFileMetadata | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S))
        except Exception as error:  # carried to the caller's thread whatever it is
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=HUB_TIMEOUT_S + 1)
    except queue.Empty:
        answer = TimeoutError(f"no answer in {HUB_TIMEOUT_S:.0f} s")
    if isinstance(answer, Exception):
        raise refusal(answer, file=file, revision=revision, repo_type=repo_type) from answer
    return answer


def reach_dataset(name: str, revision: str | None = None) -> None:
    """Make sure that the hub has a data set, by asking for its card.

    Raises:
        HubRefusal: it cannot be had.
    """
    try:
        file_metadata(name, "README.md", revision=revision, repo_type="dataset")
    except HubRefusal as why:
        if not isinstance(why.__cause__, hub_errors.EntryNotFoundError):  # a card is not needed
            raise


def refusal(
    error: Exception, *, file: str, revision: str | None = None, repo_type: str = "model"
) -> HubRefusal:
    """An error of the hub's library as a clause for the user."""
    kind = {"model": "model", "dataset": "data set"}[repo_type]
    status = getattr(getattr(error, "response", None), "status_code", None)
    unreachable = False
    if isinstance(error, hub_errors.GatedRepoError):
        reason = "it is gated: accept its terms on the hub and set HF_TOKEN"
    elif isinstance(error, hub_errors.RepositoryNotFoundError):
        reason = f"the hub has no such {kind}: check the name (private: set HF_TOKEN)"
    elif isinstance(error, hub_errors.RevisionNotFoundError):
        reason = f"it has no revision {revision} on the hub: choose another"
    elif isinstance(error, hub_errors.EntryNotFoundError):
        reason = f"it has no file {file} on the hub"
    elif status in (401, 403):
        reason = f"the hub refuses it (HTTP {status}): set HF_TOKEN to a token that may read it"
    else:
        said = f"HTTP {status}" if status else type(error).__name__
        reason, unreachable = f"the hub cannot be reached ({said})", True
    return HubRefusal(reason, unreachable=unreachable)


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Within, the hub's libraries look into their caches alone, as under HF_HUB_OFFLINE."""
    before = hub_constants.HF_HUB_OFFLINE
    hub_constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before
