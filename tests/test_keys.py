"""A key of the configuration means one thing, and no path says a word twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from tests.helpers.configs import CONFIGS, compose_config

NAMES = {"callbacks", "files", "test", "train", "validation"}  # below these are names, not keys
OTHERS = {"hydra", "made_for"}  # keys of Hydra; names of groups
OTHERWISE = {
    "model": "a group; beside endpoints the name that OpenAI's requests give",
    "path": "of a corpus it may be a function's, which finds the embedded one",
    "questions": "what is measured in fidelity; their number in simulator_check",
    "strategy": "Lightning's: a word or an object",
    "devices": "Lightning's: a number or auto",
    "test": "of a run whether, of data on what, as Lightning calls the phase",
}


def kind(value: Any) -> str | None:
    """What a value is; None where the YAML alone does not say, or it is a list of such."""
    if value is None or isinstance(value, list) or value == "???":
        return None
    if isinstance(value, str):
        return None if value.startswith("${") else "text"
    return {bool: "flag", int: "number", float: "number"}.get(type(value), "node")


def keys(node: Mapping[str, Any], named: bool = False) -> Iterator[tuple[str, str | None]]:
    """Every key of a node with the kind of its value; of what has names the values alone."""
    for key, value in node.items():
        if not named:
            yield str(key), kind(value)
        if isinstance(value, Mapping) and key not in OTHERS:
            yield from keys(value, key in NAMES)


def found() -> dict[str, dict[str, list[str]]]:
    """Kind of value -> files, of every key."""
    kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(CONFIGS.rglob("*.yaml")):
        place = file.relative_to(CONFIGS)
        content = yaml.safe_load(file.read_text()) or {}
        content.pop("defaults", None)
        for key, each in keys(content, place.parts[0] in NAMES):
            if each is not None:
                kinds[key][each].append(str(place))
    return kinds


def test_a_key_means_one_thing() -> None:
    several = {key: dict(kinds) for key, kinds in found().items() if len(kinds) > 1}
    wrong = {key: kinds for key, kinds in several.items() if key not in OTHERWISE}
    assert not wrong
    assert set(OTHERWISE) == set(several), "an exception that is none"


def repeated(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in node.items():
        if path and path[-1] == key:
            yield ".".join((*path, key))
        if isinstance(value, Mapping):
            yield from repeated(value, (*path, str(key)))


def test_no_path_says_a_word_twice_in_a_row(tmp_path: Path) -> None:
    for program, *words in (["train"], ["evaluate", "engines=geography"], ["collect"]):
        cfg = compose_config(tmp_path, *words, name=program)
        written: Any = OmegaConf.to_container(cfg, resolve=False)
        assert not [*repeated(written)]
