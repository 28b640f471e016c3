"""Verdicts -> the rows a simulator is tuned on.

A useful row holds documents of which at least one suffices, a noisy row only documents that do not,
all of one search: so a simulator learns what a real engine returns when it helps and when it does
not. Documents without a verdict are in neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.core.files import replacing
from zerosearch.core.ranges import Count, Share
from zerosearch.core.seeding import derive_random
from zerosearch.core.text import mentions
from zerosearch.simulator.fidelity import findable
from zerosearch.tuning.judges import Case
from zerosearch.types import Document

_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|$)", re.DOTALL)


@dataclass(kw_only=True, slots=True, frozen=True)
class JudgedSearch:
    """One search with a verdict for each of its documents."""

    id: str  # of episode and search
    cases: tuple[Case, ...]  # documents in the engine's order
    useful: tuple[bool | None, ...]  # aligned with them


@dataclass(kw_only=True, slots=True, frozen=True)
class RowMaker:
    """What rows are like.

    Args:
        top_k: numbers of documents; each search gives a row of each quality for each of them.
        max_words: of a document; a longer one is cut at sentence ends, around a golden answer if it
            holds one and is useful. None: documents as they are.
        allow_fewer: make rows of as many documents as there are where a search has fewer.
        validation_share: share of questions whose rows are held out.
    """

    top_k: Sequence[int] = (1,)
    max_words: Count | None = None
    allow_fewer: bool = False
    validation_share: Share = 0.05

    def __post_init__(self) -> None:
        if not self.top_k or min(self.top_k) < 1:
            raise InputError(f"rows.top_k={list(self.top_k)}: give numbers of 1 or more")
        if self.max_words is not None and self.max_words < 5:
            raise InputError(f"rows.max_words={self.max_words}: give 5 or more, or null")
        if not 0 < self.validation_share < 1:
            raise InputError(
                f"rows.validation_share={self.validation_share}: give a share between 0 and 1"
            )

    def make(self, searches: Sequence[JudgedSearch]) -> list[dict[str, Any]]:
        """Rows of all searches, in their order, each different row once.

        Raises:
            InputError: one quality has no row.
        """
        rows: dict[str, dict[str, Any]] = {}
        for search in searches:
            for row in self._rows(search):
                told = [row[name] for name in ("question", "query", "quality", "documents")]
                rows.setdefault(json.dumps(told), row)
        found = list(rows.values())
        for quality in ("useful", "noisy"):
            if not any(row["quality"] == quality for row in found):
                raise InputError(
                    f"rows.top_k={list(self.top_k)}: {len(searches)} searches give no {quality} "
                    "row; collect more searches, ask for fewer documents, or set "
                    "rows.allow_fewer=true"
                )
        return found

    def split(
        self, rows: Sequence[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows for training and for validation: whole questions, always the same ones."""

        def is_held_out(row: dict[str, Any]) -> bool:
            draw = derive_random("rows validation", row["question"]).random()
            return draw < self.validation_share

        held_out = [is_held_out(row) for row in rows]
        train = [row for row, out in zip(rows, held_out, strict=True) if not out]
        return train, [row for row, out in zip(rows, held_out, strict=True) if out]

    def _rows(self, search: JudgedSearch) -> Iterator[dict[str, Any]]:
        useful = [n for n, verdict in enumerate(search.useful) if verdict is True]
        known = [n for n, verdict in enumerate(search.useful) if verdict is not None]
        noisy = [n for n in known if n not in useful]
        for count in self.top_k:
            for quality, candidates in (("useful", known if useful else []), ("noisy", noisy)):
                chosen = candidates[:count]
                if quality == "useful" and useful and not set(chosen) & set(useful):
                    chosen[-1] = useful[0]
                if chosen and (len(chosen) == count or self.allow_fewer):
                    yield self._row(search, quality, chosen)

    def _row(self, search: JudgedSearch, quality: str, chosen: Sequence[int]) -> dict[str, Any]:
        case = search.cases[chosen[0]]
        documents = [
            self._shortened(search.cases[n].document, case.golden_answers, search.useful[n] is True)
            for n in chosen
        ]
        return {
            "id": f"{search.id}/{quality}/{len(chosen)}",
            "question": case.question,
            "golden_answers": list(case.golden_answers),
            "query": case.query,
            "quality": quality,
            "documents": [{"title": each.title, "text": each.text} for each in documents],
        }

    def _shortened(self, document: Document, answers: Sequence[str], useful: bool) -> Document:
        if self.max_words is None:
            return document
        sought = findable(answers) if useful else []
        return Document(title=document.title, text=shorten(document.text, self.max_words, sought))


def shorten(text: str, max_words: int, keep: Sequence[str] = ()) -> str:
    """Whole sentences of a text, at most `max_words` words where one is not longer by itself.

    Args:
        text: of a document.
        max_words: of the result.
        keep: the sentences end with the first that mentions one of these, where any does;
            otherwise they are the first ones.
    """
    sentences = _SENTENCE.findall(" ".join(text.split()))
    if not sentences:
        return text
    last = next((n for n, each in enumerate(sentences) if mentions(each, keep)), None)
    first = 0 if last is None else last
    words = len(sentences[first].split())
    while last is not None and first > 0:
        words += len(sentences[first - 1].split())
        if words > max_words:
            break
        first -= 1
    kept, words = sentences[first : (last or 0) + 1], 0
    words = sum(len(each.split()) for each in kept)
    for sentence in sentences[(last or 0) + 1 :]:
        words += len(sentence.split())
        if words > max_words:
            break
        kept.append(sentence)
    return " ".join(kept)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace a file of JSON lines, atomically."""
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
