"""A card that is full, refuses, forgets or lies: nothing committed is lost, nothing false is read, the box goes on."""

import asyncio
import contextlib
import random
import sqlite3
from itertools import count
from pathlib import Path
from typing import Any

import apsw
import pytest

from gateway.clock import Source
from gateway.log.log import Log
from gateway.log.segment import DamagedSegment, microseconds, read_header
from gateway.log.store import Batch, Gap, Store
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, everything, opened
from tests.gateway.log.test_powercut import PATH, Scene, dump
from tests.support.powercut import Card, Connection
from tests.support.rights import run_on_a_card

# apsw reports what a card refused while SQLite ignores it (a checkpoint, a rollback) as unraisable
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
_cards = count()


class Refusing(Card):
    """A card on which every write fails, while told to."""

    def __init__(self) -> None:
        super().__init__(f"refusing-{next(_cards)}")
        self.error: type[apsw.Error] | None = None

    def connect(self, _: Path) -> Any:
        if self.error is not None:
            raise sqlite3.OperationalError("unable to open database file")
        return Connection(self, PATH)

    def refuse(self, error: type[apsw.Error] | None) -> None:
        self.error = error
        self.full = error is not None


# Full


@pytest.mark.parametrize("fails", range(6))
def test_a_card_that_is_full_at_any_operation_leaves_all_as_it_was(fails: int) -> None:
    """Every write of the scene fails once; what was there before is there after it, and the next commit works."""
    clean = Scene()
    clean.open()
    clean.work(12)
    for place in range(1 + fails, clean.card.writes, 6):
        scene = Scene()
        scene.open()
        scene.card.fail_at = scene.card.writes + place
        assert scene.store is not None
        before = ""
        try:
            for _ in range(4):
                before = dump(scene.store._db)
                scene.work(3)
        except sqlite3.OperationalError as error:
            assert "full" in str(error)  # noqa: PT017
            after = dump(scene.store._db)
            assert after in (before, *scene.states)
            scene.work(2)
            assert scene.store.quick_check() == []


def test_a_commit_that_fails_half_way_leaves_nothing_behind() -> None:
    scene = Scene()
    scene.open()
    scene.work(5)
    assert scene.store is not None
    before = dump(scene.store._db)

    def fails(store: Store, batch: Batch, need_bytes: int) -> list[Gap]:
        store.delete_upto(1 << 62)
        raise LogError("half way")

    with pytest.raises(LogError, match="half way"):
        scene.store.commit(Batch(entries=scene.sets(3)), fails)
    assert dump(scene.store._db) == before


async def test_a_full_card_keeps_what_was_committed_and_the_newest_in_memory(tmp_path: Path) -> None:
    card = Refusing()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=40_000)
    for n in range(50):
        await log.append(a_set(n))
    await log.commit()
    card.refuse(apsw.FullError)
    for n in range(50, 400):
        await asyncio.wait_for(log.append(a_set(n)), 5)
        if n % 50 == 0:
            with pytest.raises(LogError, match="full"):
                await log.commit()
    assert log.status()["state"] == "bad"
    assert log.status()["remedy"]
    assert log.status()["head_bytes"] <= 41_000
    kept = await everything(log, "milano")
    assert kept[:50] == list(range(50))
    newest = kept[50:]
    assert newest == list(range(newest[0], 400))
    lost = (400 - 50 - len(newest)) * 2
    assert sum(gap.readings for gap in log.gaps if gap.reason == "memory") == lost > 0
    assert sum(gap.owed["milano"] for gap in log.gaps) == lost

    card.refuse(None)
    await log.commit()
    assert log.status()["dropped"] == lost
    await log.append(a_set(400))
    assert await everything(log, "milano") == [*kept, 400]
    await log.close()


async def test_with_brokers_reachable_a_full_card_costs_nothing(tmp_path: Path) -> None:
    card = Refusing()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=40_000)
    card.refuse(apsw.ReadOnlyError)
    sent: list[int] = []
    for n in range(300):
        await asyncio.wait_for(log.append(a_set(n)), 5)
        sent += await everything(log, "milano")
        while (columns := await log.read("milano")) is not None:
            await log.settle("milano", columns.last)
    assert sent == list(range(300))
    assert not log.gaps
    card.refuse(None)
    await log.close()


@pytest.mark.parametrize("error", [apsw.FullError, apsw.ReadOnlyError, apsw.IOError])
async def test_a_card_that_refuses_at_the_start_is_taken_up_when_it_works(
    tmp_path: Path, error: type[apsw.Error]
) -> None:
    card = Refusing()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    for n in range(5):
        await log.append(a_set(n))
    columns = await log.read("milano", max_readings=4)
    assert columns is not None
    await log.settle("milano", columns.last)
    await log.close()

    card.refuse(error)
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    assert log.status()["state"] == "bad"
    for n in range(100, 105):
        await log.append(a_set(n))
    assert await everything(log, "milano") == [100, 101, 102, 103, 104]
    with pytest.raises(LogError):
        await log.commit()
    card.refuse(None)
    await log.commit()
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [2, 3, 4, 100, 101, 102, 103, 104]
    assert await everything(log, "porto") == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    await log.append(a_set(105))
    await log.close()

    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    assert await everything(log, "milano") == [2, 3, 4, 100, 101, 102, 103, 104, 105]
    assert log.last_values.device("meter-1")["count"].value == 105
    await log.close()


async def test_readings_of_a_start_without_card_and_clock_end_true(tmp_path: Path) -> None:
    """The card refuses, the clock is wrong; the clock is set, cities are served; the card works, all is written."""
    card, clock = Refusing(), BootClock("b1", NOON, -86400.0)
    card.refuse(apsw.IOError)
    log = await opened(tmp_path, CITY, connect=card.connect, clock=clock)
    await log.append(ReadingSet("d", (Reading("n", 1, clock.now()),)))
    true = [microseconds(clock.true)]
    assert await log.read("milano") is None
    clock.learn(Source.KERNEL)
    clock.advance(60)
    await log.append(ReadingSet("d", (Reading("n", 2, clock.now()),)))
    true.append(microseconds(clock.true))
    with pytest.raises(LogError):
        await log.commit()
    served = await log.read("milano")
    assert served is not None
    assert served.time_us == true
    card.refuse(None)
    await log.commit()
    written = await log.read("milano")
    assert written is not None
    assert written.time_us == true
    await log.close()


async def test_a_receipt_fails_when_its_set_had_to_be_given_up(tmp_path: Path) -> None:
    card = Refusing()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=4_000)
    receipt = (await log.append(a_set(0))).durable
    card.refuse(apsw.FullError)
    for n in range(1, 30):
        await asyncio.wait_for(log.append(a_set(n)), 5)
        with pytest.raises(LogError):
            await log.commit()
    with pytest.raises(LogError, match="memory is full"):
        await receipt
    card.refuse(None)
    await log.close()


# Damage


async def filled(tmp_path: Path) -> None:
    """A closed file of 60 commits, held pieces and cursors in it."""
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(600):
        await log.append(a_set(n, f"meter-{n % 7}"))
        if n % 10 == 9:
            await log.commit()
    await log.close()


def segments_of(content: bytes) -> list[tuple[int, int]]:
    """Where the segments are in the file: first byte and the one after the last."""
    found, start = [], content.find(b"CG\x01")
    while start >= 0:
        try:
            found.append((start, start + read_header(content[start : start + 8192]).size_bytes))
        except DamagedSegment:
            found.append((start, start))
        start = content.find(b"CG\x01", start + 1)
    return found


def damage(content: bytearray, kind: str, chance: random.Random) -> tuple[int, int]:
    """Spoil the content; returns the range of bytes that changed."""
    place = chance.randrange(len(content))
    if kind == "bit":
        content[place] ^= 1 << chance.randrange(8)
        return place, place + 1
    size = 4096 if kind == "page" else 512
    place = place // size * size
    content[place : place + size] = bytes(size) if kind == "page" else chance.randbytes(size)
    return place, place + size


@pytest.mark.parametrize("kind", ["bit", "page", "noise"])
async def test_every_sound_segment_of_a_damaged_file_is_read_and_nothing_else(tmp_path: Path, kind: str) -> None:
    await filled(tmp_path)
    path = tmp_path / "buffer.db"
    whole, chance = path.read_bytes(), random.Random(kind)
    per_segment = 10
    for trial in range(25):
        content = bytearray(whole)
        start, end = damage(content, kind, chance)
        if trial == 0 and kind != "bit":
            content, start, end = bytearray(whole), 0, 4096
            content[:4096] = bytes(4096)  # the page without which it is no database
        hit = [s for s in segments_of(whole) if s[0] < end and start < s[1] and s[0] != s[1]]
        for old in tmp_path.iterdir():
            old.unlink()
        path.write_bytes(content)
        log = await opened(tmp_path, CITY)
        kept = await everything(log, "milano")
        assert kept == sorted(set(kept))  # in order, nothing twice, nothing that never was
        assert set(kept) <= set(range(600))
        assert 600 - len(kept) <= per_segment * len(hit), f"trial {trial}: bytes {start}-{end}"
        await log.append(a_set(1000))
        await log.close()


async def test_a_damaged_file_is_set_aside_with_a_date_and_reported(tmp_path: Path) -> None:
    await filled(tmp_path)
    path = tmp_path / "buffer.db"
    content = bytearray(path.read_bytes())
    content[:4096] = bytes(4096)
    path.write_bytes(content)
    log = await opened(tmp_path, CITY, OTHER)
    status = log.status()
    assert status["state"] == "bad"
    assert "60 segments with 1200 readings taken over" in status["reason"]
    assert (await everything(log, "porto")) == list(range(600))
    assert [p.name[:18] for p in tmp_path.glob("*.damaged-*")] == ["buffer.db.damaged-"]
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert log.status()["state"] == "ok"
    await log.close()


async def test_damage_that_shows_while_running_is_salvaged_without_a_stop(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(600):
        await log.append(a_set(n))
        if n % 10 == 9:
            await log.commit()
    while (columns := await log.read("milano")) is not None and columns.last % 100 < 50:
        await log.settle("milano", columns.last)
    place = (await log.read("milano")).seq[0]  # type: ignore[union-attr]
    assert log._file.store is not None
    log._file.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    [(root,)] = log._file.store._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'segment'").fetchall()
    with (tmp_path / "buffer.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(4096))
    log._file.store._db.execute("PRAGMA cache_size=0")
    log._file.store._db.execute("PRAGMA cache_size=2000")
    assert await everything(log, "porto") == list(range(600))
    assert (await log.read("milano")).seq[0] == place  # type: ignore[union-attr]
    await log.append(a_set(600))
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "porto") == list(range(601))
    await log.close()


async def test_files_set_aside_are_bounded(tmp_path: Path) -> None:
    for turn in range(4):
        (tmp_path / "buffer.db").write_bytes(bytes(10_000))
        log = await opened(tmp_path, CITY)
        await log.append(a_set(turn))
        await log.close()
    assert len(list(tmp_path.glob("*.damaged-*"))) == 2


async def test_a_damaged_cursor_gives_everything_again_rather_than_too_little(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(10):
        await log.append(a_set(n))
        await log.commit()
    columns = await log.read("milano", max_readings=4)
    assert columns is not None
    await log.settle("milano", columns.last)
    await log.close()
    db = sqlite3.connect(tmp_path / "buffer.db")
    with db:
        db.execute("UPDATE cursor SET seq = seq + 5")
    db.close()
    log = await opened(tmp_path, CITY)
    assert (await everything(log, "milano"))[-8:] == list(range(2, 10))
    await log.close()


# Files that are not ours


@pytest.mark.parametrize("content", [b"", bytes(8192)])
async def test_an_empty_file_is_a_new_log_and_zeros_are_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "buffer.db").write_bytes(content)
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.close()
    assert len(list(tmp_path.glob("*.damaged-*"))) == bool(content)


async def test_the_file_is_readable_by_user_and_group_alone(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.commit()
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o007 == 0, file
    await log.close()


def test_an_older_format_is_brought_up_to_date_with_all_that_is_in_it(tmp_path: Path) -> None:
    from gateway.log.store import MIGRATIONS

    for version in range(1, len(MIGRATIONS)):
        path = tmp_path / f"v{version}.db"
        scene = Scene()
        scene.connect = lambda _, path=path: sqlite3.connect(path, isolation_level=None)  # type: ignore[method-assign, misc]
        scene.open()
        scene.work(10)
        assert scene.store is not None
        db = scene.store._db
        if version < 3:
            db.execute(
                "INSERT INTO state SELECT device, key, value FROM newer_state WHERE true ON CONFLICT DO UPDATE SET value = excluded.value"
            )
        young = [
            "consumer",
            "hole",
            "recipe",
            "moved",
            *["newer_state"] * (version < 3),
            *["held", "gap", "statistic"] * (version < 2),
        ]
        for table in young:
            db.execute(f"DROP TABLE {table}")
        db.execute(f"PRAGMA user_version={version}")
        before = dump(db)
        scene.close()
        store = Store(path, 10**9)
        assert dump(store._db) == before
        assert store.load("boot-2", 0).series
        store.close()


async def test_no_error_of_the_card_ends_the_daemons_log(tmp_path: Path) -> None:
    """The commit task must not die of what a card can say."""
    card = Refusing()
    log: Log = await opened(tmp_path, CITY, connect=card.connect, commit_every_s=0.0)
    for error in (apsw.FullError, apsw.IOError, apsw.ReadOnlyError):
        card.refuse(error)
        await asyncio.wait_for(log.append(a_set(1)), 5)  # it is in memory, as `emit` promises
        assert log.status()["state"] == "bad"
        card.refuse(None)
        await asyncio.wait_for(log.append(a_set(2)), 5)
        await log.commit()
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [1, 2] * 3
    await log.close()


def test_at_zero_bytes_free_nothing_committed_is_lost_and_settling_makes_room(tmp_path: Path) -> None:
    """On a real file system of 1 MB."""
    run_on_a_card(
        tmp_path,
        "1m",
        "import asyncio, pathlib, sys; from tests.gateway.log.test_failures import fill;"
        "asyncio.run(fill(pathlib.Path(sys.argv[1])))",
    )


async def fill(card: Path) -> None:
    """Until it takes no more, then some is settled."""
    log = await opened(card, CITY, head_bytes=60_000)
    n = 0
    while log.status()["size_bytes"] < 300_000:
        await log.append(a_set(n, f"meter-{'x' * 40}-{n}"))  # new names all the time: much to write
        n += 1
        if n % 50 == 0:
            await log.commit()
    await log.commit()
    committed = n
    with contextlib.suppress(OSError), (card / "other").open("wb", buffering=0) as other:
        while True:
            other.write(bytes(4096))
    with contextlib.suppress(LogError):
        for _ in range(400):
            await asyncio.wait_for(log.append(a_set(n, f"meter-{'x' * 40}-{n}")), 5)
            n += 1
            if n % 50 == 0:
                await log.commit()
        pytest.fail("the card took more than it has")
    assert log.status()["state"] == "bad"
    assert await everything(log, "milano") == list(range(n))
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    (card / "other").unlink()
    await log.append(a_set(n))
    await log.commit()
    assert log.status()["state"] == "ok"
    assert not log.gaps
    assert committed < n
    await log.close()
