"""Replies that unpack to more than there is, of as many searches as a training has at a time."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.helpers.hostile_replies import CLIENTS, bomb
from tests.helpers.raw_server import RawServer
from tests.helpers.waiting import GUARD_S
from zerosearch.clients.bounded_replies import MAX_REPLY_BYTES
from zerosearch.clients.endpoints import CallFailure
from zerosearch.core.memory import PeakMemory, give_back_heap
from zerosearch.generation.vllm.client import VLLMServer
from zerosearch.types import SearchError, SearchRequest

AT_ONCE = 320
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
NOTHING_MORE_S = 3.0  # of a server that keeps the connection


async def _search(engine: Any, timeout_s: float) -> Any:
    fields = {"query": "capital of Peru", "question": "Which?", "golden_answers": ("Lima",)}
    return await engine.search(SearchRequest(**fields, top_k=1, timeout_s=timeout_s))


def _asking(client: str) -> Callable[[str], Callable[[float], Any]]:
    def of_vllm(url: str) -> Callable[[float], Any]:
        server = VLLMServer(url, sync_timeout_s=1.0)
        return lambda timeout_s: server.complete("m", [1], {}, timeout_s)

    def of_search(url: str) -> Callable[[float], Any]:
        settings = {} if client == "web" else {"max_concurrency": AT_ONCE}
        engine = CLIENTS[client](url, **settings)
        return lambda timeout_s: _search(engine, timeout_s)

    return of_vllm if client == "vllm" else of_search


def _chunks(blocks: Iterable[bytes]) -> list[bytes]:
    return [HEAD, *(b"%x\r\n%b\r\n" % (len(block), block) for block in blocks)]


def gibibyte() -> list[bytes]:
    """1.1 MB of gzip."""
    return _chunks(bomb(1024))


def nearly_the_bound() -> list[bytes]:
    """7 KB that unpack to one MiB less than a reply may have, and no end."""
    return _chunks([b"".join(bomb(MAX_REPLY_BYTES // 2**20 - 1))])


def after_its_end() -> list[bytes]:
    """A whole reply, and 64 MiB after the end of its gzip data."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return _chunks([packer.compress(b"{}") + packer.flush(), *[bytes(2**16)] * 1024])


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "secret-key")


@pytest.mark.slow
@pytest.mark.parametrize("client", [*CLIENTS, "vllm"])
@pytest.mark.parametrize(
    ("pieces", "at_once"),
    [(gibibyte, AT_ONCE), (nearly_the_bound, AT_ONCE), (after_its_end, 8)],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_as_many_replies_as_a_training_asks_for_take_bounded_memory(
    client: str, pieces: Callable[[], list[bytes]], at_once: int
) -> None:
    turns, peak = [0], PeakMemory()

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.001)
            turns[0] += 1

    sent = pieces()  # not by 320 threads

    def answer() -> Iterator[bytes]:
        yield from sent
        if pieces is nearly_the_bound:
            time.sleep(NOTHING_MORE_S)

    with RawServer(answer) as server:
        ask = _asking(client)(server.url)
        give_back_heap()
        peak.reset()
        before = peak.bytes()
        watching = asyncio.create_task(watch())
        found = await asyncio.gather(
            *(ask(GUARD_S) for _ in range(at_once)), return_exceptions=True
        )
        watching.cancel()
        asked = len(server.requests)
    assert asked >= at_once
    assert all(isinstance(each, SearchError | CallFailure) for each in found), found[0]
    assert peak.bytes() - before < 600 * 2**20
    # eight replies are read within fewer; one turn is a loop that stands until all is read
    assert turns[0] > (100 if at_once > 8 else 20), "others go on meanwhile"
