"""The history lane in order: against the strict broker over HTTP, with a log in memory."""

import json

import pytest

from gateway.forward.aside import Aside
from gateway.forward.broker import Accepted, Streak
from gateway.forward.feeds import Feeds
from gateway.forward.history_lane import InOrderLane
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.updates import Sent
from gateway.forward.verdicts import Shared
from tests.gateway.forward.scene import MemoryLog, RealClock, entity_id, measured_only, tables
from tests.support.strict_broker import StrictBroker


@pytest.fixture
def strict() -> StrictBroker:
    return StrictBroker()


class Lane:
    """A lane on a served broker."""

    def __init__(self, strict: StrictBroker, log: MemoryLog, *devices: str, batch: int = 25) -> None:
        self.strict, self.log, self.devices, self.batch = strict, log, devices, batch

    async def __aenter__(self) -> InOrderLane:
        self._serving = self.strict.serve()
        url = await self._serving.__aenter__()
        self._broker = NgsiLdBroker(NgsiLdSettings(url, batch_entities=self.batch))
        return InOrderLane(
            Shared(
                broker=self._broker,
                feeds=Feeds("city", self.log, tables(*self.devices)),
                aside=Aside("city", self.log.held, RealClock(), every_s=0.0),
                clock=RealClock(),
                accepted=Accepted(RealClock()),
                sent=Sent(),
                streak=Streak(len(self.devices)),
            )
        )

    async def __aexit__(self, *_: object) -> None:
        await self._broker.close()
        await self._serving.__aexit__(None, None, None)


async def drain(lane: InOrderLane) -> int:
    rounds = 0
    while await lane.fill():
        while not lane.idle:
            await lane.send()
            rounds += 1
    return rounds


async def test_each_reading_arrives_once_and_the_cursor_follows(strict: StrictBroker) -> None:
    log = MemoryLog()
    expected = set()
    for n in range(5):
        for device in ("air-1", "air-2"):
            expected |= log.put(device, n, no2=n + 0.5, pm25=n)
    async with Lane(strict, log, "air-1", "air-2") as lane:
        assert await drain(lane) == 5  # an entity stands once per request

    assert sorted(measured_only(strict.history())) == sorted(expected)
    assert strict.backwards == []
    assert strict.refusals == []
    assert log.settled


async def test_a_device_not_sent_here_is_settled_without_a_request(strict: StrictBroker) -> None:
    log = MemoryLog()
    log.put("other", 0, no2=1)
    async with Lane(strict, log, "air-1") as lane:
        await drain(lane)
    assert strict.requests == []
    assert log.settled


async def test_bad_readings_touch_no_attribute(strict: StrictBroker) -> None:
    log = MemoryLog()
    expected = log.put("air-1", 0, no2=None, pm25=4.0)
    log.put("air-1", 1, no2=None, pm25=None)
    async with Lane(strict, log, "air-1") as lane:
        await drain(lane)
    assert set(measured_only(strict.history())) == expected


async def test_values_go_in_time_order_even_if_logged_otherwise(strict: StrictBroker) -> None:
    log = MemoryLog()
    expected = set()
    for n in (3, 1, 2):
        expected |= log.put("air-1", n, no2=n)
    async with Lane(strict, log, "air-1") as lane:
        await drain(lane)
    assert set(measured_only(strict.history())) == expected
    assert strict.backwards == []
    assert strict.current(entity_id("air-1"), "no2") == 3


async def test_what_the_broker_already_holds_is_not_sent_again_after_a_restart(strict: StrictBroker) -> None:
    log = MemoryLog()
    expected = set()
    for n in range(4):
        expected |= log.put("air-1", n, no2=n)
    async with Lane(strict, log, "air-1") as lane:
        await drain(lane)
    log.cursor = log.sent_upto = 0  # kill -9: the cursor was not yet written
    expected |= log.put("air-1", 4, no2=4)
    async with Lane(strict, log, "air-1") as lane:
        await drain(lane)
        assert lane.counts.known == 4

    assert sorted(measured_only(strict.history())) == sorted(expected)
    assert strict.backwards == []


async def test_a_request_in_doubt_is_read_back_before_it_is_sent_again(strict: StrictBroker) -> None:
    log = MemoryLog()
    expected = log.put("air-1", 0, no2=1.5)
    strict.behaviour.fault, strict.behaviour.path, strict.behaviour.times = "reset_stored", "upsert", 1
    async with Lane(strict, log, "air-1") as lane:
        await lane.fill()
        outcome = await lane.send()
        assert outcome.fault is not None
        assert outcome.doubtful == {entity_id("air-1")}
        await lane.send()
    assert measured_only(strict.history()) == list(expected)
    assert log.settled


async def test_a_point_that_repeats_in_one_set_gives_an_update_each() -> None:
    log = MemoryLog()
    log.put("air-1", 0, no2=1)
    log.put("air-1", 60, no2=2)
    log.rows = [(log.rows[0][0], *row[1:]) for row in log.rows]  # one set of a data logger
    stretch = await Feeds("city", log, tables("air-1")).read()
    assert stretch is not None
    [(_, found)] = stretch.sets
    assert [update.entity.attributes["no2"].value for update in found] == [1, 2]


async def test_a_large_stretch_is_cut_into_requests_of_the_agreed_size(strict: StrictBroker) -> None:
    log = MemoryLog()
    devices = [f"air-{n}" for n in range(60)]
    for device in devices:
        log.put(device, 0, no2=1)
    async with Lane(strict, log, *devices, batch=25) as lane:
        await drain(lane)
    sizes = [len(json.loads(body)) for body in strict.bodies]
    assert sizes == [1, 25, 25, 9]  # the first write, which may make the tenant, goes alone
