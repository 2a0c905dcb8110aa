"""Claimed times at the first and the last moment that is believed: the gate alone."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from gateway.claims import EARLIEST, Claim, Reception, TimeGate, utc_or_none
from gateway.log.segment import microseconds
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource
from gateway.sdk.testing import NOON

US = timedelta(microseconds=1)
DAY, MINUTES_5 = timedelta(days=1), timedelta(minutes=5)
YEAR_2020, YEAR_2100 = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
DAYS_BEFORE = NOON - timedelta(hours=72)  # what the clock would show that was set
SURE, UNSURE = Reception(NOON, True), Reception(NOON, False)
BOUNDS = [
    (TimeSource.GATEWAY, SURE, NOON - DAY, NOON + MINUTES_5),
    (TimeSource.GATEWAY, UNSURE, NOON - DAY, NOON + MINUTES_5),
    (TimeSource.DEVICE, SURE, NOON - 2 * DAY, NOON + MINUTES_5),
    (TimeSource.NETWORK, SURE, NOON - 7 * DAY, NOON + MINUTES_5),
    (TimeSource.DEVICE, UNSURE, YEAR_2020, YEAR_2100),
    (TimeSource.NETWORK, UNSURE, YEAR_2020, YEAR_2100),
]


@pytest.mark.parametrize(("source", "reception", "first", "last"), BOUNDS, ids=str)
def test_the_first_and_the_last_time_that_is_believed(
    source: TimeSource, reception: Reception, first: datetime, last: datetime
) -> None:
    for at, believed in ((first, True), (last, True), (first - US, False), (last + US, False)):
        gate = TimeGate(device_back=2 * DAY, network_back=7 * DAY)
        handed = ReadingSet("d", (Reading("t", 1.0, at, time_source=source),))
        made, waits = gate.admit(handed, reception)
        if believed:
            assert made is handed
        else:
            assert made.readings == (Reading("t", 1.0, NOON),)
        assert (gate.replaced, gate.unreadable) == (not believed, 0)
        assert gate.wrong == ((EARLIEST, TimeSource.GATEWAY) if believed else (at, source))
        assert waits is (believed and reception is UNSURE and source is not TimeSource.GATEWAY)


def test_of_a_clock_that_was_set_a_moment_ago_both_nows_are_believed() -> None:
    reception = Reception(NOON, True, before=DAYS_BEFORE)
    for now in (NOON, DAYS_BEFORE):
        for at, wrong in ((now - DAY, 0), (now + MINUTES_5, 0), (now - DAY - US, 1), (now + MINUTES_5 + US, 1)):
            gate = TimeGate()
            gate.admit(ReadingSet("d", (Reading("t", 1.0, at),)), reception)
            assert gate.replaced == wrong


@pytest.mark.parametrize("heard_ago", [timedelta(minutes=6), timedelta(days=3)])
def test_what_the_network_queued_is_dated_by_when_it_was_heard(heard_ago: timedelta) -> None:
    """A wrong clock is counted and told, as without a network."""
    heard = NOON - heard_ago
    gate = TimeGate(device_back=2 * DAY)
    network = Reading("rssi", -90, heard, time_source=TimeSource.NETWORK)
    later = Reading("snr", 7, NOON, time_source=TimeSource.NETWORK)
    wrong = [heard - 2 * DAY - US, heard + MINUTES_5 + US]
    for at in (heard - 2 * DAY, heard + MINUTES_5, *wrong):
        reading = Reading("t", 1.0, at, time_source=TimeSource.DEVICE)
        made, _ = gate.admit(ReadingSet("d", (later, network, reading)), SURE)
        expected = Reading("t", 1.0, heard, time_source=TimeSource.NETWORK) if at in wrong else reading
        assert made.readings == (later, network, expected)
        if at in wrong:
            assert gate.wrong == (at, TimeSource.DEVICE)
    assert gate.replaced == 2

    sundial: Any = "sundial"
    rome = heard.astimezone(timezone(timedelta(hours=2)))
    made, _ = gate.admit(ReadingSet("d", (network, Reading("t", 1.0, rome, time_source=sundial))), SURE)
    assert made.readings[1] == Reading("t", 1.0, heard, time_source=TimeSource.DEVICE)
    assert made.readings[1].observed_at.tzinfo is UTC


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as box:
        box.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_a_box_that_is_set_to_another_zone_changes_nothing() -> None:
    rome = NOON.astimezone(timezone(timedelta(hours=2)))
    assert utc_or_none(rome) == utc_or_none(NOON) == NOON
    assert utc_or_none(NOON.replace(tzinfo=None)) is None


@pytest.mark.parametrize(
    ("network", "reception"),
    [(NOON - MINUTES_5, SURE), (NOON - DAY, UNSURE), (NOON - 8 * DAY, SURE)],
    ids=["not queued", "nobody knows the time", "no time of a network"],
)
def test_a_network_that_says_nothing_of_use_judges_no_device(network: datetime, reception: Reception) -> None:
    gate = TimeGate(network_back=7 * DAY)
    device = Reading("t", 1.0, NOON + MINUTES_5, time_source=TimeSource.DEVICE)
    rssi = Reading("rssi", -90, network, time_source=TimeSource.NETWORK)
    made, _ = gate.admit(ReadingSet("d", (rssi, device)), reception)
    assert made.readings[1] is device


def test_readings_are_counted_one_by_one_and_the_newest_wrong_one_is_told() -> None:
    gate = TimeGate()
    wild = NOON + timedelta(days=400)
    unreadable: Any = "yesterday"
    readings = (
        Reading("a", 1.0, wild, time_source=TimeSource.NETWORK),
        Reading("b", 1.0, wild + DAY, time_source=TimeSource.DEVICE),
        Reading("c", 1.0, unreadable, time_source=TimeSource.DEVICE),
        Reading("d", 1.0, unreadable),
        Reading("e", 1.0, NOON),
    )
    for turn in (1, 2):
        made, waits = gate.admit(ReadingSet("d", readings), SURE)
        assert (gate.replaced, gate.unreadable, waits) == (2 * turn, 2 * turn, False)
        assert gate.wrong == (wild + DAY, TimeSource.DEVICE)
    bad: dict[str, Any] = {"quality": Quality.BAD, "reason": Reason.BAD_TIME}
    assert made.readings == (
        Reading("a", 1.0, NOON),
        Reading("b", 1.0, NOON),
        Reading("c", None, NOON, **bad),
        Reading("d", None, NOON, **bad),
        Reading("e", 1.0, NOON),
    )


def test_a_source_that_is_none_is_a_device_and_another_zone_is_written_as_ours() -> None:
    gate = TimeGate()
    rome = NOON.astimezone(timezone(timedelta(hours=2)))
    foreign: Any = "sundial"
    made, _ = gate.admit(ReadingSet("d", (Reading("a", 1.0, NOON, time_source=foreign), Reading("b", 1, rome))), SURE)
    assert made.readings == (Reading("a", 1.0, NOON, time_source=TimeSource.DEVICE), Reading("b", 1, NOON))
    assert [reading.observed_at.tzinfo for reading in made.readings] == [UTC, UTC]
    assert gate.replaced == gate.unreadable == 0


@pytest.mark.parametrize(
    ("readings", "ordinary"),
    [
        ((), True),
        ((Reading("a", 1, NOON - DAY), Reading("b", 1, NOON + MINUTES_5)), True),
        ((Reading("a", 1, NOON), Reading("b", 1, NOON - DAY - US)), False),
        ((Reading("a", 1, NOON), Reading("b", 1, NOON + MINUTES_5 + US)), False),
        ((Reading("a", 1, NOON), Reading("b", 1, NOON, time_source=TimeSource.DEVICE)), False),
        ((Reading("a", 1, NOON), Reading("b", 1, NOON.astimezone(timezone(DAY / 24)))), False),
        ((Reading("a", 1, NOON), Reading("b", 1, NOON.replace(tzinfo=None))), False),
        ((Reading("a", 1, None),), False),  # type: ignore[arg-type]
        ((Reading("a", 1, NOON), Reading("b", 1, None)), False),  # type: ignore[arg-type]
        ((Reading("a", 1, "noon"),), False),  # type: ignore[arg-type]
    ],
)
def test_a_set_of_our_own_clock_and_of_about_now_is_ordinary(readings: tuple[Reading, ...], ordinary: bool) -> None:
    assert TimeGate().ordinary(readings, NOON) is ordinary


@pytest.mark.parametrize(
    ("source", "back"), [(TimeSource.DEVICE, DAY), (TimeSource.NETWORK, 3 * DAY), (TimeSource.GATEWAY, 3 * DAY)]
)
@pytest.mark.parametrize("shift", [timedelta(0), -2 * DAY])
@pytest.mark.parametrize("margin", [timedelta(0), timedelta(hours=1)])
def test_a_claim_holds_between_its_bounds_which_are_wider_the_less_the_clock_is_known(
    source: TimeSource, back: timedelta, shift: timedelta, margin: timedelta
) -> None:
    claim = Claim(microseconds(NOON - shift), 86_400, 3 * 86_400)
    known = {"shift_us": shift // US, "margin_us": margin // US}
    first, last = microseconds(NOON - margin - back), microseconds(NOON + margin + MINUTES_5)
    held = [claim.holds(at_us, source, **known) for at_us in (first - 1, first, last, last + 1)]
    assert held == [False, True, True, False]


def test_no_claim_holds_before_2020() -> None:
    claim = Claim(microseconds(NOON), 10**9, 10**9)
    first = microseconds(YEAR_2020)
    assert [claim.holds(at_us, TimeSource.DEVICE) for at_us in (first - 1, first)] == [False, True]
    last = microseconds(NOON + MINUTES_5)
    assert [claim.holds(at_us, TimeSource.DEVICE) for at_us in (last, last + 1)] == [True, False]
