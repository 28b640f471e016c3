"""A running simulator server: started, awaited, and ended together with its workers."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import httpx

from zerosearch.core.errors import InputError
from zerosearch.serving.guard import GRACE_S
from zerosearch.serving.settings import ServerCommand

POLL_S = 0.2
REPORT_EVERY_S = 60.0
LOG_TAIL_LINES = 25
GUARD = [sys.executable, "-m", "zerosearch.serving.guard"]

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line per request


def answers(endpoint: str) -> bool:
    """Whether a vLLM server is up and has its model loaded."""
    url = f"{endpoint.removesuffix('/v1')}/health"
    try:
        # Straight to the server: a proxy of the environment has no business here. No body is read.
        with httpx.stream("GET", url, timeout=2.0, trust_env=False) as reply:
            return reply.is_success
    except httpx.HTTPError:
        return False


class ServerProcess:
    """One running server; ended by `stop`, and when this process ends, however it ends.

    Args:
        command: what to run.
        name: the model, for messages.
        log_file: takes the server's output; None: it goes where this process's goes.
    """

    def __init__(self, command: ServerCommand, name: str, log_file: Path | None) -> None:
        self.command = command
        self.name = name
        self.log_file = log_file
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return at once."""
        output: IO[bytes] | None = None
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            output = self.log_file.open("ab")  # a resumed run goes on in its folder
        try:
            self._guard = subprocess.Popen(
                [*GUARD, *self.command.arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env=self.command.environment,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def exit_code(self) -> int | None:
        """How the server ended; None while it runs."""
        assert self._guard is not None, "start() comes first"
        return self._guard.poll()

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once the server answers.

        Raises:
            InputError: it ended, or did not answer in time; with the end of its output.
        """
        started = reported = time.monotonic()
        while not answers(self.command.endpoint):
            now = time.monotonic()
            if (code := self.exit_code) is not None:
                what = f"ended with exit code {code} before it answered"
                raise InputError(f"the server of {self.name} {what}{self._tail()}")
            if now - started > timeout_s:
                what = f"did not answer at {self.command.endpoint} within {timeout_s:.3g} s"
                remedy = "; raise simulator.server.ready_timeout_s if it only needs longer"
                raise InputError(f"the server of {self.name} {what}{remedy}{self._tail()}")
            if now - reported > REPORT_EVERY_S:
                reported = now
                log.info("waiting for %s for %.0f s%s", self.name, now - started, self._where())
            time.sleep(POLL_S)
        log.info(
            "%s answers at %s after %.0f s%s",
            self.name,
            self.command.endpoint,
            time.monotonic() - started,
            self._where(),
        )

    def begin_stop(self) -> None:
        """Let the server end; returns at once."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()  # the guard does the rest, as it would if this process died

    def stop(self) -> None:
        """End the server and its workers; returns when they are gone."""
        self.begin_stop()
        if self._guard is None:
            return
        try:
            self._guard.wait(GRACE_S + 10)
        except subprocess.TimeoutExpired:
            log.error("the server of %s (process %d) does not end", self.name, self._guard.pid)

    def _where(self) -> str:
        return f" (its output: {self.log_file})" if self.log_file else ""

    def _tail(self) -> str:
        if self.log_file is None:
            return "; see its output above"
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"; the end of {self.log_file}:", *lines[-LOG_TAIL_LINES:]])
