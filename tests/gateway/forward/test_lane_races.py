"""What a lane decided before it asked somebody is asked again afterwards."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from gateway.forward.aside import Aside
from gateway.forward.broker import Accepted, Outcome, ReadRefused, Streak, Traffic
from gateway.forward.feeds import Feeds
from gateway.forward.history_lane import LATE, InOrderLane
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.state_lane import StateLane
from gateway.forward.updates import Sent
from gateway.forward.verdicts import Shared
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import LogError
from tests.gateway.forward.scene import START, MemoryHeld, MemoryLog, RealClock, tables
from tests.gateway.forward.test_forwarder import FAST, forwarding
from tests.support.strict_broker import StrictBroker


class Unreadable:
    """A broker that lets nobody read; while it says so a newer value arrives."""

    def __init__(self, log: MemoryLog, newer: dict[str, float]) -> None:
        self.log, self.newer = log, newer
        self.sent: list[float] = []
        self.traffic = Traffic()

    async def read_back(self, entities: Sequence[Entity]) -> dict[str, Any]:
        self.log.put("air-1", 100.0, **self.newer)
        raise ReadRefused("reading is not allowed")

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        self.sent += [entity.attributes["no2"].value for entity in entities if "no2" in entity.attributes]
        return Outcome(accepted=frozenset(entity.id for entity in entities))


async def test_a_value_of_an_earlier_run_does_not_become_current_because_a_newer_one_comes_meanwhile() -> None:
    log = MemoryLog()
    log.put("air-1", 0.0, no2=1.0, pm25=1.0)
    log.first_seq = log.rows[-1][0] + 1
    broker = Unreadable(log, {"no2": 2.0, "pm25": 2.0})
    lane = StateLane(
        broker,  # type: ignore[arg-type]
        Feeds("city", log, tables("air-1")),
        accepted=Accepted(RealClock()),
        sent=Sent(),
        clock=RealClock(),
    )
    while lane.changed():
        await lane.send()
    assert broker.sent == [2.0]


class Refusing(MemoryHeld):
    """A card that refuses what is to be written of a piece, while told to."""

    refuses = 0

    async def tried(
        self, piece: int, *, reason: str, at: datetime, next_try_at: datetime | None, offered: bool = True
    ) -> None:
        if self.refuses:
            self.refuses -= 1
            raise LogError("database or disk is full")
        await super().tried(piece, reason=reason, at=at, next_try_at=next_try_at, offered=offered)


async def test_a_piece_goes_on_when_the_card_refuses_the_verdict_on_another() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.held = held = Refusing()
    expected = log.put("air-1", 0.0, no2=5.0, pm25=6.0)
    columns = await log.read("city")
    assert columns is not None
    log.rows.clear()
    log.put("gone", 0.0, no2=1.0)
    gone = await log.read("city")
    assert gone is not None
    for entity, device, readings in (("urn:ngsi-ld:X:gone", "gone", gone), ("", "air-1", columns)):
        name = entity or next(iter(tables("air-1")["air-1"])).entity_id
        await held.hold("city", name, device, readings, reason="later", at=START, next_try_at=START)
    held.refuses = 2
    log.rows.clear()
    async with strict.serve() as url, forwarding(url, log, "air-1"):
        await strict.until(lambda: expected <= set(strict.history()), timeout_s=8.0)
    assert not held.refuses


class Busy(MemoryHeld):
    """A card that refuses once to let pieces go again."""

    refused = 0

    async def requeue(self, pieces: Sequence[int], at: datetime) -> int:
        if not self.refused:
            self.refused += 1
            raise LogError("database or disk is full")
        return await super().requeue(pieces, at)


async def test_a_history_that_comes_back_is_used_although_the_card_refused_at_first() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.held = held = Busy()
    log.put("air-1", -1.0, no2=9.0)
    columns = await log.read("city")
    assert columns is not None
    entity_id = next(iter(tables("air-1")["air-1"])).entity_id
    await held.hold("city", entity_id, "air-1", columns, reason=LATE, at=START)
    log.rows.clear()
    strict.behaviour.temporal = False
    settings = replace(FAST, history="auto", records=True, held_every_s=0.02)
    async with strict.serve() as url, forwarding(url, log, "air-1", settings=settings) as health:
        expected = log.put("air-1", 0.0, no2=1.0)
        await strict.until(lambda: log.settled)
        assert health.history == "in-order"
        strict.behaviour.temporal, strict.behaviour.fault = True, "503"
        expected |= log.put("air-1", 1.0, no2=2.0)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await strict.until(lambda: health.history == "temporal")
        expected |= log.put("air-1", 2.0, no2=3.0)
        await strict.until(lambda: expected <= set(strict.history()))
    assert held.refused == 1
    assert held.count("city") == (1, 0)  # what was too late for the broker is to be tried again


async def test_a_stretch_whose_walk_fails_is_read_again() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.put("air-1", 0.0, no2=5.0)
    series = log.series.pop(1)
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        lane = InOrderLane(
            Shared(
                broker=broker,
                feeds=Feeds("city", log, tables("air-1")),
                aside=Aside("city", log.held, RealClock(), every_s=0.0),
                clock=RealClock(),
                accepted=Accepted(RealClock()),
                sent=Sent(),
                streak=Streak(1),
            )
        )
        with pytest.raises(KeyError):
            await lane.fill()
        assert lane.position is None
        log.series[1] = series
        assert await lane.fill()
        assert not lane.idle
        await broker.close()
