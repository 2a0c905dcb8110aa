"""Bounds: the oldest goes first, counted for whom it was owed; what is settled goes when `keep` is over."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Source
from gateway.log.log import Consumer, Log
from gateway.log.segment import microseconds
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, counts_of, everything, on_card, opened, settle

SMALL = 600_000


def bulky(n: int) -> ReadingSet:
    """A set that names itself and needs about a kilobyte."""
    at = NOON + timedelta(seconds=n)
    return ReadingSet("meter-1", (Reading("count", n, at), Reading("text", f"{n:06}" * 160, at)))


async def test_size_drops_the_oldest_and_counts_it_for_whom_it_was_owed(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER, max_size_bytes=SMALL)
    for n in range(1500):
        await log.append(bulky(n))
        if n % 10 == 9:
            await log.commit()
        if n == 299:
            columns = await log.read("porto", max_readings=10**6)
            assert columns is not None
            await log.settle("porto", columns.last)
    owed = await everything(log, "milano")
    assert owed == list(range(owed[0], 1500))
    assert 200 < len(owed) < 600
    assert sum(gap.readings for gap in log.gaps) == 2 * owed[0]
    assert sum(gap.owed["milano"] for gap in log.gaps) == 2 * owed[0]
    assert sum(gap.owed["porto"] for gap in log.gaps) == 2 * (owed[0] - 300)
    assert log.backlog("milano")[0] == 2 * len(owed)
    assert (tmp_path / "buffer.db").stat().st_size <= SMALL
    assert log.status()["state"] == "bad"
    assert "size" in log.status()["reason"]
    await log.close()
    log = await opened(tmp_path, CITY, OTHER, max_size_bytes=SMALL)
    assert await everything(log, "milano") == owed
    assert 0 < len(log.gaps) < 10  # one record an hour, not one a commit
    await log.close()


async def test_a_smaller_bound_than_the_file_is_kept_from_the_next_commit_on(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(800):
        await log.append(bulky(n))
    await log.close()
    log = await opened(tmp_path, CITY, max_size_bytes=SMALL)
    await log.append(bulky(800))
    await log.commit()
    owed = await everything(log, "milano")
    assert owed == list(range(owed[0], 801))
    assert log.status()["size_bytes"] <= SMALL
    await log.close()


async def test_age_drops_the_oldest(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, clock=clock, max_age_s=7200.0)
    for n in range(10):
        await log.append(a_set(n))
        await log.commit()
        clock.advance(1200)
    await log.commit()
    assert await everything(log, "milano") == [4, 5, 6, 7, 8, 9]
    assert [(gap.reason, gap.readings) for gap in log.gaps] == [("age", 2)] * 4
    await log.close()


async def test_what_is_settled_goes_without_a_gap(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(3000):
        await log.append(a_set(n))
        if n % 10 == 9:
            await log.commit()
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    for _ in range(3):
        await log.commit()
    assert await log.scan(-1) is None
    assert not log.gaps
    await log.close()


async def test_keep_holds_settled_readings_that_long(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, clock=clock, keep_s=7200.0)
    for n in range(4):
        await log.append(a_set(n))
        columns = await log.read("milano")
        assert columns is not None
        await log.settle("milano", columns.last)
        await log.commit()
        clock.advance(3600)
    columns = await log.scan(-1)
    assert columns is not None
    assert columns.value[::2] == [1, 2, 3]  # settled before their commit, written all the same
    assert await log.read("milano") is None
    await log.close()


async def test_a_removed_broker_holds_back_what_it_was_owed_until_it_is_forgotten(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(4):
        await log.append(a_set(n))
    columns = await log.read("porto", max_readings=4)
    assert columns is not None
    await log.settle("porto", columns.last)
    await log.commit()
    await log.set_consumers([CITY])
    assert list(log.status()["gone"]) == ["porto"]
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "porto") == [2, 3]
    await log.set_consumers([CITY])
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    for _ in range(2):
        await log.commit()
    assert await stored(log) == [0, 1, 2, 3]  # one segment
    with pytest.raises(LogError, match="milano is in the config"):
        await log.forget("milano")
    assert await log.forget("porto")
    assert not await log.forget("porto")
    assert log.status()["gone"] == {}
    assert await log.scan(-1) is None
    await log.close()


async def test_a_broker_that_begins_where_nothing_is_left_gets_what_comes(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(4):
        await log.append(a_set(n))
    await log.commit()
    await settle(log, "milano", 4)
    await log.commit()
    await log.set_consumers([CITY, OTHER, Consumer("one", takes=lambda device, point: point == "count")])
    for _ in range(2):
        assert await log.read("porto") is None
    waiting = asyncio.create_task(log.wait("porto"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    await log.append(a_set(4))
    await asyncio.wait_for(waiting, 5)
    assert await everything(log, "porto") == [4]
    await log.commit()
    await log.append(a_set(5))
    for _ in range(2):
        assert await everything(log, "porto") == [4, 5]
    assert (log.backlog("porto")[0], log.backlog("one")[0]) == (4, 2)
    await log.close()


async def test_a_renamed_broker_goes_on_where_it_was(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(4):
        await log.append(a_set(n))
    columns = await log.read("milano", max_readings=4)
    assert columns is not None
    await log.settle("milano", columns.last)
    await log.close()
    renamed = Consumer("milan", "now", was="milano")
    for _ in range(2):
        log = await opened(tmp_path, renamed)
        assert await everything(log, "milan") == [2, 3]
        assert log.status()["gone"] == {}
        await log.close()


async def test_a_broker_that_has_a_place_takes_none_over(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(4):
        await log.append(a_set(n))
    await settle(log, "milano", 3)
    await settle(log, "porto", 1)
    await log.close()
    log = await opened(tmp_path, Consumer("porto", was="milano"))
    assert await everything(log, "porto") == [1, 2, 3]
    assert list(log.status()["gone"]) == ["milano"]
    await log.close()


# Segments that are settled in part


async def in_segments(path: Path, *consumers: Consumer, sets: int, each: int, **settings: Any) -> Log:
    """A log with so many sets in its file, so many in a segment."""
    log = await opened(path, *consumers, **settings)
    for n in range(sets):
        await log.append(a_set(n))
        if n % each == each - 1:
            await log.commit()
    return log


async def stored(log: Log) -> list[int]:
    """What is in the file, settled or not."""
    numbers: list[int] = []
    after = -1
    while (columns := await log.scan(after)) is not None:
        numbers += counts_of(log, columns)
        after = columns.last
    return numbers


async def test_a_segment_is_pruned_when_its_last_set_is_settled_by_the_last_consumer(tmp_path: Path) -> None:
    log = await in_segments(tmp_path, CITY, OTHER, sets=12, each=4)
    places = {"milano": 0, "porto": 0}
    for name, sets in (("milano", 12), ("porto", 1), ("porto", 2), ("porto", 1), ("porto", 3), ("porto", 1)):
        await settle(log, name, sets)
        places[name] += sets
        await log.commit()
        least = min(places.values())
        assert await stored(log) == list(range(least // 4 * 4, 12))
        for consumer, place in places.items():
            assert await everything(log, consumer) == list(range(place, 12))
            assert log.backlog(consumer)[0] == 2 * (12 - place)
        async with on_card(tmp_path, CITY, OTHER) as found:
            for consumer, place in places.items():
                assert await everything(found, consumer) == list(range(place, 12))
                assert found.backlog(consumer)[0] == 2 * (12 - place)
    assert not log.gaps
    await log.close()


@pytest.mark.parametrize(("milano", "porto"), [(0, 0), (3, 0), (2, 3), (4, 4), (4, 5), (5, 9), (8, 7), (8, 8), (1, 12)])
async def test_the_gap_of_segments_settled_in_part_counts_what_each_consumer_was_still_owed(
    tmp_path: Path, milano: int, porto: int
) -> None:
    """Two segments of three become too old."""
    clock = ManualClock()
    log = await in_segments(tmp_path, CITY, OTHER, sets=8, each=4, clock=clock, max_age_s=7200.0, keep_s=1e9)
    clock.advance(7200)
    for n in range(8, 12):
        await log.append(a_set(n))
    await settle(log, "milano", milano)
    await settle(log, "porto", porto)
    await log.commit()
    assert not log.gaps  # not older than that
    clock.advance(0.001)
    await log.commit()
    owed = {"milano": 2 * max(0, 8 - milano), "porto": 2 * max(0, 8 - porto)}
    lost = max(owed.values())
    async with on_card(tmp_path, CITY, OTHER, clock=clock, max_age_s=7200.0, keep_s=1e9) as found:
        for look in (log, found):
            assert await stored(look) == [8, 9, 10, 11]
            assert look.status()["dropped"] == lost
            for name, place in (("milano", milano), ("porto", porto)):
                assert look.given_up(name) == owed[name]
                assert await everything(look, name) == list(range(max(8, place), 12))
                assert look.backlog(name)[0] == 2 * (12 - max(8, place))
            if lost:
                [gap] = look.gaps
                assert gap.reason == "age"
                assert gap.to_us == microseconds(NOON)  # when the newest of them was written
            else:
                assert not look.gaps
    await settle(log, "milano", 12 - max(8, milano))
    assert log.backlog("milano") == (0, None)
    await log.close()


async def test_a_bound_of_size_counts_what_is_settled_in_part_for_nobody_twice(tmp_path: Path) -> None:
    """Whatever goes, owed and lost are all there was."""
    log = await opened(tmp_path, CITY, OTHER, max_size_bytes=SMALL)
    settled = 0
    for n in range(900):
        await log.append(bulky(n))
        if n % 7 == 6:
            await log.commit()
        if n in (100, 250):
            await settle(log, "porto", 75)
            settled += 75
    await log.commit()
    kept = await everything(log, "milano")
    assert kept == list(range(kept[0], 900))
    assert await everything(log, "porto") == kept
    assert log.given_up("milano") == log.status()["dropped"] == 2 * kept[0]
    assert log.given_up("porto") == 2 * (kept[0] - settled)
    assert log.backlog("milano")[0] == log.backlog("porto")[0] == 2 * len(kept)
    async with on_card(tmp_path, CITY, OTHER, max_size_bytes=SMALL) as found:
        assert await everything(found, "porto") == kept
        assert found.given_up("porto") == 2 * (kept[0] - settled)
        assert found.backlog("porto")[0] == 2 * len(kept)
    await log.close()


async def test_keep_holds_a_segment_until_its_last_set_is_settled_and_then_that_long(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await in_segments(tmp_path, CITY, OTHER, sets=8, each=4, clock=clock, keep_s=600.0)
    await settle(log, "milano", 8)
    await settle(log, "porto", 3)
    clock.advance(600)
    await log.commit()
    assert await stored(log) == list(range(8))
    clock.advance(1)
    await log.commit()
    assert await stored(log) == list(range(8))  # porto has not taken all of the first
    await settle(log, "porto")
    await log.commit()
    assert await stored(log) == [4, 5, 6, 7]
    await log.append(a_set(8))
    await settle(log, "milano")
    await settle(log, "porto", 5)
    await log.commit()
    assert await stored(log) == [8]  # written just now, though everybody has it
    clock.advance(600)
    await log.commit()
    assert await stored(log) == [8]
    clock.advance(1)
    await log.commit()
    assert await stored(log) == []
    assert not log.gaps
    await log.close()


async def test_gaps_of_one_reason_and_hour_are_one_record_in_the_file(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await in_segments(tmp_path, CITY, sets=4, each=1, clock=clock, max_age_s=7200.0)
    for device in range(3):
        clock.advance(1200)
        await log.append(a_set(4 + device))
        await log.commit()
    clock.advance(3601)
    await log.commit()  # four are too old
    await log.set_consumers([CITY, OTHER])
    await log.append(ReadingSet("meter-1", (Reading("count", None, None),)))  # type: ignore[arg-type]
    await log.commit()
    for wait_s in (1200, 1200, 1199):
        clock.advance(wait_s)
        await log.commit()
    async with on_card(tmp_path, CITY, OTHER, clock=clock, max_age_s=7200.0) as found:
        told = [(gap.reason, gap.readings, dict(gap.owed)) for gap in found.gaps]
        assert told == [
            ("age", 8, {"milano": 8}),
            ("unwritable", 1, {"milano": 1, "porto": 1}),
            ("age", 4, {"milano": 4, "porto": 4}),
        ]
        first, _, last = found.gaps
        assert (first.from_us, first.to_us) == (microseconds(NOON), microseconds(NOON))
        assert (last.from_us, last.to_us) == (
            microseconds(NOON + timedelta(seconds=4)),
            microseconds(NOON + timedelta(seconds=2400)),
        )
    await log.close()


async def test_what_goes_by_age_and_what_by_size_in_one_commit_is_counted_apart(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, clock=clock, max_size_bytes=SMALL, max_age_s=7200.0)
    count = 0
    for sets, wait_s in ((10, 4000), *[(25, 330)] * 10, (200, 0)):
        for _ in range(sets):
            await log.append(bulky(count))
            count += 1
        await log.commit()
        clock.advance(wait_s)
    kept = await everything(log, "milano")
    assert 10 < kept[0] < 260
    async with on_card(tmp_path, CITY, clock=clock, max_size_bytes=SMALL, max_age_s=7200.0) as found:
        for look in (log, found):
            assert look.status()["lost"] == {"age": 20, "size": 2 * (kept[0] - 10)}
            assert look.given_up("milano") == 2 * kept[0]
    await log.close()


async def test_what_went_by_age_is_told_with_its_true_times(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock, max_age_s=3600.0)
    await log.append(ReadingSet("d", (Reading("x", 1, clock.now()),)))
    clock.advance(10)
    await log.commit()
    clock.learn(Source.KERNEL)
    await log.commit()
    assert not log.gaps  # it is not known yet how old it is
    log.before_step()  # looks at the clock
    for wait_s in (3590, 0.001, 9.998):
        clock.advance(wait_s)
        await log.commit()
        assert not log.gaps  # its age is that of the segment
    clock.advance(0.002)
    await log.commit()
    [gap] = log.gaps
    assert (gap.from_us, gap.to_us) == (microseconds(NOON), microseconds(NOON + timedelta(seconds=10)))
    await log.close()
