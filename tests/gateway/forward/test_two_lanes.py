"""State lane and history lane at work on one broker, with the real log: nothing missing, nothing twice, never back."""

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.forward.auth import Login, Way
from gateway.forward.feeds import Recipes
from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.forward.updates import Told
from gateway.health import BrokerHealth
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.reading import Reading, ReadingSet, Reason, no_values
from tests.gateway.forward.scene import AIR, START, LeapClock, RealClock, entity_id, measured_only, tables, wire
from tests.support.broker_profiles import Scorpio
from tests.support.strict_broker import StrictBroker

FAST = ForwardSettings(
    linger_s=0.05,
    gather_s=0.05,
    held_every_s=0.05,
    rate_per_s=1e6,
    records_within_s=0.6,
    look_s=0.05,
    learn_s=1.0,
    unseen_s=2.0,
    retry_first_s=0.05,
    retry_quick_s=0.1,
    retry_cap_s=0.1,
)
PATIENT = replace(FAST, learn_s=600.0, unseen_s=7200.0)
SHORT = aiohttp.ClientTimeout(total=2.0, sock_connect=0.5, sock_read=0.5)
DEVICES = tuple(f"air-{n}" for n in range(6))


class Box:
    """A log and forwarders on one file; the end of `running` is a clean stop, `killed` one that loses what is only in memory.

    Attributes:
        clock: of log and forwarder, over all runs.
        told: what the last forwarder of this run told the broker; the next one is given it, as the daemon does.
    """

    def __init__(self, folder: Path) -> None:
        self.settings = LogSettings(folder / "buffer.db", commit_every_s=3600.0)
        self.clock = LeapClock()
        self.log: Log | None = None
        self.told: Told | None = None
        self.expected: set[tuple[str, str, str, Any]] = set()

    @contextlib.asynccontextmanager
    async def running(
        self, url: str, settings: ForwardSettings = FAST, *, mappings: Any = None, login: Login | None = None
    ) -> AsyncIterator[BrokerHealth]:
        """The box from its start to its stop."""
        async with self.open(), self.forwarding(url, settings, mappings=mappings, login=login) as health:
            yield health

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Log]:
        """Its log."""
        self.log = await Log.open(self.settings, clock=self.clock, consumers=[Consumer("city")])
        try:
            yield self.log
        finally:
            self.told = None
            await self.log.close()

    @contextlib.asynccontextmanager
    async def forwarding(
        self,
        url: str,
        settings: ForwardSettings = FAST,
        *,
        mappings: Any = None,
        recipes: Recipes = lambda device: (),
        login: Login | None = None,
    ) -> AsyncIterator[BrokerHealth]:
        """A forwarder on the open log; a reload ends one and begins another."""
        assert self.log is not None
        health = BrokerHealth()
        broker = NgsiLdBroker(NgsiLdSettings(url=url), Way(timeout=SHORT, login=login))
        forwarder = Forwarder(
            "city",
            broker,
            mappings or tables(*DEVICES),
            log=self.log,
            health=health,
            clock=self.clock,
            settings=settings,
            recipes=recipes,
            before=self.told,
        )
        task = asyncio.create_task(forwarder.run())
        try:
            yield health
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.told = forwarder.told()

    async def killed(self, folder: Path) -> "Box":
        """The box as a kill at this moment leaves it: what is owed is on the card, what is settled from now on is not."""
        assert self.log is not None
        await self.log.commit()
        shutil.copytree(self.settings.path.parent, folder)
        left = Box(folder)
        left.expected = set(self.expected)
        return left

    async def put(self, device: str, at_s: float, **values: float) -> None:
        assert self.log is not None
        at = START + timedelta(seconds=at_s)
        await self.log.append(ReadingSet(device, tuple(Reading(p, v, at) for p, v in values.items())))
        self.expected |= {(entity_id(device), p, wire(at_s), v) for p, v in values.items()}

    @property
    def settled(self) -> bool:
        return self.log is not None and self.log.backlog("city")[0] == 0


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def assert_exact(strict: StrictBroker, box: Box) -> None:
    """The broker's history is exactly what was put: no point twice, none missing; state never went back."""
    found = Counter(measured_only(strict.temporal_history()))
    assert {point for point, n in found.items() if n > 1} == set()
    assert box.expected - found.keys() == set()
    assert found.keys() - box.expected == set()
    assert strict.backwards == []
    assert [told for told in strict.refusals if "at least one of type" not in told] == []  # by that Stellio is told


AT = pytest.mark.parametrize("product", ["plain", "stellio", "scorpio"])


def broker_like(product: str) -> StrictBroker:
    """The product, for which every context can be had."""
    strict = StrictBroker(profile=Scorpio(batch_s=None) if product == "scorpio" else product)
    strict.profile.contexts.serve(AIR)
    return strict


async def recorded(strict: StrictBroker, box: Box) -> None:
    """What was sent shows in the history, late at some."""
    await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(box.expected))


@AT
async def test_live_data_is_one_request_and_no_point_goes_twice(box: Box, product: str) -> None:
    strict = broker_like(product)
    async with strict.serve() as url, box.running(url) as health:
        for n in range(10):
            for device in DEVICES:
                await box.put(device, n, no2=n + 0.25, pm25=n)
            await strict.until(lambda: box.settled)
        assert health.history == "temporal"
        assert health.state == "ok"
    await recorded(strict, box)
    assert_exact(strict, box)
    assert not [path for _, method, path, _ in strict.requests if method == "POST" and "temporal" in path]


@AT
async def test_older_values_of_one_linger_go_to_the_history(box: Box, product: str) -> None:
    strict = broker_like(product)
    async with strict.serve() as url, box.running(url):
        for n in range(40):
            await box.put("air-0", n, no2=n)
        await strict.until(lambda: box.settled)
    await recorded(strict, box)
    assert_exact(strict, box)
    assert strict.current(entity_id("air-0"), "no2") == 39


async def live(box: Box, first: int, last: int, pause_s: float = 0.01) -> None:
    for n in range(first, last):
        for device in DEVICES:
            await box.put(device, n, no2=n, pm25=n + 0.5)
        await asyncio.sleep(pause_s)  # the sensors' own pace, not a wait for a condition


@pytest.mark.parametrize("records", [True, False])
async def test_an_outage_with_live_data_on_a_broker_that_records_by_itself_or_not(box: Box, records: bool) -> None:
    strict = StrictBroker()
    strict.behaviour.records, strict.behaviour.records_after_s = records, 0.15
    async with strict.serve() as url, box.running(url) as health:
        await live(box, 0, 20)
        await strict.until(lambda: box.settled)
        strict.behaviour.fault = "503"
        await live(box, 20, 60)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await live(box, 60, 100)
        await strict.until(lambda: box.settled)
        await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(box.expected))
        await strict.until(lambda: strict.current(entity_id("air-3"), "no2") == 99)
    assert_exact(strict, box)


@AT
async def test_after_an_outage_the_present_comes_before_the_past(box: Box, product: str) -> None:
    strict = broker_like(product)
    strict.behaviour.fault = "503"
    async with strict.serve() as url, box.running(url, replace(FAST, records=True)) as health:
        await live(box, 0, 50, pause_s=0)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await strict.until(lambda: box.settled)
    first = next(value for value in strict.stored if value.attribute == "no2")
    assert (first.via, first.observed_at) == ("state", wire(49))
    await recorded(strict, box)
    assert_exact(strict, box)


@AT
async def test_a_restart_in_a_backlog_repeats_nothing(box: Box, product: str) -> None:
    strict = broker_like(product)
    strict.behaviour.records_after_s = 0.15
    async with strict.serve() as url:
        for n in range(4):
            async with box.running(url) as health:
                strict.behaviour.fault = "503" if n == 0 else ""
                await live(box, 30 * n, 30 * n + 30, pause_s=0.005)
                if n == 0:
                    await strict.until(lambda: health.state == "down")
        async with box.running(url) as health:
            await strict.until(lambda: health.history == "temporal" and box.settled and health.backlog == 0)
    await recorded(strict, box)
    assert_exact(strict, box)


async def shown_by_nobody(box: Box, strict: StrictBroker, url: str, left: Path) -> Box:
    """Live data to a broker whose history shows none of it, for others write all the time; what a kill at the end leaves."""
    async with box.running(url, PATIENT):
        for n in range(3):
            await live(box, n, n + 1)
            await strict.until(lambda: box.settled)  # so each was current
        return await box.killed(left)


async def test_what_an_earlier_run_may_have_sent_is_shown_as_backlog_until_that_is_known(tmp_path: Path) -> None:
    strict = broker_like("scorpio")
    async with strict.serve() as url:
        async with strict.neighbour(every_s=0.01):
            box = await shown_by_nobody(Box(tmp_path / "box"), strict, url, tmp_path / "left")
            sent = len(strict.history())
            async with box.running(url, PATIENT) as health:
                await strict.until(lambda: box.settled and health.oldest_unsent_at == START)
                assert 0 < health.backlog <= len(box.expected)
                assert len(strict.history()) == sent
        async with box.running(url, PATIENT) as health:
            await live(box, 3, 4)
            await strict.until(lambda: health.history == "temporal" and box.settled and health.backlog == 0)
        await recorded(strict, box)
    assert_exact(strict, box)


async def test_after_a_clean_stop_what_was_sent_is_known_and_what_nobody_knew_stays_so(tmp_path: Path) -> None:
    strict = broker_like("scorpio")
    box = Box(tmp_path / "box")
    async with strict.serve() as url:
        async with strict.neighbour(every_s=0.01):
            left = await shown_by_nobody(box, strict, url, tmp_path / "left")
            sent = len(measured_only(strict.history()))
            async with box.running(url, PATIENT) as health:
                await strict.until(lambda: health.history == "temporal" and box.settled)
                await live(box, 3, 4)
                await strict.until(lambda: strict.current(entity_id("air-5"), "no2") == 3 and box.settled)
                assert (health.backlog, len(measured_only(strict.history()))) == (0, sent + 2 * len(DEVICES))
            owed = []
            for _ in range(2):  # a clean stop does not make known what a kill left unknown
                async with left.running(url, PATIENT) as health:
                    await strict.until(lambda: left.settled and health.oldest_unsent_at == START)
                    owed.append(health.backlog)
            assert owed[0] == owed[1] > 0
        async with box.running(url, PATIENT) as health:
            await live(box, 4, 5)
            await strict.until(lambda: box.settled)
        await recorded(strict, box)
    assert_exact(strict, box)


async def test_what_one_clean_stop_noted_as_sent_the_next_does_not_take_back(tmp_path: Path) -> None:
    """The broker was away all the time between them: nothing was read of what the first had sent."""
    strict = broker_like("scorpio")
    box = Box(tmp_path / "box")
    async with strict.serve() as url:
        async with box.running(url, PATIENT):
            await live(box, 0, 1)
            await strict.until(lambda: box.settled)
        await recorded(strict, box)
        async with strict.neighbour(every_s=0.01):
            async with box.running(url, PATIENT):  # the cursor stands on what was seen by now
                await live(box, 1, 2)
                await strict.until(lambda: strict.current(entity_id("air-5"), "no2") == 1 and box.settled)
            strict.behaviour.fault = "503"
            async with box.running(url, PATIENT) as health:
                await strict.until(lambda: health.state == "down")
            strict.behaviour.fault = ""
            async with box.running(url, PATIENT) as health:
                await strict.until(lambda: health.history == "temporal" and box.settled)
                assert health.backlog == 0
        async with box.running(url, PATIENT):
            await live(box, 2, 3)
            await recorded(strict, box)
    assert_exact(strict, box)


async def test_a_note_of_numbers_that_this_log_never_gave_is_not_believed(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.temporal = False
    async with strict.serve() as url, box.open() as log:
        await log.append(ReadingSet("broker city", (), {"sent": b"99999999999999"}))
        await box.put("air-0", 0, no2=1.0)
        async with box.forwarding(url, replace(FAST, history="in-order")):
            await strict.until(lambda: box.settled)
    assert strict.current(entity_id("air-0"), "no2") == 1.0


@AT
async def test_state_is_not_overwritten_by_an_earlier_run(box: Box, product: str) -> None:
    """The broker got newer values meanwhile (another way of the same box); what is older goes to the history alone."""
    strict = broker_like(product)
    async with strict.serve() as url:
        async with box.running(url):
            await box.put("air-0", 100, no2=1.0)
            await strict.until(lambda: box.settled)
        async with box.running(url):
            await box.put("air-0", 50, no2=0.5)
            await strict.until(lambda: box.settled)
    assert strict.current(entity_id("air-0"), "no2") == 1.0
    await recorded(strict, box)
    assert_exact(strict, box)


async def test_without_leave_to_read_an_earlier_run_goes_to_the_history_only(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.fault = "503"
    async with strict.serve() as url:
        async with box.running(url, replace(FAST, history="temporal")):
            await box.put("air-0", 1, no2=1.0)
        strict.behaviour.fault = ""
        async with box.running(url, replace(FAST, records=True)):
            await strict.until(lambda: box.settled)
            strict.behaviour.readable = False
    assert [value.via for value in strict.stored if value.attribute == "no2"] == [
        "state"
    ]  # it may be read: it is current

    strict.behaviour.fault = "503"
    async with strict.serve() as url:
        async with box.running(url):
            await box.put("air-1", 2, no2=2.0)
        strict.behaviour.fault = ""
        refusing = replace(FAST, records=True)
        strict.behaviour.readable = False
        async with box.running(url, replace(refusing, history="in-order")):
            await strict.until(lambda: box.settled)
    assert strict.backwards == []


async def test_latest_only_is_opt_in_and_counts_what_it_skips(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.fault = "503"
    async with strict.serve() as url, box.running(url, replace(FAST, history="latest-only")) as health:
        await live(box, 0, 10, pause_s=0)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await strict.until(lambda: box.settled)
        assert health.history == "latest-only"
        await strict.until(lambda: health.skipped == 9 * len(DEVICES))
    assert strict.current(entity_id("air-1"), "pm25") == 9.5
    assert {point[2] for point in measured_only(strict.history())} == {wire(9)}


async def test_without_a_temporal_api_the_backlog_goes_in_order(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.temporal = False
    strict.behaviour.fault = "503"
    async with strict.serve() as url, box.running(url) as health:
        await live(box, 0, 20, pause_s=0)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await live(box, 20, 40)
        await strict.until(lambda: box.settled)
        assert health.history == "in-order"
    assert_exact(strict, box)


async def test_a_tenant_that_its_first_write_makes(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        box_log = await Log.open(box.settings, clock=RealClock(), consumers=[Consumer("city")])
        box.log = box_log
        broker = NgsiLdBroker(NgsiLdSettings(url=url, tenant="milano"), Way(timeout=SHORT))
        health = BrokerHealth()
        forwarder = Forwarder(
            "city", broker, tables(*DEVICES), log=box_log, health=health, clock=RealClock(), settings=FAST
        )
        task = asyncio.create_task(forwarder.run())
        await live(box, 0, 20)
        await strict.until(lambda: box.settled)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await box_log.close()
    found = Counter(measured_only(strict.temporal_history("milano")))
    assert found == Counter(box.expected)
    assert health.history == "temporal"
    assert strict.backwards == []


async def test_a_broker_that_does_not_record_by_itself_is_found_out_while_live_data_goes_on(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.records = False
    async with strict.serve() as url, box.running(url):
        n = 0
        while not any(value.via == "temporal" for value in strict.stored):
            await live(box, n, n + 1, pause_s=0.03)
            n += 1
            assert n < 200
        await strict.until(lambda: box.settled and strict.current(entity_id("air-0"), "no2") == n - 1)
        await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(box.expected))
    assert_exact(strict, box)


async def test_a_history_that_refuses_does_not_delay_the_present(box: Box) -> None:
    strict = StrictBroker()
    slow = replace(FAST, records=True, retry_first_s=60.0, retry_quick_s=60.0, retry_cap_s=60.0)
    async with strict.serve() as url, box.running(url, slow) as health:
        await strict.until(lambda: health.history == "temporal")
        strict.behaviour.fault, strict.behaviour.path = "403", "temporal/entities"
        for n in range(1, 6):
            await box.put("air-0", n - 0.5, no2=n - 0.5)
            await box.put("air-0", n, no2=float(n))
            await strict.until(lambda: strict.current(entity_id("air-0"), "no2") == n)  # noqa: B023 - awaited in the turn
        await strict.until(lambda: health.state == "login" and health.reason.startswith("history: 403"))
        assert health.backlog > 0


async def test_a_config_fault_with_one_bad_entity_ends_when_another_is_accepted(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.refuse = "."
    async with strict.serve() as url, box.running(url, replace(FAST, records=True)) as health:
        await live(box, 0, 3)
        await strict.until(lambda: health.state == "config_fault")
        assert health.dead == 0
        strict.behaviour.refuse = "air-0$"
        await strict.until(lambda: health.state == "ok" and box.settled)
        assert health.dead > 0
    box.expected = {point for point in box.expected if point[0] != entity_id("air-0")}
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_devices_that_are_all_silent_leave_no_backlog(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url):
        assert box.log is not None
        for at_s in range(3):
            at = START + timedelta(seconds=at_s)
            await box.log.append(no_values(DEVICES[0], ("pm25",), Reason.TIMEOUT, observed_at=at))
            await strict.until(lambda: box.settled)

        await box.put(DEVICES[1], 5, pm25=4.0)
        await strict.until(lambda: box.settled and bool(strict.history()))
    assert_exact(strict, box)
