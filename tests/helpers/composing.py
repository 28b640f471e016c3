"""YAML that was parsed once in a process is not parsed again.

Parsing takes more than half of the time of a composition, and the tests compose the same few files
thousands of times.
"""

from __future__ import annotations

import copy
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

_load = OmegaConf.load
_parsed: dict[str, DictConfig | ListConfig] = {}


def parse_once() -> None:
    """From now on `OmegaConf.load`, which reads Hydra's files too, knows the texts it has seen."""
    OmegaConf.load = load  # type: ignore[method-assign]


def load(file_: Any) -> DictConfig | ListConfig:
    """A copy of what the text was parsed to: who loads a file may change what it gets."""
    if not hasattr(file_, "read"):
        return _load(file_)
    start = file_.tell()
    text = file_.read()
    if text not in _parsed:
        file_.seek(start)
        _parsed[text] = _load(file_)
    return copy.deepcopy(_parsed[text])
