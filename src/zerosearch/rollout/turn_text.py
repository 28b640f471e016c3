"""What an agent of any grammar wrote, as the policy would write it, for a policy to learn from.

A turn is `<think> .. </think> <search> query </search>`, the last `<think> .. </think>
<answer> .. </answer>`. Only these tags are markup in it.
"""

from __future__ import annotations

from zerosearch.core.controls import THINK, disarm
from zerosearch.rollout.tags import ANSWER, SEARCH, parse_turn
from zerosearch.search.sanitize import TAG_NAMES, neutralize
from zerosearch.types import Turn

_TAG_NAMES = (*TAG_NAMES, "tool_call", "tool_response")


def harmless(text: str) -> str:
    """One line without tags and control tokens."""
    return disarm(neutralize(text, _TAG_NAMES))


def turn_text(*, thought: str, tags: tuple[str, str] | None, content: str = "") -> str:
    """A turn in the policy's tags.

    Args:
        thought: the reasoning before the action, lines of text; may be empty.
        tags: of the action; None: there is none.
        content: the query or the answer.
    """
    lines = (harmless(line) for line in thought.splitlines())
    thought = "\n".join(line for line in lines if line)
    parts = [f"{THINK[0]} {thought} {THINK[1]}"] if thought else []
    if tags is not None:
        parts.append(f"{tags[0]} {harmless(content)} {tags[1]}")
    return " ".join(parts)


def in_tags(turn: Turn, answer: str | None) -> str:
    """A turn of a chat agent in the policy's tags.

    Args:
        turn: as the environment read it.
        answer: of the episode, which some agents give without tags.
    """
    if turn.action == "invalid":
        return turn_text(thought=_without_think(turn.text), tags=None)
    tags = SEARCH if turn.action == "search" else ANSWER
    opening = turn.text.rfind(tags[0], 0, max(turn.text.rfind(tags[1]), 0))
    thought = _without_think(turn.text[:opening]) if opening >= 0 else ""
    found = turn.query if turn.action == "search" else parse_turn(turn.text).content or answer
    return turn_text(thought=thought, tags=tags, content=found or "")


def _without_think(text: str) -> str:
    """The reasoning without the pair of tags around it; further ones are text."""
    return text.replace(THINK[0], "", 1).replace(THINK[1], "\n", 1)
