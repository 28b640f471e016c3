"""Hydra composes in half of its time, to the same: the tests compose a thousand times.

A YAML text is parsed once in a process. The table in which choices of choices are looked up,
`defaults: [simulator: ${engine}]`, is only made where a file has such a choice.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal import defaults_list
from omegaconf import DictConfig, ListConfig, OmegaConf

_load = OmegaConf.load
_table = defaults_list._create_interpolation_map
_parsed: dict[str, DictConfig | ListConfig] = {}


def speed_up() -> None:
    """For this process, from now on."""
    OmegaConf.load = load  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = table  # type: ignore[assignment]


def load(file_: Any) -> DictConfig | ListConfig:
    """`OmegaConf.load`: a copy of what the text was parsed to, as callers change what they get."""
    if not hasattr(file_, "read"):
        return _load(file_)
    start = file_.tell()
    text = file_.read()
    if text not in _parsed:
        file_.seek(start)
        _parsed[text] = _load(file_)
    return copy.deepcopy(_parsed[text])


def table(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
    """Hydra's `_create_interpolation_map`; empty where nothing is looked up in it."""
    if any(each.is_interpolation() for each in defaults):
        return _table(overrides, defaults, self_added)
    return OmegaConf.create()
