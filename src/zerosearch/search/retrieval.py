"""What an engine over a corpus offers beside searches: ranked passages for many queries at once."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from zerosearch.core.errors import InputError
from zerosearch.data.corpus import Passage, read_corpus
from zerosearch.types import Document

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_ABANDONED_S = 86_400


@dataclass(kw_only=True, slots=True, frozen=True)
class Hit:
    """A passage that answers a query; a higher score is a better match, on the engine's scale."""

    passage: Passage
    score: float

    @property
    def document(self) -> Document:
        """The passage as the policy sees it."""
        return Document(title=self.passage.title, text=self.passage.text)


@runtime_checkable
class Retriever(Protocol):
    """An engine that `zerosearch retrieve` can serve."""

    name: str

    @property
    def passage_count(self) -> int:
        """Passages in the corpus; 0 before `prepare`."""
        ...

    def prepare(self) -> object:
        """Read the corpus and build or load its index, once.

        Raises:
            InputError: the corpus, the index or the model is missing or bad.
        """
        ...

    def retrieve_batch(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """The hits of each query, best first, at most `top_k`; called from one thread at a time."""
        ...


def load_passages(corpus: str | Path | Sequence[Passage]) -> list[Passage]:
    """The passages of a corpus file, or those given.

    Raises:
        InputError: there are none, or the file is bad.
    """
    passages = read_corpus(corpus) if isinstance(corpus, str | Path) else list(corpus)
    if not passages:
        raise InputError("corpus: the list of passages is empty; give at least one")
    return passages


def retrieve_mixed(engine: Retriever, asked: Sequence[tuple[str, int]]) -> list[list[Hit]]:
    """The hits of queries that want different numbers of passages, found in one go.

    Args:
        engine: who finds them.
        asked: query and number of passages, at least one pair.
    """
    most = max(top_k for _, top_k in asked)
    found = engine.retrieve_batch([query for query, _ in asked], most)
    return [hits[:top_k] for hits, (_, top_k) in zip(found, asked, strict=True)]


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Make a folder that is only ever seen whole: by another process, and after a kill.

    What killed processes were writing beside it goes when it is `_ABANDONED_S` old: until then
    another process may still be at it.

    Args:
        folder: where it is to be; one that is there already stays.
        write: fills the path it is given, which it may have to create.
    """
    for left in folder.parent.glob(".*.partial"):
        with suppress(OSError):  # another process has removed it, or it is another user's
            if _PARTIAL.fullmatch(left.name) and time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        write(partial)
        try:
            os.rename(partial, folder)
        except OSError:
            # Another process of the same run may have written the same folder first.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
