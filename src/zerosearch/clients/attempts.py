"""Bounded retries at the network edge: the one place where a search is tried again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_exponential,
    wait_random,
)

from zerosearch.core.errors import InputError, ZeroSearchError
from zerosearch.types import SearchError

T = TypeVar("T")

MAX_BACKOFF_S = 10.0
PROBE_TIMEOUT_S = 5.0  # of a small request that only asks for a sign of life
MAX_RETRY_AFTER_S = 60.0  # a server may ask for more; the deadline of the search then ends it

log = logging.getLogger(__name__)


class ServerFailure(ZeroSearchError):
    """One call that failed.

    Args:
        endpoint: who failed, shown to the user; never holds a key.
        reason: what happened, and how to fix it where that is known.
        transient: whether another attempt may succeed.
        retry_after_s: the wait the server asked for (HTTP header Retry-After); it is busy.
    """

    def __init__(
        self, endpoint: str, reason: str, *, transient: bool, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f"{endpoint}: {reason}")
        self.endpoint = endpoint
        self.reason = reason
        self.transient = transient
        self.retry_after_s = retry_after_s


@dataclass(kw_only=True, slots=True, frozen=True)
class Attempts:
    """How often, and with which waits, a call is tried.

    `max_retries` further attempts follow a transient failure; the wait before the first is
    `backoff_s`, doubled for each further one, with jitter, and never less than the server asked.
    One that asks for a wait is busy, not broken: only the time bounds how often it is asked again.
    """

    max_retries: int = 3
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise InputError(f"max_retries={self.max_retries}: give 0 or more")
        if not self.backoff_s >= 0:
            raise InputError(f"backoff_s={self.backoff_s}: give seconds, 0 or more")

    async def run(
        self, attempt: Callable[[int], Awaitable[T]], *, endpoint: str, timeout_s: float
    ) -> T:
        """The first success.

        Args:
            attempt: makes one call; gets the number of failures so far.
            endpoint: named where the time runs out before any attempt has failed.
            timeout_s: bound of all attempts and waits together.

        Raises:
            SearchError: no attempt succeeded; names the endpoint of the last failure.
        """
        failures: list[ServerFailure] = []  # those that another attempt was to follow
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await attempt(0)
                except ServerFailure as failure:
                    return await self._again(attempt, failure, failures)
        except ServerFailure as failure:
            endpoint = failure.endpoint
            count = 1 + _counted(failures)
            reason = f"{failure.reason} (attempt {count} of {self.max_retries + 1})"
        except TimeoutError:
            reason = f"no usable reply within {timeout_s:.3g} s"
            if failures:
                endpoint = failures[-1].endpoint
                reason += f" (failed attempts: {len(failures)}, the last: {failures[-1]})"
        # Raised outside the handlers: the reason says all, without a page of transport traceback.
        raise SearchError(endpoint, reason)

    async def _again(
        self,
        attempt: Callable[[int], Awaitable[T]],
        first: ServerFailure,
        failures: list[ServerFailure],
    ) -> T:
        """The first success after a first attempt that failed.

        That one was made without tenacity, whose bookkeeping takes 0.2 ms of processor time, a
        tenth of a whole search; here it counts as tenacity's first.
        """

        async def next_outcome() -> T:
            if not failures:
                raise first
            return await attempt(len(failures))

        def note(state: RetryCallState) -> None:
            failures.append(_failure_of(state))
            log.info("search, attempt %d failed: %s", len(failures), failures[-1])

        retrying = AsyncRetrying(
            stop=lambda state: _counted([*failures, _failure_of(state)]) > self.max_retries,
            wait=self._wait(),
            retry=retry_if_exception(lambda e: isinstance(e, ServerFailure) and e.transient),
            before_sleep=note,
            reraise=True,
        )
        return await retrying(next_outcome)

    def _wait(self) -> Callable[[RetryCallState], float]:
        usual = wait_exponential(multiplier=self.backoff_s, max=MAX_BACKOFF_S) + wait_random(
            0, self.backoff_s
        )

        def wait(state: RetryCallState) -> float:
            asked = min(_failure_of(state).retry_after_s, MAX_RETRY_AFTER_S)
            return max(usual(state), asked)

        return wait


async def patiently(
    call: Coroutine[None, None, T],
    patience_s: float,
    silence: Callable[[float], Awaitable[ServerFailure | None]],
) -> T:
    """A server's reply, however long it takes, while the server shows signs of life.

    One that is slow because it is busy would only become busier from being asked again. The caller
    bounds the whole.

    Args:
        call: of the server.
        patience_s: how long it may say nothing before `silence` is asked, and between two askings.
        silence: the failure to raise where the server is not alive, None where it is; gets the
            monotonic time at which these seconds began.

    Raises:
        ServerFailure: what `call` raises or `silence` returns.
    """
    task = asyncio.create_task(call)
    try:
        while not task.done():
            since = time.monotonic()
            await asyncio.wait({task}, timeout=patience_s)
            if not task.done():
                failure = await silence(since)
                if failure is not None and not task.done():
                    raise failure
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # also what its clean-up raises


def _counted(failures: Sequence[ServerFailure]) -> int:
    """How many failures count as attempts."""
    return sum(failure.retry_after_s == 0 for failure in failures)


def _failure_of(state: RetryCallState) -> ServerFailure:
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, ServerFailure)
    return failure
