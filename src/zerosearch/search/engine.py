"""The one interface behind which every search engine stands."""

from __future__ import annotations

from typing import Protocol

from zerosearch.types import SearchRequest, SearchResult


class SearchEngine(Protocol):
    """Answers queries; stateless, safe to call concurrently."""

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return at most `request.top_k` documents.

        Raises:
            SearchError: the engine could not answer; the trajectory becomes invalid.
        """
        ...
