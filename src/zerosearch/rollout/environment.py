"""One episode in text: the policy's turn goes in, what the policy reads next comes out.

Single use and free of token ids: budgets in tokens are the rollouter's business, so an observation
is handed over as whole documents that can be dropped one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerosearch.core.seeding import derive_seed
from zerosearch.generation.generator import CompletionStop
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import INFORMATION, parse_turn
from zerosearch.search.engine import SearchEngine
from zerosearch.search.formatters import get_formatter
from zerosearch.search.sanitize import neutralize_document
from zerosearch.types import (
    Document,
    Question,
    SearchError,
    SearchRequest,
    SearchResult,
    Shown,
    StopReason,
    Turn,
)

_MAX_CHARS_PER_TOKEN = 32  # far above any tokenizer's mean, which is about 4

# Why an episode ends with a turn without an action, by what ended the sampling of that turn.
_WITHOUT_ACTION: dict[CompletionStop, StopReason] = {
    "stop": "invalid",
    "eos": "eos",
    "length": "turn_budget",
}


@dataclass(kw_only=True, slots=True, frozen=True)
class Position:
    """Where an episode stands in a run; all its randomness derives from this (invariant 14)."""

    seed: int
    step: int
    sibling: int

    def seed_of(self, question: Question, turn: int, purpose: str) -> int:
        """A seed for one purpose ("search", "sample") of one turn."""
        return derive_seed(self.seed, self.step, question.uid, self.sibling, turn, purpose)


@dataclass(kw_only=True, slots=True, frozen=True)
class Observation:
    """Text to insert after a turn: `head`, any number of leading `documents`, `tail`."""

    head: str
    documents: tuple[str, ...]
    tail: str

    def render(self, count: int | None = None) -> str:
        """The text with the first `count` documents (all by default)."""
        return self.head + "".join(f"{text}\n" for text in self.documents[:count]) + self.tail

    def shown_in(self, text: str) -> Shown:
        """How much of the documents is in a text that was made of this, to fit a budget."""
        for count in range(len(self.documents), -1, -1):
            if text.strip() == self.render(count).strip():
                return Shown(documents=count)
        return Shown(documents=1, cut_at=len(text.strip()) - len(self.render(0).strip()))


@dataclass(kw_only=True, slots=True, frozen=True)
class Step:
    """The environment's reply: the turn as recorded, and either an observation or the end."""

    turn: Turn
    observation: Observation | None = None
    stop: StopReason | None = None
    failure: SearchError | None = None  # of a search, which makes the trajectory invalid


def show_documents(
    result: SearchResult, settings: EpisodeSettings, special_tokens: tuple[str, ...] = ()
) -> Observation:
    """Format a search result as the policy reads it, with markup inside documents made harmless.

    At most `top_k` documents, whatever an engine returned, and of each no more than could ever fit
    the observation: tokenizing a page of a megabyte would take seconds.
    """
    form = get_formatter(settings.formatter)
    longest = settings.max_observation_tokens * _MAX_CHARS_PER_TOKEN
    cut = (
        Document(title=document.title[:longest], text=document.text[:longest])
        for document in result.documents[: settings.top_k]
    )
    documents = tuple(
        form(number, neutralize_document(document, special_tokens=special_tokens))
        for number, document in enumerate(cut, start=1)
    )
    return Observation(
        head=f"\n{INFORMATION[0]}\n", documents=documents, tail=f"{INFORMATION[1]}\n"
    )


def show_hint(hint: str) -> Observation:
    """What the policy reads after a turn without an action."""
    return Observation(head=f"\n{hint}\n", documents=(), tail="")


class SearchEnvironment:
    """Answers the turns of one trajectory.

    Args:
        question: what is asked; its golden answers go to the engine only (simulators need them).
        engine: who answers queries.
        settings: the episode's shape.
        noise_probability: share of noisy results asked of the engine, drawn per search.
        position: coordinates of the episode, for seeds.
        special_tokens: the tokenizer's control strings, made harmless inside documents.
    """

    def __init__(
        self,
        question: Question,
        engine: SearchEngine,
        settings: EpisodeSettings,
        *,
        noise_probability: float,
        position: Position,
        special_tokens: tuple[str, ...] = (),
    ) -> None:
        self.question = question
        self.engine = engine
        self.settings = settings
        self.noise_probability = noise_probability
        self.position = position
        self.special_tokens = special_tokens
        self.turns_taken = 0

    @property
    def is_last_turn(self) -> bool:
        """Whether the coming turn has to answer."""
        return self.turns_taken >= self.settings.max_turns

    async def step(self, text: str, *, ending: CompletionStop) -> Step:
        """Read one sampled turn and act on it; a search that fails ends the episode.

        Args:
            text: what the policy sampled.
            ending: what ended the sampling.
        """
        parsed = parse_turn(text)
        turn = Turn(text=text, action=parsed.action)
        last, turn_index = self.is_last_turn, self.turns_taken
        self.turns_taken += 1
        if parsed.action == "answer":
            return Step(turn=turn, stop="answer")
        if parsed.action == "search":
            turn.query = parsed.content
            if last:
                return Step(turn=turn, stop="max_turns")
            try:
                turn.result = await self._search(parsed.content, turn_index)
            except SearchError as error:
                return Step(turn=turn, stop="search_failed", failure=error)
            observation = show_documents(turn.result, self.settings, self.special_tokens)
            return Step(turn=turn, observation=observation)
        if last or self.settings.invalid_hint is None:
            return Step(turn=turn, stop=_WITHOUT_ACTION[ending])
        return Step(turn=turn, observation=show_hint(self.settings.invalid_hint))

    async def _search(self, query: str, turn_index: int) -> SearchResult:
        return await self.engine.search(
            SearchRequest(
                query=query,
                question=self.question.text,
                golden_answers=self.question.golden_answers,
                noise_probability=self.noise_probability,
                top_k=self.settings.top_k,
                seed=self.position.seed_of(self.question, turn_index, "search"),
                timeout_s=self.settings.search_timeout_s,
            )
        )
