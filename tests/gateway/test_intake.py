"""What passes into the log, judged by single readings."""

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.intake import MAX_NAME_CHARACTERS, MAX_UNDECLARED_NAMES, TINY, Intake, PointRule
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource, Value
from gateway.sdk.testing import NOON
from tests.support import hostile


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
        ("warm", {}, Reason.WRONG_TYPE),
        (True, {}, Reason.WRONG_TYPE),
        (1.5, {"kind": "integer"}, Reason.WRONG_TYPE),
        (2, {"kind": "boolean"}, Reason.WRONG_TYPE),
        (1.5, {"kind": "text"}, Reason.WRONG_TYPE),
        ("a\0b", {"kind": "text"}, Reason.WRONG_TYPE),
        ("\ud83d", {"kind": "text"}, Reason.WRONG_TYPE),
        ("x" * 513, {"kind": "text"}, Reason.WRONG_TYPE),
        (-2.4e-41, {}, Reason.OUT_OF_RANGE),
        (5e-324, {"low": 0, "high": 1}, Reason.OUT_OF_RANGE),
        (1e300, {}, Reason.OUT_OF_RANGE),
        (10**400, {}, Reason.OUT_OF_RANGE),
        (2**64, {"kind": "integer"}, Reason.OUT_OF_RANGE),
        ("900", {"high": 100}, Reason.OUT_OF_RANGE),
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


@pytest.mark.parametrize(
    ("raw", "kind", "value"),
    [
        (3.0, "integer", 3),
        (1.0, "boolean", True),
        (0, "boolean", False),
        ("21.50", "number", 21.5),
        (0.0, "number", 0.0),
        (hostile.OBJECTS[2], "number", 21.5),
    ],
)
def test_a_value_that_means_one_of_its_kind_is_taken_as_that(raw: Any, kind: str, value: Value) -> None:
    [kept] = logged(intake(kind=kind), reading(raw))

    assert (kept.value, type(kept.value), kept.quality) == (value, type(value), Quality.GOOD)


def test_words_of_the_sdk_are_understood_as_plain_text_and_unknown_ones_cost_the_value() -> None:
    plain = reading(21.5, quality="uncertain", reason="device_fault", time_source="device")
    for odd in ({"quality": "excellent"}, {"reason": 7}, {"time_source": None}, {"quality": hostile.RAISES}):
        [kept] = logged(intake(), reading(21.5, **odd))
        assert (kept.value, kept.quality, kept.reason) == (None, Quality.BAD, Reason.WRONG_TYPE)

    [kept] = logged(intake(), plain)
    assert (kept.value, kept.quality, kept.reason) == (21.5, Quality.UNCERTAIN, Reason.DEVICE_FAULT)
    assert type(kept.quality) is Quality


def test_a_point_without_a_name_is_undeclared() -> None:
    gate = intake()
    nameless = [replace(reading(1.0), point=point) for point in hostile.OBJECTS]

    assert logged(gate, *nameless, reading(21.5)) == (reading(21.5),)
    assert sum(gate.undeclared.values()) == len(nameless)


def test_names_of_undeclared_fields_can_be_shown_whatever_they_are() -> None:
    gate = intake()
    for name in hostile.TEXTS:
        gate.admit(ReadingSet("d", (reading(1.0, point=name),)))

    for name in gate.undeclared:
        assert len(name) <= MAX_NAME_CHARACTERS
        name.encode()


@st.composite
def handed_over(draw: st.DrawFn) -> Any:
    """Something near a reading: any part of it may be anything."""
    word = st.one_of(st.sampled_from(["good", "bad", "timeout", "device", "", "odd"]), hostile.values())
    return reading(
        draw(hostile.values()),
        point=draw(st.one_of(st.sampled_from(["t", "u"]), hostile.values())),
        quality=draw(st.one_of(st.sampled_from(Quality), word)),
        reason=draw(st.one_of(st.sampled_from(Reason), word)),
        time_source=draw(st.one_of(st.sampled_from(TimeSource), word)),
    )


RULES: tuple[dict[str, object], ...] = (
    {},
    {"low": -10.0, "high": 10.0, "on_change": 0.5},
    {"kind": "integer"},
    {"kind": "boolean", "on_change": 0.0, "at_least_s": 60.0},
    {"kind": "text", "on_change": 0.0},
    {"kind": "text", "personal": "hash"},
    {"personal": "blur", "blur_to": 0.01},
    {"personal": "blur", "blur_to": 1e-300},
    {"kind": "integer", "personal": "count"},
)


@given(st.sampled_from(RULES), st.lists(handed_over(), max_size=6))
def test_whatever_a_driver_hands_over_what_is_admitted_can_be_stored_and_shown(
    rule: dict[str, object], handed: list[Any]
) -> None:
    gate = intake(**rule)
    admitted = gate.admit(ReadingSet("d", tuple(handed)))
    judged = gate.judge(handed)

    for kept in (*(admitted.logged.readings if admitted.logged else ()), *admitted.shown, *judged.readings):
        assert (type(kept.quality), type(kept.reason), type(kept.time_source)) == (Quality, Reason, TimeSource)
        assert type(kept.value) in (float, int, bool, str, type(None))
        assert (kept.value is None) == (kept.quality is Quality.BAD) or kept.quality is Quality.UNCERTAIN
        orjson.dumps(kept.value)
        if kept.quality is Quality.GOOD and type(kept.value) is float:
            assert math.isfinite(kept.value)
            assert kept.value == 0 or 1e-30 <= abs(kept.value) <= 9e18


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


def test_a_name_that_is_counted_goes_on_being_counted_when_no_other_finds_room() -> None:
    gate = intake()
    for n in range(2 * MAX_UNDECLARED_NAMES):
        gate.admit(ReadingSet("d", (reading(1.0, point=f"x{n}"),)))
    gate.admit(ReadingSet("d", (reading(1.0, point="x0"), reading(1.0, point=f"x{MAX_UNDECLARED_NAMES}"))))

    assert gate.undeclared["x0"] == 2
    assert f"x{MAX_UNDECLARED_NAMES}" not in gate.undeclared


@pytest.mark.parametrize("value", [-5.0, 5.0, -5, 5, TINY, -TINY, 0.0, -0.0])
@pytest.mark.parametrize("quality", [Quality.GOOD, Quality.UNCERTAIN])
def test_a_bound_itself_is_plausible(value: float, quality: Quality) -> None:
    [kept] = logged(intake(low=-5.0, high=5.0), reading(value, quality=quality))
    assert (kept.value, kept.quality) == (value, quality)


@pytest.mark.parametrize("value", [5.0000001, -5.0000001, TINY / 2, -TINY / 2, 6, -6])
@pytest.mark.parametrize("quality", [Quality.GOOD, Quality.UNCERTAIN])
def test_beyond_the_bound_is_not(value: float, quality: Quality) -> None:
    [kept] = logged(intake(low=-5.0, high=5.0), reading(value, quality=quality))
    assert (kept.value, kept.reason) == (None, Reason.OUT_OF_RANGE)


@pytest.mark.parametrize("value", [1.0, 99.0, None])
@pytest.mark.parametrize("source", [TimeSource.DEVICE, "device", TimeSource.NETWORK, "network"])
def test_whose_clock_it_was_stays_also_with_a_value_that_is_refused(value: float | None, source: Any) -> None:
    [kept] = logged(intake(high=5.0), reading(value, time_source=source))
    assert type(kept.time_source) is TimeSource
    assert kept.time_source == source
    assert (kept.value is None) is (value != 1.0)


def test_a_fault_without_a_reason_is_told_too_and_once_a_minute() -> None:
    gate = intake()
    faults = [reading(None, at_s=at_s, quality=Quality.BAD) for at_s in (0, 10, 70)]
    assert [bool(logged(gate, fault)) for fault in faults] == [True, False, True]


@pytest.mark.parametrize(
    ("raw", "kept"),
    [(10, True), (-(2**62), True), ("k", True), (2**63, False), (-(2**63) - 1, False), (1.5, False), (True, False)],
)
def test_who_is_counted_is_a_text_or_a_number_that_stands_for_somebody(raw: Any, kept: bool) -> None:
    gate = intake(kind="text", personal="count", count_every_s=60.0)
    found = logged(gate, reading(raw))
    assert [(its.value, its.reason) for its in found] == ([] if kept else [(None, Reason.WRONG_TYPE)])
    assert [its.value for its in logged(gate, reading("z", at_s=60))] == [1] * kept


def test_two_points_count_their_own_people_and_too_many_are_counted_as_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.intake.MAX_CROWD", 3)
    rule = PointRule(kind="text", personal="count", count_every_s=60.0)
    gate = Intake({"t": rule, "u": rule})
    for name in "abcde":
        assert not logged(gate, reading(name), reading("one", point="u"))

    found = logged(gate, reading("z", at_s=60), reading("z", point="u", at_s=60))
    assert {its.point: its.value for its in found} == {"t": 3, "u": 1}


@pytest.mark.parametrize("value", ["here", True, 1e300])
def test_what_cannot_be_blurred_is_not_let_through(value: Value) -> None:
    kind = "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
    assert not logged(intake(kind=kind, personal="blur", blur_to=1e-9, high=1e301), reading(value))
