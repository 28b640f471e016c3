"""Requests per second and latency of the retrieval server, asked by concurrent clients over HTTP.

python benchmarks/bench_retriever.py [--clients 64] [--count 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from zerosearch.data.corpus import read_corpus
from zerosearch.data.geography.facts import asset
from zerosearch.search.retriever import RetrieverSearch
from zerosearch.types import SearchRequest


def main() -> int:
    """Start a server over the geography corpus, ask it, and print one line per quantity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--top-k", type=int, default=5)
    args, _ = parser.parse_known_args()
    if not all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))):
        print("skipped: the server needs pip install 'zerosearch[retriever]'")
        return 0

    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "zerosearch", "retrieve", "port=0", f"hydra.run.dir={folder}"]
        server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        try:
            url = _url_of(server)
            asyncio.run(_bench(url, args.clients, args.count // 4, args.top_k))  # warm up
            total_s, latencies_ms = asyncio.run(_bench(url, args.clients, args.count, args.top_k))
        finally:
            server.terminate()
            server.wait()
    latencies_ms.sort()
    print(f"requests     {args.count} by {args.clients} clients (top {args.top_k})")
    print(f"requests/s   {args.count / total_s:.0f}")
    for percent in (50, 99):
        print(f"p{percent}_ms       {latencies_ms[len(latencies_ms) * percent // 100]:.1f}")
    return 0


def _url_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"search\.engine\.url=(\S+?)(\x1b|$)", line):
            return found[1]
    raise RuntimeError("the server did not start; its error is above")


async def _bench(url: str, clients: int, count: int, top_k: int) -> tuple[float, list[float]]:
    """Seconds of all requests together, and the latency of each in milliseconds."""
    passages = read_corpus(asset("corpus.jsonl.gz"))
    queries = iter([passages[7 * i % len(passages)].title for i in range(count)])
    engine = RetrieverSearch(url, max_concurrency=clients)
    await engine.check()

    async def ask_on(queries: Iterator[str]) -> list[float]:
        latencies_ms = []
        for query in queries:
            request = SearchRequest(query=query, question="", golden_answers=(), top_k=top_k)
            latencies_ms.append((await engine.search(request)).latency_s * 1e3)
        return latencies_ms

    started = time.perf_counter()
    latencies = await asyncio.gather(*(ask_on(queries) for _ in range(clients)))
    return time.perf_counter() - started, [each for client in latencies for each in client]


if __name__ == "__main__":
    sys.exit(main())
