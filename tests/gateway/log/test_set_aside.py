"""What lies beside the log, and in its place: files set aside, half-made ones, journals without a file, what is hardly ours."""

import contextlib
import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from gateway.log.log import Log
from gateway.log.store import PAGE_BYTES, connect_file
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import CITY, a_set, everything, lose, opened, settle
from tests.support.rights import run_on_a_card


async def filled(folder: Path, sets: int = 5, text_bytes: int = 0) -> None:
    """A commit for each set; with so long a text no segment of it is in one piece."""
    log = await opened(folder, CITY)
    for n in range(sets):
        await log.append(a_set(n) if not text_bytes else a_long_set(n, text_bytes))
        await log.commit()
    await log.close()


def a_long_set(n: int, text_bytes: int) -> ReadingSet:
    return ReadingSet("meter-1", (Reading("count", n, NOON), Reading("text", f"{n:05}" * (text_bytes // 5), NOON)))


def asides(folder: Path, kind: str = "damaged") -> list[Path]:
    return sorted(p for p in folder.glob(f"buffer.db.{kind}-*") if not p.name.endswith(("-wal", "-shm")))


# Whether it is ours


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b" \n" * 2048, "foreign"),
        (b"SQLite format 3\0".ljust(PAGE_BYTES, b"x"), "foreign"),
        (b"SQLite format 3\0".ljust(68, b"x") + b"city".ljust(PAGE_BYTES, b"x"), "damaged"),
        (bytes(PAGE_BYTES) + b"x" * PAGE_BYTES, "damaged"),
    ],
    ids=["blanks", "the head of somebody's database", "the head of ours", "a page of zeros"],
)
async def test_what_holds_nothing_of_ours_is_damaged_only_when_it_can_have_been_ours(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    (tmp_path / "buffer.db").write_bytes(content)
    log = await opened(tmp_path, CITY)
    [aside] = asides(tmp_path, "*")
    assert aside.read_bytes() == content
    assert aside.name.startswith(f"buffer.db.{kind}-")
    await log.close()


@pytest.mark.parametrize("left", ["all", "segments", "names"])
async def test_a_log_whose_first_page_is_anything_is_known_by_its_segments_or_its_names(
    tmp_path: Path, left: str
) -> None:
    await filled(tmp_path)
    if left == "names":
        log = await opened(tmp_path, CITY)
        await settle(log, "milano", 5)
        await log.close()
        spoil(tmp_path, b"CG\x01", b"CG\x02")
    elif left == "segments":
        spoil(tmp_path, b"CD\x01")
    with (tmp_path / "buffer.db").open("r+b") as file:
        file.write(b"backup of the box\n".ljust(PAGE_BYTES, b"x"))
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == (list(range(5)) if left == "all" else [])
    assert (len(asides(tmp_path)), len(asides(tmp_path, "foreign"))) == (1, 0)
    await log.close()


def spoil(folder: Path, *magics: bytes) -> None:
    content = (folder / "buffer.db").read_bytes()
    for magic in magics:
        content = content.replace(magic, b"XXX")
    (folder / "buffer.db").write_bytes(content)


# What is told


async def test_a_salvage_that_found_all_says_so_and_where_the_old_file_is(tmp_path: Path) -> None:
    await filled(tmp_path)
    spoil_a_row(tmp_path)
    log = await opened(tmp_path, CITY)
    [aside] = asides(tmp_path)
    told = log.status()
    assert told["salvaged"] == (
        f"5 segments with 10 readings taken over; nothing known to be missing; the old file is {aside}"
    )
    assert "delete the old file" in told["remedy"]
    await log.close()


def spoil_a_row(folder: Path) -> None:
    db = sqlite3.connect(folder / "buffer.db")
    with db:
        db.execute("INSERT INTO statistic VALUES(9, 'x')")
    db.close()


async def test_a_table_that_ends_early_is_told_with_what_was_read(tmp_path: Path) -> None:
    await filled(tmp_path)
    lose(tmp_path, "state")
    log = await opened(tmp_path, CITY)
    assert "; table state after 0 rows: " in log.status()["salvaged"]
    await log.close()


async def test_a_segment_too_long_for_a_page_is_taken_over_whole(tmp_path: Path) -> None:
    await filled(tmp_path, 3, text_bytes=30_000)
    lose(tmp_path, "gap")
    log = await opened(tmp_path, CITY)
    assert "taken over" in log.status()["salvaged"]
    assert await everything(log, "milano") == [0, 1, 2]
    columns = await log.read("milano")
    assert columns is not None
    assert [len(value) for value in columns.value if isinstance(value, str)] == [30_000] * 3
    await log.close()


# Which are kept


@pytest.mark.parametrize("dates", [(), ("2025",), ("2025", "2026"), ("2098", "2099"), ("2025", "2099")], ids=str)
async def test_the_file_just_set_aside_is_kept_and_the_newest_other_one_whatever_the_clock_said(
    tmp_path: Path, dates: tuple[str, ...]
) -> None:
    """A box without a clock of its own may be years back after a start. All that is sound is in the journal this time."""
    older = [tmp_path / f"buffer.db.damaged-{date}0101T000000-0" for date in dates]
    for file in older:
        for end in ("", "-wal"):
            file.with_name(file.name + end).write_bytes(b"old")
    log = await opened(tmp_path / "work", CITY)
    await log.append(a_set(0))
    await log.commit()
    journal = (tmp_path / "work" / "buffer.db-wal").read_bytes()
    await log.close()
    (tmp_path / "buffer.db").write_bytes(bytes(100))
    (tmp_path / "buffer.db-wal").write_bytes(journal)
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [0]
    [aside] = [file for file in asides(tmp_path) if str(file) in log.status()["salvaged"]]
    assert asides(tmp_path) == sorted([*older[-1:], aside])
    journals = {file.name.removesuffix("-wal"): file.read_bytes() for file in tmp_path.glob("*.damaged-*-wal")}
    assert journals == {aside.name: journal} | {file.name: b"old" for file in older[-1:]}
    await log.close()


def test_on_a_card_without_room_for_another_one_only_the_newest_file_set_aside_is_kept(tmp_path: Path) -> None:
    run_on_a_card(
        tmp_path,
        "4m",
        "import asyncio, pathlib, sys; from tests.gateway.log.test_set_aside import set_aside_when_full;"
        "asyncio.run(set_aside_when_full(pathlib.Path(sys.argv[1])))",
    )


async def set_aside_when_full(card: Path) -> None:
    await filled(card, 20, text_bytes=30_000)
    log = await opened(card, CITY)
    await settle(log, "milano", 15)
    await log.close()
    lose(card, "gap")
    size = (card / "buffer.db").stat().st_size
    older = card / "buffer.db.damaged-20250101T000000-0"
    older.write_bytes(b"old")
    (card / "ballast").write_bytes(bytes(shutil.disk_usage(card).free - size))
    log = await opened(card, CITY)
    assert await everything(log, "milano") == list(range(15, 20))
    assert shutil.disk_usage(card).free < size
    assert (len(asides(card)), older.exists()) == (1, False)
    await log.close()


# What was cut short


@pytest.mark.parametrize("dates", [("20250101T000000", "20260601T120000"), ()], ids=["salvage", "rescue"])
async def test_what_was_made_anew_is_taken_without_the_journal_of_the_old_file(
    tmp_path: Path, dates: tuple[str, ...]
) -> None:
    """After the power cut of a salvage there is an old file set aside, after that of a rescue there is none."""
    log = await opened(tmp_path, CITY)
    for n in range(5):
        await log.append(a_set(n))
        await log.commit()
    journal = (tmp_path / "buffer.db-wal").read_bytes()
    await log.append(a_set(5))
    await log.close()
    (tmp_path / "buffer.db").rename(tmp_path / "buffer.db.new")
    (tmp_path / "buffer.db-wal").write_bytes(journal)
    (tmp_path / "buffer.db-shm").write_bytes(b"x" * 100)
    for date in dates:
        (tmp_path / f"buffer.db.damaged-{date}-0").write_bytes(b"old")
    log = await opened(tmp_path, CITY)
    assert (log.status()["state"], await everything(log, "milano")) == ("ok", list(range(6)))
    assert [file.read_bytes() for file in tmp_path.glob(f"*.damaged-{max(dates, default='')}-0-wal")] == [
        journal
    ] * bool(dates)
    await log.close()


async def test_a_foreign_file_takes_its_journals_with_it(tmp_path: Path) -> None:
    for end in ("", "-wal", "-journal", "-shm"):
        (tmp_path / f"buffer.db{end}").write_bytes(b"short")
    log = await opened(tmp_path, CITY)
    [aside] = [file for file in asides(tmp_path, "foreign") if not file.name.endswith("-journal")]
    ends = {file.name.removeprefix(aside.name): file.read_bytes() for file in tmp_path.glob("*.foreign-*")}
    assert ends == dict.fromkeys(("", "-wal", "-journal"), b"short")
    assert f"it is kept as {aside}" in log.status()["reason"]
    assert (tmp_path / "buffer.db-shm").read_bytes()[:5] != b"short"
    await log.append(a_set(1))
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [1]
    await log.close()


# Taken away while it is open


class Refusing:
    """A connection that says no to a copy so many times, after having begun it."""

    def __init__(self, path: Path, errors: list[Exception]) -> None:
        self._db = connect_file(path)
        self._errors = errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        if sql.startswith("VACUUM INTO") and self._errors:
            Path(parameters[0]).write_bytes(b"half of it")
            raise self._errors.pop(0)
        return self._db.execute(sql, parameters)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), sqlite3.OperationalError("disk is full")], ids=repr
)
async def test_a_copy_that_is_refused_half_way_leaves_nothing_and_is_made_later(
    tmp_path: Path, error: Exception
) -> None:
    errors = [error, error]
    log = await opened(tmp_path, CITY, connect=lambda path: Refusing(path, errors))
    await log.append(a_set(0))
    await log.commit()
    (tmp_path / "buffer.db").unlink()
    await log.append(a_set(1))
    for _ in range(2):
        with pytest.raises(LogError, match=str(error).rpartition("]")[2].strip()):
            await log.commit()
        assert not list(tmp_path.glob("buffer.db.new*"))
        assert not (tmp_path / "buffer.db").exists()
        assert await everything(log, "milano") == [0, 1]
    await log.commit()
    assert "find out who did it" in log.status()["remedy"]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [0, 1]
    await log.close()


async def test_a_rescue_makes_its_folders_anew_and_lets_nobody_else_read(tmp_path: Path) -> None:
    """Whatever an earlier one left half made."""
    folder = tmp_path / "a" / "b"
    log = await opened(folder, CITY)
    for turn in range(2):
        await log.append(a_set(turn))
        await log.commit()
        if turn:
            (folder / "buffer.db.new").write_bytes(b"half of it")
            (folder / "buffer.db").unlink()
        else:
            shutil.rmtree(tmp_path / "a")
        await log.append(a_set(10 + turn))
        await log.commit()
        assert [stat.S_IMODE(os.stat(p).st_mode) for p in (folder, folder / "buffer.db")] == [0o750, 0o640]
        assert not list(folder.glob("*.new*"))
    await log.close()
    log = await opened(folder, CITY)
    assert await everything(log, "milano") == [0, 10, 1, 11]
    await log.close()


def open_files() -> list[Path]:
    """What this process has open; of a deleted file the old name."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(Path(os.readlink(entry).removesuffix(" (deleted)")))
    return found


async def unreadable(folder: Path, content: bytes | None) -> Log:
    """The open file cannot be copied, and something else lies at its path, or nothing."""
    await filled(folder, 1)  # an older start has lower numbers
    log = await opened(folder, CITY)
    await log.append(a_set(100))
    await log.commit()
    lose(folder, "state", "last_value", "segment")
    (folder / "buffer.db").unlink()
    if content is not None:
        (folder / "buffer.db").write_bytes(content)
    await log.append(a_set(101))
    for _ in range(2):
        await log.commit()
    return log


async def test_of_an_older_copy_as_large_as_a_log_gets_all_is_salvaged_and_the_cause_is_told_first(
    tmp_path: Path,
) -> None:
    await filled(tmp_path / "old", 40, text_bytes=20_000)  # more than the smallest file may have
    lose(tmp_path / "old", "gap")
    log = await unreadable(tmp_path, (tmp_path / "old" / "buffer.db").read_bytes())
    assert (await everything(log, "milano"))[:40] == list(range(40))
    assert (await everything(log, "milano"))[-1] == 101
    told = log.status()["reason"]
    assert 0 < told.index("replaced while it was in use") < told.index("table gap")
    await log.close()


async def test_what_was_begun_of_a_copy_that_cannot_be_made_is_gone(tmp_path: Path) -> None:
    log = await unreadable(tmp_path, None)
    assert not list(tmp_path.glob("*.new*"))
    assert "and it could not be read any more: database disk image is malformed" in log.status()["reason"]
    assert sum(file == tmp_path / "buffer.db" for file in open_files()) == 1
    assert (await everything(log, "milano"))[-1] == 101
    await log.close()
    (tmp_path / "buffer.db").unlink()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == []
    await log.close()
