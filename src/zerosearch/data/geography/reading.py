"""What a passage about a place says: the inverse of its wording."""

from __future__ import annotations

import re
from functools import cache

from zerosearch.data.geography.wording import PASSAGES

_FIELD = re.compile(r"\{(\w+)\}")


def read_passage(text: str) -> tuple[str, dict[str, str]] | None:
    """The place that a passage is about, and its facts by relation.

    Args:
        text: one passage in a wording of `PASSAGES`.

    Returns:
        None for text of any other form: nothing is guessed from it.
    """
    for pattern in _patterns():
        if match := pattern.fullmatch(text.strip()):
            facts = {field.replace("_", " "): value for field, value in match.groupdict().items()}
            return facts.pop("name"), facts
    return None


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    """Of all wordings; a field that comes again has the same value again."""
    return tuple(_pattern(wording) for wordings in PASSAGES.values() for wording in wordings)


def _pattern(wording: str) -> re.Pattern[str]:
    pattern, end, seen = "", 0, set()
    for field in _FIELD.finditer(wording):
        name = field[1]
        pattern += re.escape(wording[end : field.start()])
        pattern += f"(?P={name})" if name in seen else f"(?P<{name}>.+?)"
        seen.add(name)
        end = field.end()
    return re.compile(pattern + re.escape(wording[end:]))
