"""Rows under way at a time: bounded, finished beside an error, cleaned up at a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from zerosearch.core.work_off import work_off


async def test_all_rows_are_worked_off_and_never_more_than_so_many_at_a_time() -> None:
    under_way, most, done = 0, 0, list[int]()

    async def work(row: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (row % 3))
        under_way -= 1
        done.append(row)

    await work_off(range(20), work, concurrency=3)
    assert sorted(done) == [*range(20)] and most == 3


async def test_an_error_begins_no_row_and_ends_none_that_is_under_way() -> None:
    begun, done, others = list[int](), list[int](), asyncio.Event()

    async def work(row: int) -> None:
        begun.append(row)
        if row == 1:
            await asyncio.sleep(0.01)
            others.set()
            raise FloatingPointError("row 1")
        await others.wait()
        await asyncio.sleep(0.01)
        done.append(row)

    with pytest.raises(FloatingPointError, match="row 1") as raised:
        await work_off(range(9), work, concurrency=4)
    assert begun == [0, 1, 2, 3] and done == [0, 2, 3]
    assert raised.traceback[-1].name == "work", "where it was raised"


async def test_an_error_of_the_rows_themselves_ends_none_that_is_under_way() -> None:
    done = list[int]()

    def rows() -> Iterator[int]:
        yield from range(2)
        raise FloatingPointError("row 2 cannot be read")

    async def work(row: int) -> None:
        await asyncio.sleep(0.01)
        done.append(row)

    with pytest.raises(FloatingPointError, match="row 2"):
        await work_off(rows(), work, concurrency=3)
    assert done == [0, 1]


async def test_a_cancellation_waits_until_every_row_has_cleaned_up() -> None:
    cleaned = list[int]()

    async def work(row: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01 * (row + 1))
            cleaned.append(row)

    task = asyncio.create_task(work_off(range(9), work, concurrency=4))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [0, 1, 2, 3]
