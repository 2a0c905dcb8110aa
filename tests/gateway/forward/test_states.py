"""What status says of a broker goes from state to state: reason, remedy, since and next try are those of the present one. And what
a forwarder learned and counted outlives a restart: batch size, bytes of the month, that the state went ahead of the history."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.forward.broker import Traffic
from gateway.forward.history_lane import LATE
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.standing import REMEDIES
from gateway.forward.transport import URL_REMEDY
from gateway.forward.updates import Sent
from gateway.forward.usage import Usage
from gateway.health import BrokerState
from gateway.sdk.errors import LogError
from gateway.sdk.reading import ReadingSet
from gateway.sdk.testing import ManualClock
from tests.gateway.forward.scene import LeapClock, MemoryLog, entity_id, measured, measured_only, table, tables, wire
from tests.gateway.forward.test_forwarder import FAST as FAST_IN_ORDER
from tests.gateway.forward.test_forwarder import forwarding
from tests.gateway.forward.test_two_lanes import DEVICES, FAST, Box, assert_exact
from tests.support.strict_broker import StrictBroker

TEMPORAL = replace(FAST, history="temporal", records=True)
IN_ORDER = replace(FAST, history="in-order")
BOTH = pytest.mark.parametrize("settings", [TEMPORAL, IN_ORDER], ids=["temporal", "in-order"])
HOUR: dict[str, Any] = {"retry_first_s": 3600.0, "retry_quick_s": 3600.0, "retry_cap_s": 3600.0}
AIR = entity_id("air-0")
WRONG: dict[str, dict[str, Any]] = {
    "ok": {},
    "login": {"token": "Bearer other"},
    "down": {"fault": "503"},
    "config_fault": {"refuse": "."},
}
SAYS = {"ok": "", "login": "no valid token", "down": "told to fail", "config_fault": "refused by rule"}
# every state after every other
PATH = [
    "ok",
    "login",
    "down",
    "config_fault",
    "login",
    "ok",
    "down",
    "ok",
    "config_fault",
    "down",
    "login",
    "config_fault",
    "ok",
]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


def behave(strict: StrictBroker, state: str) -> None:
    for name, value in {"token": "", "fault": "", "refuse": "", **WRONG[state]}.items():
        setattr(strict.behaviour, name, value)


@BOTH
async def test_each_state_after_each_other_is_shown_as_itself(box: Box, settings: Any) -> None:
    assert len(set(pairwise(PATH))) == 12
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, settings) as health:
        await box.put("air-0", 0, no2=0)
        await strict.until(lambda: box.settled and health.state == "ok")
        for n, (before, state) in enumerate(pairwise(PATH), 1):
            entered = box.clock.now()
            behave(strict, state)
            for part in range(4):  # refused whole three times, it is the config
                for device in ("air-0", "air-1"):
                    await box.put(device, n + part / 10, no2=n + part)
            await strict.until(lambda state=state: health.state == state and SAYS[state] in health.reason)
            assert health.since is not None
            assert health.since >= entered, (before, state)
            since = health.since
            if state == "ok":
                assert (health.reason, health.remedy, health.next_try_at) == ("", "", None)
                await strict.until(lambda: box.settled)
            else:
                assert health.remedy == REMEDIES[BrokerState(state)]
                asked = len(strict.requests)
                await strict.until(lambda asked=asked: len(strict.requests) > asked + 2)
                assert health.next_try_at is not None
                assert abs(health.next_try_at - box.clock.now()) < timedelta(seconds=5)
            assert (health.state, health.since) == (state, since)  # tried again and again, but since then
        assert health.dead == 0
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_another_reason_within_a_state_is_told_and_since_stays(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, IN_ORDER) as health:
        strict.behaviour.fault = "503"
        await box.put("air-0", 0, no2=0)
        await strict.until(lambda: health.state == "down" and "503" in health.reason)
        since = health.since
        for fault, says in (("html200", "captive portal"), ("502", "502"), ("redirect", "redirect")):
            strict.behaviour.fault = fault
            await strict.until(lambda says=says: says in health.reason)
            assert (health.state, health.since) == ("down", since)


async def test_a_fault_of_the_history_alone_is_shown_again_after_one_of_the_whole_broker(box: Box) -> None:
    """Also when the next try of the history is: that of the broker is over."""
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, replace(TEMPORAL, **HOUR)) as health:
        await box.put("air-0", 10, no2=10)
        await strict.until(lambda: box.settled)
        strict.behaviour.fault, strict.behaviour.path = "403", "temporal/entities"
        await box.put("air-0", 5, no2=5)
        await strict.until(lambda: health.state == "login" and health.reason.startswith("history: 403"))
        history_at = health.next_try_at
        assert history_at is not None
        assert health.remedy == REMEDIES[BrokerState.LOGIN]
        await box.put("air-0", 11, no2=11)
        await strict.until(lambda: strict.current(AIR, "no2") == 11)
        assert health.reason.startswith("history: 403")
        assert health.next_try_at is not None
        assert abs(health.next_try_at - history_at) < timedelta(seconds=1)


async def test_the_next_try_that_is_shown_is_that_of_the_lane_whose_fault_is_shown(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        await box.put("air-0", 10, no2=10)
        await strict.until(lambda: box.settled)
        strict.behaviour.fault, strict.behaviour.path, strict.behaviour.retry_after = "503", "temporal", "1800"
        await box.put("air-0", 5, no2=5)
        await strict.until(lambda: health.reason.startswith("history: 503"))
        strict.behaviour.path, strict.behaviour.retry_after = "upsert", ""
        await box.put("air-0", 11, no2=11)
        await strict.until(lambda: health.state == "down" and health.reason.startswith("503"))
        assert health.next_try_at is not None
        assert health.next_try_at - box.clock.now() < timedelta(seconds=60)
        strict.behaviour.fault = ""
        await strict.until(lambda: strict.current(AIR, "no2") == 11)
        await strict.until(lambda: health.reason.startswith("history: 503"))
        assert health.next_try_at is not None
        assert health.next_try_at - box.clock.now() > timedelta(seconds=1700)
        box.clock.leap(1900)
        await strict.until(lambda: box.settled and health.state == "ok")
        assert (health.reason, health.remedy) == ("", "")
        assert health.next_try_at is None
    assert_exact(strict, box)


@pytest.mark.parametrize("path", ["upsert", "temporal"])
async def test_a_wait_that_was_asked_for_is_kept_and_the_next_one_is_short_again(box: Box, path: str) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        await box.put("air-0", 10, no2=10)
        await strict.until(lambda: box.settled)
        for n, (asked_s, low, high) in enumerate((("2", 2.0, 4.0), ("", 0.0, 1.0))):
            strict.behaviour.fault, strict.behaviour.path, strict.behaviour.retry_after = "429", path, asked_s
            await box.put("air-0", 5 + n if path == "temporal" else 11 + n, no2=n)
            await strict.until(lambda: "429" in health.reason)
            assert health.next_try_at is not None
            wait_s = (health.next_try_at - box.clock.now()).total_seconds()
            assert low - 1.0 < wait_s < high
            strict.behaviour.fault = ""
            await strict.until(lambda: box.settled and health.state == "ok")


@pytest.mark.parametrize("path", ["upsert", "temporal"])
async def test_each_outage_begins_with_short_waits(box: Box, path: str) -> None:
    """However long the one before was."""
    strict = StrictBroker()
    growing = replace(TEMPORAL, retry_first_s=0.05, retry_quick_s=30.0, retry_cap_s=30.0)
    async with strict.serve() as url, box.running(url, growing) as health:
        await box.put("air-0", 100, no2=100)
        await strict.until(lambda: box.settled)
        for outage in range(3):
            strict.behaviour.fault, strict.behaviour.path = "503", path
            asked = len(strict.requests)
            begun = box.clock.now()
            await box.put("air-0", outage if path == "temporal" else 101 + outage, no2=outage)
            await strict.until(lambda: health.state == "down" and health.next_try_at is not None)
            assert health.next_try_at is not None
            if outage:
                assert health.next_try_at - box.clock.now() < timedelta(seconds=0.2)
            wanted = 6 if outage == 0 else 1
            await strict.until(lambda asked=asked, wanted=wanted: len(strict.requests) >= asked + wanted)
            strict.behaviour.fault = ""
            await strict.until(lambda: box.settled and health.state == "ok")
            assert health.since is not None
            assert health.since > begun


async def test_what_was_learned_of_the_batch_size_holds_over_a_restart(box: Box) -> None:
    strict = StrictBroker()
    many = tables(*(f"air-{n}" for n in range(60)))
    async with strict.serve() as url:
        learned = 0
        for run in range(2):
            strict.behaviour.max_bytes = 4500 if run == 0 else 10**6
            async with box.running(url, IN_ORDER, mappings=many) as health:
                first = len(strict.bodies)
                for n in range(2):
                    for device in many:
                        await box.put(device, 10 * run + n, no2=n)
                    await strict.until(lambda: box.settled)
                await strict.until(lambda learned=learned: 1 < health.batch < 25)
                sizes = [len(json.loads(body)) for body in strict.bodies[first:]]
            if run:
                assert max(sizes[:3]) <= learned
            learned = health.batch
    assert any("Payload Too Large" in refusal for refusal in strict.refusals)


def next_month(now: datetime) -> float:
    """Seconds until a day into it."""
    first = (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=2)
    return (first - now).total_seconds()


async def test_the_bytes_of_a_month_go_on_over_a_restart_and_end_with_the_month(box: Box) -> None:
    strict = StrictBroker()

    def of_run(health: Any) -> int:
        return int(health.sent_bytes + health.received_bytes)

    async def sends(health: Any, n: int) -> int:
        await box.put("air-0", n, no2=n)
        await strict.until(lambda: box.settled and strict.current(AIR, "no2") == n)
        shown = -1
        while shown != health.month_bytes:  # the record follows within a moment
            shown = health.month_bytes
            await asyncio.sleep(0.3)
        return of_run(health)

    async with strict.serve() as url:
        month = 0
        for run in range(3):
            async with box.running(url, IN_ORDER) as health:
                sent = await sends(health, run)
                assert health.month_bytes == month + sent
            month += sent
        async with box.running(url, IN_ORDER) as health:
            sent = await sends(health, 10)
            box.clock.leap(next_month(box.clock.now()))
            after = await sends(health, 11)
            assert health.month_bytes == after - sent > 0
            month = health.month_bytes
        async with box.running(url, IN_ORDER) as health:
            assert await sends(health, 12) + month == health.month_bytes
        box.clock.leap(next_month(box.clock.now()))
        async with box.running(url, IN_ORDER) as health:
            assert await sends(health, 13) == health.month_bytes


@pytest.mark.parametrize("first", ["temporal", "latest-only"])
async def test_that_the_state_went_ahead_is_known_until_the_tail_is_reached_over_any_number_of_runs(
    box: Box, tmp_path: Path, first: str
) -> None:
    """Older than the broker's value is not the same as known to it: it is told, not passed over."""
    strict = StrictBroker()
    async with strict.serve() as url:
        async with box.running(url, replace(TEMPORAL, history=first)) as health:
            await strict.until(lambda: bool(health.history))
            strict.behaviour.fault, strict.behaviour.path = "503", "temporal"
            if first == "latest-only":  # no history lane waits for the broker: the card was not asked yet
                strict.behaviour.path = "upsert"
            for n in range(5):
                await box.put("air-0", n, no2=n)
            if first == "temporal":
                await strict.until(lambda: strict.current(AIR, "no2") == 4 and not box.settled)
            await strict.until(lambda: health.state == "down")
            if first == "latest-only":
                await put_by_another_way(url, strict, 4)
        strict.behaviour.fault, strict.behaviour.path = "503", "v1/entities"
        for _ in range(2):  # it begins in order, and gets nowhere
            async with box.running(url, IN_ORDER) as health:
                strict.behaviour.fault = ""
                await strict.until(lambda: health.history == "in-order")
                strict.behaviour.fault = "503"
                await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        async with box.running(url, IN_ORDER) as health:
            await strict.until(lambda: box.settled)
            await strict.until(lambda: health.dead >= 1)
            assert box.log is not None
            assert {piece.reason for piece in box.log.held.pieces("city")} == {LATE}
            assert sum(piece.readings for piece in box.log.held.pieces("city")) == 4
            # from here on what is older than the broker's value was sent in order, also after a kill
            await strict.until(
                lambda: box.log is not None and box.log.driver_state("broker city")["mode"] == b"in-order"
            )
            strict.behaviour.fault, strict.behaviour.path = "503", "upsert"
            for n in (6, 7, 8):
                await box.put("air-0", n, no2=n)
            await strict.until(lambda: health.state == "down")
            dead = health.dead
            left = await box.killed(tmp_path / "left")
            strict.behaviour.fault = ""
            await strict.until(lambda: box.settled)
        async with left.running(url, IN_ORDER) as health:
            await left.put("air-0", 9, no2=9)
            await strict.until(lambda: left.settled and health.state == "ok")
            assert (health.late, health.dead) == (0, dead)
    assert strict.backwards == []


async def put_by_another_way(url: str, strict: StrictBroker, at_s: int) -> None:
    """What the state lane had sent when its answers were lost."""
    strict.behaviour.fault = ""
    broker = NgsiLdBroker(NgsiLdSettings(url))
    await broker.state([measured("air-0", at_s, no2=at_s)])
    await broker.close()
    strict.behaviour.fault = "503"


class SleepingClock(LeapClock):
    """Whoever sleeps lets the time pass in a leap."""

    async def sleep(self, seconds: float) -> None:
        self.leap(seconds)
        await asyncio.sleep(0)


async def test_the_rate_is_kept_over_many_requests_and_gives_no_credit_for_the_time_before() -> None:
    strict, log, clock = StrictBroker(), MemoryLog(), SleepingClock()
    slow = replace(FAST_IN_ORDER, rate_per_s=1.0, max_readings=10)
    async with strict.serve() as url, forwarding(url, log, "air-1", settings=slow, clock=clock):
        for turn in range(2):
            clock.leap(3600)
            begun_s = clock.monotonic_s()
            for n in range(50):
                log.put("air-1", 100 * turn + n, no2=n)
            await strict.until(lambda: log.settled)
            assert 48 < clock.monotonic_s() - begun_s < 60


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many points are remembered of what was sent ahead."""
    monkeypatch.setattr(Sent, "LIMIT", 20)
    return 20


async def test_the_state_lane_does_not_stop_after_what_it_may_remember(box: Box, few: int) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        for n in range(3 * few):
            for device in ("air-0", "air-1"):
                await box.put(device, n, no2=n, pm25=n)
            await strict.until(lambda n=n: strict.current(AIR, "pm25") == n)
        await strict.until(lambda: box.settled)
        assert health.state == "ok"
    assert_exact(strict, box)


async def test_a_history_that_stands_still_stops_the_state_at_the_bound_and_then_both_go_on(box: Box, few: int) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        await strict.until(lambda: health.history == "temporal")
        strict.behaviour.fault, strict.behaviour.path = "503", "temporal"
        for n in range(5):
            await box.put("air-0", n, no2=n)
        await strict.until(lambda: health.reason.startswith("history: 503"))
        for n in range(5, few):  # of the first ones at least one went as state
            await box.put("air-0", n, no2=n)
            await strict.until(lambda n=n: strict.current(AIR, "no2") == n)
        for n in range(few, 2 * few):
            await box.put("air-0", n, no2=n)
            await asyncio.sleep(0.06)  # longer than it lingers
        assert few - 1 <= strict.current(AIR, "no2") < 2 * few - 1  # it stopped before the newest
        n = 2 * few
        strict.behaviour.fault = ""
        await strict.until(lambda: box.settled and health.state == "ok")
        for later in range(n, n + few):
            await box.put("air-0", later, no2=later)
            await strict.until(lambda later=later: strict.current(AIR, "no2") == later)
        await strict.until(lambda: box.settled)
    assert_exact(strict, box)


async def test_what_the_log_dropped_before_the_history_passed_it_does_not_count_for_ever(few: int) -> None:
    """Else the present would wait behind the past after the next outage, and the next."""
    strict, log = StrictBroker(), MemoryLog()
    settings = replace(FAST_IN_ORDER, history="temporal", records=True, rate_per_s=1e6)
    async with strict.serve() as url, forwarding(url, log, "air-0", settings=settings) as health:
        await strict.until(lambda: health.history == "temporal")
        for turn in range(3):
            at_s = 1000.0 * (turn + 1)
            strict.behaviour.fault, strict.behaviour.path = "503", "temporal"
            log.put("air-0", at_s - 1.0 if turn else at_s, no2=-1)
            log.put("air-0", at_s - 500.0, no2=-2)  # late: the history stands still at this one
            await strict.until(lambda: health.reason.startswith("history: 503"))
            for n in range(12):
                log.put("air-0", at_s + n, no2=n)
                await strict.until(lambda at_s=at_s, n=n: wire(at_s + n) in str(strict.state(AIR).get("no2")))
            del log.rows[-12:-1]  # retention; the newest stays
            strict.behaviour.fault = ""
            await strict.until(lambda: log.settled and health.state == "ok")
    assert max(Counter(measured_only(strict.temporal_history())).values()) == 1


async def test_what_is_missing_is_told_while_it_is_missing_and_no_longer(box: Box) -> None:
    needs = {device: (table(device, mandatory=frozenset({"no2", "pm25"})),) for device in DEVICES[:2]}
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, TEMPORAL, mappings=needs) as health:
        await box.put("air-0", 0, no2=0)
        await strict.until(lambda: health.waiting == {AIR: ["pm25"]})
        await box.put("air-1", 0, pm25=0)
        await strict.until(lambda: health.waiting == {AIR: ["pm25"], entity_id("air-1"): ["no2"]})
        await box.put("air-0", 1, pm25=1)
        await strict.until(lambda: health.waiting == {entity_id("air-1"): ["no2"]})
        await strict.until(lambda: strict.current(AIR, "no2") == 0)


async def test_a_config_fault_that_the_history_meets_first_makes_no_dead_letters(box: Box) -> None:
    """The history goes entity by entity: several sets of one that are refused are not yet that one's fault."""
    strict = StrictBroker()
    slow = replace(TEMPORAL, linger_s=0.5)
    async with strict.serve() as url, box.running(url, slow) as health:
        for device in DEVICES[:3]:
            await box.put(device, 100, no2=100)
        await strict.until(lambda: box.settled and health.state == "ok")
        strict.behaviour.refuse = "."
        for device in DEVICES[:3]:
            for n in range(6):
                await box.put(device, n, no2=n)  # late: into the history alone
        await strict.until(lambda: health.state == "config_fault")
        asked = len(strict.requests)
        await strict.until(lambda: len(strict.requests) > asked + 6)
        assert (health.dead, health.state) == (0, "config_fault")
        strict.behaviour.refuse = ""
        await strict.until(lambda: box.settled and health.state == "ok")
        assert health.dead == 0
    for device in DEVICES[:3]:
        came = [v.value for v in strict.stored if (v.entity, v.attribute) == (entity_id(device), "no2")]
        assert came == [100, *range(6)]  # the oldest first, all the same
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_after_an_outage_an_entity_that_was_refused_does_not_wait_for_its_own_next_try(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.refuse = "air-1"
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        for device in ("air-0", "air-1"):
            await box.put(device, 0.0, no2=1.0)
        await strict.until(lambda: strict.current(AIR, "no2") == 1.0)
        await strict.until(lambda: [row["device"] for row in health.refusing] == ["air-1"])
        strict.behaviour.fault = "503"
        await box.put("air-0", 1.0, no2=2.0)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.refuse = strict.behaviour.fault = ""
        await strict.until(lambda: strict.current(entity_id("air-1"), "no2") == 1.0)


class Refusing(MemoryLog):
    """A log that refuses the state of a driver once, and keeps it else."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, bytes]] = []
        self.refuses = 1

    async def append(self, readings: ReadingSet) -> None:
        if self.refuses:
            self.refuses -= 1
            raise LogError("closed")
        self.kept.append(dict(readings.state or {}))


async def test_what_the_log_refused_to_keep_is_noted_the_next_time_though_nothing_changed() -> None:
    log = Refusing()
    usage = Usage("city", Traffic(batch=25), log, ManualClock())
    with pytest.raises(LogError):
        await usage.note("temporal")
    await usage.note("temporal")
    await usage.note("temporal")
    assert [(its["mode"], its["batch"]) for its in log.kept] == [(b"temporal", b"25")]


async def test_a_wrong_url_is_told_by_a_remedy_and_a_brokers_own_404_is_not(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        async with box.running(f"{url}/no/such/path") as health:
            await strict.until(lambda: health.state == "down")
            assert health.reason.startswith("404")
            assert health.remedy == URL_REMEDY
        async with box.running(url, TEMPORAL) as health:
            strict.behaviour.temporal = False
            await strict.until(lambda: health.state == "down")
            assert health.remedy == REMEDIES[BrokerState.DOWN]
