"""What every command has in common: its Hydra main, checks that cost no import, errors in words.

Light on imports: a wrong word on the command line is answered before torch is loaded.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from zerosearch import cli
from zerosearch.command_line import user_configs
from zerosearch.command_line.arguments import expand_null_groups
from zerosearch.command_line.error_text import explain
from zerosearch.command_line.sweeps import JobFailed, is_sweep, report_failures, run_in_process
from zerosearch.core import ranges
from zerosearch.core.endings import FULL_ERROR, report_error
from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.core.runs import CONFIGS, PROJECT_ROOT, Summary, global_rank
from zerosearch.core.threads import wait_without_spinning

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """A key that a command itself reads.

    Args:
        type: pydantic's, read strictly: 2.0 is no whole number and "no" no truth value.
        wanted: the same for people, after "give".
    """

    type: Any
    wanted: str

    def check(self, name: str, value: Any) -> None:
        """Raise an InputError where the value is not what is wanted."""
        try:
            TypeAdapter(self.type, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{name}={_shown(value)}: give {self.wanted}") from error


COUNT = Key(ranges.Count, "a whole number, 1 or more")
COUNT_OR_ALL = Key(ranges.Count | None, "a whole number, 1 or more, or null for all")
COUNT_OR_NULL = Key(ranges.Count | None, "a whole number, 1 or more, or null")
SEED = Key(ranges.Seed, "a whole number from 0 to 4294967295")
FLAG = Key(bool, "true or false")
PLACE = Key(str | None, "a path, or null")
TEXT = Key(str, "a text")
WORDS = Key(list[str], "a list of words, such as [first,second]")
MADE_FOR = Key(dict[str, Any] | None, "null to take choices as they are, or leave it out")
SHARE = Key(ranges.Share, "a number from 0 to 1")
NOT_NEGATIVE = Key(ranges.NotNegative, "a number, 0 or more")
POSITIVE = Key(ranges.Positive, "a number above 0")
SECONDS = Key(ranges.Positive, "seconds, more than 0")
PORT = Key(ranges.Port, "a port from 0 (any free one) to 65535")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A function of the composed configuration as a program: calling this runs it.

    Its parts serve whoever composes a command line and checks it without running anything.

    Args:
        task: the function.
        config_name: of its YAML in `configs/`.
        keys: what the command reads by itself, checked where the YAML has it.
        checks: further checks of the configuration that import nothing heavy; each raises a
            InputError with one sentence.
        expand: turn the words of the command line into Hydra's, in this order; each raises a
            InputError with one sentence.
        error_code: exit code where the command line is wrong.
    """

    task: Callable[[DictConfig], T]
    config_name: str
    keys: Mapping[str, Key]
    checks: Sequence[Callable[[DictConfig], None]]
    expand: Sequence[Callable[[list[str]], list[str]]]
    error_code: int

    def words(self, arguments: list[str]) -> list[str]:
        """The words of a command line as Hydra takes them; an InputError where one is wrong."""
        for step in self.expand:
            arguments = step(arguments)
        # flags first: Hydra's parser wants all overrides in one piece
        return sorted(expand_null_groups(arguments), key=_is_override)

    def check(self, cfg: DictConfig) -> None:
        """Raise an InputError with one sentence where the configuration cannot work."""
        for name, key in self.keys.items():
            if name in cfg:
                key.check(name, _plain(cfg, name))
        for check in self.checks:
            check(cfg)

    def __call__(self) -> T | None:
        """Run the function once, or in a sweep every job in a process of its own.

        Raises:
            SystemExit: the command line is wrong, after one sentence, or a job failed.
        """
        os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))
        wait_without_spinning()
        user_configs.register()
        module = self._module()
        arguments = sys.argv[1:]
        if module != "__main__":  # a file: Lightning starts further processes by its path
            sys.argv[0] = cli.called(module)  # which argparse prints
        full_error = os.environ.get(FULL_ERROR)
        try:
            arguments = sys.argv[1:] = self.words(arguments)
            run = hydra.main(
                version_base="1.3", config_path=str(CONFIGS), config_name=self.config_name
            )
            with _full_error("1"):  # Hydra then raises what is said in other words below
                return run(self._job(module, full_error))()
        except JobFailed as error:
            report_failures(error)
            raise SystemExit(1) from error
        except (HydraException, OmegaConfBaseException, ZeroSearchError) as error:
            if full_error == "1":
                raise
            print(self.explain(error, arguments), file=sys.stderr)
            raise SystemExit(self.error_code) from error

    def explain(self, error: Exception, arguments: Sequence[str]) -> str:
        """What is wrong with a command line, in one sentence."""
        return explain(error, cli.called(self._module()), self.config_name, arguments)

    def _module(self) -> str:
        """The module as of `python -m`."""
        spec = self.task.__globals__.get("__spec__")
        return self.task.__module__ if spec is None else spec.name

    def _job(self, module: str, full_error: str | None) -> Callable[[DictConfig], T | float | None]:
        """What Hydra runs; it and the processes it starts see the user's HYDRA_FULL_ERROR."""

        @functools.wraps(self.task)  # Hydra names the job after it
        def job(cfg: DictConfig) -> T | float | None:
            with _full_error(full_error):
                if is_sweep():
                    return run_in_process(module)
                if global_rank() == 0:
                    user_configs.say_folder()
                with _refusing(cfg, self.error_code):
                    self.check(cfg)
                return self.task(cfg)

        return job


def command(
    config_name: str,
    *,
    keys: Mapping[str, Key],
    checks: Sequence[Callable[[DictConfig], None]] = (),
    expand: Sequence[Callable[[list[str]], list[str]]] = (),
    error_code: int = 1,
) -> Callable[[Callable[[DictConfig], T]], Command[T]]:
    """Make a function a `Command`, whose arguments these are."""

    def decorate(task: Callable[[DictConfig], T]) -> Command[T]:
        return Command(task, config_name, keys, checks, expand, error_code)

    return decorate


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


@contextmanager
def _full_error(value: str | None) -> Iterator[None]:
    """Within, HYDRA_FULL_ERROR has this value; None: it is not set."""
    before = os.environ.get(FULL_ERROR)
    _set_full_error(value)
    try:
        yield
    finally:
        _set_full_error(before)


def _set_full_error(value: str | None) -> None:
    if value is None:
        os.environ.pop(FULL_ERROR, None)
    else:
        os.environ[FULL_ERROR] = value


@contextmanager
def _refusing(cfg: DictConfig, error_code: int) -> Iterator[None]:
    """Within, an error of ours ends the program with its sentence, which `summary.json` keeps.

    A run that is to go on in its folder keeps the summary that it has: nothing was changed there.
    """
    try:
        yield
    except (ZeroSearchError, OmegaConfBaseException) as error:
        said = report_error(error)
        if HydraConfig.get().output_subdir is not None:  # it has a run folder
            summary = Summary(Path(cfg.paths.output_dir), error=said)
            if not summary.path.exists():
                summary.write()
        raise SystemExit(error_code) from error


def _plain(cfg: DictConfig, name: str) -> Any:
    value = cfg[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _shown(value: Any) -> str:
    """A value as it stands on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
