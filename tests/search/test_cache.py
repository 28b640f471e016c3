"""The cache: what is a hit, what a replay refuses, what survives, and what a key depends on."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import hydra
import pytest

from tests.helpers.configs import CONFIGS, compose_config
from tests.helpers.simulated import simulated_search
from zerosearch.data.corpus import Passage
from zerosearch.data.geography.facts import load_facts
from zerosearch.search import store
from zerosearch.search.bm25 import BM25Search
from zerosearch.search.cache import CachedSearch, build_search, describe
from zerosearch.search.engine import SearchEngine
from zerosearch.search.web import WebSearch
from zerosearch.simulator.engine import SimulatedSearch
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.types import Document, SearchError, SearchRequest, SearchResult

DATABASE = "cache.db"


class CountingEngine:
    """Numbers its answers, so that none is like another; may wait, fail or refuse its check."""

    def __init__(
        self,
        *,
        texts: Callable[[int], list[str]] = lambda call: [f"answer {call}"],
        failing: tuple[str, ...] = (),
    ) -> None:
        self.asked: list[SearchRequest] = []
        self.checks = 0
        self.gate: asyncio.Event | None = None
        self._texts = texts
        self._failing = failing

    async def search(self, request: SearchRequest) -> SearchResult:
        self.asked.append(request)
        call = len(self.asked)
        if self.gate is not None:
            await self.gate.wait()
        if request.query in self._failing:
            raise SearchError("http://search.test", "no answer")
        return SearchResult(
            documents=tuple(Document(text=text, title=f"t{call}") for text in self._texts(call)),
            requested=request.top_k,
            noisy=True,
            latency_s=3600.0,
            attempts=3,
            problems=("short",),
            tokens=70,
            cost_usd=0.5,
        )

    async def check(self) -> None:
        self.checks += 1

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        return {"query": request.query, "seed": request.seed}


def make_request(query: str = "who", **fields: Any) -> SearchRequest:
    return SearchRequest(query=query, question="q", golden_answers=("a",), **fields)


def make_cache(engine: SearchEngine, folder: Path, **fields: Any) -> CachedSearch:
    return CachedSearch(engine, folder, **{"replay": False, **fields})


# -- hits and misses ------------------------------------------------------------------------------


async def test_a_hit_is_the_first_result_at_no_cost(tmp_path: Path) -> None:
    engine = CountingEngine()
    cache = make_cache(engine, tmp_path)
    first = await cache.search(make_request())
    again = await cache.search(make_request())
    assert len(engine.asked) == 1
    assert (first.cached, first.attempts, first.tokens, first.cost_usd) == (False, 3, 70, 0.5)
    assert (again.cached, again.attempts, again.tokens, again.cost_usd) == (True, 0, 0, 0.0)
    same = ("documents", "requested", "noisy", "problems")
    assert all(getattr(again, name) == getattr(first, name) for name in same)
    assert 0 < again.latency_s < first.latency_s == 3600.0


async def test_another_request_is_asked(tmp_path: Path) -> None:
    engine = CountingEngine()
    cache = make_cache(engine, tmp_path)
    texts = [
        (await cache.search(request)).documents[0].text
        for request in (make_request(), make_request("where"), make_request(seed=1))
    ]
    assert texts == ["answer 1", "answer 2", "answer 3"]


async def test_results_outlive_the_object_and_the_loop(tmp_path: Path) -> None:
    await make_cache(CountingEngine(), tmp_path).search(make_request())
    engine = CountingEngine()
    second = make_cache(engine, tmp_path)

    def in_a_loop_of_its_own() -> SearchResult:
        return asyncio.run(second.search(make_request()))

    result = await asyncio.to_thread(in_a_loop_of_its_own)
    assert result.cached and result.documents[0].text == "answer 1" and not engine.asked


async def test_two_engines_share_a_folder_without_mixing(tmp_path: Path) -> None:
    class Other(CountingEngine):
        pass

    await make_cache(CountingEngine(), tmp_path).search(make_request())
    assert not (await make_cache(Other(), tmp_path).search(make_request())).cached


@pytest.mark.parametrize(
    "text", ["", "\x00 \ud800 </information>", 'quote " \\ line\nbreak', "x" * 1_000_000]
)
async def test_any_text_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    cache = make_cache(CountingEngine(texts=lambda _: [text]), tmp_path)
    request = make_request("\ud800 who\x00")
    assert await cache.search(request) != await cache.search(request)  # costs
    assert (await cache.search(request)).documents == (Document(text=text, title="t1"),)


async def test_fewer_documents_than_asked_are_kept_none_too(tmp_path: Path) -> None:
    cache = make_cache(CountingEngine(texts=lambda _: []), tmp_path)
    await cache.search(make_request(top_k=5))
    again = await cache.search(make_request(top_k=5))
    assert (again.cached, again.documents, again.requested) == (True, (), 5)


async def test_a_failed_search_is_not_kept(tmp_path: Path) -> None:
    cache = make_cache(CountingEngine(failing=("who",)), tmp_path)
    for _ in range(2):
        with pytest.raises(SearchError, match=r"http://search\.test: no answer"):
            await cache.search(make_request())
    later = make_cache(CountingEngine(), tmp_path)
    assert not (await later.search(make_request())).cached


# -- equal requests at the same time --------------------------------------------------------------


async def start(cache: CachedSearch, *requests: SearchRequest) -> list[asyncio.Task[SearchResult]]:
    tasks = [asyncio.create_task(cache.search(request)) for request in requests]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_of_equal_requests_under_way_one_is_asked_and_paid(tmp_path: Path) -> None:
    engine = CountingEngine()
    engine.gate = asyncio.Event()
    cache = make_cache(engine, tmp_path)
    tasks = await start(cache, *[make_request()] * 5, make_request("where"))
    engine.gate.set()
    results = await asyncio.gather(*tasks)
    assert [request.query for request in engine.asked] == ["who", "where"]
    assert len({result.documents for result in results[:5]}) == 1
    assert sum(result.tokens for result in results) == 2 * 70
    assert [result.cached for result in results] == [False, True, True, True, True, False]


async def test_who_shares_a_failing_request_fails_with_it(tmp_path: Path) -> None:
    engine = CountingEngine(failing=("who",))
    engine.gate = asyncio.Event()
    tasks = await start(make_cache(engine, tmp_path), *[make_request()] * 3)
    engine.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in results] == ["search engine http://search.test: no answer"] * 3
    assert len(engine.asked) == 1


async def test_when_the_one_that_asked_is_cancelled_another_asks(tmp_path: Path) -> None:
    engine = CountingEngine()
    engine.gate = asyncio.Event()
    tasks = await start(make_cache(engine, tmp_path), *[make_request()] * 3)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.sleep(0)
    engine.gate.set()
    assert not (await tasks[1]).cached
    assert len(engine.asked) == 2
    assert all(task.cancelled() for task in (tasks[0], tasks[2]))


async def test_an_engine_that_answers_at_once_takes_no_turn_of_the_loop(tmp_path: Path) -> None:
    # else a replay would bring answers in another order than the run it repeats
    cache = make_cache(CountingEngine(), tmp_path)
    for _ in ("asked", "kept"):
        search = cache.search(make_request())
        with pytest.raises(StopIteration):
            search.send(None)


# -- replay ---------------------------------------------------------------------------------------


async def test_replay_answers_from_the_cache_alone(tmp_path: Path) -> None:
    await make_cache(CountingEngine(), tmp_path).search(make_request())
    engine = CountingEngine()
    replay = make_cache(engine, tmp_path, replay=True)
    await replay.check()
    result = await replay.search(make_request())
    assert result.documents[0].text == "answer 1" and (result.cached, result.cost_usd) == (True, 0)
    assert not engine.asked and not engine.checks


async def test_a_miss_in_a_replay_names_the_folder_the_query_and_the_mend(tmp_path: Path) -> None:
    await make_cache(CountingEngine(), tmp_path).search(make_request())
    engine = CountingEngine()
    replay = make_cache(engine, tmp_path, replay=True)
    with pytest.raises(SearchError) as error:
        await replay.search(make_request("where is\nit? " + "x" * 500))
    said = str(error.value)
    assert str(tmp_path) in said and "'where is\\nit? xxx" in said and len(said) < 600
    assert "search.cache=use" in said and "seed" in said
    assert not engine.asked


@pytest.mark.parametrize("kind", ["no folder", "no database", "no entry"])
async def test_a_replay_without_a_record_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    if kind != "no folder":
        folder.mkdir()
    if kind == "no entry":
        await make_cache(CountingEngine(), folder).check()
    with pytest.raises(ValueError, match=r"search\.cache_folder=.*cache.*search\.cache=use"):
        await make_cache(CountingEngine(), folder, replay=True).check()
    assert folder.exists() == (kind != "no folder"), "a check of a wrong path leaves nothing"


async def test_a_replay_leaves_rows_as_they_are(tmp_path: Path) -> None:
    await make_cache(CountingEngine(), tmp_path).search(make_request())

    def rows() -> list[tuple[Any, ...]]:
        with sqlite3.connect(tmp_path / DATABASE) as database:
            return database.execute("SELECT * FROM Cache").fetchall()

    before = rows()
    replay = make_cache(CountingEngine(), tmp_path, replay=True, size_gib=1e-6)
    await replay.search(make_request())
    assert rows() == before


# -- settings -------------------------------------------------------------------------------------


def test_without_a_cache_the_engine_is_itself(tmp_path: Path) -> None:
    engine = CountingEngine()
    assert build_search(engine, cache="none", cache_folder=tmp_path / "never") is engine
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("mode", ["use", "replay"])
def test_making_it_twice_touches_nothing(mode: Literal["use", "replay"], tmp_path: Path) -> None:
    for _ in range(2):
        cache = build_search(CountingEngine(), cache=mode, cache_folder=tmp_path / "cache")
        assert isinstance(cache, CachedSearch) and cache.replay == (mode == "replay")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cache": "off"}, r"search\.cache='off': choose one of none, use, replay"),
        ({"cache": False}, r"search\.cache=False: choose one of"),
        ({"cache": "use", "cache_gib": 0}, r"search\.cache_gib=0"),
        ({"cache": "use", "cache_gib": float("nan")}, r"search\.cache_gib=nan"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_search(CountingEngine(), cache_folder=tmp_path, **fields)


def test_an_engine_must_say_what_determines_its_results(tmp_path: Path) -> None:
    class Bare:
        async def search(self, request: SearchRequest) -> SearchResult:
            return SearchResult(documents=(), requested=0)

    assert build_search(Bare(), cache_folder=tmp_path)
    with pytest.raises(ValueError, match=r"search\.cache: Bare does not say.*cache_key"):
        build_search(Bare(), cache="use", cache_folder=tmp_path)


async def test_the_engine_is_checked_before_its_answers_are_kept(tmp_path: Path) -> None:
    engine = CountingEngine()
    await make_cache(engine, tmp_path).check()
    assert engine.checks == 1


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in (CONFIGS / "search").glob("*.yaml")} - {"none"})
)
def test_the_flag_works_for_every_engine_of_the_configuration(name: str, tmp_path: Path) -> None:
    given = {"cached": ["search.engine={_target_: tests.search.test_cache.CountingEngine}"]}
    endpoint = "simulator.endpoints=[http://127.0.0.1:9/v1]"
    chosen = [f"search={name}", "simulator=prompted_3b", endpoint, "evaluation=same_engine"]
    cfg = compose_config(tmp_path, *chosen, *given.get(name, []), "search.cache=use")
    for node in (cfg.search, cfg.module.search, cfg.evaluation.train_engine.search):
        engine = hydra.utils.instantiate(node)
        assert isinstance(engine, CachedSearch) and not engine.replay
        assert engine.folder == tmp_path / "search_cache" and engine.size_gib == 10
    cfg.search.cache = "none"
    assert not isinstance(hydra.utils.instantiate(cfg.search), CachedSearch)


# -- bounds, damage, other processes --------------------------------------------------------------


async def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    engine = CountingEngine(texts=lambda _: ["x" * 4000])
    cache = make_cache(engine, tmp_path, size_gib=400_000 / 2**30)
    for number in range(120):
        await cache.search(make_request(f"query {number}"))
        await cache.search(make_request("query 0"))
    asked = len(engine.asked)
    assert asked == 120
    assert (tmp_path / DATABASE).stat().st_size < 600_000
    assert (await cache.search(make_request("query 0"))).cached, "used all the time"
    assert (await cache.search(make_request("query 119"))).cached
    assert not (await cache.search(make_request("query 1"))).cached


@pytest.mark.parametrize("damage", ["no database", "cut", "overwritten"])
async def test_a_damaged_file_is_named_with_the_mend(damage: str, tmp_path: Path) -> None:
    cache = make_cache(CountingEngine(texts=lambda _: ["x" * 4000]), tmp_path)
    for number in range(50):
        await cache.search(make_request(f"query {number}"))
    del cache
    file = tmp_path / DATABASE
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if damage == "no database":
        file.write_bytes(b"not a database at all, " * 500)
    else:
        whole = file.read_bytes()
        half = len(whole) // 2
        file.write_bytes(whole[:half] if damage == "cut" else whole[:4096] + b"\xff" * half)
    cache = make_cache(CountingEngine(), tmp_path)
    with pytest.raises((ValueError, SearchError)) as error:  # at the check where it shows there
        await cache.check()
        for number in range(50):
            await cache.search(make_request(f"query {number}"))
    said = str(error.value)
    assert str(tmp_path) in said and "delete that folder" in said
    assert "\n" not in said


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"search\.cache_folder=.*file/cache"):
        await make_cache(CountingEngine(), tmp_path / "file" / "cache").check()


async def test_an_entry_of_another_form_is_damage(tmp_path: Path) -> None:
    await make_cache(CountingEngine(), tmp_path).search(make_request())
    for text in (
        "{}",
        "[",
        "[" * 100_000,
        '{"result": {"documents": [1], "problems": []}}',
        '{"result": []}',
    ):
        with sqlite3.connect(tmp_path / DATABASE) as database:
            database.execute("UPDATE Cache SET value = ?", (text,))
        with pytest.raises(SearchError, match="an entry is damaged; delete"):
            await make_cache(CountingEngine(), tmp_path).search(make_request())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0)


@pytest.mark.usefixtures("impatient")
async def test_a_locked_cache_costs_a_call_not_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = CountingEngine()
    cache = make_cache(engine, tmp_path)
    await cache.search(make_request())
    with sqlite3.connect(tmp_path / DATABASE, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.WARNING, logger="zerosearch"):
            result = await cache.search(make_request())
            await cache.search(make_request("where"))
        other.execute("ROLLBACK")
    assert (result.cached, result.documents[0].text) == (False, "answer 2")
    [warning] = caplog.records
    assert str(tmp_path) in warning.getMessage() and "locked" in warning.getMessage()
    assert (await cache.search(make_request())).documents[0].text == "answer 1"


@pytest.mark.usefixtures("impatient")
async def test_a_replay_reads_while_others_write(tmp_path: Path) -> None:
    await make_cache(CountingEngine(), tmp_path).search(make_request())
    replay = make_cache(CountingEngine(), tmp_path, replay=True)
    await replay.check()
    with sqlite3.connect(tmp_path / DATABASE, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert (await replay.search(make_request())).cached


async def test_of_two_processes_the_first_answer_counts_for_both(tmp_path: Path) -> None:
    engines = [CountingEngine(texts=lambda _, name=name: [name]) for name in ("one", "two")]
    caches = [make_cache(engine, tmp_path) for engine in engines]
    for engine in engines:
        engine.gate = asyncio.Event()
    tasks = [(await start(cache, make_request()))[0] for cache in caches]
    assert all(engine.asked for engine in engines)
    for engine, task in zip(reversed(engines), reversed(tasks), strict=True):
        assert engine.gate is not None
        engine.gate.set()
        await task
    results = [task.result() for task in tasks]
    assert [result.documents[0].text for result in results] == ["two", "two"]
    assert [result.tokens for result in results] == [70, 70], "both have paid"
    replay = make_cache(CountingEngine(), tmp_path, replay=True)
    assert (await replay.search(make_request())).documents[0].text == "two"


# -- keys -----------------------------------------------------------------------------------------

PASSAGES = [Passage(id="0", title="Lyon", text="a city"), Passage(id="1", title="Oslo", text="x")]


def scripted(**fields: Any) -> ScriptedSimulator:
    return ScriptedSimulator(load_facts(), **{"splits": ["train"], **fields})


def simulated(**fields: Any) -> SimulatedSearch:
    return simulated_search(**{"endpoints": ["http://127.0.0.1:9"], "model": "m", **fields})


def web(**fields: Any) -> WebSearch:
    return WebSearch(**{"usd_per_query": 0.1, "max_queries": 1, **fields})


def bm25(**fields: Any) -> BM25Search:
    return BM25Search(**{"corpus": PASSAGES, **fields})


ENGINES: dict[str, Callable[..., Any]] = {
    "scripted": scripted,
    "simulated": simulated,
    "web": web,
    "bm25": bm25,
}
REQUEST = make_request("Lyon", top_k=2, seed=5, noise_probability=0.25)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("scripted", {"reliability": 0.5}),
        ("scripted", {"failure_rate": 0.5}),
        ("scripted", {"splits": ["test"]}),
        ("simulated", {"model": "other"}),
        ("simulated", {"temperature": 0.1}),
        ("simulated", {"max_tokens": 9}),
        ("simulated", {"max_reply_retries": 0}),
        ("simulated", {"words_per_document": 9}),
        ("web", {"provider": "serpapi"}),
        ("web", {"language": "fr"}),
        ("web", {"country": "fr"}),
        ("bm25", {"corpus": PASSAGES[:1]}),
        ("bm25", {"k1": 0.9}),
        ("bm25", {"stopwords": None}),
    ],
)
def test_a_setting_that_matters_changes_the_key(kind: str, change: dict[str, Any]) -> None:
    make = ENGINES[kind]
    assert describe(make(**change), REQUEST) != describe(make(), REQUEST)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("scripted", {"latency_s": 0.5}),
        ("simulated", {"endpoints": ["http://127.0.0.1:10"]}),
        ("simulated", {"endpoints": []}),
        ("simulated", {"attempt_timeout_s": 1.0}),
        ("simulated", {"max_retries": 9}),
        ("simulated", {"usd_per_million_tokens": 9.0}),
        ("web", {"usd_per_query": 2.0}),
        ("web", {"max_queries": 7}),
        ("web", {"queries_per_second": 1}),
        ("web", {"base_url": "http://127.0.0.1:9"}),
        ("web", {"max_retries": 9}),
    ],
)
def test_a_setting_that_does_not_matter_keeps_the_key(kind: str, change: dict[str, Any]) -> None:
    make = ENGINES[kind]
    assert describe(make(**change), REQUEST) == describe(make(), REQUEST)


@pytest.mark.parametrize(
    ("kind", "matters"),
    [
        ("scripted", {"query", "golden_answers", "noise_probability", "top_k", "seed"}),
        ("simulated", {"query", "question", "golden_answers", "top_k", "seed"}),
        ("web", {"query", "top_k"}),
        ("bm25", {"query", "top_k"}),
    ],
)
def test_the_key_depends_on_what_the_engine_reads(kind: str, matters: set[str]) -> None:
    engine = ENGINES[kind]()
    changes: dict[str, Any] = {
        "query": "Oslo",
        "question": "another",
        "golden_answers": ("b",),
        "top_k": 1,
        "seed": 6,
        "timeout_s": 1.0,
    }
    if "noise_probability" in matters:
        changes["noise_probability"] = 0.5
    key = describe(engine, REQUEST)
    changed = {
        name
        for name, value in changes.items()
        if describe(engine, dataclasses.replace(REQUEST, **{name: value})) != key
    }
    assert changed == matters


def test_two_makings_of_one_engine_have_one_key() -> None:
    for make in ENGINES.values():
        assert describe(make(), REQUEST) == describe(make(), REQUEST)


async def test_keys_hold_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-very-secret-0123456789"
    for name in ("OPENAI_API_KEY", "SERPER_API_KEY", "SERPAPI_API_KEY"):
        monkeypatch.setenv(name, secret)
    for make in ENGINES.values():
        engine = make()
        assert secret not in describe(engine, REQUEST)


async def test_a_hit_is_a_few_statements_about_one_row(tmp_path: Path) -> None:
    """How long they take is measured by `benchmarks/bench_search.py`."""
    cache = make_cache(CountingEngine(), tmp_path)
    await cache.search(make_request())
    statements: list[str] = []
    assert cache._store is not None
    cache._store._cache._con.set_trace_callback(statements.append)
    assert (await cache.search(make_request())).cached
    about_rows = [each for each in statements if each.split()[0] not in ("BEGIN", "COMMIT")]
    assert 1 <= len(about_rows) <= 4
    assert all("WHERE key = " in each or "WHERE rowid = " in each for each in about_rows)
