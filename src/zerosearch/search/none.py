"""No search engine: for policies and methods that answer from what they know."""

from __future__ import annotations

from zerosearch.types import SearchError, SearchRequest, SearchResult


class NoSearch:
    """A `SearchEngine` that is not to be asked."""

    async def search(self, request: SearchRequest) -> SearchResult:
        """Always fails.

        Raises:
            SearchError: says what to change.
        """
        raise SearchError("none", "there is no engine to search with; set episode.max_turns=0")
