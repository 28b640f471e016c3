"""An agent works with a real engine, and every search of every finished episode is kept.

The first step of simulation tuning (arXiv 2505.04588, section 3.2). Episodes are rows of a journal:
a run that was killed, stopped or ran out of budget goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from zerosearch.core.errors import FileError, InputError
from zerosearch.core.journal import Journal
from zerosearch.core.progress import progress_bar
from zerosearch.core.ranges import Count, Seed, Share
from zerosearch.core.work_off import work_off
from zerosearch.rollout.agent import Agent, PlayedEpisode
from zerosearch.rollout.tags import parse_turn
from zerosearch.search.engine import SearchEngine
from zerosearch.tuning.budget import Budget, BudgetUsedUp, Metered
from zerosearch.tuning.records import RecordedEpisode, RecordedSearch
from zerosearch.types import Question, SearchRequest, SearchResult, Shown

MIN_EPISODES = 20  # before a share of failures means anything

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What became of the episodes of one run."""

    kept: int = 0
    correct: int = 0
    searches: int = 0
    empty: int = 0  # searches without documents
    failed: int = 0  # episodes lost to a failed search or model
    error: str = ""  # the first of these
    stopped: str = ""  # why the run ended early
    signal: int | None = None  # that ended it
    unplayed: int = 0
    by_searches: Counter[int] = field(default_factory=Counter)  # all episodes in the folder
    right: int = 0  # of all these


@dataclass(kw_only=True, slots=True)
class Collector:
    """Plays episodes and keeps them.

    Args:
        agent: who plays.
        engine: who answers queries.
        score: of an answer against the golden ones, in [0, 1]; above 0 it is right.
        documents_per_search: documents kept of each search; the agent is shown the first ones, as
            many as it asks for.
        noise_probability: of each search, for engines that can write noisy documents.
        attempts: episodes per question.
        concurrency: episodes under way at a time.
        max_failed_share: share of failed episodes that ends the run.
        seed: of all draws.
    """

    agent: Agent
    engine: SearchEngine
    score: Callable[[str | None, Sequence[str]], float]
    documents_per_search: Count
    noise_probability: Share = 0.0
    attempts: Count = 1
    concurrency: Count = 16
    max_failed_share: Share = 0.1
    seed: Seed = 0
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        for name in ("documents_per_search", "attempts", "concurrency"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: give 1 or more")

    async def run(self, questions: Sequence[Question], journal: Journal, budget: Budget) -> Outcome:
        """Play what is not in the journal yet.

        Args:
            questions: to be asked.
            journal: of episodes by `id`.
            budget: of all runs into the folder.

        Raises:
            InputError: too many episodes failed, the agent does not play such a question, or the
                journal is of other questions; names who or what, and the remedy.
        """
        for attempt, question in itertools.product(range(self.attempts), questions):
            row = journal.rows.get(episode_id(question, attempt))
            if row is not None and row["question"] != question.text:
                raise InputError(
                    f"{journal.path} holds another question {row['id']!r}: the file of questions "
                    "has changed since, or is another of its name; give folder=ANOTHER"
                )
        pairs = [(q, attempt) for attempt, q in itertools.product(range(self.attempts), questions)]
        open_pairs = [pair for pair in pairs if episode_id(*pair) not in journal]
        total = len(questions) * self.attempts
        self.outcome = Outcome()
        if len(open_pairs) < total:
            log.info("%d of %d episodes are there already", total - len(open_pairs), total)
        engine = Metered(self.engine, budget)
        with progress_bar("episodes", total, done=total - len(open_pairs)) as advance:

            async def work(pair: tuple[Question, int]) -> None:
                if not self.outcome.stopped and not self._fails_too_often():
                    advance(await self._play(*pair, engine, journal, budget))

            workers = min(self.concurrency, len(open_pairs))
            playing = asyncio.create_task(work_off(open_pairs, work, concurrency=workers))
            with self._signals(playing):
                try:
                    await playing
                except asyncio.CancelledError:
                    if self.outcome.signal is None:
                        raise
        journal.arrange([episode_id(*pair) for pair in pairs])
        self.outcome.by_searches = Counter(len(row["searches"]) for row in journal.rows.values())
        self.outcome.right = sum(row["correct"] for row in journal.rows.values())
        self.outcome.unplayed = len(open_pairs) - self.outcome.kept - self.outcome.failed
        if self._fails_too_often():
            raise InputError(
                f"{self.outcome.failed} episodes failed beside {self.outcome.kept} finished ones, "
                f"more than max_failed_share={self.max_failed_share:g} allows; the first: "
                f"{self.outcome.error}. Fix that and run again: finished episodes are kept"
            )
        return self.outcome

    async def _play(
        self,
        question: Question,
        attempt: int,
        engine: SearchEngine,
        journal: Journal,
        budget: Budget,
    ) -> int:
        """Put an episode into the journal, or count it as failed; returns how many were kept."""
        outcome = self.outcome
        recorder = _Recorder(engine, self.documents_per_search, self.noise_probability)
        try:
            budget.check_usd()
            played = await self.agent.play(question, recorder, seed=self.seed, attempt=attempt)
            budget.spend(played.cost_usd)
            episode = self._episode(played, attempt, recorder.searches)
        except BudgetUsedUp as error:
            outcome.stopped = outcome.stopped or str(error)
            return 0
        except (FileError, InputError):  # which the next episode would meet, too
            raise
        except Exception as error:  # whatever it is, the episodes beside it are played
            log.exception("question %r (%s) was not played", question.uid, question.text)
            outcome.failed += 1
            outcome.error = outcome.error or f"{type(error).__name__}: {error}"
            return 0
        if played.trajectory.error is not None:
            outcome.failed += 1
            outcome.error = outcome.error or played.trajectory.error
            return 0
        journal.append(episode.as_row())
        outcome.kept += 1
        outcome.correct += episode.correct
        outcome.searches += len(episode.searches)
        outcome.empty += sum(not search.documents for search in episode.searches)
        return 1

    def _episode(
        self, played: PlayedEpisode, attempt: int, searches: Sequence[RecordedSearch]
    ) -> RecordedEpisode:
        question = played.trajectory.question
        asked, answer = _as_written(played, searches)
        return RecordedEpisode(
            id=episode_id(question, attempt),
            question=question.text,
            golden_answers=question.golden_answers,
            searches=asked,
            answer=answer,
            correct=self.score(answer, question.golden_answers) > 0,
            texts=played.texts,
        )

    def _fails_too_often(self) -> bool:
        ended = self.outcome.kept + self.outcome.failed
        return ended >= MIN_EPISODES and self.outcome.failed > self.max_failed_share * ended

    @contextlib.contextmanager
    def _signals(self, playing: asyncio.Task[None]) -> Iterator[None]:
        """Ctrl-C and SIGTERM end a task in order."""
        loop = asyncio.get_running_loop()

        def receive(number: signal.Signals) -> None:
            self.outcome.stopped = f"{number.name} received: run again to go on"
            self.outcome.signal = number.value
            playing.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # outside the main thread
                loop.add_signal_handler(number, receive, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(NotImplementedError, RuntimeError):
                    loop.remove_signal_handler(number)


class _Recorder:
    """The engine of one episode: asks for more documents than are shown, and keeps them all."""

    def __init__(self, engine: SearchEngine, documents: int, noise_probability: float) -> None:
        self._engine = engine
        self._documents = documents
        self._noise_probability = noise_probability
        self.searches: list[RecordedSearch] = []

    async def search(self, request: SearchRequest) -> SearchResult:
        wide = dataclasses.replace(
            request,
            top_k=max(self._documents, request.top_k),
            noise_probability=self._noise_probability,
        )
        result = await self._engine.search(wide)
        turn = len(self.searches)
        given = result.documents[: request.top_k]
        self.searches.append(
            RecordedSearch(
                turn=turn,
                query=request.query,
                documents=result.documents,
                shown=Shown(documents=len(given)),
            )
        )
        return dataclasses.replace(result, documents=given, requested=request.top_k)


def _as_written(
    played: PlayedEpisode, searches: Sequence[RecordedSearch]
) -> tuple[tuple[RecordedSearch, ...], str | None]:
    """Searches with what was read of them and in the characters of the texts, in which control
    tokens are disarmed; and the answer in these.
    """
    turns = [parse_turn(text) for text in played.texts]
    queries = [turn.content for turn in turns if turn.action == "search"]
    asked = tuple(
        dataclasses.replace(search, query=query) if query is not None else search
        for search, query in itertools.zip_longest(searches, queries[: len(searches)])
    )
    nothing = Shown(documents=0)  # of a search after which no room was left
    read = [
        turn.shown or (nothing if turn.observation is None else None)
        for turn in played.trajectory.turns
        if turn.result is not None
    ]
    asked = tuple(
        dataclasses.replace(search, shown=shown or search.shown)
        for search, shown in itertools.zip_longest(asked, read[: len(asked)])
    )
    ended = bool(turns) and turns[-1].action == "answer"
    return asked, turns[-1].content if ended else played.answer


def episode_id(question: Question, attempt: int) -> str:
    """Of one attempt at a question."""
    return f"{question.uid}/{attempt}"
