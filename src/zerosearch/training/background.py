"""A coroutine on a thread and an event loop of its own, beside the training thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

import torch

from zerosearch.core.devices import take_device

T = TypeVar("T")


class Background(Generic[T]):
    """Runs a coroutine until its end; nothing of its thread or loop outlives it.

    The thread takes over what torch keeps for each thread: the CUDA device that is used by default,
    and the caller's autocast, without which it would compute in another precision.

    Args:
        work: started at once.
        device: of the policy.
    """

    def __init__(self, work: Coroutine[Any, Any, T], device: torch.device) -> None:
        self._device = device
        self._autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=torch.is_autocast_cache_enabled(),
        )
        self._outcome: Future[T] = Future()
        self._loop = asyncio.new_event_loop()
        # a daemon: a process that dies of something else does not wait for it
        self._thread = threading.Thread(
            target=self._run, args=(work,), name="background", daemon=True
        )
        self._thread.start()

    def result(self) -> T:
        """Wait for the end; returns or raises what the coroutine did."""
        try:
            return self._outcome.result()
        finally:
            if self._outcome.done():  # it is not when Ctrl-C interrupts the waiting
                self._thread.join()

    def cancel(self) -> None:
        """Cancel the coroutine and wait until it has cleaned up; its outcome is dropped."""
        with suppress(RuntimeError):  # the loop has just ended
            self._loop.call_soon_threadsafe(self._cancel_tasks)
        self._thread.join()

    def _run(self, work: Coroutine[Any, Any, T]) -> None:
        try:
            take_device(self._device)
            with (
                self._autocast,
                asyncio.Runner(loop_factory=lambda: self._loop) as runner,
            ):
                outcome = runner.run(work)
        except BaseException as error:  # raised again in the thread that asks for the result
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(outcome)

    def _cancel_tasks(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
