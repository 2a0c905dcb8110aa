"""The file of the log: one daemon's alone, opened or made anew, every job on it in the writer thread."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import structlog

from gateway.log.condition import Condition
from gateway.log.refusal import KEPT, Gone, NotOurs, Refusal, is_damage, of_the_file, refusal
from gateway.log.salvage import Report, finish, put_aside, rescue, salvage
from gateway.log.segment import microseconds
from gateway.log.settings import LogSettings
from gateway.log.stamps import Stamps
from gateway.log.store import Connection, Gap, HeldRow, Loaded, Store
from gateway.log.writer import Writer
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError

T = TypeVar("T")
_events = structlog.get_logger()


class File:
    """The store, as far as it can be used now.

    Args:
        connect: opens the database, for tests.

    Attributes:
        store: the open file; None while it cannot be used.
        made_anew: called in the loop when the file was made anew while running, with what the new one holds.

    Raises:
        LogError: another daemon has the file.
    """

    def __init__(
        self,
        settings: LogSettings,
        clock: Clock,
        stamps: Stamps,
        condition: Condition,
        connect: Callable[[Path], Connection] | None,
    ) -> None:
        self.made_anew: Callable[[Report, list[Gap], list[HeldRow]], None]
        self._lock = _lock(settings.path)
        self.writer = Writer()
        self.store: Store | None = None
        self._settings = settings
        self._clock = clock
        self._stamps = stamps
        self._condition = condition
        self._connect = connect
        self._loop = asyncio.get_running_loop()

    async def open(self) -> tuple[Store, Loaded, Report | None]:
        """Open it, after salvage when it is damaged, anew when it is not ours.

        Raises:
            Refusal: it cannot be opened now.
            LogError: another daemon has it.
        """
        at = self._clock.now()
        return await self.writer.submit(lambda: self._open(at))

    def _open(self, at: datetime) -> tuple[Store, Loaded, Report | None]:
        path = self._settings.path
        if self._lock < 0:
            self._lock = _lock(path)
        try:
            finish(path)
            _must_be_a_file(path)
            return self._open_or_replace(at)
        except Exception as error:
            raise error if isinstance(error, Refusal) else refusal(error, path) from error

    def _open_or_replace(self, at: datetime) -> tuple[Store, Loaded, Report | None]:
        path, size = self._settings.path, self._settings.max_size_bytes
        try:
            return *self._loaded(at), None
        except NotOurs as error:
            report = self._put_aside(error, at)
        except Exception as error:
            if of_the_file(error) and not is_damage(error):
                raise
            try:  # rows that cannot be understood are as good as damaged
                report = salvage(path, size, at, keeps=self._settings.keep_s > 0)
            except NotOurs as other:
                report = self._put_aside(other, at)
        return *self._loaded(at), report

    def _loaded(self, at: datetime) -> tuple[Store, Loaded]:
        store = Store(self._settings.path, self._settings.max_size_bytes, self._connect)
        try:
            return store, store.load(self._stamps.boot_name, microseconds(at))
        except BaseException:
            store.close()
            raise

    def _put_aside(self, error: NotOurs, at: datetime) -> Report:
        if self._settings.leave_foreign:
            raise Refusal(str(error), "the daemon sets it aside at its next start")
        return put_aside(self._settings.path, error, at)

    async def let_go(self, store: Store) -> None:
        """It is open, and of no use all the same."""
        self.store = None
        with contextlib.suppress(Exception):
            await self.writer.submit(store.close)

    async def job(self, work: Callable[[Store], T]) -> T:
        """Run work with the store in the writer thread; a damaged file is salvaged, then the work is done again.

        Raises:
            LogError: the file cannot be used now.
        """
        return await self.writer.submit(lambda: self._run(work))

    def _run(self, work: Callable[[Store], T]) -> T:
        """In the writer thread."""
        try:
            store = self.store
            if store is None:
                raise LogError(self._condition.failure or f"{self._settings.path} is not open")
            try:
                return work(store)
            except Exception as error:
                if not isinstance(error, Gone) and not is_damage(error):
                    raise
                return work(self._renewed(store, error))
        except LogError:
            raise
        except Exception as error:
            raise refusal(error, self._settings.path) from error

    def _renewed(self, store: Store, error: Exception) -> Store:
        """In the writer thread: what can be saved of a file that is damaged, or gone from its path, in a new one."""
        path, size, at = self._settings.path, self._settings.max_size_bytes, self._clock.now()
        keeps = self._settings.keep_s > 0
        try:
            if isinstance(error, Gone):
                self._lock_again()
                report = rescue(store, path, str(error), at, keeps=keeps)
            else:
                with contextlib.suppress(sqlite3.Error):
                    store.close()
                report = salvage(path, size, at, keeps=keeps, layouts=store.layouts.known())
            fresh, loaded = self._loaded(at)
            if not fresh.follows(store):
                fresh.close()
                other = NotOurs(f"{error}; what lies there is another log", "replaced")
                report = replace(put_aside(path, other, at), all_lost=True)
                fresh, loaded = self._loaded(at)
        except BaseException:
            if store.closed:
                self.store = None  # the next commit opens the file anew
            raise
        fresh.boots, fresh.now_us = self._stamps.boots, self._stamps.trusted_now_us
        self.store = fresh
        # not by the result of the job: whoever waits for that may be cancelled
        self._loop.call_soon_threadsafe(self.made_anew, report, loaded.gaps, loaded.held)
        return fresh

    def still_there(self, store: Store) -> None:
        """In the writer thread.

        Raises:
            Gone: what lies at the path is not the open file any more.
            LogError: another daemon took the lock after somebody had deleted it.
        """
        if gone := store.gone():
            raise Gone(gone)
        store.must_know_its_start()
        if self._lock >= 0:
            self._lock_again()

    def _lock_again(self) -> None:
        """Whoever deleted the lock, alone or with the file, has let another daemon in: it may have it by now."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"{self._settings.path}.lock"), os.fstat(self._lock)):
                return
        lock = _lock(self._settings.path)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = lock

    async def close(self) -> None:
        """Let the next daemon in."""
        if self.store is not None:
            with contextlib.suppress(Exception):  # it is as after its last commit
                await self.writer.submit(self.store.close)
        await self.writer.close()
        if self._lock >= 0:
            os.close(self._lock)


def real(path: Path) -> Path:
    """The path without links: SQLite puts its journals beside the file itself, and so the lock belongs there."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle: told when it is opened
        return path


def _must_be_a_file(path: Path) -> None:
    """Before it is opened: a pipe would never answer, and what is no file is nothing that we may move away.

    Raises:
        Refusal: there is something else at the path.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no file"
        raise Refusal(f"{path} is {what}", f"give buffer.path the name of a file; {KEPT}")


@contextlib.contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """This log is nobody else's for so long.

    Raises:
        LogError: a daemon has it.
    """
    lock = _lock(path)
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _lock(path: Path) -> int:
    """One daemon per file. A file beside the database, since closing a second descriptor of that would drop SQLite's locks.

    Returns -1 on a card that does not even take the lock file: nobody else can use it either.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        _events.error("log_lock_failed", path=str(path), error=str(error))
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise LogError(
            f"{path} is in use by another citygate (process {owner}); stop that one, or give this one its own buffer.path"
        ) from None
    with contextlib.suppress(OSError):  # a full card; who holds the lock is a courtesy
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle
