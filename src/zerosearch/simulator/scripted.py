"""A simulator without a language model: it writes documents from a store of facts.

It plays the part of the paper's simulation LLM (section 3.2) at no cost: asked for useful documents
it writes about what the query asks, asked for noisy ones it writes about similar places and never
mentions a golden answer. `reliability`, latency and failures are knobs, so that weaker simulators
can be swept without a GPU.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from functools import cached_property
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import NotNegative, Share
from zerosearch.core.seeding import derive_random
from zerosearch.data.geography.facts import Entity, FactStore, name_key
from zerosearch.data.geography.wording import word_passage
from zerosearch.types import Document, SearchError, SearchRequest, SearchResult

WRITER_VERSION = 2  # raise it when other results come of a request: cached ones are then not found
_MAX_DRAWS = 200  # draws of a peer without a golden answer before fewer documents are written


def mentions(text: str, answers: tuple[str, ...]) -> bool:
    """Whether a text holds one of the answers as whole words, accents and case aside."""
    padded = f" {name_key(text)} "
    keys = (name_key(answer) for answer in answers)
    return any(key and f" {key} " in padded for key in keys)


class ScriptedSimulator:
    """A `SearchEngine` that writes useful or noisy documents from facts.

    Args:
        facts: the world it knows.
        splits: subjects of these splits are known to it; a training run leaves out the held-out
            ones, so that not even a distractor shows a test subject. None: all.
        reliability: share of requests in which the quality is the one asked for, in [0, 1].
        latency_s: mean seconds a request takes; 0 answers at once.
        latency_spread: each latency is drawn from latency_s * [1 - spread, 1 + spread].
        failure_rate: share of requests that raise `SearchError`.
    """

    def __init__(
        self,
        facts: FactStore,
        *,
        splits: list[str] | None = None,
        reliability: Share = 1.0,
        latency_s: NotNegative = 0.0,
        latency_spread: Share = 0.0,
        failure_rate: Share = 0.0,
    ) -> None:
        shares = {
            "reliability": reliability,
            "latency_spread": latency_spread,
            "failure_rate": failure_rate,
        }
        for name, value in shares.items():
            if not 0.0 <= value <= 1.0:
                raise InputError(f"simulator.{name}={value}: give a share between 0 and 1")
        if latency_s < 0:
            raise InputError(f"simulator.latency_s={latency_s}: give seconds, 0 or more")
        known = {split for _, split in facts.groups}
        unknown = sorted(set(splits or ()) - known)
        if not known or unknown:
            raise InputError(
                f"search.engine.splits={splits}: the facts hold nothing of "
                f"{unknown or 'any split'}; they have the splits {sorted(known)}"
            )
        self.facts = facts if splits is None else facts.restricted(splits)
        self.reliability = reliability
        self.latency_s = latency_s
        self.latency_spread = latency_spread
        self.failure_rate = failure_rate

    async def search(self, request: SearchRequest) -> SearchResult:
        """Write `request.top_k` documents; every draw comes from `request.seed`.

        About a query that names nothing known there is nothing useful to write: its documents are
        random and on record as noisy. `reliability` leaves no trace on the record: it plays a model
        that was asked for one quality and wrote the other.

        Raises:
            SearchError: with probability `failure_rate`.
        """
        start = time.perf_counter()
        rng = derive_random(request.seed, "scripted")
        noisy = rng.random() < request.noise_probability
        as_asked = rng.random() < self.reliability
        fails = rng.random() < self.failure_rate
        await self._wait(request)
        if fails:
            raise SearchError("scripted simulator", "failed as simulator.failure_rate demands")
        return SearchResult(
            documents=self.write_documents(request, noisy == as_asked, rng),
            requested=request.top_k,
            noisy=noisy or self.facts.find(request.query) is None,
            latency_s=time.perf_counter() - start,
        )

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """The facts, the knobs that change documents or failures, and the request."""
        return {
            "engine": "scripted",
            "writer": WRITER_VERSION,
            "facts": self._fingerprint,
            "reliability": self.reliability,
            "failure_rate": self.failure_rate,
            "query": request.query,
            "golden_answers": list(request.golden_answers),
            "noise_probability": request.noise_probability,
            "top_k": request.top_k,
            "seed": request.seed,
        }

    @cached_property
    def _fingerprint(self) -> str:
        """Hex digest [32] of what is known, in order: draws depend on it."""
        known = [[place.name, place.kind, place.split, place.facts] for place in self.facts]
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()

    async def _wait(self, request: SearchRequest) -> None:
        """Take as long as a slow engine would; drawn apart, so that documents stay the same."""
        if self.latency_s == 0:
            return
        draw = derive_random(request.seed, "scripted latency").uniform(-1.0, 1.0)
        latency_s = self.latency_s * (1.0 + self.latency_spread * draw)
        await asyncio.sleep(min(latency_s, request.timeout_s))
        if latency_s > request.timeout_s:
            raise SearchError("scripted simulator", f"no answer within {request.timeout_s} s")

    def write_documents(
        self, request: SearchRequest, noisy: bool, rng: random.Random
    ) -> tuple[Document, ...]:
        """Documents of one quality; a query about nothing known gets random subjects."""
        entity = self.facts.find(request.query)
        forbidden = request.golden_answers if noisy else ()
        shown = [] if entity is None or noisy else [self.write(entity, rng)]
        titles = {document.title for document in shown} | ({entity.name} if entity else set())
        for _ in range(_MAX_DRAWS):
            if len(shown) >= request.top_k:
                break
            document = self.write(self._draw_peer(entity, rng), rng)
            if document.title not in titles and not mentions(document.text, forbidden):
                shown.append(document)
                titles.add(document.title)
        rng.shuffle(shown)
        return tuple(shown)

    def _draw_peer(self, entity: Entity | None, rng: random.Random) -> Entity:
        """A distractor: mostly of the same kind, sometimes from inside a country, or anything.

        A real engine's misses are of all these sorts (BM25 on "capital of X" also finds the cities
        of X), and a policy that has read only one sort would not carry over to it.
        """
        sort = rng.random()
        if entity is None or sort < 0.2:
            candidates = self.facts.peers(*rng.choice(self.facts.groups))
        elif sort < 0.5 and self.facts.inside(entity.name):
            candidates = self.facts.inside(entity.name)
        else:
            candidates = self.facts.peers(entity.kind, entity.split)
        return rng.choice(candidates)

    @staticmethod
    def write(entity: Entity, rng: random.Random) -> Document:
        """One document about a place."""
        return Document(title=entity.name, text=word_passage(entity, rng))
