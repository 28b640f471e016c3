"""BM25 over a passage corpus: the real engine that runs anywhere, with no server and no key.

The paper evaluates against a web search engine; here BM25 (through the library bm25s) plays that
part. It ignores the golden answers and the noise probability of a request.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import bm25s
import numpy as np

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import NotNegative, Share
from zerosearch.data.corpus import Passage
from zerosearch.search.analyser import (
    ANALYSER_VERSION,
    TOKEN_PATTERN,
    resolve_stopwords,
    words,
)
from zerosearch.search.retrieval import Hit, load_passages, write_folder
from zerosearch.types import SearchRequest, SearchResult

# bm25s sets its logger to DEBUG when imported, which would flood a run that logs everything.
logging.getLogger("bm25s").setLevel(logging.WARNING)


@dataclass(kw_only=True, eq=False)
class _Indexed:
    """A corpus with its index; never changed, so that engines may share one."""

    passages: list[Passage]
    index: bm25s.BM25
    fingerprint: str


# An index lives as long as an engine that uses it: training and evaluation with the same engine
# are two engines over one corpus.
_SHARED: WeakValueDictionary[tuple[Any, ...], _Indexed] = WeakValueDictionary()


class BM25Search:
    """Search engine over a corpus; deterministic, with ties in corpus order.

    Engines of one process that read the same file with the same parameters share its index.

    Args:
        corpus: Search-R1 corpus file (see `read_corpus`), or its passages.
        k1: term-frequency saturation, at least 0. The defaults of k1 and b are those of bm25s; on
            recorded searches of a trained agent they found more of the recorded documents than
            1.2 / 0.75 (Lucene) and 0.9 / 0.4 (Anserini).
        b: length normalisation, in [0, 1].
        stopwords: language name or code that bm25s knows ("en"), the words themselves, or None.
        index_dir: where to keep built indexes, or None to build one per process.

    Raises:
        InputError: a parameter is out of range. A bad corpus is found by `prepare`.
    """

    name = "bm25"

    def __init__(
        self,
        corpus: str | Path | Sequence[Passage],
        k1: NotNegative = 1.5,
        b: Share = 0.75,
        stopwords: str | Sequence[str] | None = "en",
        index_dir: str | Path | None = None,
    ) -> None:
        if not 0 <= k1 < math.inf:
            raise InputError(f"k1: {k1} is not a number of at least 0; 1.5 is usual")
        if not 0 <= b <= 1:
            raise InputError(f"b: {b} is outside [0, 1]; 0.75 is usual")
        self.k1, self.b = k1, b
        self.stopwords = resolve_stopwords(stopwords)
        self.index_dir = Path(index_dir) if index_dir is not None else None
        self._corpus = corpus
        self._indexed: _Indexed | None = None

    @property
    def passage_count(self) -> int:
        """Passages in the corpus; 0 before `prepare`."""
        return len(self._indexed.passages) if self._indexed else 0

    async def check(self) -> None:
        """Read the corpus before any costly work.

        Raises:
            InputError: the corpus is missing or bad.
        """
        self.prepare()

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return the best passages that share a term with the query, at most `request.top_k`.

        A query without a known term gets no documents: an empty result, not an error.

        Raises:
            InputError: `top_k` is below 1, or the corpus is bad (first call without `prepare`).
        """
        self.prepare()
        started = time.perf_counter()
        # Answered on the event loop, not in a thread: a query takes well under a millisecond, and
        # the order in which trajectories get their answers stays a function of the program alone,
        # which resume bit for bit rests on.
        hits = self._hits(request.query, request.top_k)
        return SearchResult(
            documents=tuple(hit.document for hit in hits),
            requested=request.top_k,
            noisy=None,
            latency_s=time.perf_counter() - started,
        )

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """The corpus and the parameters by their fingerprint, and the query.

        Raises:
            InputError: the corpus is bad (first call without `prepare`).
        """
        return {
            "engine": self.name,
            "index": self._prepared().fingerprint,
            "query": request.query,
            "top_k": request.top_k,
        }

    def retrieve(self, query: str, top_k: int) -> list[Passage]:
        """The best passages of a query, best first; equal scores in corpus order.

        Args:
            query: plain text.
            top_k: most passages to return, at least 1; may exceed the corpus.

        Raises:
            InputError: `top_k` is below 1, or the corpus is bad (first call without `prepare`).
        """
        return [hit.passage for hit in self._hits(query, top_k)]

    def retrieve_batch(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """As `retrieve`, for many queries and with the scores."""
        return [self._hits(query, top_k) for query in queries]

    def prepare(self) -> bm25s.BM25:
        """Read the corpus and build or load its index, once; called by the first search otherwise.

        Returns:
            The index, whose document positions are those of the corpus.

        Raises:
            InputError: the corpus is bad or has no words, or a saved index is damaged.
        """
        return self._prepared().index

    def _prepared(self) -> _Indexed:
        if self._indexed is None:
            key = self._share_key()
            indexed = _SHARED.get(key) if key else None
            if indexed is None:
                passages = load_passages(self._corpus)
                fingerprint = self.fingerprint(passages)
                if self.index_dir is None:
                    index = self._build(passages)
                else:
                    index = self._load_or_build(passages, self.index_dir, fingerprint)
                indexed = _Indexed(passages=passages, index=index, fingerprint=fingerprint)
            if key:
                _SHARED[key] = indexed
            self._indexed = indexed
        return self._indexed

    def _share_key(self) -> tuple[Any, ...] | None:
        """What two engines must have in common to share an index; None where they never do."""
        if not isinstance(self._corpus, str | Path) or not Path(self._corpus).is_file():
            return None
        path = Path(self._corpus).resolve()
        stat = path.stat()
        settings = (self.k1, self.b, self.stopwords, self.index_dir)
        return (path, stat.st_mtime_ns, stat.st_size, *settings)

    def _hits(self, query: str, top_k: int) -> list[Hit]:
        if top_k < 1:
            raise InputError(f"top_k: {top_k} documents were asked for; ask for 1 or more")
        indexed = self._prepared()
        terms = bm25s.tokenize(
            words(query),
            lower=False,
            token_pattern=TOKEN_PATTERN,
            stopwords=list(self.stopwords),
            return_ids=False,
            show_progress=False,
        )
        term_ids = indexed.index.get_tokens_ids(terms[0])  # type: ignore[index]  # a list without ids
        if not term_ids:
            return []
        scores = indexed.index.get_scores_from_ids(term_ids)
        return [
            Hit(passage=indexed.passages[position], score=float(scores[position]))
            for position in best_positions(scores, top_k)
        ]

    def _build(self, passages: list[Passage]) -> bm25s.BM25:
        tokens = bm25s.tokenize(
            [words(f"{passage.title}\n{passage.text}", indexed=True) for passage in passages],
            lower=False,
            token_pattern=TOKEN_PATTERN,
            stopwords=list(self.stopwords),
            show_progress=False,
        )
        assert isinstance(tokens, bm25s.tokenization.Tokenized)
        if not tokens.vocab:
            raise InputError(
                "corpus: passages hold nothing but stop words; there is nothing to find"
            )
        # numpy by name: the numba backend, where installed, may sum scores in another order.
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", backend="numpy")
        index.index(tokens, create_empty_token=False, show_progress=False)
        return index

    def _load_or_build(
        self, passages: list[Passage], index_dir: Path, fingerprint: str
    ) -> bm25s.BM25:
        # The fingerprint is the folder's name, so an index of another corpus is never picked up.
        folder = index_dir / f"bm25-{fingerprint}"
        if folder.is_dir():
            return _load_index(folder, len(passages))
        index = self._build(passages)
        _save_index(index, folder)
        return index

    def fingerprint(self, passages: Iterable[Passage]) -> str:
        """Hex digest [32] of all that an index depends on: texts in order, parameters, versions."""
        digest = hashlib.blake2b(digest_size=16)
        versions = [ANALYSER_VERSION, bm25s.__version__, unicodedata.unidata_version]
        settings = [self.k1, self.b, "lucene", TOKEN_PATTERN, self.stopwords, versions]
        digest.update(json.dumps(settings).encode())
        for passage in passages:
            digest.update(json.dumps([passage.title, passage.text]).encode())
        return digest.hexdigest()


def best_positions(scores: np.ndarray, count: int) -> list[int]:
    """Positions of the highest positive scores, highest first, equal scores by position.

    Args:
        scores: [N], not negative.
        count: most positions to return, at least 1.

    Returns:
        At most `count` positions; fewer when fewer scores are positive.
    """
    positions = np.flatnonzero(scores > 0)
    values = scores[positions]
    if count < len(values):
        # A partition alone would keep an arbitrary choice among those tied at the boundary.
        boundary = np.partition(values, len(values) - count)[len(values) - count]
        positions = positions[values >= boundary]
    order = np.argsort(-scores[positions], kind="stable")[:count]
    return positions[order].tolist()


def _load_index(folder: Path, passage_count: int) -> bm25s.BM25:
    try:
        index = bm25s.BM25.load(folder, show_progress=False)
        starts = index.scores["indptr"]
        entries = {len(index.scores["data"]), len(index.scores["indices"]), int(starts[-1])}
        whole = len(starts) == len(index.vocab_dict) + 1 and len(entries) == 1
        if not whole or index.scores["num_docs"] != passage_count:
            raise InputError("its arrays do not fit together")
    except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"index_dir: the saved index {folder} is damaged ({error}); delete that folder"
        ) from error
    return index


def _save_index(index: bm25s.BM25, folder: Path) -> None:
    write_folder(folder, lambda partial: index.save(partial, show_progress=False))
