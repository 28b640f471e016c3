"""What collecting may spend, over all runs into one folder."""

from __future__ import annotations

from pathlib import Path

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.core.journal import Journal
from zerosearch.search.cache import CachedSearch
from zerosearch.search.engine import SearchEngine
from zerosearch.types import SearchError, SearchRequest, SearchResult


class BudgetUsedUp(ZeroSearchError):
    """There is no query or dollar left; says which setting to raise."""


class Budget:
    """Counts queries and dollars; a killed run's spending still counts in the next one.

    A query counts when it is sent.

    Args:
        path: of the journal of spending, kept also while nothing is limited.
        queries: most queries, None: any number.
        usd: most dollars, None: any. What is under way when they are used up may go beyond.

    Raises:
        InputError: a limit is below 0, or the journal cannot be used.
    """

    def __init__(self, path: Path, *, queries: int | None, usd: float | None) -> None:
        for name, value in (("queries", queries), ("usd", usd)):
            if value is not None and not value >= 0:
                raise InputError(f"budget.{name}={value}: give 0 or more, or null for no limit")
        self.limit_queries = queries
        self.limit_usd = usd
        self._journal = Journal(path, key="n")
        rows = self._journal.rows.values()
        self.queries = sum(row["queries"] for row in rows)
        self.usd = sum(row["usd"] for row in rows)

    def take_query(self) -> None:
        """Count a query that is about to be sent.

        Raises:
            BudgetUsedUp: it would be one too many.
        """
        if self.limit_queries is not None and self.queries >= self.limit_queries:
            raise BudgetUsedUp(
                f"budget.queries={self.limit_queries} are used up: raise it and run again to go on"
            )
        self.check_usd()
        self._note(queries=1)

    def check_usd(self) -> None:
        """Raise BudgetUsedUp where no dollar is left, whatever they were spent on."""
        if self.limit_usd is not None and self.usd >= self.limit_usd:
            raise BudgetUsedUp(
                f"budget.usd={self.limit_usd:g} is used up (${self.usd:.2f} spent): raise it and "
                "run again to go on"
            )

    def spend(self, usd: float) -> None:
        """Count dollars."""
        if usd:
            self._note(usd=usd)

    def close(self) -> None:
        """Let another process use the journal."""
        self._journal.__exit__(None, None, None)

    def _note(self, queries: int = 0, usd: float = 0.0) -> None:
        self.queries += queries
        self.usd += usd
        number = str(len(self._journal.rows))
        self._journal.append({"n": number, "queries": queries, "usd": usd})


class Metered:
    """A `SearchEngine` whose queries and dollars count; what a cache answers is free."""

    def __init__(self, engine: SearchEngine, budget: Budget) -> None:
        self._engine = engine
        self._budget = budget
        self._cached = isinstance(engine, CachedSearch)
        if isinstance(engine, CachedSearch):
            engine.before_asking = budget.take_query

    async def search(self, request: SearchRequest) -> SearchResult:
        """As the engine.

        Raises:
            BudgetUsedUp: the query would have to be sent, and there is nothing left for it.
            SearchError: as the engine.
        """
        if not self._cached:
            self._budget.take_query()
        try:
            result = await self._engine.search(request)
        except SearchError as error:
            self._budget.spend(error.cost_usd)
            raise
        self._budget.spend(result.cost_usd)
        return result
