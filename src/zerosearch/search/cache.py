"""Search results kept on disk: paid for once, shared by processes, replayed with the network off.

Wraps any engine that says what determines its results. A result is kept as the engine returned it,
also with fewer documents than asked for or with problems noted: the engine has bounded its own
attempts, and the trajectory went on with just this result. A search that failed is not kept.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Positive
from zerosearch.search.engine import Cacheable, Checkable, SearchEngine
from zerosearch.search.store import StoreError, TextStore, holds_store
from zerosearch.types import Document, SearchError, SearchRequest, SearchResult

CACHE_VERSION = 1  # raise it when what an entry holds changes: older ones are then not found
MODES = ("none", "use", "replay")
_SHOWN_QUERY_CHARS = 100
_SPENT = ("latency_s", "cached", "attempts", "tokens", "cost_usd")  # not part of what was found


def build_search(
    engine: SearchEngine,
    *,
    cache: Literal["none", "use", "replay"] = "none",
    cache_folder: str | Path = "search_cache",
    cache_gib: Positive = 10.0,
) -> SearchEngine:
    """The engine of a run, with or without a cache around it.

    Args:
        engine: who answers.
        cache: "none"; "use" (answers that are not kept are asked of the engine, then kept); or
            "replay" (only kept answers, the engine is never asked).
        cache_folder: where answers are kept; runs and processes may share it.
        cache_gib: bound of that folder; the least recently used answers go first.

    Raises:
        InputError: an argument is out of range, or the engine's results cannot be cached.
    """
    if cache not in MODES:
        raise InputError(f"search.cache={cache!r}: choose one of {', '.join(MODES)}")
    if cache == "none":
        return engine
    return CachedSearch(engine, cache_folder, replay=cache == "replay", size_gib=cache_gib)


class CachedSearch:
    """A `SearchEngine` that asks another one only for what it has not kept.

    A kept result comes with `cached` set and nothing spent: no attempts, tokens or dollars. Of
    equal requests under way at the same time one is asked, and the others share its result.

    Args:
        engine: who answers; has `cache_key`.
        folder: where results are kept; opened on first use.
        replay: never ask the engine; a search whose result is not kept fails.
        size_gib: bound of the folder.

    Raises:
        InputError: the engine has no `cache_key`, or the size is out of range.
    """

    def __init__(
        self, engine: SearchEngine, folder: str | Path, *, replay: bool, size_gib: float = 10.0
    ) -> None:
        if not isinstance(engine, Cacheable):
            raise InputError(
                f"search.cache: {type(engine).__name__} does not say what determines its results; "
                "give it a method `cache_key(request)`, or set search.cache=none"
            )
        if not size_gib > 0:
            raise InputError(f"search.cache_gib={size_gib}: give a size above 0")
        self.engine = engine
        self.folder = Path(folder).expanduser()
        self.replay = replay
        self.size_gib = size_gib
        # Called when the engine is about to be asked; what it raises, the search raises.
        self.before_asking: Callable[[], None] | None = None
        self._store: TextStore | None = None
        self._asked: dict[str, asyncio.Future[SearchResult]] = {}

    async def search(self, request: SearchRequest) -> SearchResult:
        """The kept result, else the engine's.

        Looked up on the event loop, not in a thread: it takes far less than a millisecond, and the
        order in which trajectories get their answers stays a function of the program alone.

        Raises:
            SearchError: the engine failed, the cache is damaged, or a replay has no such result.
        """
        started = time.perf_counter()
        described = describe(self.engine, request)
        key = hashlib.sha256(described.encode()).hexdigest()
        with self._damage_as_search_error():
            kept = self._opened().get(key)
            found = None if kept is None else _read_result(kept)
        if found is None and self.replay:
            raise SearchError(f"cache {self.folder}", _explain_miss(request))
        if found is None:
            found = await self._shared_answer(key)
        if found is None:
            return await self._ask(key, described, request)
        return dataclasses.replace(found, latency_s=time.perf_counter() - started)

    async def check(self) -> None:
        """Open the cache and, unless this is a replay, check the engine.

        Raises:
            InputError: the cache cannot be used, a replay has nothing to answer from, or the
                engine cannot answer.
        """
        if self.replay and not holds_store(self.folder):
            raise InputError(
                f"search.cache=replay, but search.cache_folder={self.folder} holds no cache: "
                "record a run with search.cache=use, or correct the folder"
            )
        try:
            empty = len(self._opened()) == 0
        except StoreError as error:
            raise InputError(
                f"search.cache_folder={self.folder}: {error}; {self._remedy}"
            ) from error
        if self.replay and empty:
            raise InputError(
                f"search.cache=replay, but the cache in search.cache_folder={self.folder} is "
                "empty: record a run with search.cache=use"
            )
        if not self.replay and isinstance(self.engine, Checkable):
            await self.engine.check()

    async def _shared_answer(self, key: str) -> SearchResult | None:
        """What another search under way gets to the same request; None where there is none.

        Raises:
            SearchError: as that search.
        """
        while (asked := self._asked.get(key)) is not None:
            await asyncio.wait([asked])
            if not asked.cancelled():  # else the one that asked has gone: be the next to ask
                return _unpaid(asked.result())
        return None

    async def _ask(self, key: str, described: str, request: SearchRequest) -> SearchResult:
        # Awaited here and not in a task of its own: an engine that answers at once then takes as
        # many turns of the event loop as a kept result does, and trajectories keep their order.
        asked = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            if self.before_asking is not None:
                self.before_asking()
            result = self._keep(key, described, await self.engine.search(request))
            asked.set_result(result)
        except SearchError as error:
            asked.set_exception(SearchError(error.endpoint, error.reason))
            asked.exception()  # seen: it may be that nobody shares it
            raise
        finally:
            asked.cancel()  # no effect on a finished one
            del self._asked[key]
        return result

    def _keep(self, key: str, described: str, result: SearchResult) -> SearchResult:
        """Keep a result; where another process was first, go on with that one's documents.

        A replay has one answer to a request, so all processes must have gone on with the same.
        """
        own = _write_result(described, result)
        with self._damage_as_search_error():
            kept = self._opened().add(key, own)
            if kept == own:
                return result
            first = _read_result(kept)
        spent = {name: getattr(result, name) for name in _SPENT}
        return dataclasses.replace(first, **spent)

    def _opened(self) -> TextStore:
        if self._store is None:
            changes = not self.replay
            self._store = TextStore(self.folder, size_gib=self.size_gib, changes=changes)
        return self._store

    @contextmanager
    def _damage_as_search_error(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise SearchError(f"cache {self.folder}", f"{error}; {self._remedy}") from error

    @property
    def _remedy(self) -> str:
        return "delete that folder, or set search.cache_folder to another"


def describe(engine: Cacheable, request: SearchRequest) -> str:
    """Canonical JSON of everything that determines a result; its hash is the result's key."""
    described = {
        "version": CACHE_VERSION,
        "engine": type(engine).__name__,
        "request": engine.cache_key(request),
    }
    return json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _write_result(described: str, result: SearchResult) -> str:
    """An entry: the request as described, for people who look, and the result."""
    return f'{{"key": {described}, "result": {json.dumps(result, default=_fields)}}}'


def _fields(value: SearchResult | Document) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _read_result(text: str) -> SearchResult:
    """The result of an entry, as one that cost nothing.

    Raises:
        StoreError: the text is no entry.
    """
    try:
        fields = json.loads(text)["result"]
        documents = tuple(Document(**document) for document in fields.pop("documents"))
        problems = tuple(fields.pop("problems"))
        return _unpaid(SearchResult(documents=documents, problems=problems, **fields))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError("an entry is damaged") from error


def _unpaid(result: SearchResult) -> SearchResult:
    return dataclasses.replace(result, cached=True, attempts=0, tokens=0, cost_usd=0.0)


def _explain_miss(request: SearchRequest) -> str:
    query = request.query
    if len(query) > _SHOWN_QUERY_CHARS:
        query = query[:_SHOWN_QUERY_CHARS] + " ..."
    return (
        f"search.cache=replay, and no answer to the query {query!r} was recorded for this question "
        "and seed: repeat the recorded run with its own settings, seed and weights, or record "
        "this one with search.cache=use"
    )
