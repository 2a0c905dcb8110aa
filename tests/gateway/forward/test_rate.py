"""A rate is what it says: measured at the broker, over any second, whatever is sent and however often."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from gateway.forward.pace import SAVED_S, SHARES
from tests.gateway.forward.scene import MemoryLog, entity_id, tables
from tests.gateway.forward.test_forwarder import FAST, forwarding
from tests.support.strict_broker import StrictBroker

POINTS = tuple(f"p{n}" for n in range(10))
RATE = 100.0
SETTINGS = replace(FAST, rate_per_s=RATE, history="temporal", records=True, records_within_s=0.1)
AIR = tuple(f"air-{n}" for n in range(8))


class Arrivals(StrictBroker):
    """Notes when values came, also those of requests that are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[tuple[float, str, int]] = []

    def answer(self, request: Any) -> Any:
        way = "past" if "/temporal/" in request.path else "state"
        if request.method == "POST":
            self.came.append((time.monotonic(), way, request.body.count(b'"unitCode"')))
        return super().answer(request)

    def most_in(self, seconds: float) -> int:
        """The most values in any stretch of so many seconds."""
        return max(sum(n for at, _, n in self.came if start <= at < start + seconds) for start, _, _ in self.came)

    def total(self, way: str) -> int:
        return sum(n for _, of, n in self.came if of == way)

    @property
    def per_s(self) -> float:
        """Values a second, from the first on."""
        return sum(n for _, _, n in self.came[1:]) / (self.came[-1][0] - self.came[0][0])


def put(log: MemoryLog, device: str, at_s: float) -> None:
    log.put(device, at_s, **dict.fromkeys(POINTS, at_s))


@pytest.mark.parametrize("history", ["temporal", "in-order"])
async def test_a_backlog_goes_out_at_the_rate_and_no_faster(history: str) -> None:
    strict, log = Arrivals(), MemoryLog()
    for n in range(5):
        for device in AIR[:5]:
            put(log, device, n)
    settings = replace(SETTINGS, history=history)
    async with strict.serve() as url, forwarding(url, log, mappings=tables(*AIR, points=POINTS), settings=settings):
        await strict.until(lambda: log.settled)
    assert sum(n for _, _, n in strict.came) == 250
    assert strict.most_in(1.0) <= RATE * (1 + SAVED_S) + 2 * len(POINTS)
    assert strict.per_s == pytest.approx(RATE, rel=0.2)


async def test_neither_lane_starves_while_both_want_more_than_the_rate() -> None:
    strict, log = Arrivals(), MemoryLog()
    settings = replace(SETTINGS, rate_per_s=200.0)
    for n in range(100):
        put(log, "air-7", n - 1000)
    async with strict.serve() as url, forwarding(url, log, mappings=tables(*AIR, points=POINTS), settings=settings):
        started_s, n = time.monotonic(), 0
        while time.monotonic() - started_s < 2.0:
            n += 1
            for device in AIR[:-1]:
                put(log, device, n / 10)
            await asyncio.sleep(0.1)  # the sensors' own pace: 700 a second
    assert strict.total("state") > 2.0 * 200 * SHARES["state"] * 0.8
    assert strict.total("past") > 2.0 * 200 * SHARES["past"] * 0.6
    assert strict.most_in(1.0) <= 200 * (1 + SAVED_S) + 2 * len(POINTS)
    served = {device: strict.current(entity_id(device), "p0") for device in AIR[:-1]}
    assert min(served.values()) > n / 10 - 1.5  # each in its turn


async def test_what_is_refused_whole_and_searched_for_the_culprit_counts_each_time() -> None:
    strict, log = Arrivals(), MemoryLog()
    strict.behaviour.refuse, strict.behaviour.whole = "air-3$", "silent"
    for device in AIR:
        put(log, device, 0)
    settings = replace(SETTINGS, rate_per_s=200.0)
    async with strict.serve() as url, forwarding(url, log, mappings=tables(*AIR, points=POINTS), settings=settings):
        await strict.until(lambda: log.settled)
    assert strict.total("state") > 120
    assert strict.most_in(0.5) <= 200 * (0.5 + SAVED_S) + 4 * len(POINTS)


async def test_a_rate_that_is_too_low_is_told_in_status_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.forward.pace.LOOK_S", 0.5)
    strict, log = Arrivals(), MemoryLog()
    tables_of_air = tables(*AIR, points=POINTS)
    async with strict.serve() as url, forwarding(url, log, mappings=tables_of_air, settings=SETTINGS) as health:
        n = 0
        async with asyncio.timeout(8):
            while not health.reason:
                n += 1
                for device in AIR:
                    put(log, device, n / 10)
                await asyncio.sleep(0.1)  # the sensors' own pace: 800 a second
        assert health.state == "ok"
        assert "rate: 100/s is too low" in health.reason


async def test_without_a_rate_a_backlog_goes_as_fast_as_the_broker_takes_it() -> None:
    strict, log = Arrivals(), MemoryLog()
    for n in range(30):
        for device in AIR:
            put(log, device, n)
    settings = replace(SETTINGS, rate_per_s=None)
    async with strict.serve() as url, forwarding(url, log, mappings=tables(*AIR, points=POINTS), settings=settings):
        await strict.until(lambda: log.settled)
    assert strict.per_s > 600
