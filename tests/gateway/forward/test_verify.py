"""History is settled when it is seen: at a broker that records late, and forgets with a restart or its database what it took.

The broker is the imitation of Scorpio, whose times pass in real time; boxes have the config that an operator leaves as it is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth
from tests.gateway.forward.scene import entity_id, measured_only, tables
from tests.gateway.forward.test_two_lanes import FAST, Box
from tests.support.broker_judge import Verdict
from tests.support.broker_profiles import Scorpio
from tests.support.strict_broker import StrictBroker

SILENCE_S = 0.25
LOOK_S = 0.1
AUTO = replace(
    FAST, records_within_s=10.0, look_s=LOOK_S, look_updates=5, look_within_s=2.0, learn_s=60.0, unseen_s=60.0
)


def scorpio(**changes: Any) -> StrictBroker:
    own = {"silence_s": SILENCE_S, "look_s": LOOK_S, "tenant_s": 0.01, "batch_s": None}
    return StrictBroker(profile=Scorpio(**{**own, **changes}))


class Site:
    """A box with devices of its own."""

    def __init__(self, folder: Path, *devices: str) -> None:
        self.box = Box(folder)
        self.devices = devices
        self.n = 0

    @contextlib.asynccontextmanager
    async def running(self, url: str, settings: ForwardSettings = AUTO) -> AsyncIterator[BrokerHealth]:
        async with self.box.running(url, settings, mappings=tables(*self.devices)) as health:
            yield health

    async def live(self, sets: int, pause_s: float = 0.02) -> None:
        for _ in range(sets):
            self.n += 1
            for device in self.devices:
                await self.box.put(device, self.n, no2=self.n + 0.25, pm25=self.n)
            await asyncio.sleep(pause_s)

    async def done(self) -> bool:
        """All that was put is settled."""
        assert self.box.log is not None
        return await self.box.log.read("city") is None

    async def all_done(self, within_s: float = 8.0) -> None:
        async with asyncio.timeout(within_s):
            while not await self.done():  # noqa: ASYNC110 - it happens as time passes
                await asyncio.sleep(0.02)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "one", "air-0", "air-1", "air-2")


def judged(strict: StrictBroker, *sites: Site) -> Verdict:
    assert strict.backwards == []
    return strict.judge(point for site in sites for point in site.box.expected)


def whole(strict: StrictBroker, *sites: Site) -> Callable[[], bool]:
    """Nothing is missing any more."""
    return lambda: not judged(strict, *sites).missing


async def test_what_is_accepted_is_settled_when_it_is_seen_and_not_before(site: Site) -> None:
    strict = scorpio()
    async with strict.serve() as url, site.running(url) as health, strict.neighbour(every_s=0.02):
        await site.live(10)
        await strict.until(lambda: site.box.settled and strict.current(entity_id("air-0"), "pm25") == 10)
        await asyncio.sleep(3 * LOOK_S)
        assert health.backlog == 0  # it was sent
        assert not await site.done()
    async with strict.serve() as url, site.running(url):
        await site.live(2)
        await site.all_done()
    assert judged(strict, site).clean


async def test_two_boxes_on_one_tenant_double_nothing(tmp_path: Path) -> None:
    strict = scorpio()
    one, two = Site(tmp_path / "one", "air-0", "air-1"), Site(tmp_path / "two", "air-2", "air-3")
    async with strict.serve() as url, one.running(url), two.running(url):
        await asyncio.gather(one.live(30), two.live(30, pause_s=0.03))
        await one.all_done()
        await two.all_done()
    assert judged(strict, one, two).clean


async def test_on_a_busy_tenant_nothing_is_doubled_and_nothing_waits(site: Site) -> None:
    strict = scorpio()
    async with strict.serve() as url, site.running(url), strict.neighbour(every_s=0.05):
        await site.live(60)
        await strict.until(lambda: site.box.settled and strict.current(entity_id("air-2"), "pm25") == 60)
    await strict.until(whole(strict, site))
    assert judged(strict, site).clean


@pytest.mark.parametrize("busy", [False, True])
async def test_a_restart_before_it_was_written_loses_nothing(site: Site, busy: bool) -> None:
    strict = scorpio()
    async with strict.serve() as url, site.running(url) as health:
        await strict.until(lambda: health.history == "temporal")
        async with strict.neighbour(every_s=0.02) if busy else contextlib.nullcontext():
            await site.live(20)
            await strict.stop()
            await site.live(5)
            await strict.until(lambda: health.state == "down")
            await strict.start()
            await site.live(10)
        assert strict.forgotten
        await site.all_done()
    assert judged(strict, site).clean
    assert [value.via for value in strict.stored if value.via == "temporal"]


async def test_an_outage_of_its_database_loses_nothing(site: Site) -> None:
    strict = scorpio()
    async with strict.serve() as url, site.running(url) as health:
        await strict.until(lambda: health.history == "temporal")
        await site.live(20)
        strict.database_away()
        await site.live(20)
        await strict.until(lambda: health.state == "down")
        await asyncio.sleep(SILENCE_S + 2 * LOOK_S)
        strict.database_back()
        await site.live(10)
        await site.all_done()
    assert strict.forgotten
    assert judged(strict, site).clean


async def test_a_box_that_is_killed_repeats_nothing_and_loses_nothing(site: Site, tmp_path: Path) -> None:
    strict = scorpio()
    async with strict.serve() as url:
        async with site.running(url) as health, strict.neighbour(every_s=0.05):
            await strict.until(lambda: health.history == "temporal")
            await site.live(20)
            left = await site.box.killed(tmp_path / "left")
            await site.live(5)
            await strict.until(lambda: site.box.settled)
        after = Site(tmp_path / "none", *site.devices)
        after.box, after.n = left, 100
        after.box.expected |= site.box.expected  # the last of the first run had been taken
        async with after.running(url):
            await after.live(5)
            await after.all_done()
    assert judged(strict, after).clean
    assert measured_only(strict.temporal_history())
