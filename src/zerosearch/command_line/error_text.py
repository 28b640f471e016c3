"""What is wrong with a command line: Hydra's errors in words of this project."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from zerosearch.command_line.arguments import override_key
from zerosearch.command_line.user_configs import find
from zerosearch.core.endings import of_configuration
from zerosearch.core.renamed import explain_word
from zerosearch.core.runs import CONFIGS

# what Hydra says of keys that are not there, of `+key` for one that is, of several values
_NOT_THERE = re.compile(
    r"Could not (?:override|delete) '([^'=]+)|Could not delete from config\. '([^']+)' does not"
)
_ADDED = re.compile(
    r"Could not append to config\. An item is already at '([^']+)'"
    r"|Multiple values for (\S+)\. To override"
)
# what keys are called elsewhere
_ELSEWHERE = {
    "batch_size": "questions_per_step",
    "learning_rate": "optimizer.lr",
    "max_steps": "policy_steps",
    "reward": "rubric",
}
_LIST = re.compile(r"Ambiguous value for argument '([^'=]+)=([^']*)'")
_COMPOSING = re.compile(r"In '(.+)': \w+ raised while composing config:\n(.+)")


def explain(error: Exception, command: str, arguments: Sequence[str]) -> str:
    """What is wrong with a command line, in one sentence and without Hydra's own advice.

    Args:
        error: of Hydra, of the configuration, or of a file that is no YAML.
        command: its name, which is also that of its YAML.
        arguments: of the command line.
    """
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"{mark.name}, line {mark.line + 1}: {error.problem}: correct its YAML"
    if isinstance(error, OverrideParseException):
        name, sign, _ = error.override.partition("=")
        if not sign:
            return f"{name}: settings are given as key=value"
        said = error.message.partition("\n")[0]
        return f"{error.override}: {said}; quote values with special signs: key='value'"
    if found := _COMPOSING.match(str(error)):
        return f"{found[1]}.yaml: {of_configuration(found[2])}"
    said = str(error).partition("\n")[0]
    if found := _ADDED.search(said):
        return f"{found[1] or found[2]}: zerosearch {command} has this key: leave the + out"
    if found := _LIST.search(said):
        key, values = found[1], found[2]
        return (
            f"{key}={values}: one value is wanted; give a list as {key}=[{values}], and a run for "
            "each with -m (zerosearch train -m)"
        )
    if found := _NOT_THERE.search(said):
        name = found[1] or found[2]
        for word in [name, *(each for each in arguments if override_key(each) == name)]:
            if said := explain_word(word):
                return said
        if chooser := _chooser(name, arguments):
            return _not_together(chooser, name, command, arguments)
        known = _known_keys(command, arguments, name)
        if name in known and "." not in name:
            return f"{name}: give one of its choices, or its keys one by one, as {name}.KEY=value"
        same = _ELSEWHERE.get(name)
        near = [same] if same in known else nearest(name, known)
        every = "`--cfg job` shows all keys, `--help` the usual ones"
        remedy = f"did you mean {' or '.join(near)}?" if near else every
        return f"{name}: zerosearch {command} has no such key; {remedy}"
    if isinstance(error.__cause__, OmegaConfBaseException):
        error = error.__cause__
    said = of_configuration(str(error))
    key = getattr(error, "full_key", None)
    return f"{key}: {said}" if key and key not in said else said


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Known keys that a key that is not known may have meant, at most three."""
    same_end = [key for key in known if key.endswith(f".{name}")]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.75) or same_end[:3]


def _unknown_choice(error: MissingConfigException) -> str:
    file, options = str(error.missing_cfg_file), error.options or []
    group = file.rpartition("/")[0]
    if said := explain_word(f"{group}={file.removeprefix(f'{group}/')}"):
        return said
    is_ours = not group.startswith("hydra/")  # Hydra has groups of its own
    if not options or (is_ours and find(group) is None):  # a name may hold slashes, as a URL does
        known = (each.as_posix() for each in Path(file).parents if find(str(each)))
        group = next(known, ".")
    if group in ("", "."):
        return str(error).partition("\n")[0]
    name = file.removeprefix(f"{group}/")
    near = difflib.get_close_matches(name, options, n=1)
    if group == "model" and "/" in name:
        near = [f"hf model.path={name}"]
    hint = f"did you mean {group}={near[0]}? " if near else ""
    has = f"{group} has {', '.join(options)}" if options else f"keys are set as {group}.KEY=value"
    return f"{group}={name}: there is no {group}/{name}; {hint}{has}"


def _chooser(group: str, arguments: Sequence[str]) -> str | None:
    """The word of a command line whose file makes a choice of a group."""
    for word in arguments:
        own, _, name = word.partition("=")
        file = find(f"{own}/{name}.yaml")
        if file is not None and f"override /{group}" in file.read_text(encoding="utf-8"):
            return word
    return None


def _not_together(chooser: str, group: str, command: str, arguments: Sequence[str]) -> str:
    """Why a word of the command line chooses from a group that is not there, and what to leave out.

    Some groups come with a choice of another one, as those of a policy with `data=episodes`.
    """
    for word in arguments:
        others = [each for each in arguments if each != word]
        if word != chooser and find(word.partition("=")[0]) and _composed(command, others):
            return (
                f"{word} does not go with {chooser}: that one chooses {group}=, which is not there "
                f"with {word}; leave one of the two out"
            )
    own = chooser.partition("=")[0]
    return (
        f"{chooser} is not for zerosearch {command}: it chooses {group}=, which that command does "
        f"not have; give another {own}="
    )


def _known_keys(command: str, arguments: Sequence[str], unknown: str) -> list[str]:
    """Keys and groups of the command as it is composed without the key that is not known."""
    rest = [item for item in arguments if override_key(item) != unknown]
    cfg = _composed(command, rest) or _composed(command, [])
    assert cfg is not None
    groups = sorted(str(group) for group in cfg.hydra.runtime.choices)
    own = {name: value for name, value in cfg.items_ex(resolve=False) if name != "hydra"}
    known = [*_dotted(OmegaConf.to_container(OmegaConf.create(own), resolve=False)), *groups]
    return list(dict.fromkeys(known))


def _composed(command: str, arguments: Sequence[str]) -> DictConfig | None:
    """A command's configuration with Hydra's own; None where its overrides do not compose."""
    words = [item for item in arguments if "=" in item and not item.startswith("-")]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra.compose(command, words, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            return None


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _dotted(value, f"{prefix}{name}.")
