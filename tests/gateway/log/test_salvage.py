"""A damage is not the end: what is sent again after one, what a second one finds, and what an interrupted salvage leaves."""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Source
from gateway.log.log import Consumer, Log
from gateway.log.segment import Entry, Layouts, Stamp, encode, microseconds
from gateway.log.store import PAGE_BYTES, Batch, Store
from gateway.sdk.reading import Reading, ReadingSet, Value
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import (
    CITY,
    OTHER,
    BootClock,
    a_set,
    at_rest,
    counts_of,
    everything,
    lose,
    on_card,
    opened,
    settle,
)
from tests.gateway.log.test_failed_commit import poisoned

FROM_NOW = Consumer("milano", "now")
STAMP = Stamp(1, microseconds(NOON) - 10**9, 7)


async def committed(log: Log, numbers: Sequence[int], each: int = 10) -> None:
    for n in numbers:
        await log.append(a_set(n))
        if n % each == each - 1:
            await log.commit()
    await log.commit()


async def settle_below(log: Log, consumer: str, count: int) -> None:
    """All sets before this value are done with."""
    while (columns := await log.read(consumer)) is not None:
        rows = zip(columns.seq, columns.series, columns.value, strict=True)
        done = [seq for seq, number, value in rows if log.series[number].point == "count" and value < count]  # type: ignore[operator]
        if not done:
            return
        await log.settle(consumer, done[-1])


# Cursors


@pytest.mark.parametrize("tables", [("cursor",), ("cursor", "start"), ("cursor", "start", "boot", "gap")])
async def test_with_its_place_lost_everybody_gets_all_that_somebody_was_owed(
    tmp_path: Path, tables: tuple[str, ...]
) -> None:
    """Not what all had taken, though it lies in free pages; not too little, though one had taken more than the other."""
    log = await opened(tmp_path, CITY, OTHER)
    await committed(log, range(40))
    await settle_below(log, "milano", 25)
    await settle_below(log, "porto", 13)
    await log.commit()
    await committed(log, range(40, 50))
    await log.close()
    lose(tmp_path, *tables)
    log = await opened(tmp_path, FROM_NOW, OTHER)
    owed = list(range(13, 50))
    assert log.status()["state"] == "bad"
    for consumer in ("milano", "porto"):
        assert await everything(log, consumer) == owed
        assert log.backlog(consumer)[0] == 2 * len(owed)
    await settle_below(log, "milano", 30)
    await log.append(a_set(50))
    await log.close()

    log = await opened(tmp_path, FROM_NOW, OTHER)
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == list(range(30, 51))
    assert await everything(log, "porto") == [*owed, 50]
    await log.close()


@pytest.mark.parametrize("spoilt", [True, False])
async def test_after_many_starts_a_lost_start_number_is_none_that_was_used(tmp_path: Path, spoilt: bool) -> None:
    """Though no segment that can be read is left."""
    for n in range(8):
        log = await opened(tmp_path, CITY)
        newest = log.first_seq
        await log.append(a_set(n))
        await log.close()
    if spoilt:
        spoil_segments(tmp_path, *range(8))
    lose(tmp_path, "start", "cursor")
    for n in range(8, 10):
        log = await opened(tmp_path, CITY)
        assert log.first_seq > newest
        newest = log.first_seq
        await log.append(a_set(n))
        await log.commit()
        assert await everything(log, "milano") == list(range(8 if spoilt else 0, n + 1))
        await log.close()


async def test_a_start_that_wrote_nothing_is_remembered_beyond_a_damage(tmp_path: Path) -> None:
    for _ in range(4):
        log = await opened(tmp_path, CITY)
        newest = log.first_seq
        await log.close()
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY)
    assert log.first_seq > newest
    await log.close()


@pytest.mark.parametrize("spoilt", ["total = 'x'", "body = 5"])
async def test_a_segment_whose_row_cannot_be_costs_no_other_one(tmp_path: Path, spoilt: str) -> None:
    """Though the next one is damaged, too."""
    log = await opened(tmp_path, CITY)
    await committed(log, range(5), each=1)
    await log.close()
    spoil_segments(tmp_path, 3)
    with sqlite3.connect(tmp_path / "buffer.db") as db:
        db.execute(f"UPDATE segment SET {spoilt} WHERE id = (SELECT id FROM segment ORDER BY id LIMIT 1 OFFSET 2)")
    db.close()
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY)
    assert set(await everything(log, "milano")) >= ({0, 1, 2, 4} if "total" in spoilt else {0, 1, 4})
    assert "taken over" in log.status()["salvaged"]
    await log.close()


async def test_the_place_of_one_is_lost_and_the_other_keeps_its_own(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await committed(log, range(30))
    await settle_below(log, "milano", 25)
    await settle_below(log, "porto", 5)
    await log.close()
    with sqlite3.connect(tmp_path / "buffer.db") as db:
        db.execute("UPDATE cursor SET seq = 'x' WHERE consumer = 'porto'")
    db.close()
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "milano") == list(range(25, 30))
    assert await everything(log, "porto") == list(range(30))
    await log.close()


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("lost", [("state", "last_value"), ("state", "cursor")], ids=str)
async def test_what_is_kept_beyond_settling_is_kept_beyond_a_damage_and_sent_to_nobody_again(
    tmp_path: Path, lost: tuple[str, ...], running: bool
) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    keep: dict[str, Any] = {"clock": clock, "keep_s": 7200.0}
    log = await opened(tmp_path, CITY, OTHER, **keep)
    await committed(log, range(20))
    await settle_below(log, "milano", 20)
    await settle_below(log, "porto", 15)
    await committed(log, range(20, 30))
    if not running:
        await log.close()
    lose(tmp_path, *lost)
    if not running:
        log = await opened(tmp_path, CITY, OTHER, **keep)
    await log.append(ReadingSet("node", (Reading("count", 30, clock.now()),), {"fcnt": b"7"}))
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    for _ in range(2):
        assert await kept(log) == list(range(31))
        its_own = running or "cursor" not in lost
        assert await everything(log, "milano") == list(range(20 if its_own else 15, 31))
        assert await everything(log, "porto") == list(range(15, 31))
        assert log.backlog("porto")[0] == 2 * 15 + 1
        await log.close()
        log = await opened(tmp_path, CITY, OTHER, **keep)
    for consumer in ("milano", "porto"):
        await settle_below(log, consumer, 20)
    clock.advance(7300)
    await log.commit()
    assert await kept(log) == list(range(20, 31))
    await log.close()


async def kept(log: Log) -> list[int]:
    """All that is there, whoever has settled it."""
    columns = await log.scan(-1, 10_000)
    stored = [] if columns is None else counts_of(log, columns)
    newer = None if columns is None else await log.scan(columns.last, 10_000)
    return stored + ([] if newer is None else counts_of(log, newer))


@pytest.mark.parametrize("lost", ["cursor", "state"])
async def test_places_and_states_lost_while_running_are_known_by_memory(tmp_path: Path, lost: str) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await log.append(ReadingSet("node", (), {"fcnt": b"7"}))
    await committed(log, range(30))
    await settle_below(log, "milano", 17)
    await log.commit()
    lose(tmp_path, lost)
    await settle_below(log, "porto", 4)
    await log.append(ReadingSet("other", (), {"fcnt": b"1"}))
    await log.commit()
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    assert await everything(log, "milano") == list(range(17, 30))
    assert await everything(log, "porto") == list(range(4, 30))
    assert (log.backlog("milano")[0], log.backlog("porto")[0]) == (26, 52)
    shutil.copytree(tmp_path, tmp_path / "killed")  # as a kill -9 leaves it now
    await log.close()

    log = await opened(tmp_path / "killed", CITY, OTHER)
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == list(range(17, 30))
    assert await everything(log, "porto") == list(range(4, 30))
    assert (log.driver_state("node"), log.driver_state("other")) == ({"fcnt": b"7"}, {"fcnt": b"1"})
    await log.close()


async def test_sets_lost_while_running_are_no_longer_counted_as_owed(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await committed(log, range(10))
    await settle_below(log, "milano", 4)
    await log.set_consumers([CITY])
    lose(tmp_path, "segment")
    await committed(log, [10])
    await at_rest(log)
    await log.commit()
    assert await everything(log, "milano") == [10]
    assert (log.backlog("milano")[0], log.status()["gone"]["porto"]["backlog"]) == (2, 0)
    await log.close()


# What else is in the file


@pytest.mark.parametrize("running", [False, True])
async def test_held_pieces_gaps_states_and_last_values_outlive_a_salvage(tmp_path: Path, running: bool) -> None:
    """Of 60 nodes, so that their states are written where the newer ones are."""
    log = await opened(tmp_path, CITY)
    for n in range(60):
        await log.append(ReadingSet(f"node-{n}", (Reading("count", n, NOON),), {"fcnt": bytes([n])}))
    await log.commit()
    columns = await log.read("milano", max_readings=1)
    assert columns is not None
    held = [await log.held.hold("milano", e, "node-0", columns, reason="no", at=NOON) for e in ("a", "b", "c")]
    await log.held.purge(held[:1], NOON)
    await settle_below(log, "milano", 50)
    await log.append(ReadingSet("node-3", (), {"fcnt": b"newer"}))
    await log.commit()
    if running:
        lose(tmp_path, "cursor")
        await settle_below(log, "milano", 51)
        await log.commit()
    else:
        await log.close()
        lose(tmp_path, "start")
        log = await opened(tmp_path, CITY)
    for _ in range(2):
        assert [piece.id for piece in log.held.pieces()] == held[1:]
        assert (await log.held.readings(held[1])).value == list(range(60))
        assert log.status()["lost"] == {"purged": 60, "damage": 0}
        assert log.driver_state("node-3") == {"fcnt": b"newer"}
        assert log.driver_state("node-59") == {"fcnt": bytes([59])}
        assert log.last_values.device("node-7")["count"].value == 7
        assert log.last_values.device("node-59")["count"].value == 59
        await log.held.release([])  # the table takes changes
        assert await log.held.requeue(held[1:2], NOON) == 1
        await log.close()
        log = await opened(tmp_path, CITY)
    assert [piece.tries for piece in log.held.pieces()] == [0, 1]
    await log.close()


async def test_a_new_file_has_at_once_what_else_is_written_by_the_hour(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await committed(log, range(10))
    await poisoned(log)
    await log.commit()
    await log.append(a_set(20))
    await settle(log, "milano", 11)  # the last of them will never be written
    lose(tmp_path, "segment")
    await log.scan(-1)
    await at_rest(log)
    assert "taken over" in log.status()["salvaged"]
    assert log.status()["lost"] == {"unwritable": 1, "damage": 0}
    async with on_card(tmp_path, CITY) as found:
        assert found.last_values.device("meter-1")["count"].value == 20
        assert found.statistics.of()["meter-1", "count"].got == 11
        assert found.backlog("milano")[0] == 0
    await log.close()


async def test_what_the_commit_that_finds_damage_counts_is_told_at_once(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(2):
        await log.append(a_set(n))
    await poisoned(log)
    await log.commit()
    await poisoned(log)
    lose(tmp_path, "cursor")
    await settle(log, "milano")
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    for _ in range(2):
        assert log.status()["lost"] == {"unwritable": 2, "damage": 0}
        assert (log.given_up("milano"), log.given_up("porto")) == (2, 2)
        await log.close()
        log = await opened(tmp_path, CITY, OTHER)
    await log.close()


async def test_what_a_commit_counted_is_told_once_when_damage_is_found_later(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(0))
    await poisoned(log)
    await log.commit()
    lose(tmp_path, "segment")
    await everything(log, "milano")
    await at_rest(log)
    assert log.status()["salvaged"]
    assert log.status()["lost"]["unwritable"] == 1
    await log.close()


async def test_held_pieces_that_were_lost_while_running_are_shown_no_more(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await committed(log, range(10))
    columns = await log.read("milano")
    assert columns is not None
    await log.held.hold("milano", "lost", "meter-1", columns, reason="no", at=NOON, next_try_at=NOON)
    lose(tmp_path, "held", "cursor")
    await settle_below(log, "milano", 5)
    await log.commit()
    await log.commit()
    assert "table held" in log.status()["salvaged"]
    assert (log.held.pieces(), log.held.next_try_at("milano")) == ([], None)
    piece = await log.held.hold("milano", "new", "meter-1", columns, reason="no", at=NOON)
    await log.close()
    log = await opened(tmp_path, CITY)
    assert [(its.id, its.entity) for its in log.held.pieces()] == [(piece, "new")]
    await log.close()


async def test_what_the_clock_learned_outlives_the_loss_of_its_record_while_running(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    await log.append(ReadingSet("d", (Reading("count", 1, clock.now()),)))
    await log.commit()
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("count", 2, clock.now()),)))
    await log.commit()
    lose(tmp_path, "boot", "cursor")
    await log.append(ReadingSet("d", (Reading("count", 3, clock.now()),)))
    await log.commit()
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    columns = await log.read("milano")
    assert columns is not None
    assert columns.time_us == [microseconds(NOON)] * 3
    shutil.copytree(tmp_path, tmp_path / "killed")
    await log.close()

    log = await opened(tmp_path / "killed", CITY, clock=BootClock("b2", NOON + timedelta(days=1), -7200.0))
    columns = await log.read("milano")
    assert columns is not None
    assert columns.time_us == [microseconds(NOON)] * 3
    await log.close()


async def test_what_was_learned_counted_and_kept_for_drivers_outlives_a_salvage_at_the_start(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    await log.append(ReadingSet("d", (Reading("count", 1, clock.now()),), {"fcnt": b"7"}))
    await log.commit()
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("count", 2, clock.now()),)))
    clock.advance(3600)
    await log.close()
    lose(tmp_path, "gap", "last_value")

    clock = BootClock("b2", NOON + timedelta(hours=5), -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    assert "taken over" in log.status()["salvaged"]
    columns = await log.read("milano")
    assert columns is not None
    assert columns.time_us == [microseconds(NOON)] * 2
    assert clock.floor == NOON + timedelta(hours=1)
    assert [boot.name for boot in log.boots.rows()] == ["b1", "b2"]
    assert log.driver_state("d") == {"fcnt": b"7"}
    assert log.statistics.of()["d", "count"].got
    await log.close()


@pytest.mark.parametrize("records", [["record"], ["record", "record_copy"]])
@pytest.mark.parametrize("running", [True, False])
async def test_a_kill_right_after_a_salvage_that_lost_names_leaves_a_log_that_can_be_opened(
    tmp_path: Path, records: list[str], running: bool
) -> None:
    """With both copies gone memory alone can say what the segments hold, and does with the next commit."""
    log = await opened(tmp_path, CITY)
    await committed(log, range(20))
    if not running:
        await log.close()
    lose(tmp_path, "cursor", *records)
    if not running:
        log = await opened(tmp_path, CITY)
    await log.append(a_set(20, "meter-new"))
    await log.commit()
    shutil.copytree(tmp_path, tmp_path / "killed")
    await log.close()
    for folder in (tmp_path / "killed", tmp_path):
        log = await opened(folder, CITY)
        assert log.status()["state"] == "ok"
        left = await everything(log, "milano")
        known = "record_copy" not in records or (running and folder == tmp_path)
        told_in_time = running and left == list(range(21))  # what memory told may have been written before the kill
        assert left == (list(range(21)) if known or told_in_time else [20])
        assert log.last_values.device("meter-new")["count"].value == 20
        await log.append(a_set(21))
        await log.commit()
        assert await everything(log, "milano") == [*left, 21]
        await log.close()
    assert log.last_values.device("meter-1")["voltage"].value == 232.1


@pytest.mark.parametrize(
    "spoilt",
    [
        "UPDATE state SET value = 5 WHERE device = 'a'",
        "UPDATE held SET tries = 'x' WHERE id = 1",
        "INSERT INTO gap VALUES(9, 'x', 0, 0, 1, 'size', '{}')",
        "INSERT INTO boot VALUES(9, 'b9', 'x', 1, 1, NULL, 0)",
        "INSERT INTO statistic VALUES(9, 'x')",
    ],
)
async def test_a_row_that_cannot_be_costs_itself_alone(tmp_path: Path, spoilt: str) -> None:
    log = await opened(tmp_path, CITY)
    for device in ("a", "b"):
        await log.append(ReadingSet(device, (Reading("count", 1, NOON),), {"fcnt": b"7"}))
    await log.commit()
    columns = await log.read("milano")
    assert columns is not None
    held = [await log.held.hold("milano", entity, "a", columns, reason="no", at=NOON) for entity in ("one", "two")]
    await log.close()
    with sqlite3.connect(tmp_path / "buffer.db") as db:
        db.execute(spoilt)
    db.close()
    log = await opened(tmp_path, CITY)
    assert "taken over" in log.status()["salvaged"]
    assert await everything(log, "milano") == [1, 1]
    assert (log.driver_state("a") == {}) == ("state" in spoilt)
    assert log.driver_state("b") == {"fcnt": b"7"}
    assert [piece.id for piece in log.held.pieces()] == held["held" in spoilt :]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    await log.close()


def spoil_segments(folder: Path, *which: int) -> None:
    """A bit of these segments, by their order, has changed."""
    db = sqlite3.connect(folder / "buffer.db")
    bodies = [body for (body,) in db.execute("SELECT body FROM segment ORDER BY id")]
    db.close()
    content = bytearray((folder / "buffer.db").read_bytes())
    for number in which:
        content[content.index(bodies[number]) + len(bodies[number]) // 2] ^= 1
    (folder / "buffer.db").write_bytes(content)


@pytest.mark.parametrize(
    ("which", "lost"), [((), 0), ((1,), 20), ((4,), 20), ((1, 3), 40), ((0,), 0), ((0, 1, 2, 3), 60)], ids=str
)
async def test_what_a_salvage_did_not_find_is_counted_and_what_was_settled_is_not(
    tmp_path: Path, which: tuple[int, ...], lost: int
) -> None:
    """Of the first segment nobody can say how many readings it had."""
    log = await opened(tmp_path, CITY)
    await committed(log, range(60))
    await settle_below(log, "milano", 15)
    await log.commit()
    await log.close()
    spoil_segments(tmp_path, *which)  # 10 to 19, 20 to 29, …
    lose(tmp_path, "statistic")
    log = await opened(tmp_path, CITY)
    told = log.status()
    assert told["lost"] == {"damage": lost}
    assert (f"; {lost} readings;" in told["salvaged"]) is bool(lost)
    assert await everything(log, "milano") == [n for n in range(15, 60) if n // 10 - 1 not in which]
    await log.append(a_set(60))
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["lost"] == {"damage": lost}
    assert (await everything(log, "milano"))[-1] == 60
    await log.close()


@pytest.mark.parametrize(
    ("spoilt", "lost"),
    [
        ("UPDATE segment SET total = 'x' WHERE id % 4294967296 = 10", 20),
        ("UPDATE segment SET total = 0 WHERE id % 4294967296 = 20", 0),
        ("UPDATE segment SET body = 5 WHERE id % 4294967296 = 20", 20),
        ("UPDATE record SET body = 5", 20),
        ("UPDATE record_copy SET body = 5", 20),
    ],
)
async def test_a_spoilt_row_of_a_segment_or_of_names_costs_no_other(tmp_path: Path, spoilt: str, lost: int) -> None:
    """The third segment cannot be read."""
    log = await opened(tmp_path, CITY)
    await committed(log, range(40))
    await log.close()
    spoil_segments(tmp_path, 2)
    with sqlite3.connect(tmp_path / "buffer.db") as db:
        [ids] = zip(*db.execute("SELECT id FROM segment ORDER BY id"), strict=True)
        spoilt = spoilt.replace("id % 4294967296 = 10", f"id = {ids[1]}").replace(
            "id % 4294967296 = 20", f"id = {ids[2]}"
        )
        assert db.execute(spoilt).rowcount
    db.close()
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY)
    assert log.status()["salvaged"].startswith("3 segments with 60 readings taken over")
    assert await everything(log, "milano") == [*range(20), *range(30, 40)]
    if "'x'" not in spoilt:
        assert log.status()["lost"] == {"damage": lost}
    await log.close()


async def test_what_is_longer_than_a_page_is_taken_over_too(tmp_path: Path) -> None:
    """A text, and the names of what a device of many points has: no page has all of it."""
    wide = tuple(Reading(f"point-{n}", n, NOON) for n in range(900))
    text = random.Random(1).randbytes(10_000).hex()
    log = await opened(tmp_path, CITY)
    await log.append(ReadingSet("wide", wide))
    await log.commit()
    await log.append(ReadingSet("notes", (Reading("text", text, NOON), Reading("count", 1, NOON))))
    await log.close()
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY)
    assert log.status()["salvaged"].startswith("2 segments with 902 readings taken over")
    columns = await log.read("milano", max_readings=1000)
    assert columns is not None
    assert columns.value == [*range(900), text, 1]
    name = log.series[columns.series[899]]
    assert (name.device, name.point) == ("wide", "point-899")
    await log.close()


async def test_a_segment_of_which_the_names_are_lost_is_counted_and_costs_no_other(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await committed(log, range(10))
    for n in range(10, 20):
        await log.append(a_set(n, "meter-new"))
    await log.commit()
    await committed(log, range(20, 30))
    await log.close()
    path = tmp_path / "buffer.db"
    path.write_bytes(path.read_bytes().replace(b'"meter-new"', b'"meter-neu"'))  # in every copy, without its sum
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [*range(10), *range(20, 30)]
    assert log.status()["lost"] == {"damage": 20}
    assert log.status()["salvaged"].startswith("2 segments with 40 readings taken over")
    assert "cannot be decoded" in log.status()["salvaged"]
    await log.close()


# Overlapping segments: a commit that failed leaves its pages beside those of the one that followed


def entry(n: int, kind: str) -> Entry:
    """Value and number are one; sets of one kind are written in one layout, those of another in a finer one."""
    at = NOON + timedelta(seconds=n)
    values: dict[str, tuple[Value, ...]] = {"coarse": (n, 1.5, 5), "fine": (n, 1.25, "x"), "finest": (n, 1.0625, "x")}
    return Entry(n, (1, 2, 3), tuple(Reading("", value, at) for value in values[kind]), STAMP, 0.0, 0)


def run_of(first: int, last: int) -> list[Entry]:
    """The last of it is of another kind, so that what is left of the run has to be written anew in another layout."""
    return [*(entry(n, "coarse") for n in range(first, last)), entry(last, "fine" if first == 1 else "finest")]


@pytest.mark.parametrize(
    "runs",
    [
        [(1, 10), (6, 15)],
        [(1, 10), (6, 15), (11, 20)],
        [(1, 20), (6, 10)],
        [(1, 20), (6, 10), (21, 25)],
        [(1, 20), (6, 25)],
        [(1, 10), (2, 10)],
        [(1, 10), (10, 12)],
        [(1, 10), (10, 10)],
        [(1, 10), (1, 15)],
        [(1, 15), (1, 10)],
        [(1, 15), (1, 15)],
        [(1, 10), (4, 8), (5, 12), (12, 13)],
    ],
    ids=str,
)
async def test_a_number_that_two_segments_hold_is_taken_over_once_and_none_is_lost(
    tmp_path: Path, runs: list[tuple[int, int]]
) -> None:
    path = tmp_path / "buffer.db"
    store = Store(path, 10**9)
    now_us = microseconds(NOON)
    store.commit(Batch(series={1: ("m", "count"), 2: ("m", "a"), 3: ("m", "b")}, now_us=now_us))
    stray: list[bytes] = []
    known: set[int] = set()
    for first, last in runs:
        if first in known:  # no row of the table any more
            stray.append(encode(run_of(first, last), Layouts(), sealed_us=now_us))
        else:
            store.commit(Batch(entries=run_of(first, last), now_us=now_us))
        known.add(first)
    store.close()
    with path.open("ab") as file:
        for body in stray:
            file.write(body.ljust(PAGE_BYTES, b"\0"))
    lose(tmp_path, "gap")
    for damaged in (True, False, True):
        if damaged:
            lose(tmp_path, "gap")
        log = await opened(tmp_path, CITY)
        assert bool(log.status()["salvaged"]) is damaged
        assert await everything(log, "milano") == list(range(1, max(last for _, last in runs) + 1))
        assert log.backlog("milano")[0] == 3 * max(last for _, last in runs)
        assert set(log.status()["lost"]) <= {"damage"}  # nothing of it is too old
        await log.close()


# Again, and cut short


async def test_a_second_damage_finds_no_more_and_no_less_than_the_first_left(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await committed(log, range(30))
    await settle_below(log, "milano", 15)
    await log.close()
    for turn in range(3):
        lose(tmp_path, "gap", "last_value")
        log = await opened(tmp_path, CITY)
        assert "taken over" in log.status()["salvaged"]
        assert await everything(log, "milano") == list(range(15 + turn, 30 + turn))
        await settle_below(log, "milano", 16 + turn)
        await log.append(a_set(30 + turn))
        await log.close()
    assert len([p for p in tmp_path.glob("*.damaged-*") if not p.name.endswith("-wal")]) == 2
    log = await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == list(range(18, 33))
    await log.close()


async def test_damage_twice_in_one_run_is_salvaged_twice(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await committed(log, range(10))
    for turn in range(3):
        lose(tmp_path, "cursor")
        await settle_below(log, "milano", 2 + turn)
        await log.append(a_set(10 + turn))
        await log.commit()
        await log.commit()
        assert await everything(log, "milano") == list(range(2 + turn, 11 + turn))
        assert log.backlog("milano")[0] == 18
    assert len([p for p in tmp_path.glob("*.damaged-*") if not p.name.endswith("-wal")]) == 2
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == list(range(4, 13))
    await log.close()


async def test_leftovers_of_a_salvage_that_was_cut_short_are_none_of_the_next_one(tmp_path: Path) -> None:
    """It had written a part of the new file when the power went; the old one is still in its place."""
    log = await opened(tmp_path, CITY)
    await committed(log, range(20))
    await log.close()
    log = await opened(tmp_path / "begun", Consumer("gone"))
    await committed(log, range(70, 78))
    shutil.copy(tmp_path / "begun" / "buffer.db-wal", tmp_path / "buffer.db.new-wal")
    await log.close()
    shutil.copy(tmp_path / "begun" / "buffer.db", tmp_path / "buffer.db.new")
    log = await opened(tmp_path, CITY)  # no damage: what lies beside it is none of its business
    assert await everything(log, "milano") == list(range(20))
    await log.close()
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == list(range(20))
    assert log.status()["gone"] == {}
    assert not list(tmp_path.glob("*.new*"))
    await log.close()


async def test_a_salvage_cut_short_before_its_last_step_is_completed_without_the_old_journal(tmp_path: Path) -> None:
    """The old file is set aside with its date, the new one waits beside its place; the journal is of the old one."""
    log = await opened(tmp_path, CITY)
    await committed(log, range(5))
    shutil.copy(tmp_path / "buffer.db-wal", tmp_path / "journal")
    await log.close()
    (tmp_path / "buffer.db").rename(tmp_path / "buffer.db.new")
    (tmp_path / "journal").rename(tmp_path / "buffer.db-wal")
    for date in ("20250101T000000", "20260601T120000"):
        (tmp_path / f"buffer.db.damaged-{date}-0").write_bytes(b"old")
    journal = (tmp_path / "buffer.db-wal").read_bytes()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == list(range(5))
    assert log.status()["state"] == "ok"
    await log.close()
    assert (tmp_path / "buffer.db.damaged-20260601T120000-0-wal").read_bytes() == journal
    assert not (tmp_path / "buffer.db.new").exists()


# Taken away, and damaged


async def taken_away_and_unreadable(tmp_path: Path, content: bytes | None, **settings: Any) -> Log:
    """Ten sets of which the first four are settled; the open file is gone from its path and cannot be copied."""
    log = await opened(tmp_path, CITY, OTHER, **settings)
    await committed(log, range(10))
    await settle_below(log, "milano", 4)
    await log.commit()
    lose(tmp_path, "state", "last_value", "segment")
    (tmp_path / "buffer.db").unlink()
    if content is not None:
        (tmp_path / "buffer.db").write_bytes(content)
    await log.append(a_set(10))
    await log.commit()
    await log.commit()
    return log


@pytest.mark.parametrize("content", [None, b"backup of the box\n" * 500])
async def test_a_file_taken_away_that_cannot_be_copied_is_counted_as_lost_for_each(
    tmp_path: Path, content: bytes | None
) -> None:
    log = await taken_away_and_unreadable(tmp_path, content)
    told = log.status()
    assert told["lost"] == {"damage": 20}
    assert "while it was in use" in told["reason"]
    assert (log.given_up("milano"), log.given_up("porto")) == (12, 20)
    assert (await everything(log, "milano"))[-1] == 10
    await log.close()
    if content is not None:
        [aside] = tmp_path.glob("buffer.db.replaced-*")
        assert aside.read_bytes() == content
    log = await opened(tmp_path, CITY, OTHER)
    assert log.status()["lost"] == {"damage": 20}
    assert await everything(log, "milano") == await everything(log, "porto") == [10]
    await log.close()


@pytest.mark.parametrize(("keep_s", "there"), [(0.0, [2, 3, 4, 5, 10]), (3600.0, [0, 1, 2, 3, 4, 5, 10])])
async def test_of_a_file_replaced_by_an_older_copy_and_unreadable_the_copy_is_salvaged(
    tmp_path: Path, keep_s: float, there: list[int]
) -> None:
    old = await opened(tmp_path / "old", CITY, OTHER, keep_s=keep_s)
    await committed(old, range(4), each=2)
    for consumer in ("milano", "porto"):
        await settle_below(old, consumer, 2)
    await committed(old, range(4, 6))
    await old.close()
    log = await taken_away_and_unreadable(tmp_path, (tmp_path / "old" / "buffer.db").read_bytes(), keep_s=keep_s)
    assert await kept(log) == there
    assert "replaced while it was in use" in log.status()["reason"]
    assert "taken over" in log.status()["reason"]
    assert await everything(log, "porto") == there
    await log.close()


async def of_another_box(folder: Path) -> bytes:
    """A log whose numbers begin as those of any first start do, and go further."""
    other = await opened(folder, CITY, clock=ManualClock(NOON - timedelta(days=1)))
    await committed(other, range(1000, 1012), each=3)
    await other.close()
    return (folder / "buffer.db").read_bytes()


@pytest.mark.parametrize("how", ["written over", "replaced, and unreadable"])
async def test_the_log_of_another_box_in_the_place_of_the_open_one_is_set_aside_and_its_numbers_stop_nobody(
    tmp_path: Path, how: str
) -> None:
    content = await of_another_box(tmp_path / "other")
    if how == "written over":
        log = await opened(tmp_path, CITY, OTHER)
        await committed(log, range(10))
        await settle_below(log, "milano", 4)
        await log.append(a_set(10))
        lose(tmp_path)  # whoever has it open reads it anew
        with (tmp_path / "buffer.db").open("r+b") as file:
            file.write(content)
            file.truncate()
        await log.commit()
    else:
        log = await taken_away_and_unreadable(tmp_path, content)
    await log.append(a_set(11))
    await log.commit()
    told = log.status()
    assert how.split(",", maxsplit=1)[0] in told["reason"]
    assert "what lies there is another log" in told["reason"]
    assert "where it belongs" in told["remedy"]
    assert told["lost"] == {"damage": 20}
    assert (log.given_up("milano"), log.given_up("porto")) == (12, 20)
    assert await everything(log, "milano") == await everything(log, "porto") == [10, 11]
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await kept(log) == [10, 11]
    await log.close()
    [aside] = tmp_path.glob("buffer.db.replaced-*")
    aside.rename(tmp_path / "other" / "buffer.db")
    log = await opened(tmp_path / "other", CITY)
    assert await kept(log) == list(range(1000, 1012))
    await log.close()


async def test_an_older_copy_written_over_the_open_log_is_taken_over(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await committed(log, range(3))
    await log.close()
    older = (tmp_path / "buffer.db").read_bytes()
    log = await opened(tmp_path, CITY, clock=ManualClock(NOON + timedelta(days=1)))
    await committed(log, range(3, 6))
    lose(tmp_path)
    (tmp_path / "buffer.db").write_bytes(older)
    await committed(log, range(6, 8))
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    assert await everything(log, "milano") == [0, 1, 2, 6, 7]
    await log.close()


# The guard, after what it had to do once


async def test_a_file_taken_away_twice_is_noticed_twice(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(3):
        await log.append(a_set(n))
        await log.commit()
        (tmp_path / "buffer.db").unlink()
        await log.append(a_set(100 + n))
        await log.commit()
        assert (tmp_path / "buffer.db").exists()
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [0, 100, 1, 101, 2, 102]
    await log.close()


async def test_after_a_salvage_the_new_file_is_guarded(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await committed(log, range(5))
    lose(tmp_path, "cursor")
    await settle_below(log, "milano", 2)
    await log.commit()
    (tmp_path / "buffer.db").unlink()
    await log.append(a_set(5))
    await log.commit()
    assert "deleted while it was in use" in log.status()["reason"]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [2, 3, 4, 5]
    await log.close()


async def test_a_file_that_grew_and_is_cut_to_what_it_once_was_is_noticed(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    path = tmp_path / "buffer.db"
    at_start = path.stat().st_size
    n = 0
    while path.stat().st_size <= at_start + 4 * PAGE_BYTES:
        await log.append(ReadingSet("d", (Reading("count", n, NOON), Reading("text", f"{n}" * 900, NOON))))
        await log.commit()
        n += 1
    await log.commit()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - PAGE_BYTES)
    assert path.stat().st_size > at_start
    await log.append(a_set(n))
    await log.commit()
    assert "cut short while it was in use" in log.status()["reason"]
    await log.close()


async def test_a_lock_deleted_twice_is_taken_twice_and_free_after_the_stop(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(2):
        (tmp_path / "buffer.db.lock").unlink()
        await log.append(a_set(n))
        await log.commit()
        assert log.status()["state"] == "ok"
        with pytest.raises(Exception, match="in use by another citygate"):
            await opened(tmp_path, CITY)
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [0, 1]
    await asyncio.sleep(0)
    await log.close()
