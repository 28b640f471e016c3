"""Simulated search against a real local server; its faults are in test_simulated_faults.py."""

import asyncio
import gc
import json
import logging
import random
import threading
import traceback
import warnings

import pytest

from tests.helpers.openai_server import (
    OpenAIServer,
    Reply,
    completion,
    documents,
    failure,
    free_port,
    in_turn,
)
from tests.helpers.simulated import simulated_search
from tests.helpers.waiting import GUARD_S, HANG_S, guarded, wait_until
from zerosearch.clients.chat import ChatClient, Tally
from zerosearch.search.engine import Cacheable, Checkable, SearchEngine
from zerosearch.simulator.engine import draw_noisy
from zerosearch.types import SearchError, SearchRequest

KEY = "sk-very-secret-4711"
ECHO = "{{ query }}|{{ question }}|{{ golden_answers | join(',') }}|{{ noisy }}"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def echo_template(tmp_path):
    path = tmp_path / "echo.j2"
    path.write_text(ECHO)
    return str(path)


def make_engine(*endpoints, **changes):
    return simulated_search(list(endpoints), "simulator-7b", **{"backoff_s": 0.005, **changes})


def request(**changes):
    fields = {"query": "capital of Peru", "question": "Which city?", "golden_answers": ("Lima",)}
    return SearchRequest(**{**fields, "top_k": 1, "timeout_s": GUARD_S, **changes})


def wait_until_closed(server):
    """Until the server sees all its connections end; a thread of its own notices each."""
    wait_until(lambda: server.open_connections == 0)


async def failed(engine, **changes):
    with pytest.raises(SearchError) as caught:
        await engine.search(request(**changes))
    return caught.value


async def test_a_search_returns_the_documents_of_the_reply(server):
    server.answer = lambda _: completion("Doc 1: Lima is in Peru.\nDoc 2: Cusco, too.", delay_s=0.1)
    engine: SearchEngine = make_engine(server.url)
    result = await engine.search(request(top_k=2))
    assert [document.text for document in result.documents] == ["Lima is in Peru.", "Cusco, too."]
    assert (result.requested, result.noisy, result.cached) == (2, False, False)
    assert 0.1 <= result.latency_s < GUARD_S


async def test_half_a_character_in_a_reply_is_made_whole(server):
    server.answer = lambda _: completion("Sun \ud83c\udf1e, cut \ud83c")
    chat, messages = make_engine(server.url).client, [{"role": "user", "content": "?"}]
    reply = await chat.ask({"messages": messages}, timeout_s=GUARD_S, tally=Tally())
    assert reply.text == "Sun 🌞, cut \ufffd"


async def test_the_servers_get_the_papers_sampling_values_and_a_seed(server):
    await make_engine(server.url).search(request(seed=2**62))
    body = server.received[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("simulator-7b", 0.8, 600)
    assert 0 <= body["seed"] < 2**31
    assert "capital of Peru" in server.received[0].prompt


async def test_the_seed_decides_what_the_server_is_sent(server):
    for seed in (7, 7, 8):
        await make_engine(server.url).search(request(seed=seed, noise_probability=0.5))
    first, same, other = (received.body for received in server.received)
    assert first == same
    assert first["seed"] != other["seed"]


@pytest.mark.parametrize(("top_k", "expected"), [(1, 120), (5, 600)])
async def test_max_tokens_may_follow_from_the_documents_asked_for(server, top_k, expected):
    server.answer = lambda _: completion(documents(5))
    await make_engine(server.url, max_tokens=None).search(request(top_k=top_k))
    assert server.received[0].body["max_tokens"] == expected


async def test_more_documents_than_asked_for_are_cut(server):
    server.answer = lambda _: completion(documents(3))
    result = await make_engine(server.url).search(request(top_k=2))
    assert (len(result.documents), result.requested) == (2, 2)
    assert (result.problems, result.attempts) == (("too_many",), 1)


async def test_too_few_documents_are_asked_for_again_with_another_seed(server):
    server.answer = in_turn(completion(documents(1)), completion(documents(2)))
    result = await make_engine(server.url).search(request(top_k=2))
    assert (len(result.documents), result.attempts) == (2, 2)
    assert result.problems == ("too_few",)
    first, second = (received.body for received in server.received)
    assert first.pop("seed") != second.pop("seed")
    assert first == second


@pytest.mark.parametrize("counts", [(1, 2, 0), (0, 2, 1), (2, 0, 0), (2, 2, 2)])
async def test_the_best_of_short_replies_counts(server, counts):
    server.answer = in_turn(*(completion(documents(count, f"of {count}")) for count in counts))
    engine = make_engine(server.url, max_reply_retries=2)
    result = await engine.search(request(top_k=3))
    assert [document.text for document in result.documents] == ["of 2 1", "of 2 2"]
    assert (result.requested, result.attempts, len(result.problems)) == (3, 3, 3)
    assert len(server.received) == 3


async def test_bad_replies_have_a_bound_of_their_own(server):
    server.answer = lambda _: completion(documents(4))
    results = [
        await make_engine(server.url, max_reply_retries=bound, max_retries=9).search(
            request(top_k=5)
        )
        for bound in (0, 2)
    ]
    assert [result.attempts for result in results] == [1, 3]
    assert len(server.received) == 4


async def test_what_is_merely_untidy_is_reported_and_not_asked_for_again(server):
    server.answer = lambda _: completion("Here you are!\nDoc 2: a\nDoc 2: b")
    result = await make_engine(server.url).search(request(top_k=2))
    assert [document.text for document in result.documents] == ["a", "b"]
    assert (result.problems, result.attempts) == (("extra_text", "misnumbered"), 1)


async def test_a_reply_that_was_cut_is_asked_for_again(server):
    server.answer = in_turn(
        completion("Doc 1: a\nDoc 2: b an", finish_reason="length"), completion(documents(2))
    )
    result = await make_engine(server.url).search(request(top_k=2))
    assert [document.text for document in result.documents] == ["text 1", "text 2"]
    assert (result.problems, result.attempts) == (("truncated", "too_few"), 2)


async def test_a_failure_after_a_short_reply_does_not_lose_it(server):
    server.answer = in_turn(completion(documents(1)), failure(400))
    result = await make_engine(server.url).search(request(top_k=2))
    assert (len(result.documents), result.attempts) == (1, 2)


async def test_tokens_and_cost_of_all_attempts_are_counted(server):
    server.answer = in_turn(
        completion("I cannot.", tokens=1000),
        failure(500),
        completion("Doc 1: a", tokens=2000),
        completion("Doc 1: b"),
    )
    engine = make_engine(server.url, usd_per_million_tokens=0.5)
    result, free = await engine.search(request()), await engine.search(request())
    assert (result.tokens, result.attempts) == (3000, 3)
    assert result.cost_usd == pytest.approx(0.0015)
    assert (free.tokens, free.cost_usd) == (0, 0.0)


async def test_a_search_that_fails_says_what_it_has_cost(server):
    server.answer = in_turn(completion("I cannot.", tokens=1000), completion("No.", tokens=500))
    with pytest.raises(SearchError) as error:
        await make_engine(server.url, usd_per_million_tokens=2.0).search(request())
    assert error.value.tokens == 1500 and error.value.cost_usd == pytest.approx(0.003)


def test_noise_is_drawn_from_the_seed_with_the_requests_probability():
    draws = [draw_noisy(request(seed=seed, noise_probability=0.3)) for seed in range(2000)]
    assert sum(draws) == pytest.approx(600, abs=60)
    assert not any(draw_noisy(request(seed=seed)) for seed in range(200))
    assert all(draw_noisy(request(seed=seed, noise_probability=1.0)) for seed in range(200))


async def test_the_prompt_asks_for_the_quality_that_the_result_records(server, echo_template):
    engine = make_engine(server.url, prompt_template=echo_template)
    results = [await engine.search(request(seed=seed, noise_probability=0.5)) for seed in range(20)]
    asked = [received.prompt.endswith("|True") for received in server.received]
    assert [result.noisy for result in results] == asked
    assert len(set(asked)) == 2


async def test_a_retry_keeps_the_quality(server, echo_template):
    server.answer = in_turn(completion("no documents"), failure(500), completion("Doc 1: a"))
    engine = make_engine(server.url, prompt_template=echo_template)
    result = await engine.search(request(noise_probability=1.0))
    assert result.noisy is True
    assert len({received.prompt for received in server.received}) == 1


async def test_a_failed_call_is_repeated_as_it_was(server):
    """So what a search returns does not depend on the network's luck."""
    server.answer = in_turn(failure(500), completion("Doc 1: a"))
    await make_engine(server.url).search(request())
    first, second = (received.body for received in server.received)
    assert first == second


async def test_defect_02_concurrent_searches_keep_query_question_and_answers_together(
    server, echo_template
):
    def answer(body):
        wait_until(lambda: server.most_at_once > 10)
        return completion(f"Doc 1: {body['messages'][0]['content']}", delay_s=random.random() / 20)

    server.answer = answer
    engine = make_engine(server.url, prompt_template=echo_template)
    requests = [
        request(query=f"query {i}", question=f"question {i}", golden_answers=(f"a{i}", f"b{i}"))
        for i in range(50)
    ]
    results = await asyncio.gather(*(engine.search(each) for each in requests))
    for i, result in enumerate(results):
        assert result.documents[0].text == f"query {i}|question {i}|a{i},b{i}|False"


async def test_defect_16_concurrency_is_limited_and_connections_are_shared(server):
    four = threading.Barrier(4)  # answers nobody before so many ask

    def answer(_):
        four.wait(GUARD_S)
        return completion("Doc 1: a", delay_s=0.02)

    server.answer = answer
    engine = make_engine(server.url, max_concurrency=4)
    await asyncio.gather(*(engine.search(request(seed=i)) for i in range(40)))
    assert len(server.received) == 40
    assert server.most_at_once == 4
    assert len({received.client for received in server.received}) <= 4


async def test_endpoints_take_turns():
    with OpenAIServer() as one, OpenAIServer() as two:
        engine = make_engine(one.url, two.url, one.url)
        await asyncio.gather(*(engine.search(request(seed=i)) for i in range(10)))
        assert (len(one.received), len(two.received)) == (5, 5)


async def test_waiting_for_a_place_does_not_count_against_the_request(server):
    server.answer = in_turn(completion("Doc 1: a", delay_s=2.2), completion("Doc 1: a"))
    engine = make_engine(server.url, max_concurrency=1)
    searches = (engine.search(request(timeout_s=seconds)) for seconds in (GUARD_S, 2.0))
    _, waited = await asyncio.gather(*searches)
    assert waited.latency_s > 2.0


def test_one_engine_serves_successive_event_loops(server, caplog):
    engine = make_engine(server.url)

    async def step():
        return await asyncio.gather(*(engine.search(request(seed=i)) for i in range(5)))

    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            assert all(result.documents for result in asyncio.run(step()))
            gc.collect()
    # Connections that were merely forgotten are closed by the collector, which says so.
    assert not [warning.message for warning in seen if warning.category is ResourceWarning]
    wait_until_closed(server)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_engine_dropped_while_its_loop_goes_on_is_closed_without_a_word(server, caplog):
    engine = make_engine(server.url)
    await engine.search(request())
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        del engine
        gc.collect()
        await asyncio.sleep(0)  # what was scheduled begins
        await asyncio.to_thread(wait_until_closed, server)
        gc.collect()
    assert not [warning.message for warning in seen if warning.category is ResourceWarning]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_connections_of_a_loop_that_ended_badly_are_replaced(server):
    engine = make_engine(server.url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.search(request()))
    loop.close()
    assert server.open_connections == 1
    assert asyncio.run(engine.search(request())).documents


async def test_the_key_comes_from_the_environment(server, monkeypatch):
    await make_engine(server.url).search(request())
    monkeypatch.setenv("MY_KEY", KEY + "\n")  # as `export MY_KEY=$(cat file)` may leave it
    await make_engine(server.url, api_key_env="MY_KEY").search(request())
    sent = [received.headers["authorization"] for received in server.received]
    assert sent == ["Bearer EMPTY", f"Bearer {KEY}"]


async def test_a_request_says_nothing_about_this_machine(server):
    await make_engine(server.url).search(request())
    own = [name for name in server.received[0].headers if name.startswith("x-stainless")]
    assert set(own) <= {"x-stainless-retry-count", "x-stainless-read-timeout"}


async def test_the_key_is_never_shown(server, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("", "openai", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp"):
        caplog.set_level(logging.DEBUG, logger=name)
    server.models_reply = failure(401, f"Incorrect API key: {KEY}")
    replies = (
        failure(401, f"Incorrect API key: {KEY}"),
        failure(500, f"{'x' * 290} {KEY}"),
        completion(f"{'x' * 90} {KEY}"),
        Reply(body=f"{'x' * 90} {KEY}".encode()),
    )
    shown = []
    for reply in replies:
        server.answer = lambda _, reply=reply: reply
        with pytest.raises(SearchError) as error:
            await make_engine(server.url, max_retries=1).search(request())
        shown += traceback.format_exception(error.value)
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        await make_engine(server.url).check()
    shown += [*traceback.format_exception(caught.value), caplog.text]
    shown += [json.dumps(make_engine(server.url).cache_key(request()))]
    assert "Incorrect API key: ***" in "".join(shown)
    assert "sk-very" not in "".join(shown)


async def test_a_broken_key_is_refused_without_showing_it(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nsecond line")
    with pytest.raises(ValueError, match=r"OPENAI_API_KEY.*set it again") as caught:
        await make_engine(server.url).search(request())
    assert "sk-very" not in "".join(traceback.format_exception(caught.value))


async def test_a_proxy_does_not_stand_before_servers_of_this_machine(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (await make_engine(server.url, max_retries=0).search(request())).documents


def test_a_cache_key_holds_what_determines_the_documents(echo_template):
    engine = make_engine("http://a", prompt_template=echo_template)
    assert isinstance(engine, Cacheable) and isinstance(engine, Checkable)
    key = engine.cache_key(request(seed=3))
    assert (
        json.loads(json.dumps(key))
        == key
        == {
            "kind": "simulated",
            "model": "simulator-7b",
            "prompt": [{"role": "user", "content": "capital of Peru|Which city?|Lima|False"}],
            "temperature": 0.8,
            "max_tokens": 600,
            "max_reply_retries": 1,
            "top_k": 1,
            "noisy": False,
            "seed": 3,
        }
    )
    other = {"attempt_timeout_s": 1.0, "max_retries": 0, "max_concurrency": 2, "api_key_env": "X"}
    same = make_engine("http://b", "http://c", prompt_template=echo_template, **other)
    assert same.cache_key(request(seed=3, timeout_s=1.0)) == key


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"query": "x"}, {"top_k": 2}, {"noise_probability": 1.0}, {"question": "x"}],
    ids=str,
)
def test_whatever_changes_the_documents_changes_the_cache_key(changes):
    engine = make_engine("http://a")
    assert engine.cache_key(request(**changes)) != engine.cache_key(request())
    for other in (
        {"temperature": 0.1},
        {"max_tokens": 5},
        {"max_reply_retries": 0},
        {"words_per_document": 31},
    ):
        assert make_engine("http://a", **other).cache_key(request()) != engine.cache_key(request())


async def test_check_is_silent_when_all_is_well(server):
    server.models = ["other", "simulator-7b"]
    await make_engine(server.url, server.url.removesuffix("/v1")).check()
    assert server.received == []


async def test_check_names_the_endpoint_that_does_not_answer_and_the_mend(server):
    dead = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ValueError) as caught:
        await make_engine(server.url, dead).check()
    message = str(caught.value)
    assert message.startswith(f"simulator.endpoints: no simulator answers at {dead} (connection")
    assert "`vllm serve simulator-7b` and set simulator.endpoints=[http://" in message
    assert server.url not in message and "\n" not in message


async def test_check_does_not_wait_for_a_server_that_hangs(server):
    server.models_reply = Reply(body={}, delay_s=HANG_S)
    with guarded(), pytest.raises(ValueError, match=r"no reply within 0\.2 s"):
        await ChatClient([server.url], "m").check(timeout_s=0.2)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(body=b"<html></html>", content_type="text/html"), "not a list of models"),
        (Reply(body={"models": []}), "not a list of models"),
        (failure(404, "Not Found"), r"HTTP 404 \(Not Found\)"),
    ],
    ids=["html", "shape", "404"],
)
async def test_check_of_something_that_is_no_such_server(server, reply, reason):
    server.models_reply = reply
    with pytest.raises(ValueError, match=rf"^simulator\.endpoints: .*{reason}.*vllm serve"):
        await make_engine(server.url).check()


async def test_check_lists_the_served_names_when_the_model_is_unknown(server):
    server.models = ["qwen-3b", "qwen-14b"]
    with pytest.raises(ValueError) as caught:
        await make_engine(server.url).check()
    message = str(caught.value)
    assert message.startswith("simulator.model='simulator-7b' is not served at")
    assert f"{server.url} (it serves qwen-3b, qwen-14b)" in message


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ("http://127.0.0.1:8000/v1", r"simulator\.endpoints='http.*give a list"),
        (["localhost:8000"], r"simulator\.endpoints='localhost:8000' is no URL"),
        (["http://"], "is no URL"),
        ([f"http://user:{KEY}@host/v1"], r"simulator\.endpoints: the URL holds .*environment"),
        ([f"http://host/v1?key={KEY}"], r"simulator\.endpoints: the URL holds .*environment"),
    ],
)
def test_bad_endpoints(endpoints, message):
    with pytest.raises(ValueError, match=message) as caught:
        simulated_search(endpoints, "m")
    assert KEY not in str(caught.value)


async def test_an_engine_without_endpoints_has_cache_keys_and_says_what_it_lacks_when_asked():
    engine = make_engine()
    assert engine.cache_key(request()) == make_engine("http://a").cache_key(request())
    for asked in (engine.check(), engine.search(request())):
        with pytest.raises(ValueError, match=r"simulator\.endpoints is empty: start .*`vllm serve"):
            await asked


def test_endpoints_are_brought_into_one_form():
    urls = ["http://a:1", "http://b:2/", "https://c/v1/", "http://d/api/v1"]
    assert ChatClient(urls, "m").servers.endpoints == (
        "http://a:1/v1",
        "http://b:2/v1",
        "https://c/v1",
        "http://d/api/v1",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("max_tokens", 0),
        ("words_per_document", 0),
        ("max_concurrency", 0),
        ("max_retries", -1),
        ("max_reply_retries", -1),
        ("usd_per_million_tokens", -1.0),
        ("max_outage_s", -1.0),
        ("probe_interval_s", 0.0),
        ("attempt_timeout_s", 0.0),
        ("backoff_s", -1.0),
    ],
)
def test_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"simulator\.{name}={value}: give"):
        make_engine("http://a", **{name: value})


def test_an_empty_model_name():
    with pytest.raises(ValueError, match=r"simulator\.model is empty"):
        simulated_search(["http://a"], "")


async def test_top_k_below_one(server):
    with pytest.raises(ValueError, match="top_k: 0"):
        await make_engine(server.url).search(request(top_k=0))
    assert server.received == []
