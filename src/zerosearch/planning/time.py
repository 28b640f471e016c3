"""Seconds of a policy step by stage, and the hours of a run, before anything is loaded.

An estimate from published speeds (`configs/speeds`), which it takes as they are; `docs/scale.md`
compares it with runs. Not counted: starting, waking the engine, rewards, padding, stragglers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from zerosearch.planning.episodes import EpisodeTokens, Rollout, SearchSpeed, rollout
from zerosearch.planning.speeds import Card, ReplicatedModel, Size, Speeds
from zerosearch.policy.flops import training_flops

_SPLIT = "rollout.lag=1, sampled on as many GPUs again"


@dataclass(kw_only=True, slots=True, frozen=True)
class Evaluations:
    """Episodes of held-out questions, per engine that answers them."""

    searches: tuple[SearchSpeed, ...]  # one for each evaluation
    validations: int
    of_validation: int
    tests: int
    of_test: int
    batch: int  # episodes at a time


@dataclass(kw_only=True, slots=True, frozen=True)
class Work:
    """What a run does."""

    speeds: Speeds
    card: Card
    gpus: int  # that train
    nodes: int
    policy_steps: int
    episodes: int  # of a step
    episode: EpisodeTokens
    size: Size  # of the policy
    sampler: ReplicatedModel
    sampler_apart: bool  # on GPUs of its own
    ahead: bool  # samples the next batch while this one is trained
    search: SearchSpeed
    shares_simulator: bool  # the GPU that trains serves it, too: nothing overlaps
    trained: float  # share of the policy's weights
    forwards: int  # passes without gradient: reference, old log-probs, values
    updates: float  # passes with gradient over a step's episodes, a critic's too
    sent_bytes: float  # to the sampler at a sync
    sharded: bool
    saved_bytes: float  # of a checkpoint
    save_every: int  # policy steps
    evaluations: Evaluations


@dataclass(kw_only=True, slots=True, frozen=True)
class StepTimes:
    """Seconds of a policy step; validation, tests and checkpoints spread over all steps."""

    work: Work
    rollout: Rollout
    reference: float
    update: float
    sync: float
    validation: Rollout
    checkpoint: float

    @property
    def step(self) -> float:
        """Seconds of a step with its share of validations and checkpoints."""
        learning = self.reference + self.update
        if not self.work.ahead or self.work.shares_simulator:
            both = self.rollout.total + learning
        elif self.work.sampler_apart:
            both = max(self.rollout.total, learning)
        else:  # the same GPUs sample and train: only the waiting for searches is used
            both = max(self.rollout.total, self.rollout.sampling + learning)
        return both + self.sync + self.validation.total + self.checkpoint

    @property
    def hours(self) -> float:
        """Of the run."""
        return self.step * self.work.policy_steps / 3600

    @property
    def simulating(self) -> float:
        """Seconds of a step in which the engine of training answers."""
        held_out = self.work.search in self.work.evaluations.searches
        return self.rollout.searching + (self.validation.searching if held_out else 0.0)

    @property
    def idle(self) -> dict[str, tuple[float, float]]:
        """GPUs, and the share of the time that they wait, by what they do."""
        learning = self.reference + self.update + self.sync + self.checkpoint
        sampling = self.rollout.sampling + self.validation.sampling + self.sync
        work, alone = self.work, self.work.sampler_apart
        own = learning if alone else learning + sampling - self.sync
        own += self.simulating if work.shares_simulator else 0.0
        busy: dict[str, tuple[float, float]] = {
            "train" if alone else "train and sample": (work.gpus, own)
        }
        if alone:
            busy["sample"] = (work.sampler.gpus, sampling)
        if work.search.engine is not None and not work.shares_simulator:
            busy["simulate"] = (work.search.engine.gpus, self.simulating)
        return {name: (gpus, max(0.0, 1 - s / self.step)) for name, (gpus, s) in busy.items()}

    @property
    def searches_s(self) -> float:
        """Searches that the engine answers in a second while it is asked."""
        asked = self.work.episodes * self.work.episode.searches
        return asked / self.rollout.searching if self.rollout.searching else 0.0


def times_of(work: Work) -> StepTimes:
    """The plan of a run's time."""
    tokens = work.episodes * work.episode.tokens
    flop_s = work.gpus * work.card.flop_s * work.speeds.mfu
    forward = tokens * work.size.forward_flops(work.episode.tokens)
    played = rollout(work.episodes, work.episode, work.sampler, work.search)
    return StepTimes(
        work=work,
        rollout=played,
        reference=work.forwards * forward / flop_s,
        update=work.updates * training_flops(forward, work.trained) / flop_s,
        sync=_sync_s(work),
        validation=_evaluation(work).times(1 / work.policy_steps),
        checkpoint=work.saved_bytes / (work.nodes * work.speeds.disk_bytes_s) / work.save_every,
    )


def _sync_s(work: Work) -> float:
    """The other shards come in over the slowest link, then everything goes to the engine."""
    if not work.sent_bytes:
        return 0.0
    link = work.card.link_bytes_s if work.nodes == 1 else work.speeds.network_bytes_s
    gathered = work.sent_bytes * (work.gpus - 1) / work.gpus / link if work.sharded else 0.0
    out = work.speeds.network_bytes_s if work.sampler_apart else work.card.memory_bytes_s / 2
    return gathered + work.sent_bytes / out


def _evaluation(work: Work) -> Rollout:
    """All validations and tests of a run; each batch is one group of its own questions."""
    given = work.evaluations
    alone = dataclasses.replace(work.episode, group_size=1)
    sampling = searching = 0.0
    for number, size in ((given.validations, given.of_validation), (given.tests, given.of_test)):
        if not size:
            continue
        batches = -(-size // given.batch)
        for search in given.searches:
            played = rollout(size / batches, alone, work.sampler, search).times(number * batches)
            sampling, searching = sampling + played.sampling, searching + played.searching
    return Rollout(sampling=sampling, searching=searching)


def variants(work: Work) -> dict[str, Work]:
    """The run, and what would change it, by what one would set."""
    found = {"as configured": work}
    may_overlap = work.sent_bytes and not work.shares_simulator  # a sampler with weights of its own
    if may_overlap and not work.ahead:
        found["rollout.lag=1"] = dataclasses.replace(work, ahead=True)
    if may_overlap and not work.sampler_apart:
        found[_SPLIT] = dataclasses.replace(work, ahead=True, sampler_apart=True)
    engine = work.search.engine
    if engine is not None:
        half = dataclasses.replace(engine.size, parameters=engine.size.parameters / 2)
        found["a simulator of half the size"] = _asking(work, engine, size=half)
        if not work.shares_simulator:
            more = 2 * engine.replicas
            found["twice as many GPUs for it"] = _asking(work, engine, replicas=more)
    return found


def _asking(work: Work, engine: ReplicatedModel, **changes: Any) -> Work:
    """The same with another simulator, in validations as well."""
    search = dataclasses.replace(work.search, engine=dataclasses.replace(engine, **changes))
    held_out = tuple(search if each == work.search else each for each in work.evaluations.searches)
    evaluations = dataclasses.replace(work.evaluations, searches=held_out)
    return dataclasses.replace(work, search=search, evaluations=evaluations)
