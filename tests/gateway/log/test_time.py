"""Times: every reading ends true, estimated with bounds, or held; never silently wrong, never different when sent again."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Source
from gateway.log.log import Columns, Log, TimeState
from gateway.log.segment import microseconds
from gateway.sdk.reading import Reading, ReadingSet, TimeSource
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import CITY, BootClock, opened

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TO_1970_S = (EPOCH - NOON).total_seconds()


class Truth:
    """Readings whose value is the true time at which they were taken, in microseconds."""

    def __init__(self, log: Log, clock: BootClock) -> None:
        self.log = log
        self.clock = clock

    async def take(self, number: int = 1, every_s: float = 10.0) -> None:
        for _ in range(number):
            self.clock.advance(every_s)
            await self.log.append(reading_of(self.clock))


def reading_of(clock: BootClock, source: TimeSource = TimeSource.GATEWAY) -> ReadingSet:
    return ReadingSet("meter", (Reading("true_us", microseconds(clock.true), clock.now(), time_source=source),))


async def read_all(log: Log, after: int = -1) -> list[Columns]:
    found = []
    while (columns := await log.read("milano", after=after, max_readings=3)) is not None:
        found.append(columns)
        after = columns.last
    return found


def errors_s(pages: list[Columns]) -> list[float]:
    return [(t - v) / 1e6 for page in pages for t, v in zip(page.time_us, page.value, strict=True)]  # type: ignore[operator]


def states(pages: list[Columns]) -> set[TimeState]:
    return {state for page in pages for state in page.time_state}


@pytest.mark.parametrize("wrong_s", [TO_1970_S, -86400.0, 3 * 86400.0, -30.0, 0.0])
@pytest.mark.parametrize("committed", [True, False])
async def test_readings_before_the_clock_was_known_are_held_and_then_true(
    tmp_path: Path, wrong_s: float, committed: bool
) -> None:
    clock = BootClock("b1", NOON, wrong_s)
    log = await opened(tmp_path, CITY, clock=clock)
    truth = Truth(log, clock)
    await truth.take(5)
    if committed:
        await log.commit()
    assert await read_all(log) == []
    waiting = asyncio.create_task(log.wait("milano"))
    await asyncio.sleep(0)
    assert not waiting.done()
    [series] = log.series
    latest = log.last_values.latest(series)
    assert latest is not None
    assert latest.time_state is TimeState.UNCONFIRMED
    assert log.last_values.good(series) is None
    assert log.status()["state"] == "bad"

    clock.learn(Source.KERNEL)
    await truth.take(2)
    await asyncio.wait_for(waiting, 5)
    pages = await read_all(log)
    assert errors_s(pages) == [0.0] * 7
    assert states(pages) == {TimeState.SURE}
    good = log.last_values.good(series)
    assert good is not None
    assert good.time_us == good.value
    await log.close()

    log = await opened(tmp_path, CITY, clock=BootClock("b2", NOON + timedelta(days=1), source=Source.KERNEL))
    again = await read_all(log)
    assert [t for page in again for t in page.time_us] == [t for page in pages for t in page.time_us]
    await log.close()


async def test_with_mark_they_are_handed_out_at_once_and_marked(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, TO_1970_S)
    log = await opened(tmp_path, CITY, clock=clock, unconfirmed="mark")
    await Truth(log, clock).take(3)
    assert states(await read_all(log)) == {TimeState.UNCONFIRMED}
    await log.close()


async def test_boots_that_never_learned_the_time_are_placed_between_their_neighbours(tmp_path: Path) -> None:
    boots = [("b1", NOON, Source.KERNEL), ("b2", NOON + timedelta(hours=2), Source.NONE)]
    boots += [("b3", NOON + timedelta(hours=3), Source.NONE), ("b4", NOON + timedelta(hours=5), Source.KERNEL)]
    for name, start, source in boots:
        clock = BootClock(name, start, 0.0 if source else TO_1970_S, source)
        log = await opened(tmp_path, CITY, clock=clock)
        await Truth(log, clock).take(4, every_s=60.0)
        if name == "b3":
            assert errors_s(await read_all(log)) == [0.0] * 4  # b1's, and no further
        await log.close()
    log = await opened(tmp_path, CITY, clock=BootClock("b5", NOON + timedelta(hours=9), source=Source.KERNEL))
    pages = await read_all(log)
    assert states(pages) == {TimeState.SURE, TimeState.ESTIMATED}
    errors = errors_s(pages)
    margins = [boot.margin_us / 1e6 for boot in log.boots.rows()]
    assert errors[:4] == [0.0] * 4
    assert errors[12:] == [0.0] * 4
    for number, margin in ((1, margins[1]), (2, margins[2])):
        for error in errors[4 * number : 4 * number + 4]:
            assert 0 < abs(error) <= margin <= 2.6 * 3600
    times = [t for page in pages for t in page.time_us]
    assert times == sorted(times)
    await log.close()


@pytest.mark.parametrize("better", [Source.BROKER, Source.GNSS, Source.KERNEL])
async def test_a_hardware_clock_in_the_future_is_corrected_by_a_better_source(tmp_path: Path, better: Source) -> None:
    clock = BootClock("b1", NOON, 40 * 86400.0, Source.RTC)
    log = await opened(tmp_path, CITY, clock=clock)
    truth = Truth(log, clock)
    await truth.take(3)
    await log.commit()
    assert errors_s(await read_all(log)) == [40 * 86400.0] * 3  # nobody could know
    clock.learn(better)
    await truth.take(3)
    await log.commit()
    assert errors_s(await read_all(log)) == [0.0] * 6
    await log.close()


async def test_a_small_disagreement_with_what_was_trusted_changes_no_time(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, 0.4, Source.RTC)
    log = await opened(tmp_path, CITY, clock=clock)
    truth = Truth(log, clock)
    await truth.take(3)
    before = await read_all(log)
    clock.learn(Source.KERNEL)
    await truth.take(1)
    await log.commit()
    assert errors_s(await read_all(log))[:3] == errors_s(before)
    await log.close()


@pytest.mark.parametrize("wrong_s", [TO_1970_S, 7200.0, -7200.0])
async def test_a_reading_stamped_before_a_step_and_appended_after_it_is_still_true(
    tmp_path: Path, wrong_s: float
) -> None:
    clock = BootClock("b1", NOON, wrong_s)
    log = await opened(tmp_path, CITY, clock=clock)
    await Truth(log, clock).take(2)
    late = reading_of(clock)
    clock.learn(Source.KERNEL)
    await log.append(reading_of(clock))
    await log.append(late)
    await log.commit()
    pages = await read_all(log)
    assert errors_s(pages) == [0.0] * 4
    await log.close()


async def test_device_and_network_times_wait_for_the_clock_and_are_not_touched(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, TO_1970_S)
    log = await opened(tmp_path, CITY, clock=clock)
    for source in (TimeSource.DEVICE, TimeSource.NETWORK):
        reading = Reading("true_us", microseconds(clock.true), clock.true, time_source=source)
        await log.append(ReadingSet("node", (reading,)))
    assert log.last_values.since(0)[1] == []  # who says that it is not of the year 2046?
    clock.learn(Source.KERNEL)
    await Truth(log, clock).take(1)
    await log.commit()
    assert len(log.last_values.since(0)[1]) == 2
    assert errors_s(await read_all(log)) == [0.0] * 3
    await log.close()


async def test_a_reading_from_the_future_is_marked_and_becomes_good_when_its_time_has_come(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    log = await opened(tmp_path, CITY, clock=clock)
    at = NOON + timedelta(hours=1)
    await log.append(ReadingSet("node", (Reading("level", 7, at),)))
    await log.append(ReadingSet("node", (Reading("level", 5, clock.now()),)))
    pages = await read_all(log)
    assert pages[0].time_state == [TimeState.FUTURE, TimeState.SURE]
    [series] = log.series
    assert (good := log.last_values.good(series))
    assert good.value == 5
    await log.commit()
    assert [s for page in await read_all(log) for s in page.time_state] == [TimeState.FUTURE, TimeState.SURE]
    clock.advance(3600)
    await log.commit()
    assert (good := log.last_values.good(series))
    assert good.value == 7
    assert states(await read_all(log)) == {TimeState.SURE}
    await log.close()


async def test_the_clock_is_floored_at_the_newest_time_on_disk(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    log = await opened(tmp_path, CITY, clock=clock)
    await Truth(log, clock).take(1, every_s=500)
    await log.close()
    clock = BootClock("b2", NOON, TO_1970_S)
    log = await opened(tmp_path, CITY, clock=clock)
    assert clock.floor == NOON + timedelta(seconds=500)
    await log.close()


async def test_nothing_is_too_old_while_the_clock_is_not_trusted(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    log = await opened(tmp_path, CITY, clock=clock, max_age_s=3600.0)
    await Truth(log, clock).take(2)
    await log.close()
    clock = BootClock("b2", NOON + timedelta(days=1), 400 * 86400.0)
    log = await opened(tmp_path, CITY, clock=clock, max_age_s=3600.0)
    await log.commit()
    assert not log.gaps
    clock.learn(Source.KERNEL)
    await Truth(log, clock).take(1)
    await log.commit()
    assert [(gap.reason, gap.readings, dict(gap.owed)) for gap in log.gaps] == [("age", 2, {"milano": 2})]
    await log.close()


@pytest.mark.parametrize("steps_s", [(5.0, -5.0), (-3600.0, 7200.0), (0.5, 0.4)])
async def test_a_disciplined_clock_that_steps_keeps_each_stretch_as_it_was(tmp_path: Path, steps_s: Any) -> None:
    clock = BootClock("b1", NOON, source=Source.SYSTEM)
    log = await opened(tmp_path, CITY, clock=clock)
    said = []
    for step_s in (0.0, *steps_s):
        clock.step(step_s)
        clock.advance(700)
        said.append(microseconds(clock.now()))
        await log.append(reading_of(clock))
    await log.commit()
    assert [t for page in await read_all(log) for t in page.time_us] == said
    await log.close()


@pytest.mark.parametrize(("after_s", "error_s"), [(600.0, 0.0), (601.0, -7200.0)])
async def test_a_reading_of_before_a_step_is_known_as_one_for_ten_minutes(
    tmp_path: Path, after_s: float, error_s: float
) -> None:
    """Later it is what it says: a reading two hours old."""
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    late = [reading_of(clock), reading_of(clock)]
    clock.learn(Source.KERNEL)
    await log.append(reading_of(clock))
    clock.advance(after_s)
    for readings in (*late, reading_of(clock)):
        await log.append(readings)
    await log.commit()
    assert errors_s(await read_all(log)) == [0.0, error_s, error_s, 0.0]
    assert (log.before_step() is None) == bool(error_s)
    await log.close()


async def test_what_the_clock_would_show_that_was_set_goes_on_as_time_does(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    assert log.before_step() is None
    clock.learn(Source.KERNEL)  # nothing is appended
    assert log.before_step() == NOON - timedelta(hours=2)
    clock.advance(30)
    assert log.before_step() == NOON - timedelta(hours=2) + timedelta(seconds=30)
    clock.step(10.0)
    assert log.before_step() == NOON + timedelta(seconds=30)  # of the newest step
    await log.close()


async def test_a_clock_that_is_set_while_nothing_comes_wakes_whoever_waits_and_confirms_last_values(
    tmp_path: Path,
) -> None:
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock, commit_every_s=0.1)
    await Truth(log, clock).take(2)
    await log.commit()
    assert await read_all(log) == []
    waiting = asyncio.create_task(log.wait("milano"))
    mark, _ = log.last_values.since(0)
    clock.learn(Source.BROKER)
    await asyncio.wait_for(waiting, 5)
    assert errors_s(await read_all(log)) == [0.0] * 2
    [series] = log.series
    assert (good := log.last_values.good(series))
    assert good.time_us == good.value
    assert log.last_values.since(mark)[1] == [series]
    assert log.status()["time_confirmed"]
    await log.close()


@pytest.mark.parametrize("between", [True, False])
async def test_a_time_learned_twice_is_that_of_the_better_source(tmp_path: Path, between: bool) -> None:
    """A broker an hour off, then NTP; whether or not something came or was committed in between."""
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    truth = Truth(log, clock)
    await truth.take(2)
    clock.learn(Source.BROKER, 3600.0)
    if between:
        await truth.take(1)
        await log.commit()
    else:
        assert log.before_step() is not None
    clock.learn(Source.KERNEL)
    await truth.take(1)
    await log.commit()
    count = 3 + between
    assert errors_s(await read_all(log)) == [0.0] * count
    await log.close()
    log = await opened(tmp_path, CITY, clock=BootClock("b2", NOON + timedelta(days=1)))
    assert errors_s(await read_all(log)) == [0.0] * count
    await log.close()


async def test_a_restart_in_one_boot_knows_what_the_boot_had_learned(tmp_path: Path) -> None:
    """The system's clock is still wrong, and nobody has told the daemon yet."""
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    await Truth(log, clock).take(1)
    clock.learn(Source.GNSS)
    await Truth(log, clock).take(1)
    await log.close()
    clock.learn(Source.NONE, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    assert log.status()["time_confirmed"]
    await Truth(log, clock).take(2)
    assert errors_s(await read_all(log)) == [0.0] * 4
    await log.close()
    log = await opened(tmp_path, CITY, clock=BootClock("b2", NOON + timedelta(hours=1), -7200.0))
    assert not log.status()["time_confirmed"]
    assert [(boot.id, boot.name) for boot in log.boots.rows()] == [(1, "b1"), (2, "b2")]
    await log.close()


async def test_each_boot_gets_a_number_of_its_own_and_is_as_old_as_its_last_sign_of_life(tmp_path: Path) -> None:
    for n, name in enumerate(("b1", "b2", "b3")):
        clock = BootClock(name, NOON + timedelta(hours=n), source=Source.KERNEL)
        log = await opened(tmp_path, CITY, clock=clock)
        await Truth(log, clock).take(1, every_s=50.0)
        await log.commit()
        await Truth(log, clock).take(1, every_s=50.0)
        await log.close()
    log = await opened(tmp_path, CITY, clock=BootClock("b4", NOON + timedelta(days=1), -7200.0))
    assert [(boot.id, boot.name) for boot in log.boots.rows()] == [(n, f"b{n}") for n in (1, 2, 3, 4)]
    assert [boot.up_us for boot in log.boots.rows()[:3]] == [110_000_000] * 3  # 10 s of it before the start
    await log.close()


async def test_each_stretch_of_a_hardware_clock_that_was_set_is_corrected_by_its_own_error(tmp_path: Path) -> None:
    """Somebody sets it, still wrong; NTP comes later. All in one boot, of one source until then."""
    clock = BootClock("b1", NOON, 40 * 86400.0, Source.RTC)
    log = await opened(tmp_path, CITY, clock=clock)
    truth = Truth(log, clock)
    for wrong_s in (20 * 86400.0, 5.0, -3600.0):
        await truth.take(2)
        clock.learn(Source.RTC, wrong_s)
    await truth.take(2)
    clock.learn(Source.KERNEL)
    await truth.take(2)
    await log.commit()
    assert errors_s(await read_all(log)) == [0.0] * 10
    await log.close()


async def test_a_time_that_is_learned_makes_no_reading_good_that_is_of_the_future(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    await log.append(ReadingSet("d", (Reading("x", 1, clock.now() + timedelta(days=1)),)))
    [number] = log.series
    clock.learn(Source.KERNEL)
    log.before_step()  # looks at the clock
    await log.commit()
    assert log.boots.confirmed
    assert log.last_values.good(number) is None
    clock.advance(86_400)
    await log.commit()
    good = log.last_values.good(number)
    assert good is not None
    assert good.value == 1
    await log.close()


async def test_a_clock_that_is_only_not_before_its_floor_vouches_for_no_time(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -7200.0, Source.FLOOR)
    log = await opened(tmp_path, CITY, clock=clock)
    await log.append(ReadingSet("d", (Reading("x", 1, clock.now()),)))
    assert await log.read("milano") is None
    await log.commit()
    assert await log.read("milano") is None
    clock.learn(Source.KERNEL)
    log.before_step()  # looks at the clock
    await log.commit()
    columns = await log.read("milano")
    assert columns is not None
    assert columns.time_us == [microseconds(NOON)]
    await log.close()
