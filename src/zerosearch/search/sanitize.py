"""Makes text from outside harmless before it is inserted into an episode.

A document may hold anything: an `<answer>` tag, a chat template's end-of-turn token, invisible
characters. None of it may act as markup. Dangerous spans are rewritten into look-alikes instead of
deleted: a deletion could join its neighbours into a new dangerous span.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from zerosearch.core.controls import disarm
from zerosearch.types import Document

TAG_NAMES = ("think", "search", "information", "answer")  # the episode grammar of arXiv 2505.04588

# Zero-width joiners spell words in Persian and the Indic scripts; others of their kind only hide.
_KEPT_FORMAT_CHARACTERS = "\u200c\u200d"


class _VisibleCharacters(dict[int, int | None]):
    """Table for `str.translate`, filled as characters are met: white space to space, no hidden."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        category = unicodedata.category(char)
        hidden = category in ("Cc", "Cs") or (
            category == "Cf" and char not in _KEPT_FORMAT_CHARACTERS
        )
        self[code] = ord(" ") if char.isspace() else None if hidden else code
        return self[code]


_VISIBLE = _VisibleCharacters()


def neutralize(
    text: str,
    tag_names: Sequence[str] = TAG_NAMES,
    special_tokens: Sequence[str] = (),
) -> str:
    """Rewrite text so that nothing in it can be read as a tag or as a control token.

    Tags of the grammar get typographic brackets, in any case, with inner spaces or attributes, and
    also where the closing bracket is missing; control tokens are disarmed, see `disarm`. Control,
    invisible and broken characters are removed; each run of white space, line breaks included,
    becomes one space. Idempotent.

    Args:
        text: document text or title.
        tag_names: names of the tags to disarm, without brackets.
        special_tokens: strings the policy's tokenizer maps to single control ids.

    Returns:
        One line of text, as readable as before.

    Raises:
        InputError: a special token contains the middle dot that is used to break tokens up.
    """
    text = " ".join(text.translate(_VISIBLE).split())
    text = _tag_pattern(tuple(tag_names)).sub(_disarm_tag, text)
    return disarm(text, special_tokens)


def neutralize_document(
    document: Document,
    tag_names: Sequence[str] = TAG_NAMES,
    special_tokens: Sequence[str] = (),
) -> Document:
    """`neutralize` title and text; done before formatting, so that a formatter keeps its lines."""
    return Document(
        title=neutralize(document.title, tag_names, special_tokens),
        text=neutralize(document.text, tag_names, special_tokens),
    )


@lru_cache(maxsize=32)
def _tag_pattern(tag_names: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in tag_names)
    # (?!) matches nowhere: no names, no tags.
    return re.compile(rf"<([\s/]*(?:{names or '(?!)'})\b)([^<>]*>)?", re.IGNORECASE)


def _disarm_tag(match: re.Match[str]) -> str:
    rest = match[2]
    return f"‹{match[1]}" + (f"{rest[:-1]}›" if rest else "")
