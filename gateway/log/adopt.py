"""A log that had to be set aside by an older citygate: what is owed in it is appended to the present one, then it goes."""

import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from gateway.log.boots import Boots
from gateway.log.condition import Condition
from gateway.log.held import Held
from gateway.log.points import Points
from gateway.log.recipes import Recipes
from gateway.log.segment import Columns, TimeState, microseconds, wall_time
from gateway.log.store import MIGRATIONS, Loaded, Store
from gateway.sdk.reading import Reading, ReadingSet, TimeSource

T = TypeVar("T")
_CHUNK: int = 2000  # readings between two commits
_events = structlog.get_logger()


class Submit(Protocol):
    """Runs a job in the writer thread."""

    def __call__(self, job: Callable[[], T], /) -> Awaitable[T]: ...


class Target(Protocol):
    """What is asked of the present log."""

    @property
    def held(self) -> Held: ...
    async def append(self, readings: ReadingSet) -> object: ...
    async def commit(self) -> None: ...


async def adopt_all(
    path: Path,
    log: Target,
    points: Points,
    recipes: Recipes,
    submit: Submit,
    boot: str,
    now: Callable[[], datetime],
    condition: Condition,
) -> None:
    """Take over every log that waits beside `path`; one that cannot be stays, and is tried again at the next start."""
    for file in await submit(lambda: waiting(path)):
        try:
            await adopt(file, log, points, recipes, submit, boot, now())
        except Exception as error:  # noqa: BLE001  it stays, and is tried again at the next start
            condition.note_not_adopted(file, error)
        else:
            _events.info("log_adopted", path=str(file))


def waiting(path: Path) -> list[Path]:
    """Logs beside this one, of a format that is known by now; the oldest first."""
    names = re.compile(re.escape(path.name) + r"\.format-(\d+)-[0-9T]+-\d+")
    found = [
        (file, match) for file in path.parent.glob(f"{path.name}.format-*") if (match := names.fullmatch(file.name))
    ]
    return sorted(file for file, match in found if int(match[1]) <= len(MIGRATIONS))


async def adopt(
    file: Path, log: Target, points: Points, recipes: Recipes, submit: Submit, boot: str, at: datetime
) -> None:
    """Append what some consumer was owed, with the times that are known of it; cut short it begins anew: nothing is lost.

    Raises:
        LogError, sqlite3.Error, OSError: not now; the file stays.
    """

    def open_it() -> tuple[Store, Loaded]:
        store = Store(file, max(10**9, 2 * file.stat().st_size))
        loaded = store.load(boot, microseconds(at))
        store.boots = Boots(loaded.boots, loaded.boot)
        return store, loaded

    store, loaded = await submit(open_it)
    recipes.adopt(loaded)
    try:
        after = min(loaded.cursors.values(), default=0)
        while (columns := await submit(partial(store.read, after, _CHUNK))) is not None:
            for readings in _sets(columns, loaded):
                await log.append(readings)
            await log.commit()
            after = columns.last
        await _take_held(store, loaded, log.held, points, submit)
        for (device, key), value in loaded.states.items():
            is_number = device.startswith("broker ") and key == "sent"  # of a set, as that log counted
            if key not in points.state_of(device) and not is_number:
                await log.append(ReadingSet(device, (), {key: value}))
        await log.commit()
    finally:
        recipes.adopted()
        await submit(store.close)
    for end in ("", "-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)


def _sets(columns: Columns, loaded: Loaded) -> Iterator[ReadingSet]:
    for _, group in groupby(range(len(columns.seq)), key=columns.seq.__getitem__):
        places = [i for i in group if columns.series[i] in loaded.series]
        if places:
            device = loaded.series[columns.series[places[0]]][0]
            yield ReadingSet(device, tuple(_reading(columns, i, loaded.series[columns.series[i]][1]) for i in places))


def _reading(columns: Columns, i: int, point: str) -> Reading:
    # corrected already, so it stands as absolute: the present boot's clock says nothing about it
    return Reading(
        point,
        columns.value[i],
        wall_time(columns.time_us[i]),
        columns.quality[i],
        columns.reason[i],
        _source(columns, i),
    )


def _source(columns: Columns, i: int) -> TimeSource:
    source = columns.time_source[i]
    sure = columns.time_state[i] is not TimeState.UNCONFIRMED
    return TimeSource.NETWORK if sure and source is TimeSource.GATEWAY else source


async def _take_held(store: Store, loaded: Loaded, held: Held, points: Points, submit: Submit) -> None:
    for row in loaded.held:
        columns = await submit(partial(store.held_readings, row.id))
        names = [loaded.series.get(number, ("", "")) for number in columns.series]
        columns.series = [points.number_of(*name) for name in names]
        if columns.seq:
            await held.hold(
                row.broker,
                row.entity,
                row.device,
                columns,
                reason=row.reason,
                at=wall_time(row.last_us),
                next_try_at=None if row.next_us is None else wall_time(row.next_us),
                tries=row.tries,
            )
