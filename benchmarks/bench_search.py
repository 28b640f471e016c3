"""What the simulated search adds to its servers' time: processor time, makespan, memory, cache.

Run:  python benchmarks/bench_search.py [--trajectories 320] [--turns 4] [--scale 1.0] [--help]

A server in a process of its own answers after a log-normal time with median 1 s and 99th
percentile 10 s (times --scale), drawn from the position of the search, so that the ideal makespan
is known: the longest sum over the turns of one trajectory. Targets: under 2 ms of processor time a
search, under 5% over the ideal makespan, under 200 MB for 1,000 searches in flight, under 1 ms for
a cache hit. The bare client, on its usual transport and on ours, shows what is its own share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import re
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import openai

from zerosearch.clients.chat import ChatClient
from zerosearch.clients.per_loop import PerLoop
from zerosearch.core.seeding import derive_random
from zerosearch.search.cache import build_search
from zerosearch.search.engine import SearchEngine
from zerosearch.simulator.engine import SimulatedSearch
from zerosearch.types import SearchRequest

SIGMA = math.log(10) / 2.326  # of a log-normal whose 99th percentile is ten times its median
TOP_K = 5
POSITION = re.compile(rb"of trajectory (\d+) turn (\d+)")
DOCUMENTS = "\n".join(f"Doc {i}: {'word ' * 29}end." for i in range(1, TOP_K + 1))


def latency_s(trajectory: int, turn: int, scale: float) -> float:
    """What the server takes for one search."""
    return scale * derive_random("latency", trajectory, turn).lognormvariate(0.0, SIGMA)


# -- the server -----------------------------------------------------------------------------------


def serve(connection: Connection, scale: float) -> None:
    """Answer chat completions until killed; says its port first."""
    message = {"role": "assistant", "content": DOCUMENTS}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 500, "completion_tokens": 220, "total_tokens": 720}
    body = json.dumps({"id": "1", "model": "m", "choices": [choice], "usage": usage}).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reply = head.encode() + body

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", request, re.IGNORECASE)
                prompt = await reader.readexactly(int(length[1]) if length else 0)
                found = POSITION.findall(prompt)
                if found:
                    await asyncio.sleep(latency_s(int(found[-1][0]), int(found[-1][1]), scale))
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        server = await asyncio.start_server(answer, sock=listener, backlog=4096)
        connection.send(listener.getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class Server:
    """The server's process; a context manager that gives its URL."""

    def __init__(self, scale: float) -> None:
        self._here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(there, scale), daemon=True)

    def __enter__(self) -> str:
        self._process.start()
        return f"http://127.0.0.1:{self._here.recv()}/v1"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


# -- the clients ----------------------------------------------------------------------------------

Search = Callable[[int, int], Awaitable[object]]  # of a trajectory's turn


def request_of(trajectory: int, turn: int) -> SearchRequest:
    return SearchRequest(
        query=f"query of trajectory {trajectory} turn {turn}",
        question="Which city is the capital of the country where the question was asked?",
        golden_answers=("Lima", "Ciudad de los Reyes"),
        top_k=TOP_K,
        seed=1000 * trajectory + turn,
        timeout_s=600.0,
    )


def engine_of(url: str, concurrency: int) -> SimulatedSearch:
    """Without time limits: this measures the layer, not its patience."""
    return SimulatedSearch(
        ChatClient([url], "m", max_concurrency=concurrency, attempt_timeout_s=600.0)
    )


def through(engine: SearchEngine) -> Search:
    return lambda trajectory, turn: engine.search(request_of(trajectory, turn))


def bare(url: str, concurrency: int, *, aiohttp: bool) -> Search:
    """The client library alone, with the same prompts."""
    kind = openai.DefaultAioHttpClient if aiohttp else openai.DefaultAsyncHttpxClient
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=concurrency, max_keepalive_connections=concurrency
    )
    clients = PerLoop(
        lambda: openai.AsyncOpenAI(
            base_url=url,
            api_key="EMPTY",
            max_retries=0,
            http_client=kind(limits=limits, timeout=None),
        ),
        openai.AsyncOpenAI.close,
    )
    engine = engine_of(url, concurrency)

    async def search(trajectory: int, turn: int) -> object:
        prompt = engine.prompt.render(request_of(trajectory, turn), noisy=False)
        reply = await (await clients.get()).post(
            f"{url}/chat/completions",
            cast_to=httpx.Response,
            body={"model": "m", "messages": [{"role": "user", "content": prompt}]},
        )
        return json.loads(reply.content)

    return search


async def play(search: Search, trajectories: int, turns: int) -> tuple[float, float]:
    """Seconds of wall clock and of this process's processor time."""

    async def trajectory(number: int) -> None:
        for turn in range(turns):
            await search(number, turn)

    await search(-1, 0)  # the first call loads and connects
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(trajectory(number) for number in range(trajectories)))
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_overhead(args: argparse.Namespace) -> None:
    """Processor time a search, and makespan against the ideal one."""
    ideal = max(
        sum(latency_s(number, turn, args.scale) for turn in range(args.turns))
        for number in range(args.trajectories)
    )
    searches = args.trajectories * args.turns
    print("client                      CPU ms a search  makespan s  over the ideal")
    with Server(args.scale) as url:
        clients = {"SimulatedSearch": through(engine_of(url, args.trajectories))}
        if args.bare:
            clients["bare, its aiohttp transport"] = bare(url, args.trajectories, aiohttp=True)
            clients["bare, its usual transport"] = bare(url, args.trajectories, aiohttp=False)
        for name, search in clients.items():
            wall, cpu = asyncio.run(play(search, args.trajectories, args.turns))
            print(
                f"{name:27} {1000 * cpu / searches:15.2f}  {wall:10.2f}  {wall / ideal - 1:13.1%}",
                flush=True,
            )


def measure_memory(args: argparse.Namespace) -> None:
    """Resident memory that searches in flight add."""
    with Server(scale=0.0) as fast, Server(scale=args.scale) as slow:
        asyncio.run(play(through(engine_of(fast, args.in_flight)), 1, 1))  # what is loaded once
        before = resident_mib()

        async def in_flight() -> float:
            search = through(engine_of(slow, args.in_flight))
            searches = asyncio.gather(*(search(number, 0) for number in range(args.in_flight)))
            most = before
            while not searches.done():
                most = max(most, resident_mib())
                await asyncio.sleep(0.05)
            return most

        added = asyncio.run(in_flight()) - before
    print(f"memory of {args.in_flight} searches in flight: {added * 1.048576:.0f} MB")


def measure_cache(args: argparse.Namespace) -> None:
    """Time of an answer that is kept."""
    with Server(scale=0.0) as url, tempfile.TemporaryDirectory() as folder:
        engine = build_search(engine_of(url, 64), cache="use", cache_folder=Path(folder) / "cache")

        async def hits() -> list[float]:
            requests = [request_of(number, 0) for number in range(args.in_flight)]
            await asyncio.gather(*(engine.search(request) for request in requests))
            results = [await engine.search(request) for request in requests]
            assert all(result.cached for result in results)
            return sorted(1000 * result.latency_s for result in results)

        times = asyncio.run(hits())
    print(
        f"cache hit: median {statistics.median(times):.2f} ms, "
        f"99th percentile {times[int(0.99 * len(times))]:.2f} ms"
    )


def resident_mib() -> float:
    """Resident memory of this process; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("trajectories", 320), ("turns", 4), ("in-flight", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scale", type=float, default=1.0, help="of the server's times")
    parser.add_argument(
        "--bare", action=argparse.BooleanOptionalAction, default=True, help="the client alone too"
    )
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one descriptor a connection
    measure_memory(args)
    measure_cache(args)
    measure_overhead(args)


if __name__ == "__main__":
    main()
