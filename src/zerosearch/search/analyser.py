"""What a word is: how BM25 reads passages and queries."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from bm25s.tokenization import Tokenizer

from zerosearch.core.errors import InputError
from zerosearch.core.text import UNSPACED

TOKEN_PATTERN = r"\S+"  # of what `words` returns; one-letter words count: "Vitamin C", "Apollo 8"
ANALYSER_VERSION = 2  # raise it when `words` changes: saved indexes are then built anew

# Letters that Unicode does not decompose, although people search for them without the stroke.
_PLAIN_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ı": "i", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe"}
)
_BETWEEN_WORDS = re.compile(r"\W+")
_UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")


def words(text: str, *, indexed: bool = False) -> str:
    """The words of a text in their order, with spaces between them.

    Letters are in lower case and without accents, so that `Łódź`, `LODZ` and `lodz` are one word.
    Where a script puts no spaces between words (Chinese, Japanese, Thai, ..), two neighbouring
    characters are a word each: the bigrams of Lucene's CJKAnalyzer. A dictionary would find more
    precise words, and others in a query than in the passage that it asks for.

    Args:
        text: of a passage or a query.
        indexed: of a passage: single characters are words beside the bigrams, so that a query of
            one character finds something.
    """
    if text.isascii():
        return _BETWEEN_WORDS.sub(" ", text.lower())
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(char for char in decomposed if not unicodedata.combining(char))
    folded = bare.casefold().translate(_PLAIN_LETTERS)
    # Vowel signs belong to their word: to `\W` they would end it in the middle.
    kept = "".join(
        char if char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M" else " "
        for char in folded
    )
    return _UNSPACED_RUN.sub(lambda run: f" {' '.join(_grams(run[0], indexed))} ", kept)


def _grams(run: str, indexed: bool) -> list[str]:
    pairs = [run[at : at + 2] for at in range(len(run) - 1)]
    return [*pairs, *run] if indexed else pairs or [run]


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
    return tuple(sorted({words(word).strip() for word in stopwords or ()}))
