"""Thinking, query and answer in text that comes in pieces."""

from __future__ import annotations

import random

import pytest

from zerosearch.answering.sections import Sections

TEXT = "So <think>a < b</think> now<search>who</search>x <answer>Ada</answer> <b"
WHOLE = {"text": "So  nowx  <b", "think": "a < b", "search": "who", "answer": "Ada"}


def split(pieces: list[str]) -> dict[str, str]:
    sections, found = Sections(), {}
    for piece in pieces:
        for section, text in sections.feed(piece):
            found[section] = found.get(section, "") + text
    for section, text in sections.end():
        found[section] = found.get(section, "") + text
    return found


@pytest.mark.parametrize("seed", range(20))
def test_however_the_text_is_cut_the_sections_are_the_same(seed: int) -> None:
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(1, len(TEXT)), seed))
    pieces = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
    assert "".join(pieces) == TEXT
    assert split(pieces) == WHOLE == split(list(TEXT))


def test_what_cannot_be_a_tag_is_not_held_back() -> None:
    sections = Sections()
    assert list(sections.feed("a <")) == [("text", "a ")]
    assert "".join(text for _, text in sections.feed(" 3")) == "< 3"


def test_a_turn_starts_anew() -> None:
    sections = Sections()
    list(sections.feed("<think>never closed"))
    list(sections.end())
    assert list(sections.feed("x")) == [("text", "x")]
