"""The last config that worked, kept beside the state: a box whose file has become wrong starts with it all the same."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from gateway.config.bases import OUTSIDE, name_in_copy
from gateway.config.loader import config_files, files_of, folders_of
from gateway.environment import Environment
from gateway.sdk.errors import CitygateError, Problem
from gateway.sdk.files import read_bytes, sync_folder

FORMAT = 1
MODE = 0o640  # the group may read it, as it may the config
OWN = {"templates": (".yaml",), "cities": (".yaml",), "models": (".yaml", ".yml", ".json", ".jsonld")}
MAX_OWN_BYTES = 8 << 20  # templates, profiles and models beside the config; what is beyond is named, not kept
MAX_KEPT_BYTES = 64 << 20


class NotKept(CitygateError):
    """There is no last good config that can be used, or none could be written; the message says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The operator's files as they are now.

    Attributes:
        main: name of the main file.
        files: text by path below the config's folder: main file, fragments, bases, own templates, profiles and models;
            what lies outside of that folder by `name_in_copy`.
        left_out: what else is there and is too much, or no text.
    """

    main: str
    files: Mapping[str, str]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """A last good config.

    Attributes:
        config: the main file that it came from, its whole path.
        citygate: the version it worked with.
    """

    at: datetime
    config: str
    citygate: str
    snapshot: Snapshot


def snapshot(path: Path) -> Snapshot:
    """What a last good config is made of. Secrets stay what the files say of them: names.

    Raises:
        NotKept: main file, a fragment or a base cannot be read.
    """
    main = config_files(path)[0]
    folder = main.parent
    files: dict[str, str] = {}
    try:
        for file in files_of(path):
            files[str(name_in_copy(file, folder))] = read_bytes(file, MAX_KEPT_BYTES).decode()
    except (OSError, ValueError) as error:
        raise NotKept(f"{main} cannot be read: {error}") from error
    left, left_out = MAX_OWN_BYTES, []
    for file in (own for its in folders_of(path) for own in own_files(its)):
        name = str(name_in_copy(file, folder))
        try:
            data = read_bytes(file, left + 1)
            if len(data) > left:
                raise ValueError("too much")
            files[name] = data.decode()
            left -= len(data)
        except (OSError, ValueError):
            left_out.append(name)
    return Snapshot(main.name, files, tuple(left_out))


def own_files(folder: Path) -> Iterator[Path]:
    """Templates, profiles and models beside the config."""
    for name, endings in OWN.items():
        with contextlib.suppress(OSError):
            yield from sorted(file for file in (folder / name).rglob("*") if file.suffix in endings and file.is_file())


class LastGood:
    """The file that keeps it.

    Args:
        file: beside the state; see `place_of`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> Kept:
        """What is kept.

        Raises:
            NotKept: nothing, or nothing that can be trusted: cut off, changed, of a newer citygate.
        """
        try:
            data = read_bytes(self.file, MAX_KEPT_BYTES)
        except FileNotFoundError:
            raise NotKept(f"there is no last good config yet ({self.file})") from None
        except OSError as error:
            raise NotKept(f"the last good config {self.file} cannot be read: {error.strerror or error}") from error
        try:
            return _kept(orjson.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, _Unsound) else "it is damaged"
            raise NotKept(f"the last good config {self.file} cannot be used: {reason}") from error

    def write(self, found: Snapshot, *, config: str, at: datetime) -> bool:
        """Keep it, whole or not at all; False when the same is kept already, and the card rests.

        Raises:
            NotKept: the card is full or may not be written; what was kept stays.
        """
        kept = Kept(at, config, version("citygate"), found)
        with contextlib.suppress(NotKept):
            if replace(self.read(), at=at) == kept:
                return False
        new = self.file.with_name(f".{self.file.name}.new")
        try:
            _write(new, orjson.dumps(_row(kept), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            os.replace(new, self.file)
            sync_folder(self.file.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            raise NotKept(f"{self.file} cannot be written: {error.strerror or error}") from error
        return True


class _Unsound(ValueError):
    """Why a file that can be read is not to be used."""


def _row(kept: Kept) -> dict[str, Any]:
    body = {"main": kept.snapshot.main, "left_out": list(kept.snapshot.left_out), "files": dict(kept.snapshot.files)}
    return {
        "format": FORMAT,
        "about": "the last config that citygate worked with; written by it, for `citygate run --last-good`",
        "written_at": kept.at.isoformat(),
        "config": kept.config,
        "citygate": kept.citygate,
        "sha256": _digest(body),
        **body,
    }


def _kept(row: Any) -> Kept:
    if row["format"] != FORMAT:
        raise _Unsound(f"its format is {row['format']}, this citygate reads {FORMAT}")
    body = {name: row[name] for name in ("main", "left_out", "files")}
    if _digest(body) != row["sha256"]:
        raise _Unsound("it is not as it was written")
    for name in (row["main"], *row["files"]):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise _Unsound(f"{name} is outside of it")
    found = Snapshot(row["main"], row["files"], tuple(row["left_out"]))
    return Kept(datetime.fromisoformat(row["written_at"]), row["config"], row["citygate"], found)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _write(file: Path, data: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    with open(handle, "wb") as out:
        os.fchmod(handle, MODE)  # whatever the umask says
        out.write(data)
        out.flush()
        os.fsync(handle)


class Unpacked:
    """A kept config as files in a folder of its own, for as long as this lives: models are read from it when needed.

    Args:
        runtime: folder in memory, which takes them also when the card is full; None: that for temporary files.

    Raises:
        NotKept: there is no room for it.
    """

    def __init__(self, kept: Kept, runtime: Path | None = None) -> None:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="last-good-", dir=runtime, ignore_cleanup_errors=True)
            self.folder = Path(self._folder.name)
            for name, text in kept.snapshot.files.items():
                file = self.folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(text.encode())
        except OSError as error:
            raise NotKept(f"the last good config cannot be unpacked: {error.strerror or error}") from error
        self.main = self.folder / kept.snapshot.main

    def close(self) -> None:
        """Nothing of it is needed any more."""
        self._folder.cleanup()

    def shown(self, problem: Problem) -> Problem:
        """With its file as it is called in the operator's folder."""
        name = problem.file.removeprefix(f"{self.folder}/").removeprefix(OUTSIDE)
        name = "/".join(".." if part == "^" else part for part in name.split("/"))
        return replace(problem, file=f"last good config: {name}") if name != problem.file else problem


def place_of(buffer: Path, environment: Environment) -> Path:
    """Where the last good config is: in the service's own folder, which no config can move; else beside the buffer."""
    return (environment.state or buffer.parent) / "last-good.json"
