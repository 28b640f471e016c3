"""Our servers under attack: who may ask, how much, how long, and over how many connections."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.waiting import GUARD_S, wait_until
from zerosearch.serving.http import bind, is_local, known_hosts, needed_key
from zerosearch.serving.log_limit import FewOfAKind

pytest.importorskip("uvicorn", reason="the servers need zerosearch[retriever]")

from tests.helpers.engines import ScriptedEngine
from tests.helpers.our_servers import (
    BODIES,
    JSON_HEAD,
    PATHS,
    Gated,
    connected,
    flood,
    get,
    is_closed,
    post,
    running,
)
from zerosearch.data.corpus import Passage
from zerosearch.search.retrieval import Hit
from zerosearch.serving import http

KEY = "open sesame"
EACH = pytest.mark.parametrize("kind", ["retriever", "policy"])


class Waiting(ScriptedEngine):
    async def search(self, request: Any) -> Any:
        await asyncio.sleep(3600)


# --- who may ask ---


@EACH
def test_all_but_health_needs_the_key_where_there_is_one(kind: str, tmp_path: Path) -> None:
    with running(kind, tmp_path, key=KEY) as url:
        for path in ("/openapi.json", "/v1/models", "/no/such/path", "//health", "/health/"):
            assert get(url, path).status_code == 401, path
            assert get(url, path, Authorization="Bearer guess").status_code == 401
        assert get(url, "/health").status_code == 200
        for scheme in ("Bearer", "bearer", "BEARER"):
            said = {"Authorization": f"{scheme} {KEY}"}
            assert post(url, kind, headers=said).status_code == 200, scheme
        for wrong in (KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", "Bearer \xe9".encode()):
            reply = post(url, kind, headers={"Authorization": wrong})
            assert reply.status_code == 401 and KEY not in reply.text
            assert reply.headers["www-authenticate"] == "Bearer"


@EACH
def test_a_page_in_a_browser_cannot_ask(kind: str, tmp_path: Path) -> None:
    with running(kind, tmp_path) as url:
        port = url.rpartition(":")[2]
        for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", ""):
            assert post(url, kind, headers={"Host": host}).status_code == 403, host
            assert get(url, "/health", Host=host).status_code == 403
        for host in (f"localhost:{port}", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}"):
            assert post(url, kind, headers={"Host": host}).status_code == 200, host
        good = post(url, kind).request.content
        for simple in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            reply = post(url, kind, json=None, content=good, headers={"Content-Type": simple})
            assert reply.status_code == 415 and "application/json" in reply.text
        assert post(url, kind, json=None, content=good).status_code == 415
        charset = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert post(url, kind, json=None, content=good, headers=charset).status_code == 200


def test_the_network_is_answered_with_a_key_or_on_purpose(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.delenv("NO_KEY", raising=False)
    with bind("127.0.0.1", 0) as here, bind("0.0.0.0", 0) as everywhere:
        assert is_local(here) and not is_local(everywhere)
        assert known_hosts(here) and known_hosts(everywhere) is None
        assert needed_key(here, None) is None
        assert needed_key(everywhere, "A_KEY") == KEY
        with pytest.raises(ValueError, match=r"host=0\.0\.0\.0: .*api_key_env=NAME.*allow_anyone"):
            needed_key(everywhere, None)
        for bound in (here, everywhere):
            with pytest.raises(ValueError, match=r"api_key_env=NO_KEY: .* is not set"):
                needed_key(bound, "NO_KEY", allow_anyone=True)
        assert needed_key(everywhere, None, allow_anyone=True) is None
        assert "everybody on the network" in caplog.text


@pytest.mark.parametrize("command", ["retrieve", "serve"])
@pytest.mark.slow
def test_a_command_refuses_the_network_in_a_sentence(command: str) -> None:
    arguments = [sys.executable, "-m", "zerosearch", command, "host=0.0.0.0", "port=0"]
    arguments += ["model=quickstart"] if command == "serve" else []
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "allow_anyone=true" in said and "Traceback" not in said


# --- how much, and for how long ---


@EACH
def test_a_long_body_is_refused_before_it_is_read(kind: str, tmp_path: Path) -> None:
    with running(kind, tmp_path, max_body_bytes=100_000) as url:
        head = (
            f"POST {PATHS[kind]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        for framing, piece in (
            ("Content-Length: 400000000", b"x" * 2**16),
            ("Transfer-Encoding: chunked", b"10000\r\n" + b"x" * 2**16 + b"\r\n"),
        ):
            sent = 0
            with (
                connected(url, f"{head}{framing}\r\n\r\n".encode()) as connection,
                pytest.raises(ConnectionError),
            ):
                while sent < 400_000_000:
                    connection.sendall(piece)
                    sent += len(piece)
            assert sent < 50_000_000, "the rest is not read"
        reply = post(url, kind, json={"queries": ["x" * 100_000]})
        assert reply.status_code == 413 and "longer than 100000 bytes" in reply.text


def test_bodies_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.serving.gate._MOST_HELD_BYTES", 150_000)
    head = f"POST /retrieve HTTP/1.1\r\n{JSON_HEAD}".encode()
    with running("retriever", tmp_path) as url:
        with connected(url, head + b"Content-Length: 200000\r\n\r\n" + b" " * 100_000):
            wait_until(lambda: post(url, "retriever", json={"x": " " * 90_000}).status_code == 503)
        wait_until(lambda: post(url, "retriever", json={"x": " " * 90_000}).status_code == 422)


@EACH
@pytest.mark.parametrize(
    "sent",
    ["", "GET /health HTTP/1.1\r\nHo", f"POST / HTTP/1.1\r\n{JSON_HEAD}Content-Length: 9\r\n\r\n"],
    ids=["nothing", "head", "body"],
)
def test_an_unfinished_request_ends_at_the_deadline(kind: str, sent: str, tmp_path: Path) -> None:
    with (
        running(kind, tmp_path, receive_timeout_s=0.2) as url,
        connected(url, sent.encode()) as connection,
    ):
        assert is_closed(connection)


def test_drops_do_not_put_the_deadline_off(tmp_path: Path) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        running("retriever", tmp_path, receive_timeout_s=0.2) as url,
        connected(url, whole) as connection,
    ):
        assert b"200 OK" in connection.recv(65536)
        with pytest.raises(ConnectionError):
            for _ in range(2000):
                connection.sendall(b"G")
                time.sleep(0.01)


def test_a_deadline_is_not_one_of_answers_or_of_idle_connections(tmp_path: Path) -> None:
    engine = Gated()
    with running("retriever", tmp_path, engine=engine, receive_timeout_s=0.2) as url:
        engine.gate.clear()
        timer = threading.Timer(0.4, engine.gate.set)
        timer.start()
        with httpx.Client(trust_env=False, timeout=GUARD_S) as client:
            reply = client.post(f"{url}/retrieve", json=BODIES["retriever"])
            assert reply.status_code == 200
            stream = reply.extensions["network_stream"]
            time.sleep(0.4)
            again = client.get(f"{url}/health")
            assert again.status_code == 200
            assert again.extensions["network_stream"] is stream, "the connection is reused"
        timer.join()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
def test_who_takes_no_bytes_of_a_reply_is_left(tmp_path: Path) -> None:
    queries = {"queries": ["x"] * 1000, "topk": 100}

    class Long(Gated):
        def retrieve_batch(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
            hit = Hit(passage=Passage(id="0", title="", text="x" * 20_000), score=1.0)
            return [[hit]] * len(queries)

    with running("retriever", tmp_path, engine=Long(), receive_timeout_s=1.0) as url:
        body = httpx.Request("POST", url, json=queries).content
        head = f"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with connected(url, f"{head}Content-Type: application/json\r\n\r\n".encode() + body) as one:
            time.sleep(3.0)
            one.settimeout(GUARD_S)
            received = 0
            with pytest.raises(ConnectionError):
                while piece := one.recv(2**20):
                    received += len(piece)
                raise ConnectionError("closed")
            assert received < 20_000_000


# --- how many ---


@EACH
def test_unfinished_connections_make_room(kind: str, tmp_path: Path) -> None:
    with running(kind, tmp_path, max_connections=20) as url, ExitStack() as stack:
        held = [
            stack.enter_context(connected(url, b"GET /health HTTP/1.1\r\n")) for _ in range(100)
        ]
        assert get(url, "/health").status_code == 200
        assert post(url, kind).status_code == 200
        assert is_closed(held[0]), "the oldest one"


def test_requests_in_progress_are_not_given_up_for_new_ones(tmp_path: Path) -> None:
    engine = Gated()
    engine.gate.clear()
    replies: list[int] = []
    with running("retriever", tmp_path, engine=engine, max_connections=3, max_batch=1) as url:

        def ask() -> None:
            replies.append(post(url, "retriever").status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(engine.asked) == 1)
        time.sleep(0.3)
        with connected(url) as refused:
            assert b"503 Service Unavailable" in refused.recv(65536)
        engine.gate.set()
        for thread in threads:
            thread.join()
        assert replies == [200, 200, 200]


def test_descriptors_are_left_for_the_work() -> None:
    for descriptors in (1024, 4096, 65_536):
        backlog, connections = http._shares(descriptors, 10**6)
        assert backlog + connections + 128 <= descriptors
        assert backlog >= 200 and connections >= 500
    assert http._shares(65_536, 100) == (2048, 100)


@pytest.mark.slow
def test_a_flood_of_connections_costs_neither_health_nor_disk(tmp_path: Path) -> None:
    flood(tmp_path / "log", 3000)


def test_a_message_that_comes_often_is_written_a_few_times(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr("zerosearch.serving.log_limit.time.monotonic", lambda: now)
    logger = logging.getLogger("test.flood")
    logger.addFilter(FewOfAKind())
    for number in range(1001):
        if number == 1000:
            now += 61
        logger.warning("request %d is bad", number)
    logger.warning("another kind")
    assert caplog.messages == [
        *(f"request {number} is bad" for number in range(5)),
        "request 1000 is bad (995 more like it were left out)",
        "another kind",
    ]


# --- who hangs up ---


def test_a_completion_nobody_waits_for_ends(tmp_path: Path) -> None:
    with running("policy", tmp_path, engine=Waiting([])) as url:

        def runs() -> int:
            return get(url, "/health").json()["running"]

        with pytest.raises(httpx.ReadTimeout):
            post(url, "policy", timeout=0.5)
        wait_until(lambda: runs() == 0)


def test_queries_nobody_waits_for_are_not_searched(tmp_path: Path) -> None:
    engine = Gated()
    engine.gate.clear()
    with running("retriever", tmp_path, engine=engine, max_batch=1) as url:
        threads = [threading.Thread(target=post, args=(url, "retriever"))]
        threads[0].start()
        wait_until(lambda: engine.asked == ["x"])
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                post(url, "retriever", json={"queries": ["in vain"]}, timeout=0.2)
        time.sleep(0.2)
        engine.gate.set()
        threads[0].join()
        assert post(url, "retriever", json={"queries": ["last"]}).status_code == 200
    assert engine.asked == ["x", "last"]
