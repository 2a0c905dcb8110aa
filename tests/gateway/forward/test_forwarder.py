"""One broker, served for ever: outage, resume, states that status shows."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from gateway.forward.aside import TRIES
from gateway.forward.auth import Way
from gateway.forward.broker import Outcome
from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.forward.state_lane import ENTITY_RETRY_S
from gateway.health import BrokerHealth
from gateway.log.last_values import LastValue
from gateway.sdk.driver import Clock
from gateway.sdk.reading import Quality, Reason, TimeSource
from tests.gateway.forward.scene import (
    START,
    MemoryLog,
    RealClock,
    entity_id,
    measured,
    measured_only,
    table,
    tables,
    wire,
)
from tests.support.strict_broker import StrictBroker

FAST = ForwardSettings(
    linger_s=0.02,
    gather_s=0.05,
    held_every_s=0.05,
    history="in-order",
    retry_first_s=0.05,
    retry_quick_s=0.1,
    retry_cap_s=0.1,
)
SHORT = aiohttp.ClientTimeout(total=2.0, sock_connect=0.5, sock_read=0.5)


@contextlib.asynccontextmanager
async def forwarding(
    url: str,
    log: MemoryLog,
    *devices: str,
    mappings: Any = None,
    settings: ForwardSettings = FAST,
    clock: Clock | None = None,
) -> AsyncIterator[BrokerHealth]:
    """A forwarder at work; yields what status shows of it."""
    health = BrokerHealth()
    broker = NgsiLdBroker(NgsiLdSettings(url=url), Way(timeout=SHORT))
    forwarder = Forwarder(
        "city",
        broker,
        mappings or tables(*devices),
        log=log,
        health=health,
        clock=clock or RealClock(),
        settings=settings,
    )
    task = asyncio.create_task(forwarder.run())
    try:
        yield health
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task  # raises what ended it: it never ends by itself


async def requeued(log: MemoryLog, done: Callable[[], bool]) -> None:
    """Try all that is held at once, again and again, until it is done: `buffer held requeue` in a loop."""
    async with asyncio.timeout(60):
        while not done():
            for number, (piece, columns) in log.held.table.items():
                if piece.next_try_at is not None:
                    log.held.table[number] = (replace(piece, next_try_at=START), columns)
            await asyncio.sleep(0.05)


async def test_live_readings_arrive_and_status_says_so() -> None:
    strict, log = StrictBroker(), MemoryLog()
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        expected = log.put("air-1", 0, no2=1.0)
        await strict.until(lambda: log.settled)
        expected |= log.put("air-1", 1, no2=2.0)
        await strict.until(lambda: log.settled)
        await strict.until(lambda: health.accepted == 2)
    assert set(measured_only(strict.history())) == expected
    assert (health.state, health.backlog, health.history) == ("ok", 0, "in-order")
    assert health.last_accepted_at is not None
    assert health.requests >= 2
    assert health.sent_bytes > 100


async def test_an_outage_loses_nothing_repeats_nothing_and_is_told() -> None:
    strict, log = StrictBroker(), MemoryLog()
    expected = set()
    async with strict.serve() as url, forwarding(url, log, "air-1", "air-2") as health:
        strict.behaviour.fault = "503"
        for n in range(20):
            expected |= log.put(f"air-{1 + n % 2}", n, no2=n)
        await strict.until(lambda: health.state == "down" and len(strict.requests) >= 3)
        assert "503" in health.reason
        assert health.next_try_at is not None
        assert health.backlog == 20
        strict.behaviour.fault = ""
        await strict.until(lambda: log.settled and health.state == "ok")
    assert sorted(measured_only(strict.history())) == sorted(expected)
    assert strict.backwards == []


async def test_a_broker_that_is_not_there_yet_is_waited_for() -> None:
    strict, log = StrictBroker(), MemoryLog()
    expected = log.put("air-1", 0, no2=1.0)
    async with strict.serve() as url:
        port = int(url.rsplit(":", 1)[1])
    async with forwarding(f"http://127.0.0.1:{port}", log, "air-1") as health:
        await strict.until(lambda: health.state == "down")
        async with strict.serve(port):
            await strict.until(lambda: log.settled)
    assert set(measured_only(strict.history())) == expected


async def test_a_page_of_a_captive_portal_is_no_success() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.put("air-1", 0, no2=1.0)
    strict.behaviour.fault = "html200"
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        await strict.until(lambda: health.state == "down" and len(strict.requests) >= 2)
        assert "captive portal" in health.reason
        assert not log.settled
        strict.behaviour.fault = ""
        await strict.until(lambda: log.settled)


async def test_one_refused_entity_does_not_hold_the_others() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse = "air-7$"
    devices = [f"air-{n}" for n in range(50)]
    expected = set()
    async with strict.serve() as url, forwarding(url, log, *devices) as health:
        for n in range(3):
            for device in devices:
                expected |= log.put(device, n, no2=n)
        await strict.until(lambda: log.settled)
        await strict.until(lambda: health.refused == 3)
    refused = {item for item in expected if item[0] == entity_id("air-7")}
    assert set(measured_only(strict.history())) == expected - refused


async def test_a_refused_login_is_not_an_entitys_fault() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.put("air-1", 0, no2=1.0)
    strict.behaviour.token = "Bearer right"
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        await strict.until(lambda: health.state == "login")
        assert not log.settled
        strict.behaviour.token = ""
        await strict.until(lambda: log.settled)
    assert health.refused == 0


async def test_a_refused_set_becomes_a_dead_letter_with_its_readings() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse = "air-2$"
    async with strict.serve() as url, forwarding(url, log, "air-1", "air-2") as health:
        for n in range(3):
            log.put("air-1", n, no2=n)
            log.put("air-2", n, no2=n + 0.5)
        await strict.until(lambda: log.settled)
        await strict.until(lambda: health.dead > 0)
    [(piece, columns)] = log.held.table.values()
    assert (piece.entity, piece.state, piece.device) == (entity_id("air-2"), "dead", "air-2")
    assert "refused by rule" in piece.reason
    assert columns.value == [0.5, 1.5, 2.5]


async def test_three_batches_refused_whole_stop_the_cursor_and_make_no_dead_letters() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse = "."
    devices = [f"air-{n}" for n in range(10)]
    expected = set()
    async with strict.serve() as url, forwarding(url, log, *devices) as health:
        for n in range(4):
            for device in devices:
                expected |= log.put(device, n, no2=n)
        await strict.until(lambda: health.state == "config_fault")
        assert "refused by rule" in health.reason
        probes = len(strict.bodies)
        await strict.until(lambda: len(strict.bodies) >= probes + 4)
        assert {len(json.loads(body)) for body in strict.bodies[probes:]} == {1}  # one entity probes
        assert not log.settled
        assert health.dead == 0
        strict.behaviour.refuse = ""
        await strict.until(lambda: log.settled and health.state == "ok")
    assert sorted(measured_only(strict.history())) == sorted(expected)
    assert strict.backwards == []


@pytest.mark.parametrize("history", ["in-order", "temporal"])
@pytest.mark.parametrize(
    "wrong", [{"max_bytes": 100}, {"refuse": ".", "refuse_status": 503}], ids=["413", "207 that puts all off"]
)
async def test_who_puts_every_entity_off_stops_the_cursor_and_is_told(wrong: dict[str, Any], history: str) -> None:
    strict, log = StrictBroker(), MemoryLog()
    devices = [f"air-{n}" for n in range(10)]
    expected = set()
    for name, value in wrong.items():
        setattr(strict.behaviour, name, value)
    settings = replace(FAST, history=history)
    async with strict.serve() as url, forwarding(url, log, *devices, settings=settings) as health:
        for n in range(6):
            for device in devices:
                expected |= log.put(device, n, no2=n)
        await strict.until(lambda: health.state == "down")
        assert "413" in health.reason or "refused by rule" in health.reason
        probes = len(strict.requests)
        await strict.until(lambda: len(strict.requests) >= probes + 8)
        assert health.dead == 0
        assert log.backlog("city")[0] > 0
        assert log.held.table == {}  # they stay in the log, which has room for them
        strict.behaviour.max_bytes, strict.behaviour.refuse = 10 * 2**20, ""
        await strict.until(lambda: log.settled and health.state == "ok")
    assert set(measured_only(strict.history())) == expected
    assert strict.backwards == []


async def test_an_entity_that_is_put_off_keeps_the_order_of_its_sets() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse, strict.behaviour.refuse_status = "air-2$", 503
    expected = set()
    async with strict.serve() as url, forwarding(url, log, "air-1", "air-2") as health:
        for n in range(3):
            expected |= log.put("air-1", n, no2=n) | log.put("air-2", n, no2=n)
        await strict.until(lambda: log.settled and health.later > 0)
        assert strict.current(entity_id("air-1"), "no2") == 2  # the neighbour did not wait
        strict.behaviour.refuse = ""
        expected |= log.put("air-2", 3, no2=3)
        await requeued(log, lambda: health.later == 0 and log.settled)
    assert sorted(measured_only(strict.history())) == sorted(expected)
    assert strict.backwards == []


async def test_an_entity_waits_for_its_mandatory_attributes_and_status_names_them() -> None:
    strict, log = StrictBroker(), MemoryLog()
    needs = {"air-1": (table("air-1", mandatory=frozenset({"no2"})),)}
    async with strict.serve() as url, forwarding(url, log, mappings=needs) as health:
        first = log.put("air-1", 0, pm25=1.0)
        await strict.until(lambda: health.waiting == {entity_id("air-1"): ["no2"]})
        await strict.until(lambda: log.settled)
        assert strict.history() == []
        second = log.put("air-1", 1, no2=2.0, pm25=3.0)
        await requeued(log, lambda: health.later == 0 and log.settled)
    assert set(measured_only(strict.history())) == first | second
    assert health.waiting == {}


async def test_a_reading_from_the_future_is_held_until_its_time() -> None:
    strict, log = StrictBroker(), MemoryLog()
    ahead_s = (datetime.now(UTC) - START).total_seconds() + 3600.0
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        now = log.put("air-1", 0, no2=1.0)
        log.put("air-1", ahead_s, no2=2.0)
        await strict.until(lambda: log.settled and health.later == 1)
    assert set(measured_only(strict.history())) == now


@pytest.mark.parametrize("temporal", [True, False])
async def test_nothing_waits_behind_a_reading_from_the_future(temporal: bool) -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.temporal = temporal
    ahead_s = (datetime.now(UTC) - START).total_seconds() + 3600.0
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        expected = log.put("air-1", 0, no2=1.0)
        log.put("air-1", ahead_s, no2=2.0)
        await strict.until(lambda: log.settled and health.later == 1)
        for n in range(3, 6):
            expected |= log.put("air-1", n, no2=float(n))
        await strict.until(lambda: log.settled and set(measured_only(strict.history())) == expected)
        assert health.later == 1


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("ahead_s", [1800.0, 20 * 365 * 86400.0])
@pytest.mark.parametrize("reason", ["its time lies in the future", "the broker was busy"])
async def test_a_held_piece_passes_the_gate_again(temporal: bool, ahead_s: float, reason: str) -> None:
    """An earlier citygate held it under a time that somebody claimed: it is sent under that of its reception."""
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.temporal = temporal
    held_at = START + timedelta(seconds=60)
    log.put("air-1", (datetime.now(UTC) - START).total_seconds() + ahead_s, no2=2.0)
    columns = await log.read("city")
    assert columns is not None
    log.rows.clear()
    day = timedelta(days=1) if reason.startswith("its") else timedelta(0)
    await log.held.hold(
        "city", entity_id("air-1"), "air-1", columns, reason=reason, at=held_at, next_try_at=datetime.now(UTC) + day
    )
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        log.put("air-1", 0, no2=1.0)
        await strict.until(lambda: log.settled and not health.later)
    times = {at for _, _, at, _ in measured_only(strict.history()) if at}
    assert wire(60) in times
    assert max(times) < f"{datetime.now(UTC):%Y-%m-%dT%H:%M}"


async def test_two_devices_feed_one_entity() -> None:
    strict, log = StrictBroker(), MemoryLog()
    one = entity_id("both")
    shared = {"a": (table("a", "no2", entity=one),), "b": (table("b", "o3", entity=one),)}
    async with strict.serve() as url, forwarding(url, log, mappings=shared):
        for n in range(5):
            log.put("a", n, no2=n)
            log.put("b", n, o3=n + 0.5)
        await strict.until(lambda: log.settled)
    assert len(measured_only(strict.history())) == 10
    assert (strict.current(one, "no2"), strict.current(one, "o3")) == (4, 4.5)
    assert strict.backwards == []


async def test_the_rate_is_kept() -> None:
    strict, log = StrictBroker(), MemoryLog()
    slow = replace(FAST, rate_per_s=100.0, max_readings=10)
    async with strict.serve() as url, forwarding(url, log, "air-1", settings=slow):
        started_s = time.monotonic()
        for n in range(100):
            log.put("air-1", n, no2=n)
        await strict.until(lambda: log.settled)
    assert time.monotonic() - started_s > 0.45  # a hundred readings, of which what was saved up goes at once


async def test_waiting_for_a_value_or_its_time_is_no_try_and_the_first_failure_no_dead_letter() -> None:
    strict, log = StrictBroker(), MemoryLog()
    needs = {"air-1": (table("air-1", mandatory=frozenset({"no2"})),), "air-2": (table("air-2"),)}
    async with strict.serve() as url, forwarding(url, log, mappings=needs) as health:
        log.put("air-1", 0, pm25=1.0)
        log.put("air-2", 0, no2=1.0)
        looks = 0

        def looked() -> bool:
            nonlocal looks
            looks += bool(log.held.table) and all(p.last_at > START for p, _ in log.held.table.values())
            return looks > 2 * TRIES

        await strict.until(lambda: health.later == 1)
        await requeued(log, looked)
        assert [piece.tries for piece, _ in log.held.table.values()] == [0]
        strict.behaviour.refuse, strict.behaviour.refuse_status = "air-1$", 503
        log.put("air-1", 1, no2=2.0)  # now it is complete, and put off by the broker
        await requeued(log, lambda: any(piece.tries for piece, _ in log.held.table.values()))
        assert health.dead == 0
        strict.behaviour.refuse = ""
        await requeued(log, lambda: not log.held.table and log.settled)
    assert strict.current(entity_id("air-1"), "pm25") == 1.0


async def test_a_broker_that_puts_off_for_a_day_makes_a_dead_letter_in_the_end() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse, strict.behaviour.refuse_status = "air-2$", 503
    async with strict.serve() as url, forwarding(url, log, "air-1", "air-2") as health:
        log.put("air-2", 0, no2=1.0)
        await strict.until(lambda: health.later == 1)
        [(number, (piece, columns))] = log.held.table.items()
        log.held.table[number] = (replace(piece, tries=TRIES - 2), columns)
        await requeued(log, lambda: health.dead == 1)
    [(piece, _)] = log.held.table.values()
    assert piece.tries == TRIES + 1


@pytest.mark.parametrize("history", ["in-order", "temporal"])
async def test_a_refusal_is_told_once_and_asked_again_seldom(history: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused here, by the official schema, or there, by the broker; other entities are accepted all the time."""
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse = "air-2$"
    settings = replace(FAST, history=history, records=True, linger_s=0.0)
    async with strict.serve() as url, forwarding(url, log, "air-1", "air-2", settings=settings) as health:
        for n in range(6):
            log.put("air-1", n, no2=n)
            log.put("air-2", n, no2=n)
            await strict.until(lambda: log.settled)
        await strict.until(lambda: bool(health.refusing))
        asked = len(strict.requests)
        await asyncio.sleep(0.5)  # nothing is to be done: whoever asks now spins
        assert len(strict.requests) - asked < 5
        assert [row["device"] for row in health.refusing] == ["air-2"]
        assert "refused by rule" in health.refusing[0]["reason"]
        strict.behaviour.refuse = ""
        for n in range(6, 9):
            log.put("air-2", n, no2=n)
        await strict.until(lambda: log.settled)
        if history == "in-order":
            await strict.until(lambda: health.refusing == [])
    said = capsys.readouterr().out
    assert said.count("entity_refused") <= 2  # of the state, of the past
    assert health.dead > 0 or health.refused > 0


async def test_many_entities_that_the_schema_refuses_do_not_make_it_spin(capsys: pytest.CaptureFixture[str]) -> None:
    """Refused here, before a request: nothing of the network paces it."""
    strict, log = StrictBroker(), MemoryLog()
    devices = [f"air-{n}" for n in range(40)]
    count = 0

    class Refusing:
        """A check that refuses all but one."""

        def __init__(self, broker: NgsiLdBroker) -> None:
            self._broker = broker

        def __getattr__(self, name: str) -> Any:
            return getattr(self._broker, name)

        async def state(self, entities: Any) -> Outcome:
            nonlocal count
            bad = {entity.id: "not valid" for entity in entities if not entity.id.endswith("air-0")}
            count += len(bad)
            good = [entity for entity in entities if entity.id not in bad]
            return (await self._broker.state(good) if good else Outcome()) + Outcome(refused=bad)

    async with strict.serve() as url:
        health, clock = BrokerHealth(), LaterClock()
        broker = Refusing(NgsiLdBroker(NgsiLdSettings(url=url), Way(timeout=SHORT)))
        settings = replace(FAST, history="temporal", records=True, linger_s=0.05)
        forwarder = Forwarder("city", broker, tables(*devices), log=log, health=health, clock=clock, settings=settings)
        task = asyncio.create_task(forwarder.run())
        for n in range(3):
            for device in devices if n == 0 else devices[1:]:
                log.put(device, n, no2=n)
            await strict.until(lambda: log.settled)
        clock.later_s = ENTITY_RETRY_S  # half a minute later
        await asyncio.sleep(1.0)
        assert count <= 4 * len(devices)
        assert len(health.refusing) == 39
        assert health.state == "ok"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert capsys.readouterr().out.count("entity_refused") <= 2 * 39


async def test_dead_letters_of_an_earlier_run_are_told_until_the_entity_is_accepted_or_they_are_purged() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse = "air-2$"
    async with strict.serve() as url:
        async with forwarding(url, log, "air-1", "air-2") as health:
            log.put("air-1", 0, no2=1)
            log.put("air-2", 0, no2=1)
            await strict.until(lambda: health.dead == 1)
        async with forwarding(url, log, "air-1", "air-2") as health:
            await strict.until(lambda: [row["device"] for row in health.refusing] == ["air-2"])
            assert "requeue" in health.refusing[0]["remedy"]
            log.held.table.clear()  # purged
            await strict.until(lambda: health.refusing == [])


class LaterClock(RealClock):
    """The box's own time, after some more of it."""

    later_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.later_s


class SetClock(RealClock):
    """The box's own time, as somebody set it."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


class LatestLog(MemoryLog):
    """Its newest value is that of the last set: a real one takes what is of now before what lies in the future."""

    def good(self, series: int) -> LastValue | None:
        seq, _, time_us, value = [row for row in self.rows if row[1] == series][-1]
        return LastValue(time_us, value, Quality.GOOD, Reason.NONE, TimeSource.GATEWAY, seq)


@pytest.mark.parametrize("temporal", [True, False])
async def test_after_a_clock_that_ran_ahead_is_set_back_the_city_gets_what_is_of_now(temporal: bool) -> None:
    strict, log, clock = StrictBroker(), LatestLog(), SetClock()
    strict.behaviour.temporal = temporal
    async with strict.serve() as url, forwarding(url, log, "air-1", clock=clock) as health:
        for ahead, value in ((86400.0, 1), (0.0, 2), (0.0, 3)):
            clock.ahead = timedelta(seconds=ahead)
            log.put("air-1", (clock.now() - START).total_seconds(), no2=value)
            await strict.until(lambda value=value: strict.current(entity_id("air-1"), "no2") == value)
        await strict.until(lambda: log.settled)
        assert (health.dead, health.late) == (0, 0)


async def test_a_value_of_the_far_future_at_the_broker_does_not_keep_true_ones_out() -> None:
    strict, log = StrictBroker(), MemoryLog()
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        await broker.state([measured("air-1", 86400.0 * 365 * 20, no2=99)])
        await broker.close()
        expected = set()
        async with forwarding(url, log, "air-1") as health:
            for n in range(3):
                expected |= log.put("air-1", n, no2=n)
            await strict.until(lambda: log.settled)
            assert health.dead == 0
    assert strict.current(entity_id("air-1"), "no2") == 2
    assert expected <= set(strict.history())


class Ending(MemoryLog):
    """A log whose reader is asked to stop in the very moment that he gives up waiting for it."""

    reader: asyncio.Task[None] | None = None

    async def wait(self, consumer: str, after: int | None = None) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if self.reader is not None:
                self.reader.cancel()


@pytest.mark.parametrize("history", ["in-order", "temporal"])
async def test_who_is_stopped_while_a_wait_for_the_log_ends_stops(history: str) -> None:
    strict, log, health = StrictBroker(), Ending(), BrokerHealth()
    async with strict.serve() as url:
        forwarder = Forwarder(
            "city",
            NgsiLdBroker(NgsiLdSettings(url=url), Way(timeout=SHORT)),
            tables("air-1"),
            log=log,
            health=health,
            clock=RealClock(),
            settings=replace(FAST, history=history, records=True),
        )
        log.reader = task = asyncio.create_task(forwarder.run())
        stopped, _ = await asyncio.wait({task}, timeout=3.0)
        log.reader = None
        task.cancel()
        assert stopped
        assert task.cancelled()
