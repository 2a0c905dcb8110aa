"""Readings of one point in turn: what is reported after what. A fault, a change, a pause of the sender, a step of time."""

import pytest

from gateway.intake import BAD_AGAIN_S, CROWD_BACK_S, Intake, PointRule
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, Value
from tests.gateway.test_intake import bad, intake, logged, reading


def reported(gate: Intake, *readings: Reading) -> list[Value | Reason]:
    """Of readings handed over one by one: the values that are logged, and the reasons where there is none."""
    return [kept.value if kept.value is not None else kept.reason for one in readings for kept in logged(gate, one)]


@pytest.mark.parametrize("rule", [{"on_change": 5.0}, {"at_least_s": 600.0}, {"on_change": 5.0, "at_least_s": 600.0}])
@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.OUT_OF_RANGE])
def test_the_first_good_value_after_a_fault_is_reported_though_nothing_has_changed(
    rule: dict[str, float], reason: Reason
) -> None:
    gate = intake(**rule)

    assert reported(gate, reading(20.0), bad(reason, 1), reading(20.0, at_s=2), reading(20.1, at_s=3)) == [
        20.0,
        reason,
        20.0,
    ]
    assert reported(gate, bad(Reason.BUSY, 70), bad(Reason.BUSY, 71), reading(20.0, at_s=72)) == [Reason.BUSY, 20.0]


def test_a_fault_that_is_not_told_again_needs_no_good_value_told_again() -> None:
    gate = intake(on_change=5.0)
    flapping = [one for s in range(1, 50, 2) for one in (bad(Reason.TIMEOUT, s), reading(20.0, at_s=s + 1))]

    assert reported(gate, reading(20.0), *flapping) == [20.0, Reason.TIMEOUT, 20.0]
    assert reported(gate, bad(Reason.TIMEOUT, 62), reading(20.0, at_s=63)) == [Reason.TIMEOUT, 20.0]


@pytest.mark.parametrize("rule", [{}, {"on_change": 5.0}])
def test_two_reasons_that_take_turns_are_each_told_and_one_that_lasts_once_a_minute(rule: dict[str, float]) -> None:
    gate = intake(**rule)
    turns = [bad(Reason.TIMEOUT if s % 2 else Reason.BUSY, s) for s in range(1, 5)]

    assert reported(gate, *turns) == [Reason.TIMEOUT, Reason.BUSY, Reason.TIMEOUT, Reason.BUSY]
    lasting = [bad(Reason.BUSY, 4 + s) for s in range(1, 130)]
    assert reported(gate, *lasting) == [Reason.BUSY, Reason.BUSY]


@pytest.mark.parametrize("back_s", [59.0, 3600.0])
def test_a_clock_that_was_set_back_does_not_silence_a_fault_for_as_long(back_s: float) -> None:
    gate = intake()
    reported(gate, bad(Reason.TIMEOUT, 0))

    again = reported(gate, bad(Reason.TIMEOUT, -back_s))

    assert again == ([Reason.TIMEOUT] if back_s >= BAD_AGAIN_S else [])


def test_a_clock_that_was_set_back_does_not_silence_a_thinned_point_for_as_long() -> None:
    gate = intake(at_least_s=60.0)

    assert reported(gate, reading(20.0), reading(20.0, at_s=-59), reading(21.0, at_s=-60)) == [20.0, 21.0]
    assert reported(gate, reading(20.0, at_s=-1), reading(22.0, at_s=0)) == [22.0]


def test_a_slow_drift_is_reported_when_it_has_come_far_enough_since_the_last_report() -> None:
    gate = intake(on_change=1.0)
    up = [reading(20 + n / 4, at_s=n) for n in range(9)]
    down = [reading(22 - n / 4, at_s=10 + n) for n in range(9)]

    assert reported(gate, *up, *down) == [20.0, 21.0, 22.0, 21.0, 20.0]


def test_any_change_is_a_change_and_no_change_is_none() -> None:
    gate = intake(on_change=0.0)

    assert reported(gate, *(reading(v, at_s=s) for s, v in enumerate((1.0, 1.0, 1.5, 1.5, 1.0)))) == [1.0, 1.5, 1.0]


@pytest.mark.parametrize(("kind", "one", "other"), [("text", "open", "shut"), ("boolean", True, False)])
def test_a_text_or_flag_is_reported_when_it_is_another_one(kind: str, one: Value, other: Value) -> None:
    gate = intake(kind=kind, on_change=3.0)
    values = (one, one, other, other, one)

    assert reported(gate, *(reading(v, at_s=s) for s, v in enumerate(values))) == [one, other, one]


def test_the_period_counts_from_the_last_report_and_not_from_the_last_reading() -> None:
    gate = intake(on_change=5.0, at_least_s=60.0)
    served = [reading(20.0 if s < 30 else 30.0, at_s=s) for s in range(0, 130, 10)]

    times = [kept.observed_at.second + 60 * kept.observed_at.minute for one in served for kept in logged(gate, one)]

    assert times == [0, 30, 90]


def test_each_point_is_thinned_by_itself_and_what_is_held_back_is_shown() -> None:
    gate = Intake({"t": PointRule(on_change=5.0), "u": PointRule()})
    gate.admit(ReadingSet("d", (reading(20.0), reading(1.0, point="u"))))

    admitted = gate.admit(ReadingSet("d", (reading(21.0, at_s=1), reading(1.0, point="u", at_s=1))))

    assert admitted.logged == ReadingSet("d", (reading(1.0, point="u", at_s=1),))
    assert admitted.shown == (reading(21.0, at_s=1),)


def test_a_bad_reading_has_no_value_whatever_its_driver_says_and_an_uncertain_one_keeps_its_own() -> None:
    [lost] = logged(intake(), reading(21.5, quality=Quality.BAD, reason=Reason.DEVICE_FAULT))
    [kept] = logged(intake(), reading(21.5, quality=Quality.UNCERTAIN, reason=Reason.DEVICE_FAULT))

    assert (lost.value, lost.quality, lost.reason) == (None, Quality.BAD, Reason.DEVICE_FAULT)
    assert (kept.value, kept.quality, kept.reason) == (21.5, Quality.UNCERTAIN, Reason.DEVICE_FAULT)


# --- counted crowds


def crowd(fewest: int = 0) -> Intake:
    return Intake({"t": PointRule(kind="integer", personal="count", count_every_s=60.0, fewest=fewest)}, b"salt")


def somebody(name: str, at_s: float) -> Reading:
    return reading(name, at_s=at_s)


def counted(gate: Intake, *readings: Reading) -> list[tuple[Value | None, float]]:
    """Number, and the second it is of."""
    zero = reading(0.0).observed_at
    return [(kept.value, (kept.observed_at - zero).total_seconds()) for one in readings for kept in logged(gate, one)]


def test_a_crowd_is_told_for_the_end_of_its_own_period_and_the_next_one_begins_at_nobody() -> None:
    gate = crowd()

    assert counted(gate, somebody("a", 0), somebody("b", 10), somebody("a", 59)) == []
    assert counted(gate, somebody("a", 200)) == [(2, 60.0)]
    assert counted(gate, somebody("c", 240)) == [(1, 240.0)]


@pytest.mark.parametrize(("people", "told"), [(2, []), (3, [(3, 60.0)])])
def test_few_are_not_told_and_just_enough_are(people: int, told: list[tuple[int, float]]) -> None:
    gate = crowd(fewest=3)

    assert counted(gate, *(somebody(f"p{n}", n) for n in range(people))) == []
    assert counted(gate, somebody("a", 61)) == told
    assert counted(gate, somebody("a", 121)) == [], "they are not added to the next"


def test_a_fault_between_two_people_is_told_and_forgets_nobody() -> None:
    gate = crowd()

    assert counted(gate, somebody("a", 0), bad(Reason.TIMEOUT, 1), somebody("b", 2)) == [(None, 1.0)]
    assert counted(gate, somebody("a", 60)) == [(2, 60.0)]


def test_who_comes_late_is_counted_nowhere_and_a_clock_far_ahead_does_not_stop_the_count() -> None:
    gate = crowd()
    counted(gate, somebody("a", 60))

    assert counted(gate, somebody("late", 59), somebody("b", 61)) == []
    assert counted(gate, somebody("a", 120)) == [(2, 120.0)]
    ahead_s = 120 + CROWD_BACK_S + 120
    assert counted(gate, somebody("a", ahead_s)) == [(1, 180.0)]
    assert [number for number, _ in counted(gate, somebody("b", 130), somebody("c", 180))] == [1, 1]


def test_a_day_behind_is_late_and_more_was_of_a_clock_that_was_wrong() -> None:
    gate = crowd()
    counted(gate, somebody("a", CROWD_BACK_S + 60))

    assert counted(gate, somebody("late", 60)) == []
    assert counted(gate, somebody("a", 59)) == [(1, CROWD_BACK_S + 120)]
