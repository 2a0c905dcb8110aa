"""Pure parts: bisecting, what the broker holds, refused batches, batch sizes, points the state lane sent."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.claims import AHEAD
from gateway.forward.broker import (
    Accepted,
    BatchRefused,
    BatchSize,
    InDoubt,
    Outcome,
    Streak,
    bisect,
    observed,
    unavailable,
)
from gateway.forward.updates import Sent
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.testing import ManualClock
from tests.gateway.forward.scene import START, RealClock, entity_id, measured


def refusing(bad: set[str], *, naming: bool = False, permanent: bool = True) -> tuple[list[int], Callable]:  # type: ignore[type-arg]  # of Send
    sizes: list[int] = []

    async def send(batch: Sequence[Entity]) -> Outcome:
        sizes.append(len(batch))
        culprits = frozenset(entity.id for entity in batch if entity.id in bad)
        if culprits:
            raise BatchRefused("no", suspects=culprits if naming else frozenset(), permanent=permanent)
        return Outcome(accepted=frozenset(entity.id for entity in batch))

    return sizes, send


@given(st.sets(st.integers(0, 49)), st.booleans(), st.booleans())
async def test_bisecting_refuses_the_culprits_and_only_them(bad: set[int], naming: bool, permanent: bool) -> None:
    entities = [measured(f"air-{n}", no2=n) for n in range(50)]
    ids = {entity_id(f"air-{n}") for n in bad}
    _, send = refusing(ids, naming=naming, permanent=permanent)

    outcome = await bisect(entities, send)

    assert outcome.accepted == {entity.id for entity in entities} - ids
    assert set(outcome.refused if permanent else outcome.later) == ids
    assert outcome.fault is None


async def test_one_culprit_among_many_costs_few_requests() -> None:
    sizes, send = refusing({entity_id("air-31")})
    await bisect([measured(f"air-{n}", no2=n) for n in range(64)], send)
    assert len(sizes) == 13  # 1 + 2 * log2(64)


async def test_a_named_culprit_costs_two_more() -> None:
    sizes, send = refusing({entity_id("air-31")}, naming=True)
    await bisect([measured(f"air-{n}", no2=n) for n in range(64)], send)
    assert sizes == [64, 63, 1]


async def test_a_broker_that_fails_in_the_search_leaves_the_rest_for_later() -> None:
    calls = 0

    async def send(batch: Sequence[Entity]) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise BatchRefused("no")
        if calls == 2:
            return Outcome(accepted=frozenset(entity.id for entity in batch))
        raise InDoubt("reset")

    entities = [measured(f"air-{n}", no2=n) for n in range(8)]
    outcome = await bisect(entities, send)

    assert len(outcome.accepted) == 4
    assert outcome.later.keys() == {entity.id for entity in entities} - outcome.accepted
    assert outcome.doubtful == outcome.later.keys()
    assert isinstance(outcome.fault, BrokerUnavailable)


def test_an_older_or_equal_time_is_taken_out_and_static_attributes_alone_are_nothing() -> None:
    accepted = Accepted(RealClock())
    accepted.note(entity_id("air-1"), {"no2": START})
    both = measured("air-1", 0, no2=1, pm25=2)

    newer = accepted.newer(both)

    assert newer is not None
    assert set(newer.attributes) == {"pm25"}
    assert accepted.newer(measured("air-1", -5, no2=1)) is None
    assert accepted.newer(measured("air-1", 5, no2=1)) is not None
    assert accepted.newer(measured("air-2", -5, no2=1)) is not None


@given(st.lists(st.integers(-1000, 1000), min_size=1))
def test_what_is_known_of_the_broker_never_runs_backwards(times: list[int]) -> None:
    accepted = Accepted(RealClock())
    for at_s in times:
        accepted.note("e", {"no2": START + timedelta(seconds=at_s)})
    assert accepted.holds("e", "no2", START + timedelta(seconds=max(times)))


@given(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-2000, 2000)), min_size=1))
def test_a_time_of_a_clock_that_ran_ahead_and_was_set_back_keeps_no_true_one_out(steps: list[tuple[int, int]]) -> None:
    """Whatever the clock does: what is of about now is never taken for older than what lies in the future of now."""
    clock = ManualClock(START)
    accepted = Accepted(clock)
    held: float | None = None
    for step_s, taken_s in steps:
        clock.step(step_s)
        now_s = (clock.now() - START).total_seconds()
        at_s = min(taken_s, now_s)
        believed = held is not None and held <= now_s + AHEAD.total_seconds()
        expected = not believed or at_s > (held or 0.0)
        newer = accepted.newer(measured("air-1", at_s, no2=1))
        assert (newer is not None) is expected
        if newer is not None:
            accepted.note(newer.id, observed(newer))
            held = at_s


def test_times_of_an_entity() -> None:
    assert observed(measured("air-1", 7, no2=1)) == {"no2": START + timedelta(seconds=7)}


def refused(*ids: str) -> Outcome:
    return Outcome(refused=dict.fromkeys(ids, "no"))


def test_three_batches_refused_whole_are_a_config_fault() -> None:
    streak = Streak(entities=10)
    for batch in (("a", "b"), ("a",), ("c",)):
        assert not streak.config_fault
        streak.note(refused(*batch))
    assert streak.config_fault


def put_off(*ids: str) -> Outcome:
    return Outcome(later=dict.fromkeys(ids, "not now"))


def test_three_batches_put_off_whole_are_no_fault_of_entities_either() -> None:
    streak = Streak(entities=10)
    for outcome in (put_off("a", "b"), put_off("a") + refused("b"), put_off("c")):
        assert not streak.config_fault
        streak.note(outcome)
    assert streak.config_fault


def test_what_waits_for_a_broker_that_is_away_tells_nothing_of_entities() -> None:
    streak = Streak(entities=10)
    for batch in ("a", "b", "c", "d"):
        streak.note(unavailable([measured(batch, no2=1)], BrokerUnavailable("away")))
    assert not streak.begun


def test_one_entity_put_off_among_others_is_put_off_alone() -> None:
    streak = Streak(entities=10)
    for _ in range(3):
        streak.note(put_off("a"))
    assert not streak.config_fault
    streak.note(Outcome(accepted=frozenset({"c"}), later={"a": "not now"}))
    streak.note(put_off("a"))
    assert not streak.begun


def test_the_only_entity_stands_for_all() -> None:
    streak = Streak(entities=1)
    for _ in range(3):
        streak.note(refused("a"))
    assert streak.config_fault


def test_one_bad_entity_among_others_is_no_config_fault() -> None:
    streak = Streak(entities=10)
    for _ in range(3):
        streak.note(refused("a"))
    assert streak.one_bad
    assert not streak.config_fault


def test_an_acceptance_between_tells_that_the_entities_are_bad() -> None:
    streak = Streak(entities=10)
    streak.note(refused("a", "b"))
    streak.note(refused("a", "b"))
    streak.note(Outcome(accepted=frozenset({"c"}), refused={"a": "no"}))
    streak.note(refused("a"))  # known to be bad: says nothing new
    assert not streak.begun


class Model:
    """A broker that takes so many seconds for a batch."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds

    def settle(self, size: BatchSize, batches: int = 200) -> int:
        for _ in range(batches):
            size.took(size.size, self.seconds(size.size))
        return size.size


def test_batches_grow_where_a_request_costs_more_than_an_entity() -> None:
    assert Model(lambda n: 0.1 + 0.0001 * n).settle(BatchSize(25)) == 200


def test_batches_stay_small_where_time_grows_with_the_square() -> None:
    assert Model(lambda n: 0.02 + 0.0002 * n * n).settle(BatchSize(25)) in (5, 10, 15)


def test_a_long_request_or_a_refusal_for_size_makes_batches_smaller() -> None:
    size = BatchSize(100)
    size.took(100, 6.0)
    assert size.size < 100
    for _ in range(20):
        size.failed(size.size)
    assert size.size == 1


def test_half_full_batches_teach_nothing() -> None:
    size = BatchSize(25)
    for _ in range(100):
        size.took(3, 0.001)
    assert size.size == 25


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]])
def test_a_point_that_was_sent_is_taken_once(order: list[int]) -> None:
    sent = Sent()
    for time_us in (1, 2, 3):
        sent.note("e", 7, time_us)
    assert [sent.take("e", 7, time_us) for time_us in order] == [True, True, True]
    assert not sent.take("e", 7, 1)
    assert not sent.take("other", 7, 1)


class Three(Sent):
    """Remembers three points at most."""

    LIMIT = 3


def test_what_was_sent_counts_until_it_is_taken_and_each_point_once() -> None:
    sent = Three()
    for _ in range(3):
        for time_us in (1, 2):
            sent.note("e", 7, time_us)  # again: no more than once
    assert not sent.full
    for turn in range(5):
        sent.note("e", 8, turn)
        assert sent.full
        assert not sent.take("e", 8, turn + 1)  # was never sent
        assert not sent.take("e", 9, turn)
        assert sent.full
        assert sent.take("e", 8, turn)
        assert not sent.take("e", 8, turn)  # once
        assert not sent.full


def test_what_was_sent_is_forgotten_altogether_when_the_log_was_read_past_it() -> None:
    sent = Three()
    for turn in range(3):
        for time_us in range(3):
            assert not sent.full
            sent.note("e", turn, time_us)
        assert sent.full
        sent.clear()
    assert not sent.take("e", 2, 0)


def test_a_size_that_was_too_large_is_tried_again_after_a_long_while_and_not_before() -> None:
    size = BatchSize(50)
    size.failed(50)
    full = 0
    while size.size < 50:
        size.took(size.size, 0.1)  # larger pays
        full += 1
        assert full < 2 * BatchSize.AGAIN
    assert full >= BatchSize.AGAIN
    size.failed(50)  # and again it is too large: as long as before
    full = 0
    while size.size < 50:
        size.took(size.size, 0.1)
        full += 1
        assert full < 2 * BatchSize.AGAIN
    assert full >= BatchSize.AGAIN


def test_one_that_was_bad_in_one_way_counts_again_when_it_was_accepted_in_that_way() -> None:
    streak = Streak(entities=10)
    streak.clear(entity for entity in ("a",))  # whatever can be walked
    for way in ("state", "past"):
        streak.note(refused("a"), way)
        assert not streak.begun
    streak.note(Outcome(accepted=frozenset({"a"})), "state")
    streak.note(refused("a"), "past")
    assert not streak.begun  # as history it is as bad as ever
    streak.note(refused("a"), "state")
    assert streak.begun


def test_a_streak_that_was_broken_begins_anew_with_its_entities_too() -> None:
    streak = Streak(entities=10)
    streak.note(refused("a"))
    streak.note(refused("b"))
    streak.note(Outcome(accepted=frozenset({"c"})))
    for _ in range(3):
        streak.note(refused("d"))
    assert streak.one_bad  # what was refused before the acceptance is none of it


def test_who_was_put_off_because_the_broker_failed_is_not_bad() -> None:
    streak = Streak(entities=10)
    fault = BrokerUnavailable("away")
    streak.note(Outcome(accepted=frozenset({"c"}), later={"a": "away"}, fault=fault))
    streak.note(refused("a"))
    assert streak.begun
