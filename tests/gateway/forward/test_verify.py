"""History is settled when it is seen: at a broker that records late, and forgets with a restart or its database what it took.

The broker is the imitation of Scorpio, whose times pass in real time; boxes have the config that an operator leaves as it is.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth
from gateway.log.log import Log
from tests.gateway.forward.scene import entity_id, measured_only, tables, wire
from tests.gateway.forward.test_two_lanes import FAST, Box
from tests.support.broker_judge import Verdict
from tests.support.broker_parts import Refusal, Reply, Request
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
        return await self.log.read("city") is None

    @property
    def log(self) -> Log:
        assert self.box.log is not None
        return self.box.log

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


def temporal(strict: StrictBroker) -> list[Any]:
    """What came by the temporal API."""
    return [value.key for value in strict.stored if value.via == "temporal"]


async def test_a_reload_repeats_nothing_and_loses_nothing(site: Site) -> None:
    strict = scorpio()
    async with strict.serve() as url, site.box.open(), strict.neighbour(every_s=0.05) as _:
        tables_of = tables(*site.devices)
        async with site.box.forwarding(url, AUTO, mappings=tables_of) as health:
            await strict.until(lambda: health.history == "temporal")
            await site.live(10)
            await strict.until(lambda: site.box.settled)
        await strict.stop()  # what waits has been forgotten when the next one begins
        await strict.start()
        async with site.box.forwarding(url, AUTO, mappings=tables_of):
            await site.live(10)
            await strict.until(lambda: site.box.settled and strict.current(entity_id("air-0"), "pm25") == 20)
            before = len(temporal(strict))
            await asyncio.sleep(5 * LOOK_S)
            assert len(temporal(strict)) == before
    async with strict.serve() as url, site.running(url):
        await site.live(3)
        await site.all_done()
    assert strict.forgotten
    assert judged(strict, site).clean


@pytest.mark.parametrize("again", [1, 2])
async def test_what_was_never_current_does_not_wait_after_a_reload_although_the_devices_are_silent(
    site: Site, again: int
) -> None:
    """The broker holds newer than all of it; only this run itself knows what it sent of it as current."""
    strict = scorpio()
    slow = replace(AUTO, rate_per_s=20.0)
    async with strict.serve() as url, site.box.open(), strict.neighbour(every_s=0.05):  # nothing shows meanwhile
        async with site.box.forwarding(url, slow, mappings=tables(*site.devices)) as health:
            await strict.until(lambda: health.history == "temporal")
            strict.behaviour.fault = "503"
            await site.live(60, pause_s=0.005)
            strict.behaviour.fault = ""
            await site.live(3, pause_s=0.2)  # sent as current, and the past is behind them
            await strict.until(lambda: strict.current(entity_id("air-0"), "pm25") == 63)
        for _ in range(again):
            before = len(temporal(strict))
            assert before < 150
            async with site.box.forwarding(url, slow, mappings=tables(*site.devices)):
                await strict.until(lambda before=before: len(temporal(strict)) > before)
        async with site.box.forwarding(url, AUTO, mappings=tables(*site.devices)) as health:
            await strict.until(lambda: health.history == "temporal" and health.backlog == 0)
    async with strict.serve() as url, site.running(url):
        await site.live(3)
        await site.all_done()
    assert judged(strict, site).clean


async def test_what_a_reload_cut_off_is_looked_up_and_goes_once(site: Site) -> None:
    """Carried out, but the answer did not come before the forwarder ended."""
    strict = scorpio()
    async with strict.serve() as url, site.box.open(), strict.neighbour(every_s=0.05):
        async with site.box.forwarding(url, AUTO, mappings=tables(*site.devices)) as health:
            await strict.until(lambda: health.history == "temporal")
            await site.live(3)
            await strict.until(lambda: strict.current(entity_id("air-2"), "pm25") == 3)
            strict.behaviour.fault, strict.behaviour.path = "hang_stored", "upsert"
            await site.live(1)
            await strict.until(lambda: strict.current(entity_id("air-2"), "pm25") == 4)
        strict.behaviour.fault = ""
        async with site.box.forwarding(url, AUTO, mappings=tables(*site.devices)):
            await site.live(1)
            await strict.until(lambda: site.box.settled and strict.current(entity_id("air-2"), "pm25") == 5)
    async with strict.serve() as url, site.running(url):
        await site.live(3)
        await site.all_done()
    assert judged(strict, site).clean
    assert wire(4) not in {key[2] for key in temporal(strict)}


async def test_what_is_held_already_is_not_held_twice_by_the_next_run(site: Site) -> None:
    strict = scorpio()
    async with strict.serve() as url:
        async with site.running(url) as health, strict.neighbour(every_s=0.05):
            strict.behaviour.refuse = "air-1$"
            await site.live(3)
            await strict.until(lambda: health.dead + health.later > 0 and site.box.settled)
            held = sum(piece.readings for piece in site.log.held.pieces("city"))
        async with site.running(url) as health:
            await site.live(3)
            await site.all_done()
            await strict.until(lambda: site.box.settled)
            assert sum(piece.readings for piece in site.log.held.pieces("city")) == 2 * held


async def test_a_backlog_of_an_earlier_run_does_not_wait_for_a_busy_tenant(site: Site) -> None:
    strict = scorpio()
    async with strict.serve() as url, strict.neighbour(every_s=0.05):
        async with site.running(url) as health:
            await strict.until(lambda: health.history == "temporal")
            await site.live(3)
            await strict.until(lambda: site.box.settled)
            strict.behaviour.fault = "503"
            await site.live(40)
            await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        async with site.running(url) as health:
            await strict.until(lambda: site.box.settled and health.state == "ok", timeout_s=4.0)
            await strict.until(lambda: len({key[2] for key in temporal(strict)}) >= 39)
            assert not await site.done()
    await asyncio.sleep(SILENCE_S + 2 * LOOK_S)
    assert judged(strict, site).clean


async def test_what_is_known_to_be_accepted_and_never_seen_is_given_up_and_counted(site: Site) -> None:
    strict = scorpio(silence_s=600.0)
    preset = replace(AUTO, product="scorpio", unseen_s=0.5)
    async with strict.serve() as url, site.running(url, preset) as health:
        await strict.until(lambda: health.history == "temporal")
        await site.live(1)
        await site.all_done()
        await strict.until(lambda: health.unseen == 6)
    assert temporal(strict) == []


async def test_too_much_that_waits_is_given_up_from_its_oldest_on(site: Site) -> None:
    strict = scorpio(silence_s=600.0)
    preset = replace(AUTO, product="scorpio", unseen_points=12)
    async with strict.serve() as url, site.running(url, preset) as health:
        await strict.until(lambda: health.history == "temporal")
        for n in range(1, 6):
            await site.live(1)
            await strict.until(lambda n=n: strict.current(entity_id("air-2"), "pm25") == n and site.box.settled)
        await strict.until(lambda: health.unseen == 18)
        columns = await site.log.read("city")
        assert columns is not None
        assert set(columns.value) == {4, 4.25, 5, 5.25}
    assert temporal(strict) == []


async def test_what_nobody_knows_to_be_accepted_is_sent_when_it_waited_too_long(site: Site, tmp_path: Path) -> None:
    strict = scorpio()
    async with strict.serve() as url:
        async with site.running(url) as health:
            await strict.until(lambda: health.history == "temporal")
            await site.live(5)
            await strict.until(lambda: site.box.settled)
            left = await site.box.killed(tmp_path / "left")
        await strict.stop()
        await strict.start()
        after = Site(tmp_path / "none", *site.devices)
        after.box = left
        async with after.running(url, replace(AUTO, unseen_s=0.5)) as health:  # no device tells anything any more
            await after.all_done()
    missing = judged(strict, after).missing
    assert {key[2] for key in missing} <= {
        f"2026-06-01T12:00:0{n}Z" for n in (5,)
    }  # the state of now: known, and unseen
    assert not judged(strict, after).doubled
    assert health.unseen == sum(missing.values())


# whether it records


async def test_who_names_itself_is_known(site: Site) -> None:
    strict = scorpio()
    async with strict.serve() as url, site.running(url, replace(AUTO, product="scorpio")) as health:
        await strict.until(lambda: health.records == "yes (scorpio)")


async def test_whether_it_records_is_learned_by_what_is_seen_and_kept(site: Site) -> None:
    strict = scorpio(named=False)
    async with strict.serve() as url:
        async with site.running(url) as health:
            await strict.until(lambda: health.records == "not known yet")
            await site.live(5)
            await strict.until(lambda: health.records == "yes (seen)")
        async with site.running(url) as health:
            await strict.until(lambda: health.records == "yes (seen)")
    assert judged(strict, site).clean


async def test_one_that_does_not_record_is_found_out_while_it_is_there_and_gets_all_in_the_end(site: Site) -> None:
    strict = StrictBroker()
    strict.behaviour.records = False
    learning = replace(AUTO, learn_s=0.6, unseen_s=1.5)
    async with strict.serve() as url:
        async with site.running(url, learning) as health:
            await strict.until(lambda: health.records == "not known yet")
            await site.live(3)
            strict.behaviour.fault = "503"
            await asyncio.sleep(1.0)  # does not count
            assert health.records == "not known yet"
            strict.behaviour.fault = ""
            await strict.until(lambda: health.records == "no")
            await site.live(3)
            await site.all_done()
        async with site.running(url, replace(learning, learn_s=60.0)) as health:
            await site.live(1)
            await strict.until(lambda: health.records == "no")
            await site.all_done()
    assert Counter(measured_only(strict.temporal_history())) == Counter(site.box.expected)


class Unreadable(StrictBroker):
    """Its history can be written, but for now not read."""

    unreadable = False

    def answer(self, request: Request) -> Reply:
        if self.unreadable and request.method == "GET" and "/temporal/" in request.path:
            return Reply(503, Refusal(503, "too much to do", kind="InternalError").problem())
        return super().answer(request)


async def test_a_history_that_cannot_be_read_for_a_while_keeps_nothing_from_being_sent(site: Site) -> None:
    strict = Unreadable(profile=Scorpio(silence_s=SILENCE_S, look_s=LOOK_S, tenant_s=0.01, batch_s=None))
    async with strict.serve() as url, site.running(url) as health:
        await site.live(2)
        await site.all_done()
        strict.unreadable = True
        await site.live(10)
        await strict.until(lambda: health.reason.startswith("history: "))
        await site.live(2)
        await site.box.put("air-0", 0.5, no2=0.5)  # late: for the history alone
        await strict.until(lambda: (entity_id("air-0"), "no2", wire(0.5), 0.5) in strict.temporal_history())
        await strict.until(lambda: site.box.settled and strict.current(entity_id("air-0"), "pm25") == site.n)
        assert health.reason.startswith("history: ")
        assert not await site.done()
        strict.unreadable = False
        await strict.until(lambda: health.state == "ok")  # nothing is sent meanwhile
        await site.all_done()
    assert judged(strict, site).clean


async def test_a_history_that_is_not_to_be_read_for_hours_holds_nothing_back_for_longer_than_said(site: Site) -> None:
    strict = Unreadable(profile=Scorpio(silence_s=SILENCE_S, look_s=LOOK_S, tenant_s=0.01, batch_s=None))
    strict.unreadable = False
    async with strict.serve() as url, site.running(url, replace(AUTO, product="scorpio", unseen_s=1.0)) as health:
        await strict.until(lambda: health.history == "temporal")
        strict.unreadable = True
        await site.live(5)
        await strict.until(lambda: health.reason.startswith("history: "))
        while not health.unseen:  # the present goes on all the time
            await site.live(1)
            assert site.n < 200
        assert health.state == "down"
    assert not judged(strict, site).doubled


async def test_two_values_for_one_time_do_not_look_as_if_the_broker_recorded(site: Site) -> None:
    """One of them went by the temporal API, and shows."""
    strict = StrictBroker()
    strict.behaviour.records = False
    async with strict.serve() as url, site.running(url, replace(AUTO, learn_s=0.5, unseen_s=0.6)) as health:
        for value in (1.5, 2.5):
            await site.box.put("air-0", 1.0, no2=value)
        await strict.until(lambda: len(strict.temporal_history()) == 1)
        await asyncio.sleep(4 * LOOK_S)
        async with asyncio.timeout(8):
            while health.records != "no":
                assert health.records in ("", "not known yet")
                site.n += 1
                await site.live(1)
        await site.all_done()
    assert {point[3] for point in judged(strict, site).missing} <= {1.5, 2.5}  # the history is asked by times


@pytest.mark.parametrize("waits", [True, False])
async def test_a_no_that_was_wrong_changes_by_itself(site: Site, waits: bool) -> None:
    """A tenant was busy for longer than was waited: what waited shows, or else a doubled point."""
    strict = scorpio(named=False)
    settings = replace(AUTO, learn_s=0.4, unseen_s=60.0 if waits else 0.5, look_within_s=0.3)
    async with strict.serve() as url, site.running(url, settings) as health:
        async with strict.neighbour(every_s=0.05):
            await site.live(3)
            await strict.until(lambda: health.records == "no")
            if not waits:
                await site.all_done()
                await site.live(2)
                await site.all_done()
        async with asyncio.timeout(8):
            while health.records != "yes (seen)":
                await site.live(1, pause_s=SILENCE_S + 2 * LOOK_S)
    assert not judged(strict, site).missing


async def test_when_the_logs_file_is_found_late_nothing_is_sent_again(site: Site) -> None:
    strict = scorpio()
    folder = site.box.settings.path.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("no folder")
    async with strict.serve() as url, site.running(url) as health, strict.neighbour(every_s=0.05):
        await strict.until(lambda: health.history == "temporal")
        await site.live(10)
        await strict.until(lambda: site.box.settled)
        assert site.log.status()["state"] != "ok"
        folder.unlink()
        folder.mkdir()
        site.box.clock.leap(6.0)
        await site.live(3)
        await strict.until(lambda: site.log.first_seq > 0)
        await site.live(3)
        await strict.until(lambda: site.box.settled and strict.current(entity_id("air-0"), "pm25") == 16)
    await asyncio.sleep(SILENCE_S + 2 * LOOK_S)
    assert judged(strict, site).clean
