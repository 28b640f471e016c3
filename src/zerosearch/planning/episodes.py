"""Seconds that a batch of episodes takes, turn by turn.

All episodes take a turn at a time and wait for the slowest search of it, as with
`module.lockstep=true`; without it the waiting of some overlaps with the sampling of others, and the
longest turn of an episode counts. How many go on is the geometric distribution, cut at the limit,
whose mean is the number of searches.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerosearch.planning.speeds import ReplicatedModel


@dataclass(kw_only=True, slots=True, frozen=True)
class EpisodeTokens:
    """The tokens of one."""

    prompt: float
    turn: float  # sampled
    documents: float  # inserted after a search
    searches: float  # on average
    max_searches: int
    group_size: int  # episodes that share a prompt

    @property
    def tokens(self) -> float:
        """All of them, on average."""
        return self.prompt + self.turn * (self.searches + 1) + self.documents * self.searches

    @property
    def sampled(self) -> float:
        """Those of the policy."""
        return self.turn * (self.searches + 1)


@dataclass(kw_only=True, slots=True, frozen=True)
class SearchSpeed:
    """What answers queries: a language model, or something that takes a fixed time."""

    engine: ReplicatedModel | None
    read: float = 0.0  # tokens of a prompt
    written: float = 0.0  # tokens of a reply
    latency_s: float = 0.0  # without a model

    def seconds(self, queries: float) -> float:
        """Until all of some simultaneous queries are answered."""
        if self.engine is None or not queries:
            return self.latency_s if queries else 0.0
        reading = self.engine.reading_s(queries * self.read)
        writing = self.engine.writing_s(queries, self.written, self.read + self.written / 2)
        return reading + writing


@dataclass(kw_only=True, slots=True, frozen=True)
class Rollout:
    """Seconds of a batch of episodes."""

    sampling: float = 0.0
    searching: float = 0.0

    @property
    def total(self) -> float:
        """One after the other."""
        return self.sampling + self.searching

    def times(self, number: float) -> Rollout:
        """Of so many batches."""
        return Rollout(sampling=number * self.sampling, searching=number * self.searching)


def going_on(mean: float, most: int) -> list[float]:
    """Share of the episodes that make at least 0, 1, ... searches.

    Args:
        mean: searches of an episode.
        most: that it may make.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (
            (share, high)
            if sum(share**turn for turn in range(1, most + 1)) < mean
            else (low, share)
        )
    return [high**turn for turn in range(most + 1)]


def rollout(
    episodes: float, episode: EpisodeTokens, sampler: ReplicatedModel, search: SearchSpeed
) -> Rollout:
    """Seconds of a batch."""
    shares = going_on(min(episode.searches, episode.max_searches), episode.max_searches)
    sampling = searching = 0.0
    for turn, share in enumerate(shares):
        rows = episodes * share
        before = episode.prompt + turn * (episode.turn + episode.documents)
        new = episode.documents if turn else episode.prompt / episode.group_size
        sampling += sampler.reading_s(rows * new)
        sampling += sampler.writing_s(rows, episode.turn, before + episode.turn / 2)
        searching += search.seconds(episodes * shares[turn + 1]) if turn + 1 < len(shares) else 0.0
    return Rollout(sampling=sampling, searching=searching)
