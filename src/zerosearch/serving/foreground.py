"""Servers that run until one of them ends or the process is told to."""

from __future__ import annotations

import logging
import signal
import sys
import time
from types import FrameType

from zerosearch.core.errors import InputError
from zerosearch.serving.launch import running
from zerosearch.serving.process import ServerProcess
from zerosearch.serving.settings import ServerSettings

log = logging.getLogger(__name__)


def serve_until_told(settings: ServerSettings, override: str) -> None:
    """Run servers until one of them ends or this process is told to.

    Args:
        settings: what to run.
        override: what a training run is given to use them, up to the list of endpoints.

    Raises:
        InputError: a server cannot be started, or has ended.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has set Ctrl-C aside
        signal.signal(number, _exit)
    with running(settings, folder=None) as servers:
        endpoints = ",".join(server.command.endpoint for server in servers)
        log.info("train with: %s=[%s]", override, endpoints)
        ended = _first_to_end(servers)
        raise InputError(
            f"the server at {ended.command.endpoint} ended with exit code {ended.exit_code}; "
            "its output is above"
        )


def _first_to_end(servers: list[ServerProcess]) -> ServerProcess:
    while True:
        for server in servers:
            if server.exit_code is not None:
                return server
        time.sleep(0.5)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
