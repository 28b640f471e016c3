"""Servers of others: whatever they send is a failure of that call, and takes bounded memory."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any

import pytest

from tests.generation.vllm.test_server_generator import REPLY, run, synced
from tests.helpers.hostile_replies import (
    CLIENTS,
    HOSTILE,
    JSON,
    body,
    chat,
    drops,
    endless,
    packed,
)
from tests.helpers.policies import greedy
from tests.helpers.raw_server import RawServer, reply
from tests.helpers.waiting import GUARD_S, guarded
from zerosearch.clients import bounded_replies
from zerosearch.clients.bounded_replies import MAX_REPLY_BYTES
from zerosearch.clients.endpoints import CallFailure
from zerosearch.clients.http_failures import retry_after_s
from zerosearch.generation.vllm.client import VLLMServer
from zerosearch.types import SearchError, SearchRequest, SearchResult

EACH = pytest.mark.parametrize("client", list(CLIENTS.values()), ids=list(CLIENTS))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "secret-key")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


async def search(engine: Any, timeout_s: float = GUARD_S) -> SearchResult:
    fields = {"query": "capital of Peru", "question": "Which?", "golden_answers": ("Lima",)}
    return await engine.search(SearchRequest(**fields, top_k=1, timeout_s=timeout_s))


async def outcome(engine: Any, timeout_s: float = GUARD_S) -> SearchResult | SearchError:
    """What a run goes on from; anything else ends it."""
    try:
        return await search(engine, timeout_s)
    except SearchError as error:
        return error


@EACH
async def test_a_good_reply_is_read(client: Callable[..., Any]) -> None:
    with RawServer(lambda: [reply(body(), JSON)]) as server:
        assert "text" in (await search(client(server.url))).documents[0].text


@EACH
async def test_no_reply_raises_anything_else(client: Callable[..., Any]) -> None:
    sent, escaped = list[bytes](), dict[str, str]()
    with RawServer(lambda: sent[-1:]) as server, guarded():
        for count, (name, hostile) in enumerate(HOSTILE.items(), start=1):
            sent.append(hostile)
            engine = client(server.url)  # one that was asked before may know the server as down
            try:
                found = await outcome(engine, timeout_s=3.0)
            except Exception as error:
                escaped[name] = repr(error)
                continue
            assert len(server.requests) >= count
            assert len(str(found)) < 2000, f"{name}: not in bounded words"
            if isinstance(found, SearchResult):
                assert abs(found.cost_usd + found.tokens) < 1e9, name
    assert escaped == {}


def test_a_wait_that_cannot_be_read_is_none() -> None:
    for value in (
        f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT",
        f"Wed, {'9' * 20} Oct 2030 07:28:00 GMT",
        f"Wed, 21 Oct 2030 07:28:00 +{'9' * 20}",
        "9" * 5000,
        "Wed, , , ,",
    ):
        assert retry_after_s({"Retry-After": value}) == 0.0
    assert retry_after_s({"Retry-After": formatdate(4e9, usegmt=True)}) > 1e6


# --- bounds ---


@EACH
@pytest.mark.parametrize(
    "answer", [lambda: packed(1024), lambda: endless(b" " * 2**16)], ids=["bomb", "endless"]
)
async def test_a_reply_without_end_takes_bounded_memory(
    client: Callable[..., Any], answer: Callable[[], Iterable[bytes]]
) -> None:
    with RawServer(answer) as server, guarded():
        engine = client(server.url)
        tracemalloc.start()
        try:
            found = await outcome(engine)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert f"max_reply_bytes={MAX_REPLY_BYTES}" in str(found)
    assert most < 4 * MAX_REPLY_BYTES


@EACH
async def test_the_bound_is_that_of_the_setting(client: Callable[..., Any]) -> None:
    long = body(filler="x" * 3000)
    with RawServer(lambda: [reply(long, JSON)]) as server:
        bound = len(long)
        assert isinstance(await outcome(client(server.url, max_reply_bytes=bound)), SearchResult)
        found = await outcome(client(server.url, max_reply_bytes=bound - 1))
        assert f"max_reply_bytes={bound - 1}" in str(found)
    with pytest.raises(ValueError, match=r"max_reply_bytes=0: give"):
        client(server.url, max_reply_bytes=0)


@EACH
async def test_a_slow_reply_ends_at_the_deadline(client: Callable[..., Any]) -> None:
    with RawServer(drops) as server, guarded():
        found = await outcome(client(server.url), timeout_s=0.3)
    assert isinstance(found, SearchError)


async def test_many_long_replies_are_not_all_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded_replies, "_SHORT_BYTES", 2**16)
    monkeypatch.setattr(bounded_replies, "_LONG_AT_ONCE", 2)
    long = reply(body(filler="x" * 2**20), JSON)
    with RawServer(lambda: [long]) as server, guarded():
        engine = CLIENTS["retriever"](server.url)
        tracemalloc.start()
        try:
            found = await asyncio.gather(*(outcome(engine) for _ in range(32)))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert all(isinstance(each, SearchResult) for each in found)
    assert most < 16 * 2**20


# --- redirects ---


@EACH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_nothing_is_sent_to_where_a_redirect_leads(
    client: Callable[..., Any], status: int
) -> None:
    with RawServer(lambda: [reply(body(), JSON)]) as other:
        moved = reply(b"", f"Location: {other.url}/v1?key=1", status=f"{status} Moved")
        with RawServer(lambda: [moved]) as server:
            found = await outcome(client(server.url))
        assert other.requests == []
    assert f"it moved to {other.url}/v1; set the URL to that" in str(found)


async def test_a_key_that_a_server_repeats_in_a_redirect_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    moved = reply(b"", "Location: http://x/secret-key", status="307 Moved")
    for client in (chat, CLIENTS["web"]):
        with RawServer(lambda: [moved]) as server:
            assert "moved to http://x/***;" in str(await outcome(client(server.url)))


@EACH
async def test_no_cookie_of_a_server_is_kept(client: Callable[..., Any]) -> None:
    marked = reply(body(), JSON, "Set-Cookie: mark=1")
    with RawServer(lambda: [marked]) as server:
        engine = client(server.url.replace("127.0.0.1", "localhost"))
        for _ in range(3):
            assert isinstance(await outcome(engine), SearchResult)
        assert len(server.requests) == 3
        assert not any(b"cookie" in request.lower() for request in server.requests)


# --- vLLM servers that sample ---


def choice(**changes: Any) -> dict[str, Any]:
    return REPLY | {"choices": [REPLY["choices"][0] | changes]}


@pytest.mark.parametrize(
    "sent",
    [
        choice(token_ids=[10**9]),
        choice(token_ids=[-1]),
        choice(token_ids=["5"]),
        choice(token_ids=[5, 5], logprobs={"token_logprobs": [-1.0, -1.0]}),
        choice(token_ids=[5, 5]),
        choice(logprobs={"token_logprobs": [None]}),
        choice(logprobs=[]),
        REPLY | {"choices": []},
        REPLY | {"usage": None},
        REPLY | {"usage": {"prompt_tokens": 10**400}},
        {},
        [],
        None,
    ],
)
def test_a_completion_that_no_policy_samples_fails_in_words(sent: Any) -> None:
    with RawServer(lambda: [reply(json.dumps(sent).encode(), JSON)]) as server:
        generator, _ = synced(server.url)
        with pytest.raises(RuntimeError, match=r"generator=vllm_server: http://127"):
            run(generator.generate([1, 2, 3], greedy(1)))
        assert len(server.requests) == 3, "and is tried again"


async def test_no_reply_of_a_vllm_server_raises_anything_else() -> None:
    sent, escaped = list[bytes](), dict[str, str]()
    with RawServer(lambda: sent[-1:]) as sender, guarded():
        server = VLLMServer(sender.url, sync_timeout_s=1.0)
        asking: dict[str, Callable[[], Any]] = {
            "complete": lambda: server.complete("m", [1], {}, 3.0),
            "models": server.models,
            "tokenize": lambda: server.tokenize("m", "text"),
            "weight_version": server.weight_version,
            "workers": lambda: server.workers([]),
        }
        for name, hostile in HOSTILE.items():
            sent.append(hostile)
            for call, ask in asking.items():
                try:
                    escaped[f"{name}, {call}"] = repr(await ask())
                except CallFailure:
                    continue
                except Exception as error:
                    escaped[f"{name}, {call}"] = repr(error)
    assert escaped == {}
