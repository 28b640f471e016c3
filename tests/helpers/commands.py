"""What commands of the pages call, checked in this process as the programs themselves would."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.helpers.configs import ROOT, compose_config, hydra_run
from tests.helpers.pages import Shown
from tests.helpers.recorded import Call, calls, run
from zerosearch.assembly import COMPONENTS
from zerosearch.cli import NAMES
from zerosearch.command_line.chosen_policy import choose_policy
from zerosearch.command_line.command import Command
from zerosearch.core.endings import of_configuration
from zerosearch.core.nodes import check_nodes
from zerosearch.training.preflight import check_accelerator

WITH_FLAGS = ("compare", "export", "init", "merge", "report", "template")  # the others are Hydra's
HEAVY = ("torch", "lightning", "transformers", "datasets")

Composed = tuple[str, DictConfig]  # the name of a command, and what it was composed to


def light_environment(folder: Path) -> dict[str, str]:
    """An environment in which importing a heavy library is an error."""
    forbid_heavy(folder)
    return os.environ | {"PYTHONPATH": f"{folder}:{ROOT / 'src'}"}


def forbid_heavy(folder: Path) -> None:
    """Put modules in the place of heavy libraries that cannot be imported, for PYTHONPATH."""
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise AssertionError('{name} is imported')\n")


class _Parsed(BaseException):
    """The words of a program with flags are right."""


def called_by(shown: list[Shown], environment: Path) -> tuple[list[tuple[Shown, Call]], list[str]]:
    """What the shell calls for some commands, each with its command; and what it refuses to run."""
    script, refused = "", []
    for number, each in enumerate(shown):
        try:
            command = each.filled()
        except ValueError as error:
            refused.append(str(error))
            continue
        script += f"export SHOWN={number}\n( {command}\n) || echo '{each.where}: is refused' >&2\n"
    ended = run(environment, "bash", "-c", script)
    refused += [f"{ended.stderr}"] if ended.stderr else []
    return [(shown[int(call.environment["SHOWN"])], call) for call in calls(environment)], refused


def program_of(call: Call) -> tuple[str, list[str]] | None:
    """Name and arguments of a command of this project; other programs are looked at here.

    Raises:
        ValueError: a script or an extra that is not there.
    """
    words = call.arguments
    if call.program == "sbatch":
        script = next(n for n, word in enumerate(words) if not word.startswith("--"))
        check_file(words[script])
        return "train", words[script + 1 :]
    if call.program == "pip" or words[:2] == ["-m", "pip"]:
        check_extras(words)
    elif call.program in ("python", "torchrun") and "-m" in words:
        module, *arguments = words[words.index("-m") + 1 :]
        if module == "zerosearch":
            return _of_the_one_command(arguments)
        if module.startswith("zerosearch."):
            raise ValueError(f"python -m {module}: commands are run as zerosearch NAME")
    elif call.program == "zerosearch":
        return _of_the_one_command(words)
    elif call.program == "python" and words[0] != "-c":
        check_file(words[0])
    return None


def _of_the_one_command(words: list[str]) -> tuple[str, list[str]] | None:
    name, *arguments = words
    if name == "--help":
        return None
    if name not in NAMES:
        raise ValueError(f"there is no command {name}")
    return name, arguments


def check_file(name: str) -> None:
    if not (ROOT / name).is_file():
        raise ValueError(f"there is no {name}")


def check_extras(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"(?:\.|zerosearch)\[([\w,]+)\]", " ".join(words))
    lacking = {extra for each in named for extra in each.split(",")} - {
        *project["optional-dependencies"]
    }
    if lacking:
        raise ValueError(f"there are no extras {lacking}")


def composed(name: str, arguments: Sequence[str], folder: Path) -> list[Composed]:
    """What `zerosearch NAME ARGUMENTS` is composed to; one for each job of a sweep.

    Args:
        name: of the command; one with flags in place of overrides is composed to nothing.
        arguments: of its command line.
        folder: takes what is written, and holds the runs that are there.

    Raises:
        ValueError: a word is wrong, in the program's own sentence.
        HydraException: a key or a choice is wrong.
        SystemExit: a flag is wrong.
    """
    main = import_module(f"zerosearch.commands.{name}").main
    if not isinstance(main, Command):
        _parse_flags(name, main, arguments)
        return []
    first = next((n for n, word in enumerate(arguments) if "=" in word), len(arguments))
    place = f"paths.log_dir='{folder}'"  # beside other overrides: Hydra takes them in one piece
    words = main.words([*arguments[:first], place, *arguments[first:]])
    given = get_args_parser().parse_args(words)
    assert given.config_dir is None, "read as a search path"

    def compose(overrides: Sequence[str]) -> DictConfig:
        return compose_config(folder, *overrides, whole=True, name=main.name)

    return [(name, compose(job)) for job in _jobs(given.overrides, given.multirun, compose)]


def refusal(job: Composed) -> str | None:
    """What a program says before it loads anything; None where it would go on."""
    name, cfg = job
    program = import_module(f"zerosearch.commands.{name}")
    with hydra_run(OmegaConf.create(cfg)) as cfg:  # a copy: a check may settle what is meant
        try:
            program.main.check(cfg)
            if "checkpoint" in cfg:
                choose_policy(cfg, list(HydraConfig.get().overrides.task))
            trains = name in ("train", "tune")
            check_nodes(cfg, *(COMPONENTS if trains else getattr(program, "COMPONENTS", ())))
            if trains:
                check_accelerator(cfg.trainer.accelerator)
        except ValueError as error:
            said = str(error)
            return of_configuration(said) if isinstance(error, OmegaConfBaseException) else said
    return None


def _jobs(overrides: list[str], multirun: bool, compose: Any) -> Iterator[list[str]]:
    """The overrides of each job, as Hydra's own sweeper makes them; of a single run those given."""
    searched = [item for item in overrides if item.startswith("hparams_search=")]
    params: dict[str, Any] = {}
    if searched:
        params = OmegaConf.to_container(compose(searched).hydra.sweeper.params)  # type: ignore[assignment]
    if not (multirun or params):
        yield overrides
        return
    each = [*(f"{key}={value}" for key, value in params.items()), *overrides]
    if "hydra/sweeper=optuna" in each:  # another package's: jobs have what is not searched
        yield [item for item in each if "interval(" not in item and "hydra" not in item]
        return
    parsed = OverridesParser.create().parse_overrides(each)
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        yield from (list(job) for job in batch)


def _parse_flags(name: str, main: Callable[[], object], arguments: Sequence[str]) -> None:
    """Hold a command line against the flags of its program.

    Raises:
        SystemExit: the parser's, after its message.
    """
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *words: Any) -> NoReturn:
        parse(parser, *words)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(_Parsed):
            main()
