"""A small OpenAI-compatible server on 127.0.0.1 whose answers a test writes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True, slots=True)
class Reply:
    """What the server sends; `body` as JSON, or as it is where it is bytes."""

    body: Any
    status: int = 200
    content_type: str = "application/json"
    delay_s: float = 0.0


def completion(text: str | None, *, delay_s: float = 0.0) -> Reply:
    """A chat completion with one choice."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Reply(body=body, delay_s=delay_s)


def failure(status: int, message: str = "as the test demands") -> Reply:
    """An error in OpenAI's form."""
    return Reply(status=status, body={"error": {"message": message, "type": "x", "code": status}})


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(kw_only=True, slots=True)
class Received:
    """One chat request as it arrived."""

    body: dict[str, Any]
    headers: dict[str, str]
    client: tuple[str, int]  # address and port: one per connection

    @property
    def prompt(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass
class OpenAIServer:
    """Context manager; `answer` maps the parsed chat request to a reply, called from any thread."""

    answer: Callable[[dict[str, Any]], Reply] = lambda _: completion("Doc 1: text")
    models: list[str] = field(default_factory=lambda: ["simulator-7b"])
    models_reply: Reply | None = None
    received: list[Received] = field(default_factory=list)
    most_at_once: int = 0
    open_connections: int = 0

    def __enter__(self) -> OpenAIServer:
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._at_once = 0
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def reply_to(self, received: Received) -> Reply:
        with self._lock:
            self.received.append(received)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        reply = self.answer(received.body)
        self._closing.wait(reply.delay_s)
        with self._lock:
            self._at_once -= 1
        return reply

    def count_connection(self, change: int) -> None:
        with self._lock:
            self.open_connections += change

    def list_models(self) -> Reply:
        data = [{"id": name, "object": "model", "created": 0} for name in self.models]
        reply = self.models_reply or Reply(body={"object": "list", "data": data})
        self._closing.wait(reply.delay_s)
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: tests cut connections on purpose."""


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open, so that pooling can be seen
        wbufsize = -1  # head and body in one packet: apart they wait for a delayed ACK

        def setup(self) -> None:
            super().setup()
            server.count_connection(1)

        def finish(self) -> None:
            super().finish()
            server.count_connection(-1)

        def do_GET(self) -> None:
            known = self.path == "/v1/models"
            self._send(server.list_models() if known else failure(404, "no such path"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received = Received(
                body=body,
                headers={name.lower(): value for name, value in self.headers.items()},
                client=self.client_address,
            )
            known = self.path == "/v1/chat/completions"
            self._send(server.reply_to(received) if known else failure(404, "no such path"))

        def _send(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test output clean."""

    return Handler
