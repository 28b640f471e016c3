"""Paid web search: both services as they answer, and all the ways in which they refuse."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.helpers.http_server import Asked, HttpServer, Sent
from tests.helpers.openai_server import free_port
from tests.helpers.waiting import HANG_S, guarded
from zerosearch.search import web
from zerosearch.search.web import WebSearch
from zerosearch.types import Document, SearchError, SearchRequest

pytest.importorskip("aiolimiter", reason="the extra 'web' is not installed")

KEY = "sk+very/secret=0123456789"  # holds what a URL writes in another way
KEYS = {"serper": "SERPER_API_KEY", "serpapi": "SERPAPI_API_KEY"}
BOTH = pytest.mark.parametrize("provider", KEYS)

# Shortened from replies of the services.
REPLIES: dict[str, dict[str, Any]] = {
    "serper": {
        "searchParameters": {"q": "capital of france", "type": "search"},
        "answerBox": {"title": "France / Capital", "answer": "Paris"},
        "organic": [
            {"title": "Paris - Wikipedia", "snippet": " Paris is the capital. ", "position": 1},
            {"title": "Only a title", "position": 2},
            {"title": "Lyon", "snippet": "Lyon is a city.", "position": 3},
        ],
        "credits": 1,
    },
    "serpapi": {
        "search_metadata": {"id": "1", "status": "Success"},
        "answer_box": {"type": "organic_result", "title": "France / Capital", "answer": "Paris"},
        "organic_results": [
            {"position": 1, "title": "Paris - Wikipedia", "snippet": " Paris is the capital. "},
            {"position": 2, "title": "Only a title"},
            {"position": 3, "title": "Lyon", "snippet": "Lyon is a city."},
        ],
    },
}
NOTHING: dict[str, dict[str, Any]] = {
    "serper": {"searchParameters": {"q": "x"}, "organic": []},
    "serpapi": {
        "search_metadata": {"status": "Success"},
        "search_information": {"organic_results_state": "Fully empty"},
        "error": "Google hasn't returned any results for this query.",
    },
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KEYS.values():
        monkeypatch.setenv(variable, KEY)


@pytest.fixture(autouse=True)
def nothing_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may get the port, and so the quota, of one of an earlier test."""
    monkeypatch.setattr(web, "_SENT", Counter())


@pytest.fixture(autouse=True)
def all_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, the key is in no log, not even in those of libraries."""
    with caplog.at_level(logging.DEBUG):
        yield
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert KEY not in said and "0123456789" not in said


def make_engine(url: str, provider: str = "serper", **fields: Any) -> WebSearch:
    return WebSearch(
        **{
            "provider": provider,
            "base_url": url,
            "usd_per_query": 0.01,
            "max_queries": 100,
            "queries_per_second": 1000,
            "backoff_s": 0.01,
            **fields,
        }
    )


def make_request(**fields: Any) -> SearchRequest:
    return SearchRequest(
        **{"query": "capital of france", "question": "q", "golden_answers": ("Paris",), **fields}
    )


def in_turn(*sent: Sent) -> Callable[[Asked], Sent]:
    """Each reply once, the last one for ever."""
    replies = itertools.chain(sent, itertools.repeat(sent[-1]))
    return lambda _: next(replies)


async def refused(engine: WebSearch, **fields: Any) -> str:
    """What the failed search says, free of the key and of any chained error that could show it."""
    with pytest.raises(SearchError) as error:
        await engine.search(make_request(**fields))
    said = str(error.value)
    assert KEY not in said and "0123456789" not in said
    assert error.value.__cause__ is None and error.value.__context__ is None
    assert "\n" not in said
    return said


# -- answers --------------------------------------------------------------------------------------


@BOTH
async def test_documents_are_the_answer_box_and_the_snippets(provider: str) -> None:
    with HttpServer(in_turn(Sent(body=REPLIES[provider]))) as server:
        result = await make_engine(server.url, provider).search(make_request(top_k=5))
    assert result.documents == (
        Document(title="France / Capital", text="Paris"),
        Document(title="Paris - Wikipedia", text="Paris is the capital."),
        Document(title="Lyon", text="Lyon is a city."),
    )
    assert (result.requested, result.noisy, result.attempts) == (5, None, 1)
    assert result.cost_usd == 0.01 and result.latency_s > 0


async def test_a_snippet_cut_inside_an_emoji_can_be_kept() -> None:
    row = {"title": "Sun \ud83c\udf1e", "link": "x", "snippet": "It shines \ud83c"}
    with HttpServer(in_turn(Sent(body={"organic": [row]}))) as server:
        result = await make_engine(server.url, "serper").search(make_request())
    assert result.documents == (Document(title="Sun 🌞", text="It shines \ufffd"),)
    assert result.documents[0].text.encode(), "no half of a pair is left"


@BOTH
async def test_no_more_documents_than_asked_for(provider: str) -> None:
    with HttpServer(in_turn(Sent(body=REPLIES[provider]))) as server:
        result = await make_engine(server.url, provider).search(make_request(top_k=1))
    assert [document.text for document in result.documents] == ["Paris"]


@BOTH
async def test_nothing_found_is_a_result_that_costs(provider: str) -> None:
    with HttpServer(in_turn(Sent(body=NOTHING[provider]))) as server:
        result = await make_engine(server.url, provider).search(make_request())
        assert len(server.asked) == 1
    assert (result.documents, result.cost_usd, result.attempts) == ((), 0.01, 1)


async def test_replies_that_are_paid_for_and_cannot_be_read_cost_too() -> None:
    with HttpServer(in_turn(Sent(body={"organic": "none"}))) as server:
        engine = make_engine(server.url, "serper", max_retries=1)
        with pytest.raises(SearchError) as error:
            await engine.search(make_request())
        assert len(server.asked) == 2
    assert error.value.cost_usd == pytest.approx(0.02)


async def test_serper_is_asked_as_it_documents() -> None:
    with HttpServer(in_turn(Sent(body=NOTHING["serper"]))) as server:
        await make_engine(server.url, language="de", country="at").search(make_request())
    [asked] = server.asked
    assert (asked.method, asked.path, asked.headers["x-api-key"]) == ("POST", "/search", KEY)
    assert asked.body == {"q": "capital of france", "hl": "de", "gl": "at"}


async def test_serpapi_is_asked_as_it_documents() -> None:
    with HttpServer(in_turn(Sent(body=NOTHING["serpapi"]))) as server:
        await make_engine(server.url, "serpapi").search(make_request(query="a&b=ü"))
    [asked] = server.asked
    path = urlsplit(asked.path)
    assert (asked.method, path.path) == ("GET", "/search.json")
    assert parse_qs(path.query) == {
        "engine": ["google"],
        "q": ["a&b=ü"],
        "hl": ["en"],
        "gl": ["us"],
        "api_key": [KEY],
    }


async def test_the_golden_answer_is_never_sent() -> None:
    with HttpServer(in_turn(Sent(body=NOTHING["serper"]))) as server:
        await make_engine(server.url).search(make_request(golden_answers=("Lutetia",)))
        assert "Lutetia" not in json.dumps(server.asked[0].body) + server.asked[0].path


def test_one_engine_serves_one_event_loop_after_another() -> None:
    with HttpServer(in_turn(Sent(body=NOTHING["serper"]))) as server:
        engine = make_engine(server.url)
        for _ in range(2):
            asyncio.run(engine.search(make_request()))
        assert len({asked.client for asked in server.asked}) == 2


# -- money and rate -------------------------------------------------------------------------------


async def test_requests_are_spaced() -> None:
    with HttpServer(in_turn(Sent(body=NOTHING["serper"]))) as server:
        engine = make_engine(server.url, queries_per_second=50)
        started = time.perf_counter()
        await asyncio.gather(*(engine.search(make_request()) for _ in range(6)))
        assert time.perf_counter() - started >= 5 / 50


async def test_waiting_for_the_rate_is_not_in_the_time_of_a_search() -> None:
    with HttpServer(in_turn(Sent(body=NOTHING["serper"]))) as server:
        engine = make_engine(server.url, queries_per_second=2)
        searches = [engine.search(make_request(timeout_s=1.5)) for _ in range(5)]
        results = await asyncio.gather(*searches)
    assert max(result.latency_s for result in results) > 1.5


async def test_the_quota_is_of_the_process_and_bounds_the_cost() -> None:
    with HttpServer(in_turn(Sent(body=NOTHING["serper"]))) as server:
        for engine in (make_engine(server.url, max_queries=3) for _ in range(3)):
            await engine.search(make_request())
        said = await refused(make_engine(server.url, max_queries=3))
        assert len(server.asked) == 3
        assert "search.engine.max_queries=3" in said and "$0.03" in said and "raise it" in said
        await make_engine(server.url, max_queries=4).search(make_request())


async def test_repeated_requests_count_and_errors_cost_nothing() -> None:
    broken, good = Sent(status=500), Sent(body=NOTHING["serper"])
    with HttpServer(in_turn(broken, broken, good)) as server:
        result = await make_engine(server.url, max_queries=3).search(make_request())
        assert (result.attempts, result.cost_usd) == (3, 0.01)
        assert "max_queries" in await refused(make_engine(server.url, max_queries=3))


# -- refusals -------------------------------------------------------------------------------------


@BOTH
async def test_a_missing_key_is_found_early(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, " "):
        if value is None:
            monkeypatch.delenv(KEYS[provider])
        else:
            monkeypatch.setenv(KEYS[provider], value)
        engine = make_engine("http://127.0.0.1:9", provider)
        with pytest.raises(ValueError, match=rf"provider={provider} needs.*{KEYS[provider]}"):
            await engine.check()


@BOTH
async def test_a_check_costs_nothing(provider: str) -> None:
    with HttpServer(in_turn(Sent(status=500))) as server:
        await make_engine(server.url, provider).check()
        assert not server.asked


@BOTH
@pytest.mark.parametrize("status", [401, 403])
async def test_an_expired_key(provider: str, status: int) -> None:
    def echo(asked: Asked) -> Sent:
        shown = f"Unauthorized: {KEY}, {asked.path}"  # where the key is percent-encoded
        return Sent(status=status, body={"message": shown, "statusCode": status})

    with HttpServer(echo) as server:
        said = await refused(make_engine(server.url, provider))
        assert len(server.asked) == 1, "not tried again"
        assert server.url in said
    assert f"HTTP {status}" in said and f"environment variable {KEYS[provider]}" in said


@pytest.mark.parametrize(
    ("provider", "status", "body"),
    [
        ("serper", 400, {"message": "Not enough credits", "statusCode": 400}),
        ("serpapi", 429, {"error": "Your account has run out of searches."}),
        ("serpapi", 429, {"error": "Your searches for the month have run out. Upgrade"}),
    ],
)
async def test_out_of_credit(provider: str, status: int, body: dict[str, Any]) -> None:
    with HttpServer(in_turn(Sent(status=status, body=body))) as server:
        said = await refused(make_engine(server.url, provider))
        assert len(server.asked) == 1, "waiting does not help"
    assert "buy credit" in said and "search.cache=use" in said


@BOTH
async def test_too_many_requests_are_made_later(provider: str) -> None:
    busy = Sent(status=429, headers={"Retry-After": "0.2"}, body={"error": "slow down"})
    with HttpServer(in_turn(busy, Sent(body=REPLIES[provider]))) as server:
        started = time.perf_counter()
        result = await make_engine(server.url, provider).search(make_request())
        assert time.perf_counter() - started >= 0.2
    assert result.attempts == 2 and result.documents


@BOTH
@pytest.mark.parametrize(
    "garbage",
    [
        Sent(body=b"<html>bad gateway</html>"),
        Sent(body=b""),
        Sent(body=b'{"organic": ['),
        Sent(body=[]),
        Sent(body={"organic": "none", "organic_results": "none"}),
        Sent(body=b"\xff\xfe"),
        Sent(status=500, body=b"oops"),
        Sent(body={"organic": []}, reset_after=3),
    ],
    ids=lambda sent: repr(sent.body)[:20],
)
async def test_a_reply_that_is_none_is_asked_for_again(provider: str, garbage: Sent) -> None:
    with HttpServer(in_turn(garbage, Sent(body=REPLIES[provider]))) as server:
        result = await make_engine(server.url, provider).search(make_request())
        assert (result.attempts, len(result.documents)) == (2, 3)
    with HttpServer(in_turn(garbage)) as server:
        said = await refused(make_engine(server.url, provider, max_retries=1))
        assert len(server.asked) == 2 and server.url in said


async def test_an_error_of_the_search_itself_is_asked_again() -> None:
    error = f"We couldn't get valid results for this search. {KEY}"
    failed = {"search_metadata": {"status": "Error"}, "error": error}
    with HttpServer(in_turn(Sent(body=failed))) as server:
        said = await refused(make_engine(server.url, "serpapi", max_retries=1))
        assert len(server.asked) == 2
    assert "couldn't get valid results" in said


@pytest.mark.parametrize("row", [None, 3, [], {"snippet": None}, {"snippet": {}, "title": 1}])
async def test_odd_rows_are_left_out(row: Any) -> None:
    reply = {"answerBox": row, "organic": [row, {"snippet": "good", "title": row}]}
    with HttpServer(in_turn(Sent(body=reply))) as server:
        result = await make_engine(server.url).search(make_request())
    assert result.documents == (Document(text="good"),)


@BOTH
async def test_a_service_that_stalls(provider: str) -> None:
    with HttpServer(in_turn(Sent(delay_s=HANG_S))) as server, guarded():
        engine = make_engine(server.url, provider, attempt_timeout_s=0.1, max_retries=1)
        assert "no reply within 0.1 s" in await refused(engine)
        engine = make_engine(server.url, provider, attempt_timeout_s=HANG_S)
        assert "no usable reply within 0.1 s" in await refused(engine, timeout_s=0.1)


@BOTH
async def test_nobody_listens(provider: str) -> None:
    engine = make_engine(f"http://127.0.0.1:{free_port()}", provider, max_retries=1)
    assert "connection failed" in await refused(engine)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"provider": "bing"}, "provider='bing' is unknown; choose one of serper, serpapi"),
        ({"usd_per_query": -1}, "usd_per_query=-1"),
        ({"max_queries": 0}, "max_queries=0"),
        ({"queries_per_second": 0}, "queries_per_second=0"),
        ({"attempt_timeout_s": 0}, "attempt_timeout_s=0"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"base_url": "https://x.test/?api_key=1"}, "base_url: the URL holds"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make_engine("http://127.0.0.1:9", **fields)


async def test_a_request_for_no_document_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="top_k: 0"):
        await make_engine("http://127.0.0.1:9").search(make_request(top_k=0))


async def test_without_the_extra_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiolimiter", None)
    with pytest.raises(ValueError, match=r"pip install 'zerosearch\[web\]'"):
        await make_engine("http://127.0.0.1:9").check()
