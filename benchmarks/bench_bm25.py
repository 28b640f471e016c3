"""Queries per second of `BM25Search`, asked one at a time as a rollout asks them.

python benchmarks/bench_bm25.py --corpus corpus.jsonl.gz [--queries searches.jsonl.gz]
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

from zerosearch.data.corpus import read_corpus
from zerosearch.search.bm25 import BM25Search
from zerosearch.types import SearchRequest

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def main() -> int:
    """Print one line per quantity; without `--corpus` and the default corpus, skip."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--queries", type=Path, help="JSON lines with a `query` field")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--top-k", type=int, default=5)
    args = parser.parse_args()
    corpus = args.corpus or REAL_DATA / "corpus.jsonl.gz"
    if args.corpus is None and not corpus.is_file():
        print(f"skipped: no corpus at {corpus}; name one with --corpus")
        return 0

    started = time.perf_counter()
    passages = read_corpus(corpus)
    read_s = time.perf_counter() - started
    engine = BM25Search(passages)
    started = time.perf_counter()
    engine.prepare()
    build_s = time.perf_counter() - started

    queries = _queries(args.queries, corpus) or [p.title or p.text[:80] for p in passages]
    queries = list(itertools.islice(itertools.cycle(queries), args.count))
    started = time.perf_counter()
    latencies_ms = asyncio.run(_ask_all(engine, queries, args.top_k))
    total_s = time.perf_counter() - started

    print(f"passages     {len(passages)}")
    print(f"read_s       {read_s:.2f}")
    print(f"build_s      {build_s:.2f}")
    print(f"queries      {len(queries)} (top {args.top_k})")
    print(f"queries/s    {len(queries) / total_s:.0f}")
    print(f"latency_ms   median {statistics.median(latencies_ms):.2f}, max {max(latencies_ms):.2f}")
    return 0


def _queries(path: Path | None, corpus: Path) -> list[str]:
    """Recorded queries: of the file named, else of the log that lies beside the corpus, if any."""
    path = path or corpus.with_name("search_logs.jsonl.gz")
    if not path.is_file():
        return []
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        return [json.loads(line)["query"] for line in file]


async def _ask_all(engine: BM25Search, queries: list[str], top_k: int) -> list[float]:
    latencies_ms = []
    for query in queries:
        request = SearchRequest(query=query, question=query, golden_answers=(), top_k=top_k)
        latencies_ms.append((await engine.search(request)).latency_s * 1e3)
    return latencies_ms


if __name__ == "__main__":
    sys.exit(main())
