"""The file: every line of SQL. Lives in the writer thread; docs/log.md describes the tables."""

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol
from urllib.parse import quote

from gateway.log.boots import Boot, Boots
from gateway.log.refusal import NotOurs, Refusal
from gateway.log.segment import (
    HELD,
    LAST_VALUES,
    Columns,
    DamagedSegment,
    Entry,
    Header,
    Layout,
    Layouts,
    Stamp,
    TimeState,
    decode,
    encode,
    read_header,
)
from gateway.sdk.files import sync_folder

PAGE_BYTES: Final = 4096
APPLICATION_ID: Final = 0x63697479  # "city"
RECORD_MAGIC: Final = b"CD\x01"
_SEGMENT_READINGS: Final = 250  # about 1 kB: stays within a page, fills it well, is decoded in a fraction of a ms
_PRUNE_CHUNK: Final = 200  # segments deleted in one transaction: the WAL stays small
_RECORD_BYTES: Final = 2000  # stays within a page, so that salvage finds it without the tree
_STARTS_KEPT: Final = 1000
_BOOTS_KEPT: Final = 1000
_GAPS_KEPT: Final = 1000
_GAP_US: Final = 3_600_000_000
_END: Final = 1 << 62  # above every number
_RESERVE_PAGES: Final = 24  # for what one transaction may need beside the sets

# One step per version of the format; a step runs in one transaction with its `user_version`.
MIGRATIONS: Final = (
    """
    CREATE TABLE start(id INTEGER PRIMARY KEY, boot INTEGER NOT NULL, at_us INTEGER NOT NULL);
    CREATE TABLE record(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE record_copy(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE boot(id INTEGER PRIMARY KEY, name TEXT NOT NULL, offset_us INTEGER, source INTEGER NOT NULL,
        up_us INTEGER NOT NULL, estimate_us INTEGER, margin_us INTEGER NOT NULL);
    CREATE TABLE segment(id INTEGER PRIMARY KEY, span INTEGER NOT NULL, total INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE cursor(consumer TEXT PRIMARY KEY, seq INTEGER NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE last_value(id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE state(device TEXT, key TEXT, value BLOB NOT NULL, PRIMARY KEY(device, key)) WITHOUT ROWID
    """,
    """
    CREATE TABLE held(id INTEGER PRIMARY KEY, broker TEXT NOT NULL, entity TEXT NOT NULL, device TEXT NOT NULL,
        reason TEXT NOT NULL, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL, tries INTEGER NOT NULL,
        next_us INTEGER, readings INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE gap(id INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, from_us INTEGER, to_us INTEGER,
        readings INTEGER NOT NULL, reason TEXT NOT NULL, owed TEXT NOT NULL);
    CREATE TABLE statistic(hour INTEGER PRIMARY KEY, body BLOB NOT NULL)
    """,
    """
    CREATE TABLE newer_state(id INTEGER PRIMARY KEY, device TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL)
    """,
    """
    CREATE TABLE consumer(name TEXT PRIMARY KEY, body TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE hole(first INTEGER PRIMARY KEY, last INTEGER NOT NULL, readings INTEGER NOT NULL);
    CREATE TABLE recipe(device TEXT, broker TEXT, body BLOB NOT NULL, PRIMARY KEY(device, broker)) WITHOUT ROWID;
    CREATE TABLE moved(series INTEGER PRIMARY KEY, device TEXT NOT NULL)
    """,
)
_SMALLEST_BYTES: Final = 512  # of a database of anybody's
_WAL_HEADER_BYTES: Final = 32
_WAL_FRAME_BYTES: Final = 24  # beside its page
_Identity = tuple[int, int, int]  # device, inode, bytes
Start = tuple[int, int]  # number, time
Names = Mapping[int, tuple[str, str]]  # device and point of a series
_FEW_STATES: Final = 40  # so many lie on a page or two: written where they belong
_NEWER_STATES: Final = 512  # of more nodes, what changed is appended: a page a commit, not one for each node


class Connection(Protocol):
    """The part of a database connection that the store uses."""

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any: ...
    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Any: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Gap:
    """Readings that were given up.

    Attributes:
        from_us, to_us: times of the oldest and newest of them, as far as known.
        reason: size, age, memory (card refused), damage, unwritable, held, purged, forgotten.
        owed: consumer -> how many of them it had not settled.
    """

    at_us: int
    from_us: int | None
    to_us: int | None
    readings: int
    reason: str
    owed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A held piece as it is stored, but for its readings."""

    id: int
    broker: str
    entity: str
    device: str
    reason: str
    first_us: int
    last_us: int
    tries: int
    next_us: int | None
    readings: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the file knows of a consumer beside its place.

    Attributes:
        upto: it is no longer in the config, and is owed nothing above this; None: it is in the config.
        takes: numbers of the points that it is to be sent; None: everything counts as owed.
    """

    upto: int | None = None
    takes: frozenset[int] | None = None


@dataclass(slots=True)
class Batch:
    """What one commit writes, together or not at all.

    Attributes:
        entries: sets, ascending.
        series: new names, as id -> (device, point).
        cursors: consumer -> settled up to.
        consumers: what else is to be known of them.
        renamed: old name -> new name of consumers: what is held for them goes along.
        forget: consumers whose cursors go.
        stateless: devices whose driver states go; before those of `states` are written.
        states: (device, key) -> value of driver state.
        recipes: (device, broker) -> recipe; None: it goes.
        moved: series -> the device to which it belongs by now.
        held: id of a held piece -> its device and entity by now.
        boots: rows that were learned.
        up_us: boot time now, for the present boot's row; None leaves it.
        last_values: the whole table, or None to leave it as it is.
        statistics: hour number -> blob.
        statistics_from: hours before this one go.
        settled: every consumer is done with all up to here.
        free: stretches above it (after, up to) that nobody is owed either, since it pins what a removed one is owed.
        prune: those segments may go.
        now_us: wall time.
    """

    entries: Sequence[Entry] = ()
    series: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    cursors: Mapping[str, int] = field(default_factory=dict)
    consumers: Mapping[str, Known] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    forget: Sequence[str] = ()
    stateless: Sequence[str] = ()
    states: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    recipes: Mapping[tuple[str, str], bytes | None] = field(default_factory=dict)
    moved: Mapping[int, str] = field(default_factory=dict)
    held: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    boots: Sequence[Boot] = ()
    up_us: int | None = None
    last_values: Sequence[Entry] | None = None
    statistics: Mapping[int, bytes] = field(default_factory=dict)
    statistics_from: int = 0
    gaps: Sequence[Gap] = ()
    settled: int = 0
    free: Sequence[tuple[int, int]] = ()
    prune: bool = False
    now_us: int = 0


@dataclass(slots=True)
class Committed:
    """What a commit did: readings ever stored, whether more can be pruned, what retention gave up, bytes now in use."""

    total: int
    more: bool = False
    size_bytes: int = 0
    gaps: list[Gap] = field(default_factory=list)


@dataclass(slots=True)
class Loaded:
    """What is in the file when it is opened.

    Attributes:
        last: sequence number of the newest stored set, 0 when there is none.
        newest_us: newest true time in the file: it cannot be earlier now; 0 when there is none.
        last_values: saved readings and those of newer segments, each with its header.
    """

    start: int
    boots: list[Boot]
    boot: int
    series: dict[int, tuple[str, str]]
    cursors: dict[str, int]
    consumers: dict[str, Known]
    states: dict[tuple[str, str], bytes]
    recipes: dict[tuple[str, str], bytes]
    last: int
    newest_us: int
    last_values: list[tuple[Header, Columns]]
    held: list[HeldRow]
    gaps: list[Gap]
    statistics: dict[int, bytes]


class Store:
    """The open file. One connection for life: closing the last one would delete the WAL, and it regrows.

    Args:
        max_size_bytes: bound of the file, kept by SQLite itself.
        connect: opens the database; a test's power-cut simulator puts its own here.

    Attributes:
        starts: of earlier runs, by which one log is told from another.

    Raises:
        NotOurs: the file is a database of somebody else, or of a newer citygate.
        Refusal: the file system is not made for a database.
        sqlite3.Error: it cannot be opened now.
    """

    def __init__(self, path: Path, max_size_bytes: int, connect: "Callable[[Path], Connection] | None" = None) -> None:
        if 0 < _size_of(path) < _SMALLEST_BYTES:  # SQLite would write over it without a word
            raise _damage(f"{path} is too short for a database")
        self.path = path
        self.max_pages = max(128, max_size_bytes // PAGE_BYTES)
        self._db = (connect or connect_file)(path)
        self.layouts = Layouts()
        self.boots = Boots((), 0)
        self.now_us: Callable[[], int | None] = lambda: None
        self.total = 0
        self.closed = False
        self.starts: Set[Start] = set()
        self._start: Start | None = None
        self._watched: dict[str, _Identity] = {}
        self._newer_states = 0
        self._state_keys: set[tuple[str, str]] = set()
        self._named: set[int] = set()
        self._tried = _Tried()
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA busy_timeout=2000")
        db.execute(f"PRAGMA page_size={PAGE_BYTES}")
        version = self._version()  # before anything is changed: the file may be somebody else's
        [(mode,)] = db.execute("PRAGMA journal_mode=WAL").fetchall()
        if mode != "wal":
            raise Refusal(
                f"{self.path}: journal mode is {mode}, it must be wal",
                f"the file system of {self.path.parent} is not made for a database: give buffer.path another one",
            )
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA wal_autocheckpoint=100")
        db.execute(f"PRAGMA max_page_count={self.max_pages}")
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            with self.transaction():
                for statement in step.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={number}")

    def _version(self) -> int:
        """The format of the file, 0 when it is new.

        Raises:
            NotOurs: it is a database of another program, or of a newer citygate.
        """
        [(version,)] = self._db.execute("PRAGMA user_version").fetchall()
        [(application,)] = self._db.execute("PRAGMA application_id").fetchall()
        [(tables,)] = self._db.execute("SELECT count(*) FROM sqlite_master").fetchall()
        if application != APPLICATION_ID and (tables or version):
            raise NotOurs(f"{self.path} is a database of another program")
        if version > len(MIGRATIONS):
            raise NotOurs(
                f"{self.path} was written by a newer citygate (format {version}, this one knows {len(MIGRATIONS)})",
                f"format-{version}",
            )
        return int(version)

    def transaction(self) -> "_Transaction":
        return _Transaction(self._db)

    # Whether the open file is still the one at its path

    def watch(self) -> None:
        """From now on `gone` tells when somebody takes the file or its journal away."""
        self._watched = {end: found for end in ("", "-wal") if (found := self._look_at(end)) is not None}

    def _look_at(self, end: str) -> _Identity | None:
        try:
            found = os.stat(f"{self.path}{end}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino, found.st_size

    def gone(self) -> str:
        """What happened to the open file since `watch`: deleted, replaced, cut short; "" when nothing did."""
        for end, before in self._watched.items():
            name, now = f"{self.path}{end}", self._look_at(end)
            if now is None:
                return f"{name} was deleted while it was in use"
            if now[:2] != before[:2]:
                return f"{name} was replaced while it was in use"
            if now[2] < before[2] and not (end and self._emptied_in_order(now[2])):
                return f"{name} was cut short while it was in use"
            self._watched[end] = now
        return ""

    def must_know_its_start(self) -> None:
        """The open file is still the same; what it holds may not be.

        Raises:
            sqlite3.DatabaseError: something was written over it.
        """
        sql = "SELECT EXISTS(SELECT 1 FROM start WHERE id = ? AND at_us = ?)"
        if self._start is not None and self._db.execute(sql, self._start).fetchone() != (1,):
            raise _damage(f"{self.path} was written over while it was in use")

    def follows(self, before: "Store") -> bool:
        """Whether it is the same log as one that was open: it knows a start of it. Of one that knows none nobody can say."""
        return not self.starts or not self.starts.isdisjoint({*before.starts, before._start})

    def is_open_file(self, end: str) -> bool:
        """Whether the file at its path (`end`: or the journal) is the one that is open."""
        now = self._look_at(end)
        return now is not None and now[:2] == self._watched.get(end, (0, 0, 0))[:2]

    def _emptied_in_order(self, size_bytes: int) -> bool:
        """Whether the journal is shorter because somebody asked SQLite for it: then all that counts of it is there."""
        try:
            [(_, frames, _)] = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.DatabaseError:
            return False
        return bool(frames <= 0 or _WAL_HEADER_BYTES + frames * (PAGE_BYTES + _WAL_FRAME_BYTES) <= size_bytes)

    def copy_to(self, path: Path) -> None:
        """All that the open file holds, wherever it is by now, into a file that is empty or absent."""
        self._db.execute("VACUUM INTO ?", (str(path),))

    # Opening

    def load(self, boot_name: str, at_us: int) -> Loaded:
        """Read what a start needs, and take a new start number: no sequence number is ever used twice."""
        series = self._load_dictionary()
        cursors = self._load_cursors()
        boots = self._load_boots()
        boot = next((boot for boot in boots if boot.name == boot_name), None)
        if boot is None:
            boot = Boot(max((b.id for b in boots), default=0) + 1, boot_name)
            boots.append(boot)
        newest = self._db.execute("SELECT id, span, total, body FROM segment ORDER BY id DESC LIMIT 1").fetchone()
        first, span, total, _ = _typed(newest, (int, int, int, bytes)) if newest else (0, 0, 0, b"")
        last = first + span
        self.total = total + self._removed(first)
        start = self._take_start(boot, max([last, *cursors.values()]) >> 32, at_us)
        saved = self._load_last_values()
        newest_us = max((b.offset_us + b.up_us for b in boots if b.offset_us is not None), default=0)
        self.watch()
        return Loaded(
            start=start,
            boots=boots,
            boot=boot.id,
            series=series,
            cursors=cursors,
            consumers=self._load_consumers(),
            states=self._load_states(),
            recipes=self._load_recipes(),
            last=last,
            newest_us=newest_us,
            last_values=saved,
            held=self.held_rows(),
            gaps=self.gaps(),
            statistics=self._load_statistics(),
        )

    def _take_start(self, boot: Boot, used: int, at_us: int) -> int:
        db = self._db
        with self.transaction():
            starts: list[Start] = db.execute("SELECT id, at_us FROM start").fetchall()
            self.starts = {(number, at_us) for number, at_us in starts if at_us}  # salvage makes one without
            start = int(max([used, *(number for number, _ in starts)])) + 1
            db.execute("INSERT INTO start VALUES(?, ?, ?)", (start, boot.id, at_us))
            db.execute("DELETE FROM start WHERE id <= ?", (start - _STARTS_KEPT,))
            self._put_boots([boot])
            db.execute("DELETE FROM boot WHERE id <= ?", (boot.id - _BOOTS_KEPT,))
        self._start = start, at_us
        return start

    def _load_dictionary(self) -> dict[int, tuple[str, str]]:
        """Series and layouts, from whichever copy of each record is sound."""
        series: dict[int, tuple[str, str]] = {}
        layouts: dict[int, Layout] = {}
        rows = self._db.execute("SELECT body FROM record UNION ALL SELECT body FROM record_copy")
        for (body,) in rows:
            read_record(body, series, layouts)
        self.layouts = Layouts(layouts[number] for number in sorted(layouts))
        for row in self._db.execute("SELECT series, device FROM moved"):
            number, device = _typed(row, (int, str))
            if number in series:
                series[number] = device, series[number][1]
        self._named = set(series)
        return series

    def _load_recipes(self) -> dict[tuple[str, str], bytes]:
        rows = (_typed(row, (str, str, bytes)) for row in self._db.execute("SELECT device, broker, body FROM recipe"))
        return {(device, broker): body for device, broker, body in rows}

    def _load_cursors(self) -> dict[str, int]:
        """Sound cursors; a damaged one is left out, so that its consumer gets everything again rather than too little."""
        return {
            name: seq
            for name, seq, crc in self._db.execute("SELECT consumer, seq, crc FROM cursor")
            if crc == _cursor_crc(name, seq)
        }

    def _load_consumers(self) -> dict[str, Known]:
        """Of a damaged row nothing is known: rather too much is owed to that consumer than too little."""
        rows = self._db.execute("SELECT name, body, crc FROM consumer").fetchall()
        return {name: _known_of(body) for name, body, crc in rows if crc == _consumer_crc(name, body)}

    def _load_boots(self) -> list[Boot]:
        none = type(None)
        types = (int, str, (int, none), int, int, (int, none), int)
        boots = [Boot(*_typed(row, types)) for row in self._db.execute("SELECT * FROM boot ORDER BY id")]
        return [self._seen_alive(boot) for boot in boots]

    def _seen_alive(self, boot: Boot) -> Boot:
        """The boot with `up_us` from its last segment, which is newer than the hourly note in its row."""
        later = self._db.execute(
            "SELECT min(id) FROM start WHERE boot > ? AND id > (SELECT max(id) FROM start WHERE boot = ?)",
            (boot.id, boot.id),
        ).fetchone()[0]
        below = (later << 32) if later else 1 << 62
        row = self._db.execute("SELECT body FROM segment WHERE id < ? ORDER BY id DESC LIMIT 1", (below,)).fetchone()
        try:
            header = read_header(row[0]) if row else None
        except DamagedSegment:
            header = None
        if header is None or header.stamp.boot != boot.id:
            return boot
        up_us = header.sealed_us - header.stamp.offset_us
        return Boot(
            boot.id, boot.name, boot.offset_us, boot.source, max(boot.up_us, up_us), boot.estimate_us, boot.margin_us
        )

    def _load_last_values(self) -> list[tuple[Header, Columns]]:
        mark, found = 0, list[tuple[Header, Columns]]()
        for (body,) in self._db.execute("SELECT body FROM last_value ORDER BY id"):
            columns = Columns(0)
            try:
                header = decode(body, self.layouts, columns)
            except DamagedSegment:
                continue
            mark = max(mark, header.last)
            found.append((header, columns))
        for _, body, _ in self.bodies(mark):
            columns = Columns(0)
            try:
                header = decode(body, self.layouts, columns, after=mark)
            except DamagedSegment:
                continue
            found.append((header, columns))
        return found

    def _load_states(self) -> dict[tuple[str, str], bytes]:
        tables = ("SELECT device, key, value FROM state", "SELECT device, key, value FROM newer_state ORDER BY id")
        old, newer = ([_typed(row, (str, str, bytes)) for row in self._db.execute(sql).fetchall()] for sql in tables)
        self._newer_states = len(newer)
        states = {(device, key): value for device, key, value in (*old, *newer)}
        self._state_keys = set(states)
        return states

    def _load_statistics(self) -> dict[int, bytes]:
        rows = self._db.execute("SELECT hour, body FROM statistic ORDER BY hour DESC LIMIT 48")
        return dict(_typed(row, (int, bytes)) for row in rows.fetchall())

    def held_rows(self) -> list[HeldRow]:
        return [
            HeldRow(*_typed(row, (int, str, str, str, str, int, int, int, (int, type(None)), int, int)))
            for row in self._db.execute(
                "SELECT id, broker, entity, device, reason, first_us, last_us, tries, next_us, readings, length(body)"
                " FROM held ORDER BY id"
            )
        ]

    # Writing

    def commit(
        self, batch: Batch, retain: "Callable[[Store, Batch, int], list[Gap]] | None" = None, *, in_doubt: bool = False
    ) -> Committed:
        """Write a batch; on any error nothing of it is in the file.

        Args:
            retain: gives up what exceeds size and age so that so many bytes fit, in the same transaction.
            in_doubt: the commit before failed, and yet some of these sets and gaps may be in the file.
        """
        entries = self.not_yet_stored(batch.entries) if in_doubt else batch.entries
        if not in_doubt:
            self._tried = _Tried()
        self._tried.again(self._newest_gap(), batch.gaps)
        done = Committed(self.total)
        with self.transaction():
            newer_states = self._write(batch, entries, retain, done)
        self.layouts.unsaved.clear()
        self.total = done.total
        self._newer_states = newer_states
        self._state_keys |= batch.states.keys()
        self._named |= batch.series.keys()
        return done

    def refusal(self, batch: Batch) -> Exception | None:
        """Why a batch cannot be written, None when it can be; nothing of it stays."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._write(batch, batch.entries, None, Committed(self.total))
        except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
            return error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return None

    def not_yet_stored(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Those behind the newest in the file; what the file holds is counted anew."""
        row = self._db.execute("SELECT id, span, total FROM segment ORDER BY id DESC LIMIT 1").fetchone()
        if row is None:
            return entries
        first, span, total = _typed(row, (int, int, int))
        self.total = total + self._removed(first)
        return [entry for entry in entries if entry.seq > first + span]

    def _write(
        self,
        batch: Batch,
        entries: Sequence[Entry],
        retain: "Callable[[Store, Batch, int], list[Gap]] | None",
        done: Committed,
    ) -> int:
        """Write a batch within a transaction, fill `done`; returns how many states are appended then."""
        db = self._db
        if batch.prune:
            done.more = self._prune(batch.settled, batch.free)
        bodies = [
            (group, encode(group, self.layouts, sealed_us=batch.now_us, settled=batch.settled))
            for group in _groups(entries)
        ]
        saved = [
            encode(group, self.layouts, kind=LAST_VALUES, sealed_us=batch.now_us)
            for group in _groups(batch.last_values or ())
        ]
        if retain is not None:
            done.gaps = retain(self, batch, sum(map(len, saved)) + sum(len(body) for _, body in bodies))
        self._put_records(batch.series, self.layouts.unsaved)
        for group, body in bodies:
            done.total += sum(len(entry.readings) for entry in group)
            first = group[0].seq
            db.execute("INSERT INTO segment VALUES(?, ?, ?, ?)", (first, group[-1].seq - first, done.total, body))
        self._put_cursors(batch)
        for table in ("state", "newer_state"):
            db.executemany(f"DELETE FROM {table} WHERE device = ?", [(device,) for device in batch.stateless])
        newer_states = self._put_states(batch.states)
        self._put_recipes(batch)
        self._put_boots(batch.boots)
        if batch.up_us is not None:
            db.execute("UPDATE boot SET up_us = ? WHERE id = ?", (batch.up_us, self.boots.current))
        if batch.last_values is not None:
            db.execute("DELETE FROM last_value")
            db.executemany("INSERT INTO last_value(body) VALUES(?)", [(body,) for body in saved])
        db.executemany("INSERT OR REPLACE INTO statistic VALUES(?, ?)", batch.statistics.items())
        if batch.statistics:
            db.execute("DELETE FROM statistic WHERE hour < ?", (batch.statistics_from,))
        self._put_gaps([*self._tried.rest(batch.gaps), *done.gaps])
        done.size_bytes = self.used_pages() * PAGE_BYTES
        return newer_states

    def _put_states(self, states: Mapping[tuple[str, str], bytes]) -> int:
        """Write driver states; of many devices they are appended first. How many are appended now."""
        if len(self._state_keys | states.keys()) <= _FEW_STATES and not self._newer_states:
            rows = [(*key, value) for key, value in states.items()]
            self._db.executemany("INSERT OR REPLACE INTO state VALUES(?, ?, ?)", rows)
            return 0
        self._db.executemany(
            "INSERT INTO newer_state(device, key, value) VALUES(?, ?, ?)",
            [(*key, value) for key, value in states.items()],
        )
        count = self._newer_states + len(states)
        if count <= _NEWER_STATES:
            return count
        self._db.execute(
            "INSERT OR REPLACE INTO state SELECT device, key, value FROM newer_state"
            " WHERE id IN (SELECT max(id) FROM newer_state GROUP BY device, key)"
        )
        self._db.execute("DELETE FROM newer_state")
        return 0

    def _put_records(self, series: Mapping[int, tuple[str, str]], layouts: Sequence[Layout]) -> None:
        for body in records(series, layouts):
            for table in ("record", "record_copy"):
                self._db.execute(f"INSERT INTO {table}(body) VALUES(?)", (body,))

    def _put_cursors(self, batch: Batch) -> None:
        self._db.executemany("DELETE FROM cursor WHERE consumer = ?", [(name,) for name in batch.forget])
        self._db.executemany("DELETE FROM consumer WHERE name = ?", [(name,) for name in batch.forget])
        self._db.executemany(
            "UPDATE held SET broker = ? WHERE broker = ?", [(new, old) for old, new in batch.renamed.items()]
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO consumer VALUES(?, ?, ?)",
            [(n, body := _known_body(its), _consumer_crc(n, body)) for n, its in batch.consumers.items()],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO cursor VALUES(?, ?, ?)",
            [(name, seq, _cursor_crc(name, seq)) for name, seq in batch.cursors.items()],
        )

    def _put_recipes(self, batch: Batch) -> None:
        gone = [row for row, body in batch.recipes.items() if body is None]
        self._db.executemany("DELETE FROM recipe WHERE device = ? AND broker = ?", gone)
        self._db.executemany(
            "INSERT OR REPLACE INTO recipe VALUES(?, ?, ?)",
            [(*row, body) for row, body in batch.recipes.items() if body is not None],
        )
        self._db.executemany("INSERT OR REPLACE INTO moved VALUES(?, ?)", batch.moved.items())
        self._db.executemany(
            "UPDATE held SET device = ?, entity = ? WHERE id = ?",
            [(device, entity, number) for number, (device, entity) in batch.held.items()],
        )

    def _put_boots(self, boots: Sequence[Boot]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO boot VALUES(?, ?, ?, ?, ?, ?, ?)",
            [(b.id, b.name, b.offset_us, b.source, b.up_us, b.estimate_us, b.margin_us) for b in boots],
        )

    def _put_gaps(self, gaps: Sequence[Gap]) -> None:
        for gap in gaps:
            if self._widen_gap(gap):
                continue
            self._db.execute(
                "INSERT INTO gap(at_us, from_us, to_us, readings, reason, owed) VALUES(?, ?, ?, ?, ?, ?)",
                (gap.at_us, gap.from_us, gap.to_us, gap.readings, gap.reason, json.dumps(dict(gap.owed))),
            )
        if gaps:
            self._db.execute("DELETE FROM gap WHERE id <= (SELECT max(id) FROM gap) - ?", (_GAPS_KEPT,))

    def _newest_gap(self) -> tuple[int, int] | None:
        row: tuple[int, int] | None = self._db.execute(
            "SELECT id, readings FROM gap ORDER BY id DESC LIMIT 1"
        ).fetchone()
        return row

    @contextlib.contextmanager
    def _of_held(self, gaps: Sequence[Gap]) -> Iterator[None]:
        """A transaction between the tries of a commit: its gaps show in the newest record, too."""
        self._tried.again(self._newest_gap(), self._tried.gaps)
        with self.transaction():
            yield
            self._put_gaps(gaps)
        self._tried.newest = self._newest_gap()

    def _widen_gap(self, gap: Gap) -> bool:
        """Add to the newest record when it is of the same reason and hour: a full card must not write itself full of gaps."""
        row = self._db.execute(
            "SELECT id, at_us, to_us, readings, reason, owed FROM gap ORDER BY id DESC LIMIT 1"
        ).fetchone()
        if row is None or row[4] != gap.reason or not 0 <= gap.at_us - row[1] < _GAP_US:
            return False
        owed = _owed_of(row[5])
        for name, count in gap.owed.items():
            owed[name] = owed.get(name, 0) + count
        self._db.execute(
            "UPDATE gap SET to_us = ?, readings = ?, owed = ? WHERE id = ?",
            (gap.to_us or row[2], row[3] + gap.readings, json.dumps(owed), row[0]),
        )
        return True

    def _prune(self, settled: int, free: Sequence[tuple[int, int]] = ()) -> bool:
        """Delete segments that everybody is done with, oldest first; True when there may be more."""
        more = False
        for after, upto in ((-1, settled), *free):
            rows = self._db.execute(
                "SELECT id, id + span FROM segment WHERE id > ? AND id <= ? AND id + span <= ? ORDER BY id LIMIT ?",
                (after, upto, upto, _PRUNE_CHUNK),
            ).fetchall()
            if rows:
                self.drop(rows[0][0], rows[-1][1])
            more |= len(rows) == _PRUNE_CHUNK
        return more

    # Retention's tools; to be used within a transaction

    def used_pages(self) -> int:
        """Pages that hold data; free ones are not counted."""
        [(pages,)] = self._db.execute("PRAGMA page_count").fetchall()
        [(free,)] = self._db.execute("PRAGMA freelist_count").fetchall()
        return int(pages - free)

    def room_pages(self) -> int:
        """Pages that one more transaction may fill."""
        return self.max_pages - _RESERVE_PAGES - self.used_pages()

    def oldest(self, limit: int) -> list[tuple[int, int, Header | None]]:
        """The oldest segments as (last number, readings, header); no header when it is damaged."""
        rows = self._db.execute("SELECT id, span, total, body FROM segment ORDER BY id LIMIT ?", (limit,)).fetchall()
        found: list[tuple[int, int, Header | None]] = []
        before: int | None = None
        for row in rows:
            first, span, total, body = _typed(row, (int, int, int, bytes))
            try:
                header = read_header(body)
            except DamagedSegment:
                found.append((first + span, total - before if before is not None else 0, None))
            else:
                found.append((header.last, header.readings, header))
            before = total
        return found

    def between(self, after: int, upto: int, limit: int) -> list[tuple[int, int, Header | None]]:
        """The oldest segments that lie whole between two numbers as (first, last number, header); no header when damaged."""
        rows = self._db.execute(
            "SELECT id, id + span, body FROM segment WHERE id > ? AND id <= ? AND id + span <= ? ORDER BY id LIMIT ?",
            (after, upto, upto, limit),
        ).fetchall()
        return [
            (first, last, header_of(body)) for first, last, body in (_typed(row, (int, int, bytes)) for row in rows)
        ]

    def drop(self, first: int, last: int) -> None:
        """Delete the segments from one to another; a hole is noted where some that came before are still needed."""
        [(before,)] = self._db.execute("SELECT EXISTS(SELECT 1 FROM segment WHERE id < ?)", (first,)).fetchall()
        readings = self.owed_in(first - 1, last) if before else 0
        self._db.execute("DELETE FROM segment WHERE id BETWEEN ? AND ?", (first, last))
        if not before:
            self._close_holes()
            return
        widened = self._db.execute(
            "UPDATE hole SET last = ?, readings = readings + ? WHERE first = (SELECT max(first) FROM hole WHERE first < ?)"
            " AND NOT EXISTS(SELECT 1 FROM segment WHERE id BETWEEN hole.first AND ?)",
            (last, readings, first, first),
        ).rowcount
        if not widened:
            self._db.execute("INSERT OR REPLACE INTO hole VALUES(?, ?, ?)", (first, last, readings))

    def _close_holes(self) -> None:
        """Before the oldest segment there is no hole."""
        self._db.execute("DELETE FROM hole WHERE first < (SELECT coalesce(min(id), ?) FROM segment)", (_END,))

    def _removed(self, after: int, before: int = _END) -> int:
        """Readings in the holes between two segments."""
        [(readings,)] = self._db.execute(
            "SELECT coalesce(sum(readings), 0) FROM hole WHERE first > ? AND first < ?", (after, before)
        ).fetchall()
        return int(readings)

    def owed_in(self, after: int, upto: int) -> int:
        """Readings stored above `after`, up to and including `upto`."""
        return max(0, self._total_at(upto) - self._total_at(after)) if after < upto else 0

    def _total_at(self, seq: int) -> int:
        """Readings ever stored in sets up to and including `seq`, the lost ones counted too, those of holes not."""
        row = self._db.execute(
            "SELECT span, id, total, body FROM segment WHERE id <= ? ORDER BY id DESC LIMIT 1", (seq,)
        ).fetchone()
        if row is None:
            first = self._db.execute("SELECT total, body FROM segment ORDER BY id LIMIT 1").fetchone()
            return self._before(*_typed(first, (int, bytes))) if first else self.total
        span, number, total, body = _typed(row, (int, int, int, bytes))
        total -= self._removed(-1, number)
        if number + span <= seq:
            return int(total)
        columns = Columns(0)
        try:
            decode(body, self.layouts, columns, after=seq)
        except DamagedSegment:
            return int(total)
        return int(total) - len(columns.seq)

    @staticmethod
    def _before(total: int, body: bytes) -> int:
        try:
            return total - read_header(body).readings
        except DamagedSegment:
            return total

    def delete_upto(self, last: int) -> None:
        """Give up the segments up to and including the one that ends with `last`."""
        self._db.execute("DELETE FROM segment WHERE id <= ?", (last,))
        self._close_holes()

    # Reading

    def read(self, after: int, max_readings: int, *, hold: bool = False) -> Columns | None:
        """Sets above `after`, times corrected, at least one and about `max_readings`; None when there are none.

        Args:
            hold: stop before the first set whose time is unconfirmed; no readings when that is the very next one.

        Raises:
            sqlite3.DatabaseError: a segment is damaged or missing.
        """
        columns = Columns(after)
        now_us = self.now_us()
        total, before = None, 0
        for number, body, after_it in self.bodies(after):
            start = len(columns.seq)
            try:
                # told from here alone: who asks again later may find the clock learned meanwhile, and pass over all of it
                if hold and self.boots.resolve(read_header(body).stamp)[1] is TimeState.UNCONFIRMED:
                    return columns
                header = decode(body, self.layouts, columns, after=after)
            except DamagedSegment as error:
                raise _damage(str(error)) from error
            if header.first != number or (
                total is not None
                and total + header.readings != after_it
                and total + self._removed(before, number) + header.readings != after_it
            ):
                raise _damage(f"segment {number} does not follow the one before it")
            total, before = after_it, number
            self.boots.correct(columns, start, header.stamp, now_us, header.sealed_us)
            if len(columns.seq) >= max_readings:
                break
        return columns if columns.seq else None

    def bodies(self, after: int = -1) -> Iterator[tuple[int, bytes, int]]:
        """Segments that hold sets above `after`, ascending: first number, blob, readings ever stored up to its end."""
        place = self._db.execute(
            "SELECT id FROM segment WHERE id <= ? ORDER BY id DESC LIMIT 1", (after,)
        ).fetchone() or (after,)
        while row := self._db.execute(
            "SELECT id, span, body, total FROM segment WHERE id >= ? ORDER BY id LIMIT 1", place
        ).fetchone():
            number, span, body, total = _typed(row, (int, int, bytes, int))
            if span < 0:
                raise _damage(f"segment {number} ends before it begins")
            place = (number + span + 1,)
            if number + span > after:
                yield number, body, total

    def owed(self, after: int, upto: int = _END) -> tuple[int, int | None]:
        """Readings stored above `after` and up to `upto`, and the oldest time among the first of them in microseconds."""
        columns = self.read(after, 1)
        if columns is None or columns.seq[0] > upto:
            return 0, None
        return self.owed_in(after, upto), min(columns.time_us)

    def newest_in(self, after: int, upto: int) -> int | None:
        """When the last set above `after` and up to `upto` was written, in microseconds; None when there is none."""
        row = self._db.execute(
            "SELECT body FROM segment WHERE id <= ? AND id + span > ? ORDER BY id DESC LIMIT 1", (upto, after)
        ).fetchone()
        header = header_of(row[0]) if row else None
        return None if header is None else header.sealed_us + self.boots.resolve(header.stamp)[0]

    def before(self, time_us: int) -> int:
        """The number before the first set that has a reading at or after a time."""
        after = 0
        while (columns := self.read(after, _SEGMENT_READINGS)) is not None:
            for seq, at_us in zip(columns.seq, columns.time_us, strict=True):
                if at_us >= time_us:
                    return seq - 1
            after = columns.last
        return after

    def gaps(self) -> list[Gap]:
        """What was given up, oldest first."""
        none = type(None)
        types = (int, (int, none), (int, none), int, str, str)
        rows = self._db.execute("SELECT at_us, from_us, to_us, readings, reason, owed FROM gap ORDER BY id").fetchall()
        return [
            Gap(at, first, to, n, reason, _owed_of(owed))
            for at, first, to, n, reason, owed in (_typed(row, types) for row in rows)
        ]

    # Held pieces

    def put_held(
        self,
        row: HeldRow,
        entries: Sequence[Entry],
        drop: Sequence[int],
        gaps: Sequence[Gap] = (),
        names: Names = MappingProxyType({}),
    ) -> int:
        """Insert a held piece (`id` 0), or update its tries and add to its readings; `drop` others to make room. Returns its id.

        Args:
            names: of its series: those that the file does not know yet are written with it.
        """
        body = b"".join(encode(group, self.layouts, kind=HELD) for group in _groups(entries))
        names = {number: name for number, name in names.items() if number not in self._named}
        with self._of_held(gaps):
            self._db.executemany("DELETE FROM held WHERE id = ?", [(number,) for number in drop])
            self._put_records(names, self.layouts.unsaved)
            if row.id:
                self._db.execute(
                    "UPDATE held SET reason=?, last_us=?, tries=?, next_us=? WHERE id=?",
                    (row.reason, row.last_us, row.tries, row.next_us, row.id),
                )
                if body:  # `||` would make text of it
                    [(before,)] = self._db.execute("SELECT body FROM held WHERE id = ?", (row.id,)).fetchall()
                    self._db.execute(
                        "UPDATE held SET readings=?, body=? WHERE id=?", (row.readings, before + body, row.id)
                    )
                number = row.id
            else:
                [(number,)] = self._db.execute(
                    "INSERT INTO held(broker, entity, device, reason, first_us, last_us, tries, next_us, readings, body)"
                    " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                    (
                        row.broker,
                        row.entity,
                        row.device,
                        row.reason,
                        row.first_us,
                        row.last_us,
                        row.tries,
                        row.next_us,
                        row.readings,
                        body,
                    ),
                ).fetchall()
        self.layouts.unsaved.clear()
        self._named |= names.keys()
        return int(number)

    def can_hold(self) -> bool:
        """Whether a plain piece can be written; nothing of it stays."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("INSERT INTO held VALUES(NULL, '', '', '', '', 0, 0, 0, NULL, 0, x'')")
        except Exception:  # noqa: BLE001  then it is not the piece
            return False
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return True

    def drop_held(self, numbers: Sequence[int], gaps: Sequence[Gap] = ()) -> None:
        with self._of_held(gaps):
            self._db.executemany("DELETE FROM held WHERE id = ?", [(number,) for number in numbers])

    def held_readings(self, number: int) -> Columns:
        """The readings of a held piece, times as they were when it was held.

        Raises:
            DamagedSegment: its bits have changed.
        """
        columns = Columns(0)
        row = self._db.execute("SELECT body FROM held WHERE id = ?", (number,)).fetchone()
        body = row[0] if row else b""
        while body:
            header = decode(body, self.layouts, columns)
            body = body[header.size_bytes :]
        columns.time_state = [TimeState.SURE] * len(columns.seq)
        return columns

    def held_size(self, number: int) -> int:
        row = self._db.execute("SELECT length(body) FROM held WHERE id = ?", (number,)).fetchone()
        return int(row[0]) if row else 0

    # Statistics, checks

    def statistics(self, from_hour: int) -> dict[int, bytes]:
        rows = self._db.execute("SELECT hour, body FROM statistic WHERE hour >= ? ORDER BY hour", (from_hour,))
        return dict(rows.fetchall())

    def verify(self, after: int, limit: int = 200) -> tuple[int, int, list[str], int | None]:
        """The next segments against their CRCs: how many are sound, their readings, what is wrong, where to go on."""
        rows = self._db.execute(
            "SELECT id, span, body FROM segment WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        ).fetchall()
        sound, readings, wrong = 0, 0, []
        for number, _, body in rows:
            try:
                columns = Columns(0)
                decode(body, self.layouts, columns)
            except DamagedSegment as error:
                wrong.append(f"{error} (number {number})")
            else:
                sound += 1
                readings += len(columns.seq)
        return sound, readings, wrong, rows[-1][0] if len(rows) == limit else None

    def progress(self, upto: int) -> tuple[int, int]:
        """Readings in the file up to a number, and all of them."""
        before = self._total_at(-1)
        return max(0, self._total_at(upto) - before), self._total_at(_END) - before

    def quick_check(self) -> list[str]:
        """What SQLite finds wrong with the trees; empty when nothing."""
        found = [row[0] for row in self._db.execute("PRAGMA quick_check").fetchall()]
        return [] if found == ["ok"] else found

    # Salvage's tools; to be used within a transaction

    def save_rows(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Rows of a damaged file, as they are; cursors carry their own CRC."""
        for row in rows:
            self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES({','.join('?' * len(row))})", row)

    def save_dictionary(self, series: Mapping[int, tuple[str, str]], layouts: Sequence[Layout]) -> None:
        self._put_records(series, layouts)

    def save_gap(self, gap: Gap) -> None:
        self._put_gaps([gap])

    def save_segment(self, header: Header, body: bytes, total: int) -> None:
        self._db.execute(
            "INSERT INTO segment VALUES(?, ?, ?, ?)", (header.first, header.last - header.first, total, body)
        )

    def checkpoint(self) -> None:
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        self.closed = True
        self._db.close()


@dataclass(slots=True)
class _Tried:
    """Gaps of a commit that failed and may be in the file all the same: they are counted once.

    Attributes:
        newest: id and readings of the newest record before that commit.
        gaps: what it was to add.
        counted: what of that is in the file.
    """

    newest: tuple[int, int] | None = None
    gaps: Sequence[Gap] = ()
    counted: Sequence[Gap] = ()

    def again(self, newest: tuple[int, int] | None, gaps: Sequence[Gap]) -> None:
        """The next try: whether the one before was written shows in the newest record."""
        if newest != self.newest:
            self.counted = self.gaps
        self.newest, self.gaps = newest, gaps

    def rest(self, gaps: Sequence[Gap]) -> Iterator[Gap]:
        """Without what is counted. They begin with those of the try before; to the last of these some may have been added."""
        for gap, known in zip_longest(gaps, self.counted[: len(gaps)]):
            if known is None or known.reason != gap.reason:
                yield gap
            elif gap is not known:
                owed = {name: count - known.owed.get(name, 0) for name, count in gap.owed.items()}
                yield replace(gap, readings=gap.readings - known.readings, owed=owed)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or rolled back with everything as it was."""

    def __init__(self, db: Connection) -> None:
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


def connect_file(path: Path) -> Connection:
    """Open the file itself, made when absent, readable by user and group alone."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if not path.exists():  # an open descriptor of an existing file must not be closed: that would drop SQLite's locks
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o640))  # SQLite gives -wal and -shm the same mode
        sync_folder(path.parent)  # SQLite does this for its journals, not for the database itself
    # psow=0: power loss may garble the whole block being written, so SQLite must not rely on the rest of it
    uri = f"file:{quote(str(path.absolute()))}?psow=0"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    db.text_factory = _text
    return db


def _text(data: bytes) -> str:
    """A damaged page can pass for rows of text that is none."""
    return data.decode("utf-8", "replace")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def records(series: Mapping[int, tuple[str, str]], layouts: Sequence[Layout]) -> Iterator[bytes]:
    """Dictionary entries as blobs that stay within a page, each with its CRC."""
    items: list[list[Any]] = [["s", number, *name] for number, name in series.items()]
    items += [["l", layout.id, layout.series, layout.codes] for layout in layouts]
    part: list[str] = []
    size = 0
    for item in items:
        text = json.dumps(item, separators=(",", ":"), ensure_ascii=False)
        if part and size + len(text) > _RECORD_BYTES:
            yield _record(part)
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield _record(part)


def _record(part: list[str]) -> bytes:
    payload = f"[{','.join(part)}]".encode("utf-8", "surrogatepass")
    body = len(payload).to_bytes(4, "little") + payload
    return RECORD_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def read_record(body: bytes, series: dict[int, tuple[str, str]], layouts: dict[int, Layout]) -> bool:
    """Take over the dictionary entries of a record; False when it is not sound. `body` may be longer."""
    if body[:3] != RECORD_MAGIC or len(body) < 11:
        return False
    end = 11 + int.from_bytes(body[7:11], "little")
    if end > len(body) or zlib.crc32(body[7:end]) != int.from_bytes(body[3:7], "little"):
        return False
    try:
        rows = [_record_row(row) for row in json.loads(body[11:end].decode("utf-8", "replace"))]
    except (ValueError, TypeError, RecursionError):  # a sum that fits by chance, or a format that we do not know
        return False
    for number, row in rows:
        if isinstance(row, Layout):
            layouts[number] = row
        else:
            series[number] = row
    return True


def _record_row(row: Any) -> tuple[int, tuple[str, str] | Layout]:
    kind, number, first, second = row
    number = int(number)
    return number, (str(first), str(second)) if kind == "s" else Layout(number, tuple(first), tuple(second))


def _owed_of(text: str) -> dict[str, int]:
    """Who was owed what a gap lost; nothing when the text is none of ours."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: count for name, count in found.items() if isinstance(count, int)}


def _typed(row: tuple[Any, ...], types: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row, if it has these types: what is left of an overwritten page can pass for rows.

    Raises:
        sqlite3.DatabaseError: the file is damaged.
    """
    if not all(map(isinstance, row, types)):
        raise _damage(f"a row holds {[type(value).__name__ for value in row]}: its page is damaged")
    return row


def _damage(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def header_of(body: bytes) -> Header | None:
    """Of a segment; None when it is damaged."""
    try:
        return read_header(body)
    except DamagedSegment:
        return None


def _known_body(known: Known) -> str:
    takes = None if known.takes is None else sorted(known.takes)
    return json.dumps({"upto": known.upto, "takes": takes}, separators=(",", ":"))


def _known_of(body: str) -> Known:
    """Keys of a newer citygate are left alone."""
    its = json.loads(body)
    takes = its.get("takes")
    return Known(its.get("upto"), None if takes is None else frozenset(takes))


def _consumer_crc(name: str, body: str) -> int:
    return zlib.crc32(f"{name}\0{body}".encode())


def _cursor_crc(name: str, seq: int) -> int:
    return zlib.crc32(f"{name}\0{seq}".encode())


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
