"""The state lane, sweep by sweep: what is due, what goes, what is asked about, and what it leaves to the history."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from gateway.claims import AHEAD
from gateway.forward.broker import InDoubt, Outcome, ReadRefused
from gateway.forward.state_lane import ENTITY_RETRY_S, StateLane
from gateway.forward.updates import Feed
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.scene import START, entity_id, slot, table
from tests.gateway.forward.test_verdicts import AIR, A, B, Scene, accepted, later, refused


class Sweeps(Scene):
    """A state lane on a scene."""

    def lane(self) -> StateLane:
        of = self.of
        return StateLane(of.broker, of.feeds, accepted=of.accepted, sent=of.sent, clock=of.clock)

    def series_of(self, device: str, point: str = "no2") -> int:
        return next(s.id for s in self.log.series.values() if (s.device, s.point) == (device, point))

    def feed(self, device: str) -> Feed:
        feed = self.of.feeds.of(entity_id(device), device)
        assert feed is not None
        return feed

    def pending(self, lane: StateLane, device: str, at_s: float, point: str = "no2") -> bool:
        lane.look()
        return lane.pending(self.feed(device), self.series_of(device, point), us(at_s))

    def sent_points(self) -> list[dict[str, object]]:
        """Measured values of each entity that was sent."""
        return [
            {key: attribute.value for key, attribute in entity.attributes.items() if key in ("no2", "pm25")}
            for _, entities in self.broker.sent
            for entity in entities
        ]


def us(at_s: float) -> int:
    return round((START + timedelta(seconds=at_s)).timestamp() * 1e6)


def at(at_s: float, *keys: str) -> dict[str, datetime]:
    return dict.fromkeys([*keys, "dateObserved"], START + timedelta(seconds=at_s))


@pytest.fixture
def scene() -> Sweeps:
    return Sweeps(*AIR)


async def test_what_changed_goes_once_and_is_remembered_for_the_history(scene: Sweeps) -> None:
    lane = scene.lane()
    assert not lane.changed()
    assert await lane.send() == Outcome()
    scene.log.put("air-1", 0, no2=1, pm25=2)
    assert lane.changed()
    assert (await lane.send()).accepted == {A}
    assert not lane.changed()
    scene.log.put("air-1", 1, no2=3)
    scene.log.put("air-1", 2, no2=4)
    assert lane.changed()
    await lane.send()
    assert not lane.changed()
    assert await lane.send() == Outcome()
    assert scene.sent_points() == [{"no2": 1, "pm25": 2}, {"no2": 4}]
    assert scene.broker.asked == [[A]]
    no2, pm25 = scene.series_of("air-1"), scene.series_of("air-1", "pm25")
    points = ((no2, 0), (pm25, 0), (no2, 2), (no2, 1))
    taken = [scene.of.sent.take(A, number, us(at_s)) is not None for number, at_s in points]
    assert taken == [True, True, True, False]
    assert scene.of.accepted.holds(A, "no2", START + timedelta(seconds=2))
    assert scene.of.accepted.holds(A, "pm25", START)


async def test_when_something_was_sent_is_known_by_its_request_and_the_faults_before_it(scene: Sweeps) -> None:
    lane, traffic = scene.lane(), scene.broker.traffic
    answer = scene.broker.state

    async def with_a_fault_between(entities: Sequence[Entity]) -> Outcome:
        traffic.faults += 1
        return await answer(entities)

    for n in range(4):
        scene.broker.state = with_a_fault_between if n == 2 else answer  # type: ignore[method-assign]
        scene.log.put("air-1", n, no2=n, pm25=n)
        assert lane.changed()
        await lane.send()
        traffic.faults += n == 0
    marks = [scene.of.sent.take(A, scene.series_of("air-1"), us(n)) for n in range(4)]
    same = [scene.of.sent.take(A, scene.series_of("air-1", "pm25"), us(n)) for n in range(4)]
    assert marks == same
    assert [mark and mark.epoch for mark in marks] == [0, 1, None, 2]
    orders = [mark.order for mark in marks if mark is not None]
    assert orders == sorted(set(orders))
    assert orders[0] > 0


async def test_two_entities_go_in_one_request_or_in_turn(scene: Sweeps) -> None:
    for most, skip, goes in ((None, 1, [0, 1, 2]), (1, 0, [0]), (1, 4, [1]), (2, 2, [2, 0]), (9, 1, [1, 2, 0])):
        scene = Sweeps(*AIR)
        lane = scene.lane()
        for n, device in enumerate(AIR[:3]):
            scene.log.put(device, n, no2=n)
        assert lane.changed()
        await lane.send(most, skip=skip)
        assert sorted(v for _, _, v in scene.broker.values()) == sorted(goes)
        assert lane.changed() is (len(goes) < 3)
    assert await scene.lane().send(1) == Outcome()


async def test_without_a_number_to_skip_the_first_goes(scene: Sweeps) -> None:
    lane = scene.lane()
    for n, device in enumerate(AIR[:3]):
        scene.log.put(device, n, no2=n)
    lane.changed()
    await lane.send(1)
    assert [value for _, _, value in scene.broker.values()] == [0]


async def test_a_value_ahead_of_the_clock_goes_when_its_time_comes(scene: Sweeps) -> None:
    lane = scene.lane()
    ahead_s = AHEAD.total_seconds()
    scene.log.put("air-1", ahead_s, no2=1)
    scene.log.put("air-1", ahead_s + 1, pm25=2)
    scene.log.put("air-2", ahead_s + 2, no2=3)
    scene.log.put("air-2", 0, pm25=4)
    assert lane.changed()
    assert scene.pending(lane, "air-1", ahead_s)
    assert not scene.pending(lane, "air-1", ahead_s + 1, "pm25")
    await lane.send()
    assert scene.sent_points() == [{"pm25": 4}, {"no2": 1}]  # by time
    assert not lane.changed()
    scene.clock.advance(0.5)
    assert not lane.changed()
    scene.clock.advance(0.5)
    assert lane.changed()
    assert scene.pending(lane, "air-1", ahead_s + 1, "pm25")
    await lane.send()
    assert not lane.changed()
    scene.clock.advance(1.0)
    assert lane.changed()
    await lane.send()
    assert not lane.changed()
    assert scene.sent_points()[2:] == [{"pm25": 2}, {"no2": 3}]


async def test_only_what_is_ahead_is_no_longer_due(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", AHEAD.total_seconds() + 1, no2=1)
    assert lane.changed()
    assert await lane.send() == Outcome()
    assert not lane.changed()
    assert scene.broker.asked == []


async def test_who_lacks_something_mandatory_is_not_due() -> None:
    scene = Sweeps(mappings={"air-1": (table("air-1", mandatory=frozenset({"pm25"})),)})
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    assert not lane.changed()
    assert await lane.send() == Outcome()
    scene.log.put("air-1", 1, pm25=2)
    assert lane.changed()
    await lane.send()
    assert scene.sent_points() == [{"no2": 1, "pm25": 2}]


async def test_what_the_model_does_not_allow_is_neither_sent_nor_due() -> None:
    no = replace(slot("no2"), convert=lambda raw: raw if raw == 1 else None)
    scene = Sweeps(mappings={"air-1": (replace(table("air-1", "no2"), slots={"no2": (no,)}),)})
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=-1)
    assert lane.changed()
    assert await lane.send() == Outcome()
    assert not lane.changed()
    scene.log.put("air-1", 1, no2=1)
    assert lane.changed()
    await lane.send()
    assert scene.sent_points() == [{"no2": 1}]


@pytest.mark.parametrize("no", [refused(A), later(A)])
async def test_who_was_not_taken_waits_half_a_minute_and_the_history_does_not_wait_for_it(
    scene: Sweeps, no: Outcome
) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    assert scene.pending(lane, "air-1", 0)  # nobody looked before
    lane.changed()
    scene.broker.answers = [no]
    await lane.send()
    assert not lane.changed()
    assert not scene.pending(lane, "air-1", 0)
    scene.log.put("air-2", 0, no2=2)
    assert lane.changed()  # another one does not wait
    await lane.send()
    scene.clock.advance(ENTITY_RETRY_S - 1)
    scene.log.put("air-1", 1, no2=3)
    assert not lane.changed()
    scene.clock.advance(1.0)
    assert lane.changed()
    assert not scene.pending(lane, "air-1", 1)  # until it is taken
    await lane.send()
    assert scene.sent_points() == [{"no2": 1}, {"no2": 2}, {"no2": 3}]
    scene.log.put("air-1", 2, no2=4)
    assert scene.pending(lane, "air-1", 2)


async def test_after_an_outage_nobody_waits(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    lane.changed()
    scene.broker.answers = [refused(A)]
    await lane.send()
    lane.hurry()
    assert lane.changed()
    assert scene.pending(lane, "air-1", 0)


async def test_a_broker_that_fails_is_no_reason_to_wait_for_one_entity(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    lane.changed()
    scene.broker.answers = [Outcome(later={A: "away"}, fault=BrokerUnavailable("away"))]
    await lane.send()
    assert lane.changed()
    assert scene.pending(lane, "air-1", 0)
    await lane.send()
    assert scene.broker.asked == [[A]]
    assert not lane.changed()


async def test_the_history_waits_for_the_newest_value_that_is_not_sent_and_for_no_other(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1, pm25=2)
    scene.log.put("air-1", 1, no2=3)
    scene.log.put("air-2", 1, no2=3)
    assert scene.pending(lane, "air-1", 1)
    assert not scene.pending(lane, "air-1", 0)
    assert scene.pending(lane, "air-1", 0, "pm25")
    assert not lane.pending(scene.feed("air-2"), scene.series_of("air-1"), us(1))
    lane.changed()
    await lane.send()
    assert not scene.pending(lane, "air-1", 1)
    scene.log.put("air-1", 2, no2=4)
    assert not scene.pending(lane, "air-1", 0, "pm25")
    assert not scene.pending(lane, "air-1", 1)
    assert scene.pending(lane, "air-1", 2)


async def test_the_history_waits_for_what_came_since_the_last_sweep(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    assert scene.pending(lane, "air-1", 0)
    lane.changed()
    await lane.send()
    scene.log.put("air-1", 1, no2=2)
    scene.log.put("air-2", 1, no2=2)
    assert scene.pending(lane, "air-1", 1)
    assert scene.pending(lane, "air-2", 1)


async def test_what_is_in_doubt_is_asked_about_before_the_history_or_the_state_goes_on(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1, pm25=1)
    lane.changed()
    await lane.send()
    doubt = Outcome(later={A: "reset"}, doubtful=frozenset({A}), fault=InDoubt("reset"))
    for n in (1, 2):
        scene.log.put("air-1", n, no2=10 * n)
        lane.changed()
        scene.broker.answers = [doubt]
        scene.broker.holds = {A: at(0, "no2", "pm25")} if n == 1 else {A: at(1, "no2")}
        await lane.send()
        assert scene.pending(lane, "air-1", n)
        assert scene.pending(lane, "air-1", 0, "pm25") is (n == 2)  # it goes along when all is sent again
    assert not scene.pending(lane, "air-1", 1)  # it was answered
    assert scene.of.sent.take(A, scene.series_of("air-1"), us(1))
    scene.log.put("air-1", 3, no2=30)
    assert scene.pending(lane, "air-1", 2)  # although something newer came
    scene.broker.holds = {A: at(0, "pm25")}
    lane.changed()
    await lane.send()
    assert len(scene.broker.asked) == 3
    assert not scene.pending(lane, "air-1", 2)
    assert not scene.of.sent.take(A, scene.series_of("air-1"), us(2))  # it was not carried out
    assert scene.sent_points()[-1] == {"no2": 30}


async def test_several_doubts_of_one_entity_are_all_asked_about(scene: Sweeps) -> None:
    lane = scene.lane()
    doubt = Outcome(later={A: "reset"}, doubtful=frozenset({A}), fault=InDoubt("reset"))
    scene.log.put("air-1", 0, no2=1)
    lane.changed()
    await lane.send()
    scene.log.put("air-1", 1, no2=2)
    lane.changed()
    scene.broker.answers = [doubt, doubt]
    await lane.send()
    scene.of.accepted.note(A, at(0, "no2"))  # the other lane asked
    scene.log.put("air-1", 2, no2=3)
    lane.changed()
    await lane.send()
    assert scene.pending(lane, "air-1", 1)
    assert scene.pending(lane, "air-1", 2)
    scene.broker.holds = {A: at(2, "no2")}
    await lane.send()
    assert not scene.pending(lane, "air-1", 1)
    assert not scene.pending(lane, "air-1", 2)
    assert scene.of.sent.take(A, scene.series_of("air-1"), us(2))


async def test_what_an_earlier_run_made_current_does_not_go_again_and_is_known_to_the_history(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    scene.log.put("air-1", 1, pm25=2)
    scene.broker.holds = {A: at(1, "pm25") | at(0, "no2") | at(1)}
    lane.changed()
    assert await lane.send() == Outcome()
    assert not lane.changed()
    assert scene.broker.sent == []
    assert scene.of.sent.take(A, scene.series_of("air-1"), us(0))
    assert scene.of.sent.take(A, scene.series_of("air-1", "pm25"), us(1))


async def test_what_the_broker_holds_newer_is_left_to_the_history_and_the_rest_goes(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 1, no2=1, pm25=2)
    scene.broker.holds = {A: at(0, "pm25") | {"no2": START + timedelta(seconds=5)}}
    lane.changed()
    await lane.send()
    assert scene.sent_points() == [{"pm25": 2}]
    assert not lane.changed()
    assert not scene.of.sent.take(A, scene.series_of("air-1"), us(1))
    assert scene.of.sent.take(A, scene.series_of("air-1", "pm25"), us(1))


async def test_when_what_is_left_was_not_taken_what_was_left_out_stays_so(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 1, no2=1, pm25=2)
    scene.broker.holds = {A: at(0, "pm25") | {"no2": START + timedelta(seconds=5)}}
    lane.changed()
    scene.broker.answers = [Outcome(later={A: "away"}, fault=BrokerUnavailable("away"))]
    await lane.send()
    assert not scene.pending(lane, "air-1", 1)
    assert scene.pending(lane, "air-1", 1, "pm25")


async def test_where_nobody_may_read_only_what_is_of_this_run_becomes_current(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    scene.log.put("air-2", 0, no2=5)
    scene.log.put("air-1", 1, pm25=2)
    scene.log.first_seq = scene.log.rows[-1][0]
    scene.broker.fault = ReadRefused("403")
    lane.changed()
    await lane.send()
    assert scene.sent_points() == [{"pm25": 2}]
    assert not lane.changed()
    assert not scene.pending(lane, "air-1", 0)
    assert not scene.pending(lane, "air-2", 0)
    assert scene.of.accepted.first(A) is None  # nobody knows what it held
    assert not scene.of.sent.take(A, scene.series_of("air-1"), us(0))
    scene.log.put("air-2", 1, no2=6)
    lane.changed()
    await lane.send()
    assert scene.sent_points()[1:] == [{"no2": 6}]


async def test_who_may_be_read_is_not_kept_back_for_one_that_may_not(scene: Sweeps) -> None:
    """One may not be read; of another, of an earlier run as well, the broker says what it holds."""
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    scene.log.put("air-2", 0, no2=2)
    scene.log.put("air-2", AHEAD.total_seconds() + 1, pm25=3)
    scene.log.first_seq = scene.log.rows[-1][0] + 1
    lane.changed()
    scene.of.accepted.note(B, {})
    scene.broker.fault = ReadRefused("403")
    await lane.send()
    assert scene.sent_points() == [{"no2": 2}]
    assert scene.broker.asked == [[A]]
    scene.clock.advance(1.0)
    assert lane.changed()
    await lane.send()
    assert scene.sent_points()[1:] == [{"pm25": 3}]


async def test_where_reading_fails_all_stays_due(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1)
    lane.changed()
    scene.broker.fault = BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await lane.send()
    assert lane.changed()
    assert scene.broker.sent == []


async def test_two_devices_of_one_entity_go_as_one_and_the_newest_time_stands() -> None:
    one, two = table("air-1", "no2", entity="urn:x:1"), table("air-2", "pm25", entity="urn:x:1")
    scene = Sweeps(mappings={"air-1": (one,), "air-2": (two,)})
    lane = scene.lane()
    scene.log.put("air-1", 5, no2=1)
    scene.log.put("air-2", 3, pm25=2)
    lane.changed()
    await lane.send()
    [(_, [entity])] = scene.broker.sent
    assert (entity.attributes["no2"].value, entity.attributes["pm25"].value) == (1, 2)
    assert entity.attributes["dateObserved"].value == START + timedelta(seconds=5)
    assert not lane.changed()
    for series, at_s in ((1, 5), (2, 3)):
        assert scene.of.sent.take("urn:x:1", series, us(at_s))
    scene.broker.answers = [accepted("urn:x:1")]
    scene.log.put("air-2", 6, pm25=3)
    lane.changed()
    await lane.send()
    assert scene.sent_points()[-1] == {"pm25": 3}


async def test_a_doubt_of_one_device_is_asked_about_with_the_entity_of_another() -> None:
    one, two = table("air-1", "no2", entity="urn:x:1"), table("air-2", "pm25", entity="urn:x:1")
    scene = Sweeps(mappings={"air-1": (one,), "air-2": (two,)})
    lane = scene.lane()
    scene.log.put("air-1", 5, no2=1)
    scene.log.put("air-2", 3, pm25=2)
    lane.changed()
    doubt = Outcome(later={"urn:x:1": "reset"}, doubtful=frozenset({"urn:x:1"}), fault=InDoubt("reset"))
    scene.broker.answers = [doubt]
    await lane.send()
    await lane.send()
    assert scene.sent_points()[-1] == {"no2": 1, "pm25": 2}
    assert not lane.changed()


async def test_a_point_that_was_never_good_or_is_not_mapped_is_passed_over(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, pm25=None, other=5, no2=1)
    assert lane.changed()
    await lane.send()
    assert scene.sent_points() == [{"no2": 1}]
    scene.log.put("air-1", 1, no2=2)
    number, feed = scene.series_of("air-1"), scene.feed("air-1")
    lane.changed()
    scene.log.rows.clear()  # a value that is no longer known is nobody's to wait for
    assert not lane.pending(feed, number, us(1))


async def test_a_broker_that_lost_an_entity_gets_all_of_it(scene: Sweeps) -> None:
    lane = scene.lane()
    scene.log.put("air-1", 0, no2=1, pm25=1)
    scene.log.put("air-2", 0, no2=1, pm25=1)
    lane.changed()
    await lane.send()
    scene.of.accepted.doubt(A)
    for device in AIR[:2]:
        scene.log.put(device, 1, no2=2)
    lane.changed()
    await lane.send()
    sent = {entity.id: entity.attributes.keys() & {"no2", "pm25"} for entity in scene.broker.sent[-1][1]}
    assert sent == {A: {"no2", "pm25"}, B: {"no2"}}
    assert scene.broker.asked == [[A, B], [A]]
