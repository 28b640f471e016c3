"""Dense search over a passage corpus: e5 vectors in a faiss index.

What Search-R1 and ZeroSearch's authors compare with at scale; `BM25Search` needs neither a model
nor the optional packages. The golden answers and the noise probability of a request are ignored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerosearch.clients.per_loop import PerLoop
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count
from zerosearch.data.corpus import Passage, join_contents
from zerosearch.search.batching import Batcher
from zerosearch.search.embedding import E5Encoder
from zerosearch.search.retrieval import Hit, load_passages, retrieve_mixed, write_folder
from zerosearch.types import SearchError, SearchRequest, SearchResult

log = logging.getLogger(__name__)

_CHUNK = 16_384  # passages encoded and added at a time; sorted by length within
_TRAINING_PASSAGES = 262_144  # faiss wants 39 to 256 per cell; these suffice for 4096 cells
_INDEX_FILE = "index.faiss"


@dataclass(kw_only=True, slots=True, frozen=True)
class _Ready:
    encoder: E5Encoder
    passages: list[Passage]
    index: Any
    fingerprint: str


class DenseSearch:
    """Search engine over a corpus by inner product of e5 vectors.

    Queries that arrive while others are answered are encoded together. The index is built once
    and kept in a folder named after all it depends on, so that a stale one is never used.

    Args:
        corpus: Search-R1 corpus file (see `read_corpus`), or its passages.
        model: hub name or folder of an e5 encoder.
        index_dir: where to keep built indexes, or None to build one per process.
        factory: kind of index, in the words of `faiss.index_factory`: "Flat" compares with every
            passage; "IVF4096,Flat" is faster over millions and may miss some.
        nprobe: cells that are looked at, where the index has cells (IVF).
        batch_size: texts of one forward pass.
        max_tokens: longer texts are cut.

    Raises:
        InputError: an argument is out of range. Bad files are found by `prepare`.
    """

    name = "dense"

    def __init__(
        self,
        corpus: str | Path | Sequence[Passage],
        model: str = "intfloat/e5-base-v2",
        *,
        index_dir: str | Path | None = None,
        factory: str = "Flat",
        nprobe: Count = 64,
        batch_size: Count = 64,
        max_tokens: Count = 512,
    ) -> None:
        for name, value in (
            ("nprobe", nprobe),
            ("batch_size", batch_size),
            ("max_tokens", max_tokens),
        ):
            if value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        self.model = model
        self.index_dir = Path(index_dir) if index_dir is not None else None
        self.factory = factory
        self.nprobe = nprobe
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self._corpus = corpus
        self._ready: _Ready | None = None
        self._batchers = PerLoop(self._batcher, lambda batcher: batcher.close())

    @property
    def passage_count(self) -> int:
        """Passages in the corpus; 0 before `prepare`."""
        return len(self._ready.passages) if self._ready else 0

    async def check(self) -> None:
        """Load the model and the corpus, and build or load the index, before any costly work.

        Raises:
            InputError: one of them is missing or bad.
        """
        self.prepare()

    async def search(self, request: SearchRequest) -> SearchResult:
        """The nearest passages, `request.top_k` of them or as many as the corpus has.

        Raises:
            SearchError: not answered within `request.timeout_s`.
            InputError: `top_k` is below 1, or `prepare` was not called and fails.
        """
        if request.top_k < 1:
            raise InputError(f"top_k: {request.top_k} documents were asked for; ask for 1 or more")
        self.prepare()
        started = time.perf_counter()
        batcher = await self._batchers.get()
        try:
            async with asyncio.timeout(request.timeout_s):
                (hits,) = await batcher.submit([(request.query, request.top_k)])
        except TimeoutError:
            reason = f"no answer within {request.timeout_s:.3g} s, {batcher.queued} queries wait"
            raise SearchError(self.name, reason) from None
        return SearchResult(
            documents=tuple(hit.document for hit in hits),
            requested=request.top_k,
            latency_s=time.perf_counter() - started,
        )

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """Corpus, model and index by their fingerprint, and the query.

        Raises:
            InputError: `prepare` was not called and fails.
        """
        return {
            "engine": self.name,
            "index": self.prepare().fingerprint,
            "nprobe": self.nprobe,
            "query": request.query,
            "top_k": request.top_k,
        }

    def retrieve_batch(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """The nearest passages of each query, nearest first, scored by inner product in [-1, 1].

        Raises:
            InputError: `top_k` is below 1, or `prepare` was not called and fails.
        """
        if top_k < 1:
            raise InputError(f"top_k: {top_k} documents were asked for; ask for 1 or more")
        ready = self.prepare()
        scores, positions = ready.index.search(ready.encoder.encode_queries(queries), top_k)
        return [
            [
                Hit(passage=ready.passages[position], score=score)
                for score, position in zip(row_scores, row_positions, strict=True)
                if position >= 0  # -1: the index found fewer
            ]
            for row_scores, row_positions in zip(scores.tolist(), positions.tolist(), strict=True)
        ]

    def prepare(self) -> _Ready:
        """Load model and corpus, and build or load the index, once.

        Raises:
            InputError: an optional package, the model or the corpus is missing or bad, `factory`
                is none that fits, or a saved index is damaged.
        """
        if self._ready is None:
            faiss = _import_faiss()
            encoder = E5Encoder(self.model, batch_size=self.batch_size, max_tokens=self.max_tokens)
            passages = load_passages(self._corpus)
            fingerprint = self._fingerprint(encoder, passages)
            index = self._load_or_build(faiss, encoder, passages, fingerprint)
            if cells := faiss.try_extract_index_ivf(index):
                cells.nprobe = self.nprobe
            self._ready = _Ready(
                encoder=encoder, passages=passages, index=index, fingerprint=fingerprint
            )
        return self._ready

    def _batcher(self) -> Batcher[tuple[str, int], list[Hit]]:
        return Batcher(
            lambda asked: retrieve_mixed(self, asked),
            max_batch=self.batch_size,
            max_wait_s=0.0,
            max_queued=sys.maxsize,  # each trajectory waits for one search at most
        )

    def _fingerprint(self, encoder: E5Encoder, passages: list[Passage]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([encoder.fingerprint, self.factory]).encode())
        for passage in passages:
            digest.update(json.dumps([passage.title, passage.text]).encode())
        return digest.hexdigest()

    def _load_or_build(
        self, faiss: Any, encoder: E5Encoder, passages: list[Passage], fingerprint: str
    ) -> Any:
        if self.index_dir is None:
            return self._build(faiss, encoder, passages)
        folder = self.index_dir / f"dense-{fingerprint}"
        if not folder.is_dir():
            index = self._build(faiss, encoder, passages)
            write_folder(folder, lambda partial: _save_index(faiss, index, partial))
        return _load_index(faiss, folder, len(passages))

    def _build(self, faiss: Any, encoder: E5Encoder, passages: list[Passage]) -> Any:
        def encode(chosen: Sequence[Passage]) -> Any:
            return encoder.encode_passages([join_contents(p.title, p.text) for p in chosen])

        try:
            index = faiss.index_factory(encoder.dimension, self.factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                count = min(len(passages), _TRAINING_PASSAGES)
                index.train(encode(random.Random(0).sample(passages, count)))
        except RuntimeError as error:
            raise InputError(
                f"factory={self.factory!r} does not fit {len(passages)} passages "
                f"({_reason(error)}); give 'Flat' or fewer cells"
            ) from error
        for start in range(0, len(passages), _CHUNK):
            log.info("dense index: %d of %d passages encoded", start, len(passages))
            index.add(encode(passages[start : start + _CHUNK]))
        return index


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            f"dense search needs faiss ({error}): pip install 'zerosearch[retriever]'"
        ) from error
    return faiss


def _save_index(faiss: Any, index: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    faiss.write_index(index, str(folder / _INDEX_FILE))


def _load_index(faiss: Any, folder: Path, passage_count: int) -> Any:
    try:
        # Mapped, not read: a large index starts at once, and processes of a machine share it.
        index = faiss.read_index(str(folder / _INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
        if index.ntotal != passage_count:
            raise RuntimeError(f"it holds {index.ntotal} of {passage_count} passages")
    except RuntimeError as error:
        raise InputError(
            f"index_dir: the saved index {folder} is damaged ({_reason(error)}); delete that folder"
        ) from error
    return index


def _reason(error: RuntimeError) -> str:
    """What faiss found, without the place in its source code."""
    return str(error).rpartition(": ")[2] if ".cpp:" in str(error) else str(error)
