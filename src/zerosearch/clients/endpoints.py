"""Which of several servers gets the next call, and what happens while none can be reached.

An endpoint that cannot be reached is down: it gets no calls, only a probe about each second, until
a probe gets through. One that answers badly several times in a row rests: others are preferred,
and it gets one call at a time. While every endpoint is down, searches wait for the first to return.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from zerosearch.clients.attempts import ServerFailure
from zerosearch.clients.per_loop import PerLoop
from zerosearch.core.errors import InputError
from zerosearch.types import SearchError

STREAK_LIMIT = 3  # bad answers in a row after which an endpoint rests
MAX_REST_S = 30.0

FailureKind = Literal[
    "unreachable",  # no connection, a connection that broke, a gateway without its server
    "certificate",  # as unreachable, but no waiting helps
    "stalled",  # connected, then no sign of life in time
    "faulty",  # overload, an internal error, a reply that makes no sense
    "rejected",  # the request, the key or the model is wrong: the same anywhere, at any time
]

log = logging.getLogger(__name__)


class CallFailure(ServerFailure):
    """A call that failed, and what that says about its endpoint.

    Args:
        endpoint: who failed, shown to the user.
        reason: what happened, and how to fix it where that is known.
        kind: see `FailureKind`; all but "rejected" are worth another attempt.
        retry_after_s: the wait the server asked for.
    """

    def __init__(
        self, endpoint: str, reason: str, *, kind: FailureKind, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(
            endpoint, reason, transient=kind != "rejected", retry_after_s=retry_after_s
        )
        self.kind: FailureKind = kind


class AllDown(Exception):
    """No endpoint can be reached: wait for `EndpointPool.recovered`, then try again."""


@dataclass(slots=True)
class _Health:
    """What is known of an endpoint; outlives event loops, as an outage does. Monotonic seconds."""

    down_since: float | None = None
    probed_at: float = 0.0  # when the last probe ended
    reason: str = ""
    mends_itself: bool = True
    streak: int = 0  # failures since the last success
    rests_until: float = 0.0
    used: int = 0  # number of its last call among all calls
    answered_at: float = -math.inf  # when its last call succeeded


@dataclass(slots=True)
class _Traffic:
    """What belongs to one event loop."""

    outstanding: Counter[str] = field(default_factory=Counter)
    probes: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    looks: dict[str, asyncio.Task[CallFailure | None]] = field(default_factory=dict)

    async def close(self) -> None:
        tasks = [*self.probes.values(), *self.looks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class EndpointPool:
    """Spreads calls over endpoints that serve the same thing.

    Args:
        endpoints: one or more names (URLs).
        probe: a cheap call of an endpoint; raises a `CallFailure` where it gets no answer.
        probe_interval_s: pause between the probes of an endpoint that is down.
        max_outage_s: how long searches wait while all endpoints are down, from the moment the last
            of them went down; later searches fail after one probe, until an endpoint returns.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        probe: Callable[[str], Awaitable[None]],
        *,
        probe_interval_s: float = 1.0,
        max_outage_s: float = 120.0,
    ) -> None:
        if not probe_interval_s > 0:
            raise InputError(f"probe_interval_s={probe_interval_s}: give seconds above 0")
        if not max_outage_s >= 0:
            raise InputError(f"max_outage_s={max_outage_s}: give seconds, 0 or more")
        self.probe_interval_s = probe_interval_s
        self.max_outage_s = max_outage_s
        self._probe = probe
        self._health = {endpoint: _Health() for endpoint in endpoints}
        self._traffic = PerLoop(_Traffic, _Traffic.close)
        self._calls = itertools.count(1)

    @property
    def names(self) -> str:
        """All endpoints, for messages."""
        return ", ".join(self._health)

    @asynccontextmanager
    async def lease(self, tried: Sequence[str] = ()) -> AsyncIterator[str]:
        """The endpoint for one call, made inside the context; a `CallFailure` of it is noted.

        Args:
            tried: endpoints of the search's earlier attempts; others are preferred.

        Raises:
            AllDown: there is none.
        """
        traffic = await self._traffic.get()
        self._start_probes(traffic)
        endpoint = self._pick(traffic, tried)
        health = self._health[endpoint]
        health.used = next(self._calls)
        traffic.outstanding[endpoint] += 1
        try:
            yield endpoint
        except CallFailure as failure:
            self._note(health, failure)
            self._start_probes(traffic)
            raise
        else:
            health.streak, health.rests_until = 0, 0.0
            health.answered_at = time.monotonic()
        finally:
            traffic.outstanding[endpoint] -= 1

    async def silence(self, endpoint: str, since: float) -> CallFailure | None:
        """Why an endpoint that owes a reply is not to be waited for any longer, if so.

        It is busy where it has answered other calls meanwhile. Where it has not, but other
        endpoints have, it hangs; where nobody has, a probe tells, one for all who wait.

        Args:
            endpoint: the one that owes it.
            since: when the last wait for it began, monotonic seconds.
        """
        if self._health[endpoint].answered_at >= since:
            return None
        said = f"no reply within {time.monotonic() - since:.3g} s"
        if any(self._health[name].answered_at >= since for name in self._up()):
            reason = f"{said}, while other endpoints reply"
            return CallFailure(endpoint, reason, kind="stalled")
        traffic = await self._traffic.get()
        if endpoint not in traffic.looks:
            traffic.looks[endpoint] = asyncio.create_task(self._look(endpoint))
            traffic.looks[endpoint].add_done_callback(lambda _: traffic.looks.pop(endpoint))
        failure = await asyncio.shield(traffic.looks[endpoint])
        if failure is None:
            return None
        reason = f"{said}, nor to a probe ({failure.reason})"
        return CallFailure(endpoint, reason, kind=failure.kind)

    async def recovered(self) -> None:
        """Wait, while all endpoints are down, until one returns.

        Raises:
            SearchError: none did within `max_outage_s`, or waiting cannot help.
        """
        traffic = await self._traffic.get()
        arrived = time.monotonic()
        while not self._up():
            probes = self._start_probes(traffic)
            if probes:
                done, _ = await asyncio.wait(
                    probes, timeout=self.probe_interval_s, return_when=asyncio.FIRST_COMPLETED
                )
                for probe in done:
                    probe.result()  # a defect of the probe itself is not to be waited for
            else:
                await asyncio.sleep(self._until_next_probe())
            if not self._up() and self._is_hopeless(arrived):
                raise SearchError(self.names, self._outage())

    def _up(self) -> list[str]:
        return [name for name, health in self._health.items() if health.down_since is None]

    def _pick(self, traffic: _Traffic, tried: Sequence[str]) -> str:
        """The endpoint with the fewest calls in progress among the best ones."""
        now = time.monotonic()

        def rank(name: str) -> tuple[bool, int, int, int]:
            health, outstanding = self._health[name], traffic.outstanding[name]
            rests = health.rests_until > now or (health.streak >= STREAK_LIMIT and outstanding > 0)
            return rests, tried.count(name), outstanding, health.used

        up = self._up()
        if not up:
            raise AllDown
        return min(up, key=rank)

    def _note(self, health: _Health, failure: CallFailure) -> None:
        if failure.kind == "rejected":
            return
        now = time.monotonic()
        # Calls that were in progress together fail together: that is one piece of bad news.
        is_news = health.down_since is None and now >= health.rests_until
        if failure.kind in ("unreachable", "certificate"):
            health.reason = failure.reason
            health.mends_itself = failure.kind != "certificate"
            if health.down_since is None:
                health.down_since, health.probed_at = now, 0.0
        if is_news:
            health.streak += 1
            rest_s = failure.retry_after_s
            if health.streak >= STREAK_LIMIT:
                doublings = min(health.streak - STREAK_LIMIT, 10)
                rest_s = max(rest_s, self.probe_interval_s * 2**doublings)
            health.rests_until = now + min(rest_s, MAX_REST_S)

    def _start_probes(self, traffic: _Traffic) -> list[asyncio.Task[None]]:
        """Probe each endpoint that is down and due, once at a time; returns those in progress."""
        now = time.monotonic()
        for name, health in self._health.items():
            is_due = health.down_since is not None and (
                now >= health.probed_at + self.probe_interval_s
            )
            if is_due and name not in traffic.probes:
                task = asyncio.create_task(self._probe_once(name, health))
                traffic.probes[name] = task
                task.add_done_callback(lambda _, name=name: traffic.probes.pop(name))
        return list(traffic.probes.values())

    async def _look(self, name: str) -> CallFailure | None:
        """Probe an endpoint; None where it is alive, though it may say no."""
        try:
            await self._probe(name)
        except CallFailure as failure:
            if failure.kind in ("unreachable", "certificate", "stalled"):
                return failure
        return None

    async def _probe_once(self, name: str, health: _Health) -> None:
        is_first = health.probed_at == 0.0
        if failure := await self._look(name):
            health.reason = failure.reason
            health.mends_itself = failure.kind != "certificate"
            health.probed_at = time.monotonic()
            if is_first:
                # Not earlier: an idle connection that the server closed meanwhile is no outage.
                log.warning("search endpoint %s is down: %s", name, failure.reason)
            return
        if not is_first and health.down_since is not None:
            seconds = time.monotonic() - health.down_since
            log.warning("search endpoint %s is back after %.1f s", name, seconds)
        health.down_since = None

    def _until_next_probe(self) -> float:
        due = min(health.probed_at for health in self._health.values()) + self.probe_interval_s
        return max(0.0, due - time.monotonic())

    def _is_hopeless(self, arrived: float) -> bool:
        """Whether to give up: every endpoint was probed again, and waiting longer is no use."""
        states = self._health.values()
        if any(health.probed_at < arrived for health in states):
            return False
        return self._outage_s() >= self.max_outage_s or not any(h.mends_itself for h in states)

    def _outage_s(self) -> float:
        began = max(health.down_since or 0.0 for health in self._health.values())
        return time.monotonic() - began

    def _outage(self) -> str:
        reasons = "; ".join(f"{name}: {health.reason}" for name, health in self._health.items())
        return (
            f"no endpoint could be reached for {self._outage_s():.3g} s ({reasons}); start a "
            "server there again, or give the URL of one that runs"
        )
