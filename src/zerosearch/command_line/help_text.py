"""What `zerosearch NAME --help` prints of a command of Hydra: what it does, its groups, its keys.

Hydra's own help lists every group of `configs/`, also those that the command has no use for, and
says neither what the command does nor what a key means. All this stands in the command's YAML.

Light on imports: nothing is loaded but Hydra.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from zerosearch.command_line.made_for import command_of
from zerosearch.core.runs import CONFIGS

FLAGS = ("-h", "--help")
_OF_ITSELF = ("hydra", "local", "paths", "planned")  # groups that nobody chooses from
_EXTENDED = ("base", "cached", "paper_base")  # choices that others are made of
_FIXED = ("task_name", "_target_", "_partial_", "_convert_")  # keys that nobody sets
_LINE = re.compile(r"( {2})?(\w+):([^#]*)(?:# (.*))?")  # indent, key, value, remark
_LEFT, _WIDTH = 36, 110  # columns
_FOOT = """\
`zerosearch {name} --cfg job` shows the whole configuration: any key of it can be set like these.
More flags: {sweep}--hydra-help."""
_SWEEP = "-m (a run for each combination of KEY=A,B values), "


def help_text(name: str, words: Sequence[str], *, sweeps: bool) -> str:
    """The help of a command.

    Args:
        name: of the command, which is also that of its YAML.
        words: of the command line; choices and values are shown as its overrides leave them.
        sweeps: whether it takes `-m`.

    Raises:
        HydraException: an override is wrong.
    """
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = [word for word in words if not word.startswith("-")]
        cfg = hydra.compose(name, overrides, return_hydra_config=True)
        shown = {
            "groups, GROUP=NAME takes another choice:": [*_groups(name, text, cfg)],
            "keys, KEY=VALUE sets another value:": [*_keys(text, cfg)],
        }
    usage = f"usage: zerosearch {name} [GROUP=NAME ...] [KEY=VALUE ...]"
    foot = _FOOT.format(name=name, sweep=_SWEEP if sweeps else "")
    parts = ["\n".join([title, *lines]) for title, lines in shown.items() if lines]
    return "\n\n".join([usage, head(text), *parts, foot])


def head(text: str) -> str:
    """The comment on top of a YAML, its commands indented."""
    top = text.partition("defaults:")[0].splitlines()
    lines = [line.removeprefix("#").strip() for line in top]
    return "\n".join(f"  {line}" if line.startswith("zerosearch ") else line for line in lines)


def _groups(name: str, text: str, cfg: DictConfig) -> Iterator[str]:
    """A line for each group that the command has: what is chosen, and what else there is."""
    entries = [each for each in yaml.safe_load(text)["defaults"] if isinstance(each, dict)]
    chosen: dict[str, Any] = {group: choice for each in entries for group, choice in each.items()}
    chosen = {group: choice for group, choice in chosen.items() if isinstance(choice, list)}
    chosen |= reversed(cfg.hydra.runtime.choices.items())  # Hydra notes no lists there
    tops = [group.split("/")[0] for group in chosen]
    for group in sorted(chosen, key=lambda group: (tops.index(group.split("/")[0]), group)):
        if group.split("/")[0] in _OF_ITSELF or "@" in group:
            continue
        choice = chosen[group]
        options = GlobalHydra.instance().config_loader().get_group_options(group)
        if group == "experiment" and name != "plan":
            options = [each for each in options if command_of(each) == name]
        if others := [each for each in options if each != choice and each not in _EXTENDED]:
            yield _line(group, choice, f"or {', '.join(others)}")


def _keys(text: str, cfg: DictConfig) -> Iterator[str]:
    """A line for each key of the command's own YAML: its value, and the remark beside it."""
    parent = ""
    for line in text.partition("defaults:")[2].splitlines():
        if (found := _LINE.fullmatch(line)) is None or found[2] in _FIXED:
            continue
        parent = parent if found[1] else found[2]
        key = f"{parent}.{found[2]}" if found[1] else parent
        if "${" in found[3] or parent == "hydra":
            continue
        value = OmegaConf.select(cfg, key, default="???")
        remark = found[4] or ""
        if value == "???":
            yield _line(key, "VALUE", f"required: {remark}")
        elif not OmegaConf.is_dict(value) or not value:
            yield _line(key, value, remark)


def _line(key: str, value: Any, remark: str) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    given = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    left = f"  {key}={given}".ljust(_LEFT)
    return textwrap.fill(
        f"{left} {remark}".rstrip(),
        _WIDTH,
        subsequent_indent=" " * (_LEFT + 1),
        break_on_hyphens=False,
    )
