"""What ended a call of openai's client, sent through aiohttp, that brought no HTTP status."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import aiohttp

from zerosearch.clients.endpoints import FailureKind
from zerosearch.clients.http_pool import CONNECT_TIMEOUT_S


def explain(error: BaseException) -> tuple[FailureKind, str]:
    """Kind and words, from the cause under the libraries' layers."""
    causes = list(_chain(error))
    for cause in reversed(causes):
        if isinstance(cause, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
            return "unreachable", "the connection broke before the reply was complete"
        if isinstance(cause, aiohttp.ClientResponseError):
            return "unreachable", "what it sends is not HTTP; correct the port"
        if isinstance(cause, aiohttp.ClientError):
            continue  # wraps what follows here
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "certificate", (
                f"its certificate is not trusted ({cause.verify_message}); set SSL_CERT_FILE to "
                "the file of the authority that signed it, or correct the URL"
            )
        if isinstance(cause, ConnectionRefusedError):
            return "unreachable", "connection failed: refused; is the server running?"
        if isinstance(cause, socket.gaierror):
            return "unreachable", f"connection failed: the host is not known ({cause.strerror})"
        if isinstance(cause, TimeoutError):
            return "unreachable", f"no connection within {CONNECT_TIMEOUT_S:g} s"
        if isinstance(cause, ConnectionError):
            return "unreachable", "the connection broke before the reply was complete"
    return "unreachable", f"connection failed ({causes[-1]})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
