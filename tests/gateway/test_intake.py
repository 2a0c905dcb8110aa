"""What passes into the log, judged by single readings."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.intake import MAX_UNDECLARED_NAMES, Intake, PointRule
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, Value
from gateway.sdk.testing import NOON


def reading(value: Value | None, *, point: str = "t", at_s: float = 0, **changes: object) -> Reading:
    return replace(Reading(point, value, NOON + timedelta(seconds=at_s)), **changes)  # type: ignore[arg-type]


def bad(reason: Reason, at_s: float) -> Reading:
    return reading(None, at_s=at_s, quality=Quality.BAD, reason=reason)


def intake(**rule: object) -> Intake:
    return Intake({"t": PointRule(**rule), "u": PointRule()})  # type: ignore[arg-type]


def logged(gate: Intake, *readings: Reading) -> tuple[Reading, ...]:
    admitted = gate.admit(ReadingSet("d", readings))
    return admitted.logged.readings if admitted.logged else ()


def test_a_good_set_passes_as_the_very_same_object() -> None:
    good = ReadingSet("d", (reading(21.5), reading(3, point="u")))

    assert intake().admit(good).logged is good


def test_an_undeclared_field_is_dropped_and_counted() -> None:
    gate = intake()

    assert logged(gate, reading(1.0), reading(2.0, point="mystery")) == (reading(1.0),)
    assert gate.undeclared == {"mystery": 1}


def test_names_of_undeclared_fields_are_bounded() -> None:
    gate = intake()
    for n in range(3 * MAX_UNDECLARED_NAMES):
        gate.admit(ReadingSet("d", (reading(1.0, point=f"x{n}"),)))

    assert len(gate.undeclared) == MAX_UNDECLARED_NAMES


@pytest.mark.parametrize(
    ("value", "rule", "reason"),
    [
        (math.nan, {}, Reason.NOT_FINITE),
        (-math.inf, {}, Reason.NOT_FINITE),
        (100.1, {"low": 0, "high": 100}, Reason.OUT_OF_RANGE),
        (-0.1, {"low": 0, "high": 100}, Reason.OUT_OF_RANGE),
        ("21.5", {}, Reason.BAD_FRAME),
        (True, {}, Reason.BAD_FRAME),
        (1.5, {"kind": "integer"}, Reason.BAD_FRAME),
        (1, {"kind": "boolean"}, Reason.BAD_FRAME),
        ("a\0b", {"kind": "text"}, Reason.BAD_FRAME),
        ("x" * 513, {"kind": "text"}, Reason.BAD_FRAME),
    ],
)
def test_an_implausible_value_becomes_quality_and_reason_never_a_value(
    value: Value, rule: dict[str, object], reason: Reason
) -> None:
    [kept] = logged(intake(**rule), reading(value))

    assert (kept.value, kept.quality, kept.reason) == (None, Quality.BAD, reason)


def test_a_reading_that_calls_itself_good_without_value_is_not_good() -> None:
    [kept] = logged(intake(), reading(None))

    assert (kept.quality, kept.reason) == (Quality.BAD, Reason.NOT_AVAILABLE)


def test_bad_quality_is_logged_at_begin_and_change_and_once_a_minute_even_if_it_flaps() -> None:
    gate = intake()
    seen = [
        (at_s, kept.reason)
        for at_s, one in (
            [(0.0, reading(1.0, at_s=0))]
            + [(float(s), bad(Reason.TIMEOUT, s)) for s in range(1, 131)]
            + [(131.0, bad(Reason.BUSY, 131)), (132.0, reading(2.0, at_s=132)), (133.0, bad(Reason.BUSY, 133))]
        )
        for kept in logged(gate, one)
    ]

    assert seen == [
        (0.0, Reason.NONE),
        (1.0, Reason.TIMEOUT),
        (61.0, Reason.TIMEOUT),
        (121.0, Reason.TIMEOUT),
        (131.0, Reason.BUSY),
        (132.0, Reason.NONE),
    ]


def test_a_thinned_point_is_reported_on_change_and_at_least_every_period() -> None:
    gate = intake(on_change=0.5, at_least_s=60.0)
    served = [(s, 20.0 if s < 100 else 20.6) for s in range(130)]

    kept = [s for s, value in served if logged(gate, reading(value, at_s=s))]

    assert kept == [0, 60, 100]


def test_what_is_not_reported_is_still_shown() -> None:
    gate = intake(on_change=5.0)
    gate.admit(ReadingSet("d", (reading(20.0),)))

    admitted = gate.admit(ReadingSet("d", (reading(21.0, at_s=1),)))

    assert admitted.logged is None
    assert admitted.shown == (reading(21.0, at_s=1),)


def test_driver_state_passes_even_when_no_reading_does() -> None:
    gate = intake(on_change=5.0)
    gate.admit(ReadingSet("d", (reading(20.0),)))

    admitted = gate.admit(ReadingSet("d", (reading(20.0, at_s=1),), state={"fcnt": b"\x07"}))

    assert admitted.logged == ReadingSet("d", (), state={"fcnt": b"\x07"})


@given(st.lists(st.one_of(st.none(), st.floats(), st.integers(), st.booleans(), st.text()), min_size=1, max_size=8))
def test_whatever_comes_good_readings_are_finite_numbers_in_range(values: list[Value | None]) -> None:
    gate = intake(low=-10.0, high=10.0)
    for at_s, value in enumerate(values):
        for kept in logged(gate, reading(value, at_s=at_s)):
            if kept.quality is Quality.GOOD:
                assert type(kept.value) in (int, float)
                assert -10 <= float(kept.value) <= 10  # type: ignore[arg-type]
            else:
                assert kept.value is None
                assert kept.reason is not Reason.NONE
