"""The tag grammar of an episode: what the policy writes and how it is read.

The policy thinks in `<think>`, asks in `<search>`, reads `<information>` and answers in `<answer>`
(paper, section 3.1). Generation stops at a closing tag, so a turn holds at most one action, at its
end.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerosearch.types import Action

SEARCH = ("<search>", "</search>")
ANSWER = ("<answer>", "</answer>")
INFORMATION = ("<information>", "</information>")
STOP_TAGS = (SEARCH[1], ANSWER[1])


@dataclass(kw_only=True, slots=True, frozen=True)
class ParsedTurn:
    """The action of one sampled turn; `content` is the query or the answer, stripped."""

    action: Action
    content: str = ""


def _content(text: str, tags: tuple[str, str]) -> tuple[int, str] | None:
    """Position of the last closing tag and the text between it and its opening tag, if whole."""
    close = text.rfind(tags[1])
    start = text.rfind(tags[0], 0, close) if close >= 0 else -1
    return None if start < 0 else (close, text[start + len(tags[0]) : close].strip())


def parse_turn(text: str) -> ParsedTurn:
    """Read the action of a sampled turn: the complete pair of tags that closes last.

    Returns:
        `invalid` where no pair is complete or the query is empty. An empty answer is an answer.
    """
    search, answer = _content(text, SEARCH), _content(text, ANSWER)
    if answer is not None and (search is None or answer[0] > search[0]):
        return ParsedTurn(action="answer", content=answer[1])
    if search is not None and search[1]:
        return ParsedTurn(action="search", content=search[1])
    return ParsedTurn(action="invalid")
