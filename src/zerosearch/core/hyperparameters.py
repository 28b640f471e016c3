"""The configuration of a run as loggers of others keep it, such as Weights & Biases."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

HIDDEN = "***"
_WORDS = ("command", "extra_args", "environment")  # of a server's start: each may hold a key
_SECRET = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)  # a name of one


def hyperparameters(cfg: DictConfig) -> dict[str, Any]:
    """Plain, resolved values, without what may be a secret.

    That is the words and the environment that a server is started with, whatever they are, and
    values whose names say so. URLs with a key in them are refused by the clients, and keys are
    named by environment variables.

    Args:
        cfg: composed.
    """
    found = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(found, dict)
    return _harmless(found)


def _harmless(value: Any, name: str = "") -> Any:
    if value and name in _WORDS and not isinstance(value, str):  # a string is a command's name
        return HIDDEN
    if isinstance(value, dict):
        return {str(key): _harmless(each, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_harmless(each) for each in value]
    return HIDDEN if value is not None and _SECRET.search(name) else value
