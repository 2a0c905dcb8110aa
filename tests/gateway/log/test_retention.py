"""Bounds: the oldest goes first, counted for whom it was owed; what is settled goes when `keep` is over."""

from datetime import timedelta
from pathlib import Path

from gateway.log.log import Consumer
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, a_set, everything, opened

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


async def test_a_removed_broker_holds_nothing_back_but_keeps_its_place(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(4):
        await log.append(a_set(n))
    columns = await log.read("porto", max_readings=4)
    assert columns is not None
    await log.settle("porto", columns.last)
    await log.commit()
    await log.set_consumers([CITY])
    assert log.status()["removed_consumers"] == ["porto"]
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "porto") == [2, 3]
    await log.set_consumers([CITY])
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    for _ in range(2):
        await log.commit()
    assert await log.scan(-1) is None
    assert await log.forget("porto")
    assert not await log.forget("porto")
    assert log.status()["removed_consumers"] == []
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
        assert log.status()["removed_consumers"] == []
        await log.close()
