"""Every value of the configuration can be set by its name, and is held against its constructor."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from tests.helpers.configs import CONFIGS, ROOT, compose_config, hydra_run
from zerosearch.answering import load
from zerosearch.assembly import COMPONENTS
from zerosearch.command_line.made_for import command_of
from zerosearch.commands import collect, evaluate, fidelity, judge, plan
from zerosearch.commands import retrieve as retriever
from zerosearch.core.errors import InputError
from zerosearch.core.nodes import arguments_of, check_nodes

pytestmark = pytest.mark.filterwarnings("ignore:.*missing `_self_`")  # of a choice alone

# Arguments that no configuration gives: code fills them in.
BY_CODE = {
    "zerosearch.evaluation.baselines.OneReply": {"client"},  # the model of `prompted=`
    "zerosearch.evaluation.baselines.SearchO1": {"client"},
    "zerosearch.evaluation.baselines.ToolAgent": {"client"},
    "zerosearch.evaluation.table_run.TableEngine": {"settings"},
    "zerosearch.rollout.settings.EpisodeSettings": {"prompt_text"},  # of a saved episode
    "zerosearch.tuning.collection.Collector": {"outcome"},
    "zerosearch.data.public_sets.QuestionFiles": {"extra_bytes"},
    "zerosearch.data.hotpotqa.HotpotQASmall": {"extra_bytes"},
}
# advantage and loss, and files, come with the choices that extend these
PARTS = {"algorithm/base", "data/base"}
# Defaults in code that are right for others than the configuration's programs.
OTHERWISE = {
    ("zerosearch.callbacks.health_rules.HealthRule", "advice"),  # every rule of ours has one
    ("zerosearch.data.datamodule.QADataModule", "validation_limit"),  # all; ours bound the time
    ("zerosearch.tuning.datamodule.TuningData", "validation_limit"),
    ("zerosearch.generation.vllm.generator.VLLMGenerator", "engine_args"),  # None is {}
    ("zerosearch.training.schedule.warmup_schedule", "warmup_fraction"),  # none; ours warm up
}


def choices() -> list[str]:
    """All configuration files, as Hydra names them."""
    names = [
        path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")
    ]
    return sorted(name for name in names if name.split("/")[0] not in ("hydra", "local"))


@cache
def composed(choice: str) -> DictConfig:
    """A choice with all that it extends; one that changes a whole configuration, in that."""
    os.environ.setdefault("PROJECT_ROOT", str(ROOT))
    group, _, name = choice.rpartition("/")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        text = (CONFIGS / f"{choice}.yaml").read_text()
        if "@package _global_" not in text and "override /" not in text:
            return compose(choice)
        programs = {"engines": "evaluate", "table": "evaluate", "planned": "plan", "tuned": "tune"}
        tunes = choice == "data/episodes" or (group == "experiment" and command_of(name) == "tune")
        program = "tune" if tunes else programs.get(group, "train")
        value = f"[{name}]" if group == "engines" else name
        return compose(program, overrides=[f"{group}={value}"])


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Nodes of a container, and the nodes in them."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield dict(value)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from nodes(each)


def own_nodes(choice: str) -> Iterator[tuple[dict[str, Any], list[inspect.Parameter]]]:
    """Nodes of a choice that make something of this project, with the arguments they may give."""
    for node in nodes(OmegaConf.to_container(composed(choice))):
        if node["_target_"].startswith("zerosearch."):
            parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
            yield node, [each for each in parameters if each.kind is not each.VAR_KEYWORD]


def filled_by_code(node: dict[str, Any], parameter: inspect.Parameter) -> bool:
    """Whether a configuration has nothing to say about it."""
    partial = node.get("_partial_", False) and parameter.default is parameter.empty
    tensor = "Tensor" in str(parameter.annotation)
    return partial or tensor or parameter.name in BY_CODE.get(node["_target_"], ())


@pytest.mark.parametrize("choice", [each for each in choices() if each not in PARTS])
def test_every_argument_stands_in_the_configuration(choice: str) -> None:
    absent = [
        f"{node['_target_']}: {each.name}"
        for node, parameters in own_nodes(choice)
        for each in parameters
        if each.name not in node and not filled_by_code(node, each)
    ]
    assert not absent


def test_defaults_in_code_are_those_of_a_configuration() -> None:
    seen: dict[tuple[str, str], list[Any]] = {}
    defaults: dict[tuple[str, str], Any] = {}
    for choice in choices():
        for node, parameters in own_nodes(choice):
            for each in parameters:
                value, place = node.get(each.name), (node["_target_"], each.name)
                plain = isinstance(each.default, bool | int | float | str | None) and not list(
                    nodes(value)
                )
                if plain and each.name in node and "${" not in str(value) and value != "???":
                    seen.setdefault(place, []).append(value)
                    defaults[place] = each.default
    other = {
        place: (default, seen[place])
        for place, default in defaults.items()
        if default not in seen[place] and place not in OTHERWISE
    }
    assert not other


# What each program makes, and the numbers that it reads by itself or not at all.
PROGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (COMPONENTS, ()),
    "tune experiment=simulator_sft_tiny": (
        COMPONENTS,
        ("simulator_check.",),  # of a policy
    ),
    "tune experiment=cold_start_smollm2 evaluation=geography": (COMPONENTS, ()),
    "train experiment=zerosearch_7b algorithm=ppo": (
        (*COMPONENTS, "simulator.server"),
        ("model.architecture.", "simulator.weights_gib"),  # of the model's configuration; of plans
    ),
    "plan": (plan.COMPONENTS, ()),
    "evaluate methods=all ~simulator": (
        (*evaluate.COMPONENTS, "prompted"),
        ("seed", "block", "max_failed_share"),
    ),
    "evaluate engines=geography methods=all search=none": (
        (*evaluate.COMPONENTS, "prompted"),
        ("seed", "block", "max_failed_share"),
    ),
    "ask ~simulator": (load.COMPONENTS, ("seed",)),
    "ask agent=chat search=web agent.client.model=m model=base generator=vllm ~simulator": (
        load.COMPONENTS,
        ("seed", "model.", "generator."),
    ),
    "serve ~simulator": ((*load.COMPONENTS, "limits"), ("seed", "port")),
    "fidelity": (
        fidelity.COMPONENTS,
        (
            *("seed", "top_k", "timeout_s", "concurrency", "thresholds.", "simulator.server."),
            "simulator.weights_gib",
        ),
    ),
    "judge judge=llm judge.client.model=m": (judge.COMPONENTS, ()),
    "collect search=retriever ~simulator": (collect.COMPONENTS, ()),
    "retrieve search=dense": (retriever.COMPONENTS, ("port", "search.cache_gib")),
    "simulate simulator=tiny": (
        ("simulator.server",),
        (
            "simulator.client.",
            "simulator.engine.",
            "simulator.words",
            "simulator.temp",
            "simulator.max_t",
            "simulator.usd",
            "simulator.server.environment.",
        ),
    ),
    "generate": (("server",), ("episode.",)),
}


def numbers(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Keys of the numbers in a configuration, as it is written."""
    for name in range(len(cfg)) if isinstance(cfg, ListConfig) else list(cfg):
        key = f"{prefix}{name}"
        child: Any = cfg._get_node(name)
        if isinstance(child, DictConfig | ListConfig) and child._value() is not None:
            yield from numbers(child, f"{key}.") if not child._is_interpolation() else ()
        elif isinstance(child._value(), int | float) and not isinstance(child._value(), bool):
            yield key


@pytest.mark.parametrize("command", PROGRAMS)
def test_a_word_in_place_of_any_number_is_refused(command: str, tmp_path: Path) -> None:
    program, *overrides = command.split()
    made, others = PROGRAMS[command]
    with hydra_run(compose_config(tmp_path, *overrides, name=program, whole=True)) as cfg:
        check_nodes(cfg, *made)
        keys = [key for key in numbers(cfg) if not key.startswith(others or "-")]
        for key in keys:
            OmegaConf.update(cfg, key, "abc")
        with pytest.raises(ValueError) as refused:
            check_nodes(cfg, *made)
    refusals = str(refused.value)
    accepted = [key for key in keys if f"{key}=abc: give " not in refusals]
    assert accepted == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy_steps=2.5", "policy_steps=2.5: give a whole number"),
        ("algorithm.group_size=2.0", "algorithm.group_size=2.0: give a whole number"),
        ("algorithm.group_size=true", "algorithm.group_size=True: give a whole number"),
        ("algorithm.group_size=0", "algorithm.group_size=0: give at least 1"),
        ("algorithm.kl_coefficient=nan", "algorithm.kl_coefficient=nan: give a finite number"),
        ("algorithm.kl_kind=k4", "algorithm.kl_kind=k4: give 'k1', 'k2', 'k3' or 'abs'"),
        ("algorithm.loss.clip_low=abc", "algorithm.loss.clip_low=abc: give a number"),
        ("+curriculum.schedule=linear", "curriculum.schedule: is curriculum.shape now"),
        ("+algorithm.gruop_size=3", "algorithm.gruop_size is unknown: did you mean group_size?"),
        ("seed=-1", "seed=-1: give at least 0"),
        ("optimizer.lr=fast", "optimizer.lr=fast: give a number"),
        ("optimizer.lr=-1", "optimizer.lr=-1: give at least 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1: give at least 0"),
        ("schedule.warmup_fraction=3", "schedule.warmup_fraction=3: give at most 1"),
        ("schedule.decay=foo", "schedule.decay=foo: give 'constant', 'linear' or 'cosine'"),
        ("trainer.val_check_interval=0", "trainer.val_check_interval=0: give at least 1"),
        ("trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5: give a whole number"),
        ("trainer.devices=0", "trainer.devices=0: give at least 1"),
        ("generator.max_batch=0", "generator.max_batch=0: give at least 1"),
        ("generator.reuse_kv=maybe", "generator.reuse_kv=maybe: give true or false"),
        ("curriculum.start=two", "curriculum.start=two: give a number"),
        ("episode.top_k=0", "episode.top_k=0: give at least 1"),
        ("health.gibberish.above=abc", "health.gibberish.above=abc: give a number"),
        ("health.gibberish=5", "health.gibberish=5: give a choice of its group, or a node"),
        ("data.files=mine.jsonl", "data.files=mine.jsonl: give a list, such as [a,b]"),
        ("data.files=[1]", "data.files.0=1: give a text, in quotes"),
        ("callbacks.checkpoint.keep=0", "callbacks.checkpoint.keep=0: give at least 1"),
        ("model.chat=maybe", "model.chat=maybe: give true or false"),
        ("search.cache=maybe", "search.cache=maybe: give 'none', 'use' or 'replay'"),
        ("+optimizer.betas=[0.9]", "optimizer.betas=[0.9]: give a value more"),
        ("~health", "callbacks.health.rules is taken from health, which is not there"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_key(
    override: str, said: str, tmp_path: Path
) -> None:
    cfg = compose_config(tmp_path, override)
    with pytest.raises(ValueError) as refused:
        check_nodes(cfg, *COMPONENTS)
    assert str(refused.value).startswith(said) and ";" not in str(refused.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, "optimizer.lr=fast", "seed=-1")
    with pytest.raises(ValueError, match=r"seed=-1: .*; optimizer\.lr=fast: "):
        check_nodes(cfg, *COMPONENTS)


class Colour(Enum):
    RED = "red"


def of_others(count: int = 1, number: Any = None, **given: Any) -> None:
    """A component of other people's code."""


# as libraries annotate: more widely than they take, for type checkers alone, or wrongly
WIDE = {
    "bare": "Sequence",
    "items": "Collection[int]",
    "colour": "Colour",
    "anything": "object",
    "array": "Nowhere.Array",
    "optional": "Optional[Nowhere]",
    "twice": "'list[Nowhere] | None'",
    "broken": "inspect.nothing",
    "no_type": "int.of[3]",
    "path": "os.PathLike",
}


@dataclass
class Settings:
    """Of somebody's component."""

    first: InitVar[int] = 1


@pytest.mark.parametrize("name", WIDE)
def test_annotations_of_others_refuse_nothing_that_may_be_right(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=WIDE[name])
    signature = inspect.signature(of_others)
    *first, last = signature.parameters.values()
    monkeypatch.setattr(
        of_others, "__signature__", signature.replace(parameters=[*first, parameter, last]), False
    )
    arguments_of.cache_clear()
    for value in ("red", [1]) if name not in ("bare", "items") else ([1],):
        node = {"_target_": f"{__name__}.of_others", name: value, "own": "y", "number": None}
        check_nodes(OmegaConf.create({"mine": node}), "mine")
        with pytest.raises(ValueError, match=r"^mine\.count=many: give a whole number$"):
            check_nodes(OmegaConf.create({"mine": {**node, "count": "many"}}), "mine")


def test_arguments_of_a_dataclass_that_are_no_fields_are_checked() -> None:
    node = {"_target_": f"{__name__}.Settings", "first": 2}
    check_nodes(OmegaConf.create({"mine": node}), "mine")
    with pytest.raises(ValueError, match=r"mine\.first=two: give a whole number"):
        check_nodes(OmegaConf.create({"mine": {**node, "first": "two"}}), "mine")


def test_a_module_that_was_moved_is_one_sentence() -> None:
    cfg = OmegaConf.create({"search": {"_target_": "zerosearch.search.simulated.SimulatedSearch"}})
    said = r"^search\._target_=\S+SimulatedSearch: there is no such module; the changelog says"
    with pytest.raises(InputError, match=said):
        check_nodes(cfg, "search")
