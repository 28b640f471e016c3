"""What our HTTP servers share: an address taken early, a run that ends when told to."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from typing import TYPE_CHECKING

from zerosearch.core.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

BACKLOG = 2048  # connections that wait to be accepted


def run_app(app: FastAPI, bound: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,  # Hydra's handlers print its messages
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,  # a client that reuses a connection must not find it closed
        timeout_graceful_shutdown=10,
    )
    uvicorn.Server(config).run(sockets=[bound])


def shown_address(bound: socket.socket) -> str:
    """HOST:PORT as a URL has it."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening: nobody connects before all is ready.

    Args:
        host: name or address of this machine.
        port: 0 lets the system choose.

    Raises:
        InputError: the address is not free, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named asyncio sends replies at once; else each waits for 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        remedy = "stop what runs there, or give another port="
        if getattr(error, "errno", None) != errno.EADDRINUSE:
            remedy = "give a host= of this machine and a port= from 1024 to 65535"
        raise InputError(f"host={host} port={port}: {error}; {remedy}") from error
    return bound


def exit_on_signals() -> None:
    """End without an error when told to stop."""
    # uvicorn ends its work first and then raises the signal again: being told to stop is no error.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
