"""An episode as it happens."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.answering.subjects import EPISODE, make_subject
from tests.helpers.engines import ScriptedEngine
from zerosearch.answering.events import Ended, Event, Found, Searching, Wrote
from zerosearch.answering.load import Subject
from zerosearch.answering.terminal import Screen, as_json


def events_of(subject: Subject, question: str) -> list[Event]:
    async def listen() -> list[Event]:
        return [event async for event in subject.answer(question)]

    return asyncio.run(listen())


def question_with(subject: Subject, searches: int) -> tuple[str, list[Event]]:
    """A question that takes so many searches and is answered, and what happens."""
    for number in range(100):
        events = events_of(subject, f"colour {number}")
        ended = events[-1]
        assert isinstance(ended, Ended)
        if len(ended.played.trajectory.searches) == searches and ended.played.answer:
            return f"colour {number}", events
    raise AssertionError("no such question among a hundred")


def test_the_pieces_are_the_turns_and_come_before_what_follows(tmp_path: Path) -> None:
    _, events = question_with(make_subject(tmp_path), 2)
    ended = events[-1]
    assert isinstance(ended, Ended)
    turns = ended.played.trajectory.turns
    written = [""]
    kinds = []
    for event in events:
        if isinstance(event, Wrote):
            written[-1] += event.text
            if kinds[-1:] != ["wrote"]:
                kinds.append("wrote")
        elif isinstance(event, Searching):
            written.append("")
            kinds.append("searching")
        elif isinstance(event, Found):
            kinds.append("found")
    assert written == [turn.text for turn in turns] and len(turns) == 3
    assert kinds == ["wrote", "searching", "found"] * 2 + ["wrote"]
    pieces = [event for event in events if isinstance(event, Wrote)]
    assert len(pieces) > len(turns), "it is told while the model writes"


def test_told_or_not_the_model_writes_the_same(tmp_path: Path) -> None:
    subject = make_subject(tmp_path)
    question, events = question_with(subject, 1)
    ended = events[-1]
    assert isinstance(ended, Ended)
    again = events_of(make_subject(tmp_path), question)[-1]
    assert isinstance(again, Ended)
    assert again.played.trajectory.response_ids == ended.played.trajectory.response_ids


def test_who_stops_listening_ends_the_episode(tmp_path: Path) -> None:
    class Slow(ScriptedEngine):
        left = False

        async def search(self, request):  # type: ignore[no-untyped-def]
            try:
                await asyncio.sleep(3600)
            finally:
                self.left = True

    engine = Slow([])
    subject = make_subject(tmp_path, engine, ask=1.0)

    async def listen() -> None:
        events = subject.answer("colour 1")
        async for event in events:
            if isinstance(event, Searching):
                break
        await events.aclose()
        await asyncio.sleep(0)

    asyncio.run(listen())
    assert engine.left


def test_a_question_that_does_not_fit_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"episode\.max_prompt_tokens=16"):
        events_of(make_subject(tmp_path), "word " * EPISODE.max_prompt_tokens)


def shown(events: list[Event]) -> str:
    console = Console(file=io.StringIO(), width=100, record=True)
    screen = Screen(console)
    for event in events:
        screen.show(event)
    return console.export_text()


def test_the_terminal_shows_queries_documents_and_answer(tmp_path: Path) -> None:
    _, events = question_with(make_subject(tmp_path), 1)
    ended = events[-1]
    assert isinstance(ended, Ended)
    text = shown(events)
    query = ended.played.trajectory.turns[0].query
    assert f"search {query}" in text and "1 The colour is red." in text
    assert f"answer {ended.played.answer}" in text and "(1 search," in text
    assert "<search>" not in text and "<answer>" not in text


def test_the_terminal_says_what_failed(tmp_path: Path) -> None:
    lost = ScriptedEngine([], failing=("colour 1",))
    text = shown(events_of(make_subject(tmp_path, lost, ask=1.0), "colour 1"))
    assert "failed search engine http://search.test/retrieve" in " ".join(text.split())
    many = shown(events_of(make_subject(tmp_path, ask=1.0), "colour 1"))
    assert "no answer (it ended by: max_turns)" in many


def test_json_holds_the_whole_episode(tmp_path: Path) -> None:
    question, events = question_with(make_subject(tmp_path), 1)
    ended = events[-1]
    assert isinstance(ended, Ended)
    row = json.loads(as_json(question, ended))
    assert row["question"] == question and row["answer"] == ended.played.answer
    assert row["searches"] == 1 and len(row["turns"]) == 2
    assert row["turns"][0]["documents"][0] == {"title": "", "text": "The colour is red."}
