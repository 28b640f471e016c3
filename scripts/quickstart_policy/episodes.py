"""Episodes the warm start imitates, as token ids with a weight for each token.

`CLEAN` episodes teach the skills: ask for the thing in question, find the document about it, copy
the answer, ask again when the documents are noise. `MEDIOCRE` ones mix the choices so that the
most likely one is poor (answer without searching), which leaves everything for RL to gain.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from zerosearch.data.geography.facts import BRIDGE_SPLIT, Entity, FactStore
from zerosearch.data.geography.wording import (
    ONE_HOP_RELATIONS,
    TWO_HOP_RELATIONS,
    word_query,
    word_question,
)
from zerosearch.rollout.environment import show_documents
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import ANSWER, SEARCH
from zerosearch.simulator.scripted import ScriptedSimulator
from zerosearch.types import Question, SearchRequest, SearchResult


@dataclass(kw_only=True, frozen=True)
class Habits:
    """Probability of the good choice at each fork of an episode."""

    search: float = 1.0  # rather than answer at once
    right_query: float = 1.0  # name the thing in question
    right_reading: float = 1.0  # read the document about it rather than any
    second_hop: float = 1.0  # go on from the country or state
    retry: float = 1.0  # ask again when no document is about it


CLEAN = Habits()
MEDIOCRE = Habits(search=0.42, right_query=0.95, right_reading=0.95, second_hop=0.6, retry=0.7)


@dataclass(kw_only=True, frozen=True)
class Example:
    """One episode; `answer_start` is where the final answer's tokens begin."""

    ids: list[int]
    sampled: list[bool]
    hops: int
    answer_start: int


class EpisodeWriter:
    """Writes episodes about random subjects of one world."""

    def __init__(
        self,
        world: FactStore,
        tokenizer: PreTrainedTokenizerBase,
        settings: EpisodeSettings,
        habits: Habits,
        *,
        noise: float,
        rng: random.Random,
    ) -> None:
        self.world = world
        self.tokenizer = tokenizer
        self.settings = settings
        self.habits = habits
        self.noise = noise
        self.rng = rng
        self.simulator = ScriptedSimulator(world)
        self.subjects = [entity for entity in world if entity.split != BRIDGE_SPLIT]
        self.pieces: list[tuple[str, bool]] = []  # text of the episode so far, sampled or inserted
        self._searches = 0

    def write_query(self) -> Example:
        """A drill in asking: a question and the first query alone."""
        subject, hops, relation, question = self._draw(self.rng.choice((1, 2)))
        first = relation if hops == 1 else self._bridge_relation(subject)
        query = word_query(first, subject.name)
        self.pieces = [(self.settings.render_prompt(question), False)]
        return self._encode(f"{SEARCH[0]} {query} {SEARCH[1]}", hops)

    def write(self) -> Example:
        """One episode about a random subject with one or two hops."""
        subject, hops, relation, question = self._draw(self.rng.choice((1, 2)))
        self.pieces = [(self.settings.render_prompt(question), False)]
        self._searches = 0
        answer = self._play(subject, relation, hops, question)
        return self._encode(f"{ANSWER[0]} {answer} {ANSWER[1]}", hops)

    def _draw(self, hops: int) -> tuple[Entity, int, str, Question]:
        """A random subject, a relation to ask for, and the question."""
        rng = self.rng
        subject = rng.choice(self.subjects)
        relations = (ONE_HOP_RELATIONS if hops == 1 else TWO_HOP_RELATIONS)[subject.kind]
        relation = rng.choice(relations)
        text = word_question(subject, relation, hops, rng)
        golden = self._golden(subject, relation, hops)
        return subject, hops, relation, Question(uid="", text=text, golden_answers=golden)

    def _golden(self, subject: Entity, relation: str, hops: int) -> tuple[str, ...]:
        source = subject if hops == 1 else self.world.get(subject.bridge[0])
        assert source is not None
        return source.facts[relation]

    def _play(self, subject: Entity, relation: str, hops: int, question: Question) -> str:
        """The turns before the answer; returns the answer."""
        if self.rng.random() >= self.habits.search:
            return self._any_value(relation)
        first = relation if hops == 1 else self._bridge_relation(subject)
        value = self._look_up(subject, first, question)
        if hops == 1 or self.rng.random() >= self.habits.second_hop:
            return value
        bridge = self.world.get(value)
        if bridge is None or relation not in bridge.facts:
            return value
        return self._look_up(bridge, relation, question)

    @staticmethod
    def _bridge_relation(subject: Entity) -> str:
        return "country" if subject.kind == "city" else "state"

    def _look_up(self, target: Entity, relation: str, question: Question) -> str:
        """Ask until a document about the target comes, read a value."""
        rng, habits = self.rng, self.habits
        while True:
            query = word_query(relation, target.name)
            if rng.random() >= habits.right_query:
                query = self._poor_query(relation, target)
            result = self._search(query, question)
            found = target.name in {document.title for document in result.documents}
            if found and rng.random() < habits.right_reading:
                return target.facts[relation][0]
            out_of_turns = self._searches >= self.settings.max_turns
            if found or out_of_turns or rng.random() >= habits.retry:
                return self._value_of_any(result, relation)

    def _poor_query(self, relation: str, target: Entity) -> str:
        if self.rng.random() < 0.6:
            return relation
        return word_query(
            relation, self.rng.choice(self.world.peers(target.kind, target.split)).name
        )

    def _search(self, query: str, question: Question) -> SearchResult:
        noisy = self.rng.random() < self.noise
        request = SearchRequest(
            query=query,
            question=question.text,
            golden_answers=question.golden_answers,
            top_k=self.settings.top_k,
        )
        documents = self.simulator.write_documents(request, noisy, self.rng)
        result = SearchResult(documents=documents, requested=request.top_k, noisy=noisy)
        self.pieces.append((f"{SEARCH[0]} {query} {SEARCH[1]}", True))
        self.pieces.append((show_documents(result, self.settings).render(), False))
        self._searches += 1
        return result

    def _value_of_any(self, result: SearchResult, relation: str) -> str:
        """The relation's value in a random document, or that document's subject."""
        place = self.world.get(self.rng.choice(result.documents).title)
        assert place is not None
        return place.facts.get(relation, (place.name,))[0]

    def _any_value(self, relation: str) -> str:
        """A guess of the right sort."""
        places = [self.rng.choice(self.world.peers(*group)) for group in self.world.groups]
        values = [place.facts[relation][0] for place in places if relation in place.facts]
        return self.rng.choice(values)

    def _encode(self, answer: str, hops: int) -> Example:
        """Token ids piece by piece, as the rollouter concatenates them."""
        ids: list[int] = []
        sampled: list[bool] = []
        answer_start = 0
        for text, is_sampled in [*self.pieces, (answer, True)]:
            piece = self.tokenizer.encode(text, add_special_tokens=False)
            answer_start = len(ids)
            ids += piece
            sampled += [is_sampled] * len(piece)
        return Example(ids=ids, sampled=sampled, hops=hops, answer_start=answer_start)
