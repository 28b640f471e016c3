"""A clock for tests of waits: no wait takes time, and each takes exactly as long as it should."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Clock:
    """Hardly moves while code runs; when everything waits, it jumps to the end of a wait.

    Put it in the place of the module `time` in what is tested, which may use neither sockets nor
    threads: a jump does not wait for those.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 1e-6  # as with any clock, something that comes later is later
        return self.now

    def perf_counter(self) -> float:
        return self.monotonic()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """As `asyncio.run`, in a loop that goes by this clock."""
        with asyncio.Runner(loop_factory=lambda: _Loop(self)) as runner:
            return runner.run(main)

    def runs(self, test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        """Decorates an asynchronous test that is to run in such a loop."""

        @wraps(test)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(test(*args, **kwargs))

        return run


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__(_Jump(clock))

    def time(self) -> float:
        return self._clock.now


class _Jump(selectors.DefaultSelector):
    """Where a loop waits."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0 if timeout else timeout)
        if timeout and not events:
            self._clock.now += timeout
        return events
