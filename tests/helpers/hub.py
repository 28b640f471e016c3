"""A stand-in of the hub: the part of its HTTP interface that the hub's own libraries ask.

It serves data sets that a test lays down as files, with the headers that a download is checked
against, and can refuse, damage or break off what is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow
import pyarrow.parquet

from tests.helpers.http_server import Asked, HttpServer, Sent

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[2]


@dataclass
class Hub:
    """What the stand-in serves, and how it fails."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository -> path -> bytes
    refused: dict[str, int] = field(default_factory=dict)  # repository -> 401 or 403
    damaged: set[str] = field(default_factory=set)  # paths whose bytes change on the way
    broken: dict[str, int] = field(default_factory=dict)  # path -> bytes until the line breaks
    downloads: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)  # that were sent

    def answer(self, asked: Asked) -> Sent:
        parts = unquote(asked.path.partition("?")[0]).strip("/").split("/")
        api = parts[0] == "api"
        self.tokens.add(asked.headers.get("authorization", "").removeprefix("Bearer "))
        repo = "/".join(parts[1 + api : 3 + api])
        if status := self.refused.get(repo):
            return Sent(status=status, headers={"X-Error-Code": "GatedRepo"})
        if repo not in self.files:
            return Sent(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if api:
            return self._listing(repo, parts[4:])
        return self._file(repo, "/".join(parts[5:]), asked)

    def _listing(self, repo: str, rest: list[str]) -> Sent:
        if rest[:1] == ["tree"]:
            return Sent(body=[_entry(path, content) for path, content in self.files[repo].items()])
        siblings = [{"rfilename": path} for path in self.files[repo]]
        return Sent(body={"id": repo, "sha": COMMIT, "siblings": siblings, "private": False})

    def _file(self, repo: str, path: str, asked: Asked) -> Sent:
        content = self.files[repo].get(path)
        headers = {"X-Repo-Commit": COMMIT}
        if content is None:
            return Sent(status=404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if asked.method == "HEAD":
            return Sent(body=content, headers=headers)
        self.downloads.append(path)
        sent = bytes(reversed(content)) if path in self.damaged else content
        start, status = 0, 200
        if (wanted := asked.headers.get("range")) is not None:
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(sent) - 1}/{len(sent)}"
        stop = self.broken.get(path)
        return Sent(body=sent[start:], status=status, headers=headers, reset_after=stop)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}


@contextmanager
def serving(hub: Hub):
    """The address of a running stand-in."""
    with HttpServer(hub.answer) as server:
        yield server.url


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=16)
    return sink.getvalue().to_pybytes()


def run_with_hub(
    url: str | None, home: Path, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A program of ours in a process of its own, whose hub is at `url` and whose caches are empty.

    Args:
        url: of the stand-in; None: a port that nobody listens to.
        home: takes the caches of the hub's libraries.
        command: module, then overrides.
        environment: further variables.
    """
    own = {
        "HF_ENDPOINT": url or "http://127.0.0.1:9",
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_DATASETS_CACHE", "HF_TOKEN")}
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=kept | own,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
