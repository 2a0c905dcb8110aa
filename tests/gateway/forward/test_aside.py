"""Pieces set aside: what is gathered, when it goes to the card, when it is tried again, and what becomes of it then."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gateway.claims import AHEAD_US, EARLIEST_US
from gateway.forward.aside import (
    BEHIND,
    BEHIND_S,
    FUTURE,
    FUTURE_AGAIN_S,
    GATHER_SETS,
    INCOMPLETE_S,
    TRIES,
    Aside,
    in_time,
)
from gateway.forward.updates import Update
from gateway.log.held import HeldPiece
from gateway.log.segment import Columns, TimeState, microseconds
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Quality, Reason, TimeSource
from tests.gateway.forward.scene import START, MemoryHeld, slot, table
from tests.gateway.forward.test_verdicts import AIR, A, B, C, D, Scene

HELD_US = microseconds(START)


def piece(reason: str) -> HeldPiece:
    return HeldPiece(1, "city", "urn:x:1", "air-1", "later", reason, START, START, 0, START + timedelta(seconds=1), 1)


@pytest.mark.parametrize(
    ("reason", "ahead_us", "clock_us", "goes", "time_us"),
    [
        (FUTURE, 2 * AHEAD_US, 0, False, 2 * AHEAD_US),  # waits for itself, its time is not touched
        (FUTURE, 2 * AHEAD_US, 2 * AHEAD_US - 1, False, 2 * AHEAD_US),
        (FUTURE, 2 * AHEAD_US, 2 * AHEAD_US, True, 2 * AHEAD_US),
        ("503", AHEAD_US, 0, False, AHEAD_US),  # plausible when it was held: the clock was set back since
        ("503", AHEAD_US, AHEAD_US, True, AHEAD_US),
        ("503", 2 * AHEAD_US, 0, True, 0),  # cannot be: it was there when it was held
        ("503", -HELD_US, 0, True, 0),
        ("503", -5, 0, True, -5),
        ("503", 2 * AHEAD_US, 2 * AHEAD_US, True, 2 * AHEAD_US),  # its time has come
        ("503", EARLIEST_US - HELD_US, 0, True, EARLIEST_US - HELD_US),
    ],
)
def test_a_held_piece_waits_for_its_time_and_a_time_that_cannot_be_is_that_of_its_reception(
    reason: str, ahead_us: int, clock_us: int, goes: bool, time_us: int
) -> None:
    columns = Columns(1, time_us=[HELD_US - 1, HELD_US + ahead_us])

    assert in_time(piece(reason), columns, HELD_US + clock_us) is goes
    assert columns.time_us == [HELD_US - 1, HELD_US + time_us]


def test_what_joined_a_piece_later_keeps_its_time_when_the_clock_was_set_back_since() -> None:
    joined = replace(piece(BEHIND), last_at=START + timedelta(days=2))
    times = [HELD_US, HELD_US + 2 * 86_400_000_000]

    columns = Columns(2, time_us=list(times))

    assert not in_time(joined, columns, HELD_US + 86_400_000_000)
    assert columns.time_us == times


class Table(MemoryHeld):
    """The pieces of several brokers; who asks gets its own."""

    def pieces(
        self, broker: str | None = None, *, entity: str | None = None, device: str | None = None
    ) -> list[HeldPiece]:
        return [piece for piece in super().pieces() if piece.broker == broker]

    def count(self, broker: str) -> tuple[int, int]:
        later = [piece.next_try_at is not None for piece in self.pieces(broker)]
        return later.count(True), later.count(False)


class Card(Scene):
    """A scene whose card has pieces of another broker too."""

    def __init__(self, *devices: str, every_s: float = 10.0, mappings: Any = None) -> None:
        super().__init__(*devices, mappings=mappings)
        self.held_ = Table()
        self.every_s = every_s

    def aside(self) -> Aside:
        return Aside("city", self.held_, self.clock, every_s=self.every_s)

    async def keeps(
        self, update: Update, reason: str = "503", *, in_s: float | None = 0.0, broker: str = "city", tries: int = 1
    ) -> int:
        """A piece of an earlier run, with its next try."""
        columns = _columns(update)
        next_try_at = None if in_s is None else self.clock.now() + timedelta(seconds=in_s)
        return await self.held_.hold(
            broker,
            update.entity_id,
            update.feed.device,
            columns,
            reason=reason,
            at=START,
            next_try_at=next_try_at,
            tries=tries,
        )

    def row(self, number: int) -> tuple[str, float | None, int]:
        """Reason, seconds until the next try, tries."""
        piece = self.held_.table[number][0]
        at = piece.next_try_at
        return piece.reason, None if at is None else (at - self.clock.now()).total_seconds(), piece.tries


def _columns(update: Update) -> Columns:
    columns = Columns(1)
    for value, time_us, number in update.readings.values():
        columns.seq.append(1)
        columns.series.append(number)
        columns.time_us.append(time_us)
        columns.value.append(value)
        columns.quality.append(Quality.GOOD)
        columns.reason.append(Reason.NONE)
        columns.time_source.append(TimeSource.NETWORK)
        columns.time_state.append(TimeState.SURE)
    return columns


@pytest.fixture
def card() -> Card:
    return Card(*AIR)


async def test_behind_what_an_earlier_run_put_off_newer_ones_wait_but_behind_nothing_else(card: Card) -> None:
    await card.keeps(card.update("air-1"))
    await card.keeps(card.update("air-2"), in_s=None)
    await card.keeps(card.update("air-3"), FUTURE, in_s=5.0)
    await card.keeps(card.update("air-4"), broker="other")
    aside = card.aside()
    assert [aside.waiting(entity) for entity in (A, B, C, D)] == [True, False, False, False]
    assert aside.counts() == (2, 1)
    assert aside.empty


async def test_the_newest_dead_letter_of_each_entity_is_shown(card: Card) -> None:
    for device, reason, in_s in (("air-1", "1", None), ("air-1", "2", None), ("air-1", "3", 1.0), ("air-2", "4", None)):
        await card.keeps(card.update(device), reason, in_s=in_s)
    await card.keeps(card.update("air-3"), in_s=None, broker="other")
    assert {entity: piece.reason for entity, piece in card.aside().dead().items()} == {A: "2", B: "4"}


async def test_what_is_gathered_is_one_piece_for_each_verdict(card: Card) -> None:
    aside = card.aside()
    aside.put(card.update("air-1", 0), "no", None, offered=True)
    aside.put(card.update("air-1", 1), "503", 30.0, offered=True)
    aside.put(card.update("air-1", 2), "waits", 1.0)
    aside.put(card.update("air-1", 3), FUTURE, 50.0)
    aside.put(card.update("air-1", 4), "not at all", None)
    aside.put(card.update("air-2", 5), "waits", 30.0)
    aside.put(card.update("air-2", 6), "503", 60.0)
    aside.put(card.update("air-2", 7), "waits on", 60.0)
    assert [aside.waiting(entity) for entity in (A, B, C)] == [True, True, False]
    assert not aside.empty
    card.clock.advance(2.0)
    await aside.write(at_once=True)
    assert aside.empty
    rows = [
        (p.broker, p.entity, p.device, p.readings, *card.row(p.id), (p.first_at - START).total_seconds())
        for p in card.held_.pieces("city")
    ]
    assert rows == [
        ("city", A, "air-1", 2, "not at all", None, 1, 2.0),
        ("city", A, "air-1", 2, "503", 30.0, 1, 2.0),
        ("city", A, "air-1", 1, FUTURE, 50.0, 0, 2.0),
        ("city", B, "air-2", 3, "503", 60.0, 0, 2.0),
    ]
    assert [aside.waiting(entity) for entity in (A, B, C)] == [True, True, False]


async def test_a_piece_is_offered_when_any_of_it_was(card: Card) -> None:
    aside = card.aside()
    aside.put(card.update("air-1", 0), "waits", 1.0)
    aside.put(card.update("air-1", 1), "503", 30.0, offered=True)
    aside.put(card.update("air-1", 2), "waits", 1.0)
    await aside.write(at_once=True)
    assert card.row(1) == ("503", 30.0, 1)


async def test_a_dead_letter_or_a_time_ahead_holds_nobody_up(card: Card) -> None:
    aside = card.aside()
    aside.put(card.update("air-1"), "no", None)
    aside.put(card.update("air-2"), FUTURE, 9.0)
    assert not aside.waiting(A)
    assert not aside.waiting(B)
    await aside.again("nothing")  # looks at the card
    assert not aside.waiting(A)
    assert not aside.waiting(B)
    aside.put(card.update("air-3"), "503", 9.0)
    await aside.again("nothing")
    assert aside.waiting(C)


async def test_what_somebody_purged_holds_nobody_up(card: Card) -> None:
    for looks in ("retry", "write"):
        await card.keeps(card.update("air-1"), in_s=60.0)
        aside = card.aside()
        assert aside.waiting(A)
        card.held_.table.clear()
        if looks == "retry":
            await again(card, aside, 0)
        else:
            aside.put(card.update("air-2"), "503", 0.0)
            aside.put(card.update("air-2"), "413", 0.5)
            await aside.write(at_once=True)
            assert card.row(1) == ("413", 0.5, 0)
        assert not aside.waiting(A)


async def test_what_was_put_aside_is_kept_value_by_value(card: Card) -> None:
    aside = card.aside()
    first, second = card.update("air-1", 0, no2=1.5, pm25=2.5), card.update("air-1", 1, no2=3.5)
    aside.put(first, "503", 1.0)
    aside.put(second, "503", 1.0)
    await aside.write(at_once=True)
    [(_, columns)] = card.held_.table.values()
    numbers = [number for _, _, number in (*first.readings.values(), *second.readings.values())]
    assert (columns.seq, columns.series, columns.value) == ([1, 1, 2], numbers, [1.5, 2.5, 3.5])
    assert columns.time_us == [HELD_US, HELD_US, HELD_US + 1_000_000]
    assert columns.quality == [Quality.GOOD] * 3
    assert columns.reason == [Reason.NONE] * 3
    assert columns.time_source == [TimeSource.NETWORK] * 3
    assert columns.time_state == [TimeState.SURE] * 3
    assert columns.last == Columns(2).last


async def test_what_is_gathered_goes_to_the_card_after_a_while_from_the_first_on(card: Card) -> None:
    aside = card.aside()
    await aside.write(at_once=True)
    for turn in range(2):
        aside.put(card.update("air-1", turn), "503", 1.0, offered=True)
        card.clock.advance(6.0)
        aside.put(card.update("air-1", turn), "503", 1.0, offered=True)
        card.clock.advance(3.5)
        await aside.write()
        assert len(card.held_.table) == turn
        card.clock.advance(0.5)
        await aside.write()
        assert len(card.held_.table) == turn + 1
        await aside.write(at_once=True)
        assert len(card.held_.table) == turn + 1
        card.clock.advance(100.0)


async def test_many_go_to_the_card_at_once(card: Card) -> None:
    aside, update = card.aside(), card.update("air-1")
    for turn in range(2):
        for _ in range(GATHER_SETS - 1):
            aside.put(update, "503", 1.0, offered=True)
        await aside.write()
        assert len(card.held_.table) == turn
        aside.put(update, "503", 1.0, offered=True)
        await aside.write()
        assert len(card.held_.table) == turn + 1


async def test_what_waits_behind_a_piece_that_was_no_try_yet_becomes_part_of_it_and_more_seldom(card: Card) -> None:
    """A context that is away for days would fill the table with pieces of one reading."""
    piece = await card.keeps(card.update("air-1", 0), "its context is missing", tries=0)
    await card.keeps(card.update("air-2", 0), "503", tries=1)
    aside = card.aside()
    for device, reason in (("air-1", BEHIND), ("air-1", BEHIND), ("air-1", "its context is missing")):
        aside.put(card.update(device, 1), reason, 1.0)
        card.clock.advance(19.9)
        await aside.write()
        assert card.held_.table[piece][0].readings == 1
    card.clock.advance(10.0)
    await aside.write()
    assert card.held_.table[piece][0].readings == 4
    assert aside.empty
    for reason, joins in (("waits for no2", False), (FUTURE, False), (BEHIND, True)):
        before = len(card.held_.table)
        aside.put(card.update("air-1", 2), reason, 1.0)
        await aside.write(at_once=True)
        assert (len(card.held_.table) == before) is joins
    assert [held.readings for held, _ in card.held_.table.values() if held.reason == FUTURE] == [1]
    aside.put(card.update("air-1", 2), "400", None, offered=True)
    aside.put(card.update("air-2", 2), BEHIND, 1.0)  # that one was a try: newer ones are to have all of theirs
    aside.put(card.update("air-1", 3), BEHIND, 1.0)  # which joins
    card.clock.advance(10.1)
    await aside.write()
    assert sorted(held.readings for held, _ in card.held_.table.values()) == [1, 1, 1, 1, 3, 4]


async def test_nothing_joins_a_piece_that_is_tried_just_now(card: Card) -> None:
    await card.keeps(card.update("air-1", 0), BEHIND, tries=0)
    aside = card.aside()
    [tried] = await aside.retry(card.of.feeds)
    aside.put(card.update("air-1", 1), BEHIND, BEHIND_S)
    await aside.write(at_once=True)
    aside.rests(tried)
    aside.put(card.update("air-1", 2), BEHIND, BEHIND_S)
    await aside.write(at_once=True)
    assert [held.readings for held, _ in card.held_.table.values()] == [1, 2]


async def test_nothing_joins_a_piece_that_is_to_be_seen_in_the_history(card: Card) -> None:
    await card.keeps(card.update("air-1", 0), BEHIND, tries=0)
    aside = card.aside()
    [tried] = await aside.retry(card.of.feeds)
    aside.rests(tried)
    aside._tried.clear()
    aside.put(card.update("air-1", 1), BEHIND, BEHIND_S)
    await aside.write(at_once=True)
    assert [held.readings for held, _ in card.held_.table.values()] == [1, 1]


async def test_a_card_that_refuses_gets_the_rest_once(card: Card) -> None:
    aside = card.aside()
    for device in ("air-1", "air-2"):
        aside.put(card.update(device), "503", 1.0)
    hold, calls = card.held_.hold, []

    async def refuses(broker: str, entity: str, *args: Any, **kw: Any) -> int:
        calls.append(entity)
        if len(calls) == 2:
            raise LogError("database or disk is full")
        return await hold(broker, entity, *args, **kw)

    card.held_.hold = refuses  # type: ignore[method-assign]
    with pytest.raises(LogError):
        await aside.write(at_once=True)
    assert not aside.empty
    card.clock.advance(card.every_s)
    await aside.write()
    assert calls == [A, B, B]
    assert aside.empty


# tried again


async def again(card: Card, aside: Aside, updates: int = 1) -> list[Update]:
    found = await aside.retry(card.of.feeds)
    assert len(found) == updates
    return found


@pytest.mark.parametrize(
    ("tries", "wait_s", "offered", "row"),
    [
        (1, 30.0, True, ("413", 120.0, 2)),
        (2, 30.0, True, ("413", 600.0, 3)),
        (3, 30.0, True, ("413", 3600.0, 4)),
        (9, 30.0, True, ("413", 3600.0, 10)),
        (1, 7200.0, True, ("413", 7200.0, 2)),
        (TRIES - 1, 30.0, True, ("413", 3600.0, TRIES)),
        (TRIES, 30.0, True, ("413", None, TRIES + 1)),
        (TRIES, 30.0, False, ("413", 30.0, TRIES)),
        (1, 5.0, False, ("413", 5.0, 1)),
        (1, 1.0, False, ("413", 1.0, 1)),
        (1, 0.0, False, ("413", 0.0, 1)),
        (1, None, True, ("413", None, 2)),
        (1, None, False, ("413", None, 1)),
    ],
)
async def test_waits_grow_with_what_the_broker_itself_put_off_until_it_is_enough(
    card: Card, tries: int, wait_s: float | None, offered: bool, row: tuple[str, float | None, int]
) -> None:
    number = await card.keeps(card.update("air-1"))
    piece, columns = card.held_.table[number]
    card.held_.table[number] = (replace(piece, tries=tries), columns)
    aside = card.aside()
    [update] = await again(card, aside)
    aside.put(update, "413", wait_s, offered=offered)
    assert aside.empty  # the piece is there already
    card.clock.advance(1.0)
    await aside.write()
    assert card.row(number) == row
    assert card.held_.table[number][0].readings == 1
    await again(card, aside, int(row[1] == 0.0))


async def test_the_verdict_on_a_piece_is_the_worst_on_its_updates_and_comes_with_the_last(card: Card) -> None:
    dead, put_off, fine = (card.update(device, 0, no2=1.0) for device in AIR[:3])
    numbers = []
    for update in (dead, put_off, fine):
        columns = _columns(update)
        more = _columns(update)
        for name in ("series", "value", "quality", "reason", "time_source", "time_state"):
            getattr(columns, name).extend([*getattr(more, name)] * 2)
        columns.seq.extend([2, 3])
        columns.time_us.extend([HELD_US + 1, HELD_US + 2])
        numbers.append(
            await card.held_.hold(
                "city", update.entity_id, update.feed.device, columns, reason="503", at=START, next_try_at=START
            )
        )
    aside = card.aside()
    updates = await again(card, aside, 9)
    assert [(update.held, update.seq) for update in updates] == [(n, 0) for n in numbers for _ in range(3)]
    one, two, three = updates[:3]
    aside.put(one, "no such type", None, offered=True)
    aside.put(two, "busy", 40.0)
    four, five, six = updates[3:6]
    aside.put(four, "busy", 700.0, offered=True)
    aside.done(five)
    for update in updates[6:]:
        await aside.write()
        assert card.row(numbers[2]) == ("503", 0.0, 1)
        aside.done(update)
    await aside.write()
    assert [n in card.held_.table for n in numbers] == [True, True, False]
    assert [card.row(n) for n in numbers[:2]] == [("503", 0.0, 1)] * 2  # not yet
    aside.done(three)
    aside.put(six, "waits", 1.0)
    await aside.write()
    assert [card.row(n) for n in numbers[:2]] == [("busy", None, 2), ("waits", 700.0, 2)]
    assert not aside.waiting(A)
    assert aside.waiting(B)
    assert not aside.waiting(C)


async def test_a_piece_that_was_purged_or_is_not_known_has_no_verdict(card: Card) -> None:
    number = await card.keeps(card.update("air-1"))
    aside = card.aside()
    [update] = await again(card, aside)
    card.held_.table.clear()
    other = await card.keeps(card.update("air-1"), broker="other")
    assert other == number
    aside.done(update)
    await aside.write()
    assert card.row(number) == ("503", 0.0, 1)
    aside.done(update)
    aside.put(update, "413", 1.0)
    await aside.write()
    assert aside.empty


async def test_an_update_of_no_piece_that_is_done_changes_none(card: Card) -> None:
    number = await card.keeps(card.update("air-1"))
    aside = card.aside()
    [update] = await again(card, aside)
    aside.done(card.update("air-1"))
    await aside.write()
    assert number in card.held_.table
    aside.done(update)
    await aside.write()
    assert number not in card.held_.table


async def test_dead_letters_of_a_reason_that_holds_no_longer_are_tried_again(card: Card) -> None:
    late = await card.keeps(card.update("air-1"), "late", in_s=None)
    no = await card.keeps(card.update("air-2"), "no", in_s=None)
    put_off = await card.keeps(card.update("air-3"), "late", in_s=60.0)
    other = await card.keeps(card.update("air-4"), "late", in_s=None, broker="other")
    aside = card.aside()
    await aside.again("late")
    assert [card.row(n)[1] for n in (late, no, put_off, other)] == [0.0, None, 60.0, None]
    assert aside.waiting(A)
    assert [update.held for update in await again(card, aside)] == [late]


async def test_the_oldest_piece_of_each_entity_is_tried_when_its_time_has_come(card: Card) -> None:
    first = await card.keeps(card.update("air-1"), in_s=5.0)
    await card.keeps(card.update("air-1", 1), in_s=0.0)
    await card.keeps(card.update("air-2"), in_s=None)
    third = await card.keeps(card.update("air-2", 1), in_s=1.0)
    ahead = await card.keeps(card.update("air-1", 1), FUTURE, in_s=2.0)
    await card.keeps(card.update("air-3"), broker="other")
    before = await card.keeps(card.update("air-4"), "its time lies in the future", in_s=86_400.0)
    aside = card.aside()
    assert [update.held for update in await again(card, aside, 1)] == [before]
    card.clock.advance(1.0)
    assert [update.held for update in await again(card, aside, 1)] == [third]
    card.clock.advance(1.0)
    assert [update.held for update in await again(card, aside, 1)] == [ahead]
    card.clock.advance(3.0)
    assert [update.held for update in await again(card, aside, 1)] == [first]


async def test_what_only_kept_its_order_goes_on_when_nothing_older_waits_and_never_sees_the_card(card: Card) -> None:
    piece = await card.keeps(card.update("air-1", 0))
    await card.keeps(card.update("air-2", 0), in_s=60.0)
    aside, wrote = card.aside(), len(card.held_.table)
    behind = [card.update("air-1", 1), card.update("air-1", 2)]
    for update in (*behind, card.update("air-2", 3)):
        aside.put(update, BEHIND, BEHIND_S)
    aside.put(card.update("air-1", 4), FUTURE, 50.0)
    aside.put(card.update("air-1", 5), "400", None, offered=True)
    [tried] = await aside.retry(card.of.feeds)
    assert tried.held == piece
    aside.done(tried)
    await aside.write()
    assert await aside.retry(card.of.feeds) == behind
    assert await aside.retry(card.of.feeds) == []
    assert [aside.waiting(entity) for entity in (A, B)] == [False, True]
    assert len(card.held_.table) == wrote - 1  # nothing was written, and the piece went
    await aside.write(at_once=True)
    assert len(card.held_.table) == wrote - 1 + 3  # of the second, the dead letter, and the one ahead of the clock


async def test_what_waits_for_something_else_too_does_not_go_on_with_those_behind_it(card: Card) -> None:
    aside = card.aside()
    aside.put(card.update("air-1", 1), "503", 30.0, offered=True)
    aside.put(card.update("air-1", 2), BEHIND, BEHIND_S)
    for n in range(GATHER_SETS - 2):
        aside.put(card.update("air-2", n), BEHIND, BEHIND_S)
    assert {update.entity_id for update in await aside.retry(card.of.feeds)} == {B}
    assert [aside.waiting(entity) for entity in (A, B)] == [True, False]
    assert not aside.empty
    card.clock.advance(9.9)
    await aside.write()
    assert card.held_.table == {}
    card.clock.advance(0.2)
    await aside.write()  # they are gathered since the first
    assert aside.empty


async def test_what_a_lane_that_ends_had_set_aside_is_read_again_and_held_once(card: Card) -> None:
    await card.keeps(card.update("air-1", 0))
    aside = card.aside()
    [piece] = await aside.retry(card.of.feeds)
    for update in (card.update("air-2", 1), card.update("air-3", 1)):
        aside.put(update, FUTURE, 50.0)
    left = card.update("air-3", 2)
    left.seq = 0  # of a piece, a part of which was late: the log does not have it any more
    aside.put(left, "late", None)
    await aside.let_go()
    assert [update.held for update in await aside.retry(card.of.feeds)] == [piece.held]
    assert [aside.waiting(entity) for entity in (A, B, C)] == [True, False, False]
    assert not aside.empty
    await aside.write(at_once=True)
    assert [held.reason for held, _ in card.held_.table.values()] == ["503", "late"]


async def test_what_cannot_be_tried_yet_or_ever_is_told_and_is_no_try() -> None:
    no = replace(slot("no2"), convert=lambda raw: None)
    card = Card(
        mappings={
            "air-1": (table("air-1"),),
            "air-2": (table("air-2", mandatory=frozenset({"pm25"})),),
            "air-3": (replace(table("air-3"), slots={"no2": (no,)}),),
        }
    )
    ahead = await card.keeps(card.update("air-1", AHEAD_US / 1e6 + 1), FUTURE)
    lacks = await card.keeps(card.update("air-2"))
    takes_none = await card.keeps(card.update("air-3"))
    gone = await card.held_.hold("city", D, "air-4", Columns(1), reason="503", at=START, next_try_at=START)
    aside = card.aside()
    await again(card, aside, 0)
    await again(card, aside, 0)
    card.clock.advance(0.5)
    await aside.write()
    assert card.row(ahead) == (FUTURE, FUTURE_AGAIN_S, 1)
    assert card.row(lacks) == ("waits for mandatory attributes", INCOMPLETE_S, 1)
    assert card.row(takes_none) == ("the mapping takes none of it", None, 1)
    assert card.row(gone) == ("no longer sent to this broker", None, 1)
