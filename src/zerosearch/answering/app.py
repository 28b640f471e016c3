"""A policy that searches, behind OpenAI's chat completions.

One completion is one whole episode: the last user message is the question, the answer is the
message's content, and what led to it (thoughts, queries, documents) its `reasoning_content`, as of
servers of reasoning models. How the policy samples and searches is the server's business: sampling
settings of a request are not used.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from zerosearch.answering.events import Ended, Event, Found, Wrote
from zerosearch.answering.load import Subject
from zerosearch.answering.requests import Refused, error_of, parse_chat, question_of
from zerosearch.clients.http_failures import one_line
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, Positive, check_least
from zerosearch.search.formatters import get_formatter
from zerosearch.search.sanitize import neutralize_document
from zerosearch.serving.gate import Gate
from zerosearch.serving.http import HttpLimits
from zerosearch.types import SearchResult

RETRY_AFTER_S = 1
_CUT = ("turn_budget", "context", "max_turns")  # stop reasons that OpenAI calls "length"


@dataclass(kw_only=True, slots=True, frozen=True)
class AnsweringLimits(HttpLimits):
    """What one server takes upon itself, beside what all have (`HttpLimits`).

    Args:
        max_concurrency: most episodes under way.
        max_waiting: most requests that wait for a place; one more is refused (503).
        timeout_s: of one episode, without the wait.
        max_question_chars: of its last user message.

    Raises:
        InputError: a number is out of range.
    """

    max_concurrency: Count = 64
    max_waiting: CountOrZero = 1024
    timeout_s: Positive = 300.0
    max_question_chars: Count = 4_000

    def __post_init__(self) -> None:
        HttpLimits.__post_init__(self)
        for name in ("max_concurrency", "max_question_chars"):
            check_least("limits", name, getattr(self, name), 1)
        if self.max_waiting < 0 or not self.timeout_s > 0:
            raise InputError(
                f"limits.max_waiting={self.max_waiting}, limits.timeout_s={self.timeout_s}: give 0 "
                "or more, and seconds above 0"
            )


def make_app(
    subject: Subject,
    limits: AnsweringLimits,
    *,
    name: str,
    formatter: str,
    key: str | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The application that serves a policy.

    Args:
        subject: policy and engine, checked.
        limits: bounds of episodes and requests.
        name: of the model, as clients know it.
        formatter: how documents are shown.
        key: that clients must send; None: anybody may ask.
        hosts: see `Gate`.
    """
    # Without the pages of documentation: they load scripts from another host.
    app = FastAPI(title="ZeroSearch", docs_url=None, redoc_url=None)
    app.add_middleware(Gate, limits=limits, key=key, hosts=hosts, error=error_of)
    desk = _Desk(subject, limits, formatter)

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else None
        return JSONResponse(error.body, status_code=error.status, headers=headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "running": desk.running, "waiting": desk.waiting})

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        model = {"id": name, "object": "model", "created": 0, "owned_by": "zerosearch"}
        return JSONResponse({"object": "list", "data": [model]})

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        chat = parse_chat(await request.body())
        if chat.model not in (None, name):
            raise Refused(404, f"model {chat.model!r} is not served; ask {name!r}", "not_found")
        question = question_of(chat, limits.max_question_chars)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        desk.check_room()
        events = desk.events(question)
        if chat.stream:
            return StreamingResponse(_chunks(head, events, desk), media_type="text/event-stream")
        return JSONResponse(await _whole(head, events, desk))

    return app


class _Desk:
    """Lets so many episodes run at a time."""

    def __init__(self, subject: Subject, limits: AnsweringLimits, formatter: str) -> None:
        self._subject = subject
        self._limits = limits
        self._form = get_formatter(formatter)
        self._places = asyncio.Semaphore(limits.max_concurrency)
        self.waiting = 0
        self.running = 0

    def check_room(self) -> None:
        """Raise Refused where too many wait already."""
        limits = self._limits
        if self.waiting + self.running >= limits.max_waiting + limits.max_concurrency:
            raise Refused(
                503,
                f"{self.running} questions are being answered and {self.waiting} wait: ask again "
                f"in {RETRY_AFTER_S} s",
                "overloaded",
            )

    async def events(self, question: str) -> AsyncGenerator[Event]:
        """The events of an episode, once there is a place.

        Raises:
            Refused: it takes too long, or the question does not fit.
        """
        entered = False
        self.waiting += 1
        try:
            async with self._places:
                self.waiting, self.running, entered = self.waiting - 1, self.running + 1, True
                episode = self._subject.answer(question, self._limits.timeout_s)
                async with aclosing(episode):  # a client that hangs up ends it at once
                    async for event in episode:
                        yield event
        except TimeoutError as error:
            message = f"no answer within {self._limits.timeout_s:g} s"
            raise Refused(504, message, "timeout") from error
        except InputError as error:
            raise Refused(400, str(error), "invalid_request_error") from error
        finally:
            if entered:
                self.running -= 1
            else:
                self.waiting -= 1

    def shown(self, result: SearchResult) -> str:
        """Documents as text."""
        forms = [
            self._form(number, neutralize_document(each))
            for number, each in enumerate(result.documents, start=1)
        ]
        return "\n<information>\n" + "".join(f"{form}\n" for form in forms) + "</information>\n"

    def reasoning(self, event: Event) -> str:
        """What an event adds to what led to the answer."""
        if isinstance(event, Wrote):
            return event.text
        return self.shown(event.result) if isinstance(event, Found) else ""


async def _whole(
    head: dict[str, Any], events: AsyncGenerator[Event], desk: _Desk
) -> dict[str, Any]:
    reasoning = ""
    ended: Event | None = None
    async with aclosing(events):
        async for event in events:
            reasoning, ended = reasoning + desk.reasoning(event), event
    assert isinstance(ended, Ended)
    message = {
        "role": "assistant",
        "content": _content(ended),
        "reasoning_content": reasoning,
    }
    choice = {"index": 0, "message": message, "finish_reason": _finish(ended)}
    written = sum(turn.sampled_tokens for turn in ended.played.trajectory.turns)
    usage = {"prompt_tokens": 0, "completion_tokens": written, "total_tokens": written}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}


async def _chunks(
    head: dict[str, Any], events: AsyncGenerator[Event], desk: _Desk
) -> AsyncIterator[str]:
    """Server-sent events; what fails on the way is the last of them."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _data({**head, "object": "chat.completion.chunk", "choices": [choice]})

    yield chunk({"role": "assistant"})
    try:
        async with aclosing(events):
            async for event in events:
                if piece := desk.reasoning(event):
                    yield chunk({"reasoning_content": piece})
                if isinstance(event, Ended):
                    yield chunk({"content": _content(event)})
                    yield chunk({}, _finish(event))
    except Refused as error:
        yield _data(error.body)
    yield "data: [DONE]\n\n"


def _content(ended: Ended) -> str:
    """The answer; empty where the policy gave none.

    Raises:
        Refused: engine or model failed.
    """
    trajectory = ended.played.trajectory
    if trajectory.error is not None:
        raise Refused(502, one_line(trajectory.error, []), "search_failed")
    return ended.played.answer or ""


def _finish(ended: Ended) -> str:
    return "length" if ended.played.trajectory.stop_reason in _CUT else "stop"


def _data(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
