"""Our servers as their commands run them, in a thread of this process, and who asks them."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.answering.subjects import make_subject
from tests.helpers.waiting import GUARD_S, wait_until
from zerosearch.answering import app as policy_app
from zerosearch.data.corpus import Passage
from zerosearch.search.retrieval import Hit
from zerosearch.serving import http, retriever_app
from zerosearch.serving.http import HttpLimits, bind, known_hosts

JSON_HEAD = "Host: localhost\r\nContent-Type: application/json\r\n"


class Gated:
    """An engine over a corpus that answers while `gate` is set, and notes the queries."""

    name = "gated"
    passage_count = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []

    def prepare(self) -> None:
        return None

    def retrieve_batch(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        self.asked += queries
        self.gate.wait(GUARD_S)
        return [[Hit(passage=Passage(id="0", title="", text="x" * 100), score=1.0)]] * len(queries)


@contextmanager
def running(
    kind: str, folder: Path, *, key: str | None = None, engine: Any = None, **limits: Any
) -> Iterator[str]:
    """One of our servers, as its command runs it."""
    with bind("127.0.0.1", 0) as bound:
        hosts = known_hosts(bound)
        if kind == "retriever":
            made: HttpLimits = retriever_app.RetrievalLimits(**limits)
            app = retriever_app.make_app(engine or Gated(), made, key=key, hosts=hosts)
        else:
            made = policy_app.AnsweringLimits(**limits)
            subject = make_subject(folder, engine, ask=1.0 if engine else 0.5)
            app = policy_app.make_app(
                subject, made, name="policy", formatter="zerosearch", key=key, hosts=hosts
            )
        server = http.server_of(app, bound, made)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


PATHS = {"retriever": "/retrieve", "policy": "/v1/chat/completions"}
BODIES: dict[str, dict[str, Any]] = {
    "retriever": {"queries": ["x"]},
    "policy": {"messages": [{"role": "user", "content": "colour 1"}]},
}


def post(url: str, kind: str, **changes: Any) -> httpx.Response:
    options: dict[str, Any] = {"json": BODIES[kind], "timeout": GUARD_S, "trust_env": False}
    return httpx.post(url + PATHS[kind], **(options | changes))


def get(url: str, path: str, **headers: str) -> httpx.Response:
    return httpx.get(url + path, headers=headers, timeout=GUARD_S, trust_env=False)


def connected(url: str, sent: bytes = b"") -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    made = socket.create_connection((host, int(port)), timeout=GUARD_S)
    made.sendall(sent)
    return made


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except ConnectionError:
        return True


# A program: a retriever that may open 1,024 files; prints its port.
_FEW_FILES = """
import resource, sys, logging
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
logging.basicConfig(level=logging.INFO)
from tests.helpers.our_servers import Gated
from zerosearch.serving.http import bind, run_app
from zerosearch.serving.retriever_app import RetrievalLimits, make_app
bound = bind("127.0.0.1", 0)
bound.listen(2048)
print(bound.getsockname()[1], flush=True)
limits = RetrievalLimits()
run_app(make_app(Gated(), limits), bound, limits)
"""


def flood(log: Path, connections: int) -> None:
    """Open so many unfinished connections to a server that may open 1,024 files.

    It goes on answering, and its log stays small.

    Args:
        log: file of what the server says.
        connections: more than it may have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with log.open("w") as file:
        command = [sys.executable, "-c", _FEW_FILES]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        wait_until(lambda: get(url, "/health").status_code == 200)
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(connected(url, b"GET /health HTTP/1.1\r\n"))
            for _ in range(20):
                assert get(url, "/health").status_code == 200
    finally:
        server.terminate()
        server.wait(GUARD_S)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert log.stat().st_size < 100_000, "its log was flooded"
