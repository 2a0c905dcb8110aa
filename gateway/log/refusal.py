"""Why the file cannot be used, and what a person can do about it: by cause, since a new card heals no missing right."""

import errno
import getpass
import os
import sqlite3
import stat
from pathlib import Path
from typing import Final

from gateway.sdk.errors import LogError

KEPT: Final = "the newest readings are in memory until then"
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TAKEN: Final = (
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    sqlite3.SQLITE_CONSTRAINT_ROWID,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE,
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_DENIED: Final = (errno.EACCES, errno.EPERM)
_NO_FILE: Final = (errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG)
_NO_HANDLES: Final = (errno.EMFILE, errno.ENFILE)


class Refusal(LogError):
    """The file cannot be used now; it is tried again.

    Attributes:
        remedy: what to do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(message)


class NotOurs(LogError):
    """What lies at `buffer.path` is a file, but no log that this citygate can read: it is set aside.

    Attributes:
        kind: part of the name it gets: `foreign`, or `format-N` for a log of a newer citygate.
    """

    def __init__(self, message: str, kind: str = "foreign") -> None:
        self.kind = kind
        super().__init__(message)


class Gone(LogError):
    """The open file is no longer the one at its path."""


def refusal(error: Exception, path: Path) -> Refusal:
    """What the card, the system or our own code said, with the remedy. Looks at the file: not for the event loop."""
    said = str(error) or type(error).__name__
    if not isinstance(error, sqlite3.Error | OSError):
        said = f"{type(error).__name__}: {said}"
    return Refusal(f"{path}: {said}", f"{_remedy(error, path)}; {KEPT}")


def is_damage(error: Exception) -> bool:
    """Whether the file's content is not as it was written."""
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    return _code(error) & 0xFF in _DAMAGE or _code(error) == sqlite3.SQLITE_IOERR_SHORT_READ  # it was cut short


def of_the_file(error: Exception) -> bool:
    """Whether the file or the card refuses, and not the piece that was to be written."""
    if isinstance(error, LogError | OSError | sqlite3.OperationalError) or is_damage(error):
        return True
    return isinstance(error, sqlite3.IntegrityError) and _code(error) in _TAKEN


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", None) or 0


def _remedy(error: Exception, path: Path) -> str:
    number = error.errno if isinstance(error, OSError) else None
    code = _code(error) & 0xFF
    if number in _FULL or code == sqlite3.SQLITE_FULL:
        return "free space on the card"
    if number in _DENIED or code in (sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return _rights(path)
    if number == errno.EROFS:
        return _read_only(path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"another process has the file open: end it (`fuser {path}` names it)"
    if number in _NO_HANDLES:
        return "too many files are open: raise LimitNOFILE of the service"
    if number == errno.EIO or is_damage(error):
        return "the card fails: see the kernel's messages, replace it"
    if isinstance(error, sqlite3.Error | OSError):
        return _look(path) or (
            "the card fails: see the kernel's messages, check and replace it"
            if code == sqlite3.SQLITE_IOERR
            else f"see that {path} can be written"
        )
    if isinstance(error, MemoryError):
        return "the box is short of memory: see what uses it"
    return "this is a fault of citygate or of a driver: please report it with the journal"


def _look(path: Path) -> str:
    """SQLite says no more than that it cannot open or write: what is it that stands in the way?"""
    folder = path.parent
    try:
        is_folder = folder.is_dir()
    except PermissionError:  # a folder above it may not be entered
        return _rights(path)
    if not is_folder:
        return f"{folder} is no folder: make it, or give buffer.path another one"
    if not os.access(folder, os.X_OK):
        return _rights(path)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return f"{path} is no file: give buffer.path the name of one"
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return _read_only(path)
    if not os.access(folder, os.W_OK | os.X_OK) or any(not os.access(file, os.R_OK | os.W_OK) for file in _there(path)):
        return _rights(path)
    return ""


def _there(path: Path) -> list[Path]:
    return [file for end in ("", "-wal", "-shm") if (file := path.with_name(path.name + end)).exists()]


def _rights(path: Path) -> str:
    return f"give user {_user()} the right to write {path}, the files beside it and their folder (chown, chmod)"


def _read_only(path: Path) -> str:
    return f"{path.parent} is mounted read-only: the kernel does that after errors, see its messages, then mount it writable"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return str(os.getuid())
