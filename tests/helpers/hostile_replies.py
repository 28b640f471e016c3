"""Replies of servers that are broken or mean harm, by name; and the clients that get them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.helpers.raw_server import reply
from tests.helpers.simulated import simulated_search
from zerosearch.search.retriever import RetrieverSearch
from zerosearch.search.web import WebSearch

YEAR = "9" * 20
JSON = "Content-Type: application/json"
Search = Any  # an engine


def chat(url: str, **changes: Any) -> Search:
    usual = {"max_retries": 0, "max_outage_s": 0.0, "probe_interval_s": 0.01, "backoff_s": 0.0}
    return simulated_search([url], "m", **(usual | changes))


def retriever(url: str, **changes: Any) -> Search:
    return RetrieverSearch(url, **({"max_retries": 0, "backoff_s": 0.0} | changes))


def web(url: str, **changes: Any) -> Search:
    fixed = {"usd_per_query": 0.0, "max_queries": 10**9, "queries_per_second": 1e6}
    usual: dict[str, Any] = {"max_retries": 0, "backoff_s": 0.0} | fixed
    return WebSearch(base_url=url, **(usual | changes))


CLIENTS: dict[str, Callable[..., Search]] = {"chat": chat, "retriever": retriever, "web": web}


def bomb(mebibytes: int) -> Iterator[bytes]:
    """Gzip data of so many MiB of zeros, a kilobyte for each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    mebibyte = bytes(2**20)
    yield packer.compress(mebibyte) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(mebibyte) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(mebibytes - 1):
        yield block


def body(**changes: Any) -> bytes:
    """A reply that all clients read."""
    choice = {"message": {"content": "Doc 1: text"}, "finish_reason": "stop"}
    values = {
        "choices": [choice],
        "usage": {"total_tokens": 7, "completion_tokens": 3},
        "result": [[{"document": {"contents": '"t"\ntext'}}]],
        "organic": [{"title": "t", "snippet": "text"}],
    }
    return json.dumps(values | changes).encode()


def _packed(name: str, data: bytes) -> bytes:
    return reply(data, f"Content-Encoding: {name}")


# What makes some library, or some line of ours, raise what nobody expects of a reply.
HOSTILE: dict[str, bytes] = {
    "retry-after: a year of twenty digits": reply(
        b"", f"Retry-After: Wed, 21 Oct {YEAR} 07:28:00 GMT", status="503 Busy"
    ),
    "retry-after: a day of twenty digits": reply(
        b"", f"Retry-After: Wed, {YEAR} Oct 2030 07:28:00 GMT", status="429 Busy"
    ),
    "retry-after: a zone of twenty digits": reply(
        b"", f"Retry-After: Wed, 21 Oct 2030 07:28:00 +{YEAR}", status="429 Busy"
    ),
    "retry-after: no date": reply(b"", "Retry-After: Wed, , , , ,", status="503 Busy"),
    "retry-after: long": reply(b"", f"Retry-After: {'9' * 5000}", status="503 Busy"),
    "charset zlib": reply(b"no", "Content-Type: text/plain; charset=zlib", status="500 No"),
    "charset undefined": reply(b"no", "Content-Type: text/plain; charset=undefined"),
    "charset idna": reply(b"no" * 50, "Content-Type: text/plain; charset=idna", status="400 No"),
    "charset base64": reply(b"no", "Content-Type: text/plain; charset=base64", status="500 No"),
    "no reason that is text": b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    "status 999": reply(b"", status="999 What"),
    "status 000": reply(b"", status="000 What"),
    "status 101": reply(b"", "Upgrade: x", "Connection: Upgrade", status="101 Switching"),
    "status 204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "status 304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "redirect to no URL": reply(b"", "Location: http://[::1", status="307 Moved"),
    "redirect to a port": reply(b"", "Location: http://127.0.0.1:99999/", status="302 Moved"),
    "redirect in other bytes": reply(b"", "Location: http://\xe9\xff/", status="301 Moved"),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    "length of digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "chunk of digits": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n"
    ),
    "chunk of no number": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "header of a megabyte": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20 + b"\r\n\r\n{}",
    "ten thousand headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n{}",
    "header of zeros": b"HTTP/1.1 200 OK\r\nX: \x00\x00\r\nContent-Length: 2\r\n\r\n{}",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "nothing": b"",
    "cookies": reply(body(), *(f"Set-Cookie: c{n}={'x' * 3000}" for n in range(8))),
    "not gzip": _packed("gzip", b"no gzip"),
    "half of gzip": _packed("gzip", b"".join(bomb(1))[:500]),
    "brotli": _packed("br", b"\x0b\x02\x80hello\x03"),
    "zstd": _packed("zstd", b"(\xb5/\xfd$\x05)\x00\x00hello"),
    "gzip of gzip": _packed("gzip, gzip", b"".join(bomb(1))),
    "unknown encoding": _packed("x" * 3000, b"{}"),
    "empty": reply(b"", JSON),
    "no JSON": reply(b"<html>", JSON),
    "not UTF-8": reply(b'{"choices": "\xff\xfe"}', JSON),
    "half of UTF-16": reply(b"\xff\xfe{\x00", JSON),
    "deep JSON": reply(b"[" * 200_000, JSON),
    "deep objects": reply(b'{"choices":' * 100_000, JSON),
    "a number of 5,000 digits": reply(b'{"choices": ' + b"9" * 5000 + b"}", JSON),
    "null": reply(b"null", JSON),
    "a number": reply(b"1e999", JSON),
    "NaN": reply(b"NaN", JSON),
    "a list": reply(b"[[[]]]", JSON),
    "lists everywhere": reply(body(choices=[], result=[], organic=[]), JSON),
    "null everywhere": reply(body(choices=None, result=None, organic=None), JSON),
    "texts everywhere": reply(body(choices="x", result="x", organic="x"), JSON),
    "no message": reply(body(choices=[{}], result=[[{}]], organic=[{}]), JSON),
    "null within": reply(body(choices=[None], result=[[None]], organic=[None]), JSON),
    "tokens of 400 digits": reply(
        body(usage={"total_tokens": 10**400, "completion_tokens": 10**400}), JSON
    ),
    "tokens below zero": reply(body(usage={"total_tokens": -5, "completion_tokens": -1}), JSON),
    "usage of lists": reply(body(usage=[1, 2]), JSON),
    "reason of a list": reply(
        body(choices=[{"message": {"content": "Doc 1: x"}, "finish_reason": [{}]}]), JSON
    ),
    "model of half a character": reply(body(model="\ud800" * 300), JSON),
    "half characters": reply(
        body(
            choices=[{"message": {"content": "Doc 1: \ud800"}}],
            result=[[{"document": {"contents": "\udfff\n\ud800"}}]],
            organic=[{"title": "\ud800", "snippet": "\udfff"}],
        ),
        JSON,
    ),
    "an error of half a character": reply(
        json.dumps({"error": {"message": "\ud800", "type": [], "code": {}}}).encode(),
        JSON,
        status="400 Bad",
    ),
    "an error of a list": reply(b'{"error": [[[]]]}', JSON, status="500 No"),
    "an error as a number": reply(b'{"error": 5}', JSON, status="404 No"),
}
