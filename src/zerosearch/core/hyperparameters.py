"""The configuration of a run as loggers of others keep it, such as Weights & Biases."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

HIDDEN = "***"
_SECRET = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)  # a name of one
_FLAG = re.compile(r"--[\w-]*(api-key|token|secret|password)(=|$)", re.IGNORECASE)


def hyperparameters(cfg: DictConfig) -> dict[str, Any]:
    """Plain, resolved values, without what may be a secret.

    That is what the environment of a server that is started holds, words of its command behind a
    flag such as `--api-key`, and values whose names say so. URLs with a key in them are refused by
    the clients, and keys are named by environment variables.

    Args:
        cfg: composed.
    """
    found = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(found, dict)
    return _harmless(found)


def _harmless(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        hidden = name == "environment"
        return {
            str(key): HIDDEN if hidden else _harmless(each, str(key)) for key, each in value.items()
        }
    if isinstance(value, list):
        before = [None, *value]
        return [
            _harmless_word(_harmless(each), word) for word, each in zip(before, value, strict=False)
        ]
    return HIDDEN if isinstance(value, str) and _SECRET.search(name) else value


def _harmless_word(word: Any, before: Any) -> Any:
    """A word of a command line, after another one."""
    if isinstance(word, str) and (flag := _FLAG.match(word)) is not None:
        return word if not flag[2] else f"{flag[0]}{HIDDEN}"
    after_flag = isinstance(before, str) and (found := _FLAG.match(before)) and not found[2]
    return HIDDEN if after_flag else word
