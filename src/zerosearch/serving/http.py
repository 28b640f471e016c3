"""What our HTTP servers share: an address taken early, bounds, a run that ends when told to."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from zerosearch.clients.http_failures import key_from_env
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, Positive, check_least

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

BACKLOG = 2048  # connections that wait to be accepted
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_OWN_DESCRIPTORS = 128  # files, the index, connections to other servers
_MOST_DESCRIPTORS = 65_536
_MOST_HEAD_BYTES = 16_384

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class HttpLimits:
    """What a server takes from the network.

    Args:
        max_connections: most that are open; beyond it, the one that has been without a request for
            longest makes room, or else the new one is refused (503). No more than the process has
            file descriptors for.
        receive_timeout_s: within which a request has to arrive whole, and a reply to be taken.
        max_body_bytes: of a request; a longer one is refused (413).

    Raises:
        InputError: a number is out of range.
    """

    max_connections: Count = 1024
    receive_timeout_s: Positive = 30.0
    max_body_bytes: Count = 1_000_000

    def __post_init__(self) -> None:
        check_least("limits", "max_connections", self.max_connections, 1)
        check_least("limits", "max_body_bytes", self.max_body_bytes, 1)
        if not self.receive_timeout_s > 0:
            raise InputError(
                f"limits.receive_timeout_s={self.receive_timeout_s}: give seconds above 0"
            )


def run_app(app: FastAPI, bound: socket.socket, limits: HttpLimits) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    server_of(app, bound, limits).run(sockets=[bound])


def server_of(app: FastAPI, bound: socket.socket, limits: HttpLimits) -> uvicorn.Server:
    """The server of an application at an address, not running yet."""
    import uvicorn

    from zerosearch.serving.connections import bounded_protocol
    from zerosearch.serving.log_limit import limit_logs

    limit_logs("asyncio", "uvicorn.error", "zerosearch.serving.connections")
    backlog, connections = _shares(_descriptors(), limits.max_connections)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # whoever takes no bytes of a reply is left
        wait_ms = int(limits.receive_timeout_s * 1000)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wait_ms)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(connections, limits.receive_timeout_s),
        ws="none",
        h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
        log_config=None,  # Hydra's handlers print its messages
        log_level="warning",
        access_log=False,
        backlog=backlog,
        timeout_keep_alive=30,  # a client that reuses a connection must not find it closed
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(config)


def _descriptors() -> int:
    """File descriptors that this process may have, as many as it can get."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _shares(descriptors: int, max_connections: int) -> tuple[int, int]:
    """Backlog and open connections; asyncio accepts a whole backlog before it counts."""
    backlog = min(BACKLOG, descriptors // 4)
    return backlog, max(1, min(max_connections, descriptors - backlog - _OWN_DESCRIPTORS))


def needed_key(
    bound: socket.socket, api_key_env: str | None, *, allow_anyone: bool = False
) -> str | None:
    """The key that clients must send, from the environment; None where anybody may ask.

    Args:
        bound: the address; one that others can reach needs a key.
        api_key_env: the variable, or None.
        allow_anyone: others need no key.

    Raises:
        InputError: the variable is not set, or others could ask without a key.
    """
    if api_key_env is None:
        if not is_local(bound):
            host = bound.getsockname()[0]
            if not allow_anyone:
                raise InputError(
                    f"host={host}: everybody who reaches this machine could ask; set "
                    "api_key_env=NAME, an environment variable with the key that clients are to "
                    "send, or allow_anyone=true"
                )
            log.warning("host=%s allow_anyone=true: everybody on the network may ask", host)
        return None
    if not (key := key_from_env(api_key_env)):
        raise InputError(
            f"api_key_env={api_key_env}: this environment variable is not set; put the key "
            "that clients are to send into it"
        )
    return key


def is_local(bound: socket.socket) -> bool:
    """Whether an address is reached from this machine alone."""
    return ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def known_hosts(bound: socket.socket) -> tuple[str, ...] | None:
    """Names under which a local server is asked; None: any.

    A page in a browser may ask this machine through a name of its own that it lets lead here (DNS
    rebinding); the header Host then holds that name.
    """
    return (*LOOPBACK_NAMES, bound.getsockname()[0]) if is_local(bound) else None


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
