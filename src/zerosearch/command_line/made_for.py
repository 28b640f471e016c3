"""Whether the choices of a run go together, known before anything heavy is imported.

Numbers are made for a model, a data set, an episode. A YAML file whose numbers are says so under
`made_for.<its group>`, in terms of other groups' choices; with another choice the run is refused
and told what else to change, in place of running with numbers that were never meant for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from zerosearch.command_line.user_configs import find
from zerosearch.core.errors import InputError
from zerosearch.core.model_path import resolve_path
from zerosearch.core.nodes import leaves

COMMAND = "command"  # of an experiment: whose it is, where it is not of train
ADVICE = "otherwise"  # beside the choices: what to choose in place of this file
_EMBEDDED = "zerosearch.data.geography."  # whatever knows the embedded places, or asks about them
_SIZES = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
_NUMBERS_SHOWN = 6


def _exists(experiment: str) -> bool:
    return find(f"experiment/{experiment}.yaml") is not None


def command_of(experiment: str) -> str:
    """Which command has an experiment: train, unless its file, or one it extends, says another."""
    file = find(f"experiment/{experiment}.yaml")
    if file is None:
        return "train"
    try:
        content = OmegaConf.load(file)
    except YAMLError:
        return "train"  # whoever reads it whole says what is wrong
    if not isinstance(content, DictConfig):
        return "train"
    if own := OmegaConf.select(content, f"made_for.experiment.{COMMAND}"):
        return own
    defaults = OmegaConf.select(content, "defaults") or []
    extended = [each for each in defaults if isinstance(each, str)]
    return next((own for each in extended if (own := command_of(each)) != "train"), "train")


def experiments(arguments: list[str]) -> list[str]:
    """Those that a command line names."""
    given = [item.partition("=")[2] for item in arguments if item.startswith("experiment=")]
    return [name.strip() for item in given for name in item.split(",")]


def check_experiment(arguments: list[str], command: str) -> list[str]:
    """The words of a command line as they are, unless they name another command's experiment.

    Raises:
        InputError: says which command has it.
    """
    for name in filter(_exists, experiments(arguments)):  # Hydra says what does not
        if (owner := command_of(name)) != command:
            raise InputError(
                f"experiment={name} is no experiment of `zerosearch {command}`: "
                f"zerosearch {owner} experiment={name}"
            )
    return arguments


def check_engine(cfg: DictConfig) -> None:
    """Refuse the file that the engines' own extend: it names none."""
    if isinstance(cfg.get("search"), DictConfig) and OmegaConf.is_missing(cfg.search, "engine"):
        raise InputError(
            "search=cached is what all engines share and names none itself: choose search=bm25, "
            "search=retriever or another one (--help lists them)"
        )


def check_choices(cfg: DictConfig) -> None:
    """`check_made_for` with the choices that Hydra made for this program."""
    check_made_for(cfg, HydraConfig.get().runtime.choices)


def check_made_for(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Refuse choices that do not go together; `made_for=null` takes them as they are.

    Args:
        cfg: the composed configuration of a run.
        choices: of each group, as `HydraConfig.get().runtime.choices`.

    Raises:
        InputError: names both choices, the numbers concerned, and what else to change.
    """
    if cfg.get("made_for") is None:
        return
    _check_model_path(cfg)
    chosen = dict(choices)
    if _is_another_model(cfg, chosen.get("model")):
        chosen["model"] = "hf"
    stated = sorted(cfg.made_for.items(), key=lambda item: item[0] != "experiment")  # first
    for group, wanted in stated:
        for other, patterns in (wanted or {}).items():
            choice = chosen.get(other)
            if other in (ADVICE, COMMAND) or choice is None or _fits(choice, patterns):
                continue
            given = f"{other}={choice}"
            if other == "model" and choice != choices["model"]:
                given = f"model.path={cfg.model.path}"
            raise InputError(_refusal(cfg, str(group), chosen.get(group), str(other), given))
    _check_engines(cfg, chosen)


def _fits(choice: str, patterns: Any) -> bool:
    """Whether a choice is one of those asked for: names, globs, or `!name` for any but that.

    An empty list fits none: the group has no effect.
    """
    each = [patterns] if isinstance(patterns, str) else list(patterns)
    return any(
        not fnmatch(choice, p[1:]) if p.startswith("!") else fnmatch(choice, p) for p in each
    )


def _refusal(cfg: DictConfig, group: str, name: str | None, other: str, given: str) -> str:
    wanted = cfg.made_for[group][other]
    wanted = [wanted] if isinstance(wanted, str) else wanted
    said = " or ".join(
        f"any {other} but {p[1:]}" if p.startswith("!") else f"{other}={p}" for p in wanted
    )
    numbers = ", ".join(_numbers(cfg, group, name or ""))
    with_them = f", which would run with {numbers}" if numbers else ""
    advice = cfg.made_for[group].get(ADVICE)
    advised = f"use {advice}; " if advice else ""
    if not said:
        return f"{group}={name} has no use for {given}: leave it out"
    file = f"zerosearch {group}" if name is None else f"{group}={name}"
    return (
        f"{file} is made for {said}, not for {given}{with_them}: {advised}"
        f"made_for.{group}=null takes it as it is"
    )


def _numbers(cfg: DictConfig, group: str, name: str) -> list[str]:
    """The numbers that the file of a choice sets, as they stand in the run."""
    file = find(f"{group}/{name}.yaml")
    if file is None:
        return []
    shown = [
        f"{key}={OmegaConf.select(cfg, key)}"
        for key, value in leaves(OmegaConf.to_container(OmegaConf.load(file)))
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    more = ["..."] if len(shown) > _NUMBERS_SHOWN else []
    return shown[:_NUMBERS_SHOWN] + more


# -- the model ------------------------------------------------------------------------------------


def _check_model_path(cfg: DictConfig) -> None:
    if cfg.get("model") is not None and OmegaConf.is_missing(cfg.model, "path"):
        raise InputError(
            "model.path is not set: give a folder, or a name on the Hugging Face hub such as "
            "model.path=Qwen/Qwen2.5-0.5B, or choose a model= that has one"
        )


def _is_another_model(cfg: DictConfig, choice: str | None) -> bool:
    """Whether `model.path` puts a model of another size into the place of the chosen one.

    Where `model.architecture` gives the size, it is compared with the weights when they are loaded.
    """
    file = find(f"model/{choice}.yaml")
    if cfg.get("model") is None or cfg.model.get("architecture") or file is None:
        return False
    shipped = OmegaConf.select(OmegaConf.load(file), "path")
    if shipped is None or shipped == cfg.model.path:
        return False
    sizes = _sizes(shipped)
    return sizes is None or sizes != _sizes(cfg.model.path)


def _sizes(path: str) -> list[Any] | None:
    """What decides the size of a model in a folder; None where that cannot be read here."""
    try:
        config = json.loads((Path(resolve_path(path)) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [config.get(name) for name in _SIZES] if isinstance(config, dict) else None


# -- engines and questions ------------------------------------------------------------------------


def _check_engines(cfg: DictConfig, chosen: Mapping[str, Any]) -> None:
    """Refuse engines of the embedded places beside questions that are about other things."""
    if cfg.get("data") is None or cfg.get("search") is None:
        return
    if cfg.search.get("_target_", "").endswith(".NoSearch") and cfg.episode.max_turns > 0:
        raise InputError(
            f"search=none answers nothing and episode.max_turns={cfg.episode.max_turns} allows "
            "searches: set episode.max_turns=0, or choose another search="
        )
    if chosen.get("search") == "simulated" and cfg.get("simulator") is None:
        return  # see `zerosearch.simulator.checks`
    if any(map(_is_embedded, _targets(cfg.data))):
        return
    remedies = {
        "search": "corpus=NAME, search.engine.corpus=FILE (search=bm25, dense), or another search=",
        "evaluation": "evaluation=same_engine",
    }
    if chosen.get("search") == "simulated":
        remedies["search"] = "simulator=prompted_7b or another language model, or another search="
    if chosen.get("evaluation") == "same_engine":
        del remedies["evaluation"]
    wrong = [group for group in remedies if any(map(_is_embedded, _targets(cfg.get(group))))]
    if wrong:
        engines = " and ".join(f"{group}={chosen.get(group)}" for group in wrong)
        raise InputError(
            f"{engines}: only the embedded places are known there, and "
            f"data={chosen.get('data')} asks other questions; set "
            f"{', and '.join(remedies[group] for group in wrong)}; made_for=null takes it as it is"
        )


def _is_embedded(target: str) -> bool:
    return target.startswith(_EMBEDDED)


def _targets(node: Any) -> Iterator[str]:
    """Every `_target_` of a node, interpolations followed."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
