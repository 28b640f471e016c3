"""Tells thinking, query and answer apart in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Section = Literal["text", "think", "search", "answer"]

_TAGS: dict[str, Section] = {
    "<think>": "think",
    "<search>": "search",
    "<answer>": "answer",
    "</think>": "text",
    "</search>": "text",
    "</answer>": "text",
}
_LONGEST = max(map(len, _TAGS))


class Sections:
    """Splits a stream; tags are taken out, also where a piece ends in the middle of one."""

    def __init__(self) -> None:
        self._section: Section = "text"
        self._held = ""  # may be the start of a tag

    def feed(self, piece: str) -> Iterator[tuple[Section, str]]:
        """Take a piece; yields what is certain by now, in order."""
        text = self._held + piece
        self._held = ""
        while text:
            start = text.find("<")
            if start < 0:
                yield self._section, text
                return
            if start:
                yield self._section, text[:start]
                text = text[start:]
            tag = next((tag for tag in _TAGS if text.startswith(tag)), None)
            if tag is not None:
                self._section, text = _TAGS[tag], text[len(tag) :]
            elif len(text) < _LONGEST and any(tag.startswith(text) for tag in _TAGS):
                self._held = text
                return
            else:
                yield self._section, "<"
                text = text[1:]

    def end(self) -> Iterator[tuple[Section, str]]:
        """The text is over: what was held back was no tag."""
        if self._held:
            yield self._section, self._held
        self._held, self._section = "", "text"
