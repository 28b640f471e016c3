"""One HTTP call of a search server, with every way it can fail put in words.

One call is one attempt: retries and deadlines belong to `Attempts`. Shared by the engines that
speak plain HTTP; servers of language models have a client library of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from zerosearch.clients.attempts import ServerFailure
from zerosearch.clients.bounded_replies import UnusableReply
from zerosearch.clients.http_pool import CONNECT_TIMEOUT_S
from zerosearch.core.errors import InputError

T = TypeVar("T")
_MAX_SHOWN_CHARS = 300
_MAX_HEADER_CHARS = 64  # of a number or a date

# A line per request would be hundreds per policy step.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


async def call(
    client: httpx.AsyncClient,
    request: httpx.Request,
    *,
    endpoint: str,
    timeout_s: float,
    secrets: Sequence[str] = (),
) -> httpx.Response:
    """Send a request once and read the whole reply.

    Args:
        client: see `zerosearch.clients.http_pool.open_client`.
        request: built by that client.
        endpoint: who is named in a failure.
        timeout_s: bound of the whole call, the body included.
        secrets: never shown, also where the server repeats them.

    Returns:
        A reply with a 2xx status.

    Raises:
        ServerFailure: no reply or another status; transient where another attempt may succeed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.send(request)
    except TimeoutError:
        reason, transient = f"no reply within {timeout_s:.3g} s", True
    except UnusableReply as error:
        reason, transient = str(error), error.transient
    except Exception as error:  # whatever a reply makes the library raise is the reply's fault
        reason, transient = _explain(error)
    else:
        if response.is_success:
            return response
        raise _status_failure(endpoint, response, secrets)
    # Raised outside the handlers: a chained error would show the request, secrets included.
    raise ServerFailure(endpoint, one_line(reason, secrets), transient=transient)


def json_body(response: httpx.Response, *, endpoint: str, secrets: Sequence[str] = ()) -> Any:
    """The reply as JSON values.

    Raises:
        ServerFailure: it is not JSON; a gateway's page may be gone at the next attempt.
    """
    try:
        return response.json()
    except Exception:  # nested too deeply, a number too long, ..
        begins = one_line(response.text, secrets)[:80]
    reason = f"the reply is not JSON, it begins {begins!r}" if begins else "the reply is empty"
    raise ServerFailure(endpoint, reason, transient=True)


def understood(
    reply: Any,
    read: Callable[[Any], T],
    *,
    what: str,
    endpoint: str,
    secrets: Sequence[str] = (),
) -> T:
    """What a reply says.

    Args:
        reply: as it came, of any form.
        read: finds it there; whatever it raises is the reply's fault.
        what: the reply should be.
        endpoint: who is named in a failure.
        secrets: never shown.

    Raises:
        ServerFailure: `read` has raised; another attempt may bring a better reply.
    """
    try:
        return read(reply)
    except Exception as error:
        said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    reason = one_line(f"the reply is no {what}: {said}", secrets)
    raise ServerFailure(endpoint, reason, transient=True)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds the header Retry-After asks to wait: a number or an HTTP date (RFC 9110, 10.2.3).

    Returns:
        0 where the header is missing, unreadable or in the past.
    """
    value = next((v for name, v in headers.items() if name.lower() == "retry-after"), "").strip()
    if len(value) > _MAX_HEADER_CHARS:
        return 0.0
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # the latter at a year of many digits
        return 0.0


def one_line(text: str, secrets: Sequence[str] = ()) -> str:
    """Text from a server, fit for a message: one line, of bounded length, without secrets."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    # Cut before the white space is joined: a page may be megabytes long.
    text = " ".join(text[: 4 * _MAX_SHOWN_CHARS].split())
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + " ..."


def checked_url(field: str, url: str) -> str:
    """A URL without trailing slash that is safe to show.

    Raises:
        InputError: it is no http(s) URL, or it holds what may be a secret.
    """
    text = str(url).strip()
    if "@" in text or "?" in text or "#" in text:
        raise InputError(  # not shown: it may hold a key
            f"{field}: the URL holds a user name, a password, a query or a fragment; give "
            "http://HOST:PORT/PATH, and put a key into an environment variable"
        )
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port, or brackets, that are none
        parts, is_url = urlsplit(""), False
    if not is_url:
        raise InputError(f"{field}={url!r} is no URL; give one such as http://HOST:PORT/PATH")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def key_from_env(variable: str) -> str:
    """The key an environment variable holds; empty where it is unset.

    Raises:
        InputError: no HTTP header may hold it; the key is not shown.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"environment variable {variable}: the key holds characters that no HTTP header may "
            "have; set it again"
        )
    return key


def _explain(error: Exception) -> tuple[str, bool]:
    """What happened, and whether another attempt may help."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s; is the server running?", True
    if _is_certificate_error(error):
        return (
            f"its certificate is not trusted ({error}); set SSL_CERT_FILE to the file of the "
            "authority that signed it, or correct the URL"
        ), False
    if isinstance(error, httpx.ConnectError):
        return f"connection failed ({error}); is the server running?", True
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return f"the connection broke ({str(error) or type(error).__name__})", True
    return f"{type(error).__name__}: {error}", not isinstance(error, httpx.HTTPError)


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _status_failure(
    endpoint: str, response: httpx.Response, secrets: Sequence[str]
) -> ServerFailure:
    status = response.status_code
    said = one_line(response.text, secrets)
    reason = f"HTTP {status}" + (f" ({said})" if said else "")
    return ServerFailure(
        endpoint,
        reason,
        transient=status in (408, 429) or status >= 500,
        retry_after_s=retry_after_s(response.headers),
    )
