"""For tests of the log: sets whose values name themselves, a log with a manual clock, and all that a consumer is owed."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.clock import Source, Trust
from gateway.log.log import Columns, Consumer, Log, LogSettings
from gateway.log.store import PAGE_BYTES
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON, ManualClock

CITY = Consumer("milano")
OTHER = Consumer("porto")


def a_set(n: int, device: str = "meter-1") -> ReadingSet:
    at = NOON + timedelta(seconds=n)
    return ReadingSet(device, (Reading("count", n, at), Reading("voltage", 230.0 + n / 10, at)))


async def opened(
    path: Path,
    *consumers: Consumer,
    clock: Clock | None = None,
    connect: Callable[[Path], Any] | None = None,
    **settings: Any,
) -> Log:
    """A log that commits when told to, unless the settings say otherwise."""
    chosen = LogSettings(path / "buffer.db", **{"commit_every_s": 3600.0, **settings})
    return await Log.open(chosen, clock=clock or ManualClock(), consumers=consumers, connect=connect)


async def everything(log: Log, consumer: str) -> list[int]:
    """All values of point `count` after the cursor, without settling."""
    counts: list[int] = []
    after: int | None = None
    while (columns := await log.read(consumer, after=after, max_readings=7)) is not None:
        counts += counts_of(log, columns)
        after = columns.last
    return counts


async def settle(log: Log, consumer: str, sets: int = 1) -> None:
    """The next sets that this consumer is owed are done with."""
    for _ in range(sets):
        columns = await log.read(consumer, max_readings=1)
        assert columns is not None
        await log.settle(consumer, columns.seq[0])


async def at_rest(log: Log) -> None:
    """Until what was begun is done: the writer takes one job after the other."""
    for _ in range(4):
        for _ in range(4):
            await asyncio.sleep(0)
        with contextlib.suppress(LogError):
            await log.progress(0)


@contextlib.asynccontextmanager
async def on_card(path: Path, *consumers: Consumer, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Log]:
    """The log as it would be found if power went now; the one that is open goes on."""
    copy = path / "found"
    copy.mkdir()
    files = [file for end in ("", "-wal") if (file := path / f"buffer.db{end}").exists()]
    # by another process: to close the file in this one would drop SQLite's locks
    copying = await asyncio.create_subprocess_exec("cp", *files, copy)
    assert await copying.wait() == 0
    log = await opened(copy, *consumers, clock=clock, **settings)
    try:
        yield log
    finally:
        await log.close()
        for file in copy.iterdir():
            file.unlink()
        copy.rmdir()


def counts_of(log: Log, columns: Columns) -> list[int]:
    return [
        value
        for value, number in zip(columns.value, columns.series, strict=True)
        if log.series[number].point == "count" and isinstance(value, int)
    ]


def lose(folder: Path, *tables: str) -> None:
    """The card forgets the roots of these tables; whoever has the file open reads them anew."""
    db = sqlite3.connect(folder / "buffer.db", isolation_level=None)
    [(version,)] = db.execute("PRAGMA user_version").fetchall()
    db.execute(f"PRAGMA user_version={version}")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    rows = db.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'").fetchall()
    db.close()
    with (folder / "buffer.db").open("r+b") as file:
        for name, page in rows:
            if name in tables:
                file.seek((page - 1) * PAGE_BYTES)
                file.write(bytes(PAGE_BYTES))


class BootClock(ManualClock):
    """A manual clock with a boot and a worth.

    Args:
        true: the true time at which the box starts; `observed` readings carry what the wall clock says.
        wrong_s: how far the wall clock is off.
    """

    def __init__(self, boot_id: str, true: datetime, wrong_s: float = 0.0, source: Source = Source.NONE) -> None:
        super().__init__(true + timedelta(seconds=wrong_s))
        self._monotonic_s = 10.0
        self.boot_id = boot_id
        self.floor: datetime | None = None
        self.wrong_s = wrong_s
        self._source = source

    @property
    def trust(self) -> Trust:
        return Trust(self._source, self.now())

    @property
    def true(self) -> datetime:
        return self.now() - timedelta(seconds=self.wrong_s)

    def raise_floor(self, at: datetime) -> None:
        self.floor = at

    def learn(self, source: Source, wrong_s: float = 0.0) -> None:
        """The clock is set, by someone who may be off too."""
        self.step(wrong_s - self.wrong_s)
        self.wrong_s = wrong_s
        self._source = source
