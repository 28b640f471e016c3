"""Whether the files and hub data sets that a configuration names can be had, asked before all else.

Light on imports: an experiment whose data is not there ends in a second, before torch is loaded.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants as hub_constants
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zerosearch.core.errors import InputError
from zerosearch.core.hub import HUB_NAME, HubRefusal, check_files, reach_dataset
from zerosearch.data.whole_files import FILE_SUFFIXES

GROUPS = ("data", "benchmark", "questions", "search", "engines", "evaluation")
FILE_KEYS = ("path", "files", "train", "validation", "corpus")  # hold files where they hold text
QUICKSTART_ROWS = "/simulation/geography/"  # in paths.log_dir
PUBLIC = ("nq_hotpotqa", "benchmarks", "wiki18", "hotpotqa_small")  # of `zerosearch data`


def check_data(cfg: DictConfig) -> None:
    """Make sure that the questions, corpora and encoders that `cfg` names can be read.

    Args:
        cfg: a composed configuration of any program.

    Raises:
        InputError: one is not there; a sentence that names the key, the file and how to get it.
    """
    folder = Path(cfg.paths.data_dir)
    seen: set[str] = set()
    unused = "search" if "engines" in cfg else None  # a table asks the engines alone
    for group in GROUPS:
        if group == unused:
            continue
        for key, value in _named(cfg.get(group), group):
            if value is None:
                raise InputError(
                    f"{key} is not set: give a file of your own, {settable(key)}, one of "
                    f"{', '.join(FILE_SUFFIXES)} (docs/data.md)"
                )
            if value not in seen:
                seen.add(value)
                _check(key, value, folder)


def missing_file(key: str, path: str, folder: Path) -> str:
    """The sentence for a file that is not there.

    Args:
        key: that names it.
        path: where it should be.
        folder: of public data, `paths.data_dir`.
    """
    said = f"{key}={path} does not exist"
    inside = os.path.relpath(path, folder)
    name = Path(inside).parts[0]
    if name in PUBLIC:
        return (
            f"{said}: fetch it with `zerosearch data name={name}`, set ZEROSEARCH_DATA (the "
            f"folder of all data, now {folder}) to one that holds {inside}, or give a file of your "
            f"own, {settable(key)}"
        )
    if QUICKSTART_ROWS in Path(path).as_posix():
        return (
            f"{said}: `make simulator-quickstart` makes it in a checkout, or give a file of "
            f"your own, {settable(key)}"
        )
    return f"{said} (looked in {os.getcwd()}): check the path"


def settable(key: str) -> str:
    """The override that gives `key` a file: Hydra's grammar takes no name that starts with a digit.

    Example:
        "benchmark.2wiki.path" becomes "'+benchmark={2wiki: {path: FILE}}'".
    """
    if key.endswith(".files"):
        return f"{key}=[FILE]"
    first, *rest = key.split(".")
    if not any(name[0].isdigit() for name in rest):
        return f"{key}=FILE"
    return f"'+{first}={{{': {'.join(rest)}: FILE{'}' * len(rest)}'"


def _check(key: str, value: str, folder: Path) -> None:
    path = os.path.expanduser(value)
    if os.path.exists(path) or glob.glob(path, recursive=True):
        return
    if key.endswith(".model"):
        check_files(value, "weights", field=key)
    elif value.endswith(FILE_SUFFIXES) or key.endswith(".corpus"):
        raise InputError(missing_file(key, value, folder))
    elif HUB_NAME.fullmatch(value) and not _cached(value):
        try:
            reach_dataset(value)
        except HubRefusal as why:
            raise InputError(
                f"{key}={value} is neither a file nor in the local cache of data sets, and {why}; "
                "without a network fetch it before (`zerosearch data`, docs/data.md), or set "
                f"{key} to a local file"
            ) from why


def _named(node: Any, key: str) -> Iterator[tuple[str, str | None]]:
    """Key and value of what may name a file, an encoder or a hub data set; None: not set."""
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from _value(node, index, f"{key}[{index}]")
    elif isinstance(node, DictConfig):
        replaced = "train" if _get(node, "files") is not None else None
        names = [name for name in map(str, node) if name != replaced]
        dense = str(node.get("_target_", "")).endswith(".DenseSearch")
        for name in names:
            if name in FILE_KEYS or (dense and name == "model"):
                yield from _value(node, name, f"{key}.{name}")
            elif OmegaConf.is_dict(child := _get(node, name)):
                yield from _named(child, _taken_from(node, name) or f"{key}.{name}")


def _value(node: Any, name: Any, key: str) -> Iterator[tuple[str, str | None]]:
    value = _get(node, name)
    if OmegaConf.is_missing(node, name) or (value is None and name == "path"):
        yield _taken_from(node, name) or key, None
    elif isinstance(value, str):
        yield key, value
    else:
        yield from _named(value, key)


def _taken_from(node: Any, name: Any) -> str | None:
    """The key whose value this one takes (`${key}`): the one for the user to set."""
    raw = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index]
    taken = re.fullmatch(r"\$\{([\w.]+)\}", raw) if isinstance(raw, str) else None
    return taken[1] if taken else None


def _get(node: Any, name: Any) -> Any:
    """The value, or None where it needs what only the run knows: not for here."""
    with suppress(OmegaConfBaseException):
        return node[name]
    return None


def _cached(name: str) -> bool:
    """Whether the library `datasets` has read this data set before."""
    home = os.environ.get("HF_DATASETS_CACHE") or Path(hub_constants.HF_HOME, "datasets")
    return Path(home, name.replace("/", "___")).is_dir()
