"""What every command has in common: its Hydra main, checks that cost no import, errors in words.

Light on imports: a wrong word on the command line is answered before torch is loaded.
"""

from __future__ import annotations

import functools
import os
import signal
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
from yaml import MarkedYAMLError

from zerosearch.command_line import sweeps, user_configs
from zerosearch.command_line.arguments import (
    expand_null_groups,
    override_key,
    quote_paths,
    refuse_dashes,
    refuse_two_modes,
)
from zerosearch.command_line.error_text import explain
from zerosearch.command_line.help_text import FLAGS, help_text
from zerosearch.command_line.job_processes import end_with_sweep
from zerosearch.command_line.keys import Key
from zerosearch.command_line.made_for import check_engine
from zerosearch.command_line.optimized import JobFailed
from zerosearch.core.endings import (
    FULL_ERROR,
    of_the_machine,
    quiet_about_the_machine,
    report_error,
)
from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.core.memory import bound_kernel_caches
from zerosearch.core.renamed import new_key
from zerosearch.core.runs import CONFIGS, PROJECT_ROOT, Summary, global_rank
from zerosearch.core.shown import clean_logs, shown
from zerosearch.core.threads import wait_without_spinning

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A function of the composed configuration as a command: calling this runs it.

    Its parts serve whoever composes a command line and checks it without running anything. Its
    module in `zerosearch.commands` gives it its name, which is also that of its YAML in `configs/`.

    Args:
        task: the function.
        keys: what the command reads by itself, checked where the YAML has it.
        checks: further checks of the configuration that import nothing heavy; each raises a
            InputError with one sentence.
        expand: turn the words of the command line into Hydra's, in this order; each raises a
            InputError with one sentence.
        error_code: exit code where the command line is wrong.
        sweeps: whether it takes `-m`, and so has a folder for what its jobs write.
        after_sweep: makes a report of a sweep's folder, however the sweep ended.
    """

    task: Callable[[DictConfig], T]
    keys: Mapping[str, Key]
    checks: Sequence[Callable[[DictConfig], None]]
    expand: Sequence[Callable[[list[str]], list[str]]]
    error_code: int
    sweeps: bool
    after_sweep: Callable[[Path], None] | None

    @property
    def name(self) -> str:
        """As in `zerosearch NAME`."""
        return self.task.__module__.rpartition(".")[2]

    def words(self, arguments: list[str]) -> list[str]:
        """The words of a command line as Hydra takes them; an InputError where one is wrong."""
        for step in (quote_paths, *self.expand):
            arguments = step(arguments)
        refuse_dashes(arguments)
        refuse_two_modes(arguments, self.name, sweeps=self.sweeps)
        for word in arguments:
            if word.startswith("+") and (name := new_key(override_key(word))):
                raise InputError(f"{word.partition('=')[0]}: is {name} now, without the +")
        # flags first: Hydra's parser wants all overrides in one piece
        return sorted(expand_null_groups(arguments), key=_is_override)

    def check(self, cfg: DictConfig) -> None:
        """Raise an InputError with one sentence where the configuration cannot work."""
        for name, key in self.keys.items():
            if name in cfg:
                key.check(name, _plain(cfg, name))
        for check in (check_engine, *self.checks):
            check(cfg)

    def __call__(self) -> T | None:
        """Run the function once, or in a sweep every job in a process of its own.

        Raises:
            SystemExit: the command line is wrong or its folder cannot be made, after one sentence,
                or a job failed.
        """
        os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))
        wait_without_spinning()
        bound_kernel_caches()
        clean_logs()
        quiet_about_the_machine()
        user_configs.register()
        end_with_sweep()
        sweeps.register()
        arguments = sys.argv[1:]
        full_error = os.environ.get(FULL_ERROR)
        begun: list[DictConfig] = []
        try:
            arguments = sys.argv[1:] = self.words(arguments)
            if not {*FLAGS}.isdisjoint(arguments):
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
                print(help_text(self.name, arguments, sweeps=self.sweeps))
                return None
            run = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=self.name)
            # with "1" Hydra raises what is said in other words below
            with _full_error("1"), sweeps.reported(self.after_sweep):
                return run(self._job(full_error, begun))()
        except JobFailed as error:
            sweeps.report_failures(error)
            raise SystemExit(1) from error
        except (HydraException, OmegaConfBaseException, MarkedYAMLError, ZeroSearchError) as error:
            if full_error == "1":
                raise
            print(shown(self.explain(error, arguments), lines=True), file=sys.stderr)
            if (folder := user_configs.own_folder()) is not None:  # may be of another project
                print(user_configs.taken_from(folder), file=sys.stderr)
            raise SystemExit(self.error_code) from error
        except OSError as error:
            made = f"{error.filename} cannot be made ({error.strerror})"
            made += ": give another folder with paths.log_dir=FOLDER"
            said = of_the_machine(error) if begun else made
            if said is None or full_error == "1":
                raise
            print(said, file=sys.stderr)
            raise SystemExit(self.error_code) from error

    def explain(self, error: Exception, arguments: Sequence[str]) -> str:
        """What is wrong with a command line, in one sentence."""
        return explain(error, self.name, arguments)

    def _job(
        self, full_error: str | None, begun: list[DictConfig]
    ) -> Callable[[DictConfig], T | float | None]:
        """What Hydra runs; it and the processes it starts see the user's HYDRA_FULL_ERROR.

        Args:
            full_error: the user's value of it; None: not set.
            begun: takes the configuration when it starts, with the run's folder made.
        """

        @functools.wraps(self.task)  # Hydra names the job after it
        def job(cfg: DictConfig) -> T | float | None:
            begun.append(cfg)
            with _full_error(full_error):
                # Lightning starts further ranks with these words
                sys.argv[1:1] = [self.name]
                if global_rank() == 0:
                    user_configs.say_folder()
                with sweeps.failing_alone():
                    with _refusing(cfg, self.error_code):
                        self.check(cfg)
                    return self.task(cfg)

        return job


def command(
    *,
    keys: Mapping[str, Key],
    checks: Sequence[Callable[[DictConfig], None]] = (),
    expand: Sequence[Callable[[list[str]], list[str]]] = (),
    error_code: int = 1,
    sweeps: bool = False,
    after_sweep: Callable[[Path], None] | None = None,
) -> Callable[[Callable[[DictConfig], T]], Command[T]]:
    """Make a function a `Command`, whose arguments these are."""

    def decorate(task: Callable[[DictConfig], T]) -> Command[T]:
        return Command(task, keys, checks, expand, error_code, sweeps, after_sweep)

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

    A run that is to go on in its folder keeps the summary that it has, unless it had failed before:
    nothing was changed there.
    """
    try:
        yield
    except (ZeroSearchError, OmegaConfBaseException) as error:
        said = report_error(error)
        if HydraConfig.get().output_subdir is not None:  # a run folder of its own
            summary = Summary(Path(cfg.paths.output_dir), error=said)
            if summary.before.get("status", "failed") == "failed":
                summary.facts = summary.before | summary.facts
                summary.end()
        raise SystemExit(error_code) from error


def _plain(cfg: DictConfig, name: str) -> Any:
    value = cfg[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
