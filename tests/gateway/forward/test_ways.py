"""The ways of sending, turn by turn: what they hand on to each other. With a broker by script and a clock by hand."""

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gateway.backoff import Backoff, Breaker
from gateway.forward.broker import LoginFailed, NotOffered, Outcome, Probe, ReadRefused
from gateway.forward.history_lane import LATE
from gateway.forward.pace import Pace
from gateway.forward.probing import Probing
from gateway.forward.recording import Recording
from gateway.forward.refusals import Refusals
from gateway.forward.settings import ForwardSettings
from gateway.forward.standing import Standing
from gateway.forward.usage import Usage
from gateway.forward.ways import Common, Greeting, InOrder, TwoLanes
from gateway.health import BrokerHealth, BrokerState
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.scene import START, entity_id
from tests.gateway.forward.test_state_lane import Sweeps, us
from tests.gateway.forward.test_verdicts import AIR, A, B, refused

SETTINGS = ForwardSettings(linger_s=0.1, held_every_s=0.01, rate_per_s=10.0, records_within_s=10.0, history="auto")
TEMPORAL, NONE, UNKNOWN = (Probe(readable=True, temporal=temporal) for temporal in (True, False, None))


class Turns(Sweeps):
    """A broker greeted by script."""

    def __init__(self, *devices: str, records: bool | None = True, ahead: bool = False, **settings: Any) -> None:
        super().__init__(*(devices or AIR))
        of, chosen = self.of, replace(SETTINGS, **settings)
        self.health = BrokerHealth()
        self.shown = 0
        self.common = Common(
            name="city",
            of=of,
            state=self.lane(),
            log=self.log,
            settings=chosen,
            pace=Pace(self.clock, chosen.rate_per_s),
            probing=Probing(self.broker, self.clock, chosen),
            standing=Standing("city", self.health, self.clock),
            refusals=Refusals("city", self.clock, of.feeds.devices),
            usage=Usage("city", self.broker.traffic, self.log, self.clock),
            past_breaker=Breaker(Backoff(1.0, 1.0, rng=random.Random(1))),
            look_breaker=Breaker(Backoff(1.0, 1.0, rng=random.Random(1))),
            show=self.show,
            recording=Recording(records, forgets=False) if records is not None else Recording(),
            ahead=ahead,
            started_s=self.clock.monotonic_s(),
        )
        self.broker.traffic.before = self.common.pace.before

    def readings(self) -> list[int]:
        """Readings in each request, in order."""
        return [sum(entity.readings for entity in entities) for _, entities in self.broker.sent]

    def show(self) -> None:
        self.shown += 1

    async def greeted(self, probe: Probe) -> Any:
        self.broker.probes = [probe]
        return await Greeting(self.common).turn()

    async def until_settled(self, way: Any) -> None:
        for _ in range(200):
            if self.log.settled:
                return
            came = await way.turn()
            assert came is None or isinstance(came, Outcome)
            self.clock.advance(0.2)
        raise AssertionError("it is not settled")


async def test_a_greeting_is_no_way_yet() -> None:
    way = Greeting(Turns().common)
    assert (way.mode, way.kept_mode, way.counts, way.fault) == (None, "", None, None)


@pytest.mark.parametrize(
    ("history", "probe", "records", "kind", "mode"),
    [
        ("auto", TEMPORAL, True, TwoLanes, "temporal"),
        ("auto", TEMPORAL, False, TwoLanes, "temporal"),
        ("auto", TEMPORAL, None, TwoLanes, "temporal"),
        ("auto", NONE, None, InOrder, "in-order"),
        ("temporal", UNKNOWN, None, TwoLanes, "temporal"),
        ("in-order", UNKNOWN, None, InOrder, "in-order"),
        ("latest-only", NONE, None, TwoLanes, "latest-only"),
    ],
)
async def test_the_way_is_the_operators_or_the_brokers(
    history: str, probe: Probe, records: bool | None, kind: type[Any], mode: str
) -> None:
    turns = Turns(records=records, history=history)
    way = await turns.greeted(probe)
    assert type(way) is kind
    assert (way.mode, way.kept_mode, way.fault) == (mode, mode, None)


async def test_an_unsure_answer_is_asked_for_again() -> None:
    turns = Turns()
    await turns.greeted(replace(NONE, sure=False))
    assert not turns.common.probing.due
    turns.clock.advance(SETTINGS.probe_again_s)
    assert turns.common.probing.due


async def test_who_lets_nobody_read_must_be_told_how() -> None:
    turns = Turns()
    turns.broker.fault = ReadRefused("403")
    with pytest.raises(LoginFailed, match="403; allow it, or set history"):
        await Greeting(turns.common).turn()
    told = Turns(history="in-order")
    told.broker.fault = ReadRefused("403")
    assert type(await Greeting(told.common).turn()) is InOrder


async def test_where_the_first_write_makes_the_tenant_the_oldest_goes_first_and_no_reading_twice() -> None:
    for probe in (NONE, TEMPORAL):
        turns = Turns()
        way = Greeting(turns.common)
        turns.broker.probes = [UNKNOWN] * 3
        assert await way.turn() is None
        assert turns.shown == 1
        for n in range(2):
            turns.log.put("air-1", n, no2=n)
            turns.log.put("air-2", n, no2=n)
        outcome: Any = await way.turn()
        assert outcome.accepted == {A}
        turns.broker.probes = [probe]
        following: Any = await way.turn()
        await turns.until_settled(following)
        sent = [(device, value) for _, device, value in turns.broker.values()]
        assert sorted(sent) == [("air-1", 0), ("air-1", 1), ("air-2", 0), ("air-2", 1)]


async def test_a_refusal_while_greeting_is_noted() -> None:
    turns = Turns()
    turns.log.put("air-1", 0, no2=1)
    turns.broker.answers = [refused(A)]
    await turns.greeted(UNKNOWN)
    assert [row["entity"] for row in turns.common.refusals.now({})] == [A]


async def in_order(turns: Turns) -> InOrder:
    way = await turns.greeted(NONE)
    assert isinstance(way, InOrder)
    return way


async def test_in_order_the_past_rests_when_the_rate_is_used_up() -> None:
    turns = Turns(rate_per_s=4.0)
    way = await in_order(turns)
    for n in range(6):
        turns.log.put("air-1", n, no2=n)
    assert await way.turn() is None
    assert [isinstance(await way.turn(), Outcome) for _ in range(3)] == [True, True, False]  # half a second's
    sent, before_s = len(turns.broker.sent), turns.clock.monotonic_s()
    assert await way.turn() is None
    assert len(turns.broker.sent) == sent == 2
    assert turns.clock.monotonic_s() == pytest.approx(before_s + 0.1)
    turns.clock.advance(10.0)
    assert isinstance(await way.turn(), Outcome)


async def test_in_order_a_config_at_fault_is_tried_with_one_after_the_other() -> None:
    turns = Turns()
    way = await in_order(turns)
    for n in range(3):
        for device in AIR[:2]:
            turns.log.put(device, n, no2=n)
    await way.turn()
    turns.broker.refuses = frozenset(map(entity_id, AIR))
    for _ in range(3):
        await way.turn()
    assert turns.common.streak.config_fault
    turns.log.put("air-3", 0, no2=7)
    for _ in range(3):
        await way.turn()
    probes = [[entity.device for entity in entities] for _, entities in turns.broker.sent[3:]]
    assert all(len(devices) == 1 for devices in probes)
    assert {devices[0] for devices in probes} == set(AIR[:3])  # what was read on takes its turn too
    assert {row["entity"] for row in turns.common.refusals.now({})} >= {A, B}


async def test_in_order_that_the_state_went_ahead_is_kept_until_the_tail() -> None:
    turns = Turns(ahead=True)
    way = await in_order(turns)
    assert way.kept_mode == "temporal"
    turns.log.put("air-1", 0, no2=1)
    await turns.until_settled(way)
    await way.turn()
    assert way.kept_mode == "in-order"


async def test_in_order_a_history_that_came_is_taken_up_with_what_was_late() -> None:
    turns = Turns(ahead=True)
    way = await in_order(turns)
    turns.of.accepted.note(A, dict.fromkeys(("no2", "dateObserved"), START + timedelta(seconds=9)))
    turns.log.put("air-1", 0, no2=1)
    await turns.until_settled(way)
    assert [piece.reason for piece in turns.log.held.pieces()] == [LATE]
    turns.common.probing.wanted = "temporal"
    following = await way.turn()
    assert isinstance(following, TwoLanes)
    for _ in range(20):
        await following.turn()
        turns.clock.advance(1.0)
    assert turns.broker.values() == [("past", "air-1", 1)]
    assert turns.log.held.pieces() == []


async def two_lanes(turns: Turns) -> TwoLanes:
    way = await turns.greeted(TEMPORAL)
    assert isinstance(way, TwoLanes)
    return way


async def test_what_is_true_now_goes_first_and_the_past_after_it() -> None:
    turns = Turns()
    way = await two_lanes(turns)
    for n in range(3):
        turns.log.put("air-1", n, no2=n)
    await turns.until_settled(way)
    assert turns.broker.values() == [("state", "air-1", 2), ("past", "air-1", 0), ("past", "air-1", 1)]
    assert way.counts.accepted == 2


async def test_a_sweep_waits_its_linger_and_while_a_verdict_is_open_twice_that() -> None:
    turns = Turns()
    turns.log.put("air-1", 0, no2=0)
    assert turns.common.sweep_is_due()
    await turns.common.sweep()
    assert not turns.common.sweep_is_due()  # nothing changed
    turns.log.put("air-1", 1, no2=1)
    assert not turns.common.sweep_is_due()
    turns.clock.advance(0.1)
    turns.broker.answers = [refused(A)]
    assert turns.common.sweep_is_due()
    await turns.common.sweep()
    turns.clock.advance(0.15)
    assert not turns.common.sweep_is_due()
    turns.clock.advance(0.06)
    assert turns.common.sweep_is_due()  # it was not set aside
    assert [row["entity"] for row in turns.common.refusals.now({})] == [A]


async def test_a_history_that_fails_waits_by_itself_and_is_told_until_it_works() -> None:
    turns = Turns()
    way = await two_lanes(turns)
    turns.log.put("air-1", 5, no2=5)
    turns.log.put("air-1", 0, no2=0)
    fault = NotOffered("404 of a page", retry_after_s=30.0)
    turns.broker.answers = [Outcome(accepted=frozenset({A})), Outcome(later={A: "404"}, fault=fault)]
    for _ in range(6):
        await way.turn()
    assert way.fault is fault
    assert turns.health.state == BrokerState.DOWN
    assert turns.health.reason == "history: 404 of a page"
    assert turns.health.next_try_at is not None
    assert turns.health.next_try_at >= turns.clock.now() + timedelta(seconds=29)
    assert turns.common.probing.due  # it may be gone
    sent = len(turns.broker.sent)
    for _ in range(5):
        await way.turn()
    assert len(turns.broker.sent) == sent
    turns.log.put("air-1", 6, no2=6)
    turns.clock.advance(1.0)
    assert isinstance(await way.turn(), Outcome)  # the present does not wait
    turns.clock.advance(31.0)
    await turns.until_settled(way)
    assert way.fault is None
    assert turns.broker.values()[-1] == ("past", "air-1", 0)


async def test_a_history_that_cannot_be_read_back_fails_as_history() -> None:
    turns = Turns()
    way = await two_lanes(turns)
    turns.log.put("air-1", 5, no2=5)
    turns.log.put("air-1", 0, no2=0)
    turns.log.first_seq = turns.log.rows[-1][0] + 1
    turns.clock.advance(SETTINGS.records_within_s)
    await way.turn()
    turns.broker.fault = BrokerUnavailable("away")
    for _ in range(6):
        await way.turn()
    assert str(way.fault) == "away"


async def test_a_history_that_is_gone_goes_on_in_order_with_what_was_read() -> None:
    turns = Turns()
    way = await two_lanes(turns)
    turns.log.put("air-1", 5, no2=5)
    turns.log.put("air-2", 0, no2=0)
    turns.broker.answers = [Outcome(accepted=frozenset({A, B}))]
    await way.turn()
    turns.log.put("air-2", -1, no2=-1)
    turns.broker.answers = [Outcome(later={B: "404"}, fault=NotOffered("404"))]
    for _ in range(4):
        await way.turn()
    turns.common.probing.wanted = "in-order"
    following = await way.turn()
    assert isinstance(following, InOrder)
    assert following.kept_mode == "temporal"
    await turns.until_settled(following)
    assert [piece.reason for piece in turns.log.held.pieces()] == [LATE]


async def test_what_an_earlier_run_sent_is_asked_for_when_it_must_show() -> None:
    turns = Turns()
    way = await two_lanes(turns)
    turns.log.put("air-1", 5, no2=5)
    turns.log.put("air-1", 0, no2=0)
    turns.log.first_seq = turns.log.rows[-1][0] + 1
    for _ in range(10):
        await way.turn()
    assert [way_ for way_, _, _ in turns.broker.values()] == ["state"]
    assert turns.broker.asked == [[A]]
    turns.clock.advance(SETTINGS.records_within_s)
    await turns.until_settled(way)
    assert len(turns.broker.asked) == 2


async def test_what_nobody_passes_any_more_is_forgotten_when_nothing_is_owed() -> None:
    turns = Turns()
    way = await two_lanes(turns)
    turns.of.sent.note(A, 99, us(0))
    turns.of.aside.put(turns.update("air-2"), "503", 60.0)
    await turns.held()
    turns.log.cursor = turns.log.rows[-1][0]
    turns.common.state.changed()
    await way.turn()
    await way.turn()
    assert turns.of.sent.take(A, 99, us(0))  # a piece may still be of it
    turns.of.sent.note(A, 99, us(0))
    turns.log.held.table.clear()
    for _ in range(3):
        turns.clock.advance(1.0)
        await way.turn()
    assert not turns.of.sent.take(A, 99, us(0))
