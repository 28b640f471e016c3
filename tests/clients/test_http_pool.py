import asyncio
import threading

import pytest

from tests.helpers.http_server import HttpServer, Sent
from tests.helpers.waiting import GUARD_S, HANG_S, until
from zerosearch.clients import http_pool
from zerosearch.clients.bounded_replies import UnusableReply
from zerosearch.clients.http_pool import open_client


async def ask(client, url, count):
    await asyncio.gather(*(client.get(url) for _ in range(count)))


async def test_requests_share_no_connection_and_reuse_those_there_are():
    all_are_here = threading.Barrier(40)

    def answer(_):
        all_are_here.wait(GUARD_S)
        return Sent(body={})

    with HttpServer(answer) as server:
        async with open_client(server.url) as client:
            for _ in range(3):
                await ask(client, server.url, 40)
    assert server.most_at_once == 40
    assert len({asked.client for asked in server.asked}) == 40


async def test_one_after_the_other_needs_one_connection():
    with HttpServer(lambda _: Sent(body={})) as server:
        async with open_client(server.url) as client:
            for _ in range(5):
                await ask(client, server.url, 1)
    assert len({asked.client for asked in server.asked}) == 1


async def test_a_call_given_up_leaves_a_client_that_works():
    delays = iter([HANG_S] * 10 + [0.0] * 10)
    with HttpServer(lambda _: Sent(body={}, delay_s=next(delays))) as server:
        async with open_client(server.url) as client:
            asking = asyncio.create_task(ask(client, server.url, 10))
            await until(lambda: len(server.asked) == 10)
            asking.cancel()
            await asyncio.wait([asking])
            async with asyncio.timeout(GUARD_S):
                await ask(client, server.url, 10)
    given_up, answered = server.asked[:10], server.asked[10:]
    assert not {asked.client for asked in given_up} & {asked.client for asked in answered}


async def test_requests_share_no_connection_after_a_reply_that_is_not_read():
    all_are_here = threading.Barrier(2)

    def answer(asked):
        if asked.path == "/moved":
            return Sent(status=302, headers={"Location": "http://elsewhere.invalid/"})
        if asked.path == "/":
            all_are_here.wait(GUARD_S)
        return Sent(body=b"x" * (2_000 if asked.path == "/long" else 20))

    with HttpServer(answer) as server:
        async with open_client(server.url, max_reply_bytes=1_000) as client:
            for path in ("/long", "/moved", "/long"):
                with pytest.raises(UnusableReply):
                    await client.get(f"{server.url}{path}")
            async with asyncio.timeout(GUARD_S):
                await ask(client, server.url, 2)
    assert server.most_at_once == 2


async def test_closing_the_client_closes_its_connections(recwarn):
    with HttpServer(lambda _: Sent(body={})) as server:
        client = open_client(server.url)
        await ask(client, server.url, 8)
        await client.aclose()
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


async def test_a_server_here_is_never_asked_through_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with HttpServer(lambda _: Sent(body={})) as server:
        async with open_client(server.url) as client:
            assert (await client.get(server.url)).status_code == 200


async def test_a_server_elsewhere_is_asked_through_the_proxy_of_the_environment(monkeypatch):
    with HttpServer(lambda _: Sent(body={})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        async with open_client("http://search.invalid/retrieve") as client:
            assert (await client.get("http://search.invalid/retrieve")).status_code == 200
    assert proxy.asked[0].path == "http://search.invalid/retrieve"


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({"https_proxy": "http://p:1"}, "https://h/x", "http://p:1"),
        ({"https_proxy": "http://p:1"}, "http://h/x", None),
        ({"all_proxy": "p:1"}, "http://h/x", "http://p:1"),
        ({"all_proxy": "p:1", "no_proxy": "h"}, "http://h/x", None),
        ({"all_proxy": "p:1"}, "http://localhost:80/x", None),
        ({"all_proxy": "p:1"}, "http://[::1]:80/x", None),
    ],
)
def test_which_proxy_is_used(variables, url, proxy, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert http_pool.proxy_for(url) == proxy
