"""What a choice names is what is built, by itself and in the experiments; or it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tests.helpers.configs import CONFIGS, compose_config
from tests.test_configs import CHOICES, NEEDED
from zerosearch.made_for import check_made_for
from zerosearch.simulator.chosen import check_choice, is_asked

OWN = {name for group, name in CHOICES if group == "experiment"}
FAMILIES = ("zerosearch_3b", "smollm2_135m")  # tried by `make test`; the others by `make test-full`
GLOBAL = ("compat", "debug", "experiment", "hparams_search", "paths", "task")  # no single nodes
LACKED = {"model.path": "mine", "simulator.model": "mine", "simulator.folder": "mine"}


def defaults_of(name: str) -> dict[str, Any]:
    """The choices that an experiment makes, those of the experiments it extends included."""
    found: dict[str, Any] = {}
    for item in read(f"experiment/{name}").get("defaults", []):
        if isinstance(item, str):
            found |= defaults_of(item)
        else:
            found |= {key.removeprefix("override /"): value for key, value in item.items()}
    return found


def keys_of(name: str) -> set[str]:
    """The keys that an experiment sets by itself."""
    body = read(f"experiment/{name}")
    parents = [item for item in body.pop("defaults", []) if isinstance(item, str)]
    return {key for key, _ in leaves(body)}.union(*(keys_of(parent) for parent in parents))


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) or {}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all that is no mapping; an empty mapping has none."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def own_leaves(group: str, name: str) -> dict[str, Any]:
    """What the file of a choice says, with the files it extends, at its place in the whole."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            alone = OmegaConf.to_container(compose(f"{group}/{name}"), resolve=False)
        except HydraException:  # it overrides a choice of another group
            alone = {group: read(f"{group}/{name}")}
            del alone[group]["defaults"]
    return dict(leaves(alone))


def refusal(cfg: DictConfig, choices: Any, overrides: list[str]) -> str | None:
    """What a run would say that does not take its choices."""
    try:
        check_made_for(cfg, choices)
        check_choice(cfg, choices, overrides)
    except ValueError as error:
        return str(error)
    return None


def check(group: str, name: str, experiment: str | None, folder: Path) -> None:
    """Compose a choice with an experiment: it is there as its file says, or it is refused."""
    wanted = f"{group}={name}"
    needed = NEEDED.get((group, name), [])
    base = [f"experiment={experiment}"] if experiment else ["made_for=null"]
    try:
        cfg = compose_config(folder, *base, wanted, *needed, whole=True)
    except HydraException as error:
        pytest.fail(f"{base} {wanted}: {error}")
    choices = cfg.hydra.runtime.choices
    assert choices[group] == name
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    for key, value in LACKED.items():
        node = OmegaConf.select(cfg, key.rpartition(".")[0])
        if node is not None and OmegaConf.is_missing(node, key.rpartition(".")[2]):
            OmegaConf.update(cfg, key, value)
    if said := refusal(cfg, choices, [wanted]):
        in_force = [f"{group}={choice}" for group, choice in choices.items()]
        assert any(each in said for each in in_force), said
        return
    found = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    others = keys_of(experiment or "quickstart")
    given = {item.partition("=")[0].lstrip("+") for item in needed}
    for key, value in own_leaves(group, name).items():
        if key in others or key in given or key.startswith("made_for"):
            continue
        assert found.get(key) == value, f"{base} {wanted}: {key}={found.get(key)}, not {value}"
    if group == "simulator":
        assert is_asked(cfg), "a simulator that was chosen plays"


@pytest.mark.parametrize(
    ("group", "name"), [each for each in CHOICES if each[0] not in GLOBAL], ids=lambda part: part
)
def test_a_choice_is_what_the_default_run_is_made_of(group: str, name: str, tmp_path: Path) -> None:
    check(group, name, None, tmp_path)


def in_experiments(experiments: Any) -> list[Any]:
    """Every choice of every group that an experiment chooses from."""
    return [
        pytest.param(group, name, experiment, id=f"{experiment}-{group}-{name}")
        for experiment in sorted(experiments)
        for group, name in CHOICES
        if group in defaults_of(experiment) and group not in GLOBAL
    ]


@pytest.mark.parametrize(("group", "name", "experiment"), in_experiments(FAMILIES))
def test_a_choice_is_what_an_experiment_is_made_of(
    group: str, name: str, experiment: str, tmp_path: Path
) -> None:
    check(group, name, experiment, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name", "experiment"), in_experiments(OWN - {*FAMILIES}))
def test_a_choice_is_what_any_experiment_is_made_of(
    group: str, name: str, experiment: str, tmp_path: Path
) -> None:
    check(group, name, experiment, tmp_path)
