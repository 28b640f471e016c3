"""What every command has in common: its Hydra main, checks that cost no import, errors in words.

Light on imports: a wrong word on the command line is answered before torch is loaded.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from zerosearch import ranges
from zerosearch.arguments import expand_null_groups, override_key
from zerosearch.endings import FULL_ERROR, of_configuration, report_error
from zerosearch.runs import PROJECT_ROOT, Summary
from zerosearch.sweeps import JobFailed, is_sweep, report_failures, run_in_process
from zerosearch.threads import wait_without_spinning

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")

CONFIGS = PROJECT_ROOT / "configs"
# what Hydra says of keys that are not there, of `+key` for one that is, of several values
_NOT_THERE = re.compile(
    r"Could not (?:override|delete) '([^'=]+)|Could not delete from config\. '([^']+)' does not"
)
_ADDED = re.compile(
    r"Could not append to config\. An item is already at '([^']+)'"
    r"|Multiple values for (\S+)\. To override"
)
_LIST = re.compile(r"Ambiguous value for argument '([^'=]+)=([^']*)'")

log = logging.getLogger(__name__)


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
        """Raise a ValueError where the value is not what is wanted."""
        try:
            TypeAdapter(self.type, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{name}={_shown(value)}: give {self.wanted}") from error


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
            ValueError with one sentence.
        expand: turn the words of the command line into Hydra's, in this order; each raises a
            ValueError with one sentence.
        error_code: exit code where the command line is wrong.
    """

    task: Callable[[DictConfig], T]
    config_name: str
    keys: Mapping[str, Key]
    checks: Sequence[Callable[[DictConfig], None]]
    expand: Sequence[Callable[[list[str]], list[str]]]
    error_code: int

    def words(self, arguments: list[str]) -> list[str]:
        """The words of a command line as Hydra takes them; a ValueError where one is wrong."""
        for step in self.expand:
            arguments = step(arguments)
        return expand_null_groups(arguments)

    def check(self, cfg: DictConfig) -> None:
        """Raise a ValueError with one sentence where the configuration cannot work."""
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
        arguments = sys.argv[1:]
        full_error = os.environ.get(FULL_ERROR)
        try:
            arguments = sys.argv[1:] = self.words(arguments)
            run = hydra.main(
                version_base="1.3", config_path=str(CONFIGS), config_name=self.config_name
            )
            with _full_error("1"):  # Hydra then raises what is said in other words below
                return run(self._job(full_error))()
        except JobFailed as error:
            report_failures(error)
            raise SystemExit(1) from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if full_error == "1":
                raise
            print(explain(error, self.config_name, arguments), file=sys.stderr)
            raise SystemExit(self.error_code) from error

    def _job(self, full_error: str | None) -> Callable[[DictConfig], T | float | None]:
        """What Hydra runs; it and the processes it starts see the user's HYDRA_FULL_ERROR."""
        spec = self.task.__globals__.get("__spec__")
        module = self.task.__module__ if spec is None else spec.name

        @functools.wraps(self.task)  # Hydra names the job after it
        def job(cfg: DictConfig) -> T | float | None:
            with _full_error(full_error):
                if is_sweep():
                    return run_in_process(module)
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
    """Within, a ValueError ends the program with its sentence, which `summary.json` keeps.

    A run that is to go on in its folder keeps the summary that it has: nothing was changed there.
    """
    try:
        yield
    except (ValueError, OmegaConfBaseException) as error:
        said = report_error(error)
        if HydraConfig.get().output_subdir is not None:  # it has a run folder
            summary = Summary(Path(cfg.paths.output_dir), error=said)
            if not summary.path.exists():
                summary.write()
        raise SystemExit(error_code) from error


def explain(error: Exception, config_name: str, arguments: Sequence[str]) -> str:
    """What is wrong with a command line, in one sentence and without Hydra's own advice."""
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        name, sign, _ = error.override.partition("=")
        if not sign:
            return f"{name}: overrides have the form key=value"
        said = error.message.partition("\n")[0]
        return f"{error.override}: {said}; quote values with special signs: key='value'"
    said = str(error).partition("\n")[0]
    if found := _ADDED.search(said):
        return f"{found[1] or found[2]}: {config_name} has this key: leave the + out"
    if found := _LIST.search(said):
        key, values = found[1], found[2]
        return (
            f"{key}={values}: one value is wanted; give a list as {key}=[{values}], and a run for "
            "each with -m (make sweep)"
        )
    if found := _NOT_THERE.search(said):
        name = found[1] or found[2]
        known = _known_keys(config_name, arguments, name)
        if name in known:
            return f"{name}: give one of its choices, or its keys one by one, as {name}.KEY=value"
        near = nearest(name, known)
        remedy = f"did you mean {' or '.join(near)}?" if near else "`--cfg job` shows all keys"
        return f"{name}: {config_name} has no such key; {remedy}"
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
    groups = (each.as_posix() for each in Path(file).parents if (CONFIGS / each).is_dir())
    group = next(groups, ".")  # a name may hold slashes, as a URL does
    if group == ".":
        return str(error).partition("\n")[0]
    name = file.removeprefix(f"{group}/")
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    single = f"; its keys are set as {group}.KEY=value" if "/" in name else ""
    has = f"{group} has {', '.join(options)}" if options else f"see configs/{group}"
    return f"{group}={name}: there is no {group}/{name}; {hint}{has}{single}"


def _known_keys(config_name: str, arguments: Sequence[str], unknown: str) -> list[str]:
    """Keys and groups of the command as it is composed without the key that is not known."""
    rest = [item for item in arguments if "=" in item and override_key(item) != unknown]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            words = [item for item in rest if not item.startswith("-")]
            cfg = hydra.compose(config_name, words, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            cfg = hydra.compose(config_name, return_hydra_config=True)
    groups = sorted(str(group) for group in cfg.hydra.runtime.choices)
    own = {name: value for name, value in cfg.items_ex(resolve=False) if name != "hydra"}
    known = [*_dotted(OmegaConf.to_container(OmegaConf.create(own), resolve=False)), *groups]
    return list(dict.fromkeys(known))


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _dotted(value, f"{prefix}{name}.")


def _plain(cfg: DictConfig, name: str) -> Any:
    value = cfg[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _shown(value: Any) -> str:
    """A value as it stands on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
