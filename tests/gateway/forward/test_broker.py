"""Pure parts: bisecting, what the broker holds, refused batches, batch sizes, points the state lane sent."""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from gateway.forward.updates import Mark, Sent
from gateway.harmonise.entity import Attribute, Entity
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
    for time_us in (2, 3, 1):
        sent.note("e", 7, time_us, Mark(time_us, 0))
    assert [sent.take("e", 7, time_us) for time_us in order] == [Mark(time_us, 0) for time_us in order]
    assert not sent.take("e", 7, 1)
    assert not sent.take("other", 7, 1)


def test_points_that_were_sent_in_any_order_are_told_from_those_between() -> None:
    sent = Sent()
    for time_us in (2, 6, 4):
        sent.note("e", 7, time_us)
    taken = [sent.take("e", 7, time_us) is not None for time_us in range(1, 8)]
    assert taken == [False, True, False, True, False, True, False]


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


def took(size: BatchSize, rate_per_s: float, batches: int = 4) -> int:
    """So many full batches at this rate; the size after them."""
    for _ in range(batches):
        size.took(size.size, size.size / rate_per_s)
    return size.size


def test_sizes_begin_at_what_is_known_and_climb_a_step_every_four_full_batches() -> None:
    starts = {0: 1, 1: 1, 2: 2, 4: 2, 5: 5, 24: 15, 25: 25, 1000: 200}
    assert {start: BatchSize(start).size for start in starts} == starts
    size, seen = BatchSize(1), []
    for n in range(9 * 4):
        if n % 4 == 0:
            seen.append(size.size)
        assert size.size == seen[-1]
        size.took(size.size, 0.0)  # too quick to be measured
    assert seen == [1, 2, 5, 10, 15, 25, 50, 100, 200]


@pytest.mark.parametrize(("gain", "after"), [(1.14, 200), (1.16, 100)])
def test_a_step_back_must_pay(gain: float, after: int) -> None:
    size = BatchSize(100)
    assert took(size, 1000.0 * gain) == 200
    assert took(size, 1000.0) == after


class Twice(BatchSize):
    """A step pays when it takes twice as many."""

    PAYS = 2.0


def test_a_step_that_pays_just_so_is_none() -> None:
    size = Twice(100)
    assert took(size, 400.0) == 200
    assert took(size, 200.0) == 200
    assert took(size, 128.0) == 100


def test_quick_requests_are_told_from_each_other_too() -> None:
    size = BatchSize(100)
    assert took(size, 5000.0) == 200
    assert took(size, 1000.0) == 100


@pytest.mark.parametrize(("rate", "after"), [(112.0, 200), (114.0, 50)])
def test_the_rate_of_a_size_is_a_mean_of_its_batches(rate: float, after: int) -> None:
    size = BatchSize(200)
    took(size, 100.0, 3)
    assert took(size, 200.0, 1) == 100  # 130 a second by now; smaller is unknown
    assert took(size, rate) == after


def test_a_long_request_makes_batches_smaller_at_once() -> None:
    size = BatchSize(5)
    size.took(5, 5.0)
    assert size.size == 5
    size.took(4, 5.1)
    assert size.size == 5  # it was not a full one
    size.took(5, 5.1)
    assert size.size == 2
    size.took(2, 5.1)
    assert size.size == 1
    size.took(1, 5.1)
    size.failed(1)
    assert size.size == 1


def test_a_smaller_request_that_failed_says_nothing_of_the_size() -> None:
    size = BatchSize(25)
    size.failed(24)
    assert size.size == 25
    size.failed(26)
    assert size.size == 15


def test_a_size_that_failed_is_worse_than_the_slowest_and_samples_begin_anew() -> None:
    size = BatchSize(5)
    took(size, 100.0, 3)
    size.failed(5)
    assert took(size, 0.5, 3) == 2
    assert took(size, 0.5, 1) == 1
    size = BatchSize(2)
    size.failed(2)
    assert took(size, 100.0, 40) == 1  # there is nothing smaller, and larger failed


def test_how_long_a_size_was_good_does_not_count_after_it_failed() -> None:
    size = BatchSize(100)
    took(size, 1000.0)
    for _ in range(700):
        size.took(200, 0.1)
    assert size.size == 200
    size.failed(200)
    full = 0
    while size.size < 200:
        size.took(size.size, 0.1)  # larger pays
        full += 1
        assert full < 2000
    assert full >= BatchSize.AGAIN


def test_a_size_that_was_too_large_is_tried_again_after_five_hundred() -> None:
    size = BatchSize(50)
    size.failed(50)
    assert took(size, 100.0) == 15  # whether smaller is better
    assert took(size, 80.0) == 25
    assert took(size, 100.0, 499) == 25
    assert took(size, 100.0, 1) == 50


async def test_a_batch_is_halved_until_the_culprits_stand_alone() -> None:
    entities = [measured(f"air-{n}", no2=n) for n in range(5)]
    for permanent in (True, False):
        sizes, send = refusing({entities[1].id, entities[4].id}, permanent=permanent)
        outcome = await bisect(entities, send)
        assert sizes == [5, 2, 1, 1, 3, 1, 2, 1, 1]
        assert outcome.accepted == {entities[n].id for n in (0, 2, 3)}
        assert (outcome.refused if permanent else outcome.later) == {entities[1].id: "no", entities[4].id: "no"}
        assert not (outcome.later if permanent else outcome.refused)


async def test_all_named_are_halved_like_none_named() -> None:
    entities = [measured(f"air-{n}", no2=n) for n in range(4)]
    sizes, send = refusing({entity.id for entity in entities}, naming=True)
    outcome = await bisect(entities, send)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert len(outcome.refused) == 4


def test_a_batch_is_refused_for_good_and_names_nobody_unless_it_is_said() -> None:
    error = BatchRefused("no such type")
    assert (error.reason, str(error), error.suspects, error.permanent) == (
        "no such type",
        "no such type",
        frozenset(),
        True,
    )


async def test_what_was_not_sent_when_the_broker_failed_is_not_in_doubt() -> None:
    calls: list[int] = []
    entities = [measured(f"air-{n}", no2=n) for n in range(8)]

    async def send(batch: Sequence[Entity]) -> Outcome:
        calls.append(len(batch))
        if len(calls) == 3:
            return Outcome(accepted=frozenset(entity.id for entity in batch))
        raise InDoubt("reset") if len(calls) == 4 else BatchRefused("no")

    outcome = await bisect(entities, send)

    assert calls == [8, 4, 2, 2]
    assert outcome.accepted == {entities[n].id for n in (0, 1)}
    assert outcome.later == {entities[n].id: "reset" for n in range(2, 8)}
    assert outcome.doubtful == {entities[n].id for n in (2, 3)}
    assert isinstance(outcome.fault, InDoubt)


def test_all_wait_for_a_broker_that_failed_in_doubt_only_when_it_may_have_been_carried_out() -> None:
    entities = [measured(f"air-{n}", no2=n) for n in range(2)]
    ids = {entity.id for entity in entities}
    for fault, sent, doubtful in (
        (InDoubt("reset"), True, ids),
        (InDoubt("reset"), False, set()),
        (BrokerUnavailable("reset"), True, set()),
    ):
        outcome = unavailable(entities, fault, sent=sent)
        assert outcome == Outcome(later=dict.fromkeys(ids, "reset"), doubtful=frozenset(doubtful), fault=fault)
    assert unavailable(entities, InDoubt("reset")).doubtful == ids


def test_outcomes_add_up_and_the_first_fault_stands() -> None:
    first, second = BrokerUnavailable("first"), BrokerUnavailable("second")
    left = Outcome(frozenset({"a"}), {"b": "no"}, {"c": "busy"}, frozenset({"c"}))
    right = Outcome(frozenset({"d"}), {"e": "no"}, {"f": "busy"}, frozenset({"f"}), second)
    both = Outcome(frozenset("ad"), {"b": "no", "e": "no"}, {"c": "busy", "f": "busy"}, frozenset("cf"), second)
    assert left + right == right + left == both
    assert (replace(left, fault=first) + right).fault is first


def test_what_is_known_of_an_entity_until_it_is_doubted() -> None:
    accepted = Accepted(ManualClock(START))
    accepted.doubt("e")  # nothing is known yet
    accepted.note("e", {})
    assert accepted.knows("e")
    accepted.note("f", {"no2": START})
    assert accepted.holds("f", "no2", START)
    assert not accepted.holds("f", "pm25", START)
    assert not accepted.holds("g", "no2", START)
    accepted.doubt("f")
    assert not accepted.knows("f")
    assert accepted.knows("e")
    assert not accepted.holds("f", "no2", START)


def test_what_a_broker_says_is_believed_up_to_what_may_run_ahead() -> None:
    accepted = Accepted(ManualClock(START))
    ahead, too_far = START + AHEAD, START + AHEAD + timedelta(microseconds=1)
    assert accepted.read_back("e", {"no2": ahead, "pm25": too_far}) == {"no2": ahead}
    assert accepted.holds("e", "no2", ahead)
    assert not accepted.holds("e", "pm25", too_far)
    assert accepted.read_back("f", {}) == {}
    assert accepted.knows("f")


def test_an_older_time_replaces_only_one_that_lies_in_the_future_by_now() -> None:
    clock = ManualClock(START)
    accepted = Accepted(clock)
    accepted.note("e", {"no2": START + AHEAD, "pm25": START - AHEAD})
    accepted.note("e", {"no2": START, "o3": START})
    assert accepted.holds("e", "no2", START + AHEAD)
    assert accepted.holds("e", "o3", START)
    ahead = replace(measured("air-1", 0.0, no2=1), id="e")
    assert accepted.newer(ahead) is None
    clock.step(-1.0)
    assert accepted.newer(ahead) is ahead
    accepted.note("e", {"no2": START, "pm25": START})
    assert accepted.holds("e", "no2", START)
    assert accepted.holds("e", "pm25", START)


def test_what_is_newer_keeps_what_has_no_time_and_is_the_same_when_all_of_it_is() -> None:
    accepted = Accepted(ManualClock(START))
    place = Attribute("geo", {"type": "Point", "coordinates": [9.159, 45.503]})
    entity = measured("air-1", 0.0, no2=1, pm25=2, o3=3)
    entity = replace(entity, attributes={**entity.attributes, "location": place})
    assert accepted.newer(entity) is entity
    accepted.note(entity.id, {"co": START})
    assert accepted.newer(entity) is entity
    accepted.note(entity.id, {"no2": START, "pm25": START})
    newer = accepted.newer(entity)
    assert newer is not None
    assert newer.attributes == {"o3": entity.attributes["o3"], "location": place}
    accepted.note(entity.id, {"o3": START - timedelta(seconds=1)})
    newer = accepted.newer(entity)
    assert newer is not None
    assert newer.attributes == {"o3": entity.attributes["o3"], "location": place}
    accepted.note(entity.id, {"o3": START})
    assert accepted.newer(entity) is None


def test_who_is_known_to_be_bad_stays_so_when_another_is_accepted_or_found_bad() -> None:
    streak = Streak(entities=10)
    streak.clear(["a"])
    streak.clear(["b"])
    streak.note(Outcome(accepted=frozenset({"c"}), refused={"d": "no"}))
    for bad in ("a", "b", "d"):
        for way in ("state", "past"):
            streak.note(refused(bad), way)
            assert not streak.begun
    streak.note(refused("a", "e"))
    assert streak.begun


def states(streak: Streak) -> tuple[bool, bool, bool]:
    return streak.begun, streak.one_bad, streak.config_fault


def test_one_bad_entity_and_then_others_is_the_config_and_begins_with_the_first() -> None:
    streak = Streak(entities=2)
    assert states(streak) == (False, False, False)
    streak.note(refused("a"))
    assert states(streak) == (True, False, False)
    streak.note(refused("a"))
    assert states(streak) == (True, False, False)
    streak.note(refused("a"))
    assert streak.one_bad
    streak.note(refused("b"))
    assert not streak.one_bad
    assert streak.config_fault
    streak.clear()
    assert states(streak) == (False, False, False)
    for _ in range(3):
        streak.note(refused("c"))
    assert streak.one_bad
