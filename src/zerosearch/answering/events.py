"""An episode as it happens: what the model writes, what it asks for, what it reads, its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from zerosearch.rollout.agent import Agent, PlayedEpisode
from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question, SearchRequest, SearchResult


@dataclass(kw_only=True, slots=True, frozen=True)
class Wrote:
    """The model wrote on."""

    text: str


@dataclass(kw_only=True, slots=True, frozen=True)
class Searching:
    """A query was sent."""

    query: str


@dataclass(kw_only=True, slots=True, frozen=True)
class Found:
    """Its documents are there."""

    query: str
    result: SearchResult


@dataclass(kw_only=True, slots=True, frozen=True)
class Ended:
    """The episode is over; the last event."""

    played: PlayedEpisode
    seconds: float


Event = Wrote | Searching | Found | Ended


async def answer(
    agent: Agent, engine: SearchEngine, text: str, *, seed: int, timeout_s: float | None = None
) -> AsyncGenerator[Event]:
    """Answer one question; whoever stops listening ends the episode.

    Args:
        agent: who answers.
        engine: who is searched.
        text: of the question.
        seed: of all draws.
        timeout_s: of the whole episode; None: any time.

    Raises:
        InputError: the question does not fit the agent's prompt.
        TimeoutError: the time is over.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    question = Question(uid=text, text=text, golden_answers=())
    started = time.perf_counter()
    playing = asyncio.create_task(
        agent.play(
            question,
            _Watched(engine, events),
            seed=seed,
            attempt=0,
            on_text=lambda piece: events.put_nowait(Wrote(text=piece)),
        )
    )
    playing.add_done_callback(lambda _: events.put_nowait(None))
    try:
        # The wait is bounded and not the block: a listener that is slow to take an event would be
        # cancelled in the place of the episode.
        while True:
            rest = None if timeout_s is None else timeout_s - (time.perf_counter() - started)
            event = await asyncio.wait_for(events.get(), rest)
            if event is None:
                break
            yield event
        yield Ended(played=playing.result(), seconds=time.perf_counter() - started)
    finally:
        playing.cancel()


class _Watched:
    """An engine whose searches are events."""

    def __init__(self, engine: SearchEngine, events: asyncio.Queue[Event | None]) -> None:
        self._engine = engine
        self._events = events

    async def search(self, request: SearchRequest) -> SearchResult:
        self._events.put_nowait(Searching(query=request.query))
        result = await self._engine.search(request)
        self._events.put_nowait(Found(query=request.query, result=result))
        return result
