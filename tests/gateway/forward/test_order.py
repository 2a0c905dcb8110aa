"""An entity of which some is put off, held, refused or late: its sets keep their order, each arrives once or is told, and what is
held survives restarts, changed mappings and a card that refuses. With the real log and a clock that leaps over the waits."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.forward.aside import GATHER_SETS, LATER_S
from gateway.forward.history_lane import LATE
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.health import BrokerHealth
from gateway.log.held import HeldPiece
from gateway.log.segment import Columns
from gateway.sdk.errors import LogError
from tests.gateway.forward.scene import (
    LeapClock,
    MemoryHeld,
    MemoryLog,
    entity_id,
    measured,
    measured_only,
    table,
    tables,
    wire,
)
from tests.gateway.forward.test_forwarder import FAST as FAST_IN_ORDER
from tests.gateway.forward.test_forwarder import forwarding
from tests.gateway.forward.test_two_lanes import DEVICES, FAST, Box, assert_exact
from tests.support.strict_broker import StrictBroker

TEMPORAL = replace(FAST, history="temporal", records=True)
IN_ORDER = replace(FAST, history="in-order")
BOTH = pytest.mark.parametrize("settings", [TEMPORAL, IN_ORDER], ids=["temporal", "in-order"])
AIR = entity_id("air-0")
PUT_OFF = 413  # says of an entity, as state and as history, that it is not to blame


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


def pieces(box: Box) -> list[HeldPiece]:
    assert box.log is not None
    return box.log.held.pieces("city")


async def values(box: Box, piece: HeldPiece) -> list[Any]:
    assert box.log is not None
    return list((await box.log.held.readings(piece.id)).value)


def set_aside(health: BrokerHealth) -> int:
    """Pieces refused; the newest of them is kept for later while it may still become current."""
    return health.dead + health.later


async def offered_again(box: Box, strict: StrictBroker, done: Callable[[], bool]) -> None:
    """Time passes, a quarter of an hour at a look, until it is done."""
    async with asyncio.timeout(8.0):
        while not done():
            box.clock.leap(900.0)
            asked = len(strict.requests)
            await asyncio.sleep(0.1)  # the lanes look; that nothing is asked is also an answer
            if len(strict.requests) == asked and done():
                return


async def accompanied(box: Box, strict: StrictBroker) -> None:
    """Another entity is accepted, so that the next refusal is of one entity."""
    at_s = 1000.0 + len(strict.stored)
    await box.put("air-1", at_s, no2=at_s)
    await strict.until(lambda: strict.current(entity_id("air-1"), "no2") == at_s)


@BOTH
async def test_what_is_put_off_again_and_again_and_over_a_restart_goes_oldest_first(box: Box, settings: Any) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        async with box.running(url, settings) as health:
            await accompanied(box, strict)
            strict.behaviour.refuse, strict.behaviour.refuse_status = "air-0$", PUT_OFF
            for n in range(3):
                await box.put("air-0", n, no2=n, pm25=n)
            await accompanied(box, strict)
            await strict.until(lambda: health.later >= 1 and box.settled)
            await box.put("air-0", 3, no2=3, pm25=3)  # newer: behind what is held
            await strict.until(lambda: box.settled)
            await offered_again(box, strict, lambda: max(piece.tries for piece in pieces(box)) > 1)
            assert health.dead == 0
        async with box.running(url, settings) as health:
            await box.put("air-0", 4, no2=4)
            await strict.until(lambda: box.settled and health.later >= 1)
            strict.behaviour.refuse = ""
            await offered_again(box, strict, lambda: health.later == 0 and box.settled)
            assert health.dead == 0
    came = [v.value for v in strict.stored if (v.entity, v.attribute) == (AIR, "no2")]
    if settings is IN_ORDER:
        assert came == [0, 1, 2, 3, 4]
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_only_what_the_broker_was_offered_is_a_try_and_the_waits_grow(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.refuse, strict.behaviour.refuse_status = "air-0$", 503
    async with strict.serve() as url, box.running(url, IN_ORDER) as health:
        await accompanied(box, strict)
        strict.behaviour.fault = "503"
        for n in (-2, -1, 0):  # one piece of three sets, of which the broker saw the first
            await box.put("air-0", n, no2=n)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await accompanied(box, strict)
        await strict.until(lambda: health.later == 1)
        await box.put("air-0", 1, no2=1)
        await strict.until(lambda: health.later == 2)
        first, second = pieces(box)
        assert (first.readings, second.readings) == (3, 1)
        assert (first.tries, second.tries) == (1, 0)
        for n, wait_s in enumerate((*LATER_S[1:], LATER_S[-1]), 2):
            before = pieces(box)[0].last_at
            box.clock.leap((pieces(box)[0].next_try_at - before).total_seconds() + 1)  # type: ignore[operator]  # it has one
            await strict.until(lambda n=n: pieces(box)[0].tries == n)
            piece = pieces(box)[0]
            assert piece.next_try_at is not None
            assert piece.next_try_at - piece.last_at == timedelta(seconds=wait_s)
            assert "refused by rule" in piece.reason
        assert pieces(box)[1].tries == 0  # its turn did not come


@BOTH
async def test_two_dead_letters_that_are_requeued_together_go_oldest_first(box: Box, settings: Any) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, settings) as health:
        await accompanied(box, strict)
        strict.behaviour.refuse = "air-0$"
        for n in range(3):
            await box.put("air-0", n, no2=n)
            await accompanied(box, strict)
            await strict.until(lambda n=n: set_aside(health) == n + 1 and box.settled)
            box.clock.leap(61)
        strict.behaviour.refuse = ""
        assert box.log is not None
        await box.log.held.requeue([piece.id for piece in reversed(pieces(box))], box.clock.now())
        await offered_again(box, strict, lambda: (health.later, health.dead) == (0, 0))
        await box.put("air-0", 3, no2=3)
        await strict.until(lambda: box.settled)
    strict.refusals.clear()
    assert_exact(strict, box)
    assert strict.current(AIR, "no2") == 3


@BOTH
async def test_of_a_piece_the_worst_verdict_stands_and_what_was_taken_is_not_taken_twice(
    box: Box, settings: Any
) -> None:
    """Four sets are held; when they are offered again one is refused for good, one is put off, two are taken."""
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, settings) as health:
        await accompanied(box, strict)
        strict.behaviour.verdicts = {AIR: PUT_OFF}
        for n in range(4):
            await box.put("air-0", n, no2=n + 0.5)
        await accompanied(box, strict)
        await strict.until(lambda: health.later >= 1 and box.settled)
        strict.behaviour.verdicts = {r'"value": 1\.5': 400}
        await offered_again(box, strict, lambda: health.dead >= 1 and health.later == 0)
        assert all("refused by rule 400" in p.reason or p.reason == LATE for p in pieces(box))
        strict.behaviour.verdicts = {}
        found = Counter(measured_only(strict.temporal_history()))
        assert (AIR, "no2", wire(1), 1.5) not in found
        assert box.log is not None
        await box.log.held.requeue([piece.id for piece in pieces(box)], box.clock.now())

        def done() -> bool:
            return health.dead == 0 if settings is TEMPORAL else health.late >= 1

        await offered_again(box, strict, lambda: done() and health.later == 0 and box.settled)
    found = Counter(measured_only(strict.temporal_history()))
    assert max(found.values()) == 1
    missing = box.expected - found.keys()
    assert missing == (set() if settings is TEMPORAL else {(AIR, "no2", wire(1), 1.5)})
    assert strict.backwards == []


async def test_refused_and_then_put_off_is_a_dead_letter_and_not_tried_for_ever(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, IN_ORDER) as health:
        await accompanied(box, strict)
        strict.behaviour.verdicts = {AIR: PUT_OFF}
        for n in range(2):
            await box.put("air-0", n, no2=n + 0.5)
        await strict.until(lambda: health.later == 1 and box.settled)
        [piece] = pieces(box)
        strict.behaviour.verdicts = {r'"value": 0\.5': 400, r'"value": 1\.5': 503}
        box.clock.leap(31)
        await strict.until(lambda: health.dead == 1 and health.later == 0)
        assert [(p.id, p.readings) for p in pieces(box)] == [(piece.id, 2)]


@BOTH
async def test_held_pieces_meet_another_mapping_after_a_restart(box: Box, settings: Any) -> None:
    """Another name for one attribute, none for another's device, a device that is not sent any more."""
    strict = StrictBroker()
    strict.behaviour.refuse, strict.behaviour.refuse_status = "air-[023]$", PUT_OFF
    async with strict.serve() as url:
        async with box.running(url, settings) as health:
            await accompanied(box, strict)
            for device in ("air-0", "air-2", "air-3"):
                await box.put(device, 1, no2=1, pm25=1)
            await accompanied(box, strict)
            await strict.until(lambda: health.later == 3 and box.settled)
        strict.behaviour.refuse = ""
        changed = dict(tables(*DEVICES))
        renamed = table("air-0", "no2", "pm25")
        slots = {"no2": tuple(replace(slot, key="nitrogen") for slot in renamed.slots["no2"])}
        changed["air-0"] = (replace(renamed, slots={**renamed.slots, **slots}),)
        changed["air-2"] = (table("air-2", "o3"),)
        del changed["air-3"]
        async with box.running(url, settings, mappings=changed) as health:
            await offered_again(box, strict, lambda: (health.later, health.dead) == (0, 2))
            reasons = {piece.device: piece.reason for piece in pieces(box)}
    assert reasons == {"air-2": "the mapping takes none of it", "air-3": "no longer sent to this broker"}
    found = Counter(measured_only(strict.temporal_history()))
    assert {point[1:]: n for point, n in found.items() if point[0] == AIR} == {
        ("nitrogen", wire(1), 1): 1,
        ("pm25", wire(1), 1): 1,
    }


@BOTH
async def test_until_it_is_on_the_card_the_cursor_does_not_pass_what_is_set_aside(
    box: Box, tmp_path: Path, settings: Any
) -> None:
    strict = StrictBroker()
    patient = replace(settings, gather_s=3600.0)
    async with strict.serve() as url:
        async with box.running(url, patient) as health:
            await accompanied(box, strict)
            await strict.until(lambda: box.settled)
            strict.behaviour.refuse = "air-0$"
            await box.put("air-0", 1, no2=1)
            await accompanied(box, strict)
            await strict.until(lambda: health.refused >= 1)
            await box.put("air-0", 2, no2=2)
            await accompanied(box, strict)
            assert not box.settled
            assert pieces(box) == []
            left = await box.killed(tmp_path / "left")
        strict.behaviour.refuse = ""
        async with left.running(url, settings):
            await strict.until(lambda: left.settled)
        await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(left.expected))
    strict.refusals.clear()
    assert_exact(strict, left)


async def test_each_gathering_begins_anew_by_count_and_by_time(box: Box) -> None:
    strict = StrictBroker()
    patient = replace(IN_ORDER, gather_s=60.0)
    bad = [f"bad-{n}" for n in range(GATHER_SETS)]
    async with strict.serve() as url, box.running(url, patient, mappings=tables("air-1", *bad)) as health:
        await accompanied(box, strict)
        strict.behaviour.refuse = "bad-"
        for device in bad:
            await box.put(device, 0, no2=0)
        await accompanied(box, strict)
        await strict.until(lambda: health.dead == GATHER_SETS and box.settled)
        for again in (1, 2):
            await box.put("bad-0", again, no2=again)
            refused = health.refused
            await strict.until(lambda refused=refused: health.refused > refused)
            await accompanied(box, strict)
            assert not box.settled  # gathered, not written
            assert health.dead == GATHER_SETS + again - 1
            box.clock.leap(61)
            await strict.until(lambda again=again: health.dead == GATHER_SETS + again and box.settled)


class OneRefused(MemoryHeld):
    """A card that refuses a piece of one device once."""

    refuses = "air-2"

    async def hold(self, broker: str, entity: str, device: str, readings: Columns, **more: Any) -> int:
        if device == self.refuses:
            self.refuses = ""
            raise LogError("database or disk is full")
        return await super().hold(broker, entity, device, readings, **more)


async def test_what_was_written_before_the_card_refused_is_not_written_twice() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.held = OneRefused()
    strict.behaviour.refuse = "air-[0123]$"
    async with strict.serve() as url, forwarding(url, log, *DEVICES) as health:
        for device in DEVICES:
            log.put(device, 0, no2=1)
        await strict.until(lambda: log.settled)
        await strict.until(lambda: health.dead == 4)
    assert Counter(piece.device for piece in log.held.pieces()) == dict.fromkeys(
        ("air-0", "air-1", "air-2", "air-3"), 1
    )


async def test_a_piece_that_is_purged_while_it_is_tried_is_gone_and_holds_nothing_up() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse, strict.behaviour.refuse_status = "air-0$", 503
    async with strict.serve() as url, forwarding(url, log, "air-0", "air-1") as health:
        log.put("air-1", 0, no2=1)
        log.put("air-0", 0, no2=1)
        await strict.until(lambda: health.later == 1)
        strict.behaviour.fault, strict.behaviour.delay_s, strict.behaviour.path = "slow", 0.3, "upsert"
        [(number, (piece, columns))] = log.held.table.items()
        asked = len(strict.bodies)
        log.held.table[number] = (replace(piece, next_try_at=piece.first_at), columns)
        await asyncio.sleep(0.1)
        del log.held.table[number]
        await strict.until(lambda: len(strict.bodies) > asked)
        strict.behaviour.fault = strict.behaviour.refuse = ""
        expected = log.put("air-0", 5, no2=5)
        await strict.until(lambda: log.settled and health.state == "ok")
        await strict.until(lambda: expected <= set(strict.history()))
        assert (health.later, health.dead) == (0, 0)


@pytest.mark.parametrize("held_every_s", [0.05, 600.0], ids=["looked at", "not looked at"])
async def test_what_is_gathered_and_not_yet_on_the_card_is_not_overtaken(box: Box, held_every_s: float) -> None:
    strict = StrictBroker()
    settings = replace(IN_ORDER, gather_s=60.0, held_every_s=held_every_s)
    async with strict.serve() as url, box.running(url, settings):
        await accompanied(box, strict)
        strict.behaviour.verdicts = {AIR: PUT_OFF}
        await box.put("air-0", 0, no2=0)
        await accompanied(box, strict)
        await strict.until(lambda: any(AIR in refusal for refusal in strict.refusals))
        strict.behaviour.verdicts = {}
        for n in range(1, 4):
            await box.put("air-0", n, no2=n)
            await accompanied(box, strict)
            await asyncio.sleep(0.1)  # the table of held pieces is looked at meanwhile
        assert strict.current(AIR, "no2") is None
        while strict.current(AIR, "no2") != 3:
            box.clock.leap(900)
            await accompanied(box, strict)
        await strict.until(lambda: box.settled)
    assert [v.value for v in strict.stored if (v.entity, v.attribute) == (AIR, "no2")] == [0, 1, 2, 3]
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_a_piece_whose_verdict_is_open_is_not_offered_meanwhile(box: Box) -> None:
    """It was refused, and nothing else was accepted or refused since: whose fault it is shows with the next set."""
    strict = StrictBroker()
    needs = {**tables("air-1"), "air-0": (table("air-0", mandatory=frozenset({"no2"})),)}
    async with strict.serve() as url, box.running(url, IN_ORDER, mappings=needs) as health:
        await accompanied(box, strict)
        await box.put("air-0", 0, pm25=0)
        await strict.until(lambda: health.later == 1 and box.settled)
        strict.behaviour.verdicts = {AIR: 400}
        await box.put("air-0", 1, no2=1)
        await strict.until(lambda: box.settled and [piece.readings for piece in pieces(box)] == [2])
        box.clock.leap(61)
        await strict.until(lambda: health.refused == 2)  # the two sets of the piece
        await asyncio.sleep(0.4)  # nothing is to be done: whoever offers now, offers again
        assert (health.refused, health.dead) == (2, 0)
        await accompanied(box, strict)
        await strict.until(lambda: health.dead >= 1)


async def test_late_in_order_is_told_by_attribute_and_the_rest_goes(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, IN_ORDER) as health:
        await box.put("air-0", 10, no2=10)
        await strict.until(lambda: box.settled)
        await box.put("air-0", 5, no2=5, pm25=5)
        await strict.until(lambda: box.settled and health.dead == 1)
        [piece] = pieces(box)
        assert (piece.reason, await values(box, piece), health.late) == (LATE, [5], 1)
        await box.put("air-0", 11, no2=11)
        await strict.until(lambda: box.settled)
        assert (health.dead, health.late) == (1, 1)
    box.expected.remove((AIR, "no2", wire(5), 5))
    assert_exact(strict, box)


async def test_of_a_held_piece_what_others_overtook_is_told_and_the_rest_goes_once(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        async with box.running(url, IN_ORDER) as health:
            await accompanied(box, strict)
            strict.behaviour.refuse, strict.behaviour.refuse_status = "air-0$", 503
            await box.put("air-0", 5, no2=5, pm25=5)
            await strict.until(lambda: health.later == 1 and box.settled)
        strict.behaviour.refuse = ""
        broker = NgsiLdBroker(NgsiLdSettings(url))
        await broker.state([measured("air-0", 10, no2=10)])
        await broker.close()
        async with box.running(url, IN_ORDER) as health:
            await offered_again(box, strict, lambda: health.later == 0 and health.dead == 1)
            [piece] = pieces(box)
            assert (piece.reason, await values(box, piece)) == (LATE, [5])
    box.expected.remove((AIR, "no2", wire(5), 5))
    box.expected.add((AIR, "no2", wire(10), 10))
    strict.refusals.clear()
    assert_exact(strict, box)


@BOTH
async def test_what_waits_for_a_mandatory_attribute_goes_oldest_first_also_after_a_restart(
    box: Box, settings: Any
) -> None:
    strict = StrictBroker()
    needs = {"air-0": (table("air-0", mandatory=frozenset({"no2"})),)}
    async with strict.serve() as url:
        async with box.running(url, settings, mappings=needs) as health:
            for n in range(3):
                await box.put("air-0", n, pm25=n)
                await strict.until(lambda: box.settled)
            assert health.waiting == {AIR: ["no2"]}
            assert health.later >= 1
        async with box.running(url, settings, mappings=needs) as health:
            await strict.until(lambda: health.waiting == {AIR: ["no2"]})
            await box.put("air-0", 3, no2=3)
            await offered_again(box, strict, lambda: health.later == 0 and box.settled)
            assert (health.waiting, health.dead) == ({}, 0)
            assert {piece.tries for piece in pieces(box)} <= {0}
    assert_exact(strict, box)
    assert [v.value for v in strict.stored if v.attribute == "pm25" and v.via == "state"] in ([0, 1, 2], [2])


@pytest.mark.parametrize("history", ["in-order", "temporal"])
async def test_a_reading_ahead_of_the_clock_goes_when_its_time_comes_and_is_nobodys_try(history: str) -> None:
    strict, log, clock = StrictBroker(), MemoryLog(), LeapClock()
    settings = replace(FAST_IN_ORDER, history=history, records=True)
    ahead_s = (clock.now() - datetime.fromisoformat(wire(0))).total_seconds() + 900.0
    async with strict.serve() as url, forwarding(url, log, "air-0", settings=settings, clock=clock) as health:
        expected = log.put("air-0", 0, no2=1.0)
        expected |= log.put("air-0", ahead_s, no2=2.0)
        await strict.until(lambda: log.settled and health.later == 1)
        [piece] = log.held.pieces()
        clock.leap(300)  # not yet
        expected |= log.put("air-0", 10, pm25=3.0)
        await strict.until(lambda: log.settled and len(measured_only(strict.history())) == 2)
        assert log.held.pieces() == [piece]  # nobody touched it, and so nobody wrote to the card
        clock.leap(400)  # within five minutes of it
        await strict.until(lambda: health.later == 0 and len(measured_only(strict.history())) == 3)
        assert health.dead == 0
    assert Counter(measured_only(strict.temporal_history())) == Counter(expected)
    assert strict.backwards == []


async def test_nothing_joins_a_reading_that_is_ahead_of_the_clock() -> None:
    strict, log, clock = StrictBroker(), MemoryLog(), LeapClock()
    settings = replace(FAST_IN_ORDER, held_every_s=600.0, gather_s=60.0)
    ahead_s = (clock.now() - datetime.fromisoformat(wire(0))).total_seconds() + 900.0
    async with strict.serve() as url, forwarding(url, log, "air-0", settings=settings, clock=clock) as health:
        log.put("air-0", ahead_s, no2=2.0)
        for n in range(3):
            log.put("air-0", n, no2=n)
            await strict.until(lambda n=n: strict.current(AIR, "no2") == n)
        clock.leap(61)
        log.put("air-0", 3, no2=3)
        await strict.until(lambda: log.settled)
        assert [piece.readings for piece in log.held.pieces()] == [1]
        assert health.dead == 0


async def test_late_and_put_off_are_two_pieces_and_who_joins_shortens_no_wait(box: Box) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, replace(IN_ORDER, gather_s=60.0)) as health:
        await accompanied(box, strict)
        await box.put("air-0", 10, no2=10)
        await strict.until(lambda: strict.current(AIR, "no2") == 10)
        await box.put("air-0", 5, no2=5)  # late
        strict.behaviour.verdicts = {AIR: PUT_OFF}
        await box.put("air-0", 11, no2=11)
        await accompanied(box, strict)
        await strict.until(lambda: any("rule 413" in refusal for refusal in strict.refusals))
        await box.put("air-0", 12, no2=12)  # joins
        await accompanied(box, strict)
        box.clock.leap(61)
        await accompanied(box, strict)
        await strict.until(lambda: (health.later, health.dead) == (1, 1) and box.settled)
        held = {piece.state: (await values(box, piece), piece.reason) for piece in pieces(box)}
        assert held["dead"] == ([5], LATE)
        assert held["later"][0] == [11, 12]
        assert "refused by rule" in held["later"][1]
        [later] = [piece for piece in pieces(box) if piece.next_try_at is not None]
        assert later.next_try_at is not None
        assert later.next_try_at - later.last_at >= timedelta(seconds=LATER_S[0])


@BOTH
async def test_who_is_known_to_be_bad_is_written_off_at_once_and_who_was_accepted_is_not(
    box: Box, settings: Any
) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, settings) as health:
        await accompanied(box, strict)
        strict.behaviour.refuse = "air-0$"
        await box.put("air-0", 0, no2=0)
        await strict.until(lambda: health.refused >= 1)
        await accompanied(box, strict)
        await strict.until(lambda: set_aside(health) == 1 and box.settled)
        box.clock.leap(61)
        await box.put("air-0", 1, no2=1)  # alone
        await strict.until(lambda: set_aside(health) == 2 and box.settled)
        strict.behaviour.refuse = ""
        box.clock.leap(31)
        for n in (2, 3):
            await box.put("air-0", n, no2=n)
            await strict.until(lambda n=n: strict.current(AIR, "no2") == n)
        if settings is TEMPORAL:
            return  # it was accepted as state, and is as bad as ever as history
        strict.behaviour.refuse = "air-0$"
        await box.put("air-0", 4, no2=4)  # alone: the verdict is open
        refused = health.refused
        await strict.until(lambda: health.refused > refused)
        await asyncio.sleep(0.3)  # nothing is to be done
        assert health.dead == 2
        assert not box.settled
