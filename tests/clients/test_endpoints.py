"""The choice among endpoints, with calls, probes and a clock that a test scripts."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest

from tests.helpers.clock import Clock
from zerosearch.clients import endpoints
from zerosearch.clients.endpoints import AllDown, CallFailure, EndpointPool, FailureKind
from zerosearch.types import SearchError

clock = Clock()


@pytest.fixture(autouse=True)
def by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "time", clock)


class Servers:
    """Stands in for the servers: `broken` says how calls and probes of an endpoint fail."""

    def __init__(self, *names: str, **options: float) -> None:
        self.broken: dict[str, FailureKind] = {}
        self.broken_probes: dict[str, FailureKind] = {}
        self.probe_s = 0.0
        self.probes: list[str] = []
        self.calls: list[str] = []
        self.pool = EndpointPool(names, self._probe, **{"probe_interval_s": 0.02, **options})

    async def call(self, tried: tuple[str, ...] = (), *, seconds: float = 0.0) -> str:
        async with self.pool.lease(tried) as name:
            self.calls.append(name)
            await asyncio.sleep(seconds)
            self._fail(name, self.broken.get(name))
            return name

    async def calls_of(self, count: int) -> Counter[str]:
        """Who gets so many calls, one after the other."""
        names = []
        for _ in range(count):
            try:
                names.append(await self.call())
            except CallFailure as failure:
                names.append(failure.endpoint)
        return Counter(names)

    def kill(self, *names: str, kind: FailureKind = "unreachable") -> None:
        for name in names:
            self.broken[name] = self.broken_probes[name] = kind

    def revive(self, *names: str) -> None:
        for name in names:
            del self.broken[name], self.broken_probes[name]

    async def notice(self, *names: str) -> None:
        """Let the pool find out that these are dead."""
        while set(names) & set(self.pool._up()):
            with pytest.raises(CallFailure):
                await self.call(tuple(set(self.pool._health) - set(names)))

    async def _probe(self, name: str) -> None:
        self.probes.append(name)
        await asyncio.sleep(self.probe_s)
        self._fail(name, self.broken_probes.get(name))

    def _fail(self, name: str, kind: FailureKind | None) -> None:
        if kind is not None:
            raise CallFailure(name, f"{kind} as scripted", kind=kind)


async def until(servers: Servers, *names: str) -> None:
    while servers.pool._up() != list(names):
        await asyncio.sleep(0.005)
        servers.pool._start_probes(await servers.pool._traffic.get())


# -- who gets a call ------------------------------------------------------------------------------


@clock.runs
async def test_calls_one_after_the_other_take_turns() -> None:
    assert await Servers("a", "b", "c").calls_of(9) == {"a": 3, "b": 3, "c": 3}


@clock.runs
async def test_the_endpoint_with_the_fewest_calls_in_progress_is_next() -> None:
    servers = Servers("a", "b")
    async with servers.pool.lease() as slow:
        assert {await servers.call() for _ in range(5)} == {"a", "b"} - {slow}
    assert (await servers.calls_of(4)).keys() == {"a", "b"}


@clock.runs
async def test_concurrent_calls_are_spread_evenly() -> None:
    servers = Servers("a", "b", "c")
    names = await asyncio.gather(*(servers.call(seconds=0.01) for _ in range(30)))
    assert Counter(names) == {"a": 10, "b": 10, "c": 10}


@clock.runs
async def test_a_retry_prefers_an_endpoint_that_was_not_tried() -> None:
    servers = Servers("a", "b", "c")
    assert [await servers.call(("a", "b")) for _ in range(3)] == ["c"] * 3
    assert await servers.call(("a", "b", "c", "a", "c")) == "b"


@clock.runs
async def test_a_call_that_was_given_up_is_no_longer_counted() -> None:
    servers = Servers("a", "b")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(servers.call(seconds=5), 0.01)
    assert await servers.calls_of(4) == {"a": 2, "b": 2}


# -- one endpoint is down -------------------------------------------------------------------------


@clock.runs
async def test_a_dead_endpoint_gets_probes_and_no_calls() -> None:
    servers = Servers("a", "b", "c")
    servers.kill("b")
    await servers.notice("b")
    servers.calls.clear()
    for _ in range(30):
        await servers.call()
        await asyncio.sleep(0.005)
    assert "b" not in servers.calls
    assert set(servers.probes) == {"b"}
    assert 6 <= len(servers.probes) <= 8, "about one per interval"


@clock.runs
async def test_it_gets_calls_again_after_a_probe_that_got_through() -> None:
    servers = Servers("a", "b")
    servers.kill("a")
    await servers.notice("a")
    servers.revive("a")
    await until(servers, "a", "b")
    assert await servers.calls_of(4) == {"a": 2, "b": 2}


@clock.runs
async def test_probes_of_an_endpoint_do_not_pile_up() -> None:
    servers = Servers("a", "b", probe_interval_s=0.001)
    servers.probe_s = 5.0
    servers.kill("a")
    await servers.notice("a")
    for _ in range(10):
        await servers.call()
        await asyncio.sleep(0.005)
    assert servers.probes == ["a"]


@clock.runs
async def test_a_connection_that_broke_by_chance_costs_one_probe(caplog) -> None:
    servers = Servers("a")
    servers.broken["a"] = "unreachable"
    with pytest.raises(CallFailure):
        await servers.call()
    servers.broken.clear()
    await servers.pool.recovered()
    assert await servers.call() == "a"
    assert servers.probes == ["a"]
    assert not caplog.records


@clock.runs
async def test_a_probe_that_is_refused_by_the_server_shows_that_it_runs() -> None:
    servers = Servers("a")
    servers.broken["a"], servers.broken_probes["a"] = "unreachable", "rejected"
    await servers.notice("a")
    await servers.pool.recovered()


@pytest.mark.parametrize("kind", ["faulty", "stalled"])
@clock.runs
async def test_bad_answers_do_not_take_an_endpoint_down_but_it_rests(kind: FailureKind) -> None:
    servers = Servers("a", "b", probe_interval_s=0.2)
    servers.broken["b"] = kind
    counts = await servers.calls_of(40)
    assert servers.probes == []
    assert 3 <= counts["b"] <= 5
    servers.broken.clear()
    await asyncio.sleep(0.25)
    counts = await servers.calls_of(20)
    assert 8 <= counts["b"] <= 12, "after a success it is like the others again"


@clock.runs
async def test_a_resting_endpoint_still_serves_where_there_is_no_other() -> None:
    servers = Servers("a")
    servers.broken["a"] = "faulty"
    assert await servers.calls_of(20) == {"a": 20}


@clock.runs
async def test_an_endpoint_rests_as_long_as_it_asked() -> None:
    servers = Servers("a", "b")
    while servers.calls[-1:] != ["a"]:
        await servers.call()
    with pytest.raises(CallFailure):
        async with servers.pool.lease(["a"]) as name:
            raise CallFailure(name, "HTTP 429", kind="faulty", retry_after_s=0.1)
    assert await servers.calls_of(10) == {"a": 10}
    await asyncio.sleep(0.12)
    assert (await servers.calls_of(10))["b"] >= 4


@clock.runs
async def test_failures_of_calls_in_progress_together_count_once() -> None:
    servers = Servers("a", "b")
    servers.broken["a"] = "unreachable"
    servers.probe_s = 0.005  # longer than it takes until the last of them has failed
    results = await asyncio.gather(
        *(servers.call(("b",), seconds=0.01) for _ in range(50)), return_exceptions=True
    )
    assert all(isinstance(result, CallFailure) for result in results)
    servers.broken.clear()
    await until(servers, "a", "b")
    assert (await servers.calls_of(10))["a"] == 5


@clock.runs
async def test_what_is_wrong_with_a_request_says_nothing_about_the_endpoint() -> None:
    servers = Servers("a", "b")
    servers.broken["a"] = "rejected"
    assert await servers.calls_of(20) == {"a": 10, "b": 10}


# -- all endpoints are down -----------------------------------------------------------------------


@clock.runs
async def test_calls_wait_until_an_endpoint_returns(caplog) -> None:
    caplog.set_level(logging.WARNING)
    servers = Servers("a", "b")
    servers.kill("a", "b")
    await servers.notice("a", "b")
    with pytest.raises(AllDown):
        await servers.call()
    waiting = [asyncio.create_task(servers.pool.recovered()) for _ in range(50)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in waiting)
    assert len(servers.probes) <= 20, "one prober for all that wait"
    servers.revive("b")
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert await servers.call() == "b"
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:2] == [
        f"search endpoint {name} is down: unreachable as scripted" for name in "ab"
    ]
    assert [message[:27] for message in messages[2:]] == ["search endpoint b is back a"]


@clock.runs
async def test_the_wait_is_bounded_and_the_error_names_every_endpoint() -> None:
    servers = Servers("http://a", "http://b", max_outage_s=0.15)
    servers.kill("http://a", "http://b")
    await servers.notice("http://a", "http://b")
    started = clock.now
    with pytest.raises(SearchError) as caught:
        await servers.pool.recovered()
    assert 0.14 < clock.now - started < 0.18
    assert caught.value.endpoint == "http://a, http://b"
    assert "http://a: unreachable as scripted; http://b: unreachable" in caught.value.reason


@clock.runs
async def test_after_that_calls_fail_after_one_probe_until_one_gets_through() -> None:
    servers = Servers("a", max_outage_s=1.0)
    servers.kill("a")
    await servers.notice("a")
    for _ in range(2):
        with pytest.raises(SearchError):
            await servers.pool.recovered()
    servers.probes.clear()
    started = clock.now
    results = await asyncio.gather(
        *(servers.pool.recovered() for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(result, SearchError) for result in results)
    assert clock.now - started < 0.03
    assert servers.probes == ["a"]
    servers.revive("a")
    await servers.pool.recovered()


@clock.runs
async def test_waiting_is_given_up_at_once_where_it_cannot_help() -> None:
    servers = Servers("a", "b", max_outage_s=60)
    servers.kill("a", "b", kind="certificate")
    await servers.notice("a", "b")
    await asyncio.wait_for(_fails(servers), 0.5)


@clock.runs
async def test_one_endpoint_that_may_return_is_waited_for() -> None:
    servers = Servers("a", "b", max_outage_s=0.2)
    servers.kill("a", kind="certificate")
    servers.kill("b")
    await servers.notice("a", "b")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(servers.pool.recovered(), 0.1)


@clock.runs
async def test_an_endpoint_whose_probes_hang_is_not_waited_for_alone() -> None:
    servers = Servers("a", "b")
    servers.kill("a", "b")
    await servers.notice("a", "b")
    servers.probe_s = 0.3
    waiting = asyncio.create_task(servers.pool.recovered())
    await asyncio.sleep(0.05)
    servers.probe_s = 0.0
    servers.revive("b")
    await asyncio.wait_for(waiting, 1)


@clock.runs
async def test_a_defect_of_the_probe_is_not_waited_for() -> None:
    servers = Servers("a")
    servers.kill("a")
    await servers.notice("a")
    servers.pool._probe = _defective
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(servers.pool.recovered(), 1)


def test_what_is_known_of_an_outage_outlives_the_event_loop() -> None:
    servers = Servers("a", max_outage_s=1.0)
    servers.kill("a")
    clock.run(servers.notice("a"))
    clock.now += 1.02

    started = clock.now
    clock.run(_fails(servers))
    assert clock.now - started < 0.03, "the outage had lasted long enough before"
    servers.revive("a")

    async def returns() -> str:
        await servers.pool.recovered()
        return await servers.call()

    assert clock.run(returns()) == "a"


def test_a_loop_may_end_while_endpoints_are_probed() -> None:
    servers = Servers("a", "b")
    servers.probe_s = 5.0
    servers.kill("a")
    started = clock.now
    clock.run(servers.notice("a"))
    assert clock.now - started < 1
    servers.probe_s = 0.0
    servers.revive("a")
    clock.run(until(servers, "a", "b"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("probe_interval_s", 0.0), ("max_outage_s", -1.0), ("max_outage_s", float("nan"))],
)
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}: give seconds"):
        Servers("a", **{name: value})


async def _fails(servers: Servers) -> None:
    with pytest.raises(SearchError):
        await servers.pool.recovered()


async def _defective(name: str) -> None:
    raise ZeroDivisionError(name)
