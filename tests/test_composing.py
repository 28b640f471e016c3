"""What the tests compose in half of the time is what Hydra composes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from omegaconf import OmegaConf

from tests.helpers import composing
from tests.helpers.configs import compose_config


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("train", ["experiment=zerosearch_7b", "algorithm=dapo", "~logger"]),
        ("evaluate", ["engines=[search,geography]"]),
    ],
)
def test_a_composition_is_hydras_own(
    name: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OmegaConf.load is composing.load, "for all tests"
    quick = [compose_config(tmp_path, *overrides, name=name, whole=True) for _ in range(2)]
    monkeypatch.setattr(OmegaConf, "load", composing._load)
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", composing._table)
    own = OmegaConf.to_yaml(compose_config(tmp_path, *overrides, name=name, whole=True))
    assert [OmegaConf.to_yaml(each) for each in quick] == [own, own]


def test_who_changes_what_was_loaded_changes_nothing_else() -> None:
    first, second = (OmegaConf.load(io.StringIO("a: {b: 1}")) for _ in range(2))
    first.a.b = 2
    assert second.a.b == 1 and OmegaConf.load(io.StringIO("a: {b: 1}")).a.b == 1


def test_a_choice_of_a_choice_is_looked_up(tmp_path: Path) -> None:
    for file, text in {
        "all.yaml": "defaults: [one: x, two: '${one}']",
        "one/x.yaml": "a: 1",
        "two/x.yaml": "b: 2",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose("all") == {"one": {"a": 1}, "two": {"b": 2}}
