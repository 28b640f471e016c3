"""A command in a process of its own, without the seconds in which a new one imports libraries.

It is forked from a server that has imported them. Its arguments, environment, working directory,
streams, signals and exit code are those of a process that was started as `python -m zerosearch`;
what a library decides while it is imported is not, so one test of each command starts a new one.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.helpers.configs import ROOT
from zerosearch.cli import main

# The server of forks imports these once; each process is then there at once.
PRELOADED = ["torch", "transformers", "peft", "lightning.pytorch", "zerosearch.training.module"]
TIMEOUT_S = 600.0  # of a process that hangs


class Forked:
    """A running command; as much of `subprocess.Popen` as the tests need."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        said: str = "",
        first: Callable[[], object] | None = None,
        terminal: Path | None = None,
    ) -> None:
        """Start `zerosearch ARGUMENTS`.

        Args:
            arguments: the command's name and its words.
            env: the whole environment; None: of this process.
            cwd: where it runs.
            said: on standard input.
            first: called in the process, before the command.
            terminal: takes what it writes; None: files, for `communicate`.
        """
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("stdin", "stdout", "stderr")]
        self._streams[0].write_text(said)
        if terminal is not None:
            self._streams[1:] = [terminal, terminal]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        given = (
            list(arguments),
            dict(os.environ if env is None else env),
            cwd,
            self._streams,
            first,
        )
        self._process = context.Process(target=_enter, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """The exit code; below 0 the signal that ended it.

        Raises:
            TimeoutExpired: it is killed.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired("zerosearch", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = TIMEOUT_S) -> tuple[str, str]:
        """Wait; standard output and standard error."""
        self.wait(timeout)
        _, output, errors = (path.read_text() for path in self._streams)
        return output, errors


def run_forked(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    said: str = "",
    first: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `zerosearch ARGUMENTS` to its end; the arguments are those of `Forked`."""
    running = Forked(*arguments, env=env, cwd=cwd, said=said, first=first)
    output, errors = running.communicate()
    return subprocess.CompletedProcess(list(arguments), running.wait(), output, errors)


def _enter(
    arguments: list[str],
    environment: dict[str, str],
    cwd: Path,
    streams: list[Path],
    first: Callable[[], object] | None,
) -> None:
    for number, path in enumerate(streams):
        mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(path, mode), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # multiprocessing closed it
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if first is not None:
        first()
    main(arguments)
