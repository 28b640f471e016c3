"""Queries that arrive one by one, answered many at a time by a function that blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFull(Exception):
    """As many items wait as may."""


class Batcher(Generic[Item, Answer]):
    """Collects items into batches and runs them in one thread; belongs to one event loop.

    While a batch runs, the next one gathers: under load batches fill by themselves, and
    `max_wait_s` matters only where a batch of one costs almost as much as a full one.

    Args:
        run: answers a batch, in its order; never called twice at a time.
        max_batch: most items of one call of `run`.
        max_wait_s: longest wait of a batch for more items.
        max_queued: most items that may wait.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Answer]],
        *,
        max_batch: int,
        max_wait_s: float,
        max_queued: int,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._max_queued = max_queued
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue()
        self._unanswered: set[asyncio.Future[Answer]] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
        self._worker = asyncio.create_task(self._work())

    @property
    def queued(self) -> int:
        """Items that wait for their batch."""
        return self._waiting.qsize()

    async def submit(self, items: Sequence[Item]) -> list[Answer]:
        """The answers of some items, in their order.

        Raises:
            QueueFull: they do not fit into the queue; none of them is taken.
            Exception: what `run` raised for one of their batches.
        """
        if self.queued + len(items) > self._max_queued:
            raise QueueFull(f"{self.queued} queries wait, at most {self._max_queued} may")
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in items]
        for item, future in zip(items, futures, strict=True):
            self._unanswered.add(future)
            future.add_done_callback(self._unanswered.discard)
            self._waiting.put_nowait((item, future))
        return list(await asyncio.gather(*futures))

    async def close(self) -> None:
        """Cancel whatever waits, and end the thread after the batch it is at."""
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        for future in list(self._unanswered):
            future.cancel()
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            # Whoever gave up waiting has cancelled its future.
            batch = [(item, future) for item, future in batch if not future.done()]
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(
                    self._thread, self._run, [item for item, _ in batch]
                )
            except Exception as error:  # it belongs to those who asked
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _next_batch(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        batch = [await self._waiting.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait_s):
                while len(batch) < self._max_batch:
                    batch.append(await self._waiting.get())
        return batch
