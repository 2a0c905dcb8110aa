"""The file: every line of SQL. Lives in the writer thread; docs/log.md describes the tables."""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import quote

from gateway.log.segment import Columns, Entry, Layout, Layouts, Stamp, decode, encode
from gateway.sdk.errors import LogError

PAGE_BYTES: Final = 4096
USER_VERSION: Final = 1
_SEGMENT_READINGS: Final = 250  # about 1 kB: stays within a page, fills it well, is decoded in a fraction of a ms
_PRUNE_CHUNK: Final = 50

_SCHEMA: Final = """
CREATE TABLE start(id INTEGER PRIMARY KEY, boot TEXT NOT NULL, at_us INTEGER NOT NULL);
CREATE TABLE series(id INTEGER PRIMARY KEY, device TEXT NOT NULL, point TEXT NOT NULL, UNIQUE(device, point));
CREATE TABLE layout(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE boot(id INTEGER PRIMARY KEY, boot TEXT NOT NULL UNIQUE, offset_us INTEGER, source INTEGER NOT NULL);
CREATE TABLE segment(id INTEGER PRIMARY KEY, span INTEGER NOT NULL, total INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE cursor(consumer TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE last_value(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE state(device TEXT, key TEXT, value BLOB NOT NULL, PRIMARY KEY(device, key)) WITHOUT ROWID;
"""


@dataclass(slots=True)
class Batch:
    """What one commit writes, together or not at all.

    Attributes:
        entries: sets, ascending.
        series: new names, as id -> (device, point).
        cursors: consumer -> settled up to.
        states: (device, key) -> value of driver state.
        last_values: the whole table, or None to leave it as it is.
        settled: every consumer is done with all up to here; those segments may go.
    """

    entries: Sequence[Entry] = ()
    series: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    cursors: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    last_values: Sequence[Entry] | None = None
    settled: int = 0


@dataclass(slots=True)
class Loaded:
    """What is in the file when it is opened.

    Attributes:
        last: sequence number of the newest stored set, 0 when there is none.
        total: readings ever committed.
        last_values: saved readings and those of newer segments, ascending.
    """

    start: int
    boot: int
    series: dict[int, tuple[str, str]]
    cursors: dict[str, int]
    states: dict[tuple[str, str], bytes]
    last: int
    total: int
    last_values: list[Columns]


class Store:
    """The open file. One connection for life: closing the last one would delete the WAL, and it regrows.

    Args:
        path: the database; made when absent, its folder too.
        max_size_bytes: bound of the file, kept by SQLite itself.
    """

    def __init__(self, path: Path, max_size_bytes: int) -> None:
        self.path = path
        self._max_pages = max(64, max_size_bytes // PAGE_BYTES)
        self._db = _connect(path, self._max_pages)
        self._layouts = Layouts()
        self.total = 0

    def load(self, boot_id: str, now_us: int) -> Loaded:
        """Read what a start needs, and take a new start number: no sequence number is ever used twice."""
        db = self._db
        with _Transaction(db):
            [(start,)] = db.execute(
                "INSERT INTO start(boot, at_us) VALUES(?, ?) RETURNING id", (boot_id, now_us)
            ).fetchall()
            db.execute("DELETE FROM start WHERE id < ?", (start - 100,))
            db.execute("INSERT OR IGNORE INTO boot(boot, source) VALUES(?, 0)", (boot_id,))
        [(boot,)] = db.execute("SELECT id FROM boot WHERE boot = ?", (boot_id,)).fetchall()
        self._layouts = Layouts(
            _layout_from(number, body) for number, body in db.execute("SELECT id, body FROM layout ORDER BY id")
        )
        newest = db.execute("SELECT id + span, total FROM segment ORDER BY id DESC LIMIT 1").fetchone()
        last, self.total = newest or (0, 0)
        return Loaded(
            start=start,
            boot=boot,
            series={i: (device, point) for i, device, point in db.execute("SELECT id, device, point FROM series")},
            cursors=dict(db.execute("SELECT consumer, seq FROM cursor")),
            states={(device, key): value for device, key, value in db.execute("SELECT device, key, value FROM state")},
            last=last,
            total=self.total,
            last_values=self._last_values(),
        )

    def _last_values(self) -> list[Columns]:
        mark, found = 0, []
        for (body,) in self._db.execute("SELECT body FROM last_value ORDER BY id"):
            columns = Columns(0)
            mark = decode(body, self._layouts, columns).last
            found.append(columns)
        while (newer := self.read(mark, _SEGMENT_READINGS)) is not None:
            mark = newer.last
            found.append(newer)
        return found

    def commit(self, batch: Batch) -> int:
        """Write a batch; returns readings ever committed. On any error nothing of it is in the file."""
        db, total = self._db, self.total
        with _Transaction(db):
            bodies = [(group, encode(group, self._layouts)) for group in _groups(batch.entries)]
            saved = [encode(group, self._layouts) for group in _groups(batch.last_values or ())]
            db.executemany(
                "INSERT OR IGNORE INTO series VALUES(?, ?, ?)", [(i, *name) for i, name in batch.series.items()]
            )
            db.executemany(
                "INSERT OR REPLACE INTO layout VALUES(?, ?)",
                [(layout.id, _layout_body(layout)) for layout in self._layouts.unsaved],
            )
            for group, body in bodies:
                total += sum(len(entry.readings) for entry in group)
                first = group[0].seq
                db.execute("INSERT INTO segment VALUES(?, ?, ?, ?)", (first, group[-1].seq - first, total, body))
            db.executemany("INSERT OR REPLACE INTO cursor VALUES(?, ?)", batch.cursors.items())
            db.executemany(
                "INSERT OR REPLACE INTO state VALUES(?, ?, ?)", [(*key, value) for key, value in batch.states.items()]
            )
            if batch.last_values is not None:
                db.execute("DELETE FROM last_value")
                db.executemany("INSERT INTO last_value(body) VALUES(?)", [(body,) for body in saved])
            if batch.settled:
                self._prune(batch.settled)
        self._layouts.unsaved.clear()
        self.total = total
        return total

    def _prune(self, settled: int) -> None:
        """Delete segments that everybody is done with, the oldest first, not too many in one transaction."""
        self._db.execute(
            "DELETE FROM segment WHERE id IN (SELECT id FROM segment WHERE id <= ? AND id + span <= ? ORDER BY id LIMIT ?)",
            (settled, settled, _PRUNE_CHUNK * 4),
        )

    def read(self, after: int, max_readings: int) -> Columns | None:
        """Sets above `after`, at least one and about `max_readings`; None when there are none."""
        columns = Columns(after)
        for body in self._bodies(after):
            decode(body, self._layouts, columns, after=after)
            if len(columns.seq) >= max_readings:
                break
        return columns if columns.seq else None

    def _bodies(self, after: int) -> Iterator[bytes]:
        place = self._db.execute(
            "SELECT id FROM segment WHERE id <= ? ORDER BY id DESC LIMIT 1", (after,)
        ).fetchone() or (after,)
        while row := self._db.execute(
            "SELECT id, span, body FROM segment WHERE id >= ? ORDER BY id LIMIT 1", place
        ).fetchone():
            place = (row[0] + row[1] + 1,)
            if row[0] + row[1] > after:
                yield row[2]

    def owed(self, after: int) -> tuple[int, int | None]:
        """Readings stored above `after`, and the oldest time among them in microseconds."""
        columns = self.read(after, 1)
        if columns is None:
            return 0, None
        row = self._db.execute("SELECT total FROM segment WHERE id <= ? ORDER BY id DESC LIMIT 1", (columns.seq[0],))
        [(total_here,)] = row.fetchall()
        return self.total - total_here + len(columns.seq), min(columns.time_us)

    def before(self, time_us: int) -> int:
        """The number before the first set that has a reading at or after a time."""
        after = 0
        while (columns := self.read(after, _SEGMENT_READINGS)) is not None:
            for seq, at_us in zip(columns.seq, columns.time_us, strict=True):
                if at_us >= time_us:
                    return seq - 1
            after = columns.last
        return after

    def size_bytes(self) -> int:
        """Bytes in use by data, free pages not counted."""
        [(pages,)] = self._db.execute("PRAGMA page_count").fetchall()
        [(free,)] = self._db.execute("PRAGMA freelist_count").fetchall()
        return int(pages - free) * PAGE_BYTES

    def close(self) -> None:
        self._db.close()


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or rolled back with everything as it was."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _connect(path: Path, max_pages: int) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o640))  # SQLite gives -wal and -shm the same mode
    # psow=0: power loss may garble the whole block being written, so SQLite must not rely on the rest of it
    db = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?psow=0", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        db.execute(f"PRAGMA page_size={PAGE_BYTES}")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA wal_autocheckpoint=100")
        db.execute("PRAGMA busy_timeout=2000")
        db.execute(f"PRAGMA max_page_count={max_pages}")
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if version > USER_VERSION:
            raise LogError(f"{path} was written by a newer citygate (format {version}); this one writes {USER_VERSION}")
        if version == 0:
            with _Transaction(db):
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={USER_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _groups(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries by segment: one stamp each, and of a size that fits a page well."""
    for _, stamped in groupby(entries, key=_stamp_of):
        group: list[Entry] = []
        readings = 0
        for entry in stamped:
            if group and readings + len(entry.readings) > _SEGMENT_READINGS:
                yield group
                group, readings = [], 0
            group.append(entry)
            readings += len(entry.readings)
        yield group


def _stamp_of(entry: Entry) -> Stamp:
    return entry.stamp


def _layout_body(layout: Layout) -> bytes:
    return b"".join(n.to_bytes(4, "little") + bytes((c,)) for n, c in zip(layout.series, layout.codes, strict=True))


def _layout_from(number: int, body: bytes) -> Layout:
    starts = range(0, len(body), 5)
    return Layout(
        number,
        tuple(int.from_bytes(body[i : i + 4], "little") for i in starts),
        tuple(body[i + 4] for i in starts),
    )
