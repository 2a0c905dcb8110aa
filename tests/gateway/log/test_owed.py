"""What a consumer is owed: good readings of the points that it takes, at once, over commits, restarts and what is given up."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.log.log import Consumer, Log, LogSettings
from gateway.log.owed import MAX_PARTS, Owed
from gateway.log.segment import Columns, Entry, Series, Stamp, microseconds, put_entries
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, no_values
from tests.gateway.forward.scene import RealClock

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ALL = Consumer("all", takes=lambda device, point: True)
CITY = Consumer("city", takes=lambda device, point: (device, point) in {("a", "x"), ("a", "y")})


async def opened(folder: Path, commit_every_s: float = 3600.0) -> Log:
    settings = LogSettings(folder / "buffer.db", commit_every_s=commit_every_s)
    log = await Log.open(settings, clock=RealClock(), consumers=[ALL, CITY, Consumer("raw")])
    await asyncio.gather(*log._lanes.counting)
    return log


async def fill(log: Log, first: int, last: int) -> int:
    """One set a second of a device that counts, one of a stranger, one without values; returns what the city is owed of it."""
    for n in range(first, last):
        at = NOON + timedelta(seconds=n)
        await log.append(ReadingSet("a", (Reading("x", 1.0, at), Reading("y", 2.0, at), Reading("z", 3.0, at))))
        await log.append(ReadingSet("b", (Reading("x", 1.0, at),)))
        await log.append(no_values("a", ("x", "y"), Reason.TIMEOUT, observed_at=at))
    return 2 * (last - first)


def owed(log: Log) -> tuple[int, int, int]:
    return log.backlog("city")[0], log.backlog("all")[0], log.backlog("raw")[0]


async def test_only_what_is_to_be_sent_counts_in_memory_in_the_file_and_after_a_restart(tmp_path: Path) -> None:
    log = await opened(tmp_path)
    await fill(log, 0, 10)
    assert owed(log) == (20, 40, 60)
    await log.commit()
    assert owed(log) == (20, 40, 60)
    await fill(log, 10, 15)
    assert owed(log) == (30, 60, 90)
    await log.close()

    log = await opened(tmp_path)
    assert owed(log) == (30, 60, 90)
    await fill(log, 15, 16)
    assert owed(log) == (32, 64, 96)
    assert log.backlog("city")[1] == NOON
    columns = await log.read("city", max_readings=10_000)
    assert columns is not None
    await log.settle("city", columns.last)
    later = await log.read("city", max_readings=10_000)
    if later is not None:
        await log.settle("city", later.last)
    assert owed(log)[:2] == (0, 64)
    assert log.backlog("city")[1] is None
    await log.close()


async def test_what_nobody_is_to_be_sent_is_no_backlog(tmp_path: Path) -> None:
    log = await opened(tmp_path)
    await log.append(ReadingSet("b", (Reading("x", 1.0, NOON),)))
    await log.append(no_values("a", ("x", "y"), Reason.TIMEOUT, observed_at=NOON))
    assert log.backlog("city") == (0, None)
    await log.commit()
    assert log.backlog("city") == (0, None)
    await log.close()


@pytest.mark.parametrize("commits", [False, True])
async def test_settling_set_by_set_counts_down(tmp_path: Path, commits: bool) -> None:
    log = await opened(tmp_path)
    await fill(log, 0, 5)
    assert owed(log)[0] == 10
    if commits:
        await log.commit()
    seen = []
    columns = await log.read("city", max_readings=10_000)
    assert columns is not None
    for seq in sorted(set(columns.seq)):
        await log.settle("city", seq)
        seen.append(owed(log)[0])
    assert seen == [8, 8, 8, 6, 6, 6, 4, 4, 4, 2, 2, 2, 0, 0, 0]
    await log.close()


async def test_a_consumer_that_is_to_be_sent_something_else_from_now_on_is_owed_that(tmp_path: Path) -> None:
    log = await opened(tmp_path)
    await fill(log, 0, 5)
    await log.commit()
    await fill(log, 5, 8)
    for takes, backlog in (
        (lambda device, point: point == "x", 16),
        (lambda device, point: device == "b", 8),
        (None, 48),
        (CITY.takes, 16),
    ):
        city = Consumer("city", takes=takes)
        await log.set_consumers([ALL, city])
        await asyncio.gather(*log._lanes.counting)
        assert (log.backlog("city")[0], log.backlog("all")[0]) == (backlog, 32)
        await log.set_consumers([ALL, city])  # the same: nothing is counted again
        assert not log._lanes.counting
    await log.close()


def test_the_count_is_bounded() -> None:
    count = Owed(lambda device, point: True, {1: Series(1, "a", "x")})
    for n in range(1, 3 * MAX_PARTS):
        columns = Columns(n)
        columns.seq, columns.series, columns.time_us, columns.quality = [n], [1], [n], [Quality.GOOD]
        count.columns(columns)
    assert (count.total, count.oldest_us) == (3 * MAX_PARTS - 1, 1)  # of neighbours that became one the older time
    assert len(count._parts) <= MAX_PARTS
    count.settled(1)
    assert count.total == 3 * MAX_PARTS - 1  # it counts until all of it is settled
    count.settled(3 * MAX_PARTS)
    assert (count.total, count.oldest_us) == (0, None)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sets"), st.integers(1, 3)),
        st.tuples(st.sampled_from(("settled", "again", "stretch")), st.integers(0, 4)),
        st.tuples(st.just("given up"), st.integers(0, 3)),
    ),
    max_size=30,
)


@given(STEPS)
def test_the_running_count_is_that_of_what_is_there(steps: list[tuple[str, int]]) -> None:
    """Sets of memory one by one, told twice or not; stretches of the file; the oldest of memory given up."""
    series = {1: Series(1, "a", "x"), 2: Series(2, "a", "y"), 3: Series(3, "b", "x")}
    count, there, newest = Owed(lambda device, point: device == "a", series), list[Entry](), 0

    def a_set(seq: int) -> Entry:
        at, bad = NOON + timedelta(seconds=seq), Quality.BAD if seq % 3 == 0 else Quality.GOOD
        readings = (Reading("x", 1.0, at), Reading("y", 1.0, at, bad), Reading("x", 1.0, at))
        return Entry(seq, (1, 2, 3), readings, Stamp(1, 0, 7), 0.0, 0)

    for what, n in steps:
        if what == "sets":
            there += [a_set(newest + 1 + k) for k in range(n)]
            newest += n
            count.entries(there)
        elif what == "again":
            count.entries(there[n:])
        elif what == "stretch" and n:
            columns = Columns(newest)
            put_entries([a_set(newest + 1 + k) for k in range(n)], columns)
            newest += n
            count.columns(columns)
            there += [a_set(seq) for seq in sorted(set(columns.seq))]
            count.settled(newest)  # a stretch counts as a whole: all of it, or none
            there.clear()
        elif what == "settled":
            there = there[n:]
            count.settled(there[0].seq - 1 if there else newest)
        elif there:
            gone, there = there[:n], there[n:]
            if gone:
                count.given_up(gone[0].seq, gone[-1].seq)
        assert count.total == sum(1 + (e.seq % 3 > 0) for e in there)
        assert count.oldest_us == (microseconds(there[0].readings[0].observed_at) if there else None)


def test_what_the_bounds_took_is_no_backlog() -> None:
    count = Owed(lambda device, point: True, {1: Series(1, "a", "x")})
    for n in range(1, 6):
        columns = Columns(n)
        columns.seq, columns.series, columns.time_us, columns.quality = [n] * 2, [1, 1], [n, n], [Quality.GOOD] * 2
        count.columns(columns)
    count.at_most(10)
    assert (count.total, count.oldest_us) == (10, 1)
    count.at_most(5)
    assert (count.total, count.oldest_us) == (4, 4)
    count.at_most(0)
    assert (count.total, count.oldest_us) == (0, None)
