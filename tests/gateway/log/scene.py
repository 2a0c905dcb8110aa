"""For tests of the log: sets whose values name themselves, a log with a manual clock, and all that a consumer is owed."""

import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.clock import Source, Trust
from gateway.log.log import Columns, Consumer, Log, LogSettings
from gateway.log.store import PAGE_BYTES
from gateway.sdk.driver import Clock
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
