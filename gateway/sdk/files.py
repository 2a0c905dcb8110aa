"""Files that somebody else put there: no pipe keeps us waiting, no device is read for ever."""

import errno
import os
import stat
from importlib.resources.abc import Traversable
from pathlib import Path

MAX_TEXT_BYTES = 32 << 20  # of a schema, a context or an index of models; the largest shipped one has 3 MB


def read_bytes(path: Traversable, most: int) -> bytes:
    """At most so many bytes of a file.

    Raises:
        OSError: also for what is no regular file.
    """
    if not isinstance(path, Path):
        with path.open("rb") as packed:
            return packed.read(most)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        _check(os.fstat(descriptor).st_mode, path)
        return file.read(most)


def is_file(path: Traversable) -> bool:
    """False also for what rights hide."""
    try:
        return path.is_file()
    except OSError:
        return False


def listed(folder: Traversable) -> list[Traversable]:
    """What is in a folder; nothing when it is none, or may not be looked into."""
    try:
        return sorted(folder.iterdir(), key=lambda its: its.name) if folder.is_dir() else []
    except OSError:
        return []


def is_closed(folder: Path) -> bool:
    """Whether it is a folder that this user may not look into."""
    return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK, effective_ids=True)


def read_text(path: Traversable) -> str:
    """The text of a file.

    Raises:
        OSError: as `read_bytes`.
        ValueError: not UTF-8, or longer than anything of its kind.
    """
    data = read_bytes(path, MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB")
    return data.decode("utf-8")


def check_regular(*paths: str) -> None:
    """Before a library opens them ("" is none). Raises OSError for what is not there or no regular file."""
    for path in paths:
        if path:
            _check(os.stat(path).st_mode, path)


def _check(mode: int, path: object) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def sync_folder(folder: Path) -> None:
    """Make names that were made, renamed or removed in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
