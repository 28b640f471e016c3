"""The one interface behind which stands whoever answers questions by searching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from zerosearch.search.engine import SearchEngine
from zerosearch.types import Question, Trajectory

OnText = Callable[[str], None]


@dataclass(kw_only=True, slots=True, frozen=True)
class PlayedEpisode:
    """One episode, the answer read from it, and what the agent cost; searches carry their own.

    `texts` is what a policy would have sampled, a text per turn in its tags; empty where an agent
    does not say.
    """

    trajectory: Trajectory
    answer: str | None  # None: it gave none
    cost_usd: float = 0.0
    texts: tuple[str, ...] = ()


def lost_episode(question: Question, error: Exception) -> PlayedEpisode:
    """An episode that an error ended: it counts as failed, as those without a model do."""
    trajectory = Trajectory(question=question, group=0, sibling=0, prompt_ids=[])
    trajectory.stop_reason = "model_failed"
    trajectory.error = f"{type(error).__name__}: {error}"
    return PlayedEpisode(trajectory=trajectory, answer=None)


class Agent(Protocol):
    """Plays episodes; safe to call concurrently."""

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> PlayedEpisode:
        """One episode; where a search or the model fails, its trajectory carries an `error`.

        Args:
            question: what is asked.
            engine: who answers queries.
            seed: of all draws, together with question and attempt.
            attempt: number of earlier episodes of this question.
            on_text: is told what the model writes, as soon as it is there; what it is told in a
                turn adds up to the turn's text.
        """
        ...

    async def check(self) -> None:
        """Raise an InputError with the remedy where the agent cannot play."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON values that decide what it plays."""
        ...
