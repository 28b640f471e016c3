"""Resources of an event loop are closed when it ends, or when nobody holds them any more."""

from __future__ import annotations

import asyncio
import gc

import pytest

from zerosearch.clients.per_loop import PerLoop


class Resource:
    """Notes the loops in which it was made and closed."""

    def __init__(self) -> None:
        self.made_in = asyncio.get_running_loop()
        self.closed_in: list[asyncio.AbstractEventLoop] = []

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed_in.append(asyncio.get_running_loop())


class Owner:
    """Refers to its resources and is referred to by them, as engines do by bound methods."""

    def __init__(self) -> None:
        self.resources: list[Resource] = []
        self.held = PerLoop(self.make, Resource.close)

    def make(self) -> Resource:
        self.resources.append(Resource())
        return self.resources[-1]


async def test_a_loop_has_one_resource() -> None:
    owner = Owner()
    assert await owner.held.get() is await owner.held.get()
    assert len(owner.resources) == 1 and not owner.resources[0].closed_in


def test_each_loop_has_its_own_that_ends_with_it() -> None:
    owner = Owner()
    for number in range(3):
        assert asyncio.run(owner.held.get()) is owner.resources[number]
    assert len({id(resource) for resource in owner.resources}) == 3
    assert all(resource.closed_in == [resource.made_in] for resource in owner.resources)


async def test_it_is_closed_when_its_owner_goes_while_the_loop_goes_on() -> None:
    owner = Owner()
    resource = await owner.held.get()
    del owner
    gc.collect()
    for _ in range(5):
        await asyncio.sleep(0)
    assert resource.closed_in == [asyncio.get_running_loop()]


def test_of_a_loop_that_ended_badly_nothing_is_left() -> None:
    owner = Owner()
    loop = asyncio.new_event_loop()
    first = loop.run_until_complete(owner.held.get())
    loop.close()
    assert asyncio.run(owner.held.get()) is not first
    assert not first.closed_in


async def test_what_cannot_be_made_is_tried_again() -> None:
    failures = [ValueError("no key"), ValueError("no key")]

    def make() -> str:
        if failures:
            raise failures.pop()
        return "made"

    async def close(_: str) -> None:
        pass

    held = PerLoop(make, close)
    for _ in range(2):
        with pytest.raises(ValueError, match="no key"):
            await held.get()
    assert await held.get() == "made"
