"""A card that loses power: what was written is recorded, then cut at any operation and left as a real card might leave it.

A judge: it shares no code with the product. `Card` is an SQLite VFS (apsw) that records every write, sync, truncation and
removal; `crash` plays the record up to a cut and decides what of the unsynced writes reached the platter:

    none      nothing that was not synced
    prefix    some of it, in order
    subset    any of it, in any order
    torn      any of it, cut into sectors of 512 bytes
    garble    a prefix, and the 4 KiB block written last is noise, the bytes synced earlier in it included

A journal file's name becomes durable with its first sync, as SQLite syncs the folder then, and with it the removals
before. A removal is durable at once when SQLite asks for it, else only perhaps.
"""

import random
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

MODES = ("none", "prefix", "subset", "torn", "garble")
BLOCK_BYTES = 4096
SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on the card.

    Attributes:
        kind: write, truncate, sync, remove (synced: durable at once), rename (`data` is the new name), folder (its names
            are synced) or ack (the writer was told that its commit is done; `at` counts them).
    """

    kind: str
    file: str = ""
    at: int = 0
    data: bytes = b""
    synced: bool = False


@dataclass(slots=True)
class _File:
    content: bytearray = field(default_factory=bytearray)


class Card(apsw.VFS):
    """Files in memory; `ops` has what was done to them.

    Args:
        psow: what the card says when the database does not override it; SQLite's default is True.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, _File] = {}
        self.ops: list[Op] = []
        self.fail_at = -1  # index of the write that finds the card full
        self.writes = 0
        self.full = False
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name or f"/temporary-{len(self.files)}"
        psow = not isinstance(name, apsw.URIFilename) or name.uri_boolean("psow", True)
        flags[1] = flags[0]
        return _OpenFile(self, path, self.files.setdefault(path, _File()), psow)

    def xDelete(self, name: str, syncdir: bool) -> None:  # noqa: N802
        self.files.pop(name, None)
        self.ops.append(Op("remove", name, synced=syncdir))

    def xAccess(self, path: str, flags: int) -> bool:  # noqa: N802
        return path in self.files

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def xRandomness(self, count: int) -> bytes:  # noqa: N802
        return b"\x42" * count

    def ack(self, number: int) -> None:
        """The writer was told that commit `number` is done."""
        self.ops.append(Op("ack", at=number))


class _OpenFile:
    def __init__(self, card: Card, path: str, file: _File, psow: bool) -> None:
        self._card = card
        self._path = path
        self._file = file
        self._psow = psow

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return bytes(self._file.content[offset : offset + amount])

    def _full(self) -> None:
        card = self._card
        card.writes += 1
        if card.full or card.writes == card.fail_at:
            raise apsw.FullError("the card is full")

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._full()
        self._card.ops.append(Op("write", self._path, offset, bytes(data)))
        _write(self._file.content, offset, data)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._card.ops.append(Op("truncate", self._path, size))
        del self._file.content[size:]

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._card.ops.append(Op("sync", self._path))

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._file.content)

    def xSectorSize(self) -> int:  # noqa: N802
        return BLOCK_BYTES

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return int(apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE) if self._psow else 0

    def xLock(self, level: int) -> None:  # noqa: N802
        """One process only."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """One process only."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        return False

    def xClose(self) -> None:  # noqa: N802
        """Closing syncs nothing."""


class Connection:
    """An apsw connection with the part of sqlite3's interface that the store uses, on a card.

    Args:
        replace: statements to run in place of others, to break the settings on purpose.
    """

    def __init__(self, card: Card, path: str, *, psow: str = "psow=0", replace: dict[str, str] | None = None) -> None:
        flags = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self._db = apsw.Connection(f"file:{path}?{psow}", flags=flags, vfs=card.name)
        self._replace = replace or {}
        self._db.execute("PRAGMA locking_mode=exclusive")  # a WAL without shared memory

    @property
    def in_transaction(self) -> bool:
        return bool(self._db.in_transaction)

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> "_Rows":
        try:
            cursor = self._db.cursor()
            rows = cursor.execute(self._replace.get(sql, sql), tuple(parameters)).fetchall()
        except apsw.Error as error:
            raise _as_sqlite3(error) from error
        return _Rows(rows, self._db.changes())

    def executemany(self, sql: str, parameters: Any, /) -> "_Rows":
        for row in parameters:
            self.execute(sql, row)
        return _Rows([], self._db.changes())

    def close(self) -> None:
        try:
            self._db.close()
        except apsw.Error as error:
            raise _as_sqlite3(error) from error


class _Rows:
    def __init__(self, rows: list[Any], changes: int) -> None:
        self._rows = iter(rows)
        self.rowcount = changes

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)


def _as_sqlite3(error: apsw.Error) -> sqlite3.Error:
    kind = sqlite3.OperationalError
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        found: sqlite3.Error = sqlite3.DatabaseError(str(error))
    else:
        found = kind(str(error))
    found.sqlite_errorcode = getattr(error, "result", 1)
    return found


class Platter:
    """What is on the card while the record is played; ask `crash` at any point."""

    def __init__(self) -> None:
        self.durable: dict[str, bytearray] = {}
        self.pending: list[Op] = []
        self.acked = 0

    def play(self, op: Op) -> None:
        """One more operation was done."""
        if op.kind == "ack":
            self.acked = op.at
        elif op.kind == "sync":
            names = op.file not in self.durable  # the first sync of a journal syncs the folder, so all removals in it
            keep = []
            for waiting in self.pending:
                if waiting.file == op.file or (names and waiting.kind == "remove"):
                    _apply(self.durable, waiting)
                else:
                    keep.append(waiting)
            self.durable.setdefault(op.file, bytearray())
            self.pending = keep
        elif op.kind == "remove" and op.synced:
            self.pending = [waiting for waiting in self.pending if waiting.file != op.file]
            self.durable.pop(op.file, None)
        elif op.kind == "folder":
            keep = []
            for waiting in self.pending:
                if waiting.kind in ("remove", "rename"):
                    _apply(self.durable, waiting)
                else:
                    keep.append(waiting)
            self.pending = keep
        else:
            self.pending.append(op)

    def crash(self, mode: str, chance: random.Random) -> dict[str, bytes]:
        """The files as they are found when power returns."""
        files = {name: bytearray(content) for name, content in self.durable.items()}
        for op in _survivors(self.pending, mode, chance):
            _apply(files, op)
        if mode == "garble":
            _garble(files, self.pending, chance)
        return {name: bytes(content) for name, content in files.items()}


def _survivors(pending: Sequence[Op], mode: str, chance: random.Random) -> list[Op]:
    if mode == "none":
        return []
    if mode in ("prefix", "garble"):
        return list(pending[: chance.randint(0, len(pending))])
    share = chance.random()
    if mode == "subset":
        return [op for op in pending if chance.random() < share]
    kept: list[Op] = []
    for op in pending:
        if op.kind != "write":
            kept += [op] if chance.random() < share else []
            continue
        for start in range(0, len(op.data), SECTOR_BYTES):
            if chance.random() < share:
                kept.append(Op("write", op.file, op.at + start, op.data[start : start + SECTOR_BYTES]))
    return kept


def _garble(files: dict[str, bytearray], pending: Sequence[Op], chance: random.Random) -> None:
    """Power goes while the controller rewrites a block: all of it is noise, what it held before too."""
    writes = [op for op in pending if op.kind == "write" and op.data and op.file in files]
    if not writes:
        return
    op = chance.choice(writes)
    block = (op.at + chance.randrange(len(op.data))) // BLOCK_BYTES * BLOCK_BYTES
    content = files[op.file]
    length = min(BLOCK_BYTES, len(content) - block)
    if length > 0:
        content[block : block + length] = chance.randbytes(length)


def _apply(files: dict[str, bytearray], op: Op) -> None:
    if op.kind == "remove":
        files.pop(op.file, None)
    elif op.kind == "rename":
        if op.file in files:
            files[op.data.decode()] = files.pop(op.file)
    elif op.kind == "truncate":
        content = files.setdefault(op.file, bytearray())
        if len(content) > op.at:
            del content[op.at :]
        else:
            content.extend(bytes(op.at - len(content)))
    else:
        _write(files.setdefault(op.file, bytearray()), op.at, op.data)


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def recorded_calls(trace: Path, folder: Path) -> tuple[list[Op], list[bytes]]:
    """What a process did to the files of a folder, from `strace -xx -s 100000`, and the lines it wrote to descriptor 1.

    Each of those lines is an `ack`.
    """
    ops: list[Op] = []
    lines: list[bytes] = []
    open_files: dict[int, str] = {}
    for line in trace.read_text().splitlines():
        call = _CALL.match(line)
        if call is None or int(call["result"]) < 0:
            continue
        name, arguments, result = call["name"], call["arguments"], int(call["result"])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
        if name == "openat":
            path = texts[0].decode()
            if "O_DIRECTORY" in arguments and Path(path) == folder:
                open_files[result] = ""
            elif Path(path).parent == folder and not path.endswith(("-shm", ".lock")):
                open_files[result] = path
            else:
                open_files.pop(result, None)
        elif name in ("rename", "unlink"):
            paths = [text for text in texts if Path(text.decode()).parent == folder]
            if paths and not paths[0].endswith(b"-shm"):
                kind = "remove" if name == "unlink" else "rename"
                ops.append(Op(kind, paths[0].decode(), data=paths[-1] if name == "rename" else b""))
        else:
            number, last = arguments.split(", ")[0], arguments.split(", ")[-1]
            file = open_files.get(int(number))
            if name == "write" and number == "1":
                lines += texts[0].splitlines()
                ops.append(Op("ack", at=len(lines)))
            elif file is None:
                continue
            elif name == "pwrite64":
                ops.append(Op("write", file, int(last), texts[0]))
            elif name == "ftruncate":
                ops.append(Op("truncate", file, int(last)))
            elif name in ("fsync", "fdatasync"):
                ops.append(Op("sync", file) if file else Op("folder"))
            elif name == "close":
                del open_files[int(number)]
            else:
                raise AssertionError(f"{name} to a file of the log is not recorded by this judge")
    return ops, lines


def put_files(folder: Path, files: dict[str, bytes]) -> None:
    """Lay the files of a crash out in an empty folder."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / Path(name).name).write_bytes(content)
