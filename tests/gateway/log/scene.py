"""For tests of the log: sets whose values name themselves, a log with a manual clock, and all that a consumer is owed."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from gateway.log.log import Columns, Consumer, Log, LogSettings
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
