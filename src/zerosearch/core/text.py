"""Text of outside made whole; answers and documents compared as SQuAD does (arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

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


def normalize_answer(text: str) -> str:
    """SQuAD normal form: lower case, no ASCII punctuation, no articles, single spaces."""
    text = text.lower().translate(_DROP_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def mentions(text: str, golden_answers: Iterable[str]) -> bool:
    """Whether a text holds an answer as whole words; "IN" is not found in "China".

    An answer whose normal form is empty ("The", "?!") is found nowhere.
    """
    words = f" {normalize_answer(text)} "
    return any(
        (answer := normalize_answer(golden)) and f" {answer} " in words for golden in golden_answers
    )
