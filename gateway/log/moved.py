"""The operator gives the log another place: what the old file holds goes along, whole or not at all."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import structlog

from gateway.log.file import held_lock
from gateway.log.salvage import free_name
from gateway.log.store import APPLICATION_ID, header_of
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.files import sync_folder

_events = structlog.get_logger()


def bring_along(old: Path, new: Path, clock: Clock) -> str:
    """Before the log is opened at `new`: make it a copy of the one at `old`, and set that aside.

    The copy is durable under its name before the old file is touched; one that was cut short is made again. Where there is a
    log already nothing is moved.

    Returns:
        What a person has to know of the old file, "" when nothing.
    """
    if not os.path.isfile(old) or not _is_log(old) or (os.path.exists(new) and old.samefile(new)):
        return ""  # os.path: a folder that this user may not enter is no error yet
    try:
        with held_lock(old):
            if not new.exists():
                _copy(old, new)
            elif not _is_copy(new, of=old):
                readings = _owed(old)
                return f"{old} still owes {readings} readings" if readings else ""
            _set_aside(old, clock)
    except (OSError, sqlite3.Error, LogError) as error:
        return f"{old} could not be brought along: {error}"
    _events.info("log_moved", old=str(old), path=str(new))
    return ""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


def _is_log(path: Path) -> bool:
    try:
        with _opened(path) as db:
            return bool(db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,))
    except sqlite3.Error:
        return False


def _copy(old: Path, new: Path) -> None:
    new.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    part = new.with_name(f"{new.name}.moving")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_RDWR | os.O_CREAT, 0o640))
    try:
        with _opened(old) as db:
            db.execute("VACUUM INTO ?", (str(part),))
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        part.rename(new)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(new.parent)


def _is_copy(new: Path, *, of: Path) -> bool:
    """Whether it began as one: it knows the newest start of the other."""
    with _opened(of) as db:
        start = db.execute("SELECT id, at_us FROM start ORDER BY id DESC LIMIT 1").fetchone()
    with _opened(new) as db:
        return start is not None and start in db.execute("SELECT id, at_us FROM start").fetchall()


def _owed(path: Path) -> int:
    """Readings that somebody is owed there, whole segments."""
    with _opened(path) as db:
        [(settled,)] = db.execute("SELECT coalesce(min(seq), 0) FROM cursor").fetchall()
        owed = db.execute("SELECT body FROM segment WHERE id + span > ?", (settled,))
        headers = [header_of(body) for (body,) in owed]
        [(held,)] = db.execute("SELECT coalesce(sum(readings), 0) FROM held").fetchall()
    return int(held + sum(header.readings for header in headers if header is not None))


def _set_aside(old: Path, clock: Clock) -> None:
    """Under another name, its journal first: it is complete without."""
    with _opened(old) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    aside = free_name(old, "moved", clock.now())
    for end in ("-wal", "-shm"):
        old.with_name(old.name + end).unlink(missing_ok=True)
    old.rename(aside)
    sync_folder(old.parent)
