"""Last values: newest by time, good apart from latest, changes by mark; statistics beside them."""

from collections import Counter
from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.log.boots import Boot, Boots
from gateway.log.last_values import LastValues
from gateway.log.segment import Entry, Series, Stamp, microseconds
from gateway.log.stats import HOUR_US, Statistics, bucket
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, a_set, opened

STAMP = Stamp(1, 0, 7)


def table() -> LastValues:
    return LastValues({1: Series(1, "d", "p"), 2: Series(2, "d", "q")}, Boots([Boot(1, "b")], 1))


def entry(seq: int, at_s: float, value: float | None, quality: Quality = Quality.GOOD, series: int = 1) -> Entry:
    reason = Reason.NONE if quality is Quality.GOOD else Reason.TIMEOUT
    reading = Reading("p", value, NOON + timedelta(seconds=at_s), quality, reason)
    return Entry(seq, (series,), (reading,), STAMP, 0.0, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(Quality)), max_size=20))
def test_the_newest_by_time_is_kept_whatever_the_order(arrivals: list[tuple[int, Quality]]) -> None:
    values = table()
    for seq, (at_s, quality) in enumerate(arrivals, 1):
        values.note(entry(seq, at_s, float(seq), quality))
    expected = max(((at_s, seq) for seq, (at_s, _) in enumerate(arrivals, 1)), default=None)
    good = max(((at_s, seq) for seq, (at_s, q) in enumerate(arrivals, 1) if q is Quality.GOOD), default=None)
    latest = values.latest(1)
    assert (latest and latest.seq) == (expected and expected[1])
    kept = values.good(1)
    assert (kept and kept.seq) == (good and good[1])


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(-600, 600), st.sampled_from(Quality)), max_size=20))
def test_a_value_of_a_clock_that_was_set_back_hides_none_of_now(sets: list[tuple[int, int, Quality]]) -> None:
    """Each set is taken at a now of its own: the clock is set to and fro. What is of now always stands before the future."""
    values = table()
    for seq, (now_s, before_s, quality) in enumerate(sets, 1):
        at_s, future_s = now_s - before_s, now_s + 300
        values.note(entry(seq, at_s, float(seq), quality), NOON + timedelta(seconds=future_s))
        if at_s < future_s:
            shown, current = values.latest(1), values.good(1)
            assert shown is not None
            assert shown.time_us < microseconds(NOON + timedelta(seconds=future_s))
            if quality is Quality.GOOD:
                assert current is not None
                assert current.time_us < microseconds(NOON + timedelta(seconds=future_s))


def test_since_tells_each_changed_series_once_and_only_good_changes() -> None:
    values = table()
    values.note(entry(1, 1, 1.0))
    values.note(entry(2, 2, 2.0, series=2))
    mark, changed = values.since(0)
    assert changed == [1, 2]
    values.note(entry(3, 3, 3.0))
    values.note(entry(4, 3, None, Quality.BAD, series=2))
    values.note(entry(5, 1, 0.5, series=2))  # older than what is known
    mark, changed = values.since(mark)
    assert changed == [1]
    assert values.since(mark)[1] == []


async def test_an_unreported_reading_of_now_shows_before_one_of_a_clock_that_was_set_back(tmp_path: Path) -> None:
    clock = ManualClock(NOON + timedelta(days=1))
    log = await opened(tmp_path, CITY, clock=clock)
    log.note_unreported("meter-1", Reading("voltage", 1.0, clock.now()))
    await log.append(ReadingSet("meter-2", (Reading("voltage", 1.0, clock.now()),)))
    clock.step(-86400.0)
    log.note_unreported("meter-1", Reading("voltage", 2.0, clock.now()))
    await log.append(ReadingSet("meter-2", (Reading("voltage", 2.0, clock.now()),)))
    for device in ("meter-1", "meter-2"):
        assert log.last_values.device(device)["voltage"].value == 2.0
    await log.close()


async def test_an_unreported_reading_shows_and_is_neither_logged_nor_good(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    log.note_unreported("meter-1", Reading("voltage", 99.0, NOON + timedelta(seconds=9)))
    log.note_unreported("meter-2", Reading("voltage", 98.0, NOON))
    assert log.last_values.device("meter-1")["voltage"].value == 99.0
    assert log.last_values.device("meter-2")["voltage"].seq == 0
    number = next(n for n, s in log.series.items() if s.point == "voltage" and s.device == "meter-1")
    good = log.last_values.good(number)
    assert good is not None
    assert good.value == 230.1
    columns = await log.read("milano")
    assert columns is not None
    assert len(columns.seq) == 2
    await log.close()


async def test_last_values_are_there_after_kill_whatever_was_settled(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, clock=clock)
    for n in range(3):
        await log.append(a_set(n))
    columns = await log.read("milano")
    assert columns is not None
    await log.settle("milano", columns.last)
    clock.advance(3600)  # the hourly commit is due
    await log.append(a_set(3))
    while log._committer.running is not None:
        await log._committer.running
    log._condition.closed = True  # as a kill leaves it
    await log._file.close()
    log = await opened(tmp_path, CITY)
    assert log.last_values.device("meter-1")["count"].value == 3
    assert await log.scan(-1) is None  # thrift: no set was written for it
    await log.close()


async def test_statistics_count_what_came_was_bad_and_late_and_survive_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, clock=clock)
    log.statistics.expect("meter-1", 10.0)
    for n in range(60):
        clock.advance(10)
        at = clock.now() - timedelta(seconds=2)
        bad = n % 4 == 0
        reading = Reading("p", None, at, Quality.BAD, Reason.TIMEOUT) if bad else Reading("p", 1.0, at)
        await log.append(ReadingSet("meter-1", (reading,)))
    await log.close()
    log = await opened(tmp_path, CITY, clock=clock)
    found = log.statistics.of()["meter-1", "p"]
    assert (found.got, found.bad) == (60, 15)
    assert 58 <= found.expected <= 61
    assert 1.7 <= (found.latency_s(0.5) or 0) <= 2.5
    await log.close()


@given(st.integers(0, 10**10))
def test_a_latency_is_told_to_twenty_percent(latency_us: int) -> None:
    statistics = Statistics({1: Series(1, "d", "p")}, hour=5, up_s=0.0)
    statistics.note((1,), latency_us, [])
    statistics.turn(6, 10.0)
    found = statistics.of()["d", "p"]
    assert found.latency == Counter({bucket(latency_us): 1})
    told = found.latency_s(0.99)
    assert told is not None
    assert latency_us / 1e6 <= told + 1e-9
    assert told <= latency_us / 1e6 * 1.2 + 0.001


def test_hours_are_forgotten_in_memory_after_two_days_and_damage_is_left_out() -> None:
    statistics = Statistics({1: Series(1, "d", "p")}, hour=4, up_s=0.0)
    statistics.load({3: b"noise"})
    statistics.note((1,), 0, [])
    statistics.turn(5, 1.0)
    assert statistics.of()["d", "p"].got == 1
    assert list(statistics.to_save()) == [4]
    statistics.turn(60, 2.0)
    assert statistics.of(100) == {}
    assert HOUR_US == 3600 * 10**6


def test_what_was_forgotten_before_its_time_was_known_does_not_come_back_with_it() -> None:
    boots = Boots([Boot(1, "b")], 1)
    known = LastValues({1: Series(1, "d", "p"), 2: Series(2, "d", "q")}, boots)
    for series in (1, 2):
        known.note(Entry(series, (series,), (Reading("p", 1.0, NOON),), Stamp(1, 0, 0), 0.0, 0))
    known.forget([1])
    boots.take([Boot(1, "b", 0, 6)])
    known.confirm()
    assert known.good(1) is None
    assert known.good(2) is not None
