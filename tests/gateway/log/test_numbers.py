"""Sequence numbers: those of a start are above everything that is stored, and above every place, whatever is lost of the file."""

import asyncio
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.log.log import Consumer
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, a_set, at_rest, everything, opened, settle
from tests.gateway.log.test_failed_commit import Card, Late


def spoil(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path / "buffer.db")
    with db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize("left", ["place", "sets", "starts"])
async def test_a_start_is_above_whatever_is_left_of_the_file(tmp_path: Path, left: str) -> None:
    """Starts 1 to 5; of the tables that tell of them one is left."""
    for n in range(5):
        log = await opened(tmp_path, CITY, OTHER)
        await log.append(a_set(n))
        if left == "place":
            await settle(log, "milano")
            await settle(log, "porto")
        await log.close()
    if left == "place":
        spoil(tmp_path, "DELETE FROM start", "DELETE FROM cursor WHERE consumer = 'porto'")
    if left == "sets":
        spoil(tmp_path, "DELETE FROM start", "DELETE FROM cursor")
    if left == "starts":
        spoil(tmp_path, "DELETE FROM segment", "DELETE FROM cursor")
    for again in (6, 7):
        log = await opened(tmp_path, CITY, OTHER)
        assert log.first_seq == again << 32
        before = await everything(log, "milano")
        await log.append(a_set(100 + again))
        assert await everything(log, "milano") == [*before, 100 + again]
        await log.close()


async def test_the_highest_of_many_places_counts(tmp_path: Path) -> None:
    names = [Consumer(name) for name in ("a", "m", "z")]
    for n in range(3):
        log = await opened(tmp_path, *names)
        await log.append(a_set(n))
        await settle(log, names[n].name, n + 1)
        await log.close()
    spoil(tmp_path, "DELETE FROM start", "DELETE FROM segment")
    log = await opened(tmp_path, *names)
    await log.append(a_set(10))
    for consumer in names:
        assert await everything(log, consumer.name) == [10]
    assert log.first_seq == 4 << 32
    await log.close()


@pytest.mark.parametrize("gone", [False, True])
async def test_no_set_of_a_start_hides_behind_a_place_of_one_before(tmp_path: Path, gone: bool) -> None:
    """Also behind that of a broker that is not in the config for a while."""
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(5):
        await log.append(a_set(n))
    await settle(log, "milano", 5)
    await log.close()
    for turn in range(3):
        log = await opened(tmp_path, *([OTHER] if gone else [CITY, OTHER]))
        await log.append(a_set(10 + turn))
        await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "milano") == [10, 11, 12]
    assert await everything(log, "porto") == [*range(5), 10, 11, 12]
    assert (log.backlog("milano")[0], log.backlog("porto")[0]) == (6, 16)
    await log.close()


async def test_the_numbers_of_sets_that_were_never_written_are_not_used_again(tmp_path: Path) -> None:
    seen = set[int]()
    for turn in range(3):
        log = await opened(tmp_path, CITY)
        for n in range(4):
            await log.append(a_set(10 * turn + n))
            number = log.last_values.device("meter-1")["count"].seq
            assert number not in seen
            seen.add(number)
            if n % 2:
                await log.settle("milano", number)
            if turn:
                await log.commit()
        await log.close()
    assert len(seen) == 12


async def test_whoever_waits_behind_a_number_from_before_the_file_was_open_sleeps_until_a_set_comes(
    tmp_path: Path,
) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await log.append(a_set(1))
    await log.close()
    card = Card()
    card.refuse()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    await log.append(a_set(2))
    columns = await log.read("milano")
    assert columns is not None
    place = columns.last
    card.work()
    await log.commit()
    await settle(log, "milano", 2)  # what the file held, too: porto has it still to come
    waiting = asyncio.create_task(log.wait("milano", place))
    await at_rest(log)
    assert not waiting.done()
    await log.append(a_set(3))
    await waiting
    assert await everything(log, "milano") == [3]
    assert await everything(log, "porto") == [1, 2, 3]
    await log.close()


async def test_before_the_file_is_open_sets_are_read_settled_and_counted_from_the_first_on(tmp_path: Path) -> None:
    card, clock = Late(), ManualClock()
    log = await opened(tmp_path, CITY, OTHER, clock=clock, connect=card.connect)
    for n in range(3):
        await log.append(a_set(n))
        await asyncio.wait_for(log.wait("milano"), 5)
    for name in ("milano", "porto"):
        assert await everything(log, name) == [0, 1, 2]
        assert log.backlog(name) == (6, NOON)
    await settle(log, "milano")
    clock.advance(20)  # it has been tried again by then
    await log.append(a_set(3))
    await log.set_consumers([CITY, OTHER, Consumer("lisboa")])
    await at_rest(log)
    assert await everything(log, "milano") == [1, 2, 3]
    assert log.backlog("milano") == (6, NOON + timedelta(seconds=1))
    assert await everything(log, "lisboa") == [0, 1, 2, 3]
    assert log.backlog("lisboa") == (8, NOON)
    for name, left in (("milano", [3]), ("porto", [2, 3]), ("lisboa", [1, 2, 3])):
        await settle(log, name, len(await everything(log, name)) - len(left))
    assert log.status()["head_readings"] == 6
    for open_ in (False, True):
        if open_:
            card.open()
            await log.commit()
        for name, left in (("milano", [3]), ("porto", [2, 3]), ("lisboa", [1, 2, 3])):
            assert await everything(log, name) == left
            assert log.backlog(name) == (2 * len(left), NOON + timedelta(seconds=left[0]))
    await log.close()


async def test_who_begins_with_what_comes_gets_nothing_older_when_the_file_is_opened_late(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(2):
        await log.append(a_set(n))
    await log.close()
    card = Late()
    first, second = Consumer("first", "now"), Consumer("second", "now")
    log = await opened(tmp_path, CITY, first, connect=card.connect)
    for n in range(2, 4):
        await log.append(a_set(n))
    await settle(log, "first")
    await log.set_consumers([CITY, first, second])
    await at_rest(log)
    card.open()
    await log.commit()
    assert await everything(log, "milano") == [0, 1, 2, 3]
    assert await everything(log, "first") == [3]
    assert await everything(log, "second") == [2, 3]
    await log.close()
