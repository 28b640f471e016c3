"""A search engine that answers with given documents, for tests of whatever stands above search."""

from __future__ import annotations

from collections.abc import Callable

from zerosearch.types import Document, SearchError, SearchRequest, SearchResult


class ScriptedEngine:
    """Answers each request with given texts and remembers it.

    Args:
        answer: the texts, or a function of the request that gives them; it may raise.
        failing: questions (by text) whose searches fail.
        real: plays an engine without noise, not a simulator.
    """

    def __init__(
        self,
        answer: list[str] | Callable[[SearchRequest], list[str]],
        *,
        failing: tuple[str, ...] = (),
        real: bool = False,
    ) -> None:
        self.real = real
        self.requests: list[SearchRequest] = []
        self._answer = answer
        self._failing = failing

    async def search(self, request: SearchRequest) -> SearchResult:
        """The texts as documents without a title."""
        self.requests.append(request)
        if request.question in self._failing:
            raise SearchError("http://search.test/retrieve", "no answer after 3 attempts")
        texts = self._answer(request) if callable(self._answer) else self._answer
        return SearchResult(
            documents=tuple(Document(text=text) for text in texts),
            requested=request.top_k,
            noisy=None if self.real else False,
        )
