"""What a word is: how BM25 reads passages and queries."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from bm25s.tokenization import Tokenizer

from zerosearch.core.errors import InputError

TOKEN_PATTERN = r"\w+"  # one-letter words count: "Vitamin C", "Apollo 8"
ANALYSER_VERSION = 1  # raise it when `fold_text` changes: saved indexes are then built anew

# Letters that Unicode does not decompose, although people search for them without the stroke.
_PLAIN_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ı": "i", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe"}
)


def fold_text(text: str) -> str:
    """Lower-case letters without accents, so that `Łódź`, `LODZ` and `lodz` are one word."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(char for char in decomposed if not unicodedata.combining(char))
    return bare.casefold().translate(_PLAIN_LETTERS)


def resolve_stopwords(stopwords: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop words as they are compared: folded, sorted, each once.

    Args:
        stopwords: language name or code that bm25s knows, the words themselves, or None.

    Raises:
        InputError: bm25s does not know the language.
    """
    if isinstance(stopwords, str):
        try:
            stopwords = Tokenizer(stopwords=stopwords).stopwords
        except ValueError as error:
            raise InputError(
                f"stopwords: {stopwords!r} is no language that bm25s knows; "
                "give 'en', a list of words or null"
            ) from error
    return tuple(sorted({fold_text(word) for word in stopwords or ()}))
