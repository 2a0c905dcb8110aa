"""What becomes of a file that cannot be used: a damaged one is set aside and every sound segment taken over into a new
one; one that was taken away while it was open is copied from the open handle; one that is not ours is set aside."""

import mmap
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from gateway.log.refusal import NotOurs, is_damage
from gateway.log.segment import (
    CLAIMS_VERSION,
    LOG,
    MAGIC,
    VERSION,
    Columns,
    DamagedSegment,
    Header,
    Layout,
    Layouts,
    decode,
    encode,
    entries_of,
    microseconds,
    read_header,
)
from gateway.log.store import APPLICATION_ID, PAGE_BYTES, RECORD_MAGIC, Gap, Store, read_record
from gateway.sdk.files import sync_folder

_APPLICATION: Final = slice(68, 72)  # where a database says whose it is
_ASIDE_KEPT: Final = 2
_CHUNK: Final = 200
_MAYBE_INT: Final = (int, type(None))
_TYPES: Final[dict[str, tuple[Any, ...]]] = {
    "boot": (int, str, _MAYBE_INT, int, int, _MAYBE_INT, int),
    "cursor": (str, int, int),
    "state": (str, str, bytes),
    "newer_state": (int, str, str, bytes),
    "held": (int, str, str, str, str, int, int, int, _MAYBE_INT, int, bytes),
    "consumer": (str, str, int),
    "gap": (int, int, _MAYBE_INT, _MAYBE_INT, int, str, str),
    "statistic": (int, bytes),
    "recipe": (str, str, bytes),
    "moved": (int, str),
}
_YOUNG: Final = ("consumer", "hole")  # tables that a file of an older format has not


@dataclass(slots=True)
class Report:
    """What was found, and what was done about it.

    Attributes:
        aside: where the file set aside is now; None when none was.
        lost: what could not be read, in words.
        said: the report in words, where it is not that of a damaged file.
        all_lost: nothing of the old file is in the new one.
        settled: all up to here was settled by everybody.
    """

    aside: Path | None
    segments: int = 0
    readings: int = 0
    lost: list[str] = field(default_factory=list)
    said: str = ""
    remedy: str = "check the card; delete the old file when it is no longer needed"
    all_lost: bool = False
    settled: int = 0

    def __str__(self) -> str:
        if self.said:
            return self.said
        lost = "; ".join(self.lost) or "nothing known to be missing"
        return (
            f"{self.segments} segments with {self.readings} readings taken over; {lost}; the old file is {self.aside}"
        )


@dataclass(slots=True)
class _Found:
    series: dict[int, tuple[str, str]] = field(default_factory=dict)
    layouts: dict[int, Layout] = field(default_factory=dict)
    segments: dict[int, tuple[Header, bytes]] = field(default_factory=dict)
    stored: list[tuple[int, int]] = field(default_factory=list)  # number and running total of each row
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)


def ours(path: Path) -> bool:
    """Whether a file that SQLite refuses is a damaged log, and not something else that must not be touched."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start[_APPLICATION] == APPLICATION_ID.to_bytes(4) or not start.strip(b"\0"):
        return True
    found = _Found()
    _carve(path, found)
    return bool(found.segments or found.series)


def salvage(path: Path, max_size_bytes: int, at: datetime, *, keeps: bool, layouts: Sequence[Layout] = ()) -> Report:
    """Save what is sound into a new file, then set the old one aside and put the new one in its place.

    A power cut at any moment leaves either the old file in place or the new one beside it; `finish` completes that.

    Args:
        keeps: what is settled stays, too, until retention takes it.
        layouts: what memory knows of the dictionary.

    Raises:
        NotOurs: the file is no log of ours; it was left where it is.
        OSError, sqlite3.Error: the card does not take the new file; the old one is still in place.
    """
    if not ours(path):
        raise NotOurs(f"{path} is not a citygate log")
    aside = free_name(path, "damaged", at)
    report = Report(aside)
    found = _read(path, report)
    found.layouts = {layout.id: layout for layout in layouts} | found.layouts
    new = _beside(path)
    _remove(new)
    store = Store(new, max_size_bytes)
    try:
        _write(store, found, report, at, keeps=keeps)
    finally:
        store.close()  # the last connection moves all into the file and removes the journal
    path.rename(aside)
    sync_folder(path.parent)
    finish(path, aside)
    _forget_old(path, aside)
    return report


def put_aside(path: Path, error: NotOurs, at: datetime) -> Report:
    """Move a file that is not ours out of the way, its journals with it; it is never deleted by us."""
    aside = free_name(path, error.kind, at)
    for end in ("", "-wal", "-journal"):
        if (file := path.with_name(path.name + end)).exists():
            file.rename(aside.with_name(aside.name + end))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    sync_folder(path.parent)
    newer = error.kind.startswith("format")
    return Report(
        aside,
        said=f"{error}; it is kept as {aside}, and a new log was begun",
        remedy=f"install that version again: it takes over what is owed in {aside}"
        if newer
        else "move it to where it belongs, or give buffer.path a name of its own",
    )


def rescue(store: Store, path: Path, what: str, at: datetime, *, keeps: bool) -> Report:
    """The open file was taken away: put what it holds, read through the open handle, in its place, and close it.

    Whatever lies at the path by now is set aside. The copy is complete before that; `finish` completes what a power cut leaves.

    Raises:
        OSError, sqlite3.Error: the card does not take the copy; the store is still open.
    """
    new = _beside(path)
    _remove(new)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT, 0o640))
    try:
        store.copy_to(new)
    except sqlite3.DatabaseError as error:
        _remove(new)
        if not is_damage(error):
            raise
        return _without_copy(store, path, what, error, at, keeps=keeps)
    except BaseException:
        _remove(new)
        raise
    _sync(new)
    _make_way(store, path, at)
    store.close()
    finish(path)
    return Report(
        None,
        said=f"{what}; all that was in it was rescued into a new file",
        remedy="find out who did it; this remark ends with the next start",
    )


def _without_copy(
    store: Store, path: Path, what: str, error: sqlite3.DatabaseError, at: datetime, *, keeps: bool
) -> Report:
    """The open handle does not give all of it: what lies at the path may still have sound segments."""
    store.close()
    try:
        report = salvage(path, store.max_pages * PAGE_BYTES, at, keeps=keeps)
    except (FileNotFoundError, NotOurs):
        _make_way(store, path, at)
        return Report(None, said=f"{what}, and it could not be read any more: {error}", all_lost=True)
    report.lost.insert(0, what)
    return report


def _make_way(store: Store, path: Path, at: datetime) -> None:
    """What lies at the path and is not the open file is set aside, its journal with it."""
    aside = free_name(path, "replaced", at)
    for end in ("", "-wal"):
        file = path.with_name(path.name + end)
        if store.is_open_file(end):
            file.unlink()
        elif file.exists():
            file.rename(aside.with_name(aside.name + end))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    sync_folder(path.parent)


def free_name(path: Path, kind: str, at: datetime) -> Path:
    name = f"{path.name}.{kind}-{at:%Y%m%dT%H%M%S}"
    return next(p for n in count() if not (p := path.with_name(f"{name}-{n}")).exists())


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finish(path: Path, aside: Path | None = None) -> None:
    """Complete a salvage that was cut short, and remove journals that belong to no file: SQLite would play them in."""
    if path.exists():
        return
    wal = path.with_name(path.name + "-wal")
    aside = aside or next(iter(sorted(_set_aside(path), reverse=True)), None)
    if wal.exists() and aside is not None:
        wal.rename(aside.with_name(aside.name + "-wal"))
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    if _beside(path).exists():
        _beside(path).rename(path)
        sync_folder(path.parent)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _set_aside(path: Path) -> list[Path]:
    return [p for p in path.parent.glob(f"{path.name}.damaged-*") if not p.name.endswith(("-wal", "-shm"))]


def _forget_old(path: Path, newest: Path) -> None:
    """Keep the newest files set aside, and room for the log itself: a card that goes bad must not fill itself."""
    older = sorted(file for file in _set_aside(path) if file != newest)  # by names: the clock may have gone back since
    free = shutil.disk_usage(path.parent).free
    for file in older if free < newest.stat().st_size else older[: 1 - _ASIDE_KEPT]:
        _remove(file)


def _read(path: Path, report: Report) -> _Found:
    found = _Found()
    _read_tables(path, found, report)
    for file in (path, path.with_name(path.name + "-wal")):
        if file.exists():
            _carve(file, found)
    return found


def _read_tables(path: Path, found: _Found, report: Report) -> None:
    """The small tables by SQL, as far as each can be read, and segments too long to be found page by page."""
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    try:
        there = {name for (name,) in _rows(db, "SELECT name FROM sqlite_master", "sqlite_master", None)}
        for table in (
            "start",
            "boot",
            "cursor",
            "state",
            "newer_state",
            "held",
            "consumer",
            "hole",
            "gap",
            "statistic",
            "recipe",
            "moved",
            "record",
            "record_copy",
        ):
            has = not there or table in there  # else the file is of an older citygate, which had none
            found.rows[table] = _rows(db, f"SELECT * FROM {table}", table, report) if has else []
        for number, total, body in _rows(db, "SELECT id, total, body FROM segment ORDER BY id", "segment", None):
            if isinstance(body, bytes):
                _take_segment(body, found)
            if isinstance(total, int):
                found.stored.append((number, total))
        for table in ("record", "record_copy"):
            for _, body in found.rows[table]:
                if isinstance(body, bytes):
                    read_record(body, found.series, found.layouts)
    finally:
        db.close()


def _rows(db: sqlite3.Connection, sql: str, table: str, report: Report | None) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    try:
        for row in db.execute(sql):
            rows.append(row)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if report is not None and not (table in _YOUNG and str(error).startswith("no such table")):
            report.lost.append(f"table {table} after {len(rows)} rows: {error}")
    return rows


def _take_segment(body: bytes, found: _Found) -> None:
    try:
        header = read_header(body)
    except DamagedSegment:
        return
    known = found.segments.get(header.first)
    if header.kind == LOG and (known is None or known[0].last < header.last):
        found.segments[header.first] = header, bytes(body[: header.size_bytes])


def _carve(file: Path, found: _Found) -> None:
    """Find segments and dictionary records by their magic, whatever has become of the trees around them."""
    if not file.stat().st_size:
        return
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for version in (VERSION, CLAIMS_VERSION):
            for start in _places(data, MAGIC + bytes((version,))):
                _take_segment(data[start : start + 8192], found)
        for start in _places(data, RECORD_MAGIC):
            read_record(data[start : start + 8192], found.series, found.layouts)


def _places(data: mmap.mmap, magic: bytes) -> Iterator[int]:
    last = len(data) - 1  # Python before 3.11.4 looks at the byte behind the end, and crashes (gh-105235)
    start = data.find(magic, 0, last)
    while start >= 0:
        yield start
        start = data.find(magic, start + 1, last)


def _write(store: Store, found: _Found, report: Report, at: datetime, *, keeps: bool) -> None:
    layouts = Layouts(found.layouts[number] for number in sorted(found.layouts))
    segments = [found.segments[number] for number in sorted(found.segments)]
    settled = report.settled = segments[-1][0].settled if segments else 0
    starts = [row for row in found.rows["start"] if _fits(row, (int, int, int))]
    numbers = [number for number, _ in found.stored]  # also of those that cannot be read: none is used twice
    last = max([segments[-1][0].last if segments else 0, settled, *numbers])
    with store.transaction():
        store.save_rows("start", [*starts, *([] if starts else [((last >> 32) + 1, 0, 0)])])
        for table, types in _TYPES.items():
            store.save_rows(table, [row for row in found.rows[table] if _fits(row, types)])
    kept = list(_in_order(found, 0 if keeps else settled, layouts, report))
    for i in range(0, len(kept), _CHUNK):
        with store.transaction():
            for header, body in kept[i : i + _CHUNK]:
                report.segments += 1
                report.readings += header.readings
                store.save_segment(header, body, report.readings)
    with store.transaction():
        store.save_dictionary(found.series, layouts.known())  # with those in which a part was written anew
    _count_lost(store, found, report, at)


def _count_lost(store: Store, found: _Found, report: Report, at: datetime) -> None:
    """A gap record of what was not found, as far as the running totals tell; 0 readings: not known how many."""
    lost, before, after = 0, None, 0
    holes = [row for row in found.rows["hole"] if _fits(row, (int, int, int))]
    for number, total in found.stored:
        if number not in found.segments and before is not None:
            removed = sum(readings for first, _, readings in holes if after < first < number)
            lost += max(0, total - before - removed)
        before, after = total, number
    if lost:
        report.lost.append(f"{lost} readings")
    with store.transaction():
        store.save_gap(Gap(microseconds(at), None, None, lost, "damage", {}))


def _in_order(found: _Found, upto: int, layouts: Layouts, report: Report) -> Iterator[tuple[Header, bytes]]:
    """Segments without overlap: a commit that failed may have left its pages beside those of the one that followed."""
    for header, body in [found.segments[number] for number in sorted(found.segments)]:
        if header.last <= upto:
            continue
        columns = Columns(0)
        try:
            decode(body, layouts, columns, after=upto)
        except DamagedSegment as error:
            report.lost.append(str(error))
            del found.segments[header.first]
            continue
        if header.first <= upto:
            entries = entries_of(columns, header.stamp)
            body = encode(entries, layouts, sealed_us=header.sealed_us, settled=header.settled)
            header = read_header(body)
        upto = header.last
        yield header, body


def _fits(row: tuple[Any, ...], types: tuple[Any, ...]) -> bool:
    """What is left of an overwritten page can pass for rows of anything."""
    return all(map(isinstance, row, types))
