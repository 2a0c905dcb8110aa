"""What else can lie at `buffer.path`, and what people do to the file while the daemon runs."""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.clock import Source
from gateway.log.log import Log
from gateway.log.segment import microseconds
from gateway.log.store import MIGRATIONS
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet, TimeSource
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, everything, lose, opened
from tests.support.box import REPOSITORY
from tests.support.rights import run_on_a_card

# What lies there at the start


def _text(path: Path) -> None:
    path.write_bytes(b"version: 1\nlinks: {}\n" * 100)


def _short(path: Path) -> None:
    path.write_bytes(b"x")


def _music(path: Path) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute("CREATE TABLE music(title)")
        db.execute("INSERT INTO music VALUES('Aida')")
    db.close()


def _music_in_its_journal(path: Path) -> None:
    """As a program leaves it that was killed."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    with db:
        db.execute("CREATE TABLE music(title)")
        db.execute("INSERT INTO music VALUES('Aida')")
    copies = {end: Path(f"{path}{end}").read_bytes() for end in ("", "-wal")}
    db.close()
    for end, content in copies.items():
        Path(f"{path}{end}").write_bytes(content)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "text": _text,
    "one byte": _short,
    "a database": _music,
    "a database with a journal": _music_in_its_journal,
}


@pytest.mark.parametrize("kind", FOREIGN)
async def test_a_file_that_is_no_log_is_set_aside_whole_and_the_box_goes_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "buffer.db"
    FOREIGN[kind](path)
    before = path.read_bytes()
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.commit()
    told = log.status()
    assert told["state"] == "bad"
    [aside] = [p for p in tmp_path.glob("buffer.db.foreign-2026*") if not p.name.endswith("-wal")]
    assert str(aside) in told["reason"]
    assert "buffer.path" in told["remedy"]
    if "database" in kind:
        db = sqlite3.connect(aside)
        assert db.execute("SELECT title FROM music").fetchall() == [("Aida",)]
        db.close()
    else:
        assert aside.read_bytes() == before
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [1]
    await log.close()
    assert aside.exists()


async def test_foreign_files_are_never_deleted_by_us(tmp_path: Path) -> None:
    for _ in range(5):
        _text(tmp_path / "buffer.db")
        log = await opened(tmp_path, CITY)
        await log.close()
        (tmp_path / "buffer.db").unlink()
    assert len(list(tmp_path.glob("buffer.db.foreign-*"))) == 5


async def test_a_log_of_a_newer_citygate_is_kept_and_goes_on_when_that_version_is_back(tmp_path: Path) -> None:
    path = tmp_path / "buffer.db"
    log = await opened(tmp_path, CITY)
    await log.append(a_set(0))
    await log.append(a_set(1))
    await log.append(a_set(3))
    await log.commit()
    await log.settle("milano", log.first_seq + 1)
    columns = await log.read("milano")
    assert columns is not None
    await log.held.hold("milano", "e", "meter-1", columns, reason="no", at=NOON)
    await log.append(ReadingSet("node", (), {"fcnt": b"7"}))
    await log.append(ReadingSet("broker milano", (), {"mode": b"in-order", "sent": b"99999999999"}))
    await log.close()
    _set_version(path, 99)
    log = await opened(tmp_path, CITY)
    await log.append(a_set(2))
    told = log.status()
    assert told["state"] == "bad"
    assert "newer citygate (format 99" in told["reason"]
    [aside] = tmp_path.glob("buffer.db.format-99-*")
    assert str(aside) in told["remedy"]
    await log.close()
    log = await opened(tmp_path, CITY)  # it stays while this version does not know it
    assert log._adopting is not None
    await log._adopting
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [2]
    await log.close()
    _set_version(aside, len(MIGRATIONS))
    aside.rename(aside.with_name(aside.name.replace("-99-", f"-{len(MIGRATIONS)}-")))  # as that version sees it
    log = await opened(tmp_path, CITY, OTHER)
    assert log._adopting is not None
    await log._adopting
    assert await everything(log, "milano") == [2, 1, 3]
    assert await everything(log, "porto") == [2, 1, 3]
    assert log.driver_state("node") == {"fcnt": b"7"}
    assert log.driver_state("broker milano") == {"mode": b"in-order"}  # this log counts otherwise
    [piece] = log.held.pieces()
    held = await log.held.readings(piece.id)
    assert (log.series[held.series[0]].device, held.value[0]) == ("meter-1", 1)
    assert list(tmp_path.glob("*.format-*")) == []
    assert log.last_values.device("meter-1")["count"].value == 3
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [2, 1, 3]
    await log.close()


async def test_a_log_set_aside_that_cannot_be_read_stays_and_is_told(tmp_path: Path) -> None:
    aside = tmp_path / f"buffer.db.format-{len(MIGRATIONS)}-20260601T120000-0"
    aside.write_bytes(b"no log any more\n" * 1000)
    log = await opened(tmp_path, CITY)
    assert log._adopting is not None
    await log._adopting
    assert f"{aside} could not be taken over" in log.status()["reason"]
    assert aside.exists()
    await log.close()


async def test_of_a_log_set_aside_times_are_those_that_are_known_by_then(tmp_path: Path) -> None:
    """Corrected once and for all where its boot learned them; else they are still a guess."""
    path = tmp_path / "buffer.db"
    for boot, learns in (("b1", True), ("b2", False)):
        clock = BootClock(boot, NOON, -7200.0)
        log = await opened(tmp_path, CITY, clock=clock)
        await log.append(ReadingSet("m", (Reading("count", 1 if learns else 2, clock.now()),)))
        if learns:
            clock.learn(Source.KERNEL)
            await log.append(ReadingSet("m", (Reading("count", 3, clock.now()),)))
        await log.close()
    path.rename(tmp_path / f"buffer.db.format-{len(MIGRATIONS)}-20260601T120000-0")
    log = await opened(tmp_path, CITY, clock=BootClock("b3", NOON + timedelta(days=1), 0.0, Source.KERNEL))
    assert log._adopting is not None
    await log._adopting
    columns = await log.read("milano")
    assert columns is not None
    assert columns.value == [1, 3, 2]
    assert columns.time_us[:2] == [microseconds(NOON)] * 2
    assert columns.time_source == [TimeSource.NETWORK, TimeSource.NETWORK, TimeSource.GATEWAY]
    await log.close()


async def test_of_two_logs_set_aside_the_older_comes_first_and_nobody_gets_less_than_he_was_owed(
    tmp_path: Path,
) -> None:
    """With what was held as it was held, and what a driver knows by now left as it is."""
    for turn, date in enumerate(("20260601T120000", "20260602T120000")):
        folder = tmp_path / date
        log = await opened(folder, CITY, OTHER)
        for n in range(3):
            await log.append(a_set(10 * turn + n))
        await log.append(ReadingSet("node", (), {"fcnt": bytes([turn]), f"key-{turn}": b"x"}))
        await log.commit()
        await log.settle("milano", log.first_seq + 1)
        await log.settle("porto", log.first_seq + 2)
        columns = await log.read("milano")
        assert columns is not None
        later = NOON + timedelta(hours=turn)
        await log.held.hold("porto", f"e{turn}", "meter-1", columns, reason="no", at=NOON, next_try_at=later, tries=3)
        await log.close()
        for end in ("", "-wal"):
            aside = tmp_path / f"buffer.db.format-{len(MIGRATIONS)}-{date}-0{end}"
            if end:
                aside.write_bytes(b"")
            else:
                (folder / "buffer.db").rename(aside)
    log = await opened(tmp_path, CITY)
    await log.append(ReadingSet("node", (), {"fcnt": b"now"}))
    await _until(lambda: not list(tmp_path.glob("*.format-*")))
    await log.commit()
    assert await everything(log, "milano") == [1, 2, 11, 12]
    assert log.driver_state("node") == {"fcnt": b"now", "key-0": b"x", "key-1": b"x"}
    pieces = log.held.pieces("porto")
    assert [(piece.entity, piece.state, piece.tries) for piece in pieces] == [("e0", "later", 3), ("e1", "later", 3)]
    assert [piece.next_try_at for piece in pieces] == [NOON, NOON + timedelta(hours=1)]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [1, 2, 11, 12]
    assert log.driver_state("node") == {"fcnt": b"now", "key-0": b"x", "key-1": b"x"}
    await log.close()


def _set_version(path: Path, version: int) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={version}")
    db.close()


async def _runs_from_memory(log: Log, word: str, what: str) -> None:
    for n in range(3):
        await asyncio.wait_for(log.append(a_set(n)), 5)
    assert await everything(log, "milano") == [0, 1, 2]
    with pytest.raises(LogError):
        await log.commit()
    told = log.status()
    assert told["state"] == "bad"
    assert word in told["reason"] + told["remedy"]
    assert what in told["reason"]
    assert "replace" not in told["remedy"]
    with pytest.raises(LogError) as asked:
        await log.progress(0)
    assert str(asked.value) == told["reason"], "whoever asks for the file is told why"


@pytest.mark.parametrize("kind", ["folder", "pipe", "parent is a file", "links in a circle"])
async def test_what_is_no_file_is_left_alone_and_the_box_runs_from_memory(tmp_path: Path, kind: str) -> None:
    folder, path = tmp_path, tmp_path / "buffer.db"
    if kind == "folder":
        path.mkdir()
        (path / "kept").write_text("x")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "links in a circle":
        path.symlink_to(tmp_path / "other")
        (tmp_path / "other").symlink_to(path)
    else:
        folder = tmp_path / "parent"
        folder.write_text("x")
    output = os.fstat(1)
    log = await asyncio.wait_for(opened(folder, CITY), 10)
    what = {"folder": "is a folder", "pipe": "is no file"}.get(kind, "")
    await _runs_from_memory(log, "buffer.path" if kind != "links in a circle" else "", what)
    for obstacle in (tmp_path / "other", tmp_path / "parent"):
        obstacle.unlink(missing_ok=True)
    if kind == "folder":
        assert (path / "kept").exists()
        path.rename(tmp_path / "elsewhere")
    elif kind in ("pipe", "links in a circle"):
        path.unlink()
    await log.commit()
    assert log.status()["state"] == "ok"
    with pytest.raises(LogError, match="in use by another citygate"):
        await opened(folder, CITY)
    await log.close()
    log = await opened(folder, CITY)
    assert await everything(log, "milano") == [0, 1, 2]
    await log.close()
    assert os.path.samestat(os.fstat(1), output), "no lock is no descriptor: nobody else's was closed"


async def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    log = await opened(tmp_path / "a" / "b", CITY)
    await log.append(a_set(1))
    await log.commit()
    assert log.status()["state"] == "ok"
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "a" / "b" / "buffer.db.lock").stat().st_mode) == 0o640
    await log.close()


def _open_in(folder: Path) -> list[str]:
    """Files below a folder that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(entry))
    return [path for path in found if path.startswith(str(folder))]


async def test_whatever_became_of_a_file_it_is_closed_in_the_end(tmp_path: Path) -> None:
    """A descriptor that stays open holds the space of a file set aside, and in time all that the process may have."""
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    with pytest.raises(LogError, match="in use"):
        await opened(tmp_path, CITY)
    await log.close()
    assert _open_in(tmp_path) == []

    lose(tmp_path, "gap", "last_value")
    log = await opened(tmp_path, CITY)
    await log.append(a_set(2))
    await log.commit()
    lose(tmp_path, "cursor", "state")
    await log.append(ReadingSet("node", (), {"fcnt": b"7"}))
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    for file in ("buffer.db", "buffer.db.lock"):
        (tmp_path / file).unlink()
        await log.append(a_set(3))
        await log.commit()
    names = sorted(Path(path).name for path in set(_open_in(tmp_path)))
    assert names == ["buffer.db", "buffer.db-shm", "buffer.db-wal", "buffer.db.lock"]
    await log.close()
    assert _open_in(tmp_path) == []


@pytest.mark.parametrize("kind", FOREIGN)
async def test_a_command_leaves_a_file_that_is_no_log_where_it_is(tmp_path: Path, kind: str) -> None:
    FOREIGN[kind](tmp_path / "buffer.db")
    log = await opened(tmp_path, CITY, leave_foreign=True)
    told = log.status()
    assert told["state"] == "bad"
    assert told["remedy"] == "the daemon sets it aside at its next start"
    assert not list(tmp_path.glob("*foreign*"))
    with pytest.raises(LogError):
        await log.close()


def test_a_card_that_is_full_before_it_is_opened_is_locked_all_the_same(tmp_path: Path) -> None:
    run_on_a_card(
        tmp_path,
        "1m",
        "import asyncio, pathlib, sys; from tests.gateway.log.test_files import open_when_full;"
        "asyncio.run(open_when_full(pathlib.Path(sys.argv[1])))",
    )


async def open_when_full(card: Path) -> None:
    with contextlib.suppress(OSError), (card / "other").open("wb", buffering=0) as other:
        while True:
            other.write(bytes(4096))
    log = await opened(card, CITY)
    await log.append(a_set(1))
    with pytest.raises(LogError):
        await log.commit()
    with pytest.raises(LogError, match=r"in use by another citygate \(process unknown"):
        await opened(card, CITY)
    (card / "other").unlink()
    await log.commit()
    assert log.status()["state"] == "ok"
    await log.close()


async def test_the_lock_names_its_process_alone_whatever_stood_there(tmp_path: Path) -> None:
    (tmp_path / "buffer.db.lock").write_text("9" * 30)
    log = await opened(tmp_path, CITY)
    assert (tmp_path / "buffer.db.lock").read_text() == str(os.getpid())
    await log.close()


async def test_a_salvage_that_finds_no_room_is_made_when_there_is_some(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(3):
        await log.append(a_set(n))
        await log.commit()
    lose(tmp_path, "cursor", "state")
    (tmp_path / "buffer.db.new").mkdir()  # where the new file is to be made
    await log.append(ReadingSet("node", (Reading("count", 3, NOON),), {"fcnt": b"7"}))
    for _ in range(2):
        with pytest.raises(LogError):
            await log.commit()
        with pytest.raises(LogError):
            await log.progress(0)
    (tmp_path / "buffer.db.new").rmdir()
    await log.commit()
    for _ in range(2):
        assert await everything(log, "milano") == [0, 1, 2, 3]
        await log.close()
        log = await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    await log.close()


async def test_a_link_is_followed_and_two_ways_to_one_file_share_its_lock(tmp_path: Path) -> None:
    real, link = tmp_path / "card", tmp_path / "link"
    real.mkdir()
    link.mkdir()
    (link / "buffer.db").symlink_to(real / "buffer.db")
    log = await opened(link, CITY)
    await log.append(a_set(1))
    await log.commit()
    with pytest.raises(LogError, match="in use by another citygate"):
        await opened(real, CITY)
    await log.close()
    assert (link / "buffer.db").is_symlink()
    content = bytearray((real / "buffer.db").read_bytes())
    content[:4096] = bytes(4096)
    (real / "buffer.db").write_bytes(content)
    log = await opened(link, CITY)
    assert (link / "buffer.db").is_symlink()
    assert len(list(real.glob("*.damaged-*"))) == 1
    await log.close()


# What a person is told


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.EACCES, "right to write"),
        (errno.EPERM, "right to write"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "LimitNOFILE"),
        (errno.EIO, "replace"),
    ],
)
async def test_the_remedy_fits_the_cause(tmp_path: Path, number: int, word: str) -> None:
    def connect(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    log = await opened(tmp_path, CITY, connect=connect)
    told = log.status()
    assert told["state"] == "bad"
    assert os.strerror(number) in told["reason"]
    assert word in told["remedy"]
    assert ("replace" in told["remedy"]) == (number == errno.EIO)
    with pytest.raises(LogError):
        await log.close()


async def test_a_file_that_another_process_locks_is_waited_for(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.commit()
    other = sqlite3.connect(tmp_path / "buffer.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await log.append(a_set(2))
    with pytest.raises(LogError, match="locked"):
        await log.commit()
    assert "another process" in log.status()["remedy"]
    other.execute("ROLLBACK")
    other.close()
    await log.commit()
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [1, 2]
    await log.close()


@pytest.mark.parametrize("denied", ["file", "folder"])
def test_missing_rights_are_named_and_no_new_card_is_asked_for(tmp_path: Path, denied: str) -> None:
    """As a daemon under its own user finds it after somebody worked there as root."""
    script = textwrap.dedent(
        """
        import asyncio, os, sys
        from pathlib import Path
        from tests.gateway.log.scene import CITY, a_set, opened
        from tests.support.rights import give_up_root
        give_up_root()
        async def main():
            log = await opened(Path(sys.argv[1]), CITY)
            await log.append(a_set(1))
            try:
                await log.commit()
            except Exception:
                pass
            print(log.status()["state"], "|", log.status()["reason"], "|", log.status()["remedy"])
        asyncio.run(main())
        """
    )
    folder = tmp_path / "state"
    folder.mkdir()
    asyncio.run(_made(folder))
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    for file in folder.iterdir():
        file.chmod(0o444 if denied == "file" else 0o666)
    folder.chmod(0o777 if denied == "file" else 0o555)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    state, _, remedy = done.stdout.strip().splitlines()[-1].split(" | ")
    assert state == "bad", done.stderr
    assert "right to write" in remedy
    assert "replace" not in remedy


async def _made(folder: Path) -> None:
    log = await opened(folder, CITY)
    await log.append(a_set(0))
    await log.close()


# What is done to it while it is open


def _deleted(folder: Path) -> None:
    (folder / "buffer.db").unlink()


def _all_deleted(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _folder_deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def _moved(folder: Path) -> None:
    (folder / "buffer.db").rename(folder / "mine.db")


def _journal_deleted(folder: Path) -> None:
    (folder / "buffer.db-wal").unlink()


def _journal_cut(folder: Path) -> None:
    os.truncate(folder / "buffer.db-wal", 0)


def _journals_deleted(folder: Path) -> None:
    (folder / "buffer.db-wal").unlink()
    (folder / "buffer.db-shm").unlink()


def _replaced_by_nothing(folder: Path) -> None:
    (folder / "buffer.db").unlink()
    (folder / "buffer.db").write_bytes(b"")


def _replaced_by_text(folder: Path) -> None:
    (folder / "new").write_text("backup")
    (folder / "new").rename(folder / "buffer.db")


def _replaced_by_music(folder: Path) -> None:
    _music(folder / "new")
    (folder / "new").rename(folder / "buffer.db")


def _replaced_by_copy(folder: Path) -> None:
    shutil.copy(folder / "buffer.db", folder / "new")
    (folder / "new").rename(folder / "buffer.db")


TAKEN_AWAY = {
    f.__name__.removeprefix("_"): f
    for f in (
        _deleted,
        _all_deleted,
        _folder_deleted,
        _moved,
        _journal_deleted,
        _journals_deleted,
        _replaced_by_nothing,
        _replaced_by_text,
        _replaced_by_music,
        _replaced_by_copy,
    )
}


@pytest.mark.parametrize("what", TAKEN_AWAY)
@pytest.mark.parametrize("pages", [0, 120])
async def test_a_file_taken_away_under_the_daemon_is_noticed_and_nothing_is_lost(
    tmp_path: Path, what: str, pages: int
) -> None:
    """Whether what it held was in the database by now or in the journal alone."""
    folder = tmp_path / "state"
    log = await opened(folder, CITY, OTHER)
    for n in range(20 + pages):
        await log.append(a_set(n, f"meter-{n}"))
        await log.commit()
    columns = await log.read("milano", max_readings=4)
    assert columns is not None
    await log.settle("milano", columns.last)
    await log.append(ReadingSet("node", (), {"fcnt": b"7"}))
    piece = await log.held.hold("porto", "e", "d", columns, reason="", at=NOON)
    TAKEN_AWAY[what](folder)
    await log.append(a_set(1000))
    await log.commit()
    told = log.status()
    assert told["state"] == "bad"
    assert "while it was in use" in told["reason"]
    assert told["remedy"]
    left = [*range(2, 20 + pages), 1000]
    assert await everything(log, "milano") == left
    assert log.backlog("milano")[0] == 2 * len(left)
    assert [p.id for p in log.held.pieces()] == [piece]
    await log.append(a_set(1001))
    commits = log.status()["commits"]
    await log.commit()
    assert log.status()["commits"] == commits + 1
    with pytest.raises(LogError, match="in use by another citygate"):
        await opened(folder, CITY)
    await log.close()
    if what.startswith("replaced_by") and what != "replaced_by_nothing":
        assert len([p for p in folder.glob("buffer.db.replaced-2026*") if not p.name.endswith("-wal")]) == 1

    log = await opened(folder, CITY, OTHER)
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [*left, 1001]
    assert await everything(log, "porto") == [0, 1, *left, 1001]
    assert log.driver_state("node") == {"fcnt": b"7"}
    assert log.last_values.device("meter-5")["count"].value == 5
    assert [p.id for p in log.held.pieces()] == [piece]
    assert not log.gaps
    await log.close()


@pytest.mark.parametrize("size", [0, 4096, 20_000])
@pytest.mark.parametrize("end", ["", "-wal"])
async def test_a_file_cut_short_under_the_daemon_loses_no_more_than_was_cut_and_is_told(
    tmp_path: Path, size: int, end: str
) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(150):
        await log.append(a_set(n))
        await log.commit()
    os.truncate(f"{tmp_path}/buffer.db{end}", size)
    await log.append(a_set(1000))
    for _ in range(2):
        await log.commit()
    assert log.status()["state"] == "bad"
    kept = await everything(log, "milano")
    assert kept[-1] == 1000
    assert kept == sorted(set(kept))
    await log.append(a_set(1001))
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [*kept, 1001]
    await log.close()


async def test_a_journal_emptied_in_order_is_no_loss(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(5):
        await log.append(a_set(n))
        await log.commit()
        other = sqlite3.connect(tmp_path / "buffer.db")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        other.close()
    await log.commit()
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == list(range(5))
    await log.close()


async def test_a_file_that_another_daemon_has_begun_at_the_path_is_left_to_it(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.commit()
    _all_deleted(tmp_path)
    other = await opened(tmp_path, CITY)
    await other.append(a_set(100))
    await other.commit()
    await log.append(a_set(2))
    with pytest.raises(LogError, match="in use by another citygate"):
        await log.commit()
    assert log.status()["state"] == "bad"
    assert await everything(log, "milano") == [1, 2]
    await other.close()
    await log.commit()
    assert await everything(log, "milano") == [1, 2]
    assert len([p for p in tmp_path.glob("buffer.db.replaced-*") if not p.name.endswith("-wal")]) == 1
    await log.close()


async def _until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110  what a status says has no event
            await asyncio.sleep(0.02)


async def test_a_file_taken_away_while_the_card_rests_is_noticed_without_a_commit(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, commit_every_s=0.2)
    await log.append(a_set(1))
    await log.commit()
    for file in tmp_path.glob("buffer.db*"):
        file.unlink()
    await _until(lambda: log.status()["state"] == "bad")
    assert "deleted while it was in use" in log.status()["reason"]
    shutil.copytree(tmp_path, tmp_path / "killed")  # as a kill -9 leaves it now
    assert await everything(log, "milano") == [1]
    await _until(lambda: log.status()["salvaged"])  # though nothing comes
    await log.close()
    again = await opened(tmp_path / "killed", CITY)
    assert await everything(again, "milano") == [1]
    await again.close()


async def test_a_lock_deleted_under_the_daemon_is_taken_again(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, commit_every_s=0.2)
    (tmp_path / "buffer.db.lock").unlink()
    await _until(lambda: (tmp_path / "buffer.db.lock").exists() and (tmp_path / "buffer.db.lock").read_text())
    with pytest.raises(LogError, match=f"in use by another citygate .process {os.getpid()}"):
        await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    await log.close()


async def test_a_lock_that_another_daemon_took_after_somebody_deleted_it_is_told(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, commit_every_s=0.2)
    (tmp_path / "buffer.db.lock").unlink()
    with (tmp_path / "buffer.db.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await _until(lambda: log.status()["state"] == "bad")
        assert "in use by another citygate (process unknown)" in log.status()["reason"]
        await log.append(a_set(1))
        with pytest.raises(LogError, match="in use"):
            await log.commit()
    await log.commit()
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == [1]
    await log.close()


async def test_a_card_that_comes_back_with_another_daemon_on_it_is_left_to_that(tmp_path: Path) -> None:
    folder = tmp_path / "card"
    folder.write_text("")  # there is no folder yet: what lies there is in its way
    log = await opened(folder, CITY)
    await log.append(a_set(1))
    folder.unlink()
    folder.mkdir()
    with (folder / "buffer.db.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for _ in range(2):
            with pytest.raises(LogError, match="in use by another citygate"):
                await log.commit()
        assert "in use by another citygate" in log.status()["reason"]
    await log.commit()
    for _ in range(2):
        assert (log.status()["state"], await everything(log, "milano")) == ("ok", [1])
        await log.close()
        log = await opened(folder, CITY)
    await log.close()


async def test_a_rescue_that_finds_the_card_full_is_tried_again(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.commit()
    (tmp_path / "buffer.db").unlink()
    (tmp_path / "buffer.db.new").mkdir()  # where the copy is to be made
    await log.append(a_set(2))
    for _ in range(2):
        with pytest.raises(LogError):
            await log.commit()
    assert log.status()["state"] == "bad"
    assert await everything(log, "milano") == [1, 2]
    (tmp_path / "buffer.db.new").rmdir()
    await log.commit()
    assert await everything(log, "milano") == [1, 2]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [1, 2]
    await log.close()


async def test_status_tells_since_when_and_what_is_lost(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    assert log.status()["lost"] == {}
    await log.append(ReadingSet("d", (Reading("n", [1], NOON),)))  # type: ignore[arg-type]
    await log.commit()
    told = log.status()
    assert told["since"] is not None
    assert told["lost"] == {"unwritable": 1}
    assert told["dropped"] == 1
    await log.close()
