"""A small OpenAI-compatible server on 127.0.0.1 whose answers, and faults, a test writes."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: the peer sees a reset, not an end


@dataclass(kw_only=True, slots=True)
class Reply:
    """What the server sends; `body` as JSON, or as it is where it is bytes."""

    body: Any
    status: int = 200
    content_type: str = "application/json"
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    reset_after: int | None = None  # bytes of the body after which the connection is reset


def completion(
    text: str | None, *, delay_s: float = 0.0, finish_reason: str = "stop", tokens: int = 0
) -> Reply:
    """A chat completion with one choice; `tokens` are read and written ones together."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    body["choices"] = [choice]
    if tokens:
        body["usage"] = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    return Reply(body=body, delay_s=delay_s)


def documents(count: int, text: str = "text") -> str:
    """A proper reply of the simulator."""
    return "\n".join(f"Doc {number}: {text} {number}" for number in range(1, count + 1))


def failure(
    status: int, message: str = "as the test demands", *, headers: dict[str, str] | None = None
) -> Reply:
    """An error in OpenAI's form."""
    body = {"error": {"message": message, "type": "x", "code": status}}
    return Reply(status=status, body=body, headers=headers or {})


def in_turn(*replies: Reply) -> Callable[[Any], Reply]:
    """An `answer` that gives each reply once, then the last for ever."""
    left, lock = list(replies), threading.Lock()

    def answer(_: Any) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def self_signed_certificate(folder: Path) -> tuple[Path, Path]:
    """Certificate and key files for 127.0.0.1 that no authority has signed; needs openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


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
    """Context manager; `answer` maps the parsed chat request to a reply, called from any thread.

    `start` and `stop` may alternate: a server that is stopped breaks its connections, as one that
    is killed does, and comes back at the same address.
    """

    answer: Callable[[dict[str, Any]], Reply] = lambda _: completion("Doc 1: text")
    models: list[str] = field(default_factory=lambda: ["simulator-7b"])
    models_reply: Reply | None = None
    key: str | None = None  # without it in the request, HTTP 401
    certificate: tuple[Path, Path] | None = None  # speaks TLS with it
    port: int = 0  # 0: any free one
    received: list[Received] = field(default_factory=list)
    model_requests: int = 0  # of GET /models: checks and probes
    most_at_once: int = 0
    open_connections: int = 0

    def __enter__(self) -> OpenAIServer:
        self._lock = threading.Lock()
        self._at_once = 0
        self._sockets: set[socket.socket] = set()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_address[1]
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.tls = context
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        with self._lock:
            for connection in self._sockets:
                reset(connection)

    @property
    def url(self) -> str:
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/v1"

    def reply_to(self, received: Received) -> Reply:
        closing = self._closing
        with self._lock:
            self.received.append(received)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.answer(received.body)
            if closing.wait(reply.delay_s):
                raise ConnectionAbortedError("a killed server does not reply")
            return reply
        finally:
            with self._lock:
                self._at_once -= 1

    def add_connection(self, connection: socket.socket) -> None:
        with self._lock:
            self.open_connections += 1
            self._sockets.add(connection)

    def remove_connection(self, connection: socket.socket) -> None:
        with self._lock:
            self.open_connections -= 1
            self._sockets.discard(connection)

    def list_models(self) -> Reply:
        with self._lock:
            self.model_requests += 1
        data = [{"id": name, "object": "model", "created": 0} for name in self.models]
        reply = self.models_reply or Reply(body={"object": "list", "data": data})
        self._closing.wait(reply.delay_s)
        return reply


def reset(connection: socket.socket) -> None:
    """Break a connection as a killed process does."""
    with contextlib.suppress(OSError):  # already gone
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
        connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: tests cut connections on purpose."""


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open, so that pooling can be seen
        wbufsize = -1  # head and body in one packet: apart they wait for a delayed ACK

        def setup(self) -> None:
            super().setup()
            server.add_connection(self.connection)

        def finish(self) -> None:
            server.remove_connection(self.connection)
            super().finish()

        def do_GET(self) -> None:
            known = self.path == "/v1/models"
            self._send(self._refused() or (server.list_models() if known else _NO_PATH))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received = Received(
                body=body,
                headers={name.lower(): value for name, value in self.headers.items()},
                client=self.client_address,
            )
            known = self.path == "/v1/chat/completions"
            reply = server.reply_to(received) if known else _NO_PATH
            self._send(self._refused() or reply)

        def _refused(self) -> Reply | None:
            if server.key is None or self.headers["Authorization"] == f"Bearer {server.key}":
                return None
            return failure(401, "Invalid key")

        def _send(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: reply.reset_after])
            if reply.reset_after is not None:
                self.wfile.flush()
                reset(self.connection)
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test output clean."""

    return Handler


_NO_PATH = failure(404, "no such path")
