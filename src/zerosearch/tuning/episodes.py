"""The recorded episodes that a policy learns from before RL: which ones, and what they show.

RL reinforces what a policy already does at times, and invents nothing: a policy that has never seen
a second search will not make one. So the share of episodes by number of searches is said, and what
is missing is warned about.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, Share
from zerosearch.core.seeding import derive_random
from zerosearch.core.text import mentions
from zerosearch.data.sources import fixed_selection
from zerosearch.tuning.episode_checks import lapses, malformed
from zerosearch.tuning.records import RecordedEpisode, read_episodes

MOST = 3  # searches told apart: so many and more are one row

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class EpisodeSet:
    """What is learned from, and what is held out; no question is in both."""

    train: tuple[RecordedEpisode, ...]
    validation: tuple[RecordedEpisode, ...]


@dataclass(kw_only=True, slots=True, frozen=True)
class EpisodeFiles:
    """Files of recorded episodes, and which of these are used.

    Of a question's episodes the first `per_question` in this order are kept: the answer stands in a
    document that was read (another one was known or guessed), no query is repeated, no search comes
    after the answer was read, the files' order. Where the file does not say what was read, every
    recorded document counts. With several attempts at each question that is the best of n. Few
    searches are not preferred: that would keep those who were lucky at once, and leave out how to
    ask again.

    Args:
        train: a file, a pattern of files, or a list of these, as `zerosearch collect` writes them.
        validation: the same, held out; None: `validation_share` of the questions of `train`.
        validation_share: of questions, always the same ones; tuning needs some held out, so that 0
            is for reading a file whole.
        only_correct: leave out episodes with a wrong answer.
        min_searches: leave out episodes with fewer.
        per_question: most episodes of one question; None: all.
        limit: most episodes in training, a fixed choice; None: all.
        skip_malformed: leave out what no policy could have sampled, and count it; False: refuse it.
    """

    train: str | Sequence[str]
    validation: str | Sequence[str] | None = None
    validation_share: Share = 0.05
    only_correct: bool = True
    min_searches: CountOrZero = 1
    per_question: Count | None = 1
    limit: Count | None = None
    skip_malformed: bool = False

    def __post_init__(self) -> None:
        for name, least in (("min_searches", 0), ("per_question", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value} of episodes: give {least} or more")
        if not 0 <= self.validation_share < 1:
            raise InputError(
                f"validation_share={self.validation_share} of episodes: give 0 or more, below 1"
            )

    def load(self) -> EpisodeSet:
        """Read, check and choose; always the same episodes in the same order.

        Raises:
            InputError: a file cannot be read, an episode is malformed (names file and row), or none
                is left to learn from.
        """
        train = self._chosen(self.train, "training")
        if self.validation is not None:
            validation = self._chosen(self.validation, "validation")
            held_out = {each.question for each in validation}
        else:
            held_out = {each.question for each in train if self._is_held_out(each.question)}
            validation = [each for each in train if each.question in held_out]
        rest = [each for each in train if each.question not in held_out]
        if self.validation is not None and len(rest) < len(train):
            log.info("%d episodes ask what validation asks: left out", len(train) - len(rest))
        if not rest:
            raise InputError(
                f"{self.train}: all {len(train)} episodes are of questions that are held out: "
                "record more questions, or lower validation_share"
            )
        rest = [rest[index] for index in fixed_selection(len(rest), self.limit)]
        _tell(rest)
        return EpisodeSet(train=tuple(rest), validation=tuple(validation))

    def _is_held_out(self, question: str) -> bool:
        return derive_random("episodes validation", question).random() < self.validation_share

    def _chosen(self, files: str | Sequence[str], purpose: str) -> list[RecordedEpisode]:
        paths = [files] if isinstance(files, str) else list(files)
        found = [episode for path in paths for episode in read_episodes(path)]
        dropped: Counter[str] = Counter()
        fit = _without_repeats(list(self._fit(found, dropped)), dropped)
        by_question: dict[str, list[RecordedEpisode]] = {}
        for each in fit:
            by_question.setdefault(each.question, []).append(each)
        chosen = [
            episode
            for episodes in by_question.values()
            for episode in sorted(episodes, key=_preference)[: self.per_question]
        ]
        if len(chosen) < len(fit):
            dropped["beyond per_question"] = len(fit) - len(chosen)
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        log.info(
            "%d of %d recorded episodes for %s, of %d questions; left out: %s",
            len(chosen),
            len(found),
            purpose,
            len(by_question),
            reasons or "none",
        )
        if not chosen:
            raise InputError(
                f"{', '.join(paths)}: of {len(found)} episodes none is left for {purpose} "
                f"({reasons}): record more, or set only_correct or min_searches otherwise"
            )
        return chosen

    def _fit(
        self, episodes: Sequence[RecordedEpisode], dropped: Counter[str]
    ) -> Iterator[RecordedEpisode]:
        for episode in episodes:
            if self.only_correct and not episode.correct:
                dropped["wrong"] += 1
            elif len(episode.searches) < self.min_searches:
                dropped[f"with fewer searches than {self.min_searches}"] += 1
            elif (problem := malformed(episode)) is not None:
                if not self.skip_malformed:
                    raise InputError(f"{episode.place}: {problem}")
                dropped["malformed"] += 1
            elif lapses(episode):  # sampled where there is a hint, and nothing to learn
                dropped["with a turn that neither searches nor answers"] += 1
            else:
                yield episode


def shares_in_words(by_searches: Mapping[int, int]) -> str:
    """The share of episodes by number of searches, in one line.

    Args:
        by_searches: number of searches -> number of episodes, one at least.
    """
    total = sum(by_searches.values())
    counts: Counter[int] = Counter()
    for searches, count in by_searches.items():
        counts[min(searches, MOST)] += count
    names = [*(f"{number}" for number in range(MOST)), f"{MOST} or more"]
    shares = ", ".join(f"{name}: {counts[n] / total:.1%}" for n, name in enumerate(names))
    return f"{total} episodes by number of searches: {shares}"


def _tell(episodes: Sequence[RecordedEpisode]) -> None:
    """What the episodes show, and what RL could not add to it."""
    by_searches = Counter(len(each.searches) for each in episodes)
    log.info(shares_in_words(by_searches))
    if max(by_searches) < 2:
        log.warning(
            "no episode searches twice: RL reinforces what a policy does at times and will hardly "
            "invent a second search; record questions of several hops, or with an agent that "
            "searches again where the documents do not say it (docs/cold_start.md)"
        )


def _without_repeats(
    episodes: Sequence[RecordedEpisode], dropped: Counter[str]
) -> list[RecordedEpisode]:
    """The first of those that ask, write and read the same."""
    seen = {}
    for each in episodes:
        seen.setdefault((each.question, each.texts, each.searches), each)
    if len(seen) < len(episodes):
        dropped["repeated"] = len(episodes) - len(seen)
    return list(seen.values())


def _preference(episode: RecordedEpisode) -> tuple[bool, bool, bool]:
    """Sorts an episode before those that a policy should learn from less."""
    answers = [episode.answer or ""]
    told = [
        any(mentions(document.text, answers) for document in search.read)
        for search in episode.searches
    ]
    queries = [search.query for search in episode.searches]
    return not any(told), len({*queries}) < len(queries), any(told[:-1])
