"""The one interface behind which stands whoever answers questions by searching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question, Trajectory


@dataclass(kw_only=True, slots=True, frozen=True)
class Played:
    """One episode and what the agent itself cost; searches carry their own cost."""

    trajectory: Trajectory
    cost_usd: float = 0.0


class Agent(Protocol):
    """Plays episodes; safe to call concurrently."""

    async def play(
        self, question: Question, engine: SearchEngine, *, seed: int, attempt: int
    ) -> Played:
        """One episode; where a search or the model fails, its trajectory carries an `error`.

        Args:
            question: what is asked.
            engine: who answers queries.
            seed: of all draws, together with question and attempt.
            attempt: number of earlier episodes of this question.
        """
        ...

    async def check(self) -> None:
        """Raise a ValueError with the mend where the agent cannot play."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON values that decide what it plays."""
        ...
