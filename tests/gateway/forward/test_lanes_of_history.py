"""The two lanes of history, step by step: what they read, leave out, ask about, send and count. Pure, with a broker by script."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from gateway.forward.aside import BEHIND, INCOMPLETE_S
from gateway.forward.broker import InDoubt, Outcome, ReadRefused, observed
from gateway.forward.feeds import Feeds
from gateway.forward.history_lane import LATE, InOrderLane, PastLane
from gateway.forward.pace import UPDATES_A_REQUEST
from gateway.forward.recording import Recording
from gateway.forward.settings import ForwardSettings
from gateway.forward.updates import Feed, Mark, Update
from gateway.forward.verdicts import Taken
from gateway.forward.verify import Unseen
from gateway.log.segment import Columns, TimeState
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.reading import Quality, Reason, TimeSource
from tests.gateway.forward.scene import START, slot, table, tables
from tests.gateway.forward.test_verdicts import AIR, A, B, C, Scene, accepted, later, refused, waiting

NEVER: Callable[[Feed, int, int], bool] = lambda *_: False  # noqa: E731  # nothing is the state lane's


@pytest.fixture
def scene() -> Scene:
    return Scene(*AIR)


def with_a_flag() -> Scene:
    """`flag` is no attribute of its own: it goes along."""
    mapping = table("air-1", "no2", "pm25")
    return Scene(mappings={"air-1": (replace(mapping, slots={**mapping.slots, "flag": ()}),)})


def where_none_is_allowed() -> Scene:
    mapping = table("air-1", "no2")
    no = replace(slot("no2"), convert=lambda raw: None)
    return Scene(mappings={"air-1": (replace(mapping, slots={"no2": (no,)}),)})


def series_of(scene: Scene, device: str, point: str) -> int:
    return next(s.id for s in scene.log.series.values() if (s.device, s.point) == (device, point))


def at(at_s: float, *keys: str) -> dict[str, datetime]:
    """What a broker holds of an entity."""
    return dict.fromkeys([*keys, "dateObserved"], START + timedelta(seconds=at_s))


def us(at_s: float) -> int:
    return round((START + timedelta(seconds=at_s)).timestamp() * 1e6)


async def through(lane: InOrderLane | PastLane) -> None:
    while await lane.fill():
        while not lane.idle:
            await lane.send()


# in order


async def test_in_order_what_is_read_goes_oldest_first_and_is_settled(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    assert (lane.idle, lane.waiting_readings) == (True, 0)
    assert lane.position is None
    for at_s, device in ((2, "air-1"), (1, "air-1"), (1, "air-2")):
        scene.log.put(device, at_s, no2=at_s, pm25=0)
    assert await lane.fill()
    assert (lane.idle, lane.waiting_readings) == (False, 6)
    assert lane.position == scene.log.rows[-1][0]
    await lane.send()
    assert lane.waiting_readings == 2
    assert not scene.log.settled
    await lane.send()
    assert scene.broker.values() == [("state", "air-1", 1), ("state", "air-2", 1), ("state", "air-1", 2)]
    assert (scene.log.settled, lane.idle, lane.counts.accepted) == (True, True, 3)
    assert lane.position is None
    assert not await lane.fill()
    assert scene.broker.asked == [[A, B]]  # once
    assert await lane.send() == Outcome()
    assert len(scene.broker.sent) == 2


async def test_in_order_what_is_put_aside_or_not_allowed_is_settled_without_a_request(scene: Scene) -> None:
    for of in (scene, where_none_is_allowed()):
        lane = InOrderLane(of.of)
        of.log.put("air-1" if of is not scene else "other", 0, no2=1)
        assert await lane.fill()
        assert (of.log.settled, lane.idle) == (True, True)
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 1e6, no2=1)
    assert await lane.fill()
    assert lane.idle
    assert len(scene.log.held.pieces()) == 1


async def test_in_order_a_time_that_is_not_confirmed_is_waited_for(scene: Scene) -> None:
    read = scene.log.read

    async def unconfirmed(*args: Any, **kw: Any) -> Any:
        columns = await read(*args, **kw)
        if columns is not None:
            columns.time_state[-1] = TimeState.UNCONFIRMED
        return columns

    scene.log.read = unconfirmed  # type: ignore[method-assign]
    lane = InOrderLane(scene.of, ahead=True)
    scene.log.put("air-1", 0, no2=1)
    scene.log.put("air-1", 1, no2=2)
    assert await lane.fill()
    await lane.send()
    assert lane.idle
    assert scene.broker.values() == [("state", "air-1", 1)]
    assert not await lane.fill()
    assert lane.ahead  # that is not the tail


@pytest.mark.parametrize("remember", [True, False])
async def test_in_order_the_state_counts_as_ahead_until_the_tail(scene: Scene, remember: bool) -> None:
    lane = InOrderLane(scene.of, remember=remember, ahead=True)
    scene.of.sent.note(A, 99, 1)
    scene.log.put("air-1", 0, no2=1)
    assert await lane.fill()
    assert not await lane.fill()
    assert lane.ahead  # something still waits
    assert scene.of.sent.take(A, 99, 1)
    scene.of.sent.note(A, 99, 1)
    await lane.send()
    assert lane.ahead
    assert not await lane.fill()
    assert not lane.ahead
    assert (scene.of.sent.take(A, 99, 1) is not None) is remember
    assert (scene.of.sent.take(A, series_of(scene, "air-1", "no2"), us(0)) is not None) is remember
    scene.of.sent.note(A, 99, 2)
    lane.caught_up()
    assert scene.of.sent.take(A, 99, 2)  # it was not ahead any more
    assert not InOrderLane(scene.of).ahead


async def test_in_order_what_was_sent_is_remembered_while_another_lane_may_follow(scene: Scene) -> None:
    lane = InOrderLane(scene.of, remember=True, ahead=True)
    scene.log.put("air-1", 0, no2=1, pm25=2)
    await through(lane)
    for point in ("no2", "pm25"):
        assert scene.of.sent.take(A, series_of(scene, "air-1", point), us(0))
    scene.log.put("air-1", 1, no2=1)
    await through(lane)
    lane.forget()
    assert not scene.of.sent.take(A, series_of(scene, "air-1", "no2"), us(1))
    scene.log.put("air-1", 2, no2=1)
    await through(lane)
    assert not scene.of.sent.take(A, series_of(scene, "air-1", "no2"), us(2))


@pytest.mark.parametrize(
    ("most", "skip", "goes"), [(1, 0, "0"), (1, 1, "1"), (1, 5, "2"), (2, 2, "20"), (9, 1, "120"), (None, 1, "012")]
)
async def test_in_order_a_probe_tries_them_in_turn(scene: Scene, most: int | None, skip: int, goes: str) -> None:
    lane = InOrderLane(scene.of)
    for n, device in enumerate(AIR[:3]):
        scene.log.put(device, 0, no2=n)
    await lane.fill()
    await lane.send(most, skip=skip)
    assert "".join(str(value) for _, _, value in scene.broker.values()) == goes


async def test_in_order_a_refusal_moves_no_entity(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    for n in range(2):
        for device in AIR[:2]:
            scene.log.put(device, n, no2=n)
    await lane.fill()
    scene.broker.answers = [refused(A)]
    await lane.send(1)
    await lane.send()
    assert [entity.id for entity in scene.broker.sent[-1][1]] == [A, B]


async def test_in_order_a_probe_begins_with_the_first(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    for n, device in enumerate(AIR[:3]):
        scene.log.put(device, 0, no2=n)
    await lane.fill()
    await lane.send(1)
    assert [value for _, _, value in scene.broker.values()] == [0]


async def test_in_order_what_is_in_doubt_is_asked_about_and_only_that(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    for device in AIR[:2]:
        scene.log.put(device, 0, no2=1)
        scene.log.put(device, 1, no2=2)
    await lane.fill()
    fault = InDoubt("reset")
    scene.broker.answers = [Outcome(frozenset({A}), later={B: "reset"}, doubtful=frozenset({B}), fault=fault)]
    await lane.send()
    scene.broker.holds = {B: at(0, "no2")}
    await lane.send()
    assert scene.broker.asked == [[A, B], [B]]
    assert scene.broker.values()[2:] == [("state", "air-1", 2), ("state", "air-2", 2)]
    assert (lane.counts.known, lane.counts.accepted, lane.counts.late) == (1, 3, 0)
    assert scene.log.settled


async def test_in_order_where_nobody_may_read_all_is_sent_once(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 0, no2=1)
    scene.log.put("air-1", 1, no2=2)
    scene.broker.fault = ReadRefused("403")
    await through(lane)
    assert [value for _, _, value in scene.broker.values()] == [1, 2]
    assert scene.broker.asked == [[A]]


async def test_in_order_where_reading_fails_nothing_is_sent(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 0, no2=1)
    await lane.fill()
    scene.broker.fault = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await lane.send()
    assert (scene.broker.sent, lane.idle) == ([], False)


async def test_in_order_what_an_earlier_run_sent_is_known_and_not_late(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    for n in range(3):
        scene.log.put("air-1", n, no2=n, pm25=n)
    scene.log.put("air-2", 0, no2=7)
    scene.broker.holds = {A: {**at(1, "no2"), **at(0, "pm25")}, B: at(0, "no2")}
    await through(lane)
    assert scene.broker.values() == [("state", "air-1", 2)]
    assert scene.broker.values("pm25") == [("state", "air-1", 1), ("state", "air-1", 2)]
    assert (lane.counts.known, lane.counts.late) == (3, 0)  # once an update, in part or whole
    assert (scene.log.settled, scene.log.held.pieces()) == (True, [])


async def test_in_order_what_comes_late_in_this_run_is_told(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 10, no2=1, pm25=1)
    await through(lane)
    scene.log.put("air-1", 5, no2=2, pm25=2)
    scene.log.put("air-1", 10, no2=1)  # again: the broker has it
    scene.log.put("air-1", 11, no2=3)
    await through(lane)
    assert [value for _, _, value in scene.broker.values()] == [1, 3]
    assert (lane.counts.late, lane.counts.known) == (1, 1)
    [(piece, columns)] = scene.log.held.table.values()
    assert (piece.reason, piece.next_try_at, columns.value) == (LATE, None, [2, 2])


async def test_in_order_of_what_is_late_in_part_the_rest_goes(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 10, no2=1)
    await through(lane)
    scene.log.put("air-1", 5, no2=2, pm25=3)
    await lane.fill()
    scene.broker.answers = [later(A)]
    await lane.send()
    assert lane.waiting_readings == 1  # no2 is judged
    await lane.send()
    assert scene.broker.values("pm25") == [("state", "air-1", 3)] * 2
    assert scene.broker.sent[-1][1][0].attributes.keys() == {"pm25"}
    [(piece, columns)] = scene.log.held.table.values()
    assert (piece.reason, columns.value, lane.counts.late) == (LATE, [2], 1)


async def test_in_order_two_updates_of_one_set_are_no_late_ones(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 10, no2=1)
    scene.log.put("air-1", 5, no2=2)
    scene.log.rows = [(scene.log.rows[0][0], *row[1:]) for row in scene.log.rows]
    await through(lane)
    assert [value for _, _, value in scene.broker.values()] == [2, 1]
    [update] = [scene.update("air-1", 7)]
    update.seq = scene.log.rows[0][0]
    await lane.put_first([update])
    await lane.send()
    assert (lane.counts.late, lane.counts.known) == (0, 1)


@pytest.mark.parametrize(("ahead", "late"), [(True, 1), (False, 0)])
async def test_in_order_older_than_the_state_is_late_only_while_the_state_is_ahead(
    scene: Scene, ahead: bool, late: int
) -> None:
    lane = InOrderLane(scene.of, ahead=ahead)
    scene.log.put("air-1", 5, no2=2)
    scene.log.put("air-1", 6, no2=2)
    scene.broker.holds = {A: at(6, "no2")}
    await through(lane)
    assert (lane.counts.late, lane.counts.known) == (late, 2 - late)


async def test_in_order_older_than_the_state_is_late_also_when_the_tail_was_read_before_it_went(scene: Scene) -> None:
    lane = InOrderLane(scene.of, ahead=True)
    scene.broker.holds = {A: at(6, "no2")}
    scene.log.put("air-1", 5, no2=2)
    assert await lane.fill()
    assert not await lane.fill()  # as a probe of the config does
    await lane.send()
    assert (lane.counts.late, scene.broker.sent) == (1, [])
    assert [piece.reason for piece in await scene.held()] == [LATE]


async def test_in_order_what_the_state_lane_sent_is_known_although_it_is_older_by_now(scene: Scene) -> None:
    lane = InOrderLane(scene.of, ahead=True)
    scene.log.put("air-1", 5, no2=2)
    scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(5))
    scene.of.accepted.note(A, at(6, "no2"))
    await through(lane)
    assert (lane.counts.late, lane.counts.known, scene.broker.sent) == (0, 1, [])


async def test_in_order_a_held_piece_that_was_overtaken_is_told_whole_or_in_part(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    whole, part = (
        await scene.piece(scene.update("air-1", 5)),
        await scene.piece(scene.update("air-2", 5, no2=1, pm25=2)),
    )
    assert (whole.seq, part.seq) == (0, 0)
    scene.of.accepted.note(A, at(6, "no2"))
    scene.of.accepted.note(B, at(6, "no2"))
    await lane.put_first([whole, part])
    await lane.send()
    assert scene.broker.values("pm25") == [("state", "air-2", 2)]
    assert lane.counts.late == 2
    pieces = [(piece.entity, piece.reason, piece.next_try_at, piece.readings) for piece in await scene.held()]
    assert sorted(pieces) == [
        (A, LATE, None, 1),
        (B, LATE, None, 1),
    ]  # the second is another: the rest of the old one went
    assert whole.held in scene.log.held.table


async def test_in_order_a_held_piece_that_the_broker_has_is_let_go(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    piece = await scene.piece(scene.update("air-1", 5))
    scene.of.accepted.note(A, at(5, "no2"))
    await lane.put_first([piece])
    await lane.send()
    assert (lane.counts.late, lane.counts.known, await scene.held()) == (0, 1, [])


async def test_in_order_a_held_piece_of_which_the_broker_has_a_part_waits_for_the_verdict_on_the_rest(
    scene: Scene,
) -> None:
    lane = InOrderLane(scene.of)
    piece = await scene.piece(scene.update("air-1", 5, no2=1, pm25=2))
    scene.of.accepted.note(A, at(5, "no2"))
    await lane.put_first([piece])
    scene.broker.answers = [refused(A)]
    await lane.send()
    assert scene.broker.values("pm25") == [("state", "air-1", 2)]
    await scene.of.aside.write()  # the verdict is open: whether the config is at fault
    assert scene.log.held.table[piece.held][0].tries == 1
    scene.log.put("air-2", 6, no2=3)
    await through(lane)
    await scene.held()
    dead, _ = scene.log.held.table[piece.held]
    assert (dead.reason, dead.next_try_at, dead.tries) == ("no", None, 2)


async def test_in_order_held_ones_go_in_order_of_time_among_what_waits(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 5, no2=5)
    await lane.fill()
    await lane.put_first([scene.update("air-1", 7, no2=7), scene.update("air-1", 3, no2=3)])
    while not lane.idle:
        await lane.send()
    assert [value for _, _, value in scene.broker.values()] == [3, 5, 7]


async def test_in_order_what_only_goes_along_is_neither_late_nor_lost() -> None:
    scene = with_a_flag()
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 10, no2=1)
    await through(lane)
    scene.log.put("air-1", 5, no2=2, pm25=1, flag=7)
    await lane.fill()
    scene.broker.answers = [later(A)]
    await lane.send()
    assert lane.waiting_readings == 2
    await scene.held()
    [(_, columns)] = scene.log.held.table.values()
    assert columns.value == [2]


async def test_in_order_goes_on_with_what_a_lane_of_the_past_had_read(scene: Scene) -> None:
    past = PastLane(scene.of, NEVER, recording=Recording(False))
    scene.log.put("air-1", 2, no2=2)
    scene.log.put("air-1", 1, no2=1)
    await past.fill()
    lane = InOrderLane(scene.of)
    lane.take_over(past)
    assert lane.position == past.position
    await through_waiting(lane)
    assert scene.broker.values() == [("state", "air-1", 1), ("state", "air-1", 2)]
    assert scene.log.settled


async def through_waiting(lane: InOrderLane | PastLane) -> None:
    while not lane.idle:
        await lane.send()


async def test_in_order_settles_what_was_gathered_when_asked(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.of.aside.put(scene.update("air-1"), "503", 1.0)
    await lane.settle()
    assert len(scene.log.held.pieces()) == 1


# the past


def past(
    scene: Scene, pending: Callable[[Feed, int, int], bool] = NEVER, *, records: bool = True, **kw: Any
) -> PastLane:
    return PastLane(scene.of, pending, **{"recording": Recording(records), **kw})


async def test_the_past_goes_entity_by_entity_without_what_is_static(scene: Scene) -> None:
    lane = past(scene)
    assert (lane.idle, await lane.fill()) == (True, False)
    for n in range(3):
        scene.log.put("air-1", n, no2=n)
    scene.log.put("air-2", 0, no2=9)
    assert await lane.fill()
    assert lane.position == scene.log.rows[-1][0]
    assert not lane.idle
    await lane.send()
    assert not scene.log.settled
    await lane.send()
    assert [(way, [e.id for e in entities]) for way, entities in scene.broker.sent] == [
        ("past", [A] * 3),
        ("past", [B]),
    ]
    assert scene.broker.sent[0][1][0].attributes.keys() == {"no2"}
    assert (scene.log.settled, lane.idle, lane.counts.accepted) == (True, True, 4)
    assert lane.position is None
    assert scene.broker.asked == []


async def test_the_past_reads_on_while_something_is_only_gathered_and_settles_what_tells_nothing() -> None:
    scene = Scene(*AIR, every_s=10.0)
    lane = past(scene)
    scene.of.aside.put(scene.update("air-2", 0), "503", 1.0)
    scene.log.rows.clear()
    scene.log.put("air-1", 0, no2=1)
    await through(lane)
    assert lane.position == scene.log.rows[-1][0]
    scene.log.put("air-1", 1, no2=2)
    await through(lane)
    assert [value for _, _, value in scene.broker.values()] == [1, 2]
    scene.clock.advance(10.0)
    scene.log.put("air-1", 2, no2=None)
    assert await lane.fill()
    assert scene.log.settled
    scene.log.put("air-1", 3, no2=None)
    assert await lane.fill()
    assert scene.log.settled


async def test_the_past_carries_so_many_updates_a_request(scene: Scene) -> None:
    lane = past(scene)
    for n in range(UPDATES_A_REQUEST + 2):
        scene.log.put("air-1", n, no2=n)
    await through(lane)
    assert [len(entities) for _, entities in scene.broker.sent] == [100, 2]


async def test_the_past_stops_before_what_is_still_the_state_lanes(scene: Scene) -> None:
    hold = {us(1)}
    asked: list[tuple[str, int]] = []

    def pending(feed: Feed, number: int, time_us: int) -> bool:
        asked.append((feed.entity_id, number))
        return time_us in hold

    lane = past(scene, pending)
    seqs = []
    for n in range(3):
        scene.log.put("air-1", n, no2=n)
        seqs.append(scene.log.rows[-1][0])
    assert await lane.fill()
    assert lane.position == seqs[0]
    await through_waiting(lane)
    assert scene.log.cursor == seqs[0]
    assert not await lane.fill()  # nothing new
    assert lane.position is None
    assert asked[0] == (A, series_of(scene, "air-1", "no2"))
    hold.clear()
    await through(lane)
    assert [value for _, _, value in scene.broker.values()] == [0, 1, 2]
    assert scene.log.settled


async def test_a_set_stays_whole_when_one_of_its_updates_is_the_state_lanes() -> None:
    two = Scene(mappings={"air-1": (table("air-1", "no2"), table("air-1", "pm25", entity="urn:x:2"))})
    for held_up in ("no2", "pm25"):
        lane = PastLane(two.of, lambda feed, *_, held_up=held_up: held_up in feed.keys, recording=Recording(True))
        two.log.put("air-1", 0, no2=1, pm25=2)
        assert not await lane.fill()
        assert lane.idle


async def test_without_a_record_of_what_is_current_the_past_waits_for_nobody(scene: Scene) -> None:
    lane = past(scene, lambda *_: True, records=False)
    scene.log.put("air-1", 0, no2=1)
    assert await lane.fill()
    assert not lane.idle


async def test_who_lacks_something_and_what_only_goes_along_is_no_reason_to_wait() -> None:
    scene = with_a_flag()
    lane = past(scene, lambda feed, number, _: number == series_of(scene, "air-1", "flag"))
    scene.log.put("air-1", 0, no2=1, flag=7)
    assert await lane.fill()
    lacks = Scene(mappings={"air-1": (table("air-1", mandatory=frozenset({"pm25"})),)})
    lane = past(lacks, lambda *_: True)
    lacks.log.put("air-1", 0, no2=1)
    assert await lane.fill()
    assert lacks.log.settled
    assert len(lacks.log.held.pieces()) == 1


async def test_what_the_state_lane_sent_is_no_past_where_the_broker_records_by_itself() -> None:
    for records, left in ((True, [2]), (False, [1, 2])):
        scene = with_a_flag()
        lane = past(scene, records=records)
        scene.log.put("air-1", 0, no2=1, flag=7)
        scene.log.put("air-1", 1, no2=2, flag=8)
        number = series_of(scene, "air-1", "no2")
        scene.of.sent.note(A, number, us(0))
        await through(lane)
        assert [value for _, _, value in scene.broker.values()] == left
        assert not scene.of.sent.take(A, number, us(0))
        assert scene.log.settled


async def test_of_a_set_that_went_ahead_in_part_the_rest_is_past_with_what_goes_along() -> None:
    scene = with_a_flag()
    lane = past(scene)
    scene.log.put("air-1", 0, no2=1, pm25=2, flag=7)
    scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(0))
    await lane.fill()
    scene.broker.answers = [later(A)]
    await lane.send()
    in_order = InOrderLane(scene.of)
    in_order.take_over(lane)
    assert in_order.waiting_readings == 2
    assert scene.broker.values("pm25") == [("past", "air-1", 2)]
    assert scene.broker.values() == []


async def test_what_the_model_does_not_allow_is_no_past() -> None:
    scene = where_none_is_allowed()
    lane = past(scene)
    scene.log.put("air-1", 0, no2=1)
    assert await lane.fill()
    assert (lane.idle, scene.log.settled) == (True, True)


async def test_latest_only_counts_what_it_skips_and_asks_nobody(scene: Scene) -> None:
    lane = past(scene, temporal=False)
    for n in range(3):
        scene.log.put("air-1", n, no2=n)
    await lane.fill()
    assert await lane.send() == Outcome()
    assert (lane.counts.skipped, scene.broker.sent, scene.broker.asked) == (3, [], [])
    assert scene.log.settled
    scene.log.put("air-1", 3, no2=n)
    await lane.fill()
    await lane.send()
    assert lane.counts.skipped == 4


async def test_a_bad_one_among_many_is_searched_for_by_halves_and_then_all_go_together_again(scene: Scene) -> None:
    lane = past(scene)
    for n in range(5):
        scene.log.put("air-1", n, no2=n)
    scene.log.put("air-2", 0, no2=9)
    await lane.fill()
    scene.broker.answers = [refused(A), refused(A), refused(A), accepted(B), accepted(A)]
    sizes = []
    while not lane.idle:
        await lane.send()
        sizes.append(len(scene.broker.sent[-1][1]))
    # the first alone is refused, another entity shows that it is this one, the rest goes one by one, then together
    assert sizes == [5, 2, 1, 1, 1, 3]
    assert (lane.counts.refused, lane.counts.accepted) == (1, 5)
    [(piece, columns)] = scene.log.held.table.values()
    assert (piece.next_try_at, columns.value) == (None, [0])
    assert scene.log.settled


async def test_while_the_broker_fails_the_past_stays_and_what_is_in_doubt_is_asked_about(scene: Scene) -> None:
    lane = past(scene)
    scene.log.put("air-1", 0, no2=0, pm25=5)
    scene.log.put("air-1", 1, no2=1)
    await lane.fill()
    assert not lane.of_earlier_run
    fault = InDoubt("reset")
    scene.broker.answers = [Outcome(later={A: "reset"}, doubtful=frozenset({A}), fault=fault)]
    assert (await lane.send()).fault is fault
    assert (lane.idle, lane.counts.accepted, scene.of.streak.begun) == (False, 0, False)
    assert lane.of_earlier_run  # it is in doubt
    scene.broker.fault = ReadRefused("403")
    scene.broker.answers = [Outcome(later={A: "away"}, fault=BrokerUnavailable("away"))]
    await lane.send()
    assert lane.of_earlier_run  # nobody answered that
    scene.broker.fault = None
    scene.broker.points = frozenset({(A, "no2", START), (A, "no2", START + timedelta(seconds=1))})
    await lane.send()
    assert scene.broker.asked == [[A, A]] * 2
    assert [entity.attributes.keys() for entity in scene.broker.sent[-1][1]] == [{"pm25"}]
    assert (lane.counts.known, lane.counts.accepted, scene.log.settled) == (1, 1, True)
    scene.log.put("air-1", 2, no2=2)
    await lane.fill()
    assert not lane.of_earlier_run
    await lane.send()
    assert len(scene.broker.asked) == 2  # it is known by now


async def test_what_the_history_holds_altogether_is_not_sent_and_settled(scene: Scene) -> None:
    lane = past(scene)
    for n in range(2):
        scene.log.put("air-1", n, no2=n)
    scene.log.first_seq = scene.log.rows[-1][0] + 1
    scene.broker.points = frozenset((A, "no2", START + timedelta(seconds=n)) for n in range(3))
    await lane.fill()
    assert lane.of_earlier_run
    assert await lane.send() == Outcome()
    assert (lane.counts.known, scene.broker.sent, scene.log.settled) == (2, [], True)


@pytest.mark.parametrize(("first", "asked"), [(0, 0), (1, 1), (2, 1)])
async def test_only_what_an_earlier_run_may_have_sent_is_asked_about(scene: Scene, first: int, asked: int) -> None:
    lane = past(scene)
    for n in range(2):
        scene.log.put("air-1", n, no2=n)
    scene.log.first_seq = scene.log.rows[0][0] + first
    await lane.fill()
    assert lane.of_earlier_run is bool(first)
    await lane.send()
    assert len(scene.broker.asked) == asked


async def test_what_is_asked_about_and_held_is_known_each_time(scene: Scene) -> None:
    scene.log.first_seq = (1 << 32) + 100  # all of this is of an earlier run
    lane = past(scene)
    for n in (1, 2):
        scene.log.put("air-1", n, no2=n)
        scene.broker.points = frozenset({(A, "no2", START + timedelta(seconds=n))})
        await lane.fill()
        await lane.send()
        assert lane.counts.known == n
    assert scene.broker.sent == []


async def test_a_verdict_that_the_state_lane_settled_is_drawn_while_another_is_searched(scene: Scene) -> None:
    lane = past(scene)
    scene.log.put("air-1", 0, no2=0)
    for n in range(2):
        scene.log.put("air-2", n, no2=n)
    await lane.fill()
    scene.broker.answers = [refused(A), refused(B)]
    await lane.send()
    scene.of.streak.note(accepted(A), "state")
    assert lane.counts.refused == 0
    await lane.send()
    assert lane.counts.refused == 1


async def test_a_held_piece_of_which_only_what_goes_along_is_left_is_let_go() -> None:
    scene = with_a_flag()
    lane = past(scene)
    piece = await scene.piece(scene.update("air-1", 0, no2=1, flag=7))
    scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(0))
    await lane.put_first([piece])
    assert lane.idle
    assert await scene.held() == []


async def test_something_older_that_stands_last_is_asked_about_too(scene: Scene) -> None:
    lane = past(scene)
    scene.log.put("air-1", 0, no2=0)
    scene.log.first_seq = scene.log.rows[0][0]
    await lane.fill()
    old = scene.update("air-1", 1)
    old.seq = 1
    taken = Taken(scene.of, in_turns=True)
    lane.hand_over(taken)
    taken.put_last(old)
    await lane.send()
    assert len(scene.broker.asked) == 1


async def test_what_only_kept_its_order_goes_the_way_of_what_the_log_gives() -> None:
    scene, waits = Scene(*AIR, every_s=10.0), {B}
    lane = past(scene, lambda feed, *_: feed.entity_id in waits)
    sent, left, open_ = (scene.update(device, 1, no2=n) for n, device in enumerate(("air-3", "air-1", "air-2")))
    scene.of.sent.note(C, series_of(scene, "air-3", "no2"), us(1))
    await lane.put_first([sent, left, open_])
    assert not lane.of_earlier_run  # nobody offered them before
    while not lane.idle:
        await lane.send()
    assert [value for _, _, value in scene.broker.values()] == [1]
    assert [scene.of.aside.waiting(entity) for entity in (A, B, C)] == [False, True, False]
    waits.clear()
    await lane.put_first(await scene.of.aside.retry(scene.of.feeds))
    await lane.send()
    assert [value for _, _, value in scene.broker.values()] == [1, 2]
    assert scene.of.aside.empty


@pytest.mark.parametrize("earlier", [False, True])
async def test_what_was_sent_as_current_waits_behind_no_held_piece_and_only_the_rest_does(earlier: bool) -> None:
    """Held, it would be forgotten at a restart that it was sent, and go to the history beside what the broker records."""
    scene = Scene(*AIR, every_s=10.0)
    lane, unseen = seeing(scene)
    scene.of.aside.put(scene.update("air-1", 0), "503", 30.0, offered=True)
    await scene.held()
    await scene.log.settle("city", scene.log.rows[-1][0])
    scene.log.put("air-1", 1, no2=2, pm25=2)
    if earlier:
        scene.log.first_seq = scene.log.rows[-1][0] + 1
        scene.of.accepted.read_back(A, {"no2": START + timedelta(seconds=1), "pm25": START})
    else:
        scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(1), Mark(1, 0))
    await lane.fill()
    assert lane.idle
    assert len(unseen) == 1
    await scene.of.aside.write(at_once=True)
    first, second = scene.log.held.table.values()
    assert (first[0].reason, second[0].reason, second[1].value) == ("503", BEHIND, [2])
    [number] = second[1].series
    assert scene.log.series[number].point == "pm25"


async def test_before_any_reading_is_judged_the_state_lane_has_looked_at_what_is_new(scene: Scene) -> None:
    new: set[str] = set()
    lane = past(scene, lambda feed, *_: feed.entity_id in new, look=lambda: new.add(A))
    scene.log.put("air-1", 0, no2=1)
    assert not await lane.fill()
    new.clear()
    await lane.put_first([await scene.piece(scene.update("air-1", 1, no2=2))])
    assert lane.idle


async def test_held_ones_go_first_are_let_go_or_wait_on(scene: Scene) -> None:
    lane = past(scene, lambda feed, *_: feed.entity_id == B)
    scene.log.put("air-1", 9, no2=9)
    await lane.fill()
    pieces = [
        await scene.piece(scene.update(device, n, no2=n))
        for n, device in enumerate(("air-1", "air-2", "air-3", "air-4"))
    ]
    second = scene.update("air-1", 1, no2=1)
    second.held = pieces[0].held
    scene.of.sent.note(C, series_of(scene, "air-3", "no2"), us(2))
    await lane.put_first([pieces[0], second, *pieces[1:]])
    assert lane.of_earlier_run  # in doubt: it was offered before
    while not lane.idle:
        await lane.send()
    assert [value for _, _, value in scene.broker.values()] == [0, 1, 9, 3]
    assert len(scene.broker.asked) == 2
    [(piece, columns)] = [(p, c) for p, c in [scene.log.held.table[n.id] for n in await scene.held()]]
    assert (piece.entity, piece.reason, columns.value) == (B, "waits for the current value to be taken", [1])
    assert piece.next_try_at == START + timedelta(seconds=INCOMPLETE_S)


async def test_what_another_lane_may_go_on_with_is_all_that_was_read(scene: Scene) -> None:
    lane = past(scene)
    scene.log.put("air-1", 0, no2=0)
    await lane.fill()
    taken = Taken(scene.of, in_turns=False)
    lane.hand_over(taken)
    assert [update.readings["no2"][0] for update in waiting(taken)[A]] == [0]
    assert taken.position == lane.position


async def test_the_past_settles_what_was_gathered_when_asked(scene: Scene) -> None:
    scene.of.aside.put(scene.update("air-1"), "503", 1.0)
    await past(scene).settle()
    assert len(scene.log.held.pieces()) == 1


def test_times_of_what_is_past(scene: Scene) -> None:
    update: Update = scene.update("air-1", 3, no2=1)
    assert observed(update.past) == {"no2": START + timedelta(seconds=3)}


# the past of a broker that may forget


def seeing(scene: Scene, **settings: Any) -> tuple[PastLane, Unseen]:
    recording = Recording(True, "scorpio")
    chosen = replace(ForwardSettings(), **settings)
    unseen = Unseen(scene.broker, recording, scene.clock, chosen, done=scene.of.aside.done)
    return past(scene, recording=recording, unseen=unseen), unseen


def past_of(scene: Scene) -> list[object]:
    return [value for way, _, value in scene.broker.values() if way == "past"]


async def test_the_log_is_read_on_and_settled_up_to_what_waits(scene: Scene) -> None:
    lane, unseen = seeing(scene)
    seqs = []
    for n in range(4):
        scene.log.put("air-1", n, no2=n)
        seqs.append(scene.log.rows[-1][0])
    number = series_of(scene, "air-1", "no2")
    for n in (1, 3):
        scene.of.sent.note(A, number, us(n), Mark(n, 0))
    await through(lane)
    assert past_of(scene) == [0, 2]
    assert (len(unseen), scene.log.cursor, scene.log.backlog("city")[0]) == (2, seqs[0], 0)
    assert lane.position == seqs[3]
    assert not await lane.fill()
    scene.broker.newest = {A: [("no2", START + timedelta(seconds=1))]}
    scene.clock.advance(3600.0)
    assert await lane.look()
    assert scene.log.cursor == seqs[2]
    scene.broker.newest = {A: [("no2", START + timedelta(seconds=3))]}
    scene.clock.advance(3600.0)
    assert await lane.look()
    assert scene.log.settled
    assert lane.position is None
    assert past_of(scene) == [0, 2]
    assert not await lane.look()


async def test_a_set_that_went_in_two_requests_waits_for_both(scene: Scene) -> None:
    lane, unseen = seeing(scene)
    scene.log.put("air-1", 0, no2=1, pm25=2)
    for point, order in (("no2", 1), ("pm25", 2)):
        scene.of.sent.note(A, series_of(scene, "air-1", point), us(0), Mark(order, 0))
    await through(lane)
    scene.broker.newest = {A: [("no2", START)]}
    scene.clock.advance(3600.0)
    assert await lane.look()
    assert (len(unseen), scene.log.settled) == (1, False)


async def test_what_was_forgotten_is_asked_about_once_more_and_goes_by_the_temporal_api(scene: Scene) -> None:
    lane, _ = seeing(scene)
    for n in range(3):
        scene.log.put("air-1", n, no2=n)
        scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(n), Mark(n + 1, int(n > 1)))
    await through(lane)
    scene.broker.newest = {A: [("no2", START + timedelta(seconds=2))]}
    for seconds in (10.0, 10.0):
        scene.clock.advance(seconds)
        assert await lane.look()
    scene.broker.points = frozenset({(A, "no2", START)})  # it came there meanwhile
    asked = len(scene.broker.asked)
    assert (lane.counts.unknown, lane.counts.unknown_us) == (2, us(0))  # they are owed again, and shown so
    assert lane.open_seq == scene.log.rows[0][0]  # and up to there all was sent
    await through_waiting(lane)
    assert len(scene.broker.asked) == asked + 1
    assert past_of(scene) == [1]
    assert scene.log.settled
    assert (lane.counts.unknown, lane.counts.unknown_us) == (0, None)
    nothing = lane.open_seq
    assert nothing is None


async def test_what_was_forgotten_and_put_off_is_open_until_it_is_on_the_card() -> None:
    """Else a clean stop in between would note it as sent."""
    scene = Scene(*AIR, every_s=10.0)
    lane, _ = seeing(scene)
    for n in range(2):
        scene.log.put("air-1", n, no2=n)
        scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(n), Mark(n + 1, n))
    await through(lane)
    scene.log.cursor, first = 0, scene.log.rows[0][0]
    scene.broker.newest = {A: [("no2", START + timedelta(seconds=1))]}
    for seconds in (10.0, 10.0):
        scene.clock.advance(seconds)
        assert await lane.look()
    scene.broker.answers = [Outcome(later={A: "its context is missing"}, absent=frozenset({A}))]
    await lane.send()
    assert (lane.idle, scene.log.held.pieces(), lane.open_seq) == (True, [], first)
    scene.clock.advance(100.0)
    await lane.settle()
    assert (len(scene.log.held.pieces()), lane.open_seq) == (1, None)


async def test_what_was_refused_is_open_until_it_is_known_who_is_to_blame(scene: Scene) -> None:
    lane = InOrderLane(scene.of)
    scene.log.put("air-1", 0, no2=0)
    scene.broker.refuses = frozenset({A})
    await lane.fill()
    await lane.send()
    assert (lane.idle, lane.open_seq) == (True, scene.log.rows[0][0])


async def test_what_is_set_aside_gets_the_numbers_of_the_log_when_its_file_is_opened_late() -> None:
    scene = Scene(*AIR, every_s=10.0)
    lane = past(scene)
    scene.log.put("air-1", 1e6, no2=1)  # ahead of the clock
    assert await lane.fill()
    seq = scene.log.rows[0][0]
    assert lane.open_seq == seq
    scene.log.first_seq = 1 << 40
    scene.log.rows = [(row[0] + (1 << 40), *row[1:]) for row in scene.log.rows]
    await lane.fill()
    assert lane.open_seq == seq + (1 << 40)


async def test_what_counts_as_owed_already_is_not_counted_again_when_it_was_forgotten(scene: Scene) -> None:
    lane, unseen = seeing(scene)
    scene.log.put("air-1", 0, no2=0)
    scene.log.put("air-1", 1, no2=1)
    for n in range(2):
        scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(n), Mark(n + 1, n))
    scene.log.put("air-2", 0, no2=9)
    await lane.fill()  # the second waits to be sent: so far is the log
    held = await scene.piece(scene.update("air-1", -1, no2=5))
    held.seq = 0  # of the pieces for later
    unseen.put(held, Mark(0, 0), known=True)
    scene.broker.newest = {A: [("no2", START + timedelta(seconds=1))]}
    for seconds in (10.0, 10.0):
        scene.clock.advance(seconds)
        await lane.look()
    assert (len(unseen), lane.counts.unknown) == (0, 0)


async def test_of_an_earlier_run_goes_what_is_newer_than_the_broker_was_and_the_rest_waits(scene: Scene) -> None:
    lane, unseen = seeing(scene)
    for n in range(4):
        scene.log.put("air-1", n, no2=n, pm25=n)
    scene.log.first_seq = scene.log.rows[-1][0] + 1
    scene.of.accepted.read_back(A, {"no2": START + timedelta(seconds=1)})
    scene.of.accepted.read_back(A, {"no2": START + timedelta(seconds=3)})  # by this run
    await through(lane)
    assert past_of(scene) == [2, 3]
    assert sorted(value for _, _, value in scene.broker.values("pm25")) == [0, 1, 2, 3]
    assert (len(unseen), lane.counts.unknown, scene.log.settled) == (2, 2, False)


async def test_what_nobody_knows_to_be_sent_goes_on_in_order_when_the_history_is_gone(scene: Scene) -> None:
    lane, unseen = seeing(scene)
    scene.log.put("air-1", 0, no2=0)
    scene.log.first_seq = scene.log.rows[-1][0] + 1
    scene.log.put("air-1", 1, no2=1)
    scene.of.sent.note(A, series_of(scene, "air-1", "no2"), us(1), Mark(1, 0))
    assert await lane.fill()
    assert (lane.idle, len(unseen)) == (True, 2)
    in_order = InOrderLane(scene.of)
    assert lane.open_seq == scene.log.rows[0][0]
    in_order.take_over(lane)
    assert (in_order.waiting_readings, len(unseen)) == (1, 0)
    assert in_order.open_seq == scene.log.rows[0][0]


async def test_of_an_earlier_run_nothing_goes_before_the_broker_was_asked(scene: Scene) -> None:
    _, unseen = seeing(scene)
    unasked = [True]
    lane = past(scene, recording=unseen.recording, unseen=unseen, unasked=lambda feed: unasked[0])
    scene.log.put("air-1", 0, no2=0)
    scene.log.first_seq = scene.log.rows[-1][0] + 1
    assert not await lane.fill()
    unasked[0] = False  # who cannot be asked: nobody knows
    assert await lane.fill()
    assert (lane.idle, len(unseen)) == (True, 1)


async def test_what_a_forwarder_before_had_sent_waits_as_accepted(scene: Scene) -> None:
    scene.log.put("air-1", 0, no2=0)
    scene.log.first_seq, scene.log.given = scene.log.rows[0][0] - 1, 1
    scene.log.accepted("city", scene.log.rows[0][0])
    of = replace(scene.of, feeds=Feeds("city", scene.log, tables(*AIR)))
    recording = Recording(True, "scorpio")
    unseen = Unseen(scene.broker, recording, scene.clock, ForwardSettings(unseen_s=10.0))
    lane = PastLane(of, NEVER, recording=recording, unseen=unseen)
    scene.of.accepted.read_back(A, {})
    scene.log.put("air-1", 1, no2=1)
    await lane.fill()
    await through_waiting(lane)
    assert (past_of(scene), len(unseen)) == ([1], 1)
    for _ in range(3):
        scene.clock.advance(10.0)
        await lane.look()
    assert (unseen.given_up, past_of(scene)) == (1, [1])


async def test_what_a_run_before_had_sent_does_not_wait_behind_a_piece_to_go_again(scene: Scene) -> None:
    """On a busy tenant the history would not show it yet when the piece goes."""
    scene.log.put("air-1", 0, no2=0)
    scene.log.first_seq = scene.log.rows[0][0] + 1
    columns = Columns(
        1, [1], [1], [us(1)], [1.0], [Quality.GOOD], [Reason.NONE], [TimeSource.NETWORK], [TimeState.SURE]
    )
    await scene.log.held.hold(
        "city", A, "air-1", columns, reason="its context is missing", at=START, next_try_at=START, tries=0
    )
    scene.of.aside._look()
    scene.of.feeds.sent_before = scene.log.rows[0][0]
    lane, unseen = seeing(scene)
    scene.of.accepted.read_back(A, {})
    assert await lane.fill()
    await lane.settle()
    assert (lane.idle, len(unseen), scene.of.aside.empty) == (True, 1, True)
    assert [piece.readings for piece in scene.log.held.pieces()] == [1]


async def test_too_much_of_which_nobody_knows_stops_the_reading(scene: Scene) -> None:
    lane, unseen = seeing(scene, unseen_points=3)
    for n in range(6):
        scene.log.put("air-1", n, no2=n)
    scene.log.first_seq = scene.log.rows[-1][0] + 1
    assert await lane.fill()
    assert len(unseen) == 3
    assert lane.position == scene.log.rows[2][0]
    assert not await lane.fill()


async def test_a_piece_that_went_as_state_meanwhile_is_held_until_it_is_seen(scene: Scene) -> None:
    lane, unseen = seeing(scene)
    piece = await scene.piece(scene.update("air-1", 0, no2=1, pm25=2))
    scene.log.rows.clear()
    for point, order in (("no2", 1), ("pm25", 2)):
        scene.of.sent.note(A, series_of(scene, "air-1", point), us(0), Mark(order, 0))
    await lane.put_first([piece])
    assert (lane.idle, len(unseen), len(scene.log.held.pieces())) == (True, 2, 1)
    scene.broker.points = frozenset({(A, "no2", START), (A, "pm25", START)})
    scene.clock.advance(10.0)
    assert await lane.look()
    assert scene.log.held.pieces() == []
