"""The one interface behind which every search engine stands, and what it may offer besides."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from zerosearch.types import SearchRequest, SearchResult


class SearchEngine(Protocol):
    """Answers queries; stateless, safe to call concurrently."""

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return at most `request.top_k` documents.

        Raises:
            SearchError: the engine could not answer; the trajectory becomes invalid.
        """
        ...


@runtime_checkable
class Checkable(Protocol):
    """An engine that can say early whether it will be able to answer."""

    async def check(self) -> None:
        """Raise an InputError with the remedy where the engine cannot answer."""
        ...


@runtime_checkable
class Cacheable(Protocol):
    """An engine whose results can be kept and replayed."""

    def cache_key(self, request: SearchRequest) -> dict[str, Any]:
        """Everything that determines the result, as JSON values, and nothing else."""
        ...
