"""What becomes of updates that a broker took, refused or put off. Pure: a broker by script, a log in memory, a clock by hand."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from gateway.claims import AHEAD
from gateway.forward.aside import FUTURE, FUTURE_AGAIN_S, INCOMPLETE_S, LATER_S, Aside
from gateway.forward.broker import Accepted, Outcome, Point, Probe, Streak, Traffic
from gateway.forward.feeds import Feeds
from gateway.forward.updates import Sent, Update
from gateway.forward.verdicts import LaneCounts, Shared, Taken
from gateway.harmonise.entity import Entity
from gateway.log.held import HeldPiece
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.testing import ManualClock
from tests.gateway.forward.scene import START, MemoryLog, entity_id, table, tables

A, B, C, D = (entity_id(f"air-{n}") for n in range(1, 5))
AIR = ("air-1", "air-2", "air-3", "air-4")


class Scripted:
    """Takes everything but `refuses`, unless `answers` say otherwise; remembers what it was asked and sent."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.answers: list[Outcome] = []
        self.refuses: frozenset[str] = frozenset()
        self.sent: list[tuple[str, list[Entity]]] = []
        self.asked: list[list[str]] = []
        self.holds: dict[str, dict[str, datetime]] = {}
        self.points: frozenset[Point] = frozenset()
        self.newest: dict[str, list[tuple[str, datetime]]] = {}
        self.fault: BrokerUnavailable | None = None  # of reading
        self.probes: list[Probe] = []

    def values(self, key: str = "no2") -> list[tuple[str, str, Any]]:
        """Way, device and value of all that was sent of one attribute."""
        return [
            (way, entity.device, entity.attributes[key].value)
            for way, entities in self.sent
            for entity in entities
            if key in entity.attributes
        ]

    async def probe(self) -> Probe:
        if self.fault is not None:
            raise self.fault
        return self.probes.pop(0)

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        return self._answer("state", entities)

    async def history(self, instances: Sequence[Entity]) -> Outcome:
        return self._answer("past", instances)

    def _answer(self, way: str, entities: Sequence[Entity]) -> Outcome:
        self.sent.append((way, list(entities)))
        ids = frozenset(entity.id for entity in entities)
        if self.answers:
            return self.answers.pop(0)
        return Outcome(accepted=ids - self.refuses, refused=dict.fromkeys(ids & self.refuses, "no"))

    async def read_back(self, entities: Sequence[Entity]) -> dict[str, dict[str, datetime]]:
        self.asked.append([entity.id for entity in entities])
        if self.fault is not None:
            raise self.fault
        return {entity.id: self.holds[entity.id] for entity in entities if entity.id in self.holds}

    async def history_back(self, instances: Sequence[Entity]) -> frozenset[Point]:
        self.asked.append([entity.id for entity in instances])
        if self.fault is not None:
            raise self.fault
        return self.points

    async def history_newest(
        self,
        entities: Sequence[Entity],
        *,
        since: datetime | None = None,
        attributes: Sequence[str] = (),
        last: int = 1,
    ) -> dict[str, list[tuple[str, datetime]]]:
        self.asked.append([entity.id for entity in entities])
        if self.fault is not None:
            raise self.fault
        return self.newest

    async def close(self) -> None:
        pass


class Scene:
    """What the lanes of one broker share, for these devices."""

    def __init__(self, *devices: str, mappings: Any = None, every_s: float = 0.0) -> None:
        self.log = MemoryLog()
        self.clock = ManualClock(START)
        self.broker = Scripted()
        feeds = Feeds("city", self.log, mappings or tables(*devices))
        self.of = Shared(
            broker=self.broker,
            feeds=feeds,
            aside=Aside("city", self.log.held, self.clock, every_s=every_s),
            clock=self.clock,
            accepted=Accepted(self.clock),
            sent=Sent(),
            streak=Streak(len(feeds.devices)),
        )

    def update(self, device: str, at_s: float = 0.0, **values: float) -> Update:
        """One set that is in the log, as an update."""
        self.log.put(device, at_s, **(values or {"no2": 1.0}))
        rows = [row for row in self.log.rows if row[0] == self.log.rows[-1][0]]
        feed = self.of.feeds.of(entity_id(device), device)
        assert feed is not None
        readings = {self.log.series[number].point: (value or 0.0, us, number) for _, number, us, value in rows}
        return Update(feed, readings, rows[0][0])

    async def held(self) -> list[HeldPiece]:
        """What is set aside, once it is on the card."""
        await self.of.aside.write(at_once=True)
        return self.log.held.pieces()

    async def piece(self, update: Update) -> Update:
        """The same update, out of a held piece that is tried again."""
        self.of.aside.put(update, "503", 0.0, offered=True)
        await self.held()
        [again] = await self.of.aside.retry(self.of.feeds)
        return again


@pytest.fixture
def scene() -> Scene:
    return Scene(*AIR)


def waiting(taken: Taken) -> dict[str, list[Update]]:
    """What waits, in the order in which entities and their updates go."""
    return {entity: list(queue) for entity, queue in taken.queues.items()}


def refused(*ids: str) -> Outcome:
    return Outcome(refused=dict.fromkeys(ids, "no"))


def later(*ids: str) -> Outcome:
    return Outcome(later=dict.fromkeys(ids, "not now"))


def accepted(*ids: str) -> Outcome:
    return Outcome(accepted=frozenset(ids))


def took(of: Scene, *, in_turns: bool, updates: Sequence[Update] = ()) -> Taken:
    taken = Taken(of.of, in_turns=in_turns)
    for update in updates:
        taken.put_last(update)
    return taken


def test_what_another_lane_had_taken_goes_on_in_order_of_time(scene: Scene) -> None:
    new, old, other, bad = (
        scene.update("air-1", 5),
        scene.update("air-1", 2),
        scene.update("air-2"),
        scene.update(AIR[2]),
    )
    past = took(scene, in_turns=True, updates=[new, old, other])
    past.position, past.open = 7, [(bad, "no")]
    taken = took(scene, in_turns=False)
    taken.take_over(past)
    assert waiting(taken) == {A: [old, new], B: [other]}
    assert (taken.position, taken.open) == (7, [(bad, "no")])


async def test_what_can_be_sent_is_ready_up_to_a_clock_that_runs_ahead_a_little(scene: Scene) -> None:
    taken = took(scene, in_turns=False)
    assert taken.ready(scene.update("air-1", 0))
    assert taken.ready(scene.update("air-1", AHEAD.total_seconds()))
    assert await scene.held() == []


@pytest.mark.parametrize(("ahead_s", "wait_s"), [(1e-6, 1e-6), (1000.0, 1000.0), (FUTURE_AGAIN_S + 1, FUTURE_AGAIN_S)])
async def test_what_is_ahead_of_the_clock_waits_for_its_time_a_day_at_most(
    scene: Scene, ahead_s: float, wait_s: float
) -> None:
    assert not took(scene, in_turns=False).ready(scene.update("air-1", AHEAD.total_seconds() + ahead_s))
    [piece] = await scene.held()
    assert (piece.entity, piece.reason) == (A, FUTURE)
    assert piece.next_try_at == START + timedelta(seconds=wait_s)
    assert not scene.of.aside.waiting(A)


async def test_what_lacks_something_waits_for_it_and_is_told_by_name() -> None:
    needs = {"air-1": (table("air-1", "no2", "pm25", "o3", mandatory=frozenset({"no2", "o3"})),)}
    scene = Scene(mappings=needs)
    assert not took(scene, in_turns=False).ready(scene.update("air-1", 0, pm25=1.0))
    [piece] = await scene.held()
    assert piece.reason == "waits for no2, o3"
    assert piece.next_try_at == START + timedelta(seconds=INCOMPLETE_S)


async def test_who_has_something_set_aside_queues_behind_it(scene: Scene) -> None:
    scene.of.aside.put(scene.update("air-1", 0), "503", 0.5)
    taken = took(scene, in_turns=False)
    assert not taken.ready(scene.update("air-1", 1))
    assert taken.ready(scene.update("air-2", 1))
    [piece] = await scene.held()
    assert (piece.readings, piece.reason) == (2, "waits for older sets of this entity")
    assert piece.next_try_at == START + timedelta(seconds=1)


def test_what_goes_first_keeps_its_own_order(scene: Scene) -> None:
    first, second, third = (scene.update("air-1", n) for n in range(3))
    taken = took(scene, in_turns=True, updates=[third])
    taken.put_first([first, second, other := scene.update("air-2")])
    assert waiting(taken) == {A: [first, second, third], B: [other]}


def test_only_what_is_out_of_order_is_put_in_order(scene: Scene) -> None:
    updates = [scene.update("air-1", n) for n in (3, 1, 2)]
    taken = took(scene, in_turns=False, updates=[*updates, *(scene.update("air-2", n) for n in (2, 1))])
    taken.put_last(right := scene.update("air-3", 1))
    queue = taken.queues[C]
    taken.sort([A, C])
    assert waiting(taken)[A] == [updates[1], updates[2], updates[0]]
    assert [update.newest_us for update in taken.queues[B]] != sorted(update.newest_us for update in taken.queues[B])
    assert taken.queues[C] is queue
    assert list(queue) == [right]


@pytest.mark.parametrize(
    ("gone", "left"), [([0], [1, 2, 3]), ([1], [0, 2, 3]), ([0, 2], [1, 3]), ([3], [0, 1, 2]), ([0, 1, 2, 3], None)]
)
def test_what_waits_no_longer_is_gone_wherever_it_stood(scene: Scene, gone: list[int], left: list[int] | None) -> None:
    updates = [scene.update("air-1", n) for n in range(4)]
    taken = took(scene, in_turns=True, updates=updates)
    taken.drop(B, updates)  # nothing is there
    taken.drop(A, [updates[n] for n in gone])
    assert waiting(taken) == ({} if left is None else {A: [updates[n] for n in left]})
    if left is not None:
        assert isinstance(taken.queues[A], deque)


@pytest.mark.parametrize("in_turns", [True, False])
async def test_accepted_refused_and_put_off_in_one_request(scene: Scene, in_turns: bool) -> None:
    fine, bad, off, off_too, waits = (
        scene.update("air-1", 0),
        scene.update("air-2", 0),
        scene.update("air-3", 0),
        scene.update("air-3", 1),
        scene.update("air-1", 2),
    )
    taken = took(scene, in_turns=in_turns, updates=[fine, bad, off, off_too, waits])
    outcome = Outcome(accepted=frozenset({A}), refused={B: "no such type"}, later={C: "busy"})

    assert taken.judged([fine, bad, off], outcome) == [fine]

    assert waiting(taken) == {A: [waits]}
    assert taken.counts == LaneCounts(accepted=1, refused=1, known=0, late=0, skipped=0)
    assert taken.open == []
    assert scene.of.aside.waiting(C)
    dead, put_off = sorted(await scene.held(), key=lambda piece: piece.entity)
    assert (dead.entity, dead.reason, dead.next_try_at, dead.tries) == (B, "no such type", None, 1)
    assert (put_off.entity, put_off.reason, put_off.tries, put_off.readings) == (C, "busy", 1, 2)
    assert put_off.next_try_at == START + timedelta(seconds=LATER_S[0])


async def test_the_first_of_those_that_step_aside_was_offered_and_the_rest_was_not(scene: Scene) -> None:
    first = await scene.piece(scene.update("air-1", 0))
    for with_first, tries in ((True, 2), (False, 2)):
        taken = took(scene, in_turns=True, updates=[first] if with_first else [scene.update("air-1", 1), first])
        taken.judged([taken.queues[A][0]], Outcome(accepted=frozenset({B}), later={A: "busy"}))
        pieces = {piece.id: piece for piece in await scene.held()}
        assert pieces[first.held].tries == tries  # the second time it only stood behind
        for number, (piece, columns) in scene.log.held.table.items():
            scene.log.held.table[number] = (replace(piece, next_try_at=START), columns)
        [first] = await scene.of.aside.retry(scene.of.feeds)


async def test_what_was_taken_out_of_a_piece_lets_it_go(scene: Scene) -> None:
    again = await scene.piece(scene.update("air-1"))
    taken = took(scene, in_turns=True, updates=[again])
    taken.judged([again], accepted(A))
    assert await scene.held() == []
    assert taken.queues == {}


def test_where_all_go_together_a_refusal_moves_nobody(scene: Scene) -> None:
    bad, next_one, fine = scene.update("air-1", 0), scene.update("air-1", 1), scene.update("air-2")
    taken = took(scene, in_turns=False, updates=[bad, next_one, fine])
    early = scene.update("air-1", -1)
    taken.put_last(early)
    taken.judged([bad], refused(A))
    assert waiting(taken) == {A: [next_one, early], B: [fine]}


@pytest.mark.parametrize("in_turns", [True, False])
def test_a_fault_of_the_broker_is_a_verdict_on_nobody(scene: Scene, in_turns: bool) -> None:
    one, two = scene.update("air-1"), scene.update("air-2")
    taken = took(scene, in_turns=in_turns, updates=[one, two])
    outcome = Outcome(later={A: "away", B: "away"}, fault=BrokerUnavailable("away"))
    assert taken.judged([one, two], outcome) == []
    assert waiting(taken) == {A: [one], B: [two]}
    assert list(taken.queues) == [A, B]
    assert (taken.open, scene.of.aside.empty, scene.of.streak.begun) == ([], True, False)


async def test_a_verdict_that_is_open_keeps_the_log_and_is_drawn_when_another_is_taken(scene: Scene) -> None:
    bad, fine = scene.update("air-1"), scene.update("air-2")
    taken = took(scene, in_turns=True, updates=[bad, fine])
    taken.position = bad.seq
    assert taken.judged([bad], refused(A)) == []
    assert taken.open == [(bad, "no")]
    assert waiting(taken) == {B: [fine]}
    taken.drop(B, [fine])
    await taken.settle()
    assert (scene.log.cursor, taken.counts.refused, scene.of.aside.empty) == (0, 0, True)
    taken.judged([fine], accepted(B))
    assert (taken.open, taken.counts.refused, taken.counts.accepted) == ([], 1, 1)
    [dead] = await scene.held()
    assert (dead.entity, dead.next_try_at) == (A, None)
    scene.of.streak.note(refused(A))
    assert not scene.of.streak.begun  # it is known to be bad
    taken.judged([scene.update("air-1", 1)], refused(A))
    taken.judged([scene.update("air-2", 1)], accepted(B))
    assert (taken.counts.refused, taken.counts.accepted) == (2, 2)


async def test_a_verdict_that_the_other_lane_settled_is_drawn_when_the_log_is_to_be_settled(scene: Scene) -> None:
    bad = scene.update("air-1")
    taken = took(scene, in_turns=True, updates=[bad])
    taken.position = bad.seq
    taken.judged([bad], refused(A))
    scene.of.streak.note(accepted(B), "state")
    await taken.settle()
    assert scene.log.cursor == bad.seq
    assert [piece.entity for piece in scene.log.held.pieces()] == [A]


def test_who_has_nothing_open_draws_no_verdict(scene: Scene) -> None:
    for _ in range(3):
        scene.of.streak.note(refused(A), "state")
    took(scene, in_turns=True).judge()
    assert scene.of.streak.one_bad  # that is the state lane's to tell


async def test_one_bad_entity_that_fails_three_times_alone_is_bad(scene: Scene) -> None:
    bad = [scene.update("air-1", n) for n in range(4)]
    taken = took(scene, in_turns=True, updates=[*bad, other := scene.update("air-2")])
    for n in range(3):
        assert taken.counts.refused == 0
        taken.judged([bad[n]], refused(A))
        assert list(taken.queues) == [B, A]  # another tries next
    assert waiting(taken) == {B: [other], A: [bad[3]]}
    assert (taken.open, taken.counts.refused, taken.counts.accepted) == ([], 3, 0)
    [dead] = await scene.held()
    assert dead.readings == 3


def test_a_config_at_fault_puts_everything_back_in_its_order(scene: Scene) -> None:
    a, b = ([scene.update(device, n) for n in range(3)] for device in ("air-1", "air-2"))
    taken = took(scene, in_turns=False, updates=[*a, *b])
    for n in (0, 1):
        taken.judged([a[n], b[n]], refused(A, B))
        assert waiting(taken) == {A: a[n + 1 :], B: b[n + 1 :]}
    taken.judged([a[2], b[2]], refused(A, B))
    assert scene.of.streak.config_fault
    assert waiting(taken) == {A: a, B: b}
    assert (taken.open, taken.counts.refused, scene.of.aside.empty) == ([], 0, True)


def test_a_config_at_fault_is_found_by_what_is_in_no_order_of_time_too(scene: Scene) -> None:
    late, early, b = scene.update("air-1", 5), scene.update("air-1", 1), scene.update("air-2")
    taken = took(scene, in_turns=False, updates=[late, b])
    for _ in range(2):
        scene.of.streak.note(refused(A, B))
    taken.put_last(early)
    taken.judged([late, b], refused(A, B))
    assert waiting(taken) == {A: [early, late], B: [b]}


def test_while_the_config_is_at_fault_those_that_were_refused_go_last_the_newest_first(scene: Scene) -> None:
    a, a_too, b, c, d = (
        scene.update("air-1", 0),
        scene.update("air-1", 1),
        scene.update("air-2"),
        scene.update("air-3"),
        scene.update("air-4"),
    )
    taken = took(scene, in_turns=True, updates=[a_too, d])
    for update in (a, b):
        taken.open.append((update, "no"))
        scene.of.streak.note(refused(update.entity_id))
    taken.judged([c], refused(C))
    assert list(taken.queues) == [D, C, B, A]
    assert waiting(taken) == {D: [d], C: [c], B: [b], A: [a, a_too]}


async def test_who_is_put_off_alone_steps_aside_only_when_that_is_its_own(scene: Scene) -> None:
    off, other = scene.update("air-1"), scene.update("air-2")
    taken = took(scene, in_turns=True, updates=[off, other])
    for _ in range(2):
        taken.judged([off], later(A))
        assert list(taken.queues) == [B, A]
        assert scene.of.aside.empty
        taken.queues = {A: taken.queues[A], B: taken.queues[B]}
    taken.judged([off], later(A))
    assert waiting(taken) == {B: [other]}
    assert scene.of.aside.waiting(A)
    assert not scene.of.streak.begun
    scene.of.streak.note(later(A))
    assert not scene.of.streak.begun  # known to be bad
    [piece] = await scene.held()
    assert piece.reason == "not now"


def test_all_put_off_together_stay_and_are_put_in_order(scene: Scene) -> None:
    late, early, b = scene.update("air-1", 5), scene.update("air-1", 1), scene.update("air-2")
    taken = took(scene, in_turns=False, updates=[late, early, b])
    taken.judged([late, b], later(A, B))
    assert waiting(taken) == {A: [early, late], B: [b]}
    assert scene.of.aside.empty


async def test_the_log_is_settled_when_nothing_of_it_waits_or_is_only_gathered(scene: Scene) -> None:
    fine = scene.update("air-1")
    taken = took(scene, in_turns=False, updates=[fine])
    taken.position = fine.seq
    await taken.settle()
    assert (scene.log.cursor, taken.position) == (0, fine.seq)  # it waits
    taken.done(A, [fine])
    await taken.settle()
    assert scene.log.cursor == fine.seq
    assert taken.position is None
    await taken.settle()  # nothing was taken since
    assert scene.log.cursor == fine.seq


async def test_what_is_only_gathered_keeps_the_log_until_it_is_on_the_card() -> None:
    scene = Scene(*AIR, every_s=10.0)
    bad, fine = scene.update("air-1"), scene.update("air-2")
    taken = took(scene, in_turns=True, updates=[bad, fine])
    taken.position = fine.seq
    taken.judged([bad, fine], accepted(B) + refused(A))
    await taken.settle()
    assert (scene.log.cursor, taken.position) == (0, fine.seq)
    scene.clock.advance(10.0)
    await taken.settle()
    assert scene.log.cursor == fine.seq
    assert taken.position is None
    assert len(scene.log.held.pieces()) == 1


async def test_what_is_gathered_goes_to_the_card_when_nothing_was_taken_since() -> None:
    scene = Scene(*AIR, every_s=10.0)
    taken = took(scene, in_turns=True)
    scene.of.aside.put(scene.update("air-1"), "503", 1.0)
    scene.clock.advance(10.0)
    await taken.settle()
    assert len(scene.log.held.pieces()) == 1
