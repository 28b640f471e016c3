"""The served policy, asked with the stock client over HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from tests.answering.subjects import make_subject
from tests.helpers.engines import ScriptedEngine
from tests.helpers.waiting import wait_until
from zerosearch.answering.app import AnsweringLimits, make_app
from zerosearch.serving.http import bind

Serve = Callable[..., str]


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an application on a free port; yields its base URL."""
    with bind("127.0.0.1", 0) as bound:
        bound.listen(256)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:

        def start(
            engine: Any = None, *, key: str | None = None, ask: float = 0.5, **limits: Any
        ) -> str:
            subject = make_subject(tmp_path, engine, ask=ask)
            app = make_app(
                subject, AnsweringLimits(**limits), name="policy", formatter="zerosearch", key=key
            )
            return stack.enter_context(running(app))

        yield start


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def asked(text: str) -> list[Any]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def test_the_stock_client_gets_answer_and_reasoning(serve: Serve) -> None:
    url = serve()
    assert [model.id for model in client(url).models.list()] == ["policy"]
    replies = [
        client(url).chat.completions.create(model="policy", messages=asked(f"colour {n}"))
        for n in range(8)
    ]
    answered = [each.choices[0] for each in replies if each.choices[0].message.content]
    assert answered
    for choice in answered:
        reasoning = choice.message.reasoning_content  # type: ignore[attr-defined]
        assert reasoning.endswith(f"<answer> {choice.message.content} </answer>")
        assert choice.finish_reason == "stop"
    every = "".join(each.choices[0].message.reasoning_content for each in replies)  # type: ignore[attr-defined]
    assert "<information>\nDoc 1: The colour is red.\n" in every
    assert every.count("<information>") == every.count("</information>"), "made harmless"
    assert all(each.usage and each.usage.completion_tokens > 0 for each in replies)


def test_fifty_streams_at_once_lose_nothing(serve: Serve) -> None:
    url = serve(max_concurrency=16)
    questions = [f"colour {n}" for n in range(50)]
    alone = client(url)
    expected = [
        alone.chat.completions.create(model="policy", messages=asked(text)).choices[0].message
        for text in questions
    ]

    async def stream(every: openai.AsyncOpenAI, text: str) -> tuple[str, str, str | None]:
        content, reasoning, finish = "", "", None
        async for chunk in await every.chat.completions.create(
            model="policy", messages=asked(text), stream=True
        ):
            choice = chunk.choices[0]
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
        return content, reasoning, finish

    async def together() -> list[tuple[str, str, str | None]]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as every:
            return await asyncio.gather(*(stream(every, text) for text in questions))

    streamed = asyncio.run(together())
    for message, (content, reasoning, finish) in zip(expected, streamed, strict=True):
        assert content == message.content
        assert reasoning == message.reasoning_content  # type: ignore[attr-defined]
        assert finish in ("stop", "length")
    assert sum(bool(content) for content, _, _ in streamed) > 25


def refused(url: str, code: int, **body: Any) -> str:
    request = {"model": "policy", "messages": asked("colour 1"), **body}
    reply = httpx.post(f"{url}/chat/completions", json=request, trust_env=False)
    assert reply.status_code == code, reply.text
    return reply.json()["error"]["message"]


def test_bad_requests_are_refused_in_a_sentence(serve: Serve) -> None:
    url = serve(max_question_chars=100, max_body_bytes=5000)
    assert "ask 'policy'" in refused(url, 404, model="gpt-4")
    assert "no user message" in refused(url, 400, messages=[])
    assert "no user message" in refused(url, 400, messages=[{"role": "user", "content": " "}])
    assert "101 characters, at most 100" in refused(
        url, 400, messages=[{"role": "user", "content": "x" * 101}]
    )
    assert "longer than 5000 bytes" in refused(
        url, 413, messages=[{"role": "user", "content": "x" * 6000}]
    )
    assert "messages" in refused(url, 400, messages="hello")
    assert "n=3" in refused(url, 400, n=3)
    words = [{"role": "user", "content": "word " * 19}]
    assert "max_prompt_tokens=16" in refused(url, 400, messages=words)
    parts = [{"role": "user", "content": [{"type": "text", "text": "colour 1"}]}]
    reply = httpx.post(f"{url}/chat/completions", json={"messages": parts}, trust_env=False)
    assert reply.status_code == 200, "parts are read, and the model need not be named"


def test_a_key_is_needed_where_one_is_set(serve: Serve) -> None:
    url = serve(key="secret")
    with pytest.raises(openai.AuthenticationError) as caught:
        client(url, "wrong").models.list()
    assert "secret" not in str(caught.value)
    assert client(url, "secret").models.list().data[0].id == "policy"


def test_a_lost_engine_is_an_error_of_both_kinds_of_request(serve: Serve) -> None:
    url = serve(ScriptedEngine([], failing=("colour 1",)), ask=1.0)
    with pytest.raises(openai.APIStatusError, match=r"search\.test") as caught:
        client(url).chat.completions.create(model="policy", messages=asked("colour 1"))
    assert caught.value.status_code == 502
    with pytest.raises(openai.APIError, match=r"search\.test"):
        list(
            client(url).chat.completions.create(
                model="policy", messages=asked("colour 1"), stream=True
            )
        )


def test_too_many_are_told_to_come_again_and_too_slow_ends(serve: Serve) -> None:
    class Waiting(ScriptedEngine):
        async def search(self, request):  # type: ignore[no-untyped-def]
            await asyncio.sleep(3600)

    url = serve(Waiting([]), ask=1.0, max_concurrency=1, max_waiting=1, timeout_s=3.0)
    health = url.removesuffix("/v1") + "/health"
    replies: list[httpx.Response] = []

    def post() -> None:
        body = {"messages": asked("colour 1")}
        replies.append(
            httpx.post(f"{url}/chat/completions", json=body, timeout=60, trust_env=False)
        )

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()

    def full() -> bool:
        state = httpx.get(health, trust_env=False).json()
        return state["running"] == 1 and state["waiting"] == 1

    wait_until(full)
    third = httpx.post(
        f"{url}/chat/completions", json={"messages": asked("colour 1")}, trust_env=False
    )
    assert third.status_code == 503 and third.headers["retry-after"] == "1"
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [504, 504]
    assert "no answer within 3 s" in replies[0].json()["error"]["message"]
    assert httpx.get(health, trust_env=False).json() == {"status": "ok", "running": 0, "waiting": 0}


def test_a_client_that_hangs_up_ends_its_episode(serve: Serve) -> None:
    class Waiting(ScriptedEngine):
        async def search(self, request):  # type: ignore[no-untyped-def]
            await asyncio.sleep(3600)

    url = serve(Waiting([]), ask=1.0)
    health = url.removesuffix("/v1") + "/health"
    body = {"messages": asked("colour 1"), "stream": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=body, trust_env=False) as reply:
        for line in reply.iter_lines():
            if "reasoning_content" in line:
                assert httpx.get(health, trust_env=False).json()["running"] == 1
                break  # closes the connection
    wait_until(lambda: httpx.get(health, trust_env=False).json()["running"] == 0)


@pytest.mark.parametrize(
    "limits", [{"max_concurrency": 0}, {"max_waiting": -1}, {"timeout_s": 0}, {"max_body_bytes": 0}]
)
def test_limits_out_of_range_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"limits\..*give"):
        AnsweringLimits(**limits)


def test_the_port_is_this_machines_alone() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert bound.family == socket.AF_INET and bound.getsockname()[0] == "127.0.0.1"
