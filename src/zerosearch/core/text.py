"""Text of outside made whole; answers and documents compared as SQuAD does (arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

# Characters of scripts that put no spaces between words, for a class of a regular expression: Thai,
# Lao, Burmese, Khmer, Tai; Han with its punctuation, kana, bopomofo.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\u3001-\u303f\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")
_PLAIN_QUOTES = str.maketrans(dict.fromkeys("‘’‚‛′´‹›", "'") | dict.fromkeys("“”„‟″«»", '"'))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def whole_characters(text: str) -> str:
    """Text with U+FFFD for each half of a surrogate pair.

    JSON may carry halves, left where a snippet was cut inside an emoji; no file, server or
    tokenizer takes them.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def plain_text(text: str) -> str:
    """One form of what looks the same: NFKC, and straight quotes for typographic ones.

    A composed and a decomposed e-acute are one letter then (e stays another), and full-width
    letters are ASCII's.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", text.translate(_PLAIN_QUOTES))


def normalize_answer(text: str) -> str:
    """SQuAD normal form of `plain_text`: lower case, no ASCII punctuation, no articles."""
    text = plain_text(text).lower().translate(_DROP_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def mentions(text: str, golden_answers: Iterable[str]) -> bool:
    """Whether a text holds an answer as whole words; "IN" is not found in "China".

    In scripts without spaces each character is a word. An answer whose normal form is empty
    ("The", "?!") is found nowhere.
    """
    words = _words(text)
    return any((answer := _words(golden)) != "  " and answer in words for golden in golden_answers)


def _words(text: str) -> str:
    """Words of the normal form, each with a space on both sides."""
    words = normalize_answer(text)
    if not words.isascii():
        words = " ".join(_UNSPACED_CHARACTER.sub(r" \g<0> ", words).split())
    return f" {words} "


def duration(seconds: float) -> str:
    """A time for people, in one unit."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
