"""What a choice names is what is built, by itself and in the experiments; or it is refused."""

from __future__ import annotations

import copy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tests.helpers.configs import CONFIGS, compose_config
from tests.test_configs import CHOICES, NEEDED, overrides_of
from zerosearch.algorithms.algorithm import Algorithm
from zerosearch.assembly import assemble
from zerosearch.command_line.arguments import override_key
from zerosearch.command_line.made_for import check_made_for
from zerosearch.core.nodes import leaves
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.simulator.checks import check_choice, is_asked
from zerosearch.training.evaluation import Evaluation

pytestmark = pytest.mark.filterwarnings("ignore:.*missing `_self_`")  # of a choice alone

OWN = {name for group, name in CHOICES if group == "experiment"}
GLOBAL = ("compat", "debug", "experiment", "hparams_search", "paths")  # no single nodes
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
    return copy.deepcopy(_file(name))


@cache
def _file(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) or {}


@cache
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


def composed(
    group: str, name: str, base: str, needed: list[str], folder: Path
) -> tuple[DictConfig, Any]:
    """The configuration with a choice, and the choices of all groups."""
    try:
        cfg = compose_config(folder, base, f"{group}={name}", *needed, whole=True)
    except HydraException as error:
        pytest.fail(f"{base} {group}={name}: {error}")
    choices = cfg.hydra.runtime.choices
    assert choices[group] == name
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg, choices


def assert_as_written(cfg: DictConfig, group: str, name: str, others: set[str]) -> None:
    """All that the file of a choice says is there, but for keys that others set."""
    found = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    for key, value in own_leaves(group, name).items():
        if key not in others and not key.startswith("made_for"):
            assert found.get(key) == value, f"{key}={found.get(key)}, not {value}"
    if group == "simulator":
        assert is_asked(cfg), "a simulator that was chosen plays"


def keys_given(overrides: list[str]) -> set[str]:
    return {override_key(item) for item in overrides}


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda part: part)
def test_a_choice_is_what_the_default_run_is_made_of(group: str, name: str, tmp_path: Path) -> None:
    _, *needed = overrides_of(group, name)
    cfg, _ = composed(group, name, "made_for=null", needed, tmp_path)
    if group not in GLOBAL:
        assert_as_written(cfg, group, name, keys_of("quickstart") | keys_given(needed))
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if group == "generator" and name.startswith("vllm") and not find_spec("vllm"):
        pytest.skip("vLLM is not installed")
    if name == "wandb":
        pytest.importorskip("wandb", reason="pip install 'zerosearch[wandb]'")
    run = assemble(cfg)
    module = run.module
    assert module.policy_steps >= 1 and module.evaluations
    assert isinstance(module.policy_source, PolicySource)
    assert isinstance(module.algorithm, Algorithm)
    assert isinstance(module.episode, EpisodeSettings)
    assert all(isinstance(entry, Evaluation) for entry in module.evaluations.values())
    callbacks = {type(each).__name__ for each in run.trainer.callbacks}  # type: ignore[attr-defined]
    assert len(callbacks & {"NoiseCurriculum", "AdaptiveCurriculum"}) == 1
    assert {
        "HealthMonitor",
        "TranscriptWriter",
        "MetricsCsv",
        "TensorBoardPages",
        "PolicyCheckpoint",
        "PolicyExport",
        "GracefulStop",
    } <= callbacks
    assert run.trainer.limit_train_batches == module.policy_steps


def in_experiments() -> list[Any]:
    """Every choice of every group that an experiment chooses from."""
    chosen = {experiment: defaults_of(experiment) for experiment in sorted(OWN)}
    return [
        pytest.param(group, name, experiment, id=f"{experiment}-{group}-{name}")
        for experiment, groups in chosen.items()
        for group, name in CHOICES
        if group in groups and group not in GLOBAL
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name", "experiment"), in_experiments())
def test_a_choice_is_what_an_experiment_is_made_of(
    group: str, name: str, experiment: str, tmp_path: Path
) -> None:
    needed = NEEDED.get((group, name), [])
    cfg, choices = composed(group, name, f"experiment={experiment}", needed, tmp_path)
    for key, value in LACKED.items():
        node = OmegaConf.select(cfg, key.rpartition(".")[0])
        if node is not None and OmegaConf.is_missing(node, key.rpartition(".")[2]):
            OmegaConf.update(cfg, key, value)
    if said := refusal(cfg, choices, [f"{group}={name}"]):
        in_force = [f"{group}={choice}" for group, choice in choices.items()]
        assert any(each in said for each in in_force), said
        return
    assert_as_written(cfg, group, name, keys_of(experiment) | keys_given(needed))
