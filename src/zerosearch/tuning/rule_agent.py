"""An agent by rule for the embedded geography world: it asks, reads, and answers what it has read.

Its episodes show a policy what it is to learn before RL: one fact after the other, the second query
with what the first one found, and another query in other words where the documents do not say it.
The golden answer is never looked at: what no document says is not answered.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zerosearch.core.errors import InputError
from zerosearch.core.seeding import derive_random
from zerosearch.data.geography.facts import FactStore, name_key
from zerosearch.data.geography.reading import read_passage
from zerosearch.data.geography.wording import (
    ONE_HOP_RELATIONS,
    TWO_HOP_RELATIONS,
    query_wordings,
)
from zerosearch.rollout.agent import OnText, PlayedEpisode
from zerosearch.rollout.chat_agent import CHARS_PER_TOKEN, fit
from zerosearch.rollout.environment import Position, SearchEnvironment, Step
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import ANSWER, SEARCH
from zerosearch.rollout.turn_text import turn_text
from zerosearch.search.engine import SearchEngine
from zerosearch.search.sanitize import neutralize_document
from zerosearch.types import Question, Trajectory

THINKING_TOKENS = 64  # of a turn; the longest one seen has 51 of the quickstart, 44 of SmolLM2
UNKNOWN = "unknown"  # the answer where no document says one
_PLAIN_FIRST = 0.5  # share of first queries in the plainest words
_THOUGHTS = {
    "first": (
        "I look for the {relation} of {name}.",
        "I need the {relation} of {name}.",
    ),
    "first of two": (
        "First I look for the {relation} of {name}.",
        "First, the {relation} of {name}.",
    ),
    "next": (
        "{subject} is in {name}. Now its {relation}.",
        "It is {name}. I look for its {relation}.",
        "{name} it is. Next, the {relation} of {name}.",
    ),
    "again": (
        "That does not say it. I ask in other words.",
        "Nothing on the {relation} of {name}. Once more.",
        "That is beside the point. I ask again.",
    ),
    "found": (
        "The {relation} of {name} is {value}.",
        "It says {value}.",
        "I have read it: {value}.",
    ),
    "unknown": ("No document says it.", "I have not found it."),
}


class RuleAgent:
    """Plays the embedded questions; plays no others.

    Args:
        facts: the places, for the split that a question's subject belongs to.
        episode: the shape of an episode.
        splits: whose subjects may be asked about. A policy that has seen the answers about held-out
            subjects could not be tested on them.
        thinks: whether a short thought stands before each action.

    Raises:
        InputError: a turn's budget does not hold thoughts.
    """

    def __init__(
        self,
        facts: FactStore,
        episode: EpisodeSettings,
        *,
        splits: Sequence[str] = ("train",),
        thinks: bool = False,
    ) -> None:
        if thinks and episode.max_turn_tokens < THINKING_TOKENS:
            raise InputError(
                f"agent.thinks=true: a turn with a thought may need {THINKING_TOKENS} tokens, and "
                f"episode.max_turn_tokens={episode.max_turn_tokens}: raise that, or leave thoughts "
                "out with agent.thinks=false"
            )
        self.facts = facts
        self.episode = episode
        self.splits = tuple(splits)
        self.thinks = thinks

    async def play(
        self,
        question: Question,
        engine: SearchEngine,
        *,
        seed: int,
        attempt: int,
        on_text: OnText | None = None,
    ) -> PlayedEpisode:
        """See `Agent`.

        Raises:
            InputError: the question is none of the embedded world's, or of another split.
        """
        trajectory = Trajectory(question=question, group=0, sibling=attempt, prompt_ids=[])
        environment = SearchEnvironment(
            question,
            engine,
            self.episode,
            noise_probability=0.0,
            position=Position(seed=seed, step=attempt, sibling=0),
        )
        rng = derive_random(seed, attempt, question.uid, "rule agent")
        inquiry = self._inquiry(question, rng)
        while True:
            text = inquiry.take_turn(is_last=environment.is_last_turn, thinks=self.thinks)
            if on_text is not None:
                on_text(text)
            step = await environment.step(text, ending="stop")
            trajectory.turns.append(step.turn)
            if step.observation is None:
                assert step.stop is not None
                trajectory.end(step.stop, step.failure)
                break
            self._read(inquiry, step)
        return PlayedEpisode(
            trajectory=trajectory,
            answer=inquiry.answer,
            texts=tuple(turn.text for turn in trajectory.turns),
        )

    async def check(self) -> None:
        """It can always play."""

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        return {
            "agent": type(self).__name__,
            "episode": self.episode.as_dict(),
            "splits": list(self.splits),
            "thinks": self.thinks,
        }

    def _read(self, inquiry: _Inquiry, step: Step) -> None:
        """Take in the documents that are shown whole."""
        assert step.observation is not None and step.turn.result is not None
        shown = fit(step.observation, self.episode.max_observation_tokens * CHARS_PER_TOKEN)
        step.turn.observation = shown.strip()
        step.turn.shown = step.observation.shown_in(shown)
        for document in step.turn.result.documents[: self.episode.top_k]:
            text = neutralize_document(document).text
            if text in shown:
                inquiry.read(text)

    def _inquiry(self, question: Question, rng: random.Random) -> _Inquiry:
        told = question.metadata
        subject, relation = (str(told.get(name)) for name in ("subject", "relation"))
        hops = told.get("hops")
        place = self.facts.get(subject)
        relations = {1: ONE_HOP_RELATIONS, 2: TWO_HOP_RELATIONS}.get(hops or 0, {})
        if place is None or relation not in relations.get(place.kind, ()):
            raise InputError(
                f"question {question.uid!r} names no known subject, relation and hops (1 or 2) in "
                "its metadata: agent=rule plays the embedded questions alone; give "
                "questions=geography, or another agent"
            )
        if place.split not in self.splits:
            raise InputError(
                f"question {question.uid!r} is about {subject}, of the split {place.split!r}, and "
                f"agent.splits={list(self.splits)}: a policy must not learn from what it is tested "
                "on; give questions.split=train"
            )
        through = ("country" if place.kind == "city" else "state") if hops == 2 else None
        return _Inquiry(subject=place.name, relation=relation, through=through, rng=rng)


@dataclass(kw_only=True, slots=True)
class _Inquiry:
    """What is asked, what was read about it, and how it was asked already."""

    subject: str
    relation: str
    through: str | None  # relation of the first of two hops
    rng: random.Random
    known: dict[tuple[str, str], str] = field(default_factory=dict)  # (name_key, relation) -> value
    asked: list[tuple[str, str]] = field(default_factory=list)  # (relation, name)
    queries: set[str] = field(default_factory=set)
    answer: str | None = None

    def take_turn(self, *, is_last: bool, thinks: bool) -> str:
        """The next text: a query for what is not known yet, or the answer."""
        relation, name = self._wanted()
        value = self._known(name, relation)
        query = None if value is not None or is_last else self._query(relation, name)
        if query is None:
            self.answer = UNKNOWN if value is None else value
            thought = self._thought("unknown" if value is None else "found", relation, name)
            tags, content = ANSWER, self.answer
        else:
            thought = self._thought(self._occasion(relation, name), relation, name)
            tags, content = SEARCH, query
            self.asked.append((relation, name))
        return turn_text(thought=thought if thinks else "", tags=tags, content=content)

    def read(self, text: str) -> None:
        """Take in one document."""
        said = read_passage(text)
        if said is not None:
            name, facts = said
            for relation, value in facts.items():
                self.known[name_key(name), relation] = value

    def _wanted(self) -> tuple[str, str]:
        """Relation and name that are looked for now."""
        if self.through is None:
            return self.relation, self.subject
        bridge = self._known(self.subject, self.through)
        return (self.through, self.subject) if bridge is None else (self.relation, bridge)

    def _known(self, name: str, relation: str) -> str | None:
        return self.known.get((name_key(name), relation))

    def _query(self, relation: str, name: str) -> str | None:
        """A wording that was not used yet; None: there is none."""
        left = [each for each in query_wordings(relation, name) if each not in self.queries]
        if not left:
            return None
        query = left[0] if self.rng.random() < _PLAIN_FIRST else self.rng.choice(left)
        self.queries.add(query)
        return query

    def _occasion(self, relation: str, name: str) -> str:
        if (relation, name) in self.asked:
            return "again"
        if self.through is None:
            return "first"
        return "first of two" if relation == self.through else "next"

    def _thought(self, occasion: str, relation: str, name: str) -> str:
        thought = self.rng.choice(_THOUGHTS[occasion])
        value = self._known(name, relation)
        return thought.format(subject=self.subject, relation=relation, name=name, value=value)
