"""Scale factors in registers, counters that restart, a status that takes the values with it."""

from dataclasses import replace

import pytest

from drivers.modbus.codec.counters import Counter, Track
from drivers.modbus.codec.points import Rules, finish
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


def test_a_reading_without_value_leaves_the_counter_alone() -> None:
    rules = Rules(order=("n",), factors={}, rollover={"n": 1000.0}, status=None)
    counters = {"n": Counter(Track(2000.0, 990.0, NOON.timestamp() - 10), rate=1.0)}

    assert finish([without("n", Reason.NOT_AVAILABLE)], rules, counters) == (without("n", Reason.NOT_AVAILABLE),)
    assert finish([good("n", 995)], rules, counters) == (good("n", 2995.0),)


def test_a_count_in_doubt_has_no_value() -> None:
    rules = Rules(order=("n",), factors={}, rollover={"n": 1000.0}, status=None)
    counters = {"n": Counter(Track(2000.0, 500.0, NOON.timestamp()), rate=1.0)}

    assert finish([good("n", 0)], rules, counters) == (without("n", Reason.OUT_OF_RANGE),)
    assert finish([good("n", 500)], rules, counters) == (good("n", 2500.0),)


def test_what_the_device_itself_doubts_moves_no_counter() -> None:
    rules = Rules(order=("n", "status"), factors={}, rollover={"n": 1000.0}, status=("status", 0))
    counters = {"n": Counter(Track(0.0, 500.0, NOON.timestamp()), rate=1.0)}
    before = replace(counters["n"])

    finish([good("n", 0), good("status", 7)], rules, counters)

    assert counters["n"] == before


def test_an_unhealthy_status_takes_the_other_values_with_it() -> None:
    rules = Rules(order=("status", "co2"), factors={}, rollover={}, status=("status", 0))

    assert finish([good("co2", 400), good("status", 0)], rules, {}) == (good("status", 0), good("co2", 400))
    assert finish([good("co2", 400), good("status", 32)], rules, {})[1].reason is Reason.DEVICE_FAULT
