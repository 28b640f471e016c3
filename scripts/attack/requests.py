"""Malformed requests to our servers: each is refused in words, and they answer throughout."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.attack.tally import Tally, leave
from tests.helpers.our_servers import BODIES, JSON_HEAD, PATHS, connected, get, running

VALUES: list[Any] = [None, True, -1, 0, 10**400, 1e308, "", "\ud83d", "\x00", "x" * 5000, [], {}]
VALUES += [[[]], {"a": {}}, [None], "</information>", "\u202e", [1, "x"], {"role": "user"}]
NAMES = ["queries", "topk", "messages", "model", "stream", "n", "max_tokens", "temperature", "stop"]
NAMES += ["role", "content", "return_scores", "query", "seed", "tools", "x", "", "\ud83d", "type"]
BYTES = [b"[" * 999, b"\xff", b"9" * 5000, b'"', b"\0", b"{}"]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PRI"]
METHODS += ["get", "G\x00T", "", "POST POST", "\xff"]
TARGETS = ["/", "/retrieve", "/v1/chat/completions", "/v1/models", "/health", "//", "/%00"]
TARGETS += [
    "/../../etc/passwd",
    "/v1/%2e%2e/x",
    "*",
    "http://x/retrieve",
    "/?" + "q" * 9000,
    "/\xe9",
]
VERSIONS = ["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", "http/1.1", "", "HTTP/1.1 x"]
HEADS = ["Content-Length: -1", "Content-Length: x", "Content-Length: 3\r\nContent-Length: 4"]
HEADS += ["Transfer-Encoding: x", "Transfer-Encoding: chunked\r\nContent-Length: 4", "X: a\rb", "X"]
HEADS += ["Host: evil.example", "Host: a\r\nHost: b", "Expect: 100-continue", ": a", "X: \x00"]
HEADS += [
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Content-Type: text/plain",
    "Range: bytes=9-",
]
HEADS += [f"X: {'x' * 70_000}", "X: y\r\n" * 300, "Cookie: \xff", "Authorization: Bearer \xe9"]


def attack(folder: Path, *, requests: int = 2000, seed: int = 0) -> Tally:
    """Send half of the requests to each server."""
    tally = Tally(what="malformed requests to servers")
    for kind in PATHS:
        draw = random.Random(f"{seed} {kind}")
        with running(kind, leave(folder / kind), receive_timeout_s=1.0) as url:
            for number in range(requests // 2):
                make = draw.choice(MAKERS)
                with tally.attempt(f"{kind}, request {number}, {make.__name__}"):
                    _check(_sent(url, make(draw, kind)))
                if number % 20 == 0:
                    assert get(url, "/health").status_code == 200, "/health does not answer"
    return tally


def _of_body(draw: random.Random, kind: str) -> bytes:
    """JSON of another shape."""
    made = {**BODIES[kind], **{draw.choice(NAMES): _value(draw) for _ in range(draw.randint(1, 3))}}
    value = made if draw.random() < 0.8 else _value(draw)
    return _post(kind, json.dumps(value).encode())


def _of_text(draw: random.Random, kind: str) -> bytes:
    """A good body with other bytes."""
    good = bytearray(json.dumps(BODIES[kind]).encode())
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(good))
        good[at : at + draw.randint(0, 3)] = draw.choice(
            [b"[" * 999, b"\xff", b"9" * 5000, b'"', b"\0"]
        )
    return _post(kind, bytes(good))


def _of_head(draw: random.Random, kind: str) -> bytes:
    """Another line, or other headers."""
    line = " ".join(draw.choice(each) for each in (METHODS, TARGETS, VERSIONS))
    if draw.random() < 0.5:
        line = f"POST {PATHS[kind]} HTTP/1.1"
    heads = [JSON_HEAD.strip(), *draw.sample(HEADS, draw.randint(0, 3))]
    return "\r\n".join([line, *heads, "", "{}"]).encode("latin-1")


def _of_bytes(draw: random.Random, kind: str) -> bytes:
    """Whatever."""
    return draw.randbytes(draw.randint(1, 3000))


MAKERS: list[Callable[[random.Random, str], bytes]] = [_of_body, _of_text, _of_head, _of_bytes]


def _value(draw: random.Random) -> Any:
    value = draw.choice(VALUES)
    for _ in range(draw.choice([0, 0, 1, 3, 50])):
        value = [value] if draw.random() < 0.5 else {draw.choice(NAMES): value}
    return value


def _post(kind: str, body: bytes) -> bytes:
    head = f"POST {PATHS[kind]} HTTP/1.1\r\n{JSON_HEAD}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _sent(url: str, request: bytes) -> bytes:
    """All that comes back; nothing where the connection is closed without an answer."""
    found = b""
    try:
        with connected(url, request) as connection:
            connection.shutdown(socket.SHUT_WR)
            while (piece := connection.recv(65536)) and len(found) < 10**6:
                found += piece
    except ConnectionError:  # it hangs up on what it does not want to read
        pass
    return found


def _check(answer: bytes) -> None:
    codes = [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3})", answer[:200])]
    assert not [code for code in codes if code >= 500], answer[:300]
