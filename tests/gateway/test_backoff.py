"""Waits, `Retry-After`, breaker: pure, so each rule is one small test."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backoff import FLOOR_S, RETRY_AFTER_CAP_S, Backoff, Breaker, retry_after_s

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Highest(random.Random):
    """Draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Lowest(random.Random):
    """Draws the lower bound."""

    def uniform(self, a: float, b: float) -> float:
        return a


def test_unless_told_otherwise_waits_grow_from_half_a_second_to_a_minute_and_nothing_is_hurried() -> None:
    backoff = Backoff(rng=Highest())
    assert [backoff.next_s() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert Backoff(8.0, quick_cap_s=1.0, rng=Highest()).next_s() == 8.0


def test_the_shortest_wait_is_the_floor() -> None:
    backoff = Backoff(30.0, rng=Lowest())
    assert [backoff.next_s() for _ in range(3)] == [0.05] * 3


def test_bounds_double_up_to_the_cap_and_reset_starts_again() -> None:
    backoff = Backoff(1.0, 10.0, rng=Highest())
    assert [backoff.next_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next_s() == 1


def test_a_young_outage_is_tried_often_and_an_old_one_seldom() -> None:
    backoff = Backoff(1.0, 60.0, quick_cap_s=5.0, quick_for_s=60.0, rng=Highest())
    waits = [backoff.next_s() for _ in range(20)]
    assert max(waits[:14]) == 5.0
    assert waits[-1] == 60.0


@pytest.mark.parametrize("quick_for_s", [5.1, 7.0])
def test_an_outage_is_young_again_after_each_success_and_old_exactly_when_its_time_is_handed_out(
    quick_for_s: float,
) -> None:
    backoff = Backoff(1.0, 60.0, quick_cap_s=2.0, quick_for_s=quick_for_s, rng=Highest())
    for _ in range(3):
        assert [backoff.next_s() for _ in range(6)] == [1, 2, 2, 2, 16, 32]
        backoff.reset()


def test_one_that_is_not_hurried_counts_as_a_try_and_its_wait_as_waited() -> None:
    backoff = Backoff(1.0, 60.0, quick_cap_s=2.0, quick_for_s=10.0, rng=Highest())
    assert [backoff.next_s(hurry=False) for _ in range(3)] == [1, 2, 4]
    assert [backoff.next_s() for _ in range(3)] == [2, 2, 32]


def test_a_quick_bound_above_the_cap_is_the_cap() -> None:
    backoff = Backoff(1.0, 5.0, quick_cap_s=60.0, quick_for_s=1000.0, rng=Highest())
    assert max(backoff.next_s() for _ in range(2000)) == 5.0  # and no number overflows


def test_a_time_to_wait_in_the_past_shortens_nothing() -> None:
    assert Backoff(4.0, 10.0, rng=Highest()).next_s(retry_after_s=-3.0) == 4.0


@given(st.integers(), st.floats(0.01, 10), st.floats(10, 1000), st.integers(1, 80))
def test_a_wait_is_never_beyond_the_cap_nor_a_spin(seed: int, first_s: float, cap_s: float, tries: int) -> None:
    backoff = Backoff(first_s, cap_s, rng=random.Random(seed))
    assert all(FLOOR_S <= backoff.next_s() <= cap_s for _ in range(tries))


def test_waits_of_two_boxes_differ() -> None:
    one, other = Backoff(rng=random.Random(1)), Backoff(rng=random.Random(2))
    assert [one.next_s() for _ in range(5)] != [other.next_s() for _ in range(5)]


def test_what_the_other_side_asks_for_is_waited_at_least() -> None:
    assert Backoff(1.0, 10.0).next_s(retry_after_s=30.0) >= 30.0
    assert Backoff(1.0, 10.0).next_s(retry_after_s=1e9) <= RETRY_AFTER_CAP_S + 10.0


def test_retry_after_as_seconds_date_or_rubbish() -> None:
    assert retry_after_s("120", NOON) == 120.0
    assert retry_after_s("Mon, 01 Jun 2026 12:00:30 GMT", NOON) == 30.0
    assert retry_after_s("Mon, 01 Jun 2026 11:00:30 GMT", NOON) == 0.0
    assert retry_after_s("Mon, 01 Jun 2026 12:00:30 -0000", NOON) == 30.0  # names no zone: UTC
    assert retry_after_s("00000000000030", NOON) == 30.0
    for long in ("3601", "9" * 400, "Tue, 02 Jun 2026 12:00:00 GMT"):
        assert retry_after_s(long, NOON) == 3600.0
    for rubbish in (None, "", "soon", "-5", "12.5", "²"):
        assert retry_after_s(rubbish, NOON) is None


@given(st.text())
def test_any_retry_after_is_read_or_ignored(header: str) -> None:
    seconds = retry_after_s(header, NOON)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_CAP_S


def test_an_open_breaker_allows_one_try_after_its_wait() -> None:
    breaker = Breaker(Backoff(4.0, 10.0, rng=Highest()))
    assert breaker.closed
    assert breaker.failed(100.0) == 4.0
    assert not breaker.closed
    assert breaker.wait_s(101.0) == 3.0
    assert breaker.wait_s(105.0) == 0.0
    breaker.worked()
    assert breaker.closed
    assert breaker.wait_s(105.0) == 0.0


def test_a_breaker_that_fails_again_and_again_stays_open_longer_each_time_from_that_moment_on() -> None:
    breaker = Breaker(Backoff(4.0, 20.0, rng=Highest()))
    for turn in range(2):
        at_s = 100.0 * (turn + 1)
        for wait_s in (4.0, 8.0, 16.0, 20.0, 20.0):
            assert breaker.failed(at_s) == wait_s
            assert breaker.wait_s(at_s + 1) == wait_s - 1
            at_s += wait_s
            assert breaker.wait_s(at_s) == 0.0
            at_s += 5.0  # the try takes its time
            assert not breaker.closed  # one try decides
        breaker.worked()


def test_a_breaker_stays_open_for_as_long_as_was_asked_for() -> None:
    breaker = Breaker(Backoff(4.0, 10.0, rng=Highest()))
    assert breaker.failed(100.0, retry_after_s=30.0) == 34.0
    assert breaker.wait_s(120.0) == 14.0
