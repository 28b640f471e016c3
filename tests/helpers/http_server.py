"""A small HTTP server on 127.0.0.1 whose replies, faults included, a test writes."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True, slots=True)
class Sent:
    """What the server sends; `body` as JSON, or as it is where it is bytes."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    reset_after: int | None = None  # bytes of the body, after which the connection is reset


@dataclass(kw_only=True, slots=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    client: tuple[str, int]  # address and port: one per connection


@dataclass
class HttpServer:
    """Context manager; `answer` is called from any thread."""

    answer: Callable[[Asked], Sent]
    tls: ssl.SSLContext | None = None
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self) -> HttpServer:
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._at_once = 0
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if self.tls:
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
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
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._server.server_address[1]}"

    def reply_to(self, asked: Asked) -> Sent:
        with self._lock:
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        sent = self.answer(asked)
        self._closing.wait(sent.delay_s)
        with self._lock:
            self._at_once -= 1
        return sent


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: tests cut connections on purpose."""


def _handler(server: HttpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open, so that pooling can be seen
        wbufsize = -1  # head and body in one packet: apart they wait for a delayed ACK

        def do_GET(self) -> None:
            self._serve(None)

        def do_HEAD(self) -> None:
            self._serve(None)

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _serve(self, body: Any) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            sent = server.reply_to(
                Asked(
                    method=self.command,
                    path=self.path,
                    headers=headers,
                    body=body,
                    client=self.client_address,
                )
            )
            content = sent.body if isinstance(sent.body, bytes) else json.dumps(sent.body).encode()
            self.send_response(sent.status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in sent.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content[: sent.reset_after])
            if sent.reset_after is not None:
                self.wfile.flush()
                linger_none = struct.pack("ii", 1, 0)  # closing then resets
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test output clean."""

    return Handler
