import asyncio
import threading

import pytest

from tests.helpers.waiting import GUARD_S, until
from zerosearch.search.batching import Batcher, QueueFull


class Doubler:
    """Doubles numbers; waits at `gate` before each batch, and fails at 13."""

    def __init__(self, *, closed=False):
        self.gate = threading.Event()
        self.running = []
        self.batches = []
        if not closed:
            self.gate.set()

    def __call__(self, numbers):
        self.running = numbers
        self.gate.wait(GUARD_S)
        self.batches.append(list(numbers))
        if 13 in numbers:
            raise RuntimeError("unlucky")
        return [2 * number for number in numbers]


def make(run, *, max_batch=4, max_wait_s=0.0, max_queued=100):
    return Batcher(run, max_batch=max_batch, max_wait_s=max_wait_s, max_queued=max_queued)


async def test_each_gets_the_answers_to_its_own_items_in_order():
    batcher = make(Doubler())
    answers = await asyncio.gather(*(batcher.submit([i, i + 100]) for i in range(20, 50)))
    assert answers == [[2 * i, 2 * i + 200] for i in range(20, 50)]
    assert await batcher.submit([]) == []
    await batcher.close()


async def test_what_arrives_while_a_batch_runs_is_the_next_batch():
    run = Doubler(closed=True)
    batcher = make(run)
    first = asyncio.create_task(batcher.submit([0]))
    await until(lambda: run.running == [0])
    others = [asyncio.create_task(batcher.submit([i])) for i in range(1, 7)]
    await until(lambda: batcher.queued == 6)
    run.gate.set()
    assert await asyncio.gather(first, *others) == [[2 * i] for i in range(7)]
    assert run.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert batcher.queued == 0
    await batcher.close()


async def test_a_batch_waits_for_others_as_long_as_it_may():
    run = Doubler()
    batcher = make(run, max_wait_s=GUARD_S)
    tasks = []
    for i in range(4):
        tasks.append(asyncio.create_task(batcher.submit([i])))
        await asyncio.sleep(0.02)
    assert await asyncio.gather(*tasks) == [[0], [2], [4], [6]]  # full, so it waits no longer
    assert run.batches == [[0, 1, 2, 3]]
    await batcher.close()


async def test_a_full_queue_takes_nothing_of_a_request_that_does_not_fit():
    run = Doubler(closed=True)
    batcher = make(run, max_batch=1, max_queued=3)
    first = asyncio.create_task(batcher.submit([0]))
    await until(lambda: run.running == [0])
    second = asyncio.create_task(batcher.submit([1, 2]))
    await until(lambda: batcher.queued == 2)
    with pytest.raises(QueueFull, match="2 queries wait, at most 3 may"):
        await batcher.submit([3, 4])
    third = asyncio.create_task(batcher.submit([5]))
    await until(lambda: batcher.queued == 3)
    run.gate.set()
    assert await asyncio.gather(first, second, third) == [[0], [2, 4], [10]]
    await batcher.close()


async def test_a_batch_that_fails_fails_for_those_in_it_only():
    run = Doubler(closed=True)
    batcher = make(run)
    tasks = [asyncio.create_task(batcher.submit([i])) for i in (13, 1)]
    await until(lambda: run.running == [13, 1])
    later = asyncio.create_task(batcher.submit([2]))
    await until(lambda: batcher.queued == 1)
    run.gate.set()
    failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in failed] == ["unlucky", "unlucky"]
    assert await later == [4]
    await batcher.close()


async def test_who_gives_up_is_not_answered_and_nobody_else_is_lost():
    run = Doubler(closed=True)
    batcher = make(run)
    tasks = [asyncio.create_task(batcher.submit([i])) for i in range(3)]
    await until(lambda: run.running == [0, 1, 2])
    late = [asyncio.create_task(batcher.submit([i])) for i in (7, 8)]
    await until(lambda: batcher.queued == 2)
    tasks[1].cancel()
    late[0].cancel()
    await asyncio.wait([tasks[1], late[0]])
    run.gate.set()
    assert await asyncio.gather(tasks[0], tasks[2], late[1]) == [[0], [4], [16]]
    assert run.batches[1:] == [[8]]
    await batcher.close()


async def test_a_batch_that_all_have_given_up_is_not_run():
    run = Doubler(closed=True)
    batcher = make(run)
    first = asyncio.create_task(batcher.submit([0]))
    await until(lambda: run.running == [0])
    second = asyncio.create_task(batcher.submit([1]))
    await until(lambda: batcher.queued == 1)
    second.cancel()
    await asyncio.wait([second])
    run.gate.set()
    await first
    await until(lambda: batcher.queued == 0)
    assert await batcher.submit([2]) == [4]
    assert run.batches == [[0], [2]]
    await batcher.close()


async def test_closing_lets_nobody_wait_for_ever():
    run = Doubler(closed=True)
    batcher = make(run, max_batch=1)
    tasks = [asyncio.create_task(batcher.submit([i])) for i in range(3)]
    await until(lambda: run.running == [0])
    threads = {thread for thread in threading.enumerate() if thread.name.startswith("search")}
    run.gate.set()
    await batcher.close()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, list | asyncio.CancelledError) for each in ended)
    assert not any(thread.is_alive() for thread in threads)
