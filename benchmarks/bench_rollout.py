"""Coroutine rollouts against a barrier at each turn, and against the best there could be.

Run:  python benchmarks/bench_rollout.py [--trajectories 320] [--slots 256 64 24] [--help]

A search takes a log-normal time with median 1 s and 99th percentile 10 s; the generator is a model
of one: it serves a fixed number of requests at once, each at a fixed rate, the others wait. Both
draw from the position of the turn, so every run sees the same episodes. Nobody sleeps: the event
loop's clock is the thread's processor time, and skips ahead where nothing is to be done. So seconds
are what an idle machine would take, the rollout loop's own work included, on a busy one, too.

No scheduler can end before the engine has made all tokens, nor before the longest trajectory has
waited for its own tokens and searches: the bound is the larger of the two. Where they are alike,
only one who knew the lengths beforehand could reach it; "queue" is what a loop that costs nothing
would take, first come, first served. Goals: 1.5 times as fast as with the barrier, within 1.15
times of the bound where searches or engine set the pace.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import math
import selectors
import time
from dataclasses import dataclass

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zerosearch.core.model_path import resolve_path
from zerosearch.core.seeding import derive_random
from zerosearch.generation.generator import Completion, CompletionRequest, Sampling
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.types import Document, Question, SearchRequest, SearchResult, Trajectory

SIGMA = math.log(10) / 2.326  # of a log-normal whose 99th percentile is ten times its median
SIBLINGS = 5
SEARCH_SHARE = 0.75  # of the turns that may search
DOCUMENT = Document(text="word " * 60)


class ServiceModel:
    """A generator that takes the time of one: `slots` requests at once at `rate` tokens/s each."""

    own_weights = True
    weight_version = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase, slots: int, rate: float) -> None:
        self._tokenizer = tokenizer
        self._slots = asyncio.Semaphore(slots)
        self._rate = rate

    def bind(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """There is no model."""

    async def generate(self, prompt_ids: list[int], request: CompletionRequest) -> Completion:
        draw = derive_random("turn", request.seed)
        words = "so " * min(int(40 * draw.lognormvariate(0.0, 0.5)), 120)
        searches = draw.random() < SEARCH_SHARE
        action = "<search> who </search>" if searches else "<answer> x </answer>"
        ids = self._tokenizer.encode(words + action, add_special_tokens=False)
        async with self._slots:
            await asyncio.sleep(len(ids) / self._rate)
        return Completion(
            token_ids=ids,
            logprobs=[-1.0] * len(ids),
            text=words + action,
            stop_reason="stop",
            weight_version=0,
        )

    async def sync_weights(self, policy: nn.Module) -> None:
        """There are no weights."""

    async def release(self) -> None:
        """Nothing is held."""


class SlowSearch:
    """Answers after a log-normal time."""

    async def search(self, request: SearchRequest) -> SearchResult:
        latency_s = derive_random("latency", request.seed).lognormvariate(0.0, SIGMA)
        await asyncio.sleep(latency_s)
        return SearchResult(documents=(DOCUMENT,) * 5, requested=request.top_k, latency_s=latency_s)


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is processor time plus the time it would have slept."""

    def __init__(self) -> None:
        self.skipped_s = 0.0
        super().__init__(SkippingSelector(self))

    def time(self) -> float:
        return time.thread_time() + self.skipped_s


class SkippingSelector(selectors.DefaultSelector):
    def __init__(self, loop: SkippingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        self._loop.skipped_s += timeout or 0.0
        return super().select(0)


@dataclass(kw_only=True, slots=True, frozen=True)
class Measured:
    """Seconds; of an episode pairs of (in the engine, in the search after it)."""

    seconds: float
    episodes: list[list[tuple[float, float]]]

    def engine(self, slots: int) -> float:
        """All tokens at the engine's full rate."""
        return sum(busy for episode in self.episodes for busy, _ in episode) / slots

    def longest(self) -> float:
        """Tokens and searches of the slowest trajectory, without any waiting."""
        return max(sum(busy + wait for busy, wait in episode) for episode in self.episodes)

    def queue(self, slots: int) -> float:
        """First come, first served, by a loop that costs nothing."""
        order = itertools.count()
        free = [0.0] * slots
        arrivals = [(0.0, next(order), iter(episode)) for episode in self.episodes]
        heapq.heapify(arrivals)
        end = 0.0
        while arrivals:
            arrived, _, turns = heapq.heappop(arrivals)
            turn = next(turns, None)
            if turn is None:
                end = max(end, arrived)
                continue
            done = max(arrived, heapq.heappop(free)) + turn[0]
            heapq.heappush(free, done)
            heapq.heappush(arrivals, (done + turn[1], next(order), turns))
        return end


def measure(args: argparse.Namespace, slots: int, seed: int, *, barrier: bool) -> Measured:
    """Play all episodes once."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("pkg://zerosearch/policy/quickstart"))
    settings = EpisodeSettings(
        prompt_template="plain",
        max_turns=args.turns,
        top_k=5,
        max_turn_tokens=1000,
        max_context_tokens=32_000,
    )
    questions = [
        Question(uid=f"q:{n}", text=f"question {n}", golden_answers=("x",))
        for n in range(args.trajectories // SIBLINGS)
    ]

    async def play() -> tuple[list[Trajectory], float]:
        generator = ServiceModel(tokenizer, slots, args.rate)
        rollouter = Rollouter(generator, tokenizer, settings, lockstep=barrier)
        clock = asyncio.get_running_loop().time
        started = clock()
        trajectories = await rollouter.rollout(
            questions,
            SlowSearch(),
            group_size=SIBLINGS,
            noise_probability=0.0,
            seed=seed,
            step=0,
            sampling=Sampling(),
        )
        return trajectories, clock() - started

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        trajectories, seconds = runner.run(play())
    episodes = [
        [
            (turn.sampled_tokens / args.rate, turn.result.latency_s if turn.result else 0.0)
            for turn in trajectory.turns
        ]
        for trajectory in trajectories
    ]
    return Measured(seconds=seconds, episodes=episodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=320)
    parser.add_argument("--turns", type=int, default=4, help="searches an episode may make")
    parser.add_argument("--slots", type=int, nargs="+", default=[256, 64, 24])
    parser.add_argument("--rate", type=float, default=40.0, help="tokens a second of one request")
    parser.add_argument("--repeats", type=int, default=3, help="sets of episodes; means are shown")
    args = parser.parse_args()
    print(f"{args.trajectories} trajectories, mean of {args.repeats} sets of episodes; seconds")
    print("slots  engine  longest  barrier  coroutines  faster_by  over_bound  over_queue")
    for slots in args.slots:
        rows = []
        for seed in range(args.repeats):
            barrier = measure(args, slots, seed, barrier=True)
            free = measure(args, slots, seed, barrier=False)
            engine, longest = free.engine(slots), free.longest()
            rows.append(
                (
                    engine,
                    longest,
                    barrier.seconds,
                    free.seconds,
                    barrier.seconds / free.seconds,
                    free.seconds / max(engine, longest),
                    free.seconds / free.queue(slots),
                )
            )
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        print(
            "{:5d}  {:6.1f}  {:7.1f}  {:7.1f}  {:10.1f}  {:8.2f}x  {:9.2f}x  {:9.2f}x".format(
                slots, *means
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
