"""Scale factors in registers, counters that restart, a status that takes the values with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.modbus.codec.points import Counter, Rules, finish
from gateway.sdk.reading import Quality, Reading, Reason, Value
from gateway.sdk.testing import NOON


def good(point: str, value: Value) -> Reading:
    return Reading(point, value, NOON)


def without(point: str, reason: Reason) -> Reading:
    return Reading(point, None, NOON, Quality.BAD, reason)


FACTOR = Rules(order=("a",), factors={"a": "@9"}, rollover={}, status=None)


@pytest.mark.parametrize(("raw", "exponent", "value"), [(2305, -1, 230.5), (12, 3, 12000), (7, 0, 7), (-5, -2, -0.05)])
def test_a_scale_factor_of_the_device_is_a_power_of_ten(raw: int, exponent: int, value: float) -> None:
    [reading] = finish([good("@9", exponent), good("a", raw)], FACTOR, {})

    assert reading == good("a", value)


@pytest.mark.parametrize("factor", [[without("@9", Reason.NOT_AVAILABLE)], [], [good("@9", 77)]])
def test_without_a_usable_scale_factor_there_is_no_value(factor: list[Reading]) -> None:
    [reading] = finish([*factor, good("a", 5)], FACTOR, {})

    assert (reading.value, reading.quality, reading.reason) == (None, Quality.BAD, Reason.NOT_AVAILABLE)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60))
def test_a_counter_that_restarts_at_its_end_goes_on(steps: list[int]) -> None:
    total, counter = 0, Counter()
    for step in steps:
        total += step
        assert counter.take(total % 1000, 1000) == total


def test_a_counter_that_falls_from_the_middle_is_a_new_meter() -> None:
    counter = Counter()
    counter.take(990, 1000)
    counter.take(10, 1000)

    assert counter.take(400, 1000) == 1400
    assert counter.take(5, 1000) == 5


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_counter_survives_a_restart(base: float, last: float) -> None:
    assert Counter.restored(Counter(base, last).saved()) == Counter(base, last)


@given(st.binary(max_size=20))
def test_any_saved_bytes_make_a_counter(data: bytes) -> None:
    assert isinstance(Counter.restored(data), Counter)


def test_a_reading_without_value_leaves_the_counter_alone() -> None:
    rules = Rules(order=("n",), factors={}, rollover={"n": 1000.0}, status=None)
    counters = {"n": Counter(base=2000.0, last=990.0)}

    assert finish([without("n", Reason.NOT_AVAILABLE)], rules, counters) == (without("n", Reason.NOT_AVAILABLE),)
    assert finish([good("n", 5)], rules, counters) == (good("n", 3005.0),)


def test_an_unhealthy_status_takes_the_other_values_with_it() -> None:
    rules = Rules(order=("status", "co2"), factors={}, rollover={}, status=("status", 0))

    assert finish([good("co2", 400), good("status", 0)], rules, {}) == (good("status", 0), good("co2", 400))
    assert finish([good("co2", 400), good("status", 32)], rules, {})[1].reason is Reason.DEVICE_FAULT
