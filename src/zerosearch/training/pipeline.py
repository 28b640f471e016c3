"""Trajectories for each policy step: sampled in it, or while the step before is trained.

With `rollout.lag=1` the next batch is sampled on a thread of its own, by a generator that has
weights of its own, while this batch is trained:

    step k:  wait for batch k  ->  sync the weights  ->  [ train on k | sample k + 1 ]

so batch k + 1 comes from the weights before the update of step k, one step behind those it trains.
The first batch of a run, and of one that lost its search engine, is sampled in its own step.

Evaluation and checkpoints find the generator at rest: they wait for the batch in progress, which
training would wait for anyway, and a checkpoint holds its trajectories. A resumed run trains on the
very batch that the run before it would have trained on. A batch that failed concerns the step that
needs it and no earlier one: what ended its sampling is raised there, and no checkpoint holds it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from zerosearch.core.distributed import gather_objects, world_size
from zerosearch.core.errors import InputError
from zerosearch.core.memory import give_back_heap
from zerosearch.data.loaders import rank_slice
from zerosearch.generation.generator import Generator
from zerosearch.training.background import Background
from zerosearch.training.failures import SearchOutage
from zerosearch.training.resampling import PlayedGroups
from zerosearch.training.rollout_plan import (
    RolloutPlan,
    SampledBatch,
    put_together,
    take_apart,
)
from zerosearch.types import Trajectory

Sync = Callable[[], Coroutine[Any, Any, int]]
Sample = Callable[[RolloutPlan], Coroutine[Any, Any, PlayedGroups]]
FindOutage = Callable[[Sequence[Trajectory]], SearchOutage | None]


def check_lag(lag: int, generator: Generator) -> None:
    """Raise InputError where the generator cannot sample that many steps ahead."""
    if lag not in (0, 1):
        raise InputError(f"rollout.lag={lag}: give 0 (exact) or 1 (sample while training)")
    if lag and not generator.own_weights:
        raise InputError(
            f"rollout.lag={lag}: {type(generator).__name__} samples from the very weights that are "
            "trained meanwhile. Use a generator with weights of its own (generator=vllm, "
            "vllm_server or transformers_copy), or rollout.lag=0"
        )


class RolloutPipeline:
    """Samples at most one batch ahead.

    Args:
        sync: gives the generator the present weights and returns their version.
        sample: plays the episodes of a plan; runs in whatever event loop it is called from.
        find_outage: the error that ends a step with these trajectories, if any; a collective.
    """

    def __init__(self, sync: Sync, sample: Sample, find_outage: FindOutage) -> None:
        self._sync = sync
        self._sample = sample
        self._find_outage = find_outage
        self._weight_steps: dict[int, int] = {}
        self._running: Background[SampledBatch] | None = None
        self._ready: SampledBatch | None = None
        self._error: Exception | None = None  # that ended the sampling in place of a batch
        self.played: list[Trajectory] | None = None  # by the present step, as far as it came
        self.sync_s = 0.0  # seconds of the last sync of weights

    def take(self, plan: RolloutPlan) -> SampledBatch:
        """The batch of this step: the one sampled ahead, or one sampled now.

        The generator has the present weights afterwards.

        Raises:
            SearchOutage: too many searches of the batch failed.
            Exception: whatever else ended the sampling.
        """
        self.played = None
        self.drain()
        if self._error is not None:
            raise self._error
        batch, self._ready = self._ready, None
        started = time.perf_counter()
        version = asyncio.run(self._sync())
        self.sync_s = time.perf_counter() - started
        self._weight_steps[version] = plan.step
        if batch is None:
            batch = asyncio.run(self._batch(plan))
        assert batch.step == plan.step
        give_back_heap()  # that of sampling, before training takes its own
        self.played = batch.played
        outage = self._find_outage(batch.played)
        if outage is not None:
            raise outage
        return batch

    @contextmanager
    def ahead(self, plan: RolloutPlan | None, device: torch.device) -> Iterator[None]:
        """Sample the plan of the next step meanwhile, and on; an error inside calls it off.

        Args:
            plan: None samples nothing.
            device: of the policy.
        """
        if plan is not None:
            self._running = Background(self._batch(plan), device)
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def drain(self) -> None:
        """Wait for the batch in progress, keep it or its error; the generator is at rest then."""
        if self._running is None:
            return
        try:
            self._ready = self._running.result()
        except Exception as error:
            self._error = error
        except BaseException:
            self.stop()
            raise
        self._running = None

    def stop(self) -> None:
        """Call off the batch in progress."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def state_dict(self) -> dict[str, Any] | None:
        """The batch sampled ahead, of all ranks, as plain containers; a collective.

        None where there is none that a resumed run could train on.
        """
        self.drain()
        batch = self._ready
        own = [] if batch is None else [*map(take_apart, batch.trajectories)]
        dropped = [] if batch is None else [*map(take_apart, batch.dropped)]
        ranks = gather_objects((own, dropped, None if batch is None else batch.rounds))
        if (
            batch is None
            or not all(kept for kept, _, _ in ranks)
            or self._find_outage(batch.played) is not None
        ):
            return None
        rounds = [number for _, _, number in ranks if number is not None]
        return {
            "step": batch.step,
            "noise_probability": batch.noise_probability,
            "trajectories": [trajectory for kept, _, _ in ranks for trajectory in kept],
            "dropped": [trajectory for _, dropped, _ in ranks for trajectory in dropped],
            "rounds": sum(rounds) / len(rounds) if rounds else None,
            "weight_steps": dict(batch.weight_steps),
            "seconds": batch.seconds,
        }

    def load_state_dict(self, state: dict[str, Any] | None, rank: int) -> None:
        """Take this rank's share of a saved batch; the number of ranks may be another."""
        self._ready = None
        if state is None:
            return

        def share(every: list[dict[str, Any]]) -> list[Trajectory]:
            return [*map(put_together, every[rank_slice(len(every), rank, world_size())])]

        kept, dropped = share(state["trajectories"]), share(state.get("dropped", []))
        self._ready = SampledBatch(**{**state, "trajectories": kept, "dropped": dropped})

    async def _batch(self, plan: RolloutPlan) -> SampledBatch:
        started = time.perf_counter()
        played = await self._sample(plan)
        versions = {version for each in played.kept for version in each.weight_versions}
        return SampledBatch(
            step=plan.step,
            noise_probability=plan.noise_probability,
            trajectories=played.kept,
            dropped=played.dropped,
            rounds=played.rounds,
            weight_steps={version: self._weight_steps[version] for version in versions},
            seconds=time.perf_counter() - started,
        )
