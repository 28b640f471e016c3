"""The retrieval server as a user starts it: a process with a command line."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.helpers.configs import CONFIGS, ROOT
from tests.helpers.waiting import GUARD_S
from zerosearch.commands.retrieve import prepared_engine, serve
from zerosearch.data.corpus import read_corpus
from zerosearch.data.geography.facts import asset
from zerosearch.search.bm25 import BM25Search
from zerosearch.search.dense import DenseSearch
from zerosearch.search.retriever import RetrieverSearch
from zerosearch.serving.http import bind
from zerosearch.types import Document, SearchRequest


@contextmanager
def started(folder: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "zerosearch",
        "retrieve",
        f"hydra.run.dir={folder}",
        *overrides,
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(folder: Path, *overrides: str) -> tuple[int, str]:
    with started(folder, *overrides) as process:
        output, _ = process.communicate(timeout=4 * GUARD_S)
    return process.returncode, output


def url_of(process: subprocess.Popen[str]) -> str:
    """The address the server prints when it is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"search\.engine\.url=(http://[\d.]+:\d+)", line):
            return found[1]
    raise AssertionError("the server ended without an address")


async def ask_all(
    engine: RetrieverSearch | BM25Search, queries: list[str]
) -> list[tuple[Document, ...]]:
    requests = [
        SearchRequest(query=query, question="", golden_answers=(), top_k=5) for query in queries
    ]
    return [r.documents for r in await asyncio.gather(*map(engine.search, requests))]


def test_over_http_the_documents_are_those_of_bm25_in_process(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the server needs zerosearch[retriever]")
    corpus = asset("corpus.jsonl.gz")
    passages = read_corpus(corpus)[::8]
    queries = [p.title for p in passages] + [p.text for p in passages[::4]] + ["zeppelin", ""]
    with started(tmp_path, "port=0") as process:
        url = url_of(process)
        client = RetrieverSearch(url, max_concurrency=64)
        asyncio.run(client.check())  # whoever reads the address may connect
        over_http = asyncio.run(ask_all(client, queries))
        in_process = asyncio.run(ask_all(BM25Search(corpus), queries))
        assert len(queries) > 600
        assert over_http == in_process
        assert all(over_http[: len(passages)])

        process.send_signal(signal.SIGTERM)
        assert process.wait(GUARD_S) == 0
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()


def test_a_corpus_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the server needs zerosearch[retriever]")
    code, output = run(tmp_path, "port=0", "search.engine.corpus=gone.jsonl")
    assert code == 1
    assert output.count("\n") == 1
    assert "search.engine.corpus=gone.jsonl does not exist (looked in" in output


# -- in this process, which is faster --------------------------------------------------------------


def config(folder: Path, *overrides: str) -> DictConfig:
    os.environ.setdefault("PROJECT_ROOT", str(ROOT))
    paths = [f"paths.log_dir='{folder}'", f"paths.output_dir='{folder}'"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("retrieve", overrides=[*paths, *overrides])


def test_the_default_is_bm25_for_this_machine_only(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    assert cfg.host == "127.0.0.1"
    engine = prepared_engine(cfg.search.engine)
    assert isinstance(engine, BM25Search)
    assert engine.passage_count == len(read_corpus(asset("corpus.jsonl.gz")))


def test_dense_search_is_one_override_away(tmp_path: Path) -> None:
    overrides = ["search=dense", "search.engine.model=no/such/model"]
    node = config(tmp_path, *overrides).search.engine
    assert node._target_.endswith(DenseSearch.__name__)
    pytest.importorskip("faiss", reason="dense search needs zerosearch[retriever]")
    with pytest.raises(ValueError, match=r"search\.engine\.model=no/such/model is not a folder"):
        prepared_engine(node)


def test_a_simulator_is_not_served_as_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"search: a simulator has no corpus .* give search=bm25"):
        serve(config(tmp_path, "search=simulated"))


def test_an_engine_without_a_corpus_is_not_served(tmp_path: Path) -> None:
    node = config(tmp_path, "search=retriever").search.engine
    with pytest.raises(ValueError, match=r"a RetrieverSearch has no corpus .* give search=bm25"):
        prepared_engine(node)


def test_an_address_that_is_taken_or_elsewhere_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: .*in use; stop .* another port="):
            bind("127.0.0.1", port)
    for host, port in (("192.0.2.1", 8001), ("127.0.0.1", 70_000), ("no.such.invalid", 8001)):
        with pytest.raises(ValueError, match=f"host={host} port={port}: .*give a host="):
            bind(host, port)


def test_nobody_can_connect_before_the_engine_is_ready() -> None:
    with bind("127.0.0.1", 0) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=GUARD_S)


def test_a_port_is_free_again_at_once() -> None:
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        address = bound.getsockname()
        with socket.create_connection(address), bound.accept()[0]:
            pass
    bind(*address).close()
