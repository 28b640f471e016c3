"""Stands in for `vllm serve`: answers /health, has a worker, writes down what it was given.

fake_vllm.py MODEL --host H --port P ... [--record FILE] [--fail-after S] [--never-ready]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--record")
    parser.add_argument("--fail-after", type=float)
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    known, others = parser.parse_known_args()
    if known.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-c", WORKER])
    print("loading", known.model, flush=True)
    if known.record:
        facts = {
            "pids": [os.getpid(), worker.pid],
            "model": known.model,
            "others": others,
            "environment": dict(os.environ),
        }
        with open(f"{known.record}.part", "w") as file:
            json.dump(facts, file)
        os.replace(f"{known.record}.part", known.record)
    if known.fail_after is not None:
        threading.Timer(known.fail_after, fail).start()
    if known.never_ready:
        time.sleep(3600)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output clean."""

    class Server(HTTPServer):
        address_family = socket.AF_INET6 if ":" in known.host else socket.AF_INET

    Server((known.host, known.port), Handler).serve_forever()


def fail() -> None:
    print("CUDA out of memory, says the test", flush=True)
    os._exit(3)


if __name__ == "__main__":
    main()
