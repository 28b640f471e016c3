"""The retrieval server: an engine over a corpus behind Search-R1's `/retrieve`.

Queries of concurrent requests are answered together, in one thread. The queue is bounded: a server
that is asked for more than it can do says so at once (503 with Retry-After), where a growing queue
would answer everybody too late.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, NotNegative, check_least
from zerosearch.data.corpus import join_contents
from zerosearch.search.batching import Batcher, QueueFull
from zerosearch.search.retrieval import Hit, Retriever, retrieve_mixed
from zerosearch.serving.gate import Gate
from zerosearch.serving.http import HttpLimits

RETRY_AFTER_S = 1


@dataclass(kw_only=True, slots=True, frozen=True)
class RetrievalLimits(HttpLimits):
    """What one server takes upon itself, beside what all have (`HttpLimits`).

    Args:
        max_batch: most queries answered together.
        max_wait_ms: longest wait of a query for others to join it. Under load batches fill by
            themselves; a wait helps an engine that costs as much for one query as for many.
        max_queued: most queries that wait.
        max_queries: most queries of one request.
        max_query_chars: longest query.
        max_topk: most documents per query.
        default_topk: documents per query where a request does not say.
        max_body_bytes: of a request.

    Raises:
        InputError: a number is out of range.
    """

    max_batch: Count = 64
    max_wait_ms: NotNegative = 0.0
    max_queued: Count = 4096
    max_queries: Count = 1024
    max_query_chars: Count = 10_000
    max_topk: Count = 100
    default_topk: Count = 3
    max_body_bytes: Count = 8 * 2**20

    def __post_init__(self) -> None:
        HttpLimits.__post_init__(self)
        for name in (
            "max_batch", "max_queued", "max_queries", "max_query_chars", "max_topk", "default_topk"
        ):  # fmt: skip
            check_least("limits", name, getattr(self, name), 1)
        check_least("limits", "max_wait_ms", self.max_wait_ms, 0)
        for lower, upper in (("max_queries", "max_queued"), ("default_topk", "max_topk")):
            if getattr(self, lower) > getattr(self, upper):
                raise InputError(
                    f"limits.{lower}={getattr(self, lower)} is above "
                    f"limits.{upper}={getattr(self, upper)}; lower the one or raise the other"
                )


class RetrieveRequest(BaseModel):
    """The body of `POST /retrieve`, with the names of Search-R1."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


def make_app(
    engine: Retriever,
    limits: RetrievalLimits,
    *,
    key: str | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The application that serves a prepared engine.

    Args:
        engine: called from one thread at a time.
        limits: bounds of batches, queue and requests.
        key: that clients must send; None: anybody may ask.
        hosts: see `Gate`.
    """
    started = time.monotonic()
    held: dict[str, Batcher[tuple[str, int], list[Hit]]] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        held["batcher"] = Batcher(
            lambda asked: retrieve_mixed(engine, asked),
            max_batch=limits.max_batch,
            max_wait_s=limits.max_wait_ms / 1e3,
            max_queued=limits.max_queued,
        )
        yield
        await held.pop("batcher").close()

    # Without the pages of documentation: they load scripts from another host.
    app = FastAPI(title="ZeroSearch retriever", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, limits=limits, key=key, hosts=hosts, error=_error_of)

    @app.exception_handler(RequestValidationError)
    async def in_a_sentence(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _sentence(error)}, status_code=422)

    @app.post("/retrieve")
    async def retrieve(request: RetrieveRequest) -> JSONResponse:
        top_k = _checked_topk(request, limits)
        asked = [(query, top_k) for query in request.queries if query.strip()]
        try:
            found = iter(await held["batcher"].submit(asked))
        except QueueFull as error:
            detail = f"{error}; ask again in {RETRY_AFTER_S} s"
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            raise HTTPException(503, detail, headers=headers) from error
        rows = [next(found) if query.strip() else [] for query in request.queries]
        item = _scored if request.return_scores else _plain
        return JSONResponse({"result": [[item(hit) for hit in row] for row in rows]})

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse(
            {
                "status": "ok",
                "engine": engine.name,
                "passages": engine.passage_count,
                "queued": held["batcher"].queued,
                "max_queued": limits.max_queued,
                "uptime_s": round(time.monotonic() - started, 1),
            }
        )

    return app


def _error_of(_: int, message: str) -> dict[str, str]:
    return {"detail": message}


def _checked_topk(request: RetrieveRequest, limits: RetrievalLimits) -> int:
    """The number of documents per query.

    Raises:
        HTTPException: 422, the request is beyond the server's limits, or a query is no text.
    """
    top_k = limits.default_topk if request.topk is None else request.topk
    if not 1 <= top_k <= limits.max_topk:
        raise HTTPException(422, f"topk={top_k}: give 1 to {limits.max_topk}")
    if len(request.queries) > limits.max_queries:
        raise HTTPException(
            422,
            f"queries: {len(request.queries)} in one request; send at most {limits.max_queries}",
        )
    for number, query in enumerate(request.queries):
        if len(query) > limits.max_query_chars:
            raise HTTPException(
                422,
                f"queries[{number}] has {len(query)} characters; send at most "
                f"{limits.max_query_chars}",
            )
        try:
            query.encode()
        except UnicodeEncodeError as error:  # in a batch it would fail the queries of others too
            raise HTTPException(
                422, f"queries[{number}] holds half a character at {error.start}; repair it"
            ) from error
    return top_k


def _plain(hit: Hit) -> dict[str, Any]:
    passage = hit.passage
    return {"id": passage.id, "contents": join_contents(passage.title, passage.text)}


def _scored(hit: Hit) -> dict[str, Any]:
    return {"document": _plain(hit), "score": hit.score}


def _sentence(error: RequestValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    place = ".".join(path) if path and first["type"] != "json_invalid" else "the body"
    return (
        f"{place}: {first['msg']}; send JSON such as "
        '{"queries": ["who wrote Hamlet"], "topk": 3, "return_scores": true}'
    )
