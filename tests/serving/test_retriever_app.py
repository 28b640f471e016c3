import asyncio
import threading
from contextlib import contextmanager

import httpx
import pytest

from tests.helpers.waiting import GUARD_S, until, wait_until
from zerosearch.data.corpus import Passage
from zerosearch.search.bm25 import BM25Search
from zerosearch.search.retrieval import Hit, Retriever
from zerosearch.search.retriever import RetrieverSearch
from zerosearch.types import Document, SearchError, SearchRequest

uvicorn = pytest.importorskip("uvicorn", reason="the server needs zerosearch[retriever]")
pytest.importorskip("fastapi", reason="the server needs zerosearch[retriever]")

from zerosearch.serving.retriever_app import RetrievalLimits, make_app  # noqa: E402

CITIES = [
    Passage(id="0", title="Lyon", text="A city on the Rhône."),
    Passage(id="1", title="", text='"A quoted line"\nopens a city without a title.'),
    Passage(id="2", title="Lima", text="The capital of Peru."),
]


class Echo:
    """An engine whose only passage is the query; waits at `gate`, and fails at "boom"."""

    name = "echo"
    passage_count = 7

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.running = []
        self.batches = []

    def prepare(self):
        return None

    def retrieve_batch(self, queries, top_k):
        self.running = queries
        self.gate.wait(GUARD_S)
        self.batches.append((list(queries), top_k))
        if "boom" in queries:
            raise RuntimeError("the index is gone")
        return [
            [Hit(passage=Passage(id=str(i), title="", text=q), score=1.0 - i) for i in range(top_k)]
            for q in queries
        ]


@contextmanager
def served(engine, **limits):
    app = make_app(engine, RetrievalLimits(**limits))
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def bm25_url():
    engine = BM25Search(CITIES)
    engine.prepare()
    with served(engine, max_queries=5, max_query_chars=30, max_topk=10) as url:
        yield url


def post(url, **body):
    return httpx.post(f"{url}/retrieve", json=body, timeout=GUARD_S, trust_env=False)


def asking(query, top_k=3, timeout_s=60.0):
    return SearchRequest(
        query=query, question="q", golden_answers=(), top_k=top_k, timeout_s=timeout_s
    )


# --- the wire format ---


def test_search_r1_with_scores(bm25_url):
    reply = post(bm25_url, queries=["Lima"], topk=2, return_scores=True)
    (row,) = reply.json()["result"]
    assert [item["document"] for item in row] == [
        {"id": "2", "contents": '"Lima"\nThe capital of Peru.'}
    ]
    assert row[0]["score"] > 0
    assert reply.status_code == 200


def test_search_r1_without_scores(bm25_url):
    reply = post(bm25_url, queries=["Lima", "city"], topk=2).json()
    assert [[item["id"] for item in row] for row in reply["result"]] == [["2"], ["0", "1"]]
    assert reply["result"][1][1] == {
        "id": "1",
        "contents": '""\n"A quoted line"\nopens a city without a title.',
    }


def test_rows_are_those_of_the_queries_also_where_one_finds_nothing(bm25_url):
    reply = post(bm25_url, queries=["", "Lima", "  ", "zeppelin", "Lyon"], topk=1).json()
    found = [[item["id"] for item in row] for row in reply["result"]]
    assert found == [[], ["2"], [], [], ["0"]]
    assert post(bm25_url, queries=[]).json() == {"result": []}


def test_without_topk_the_default_is_given():
    with served(Echo(), default_topk=4) as url:
        assert len(post(url, queries=["x"]).json()["result"][0]) == 4
        assert len(post(url, queries=["x"], topk=None).json()["result"][0]) == 4


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "queries: Field required; send JSON such as"),
        ({"queries": "Lima"}, "queries: Input should be a valid list"),
        ({"queries": ["x", 7]}, "queries.1: Input should be a valid string"),
        ({"queries": ["x"], "topk": "many"}, "topk: Input should be a valid integer"),
        ({"queries": ["x"], "topk": 0}, "topk=0: give 1 to 10"),
        ({"queries": ["x"], "topk": 11}, "topk=11: give 1 to 10"),
        ({"queries": ["x"] * 6}, "queries: 6 in one request; send at most 5"),
        ({"queries": ["x", "y" * 31]}, "queries[1] has 31 characters; send at most 30"),
    ],
)
def test_a_bad_request_is_refused_in_a_sentence(bm25_url, body, words):
    reply = post(bm25_url, **body)
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith(words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "the body: JSON decode error"),
        (b"[]", "the body: Input should be a valid dictionary"),
        (b'{"queries": ["\\ud800"]}', "queries[0] holds half a character at 0"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_a_sentence(bm25_url, content, words):
    headers = {"Content-Type": "application/json"}
    reply = httpx.post(
        f"{bm25_url}/retrieve", content=content, headers=headers, timeout=GUARD_S, trust_env=False
    )
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith(words)


def test_health_says_who_answers_from_how_much(bm25_url):
    reply = health(bm25_url)
    assert reply.pop("uptime_s") >= 0
    assert reply == {
        "status": "ok",
        "engine": "bm25",
        "passages": 3,
        "queued": 0,
        "max_queued": 4096,
    }


# --- the client and the server together ---


async def test_the_client_finds_what_the_engine_finds_in_process(bm25_url):
    engine = BM25Search(CITIES)
    client = RetrieverSearch(bm25_url)
    await client.check()
    for query in ("Lima", "city", "capital of a city", "zeppelin", ""):
        direct, over_http = [await each.search(asking(query)) for each in (engine, client)]
        assert over_http.documents == direct.documents
    assert (await client.search(asking("title"))).documents[0] == Document(
        title="", text=CITIES[1].text
    )


# --- load ---


async def test_concurrent_requests_are_answered_in_batches_each_with_its_own_topk():
    engine = Echo()
    engine.gate.clear()
    with served(engine, max_batch=16) as url:
        client = RetrieverSearch(url)
        tasks = [asyncio.create_task(client.search(asking("first")))]
        await until(lambda: engine.running == ["first"])
        tasks += [
            asyncio.create_task(client.search(asking(f"q{i}", top_k=1 + i % 3))) for i in range(16)
        ]
        await until_queued(16, url)
        engine.gate.set()
        results = await asyncio.gather(*tasks)
    assert [len(queries) for queries, _ in engine.batches] == [1, 16]
    for i, result in enumerate(results[1:]):
        assert [document.text for document in result.documents] == [f"q{i}"] * (1 + i % 3)


async def test_a_full_queue_says_so_at_once_and_empties_again():
    engine = Echo()
    engine.gate.clear()
    with served(engine, max_batch=1, max_queued=4, max_queries=4) as url:
        async with httpx.AsyncClient(timeout=GUARD_S, trust_env=False) as client:

            async def ask(*queries):
                return await client.post(f"{url}/retrieve", json={"queries": queries})

            first = asyncio.create_task(ask("running"))
            await until(lambda: engine.running == ["running"])
            waiting = asyncio.create_task(ask("a", "b", "c"))
            await until_queued(3, url)
            refused = await ask("d", "e")
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["detail"].startswith("3 queries wait, at most 4 may")
            with pytest.raises(SearchError, match=r"HTTP 503 .*queries wait"):
                full = asyncio.create_task(ask("fourth"))
                await until_queued(4, url)
                await RetrieverSearch(url, max_retries=0).search(asking("d", timeout_s=0.2))
            engine.gate.set()
            replies = await asyncio.gather(first, waiting, full)
            assert {reply.status_code for reply in replies} == {200}
            assert (await ask("d", "e")).status_code == 200


async def test_an_engine_that_fails_is_a_500_and_the_server_lives_on():
    with served(Echo()) as url:
        # The server closes the connection after its 500, which the next request may find out.
        client = RetrieverSearch(url, max_retries=1, backoff_s=0.01)
        with pytest.raises(SearchError, match="HTTP 500"):
            await client.search(asking("boom"))
        assert len((await client.search(asking("x"))).documents) == 3


async def until_queued(count, url):
    await asyncio.to_thread(wait_until, lambda: health(url)["queued"] == count)


def health(url):
    return httpx.get(f"{url}/health", timeout=GUARD_S, trust_env=False).json()


# --- settings ---


def test_bm25_and_the_test_engine_can_be_served():
    assert isinstance(BM25Search(CITIES), Retriever) and isinstance(Echo(), Retriever)
    assert not isinstance(RetrieverSearch("http://h"), Retriever)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_batch": 0}, "limits.max_batch=0: give 1 or more"),
        ({"max_wait_ms": -1}, "limits.max_wait_ms=-1: give 0 or more"),
        ({"max_queries": 9, "max_queued": 8}, "limits.max_queries=9 is above limits.max_queued=8"),
        ({"default_topk": 9, "max_topk": 8}, "limits.default_topk=9 is above limits.max_topk=8"),
    ],
)
def test_bad_limits_are_refused_at_once(limits, words):
    with pytest.raises(ValueError, match=words):
        RetrievalLimits(**limits)
