"""The log: append, read, settle. The truth of the gateway; what is behind it are consumers, each with its own cursor."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from gateway.clock import BoxClock
from gateway.log.head import Head
from gateway.log.last_values import LastValues
from gateway.log.segment import Columns as Columns
from gateway.log.segment import Entry, Stamp, columns_of, microseconds, wall_time
from gateway.log.segment import Series as Series
from gateway.log.store import Batch, Loaded, Store
from gateway.log.writer import Writer
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet

_READING_BYTES: Final = 250  # what one reading costs in the head, as measured with tracemalloc
_HOUSEKEEPING_S: Final = 3600.0
_STATE_S: Final = 300.0
_DRAIN_S: Final = 60.0
_STEP_US: Final = 1_000_000  # a wall clock that moved further than this against boot time was set, not disciplined
_events = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The `buffer:` part of the operator's file.

    Attributes:
        commit_every_s: declared loss window; 0: `append` returns when the set is on the card.
        keep_s: settled readings are kept that long.
        head_bytes: bound of the part in memory; at half of it a commit starts early.
    """

    path: Path
    commit_every_s: float = 15.0
    max_size_bytes: int = 1_000_000_000
    max_age_s: float = 90 * 86_400.0
    keep_s: float = 0.0
    head_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Consumer:
    """Someone who reads the log to its end and settles what is done; every consumer sees every set."""

    name: str
    start: Literal["oldest", "now"] | datetime = "oldest"


@dataclass(slots=True)
class _Lane:
    """Where a consumer stands.

    Attributes:
        cursor: all up to here is settled.
        empty_upto: nothing is stored between the cursor and here.
        stored: readings owed that are in the file.
        oldest_us: time of the oldest of those, as far as known.
    """

    cursor: int
    empty_upto: int = 0
    stored: int = 0
    oldest_us: int | None = None


class SetReceipt:
    """Receipt of one appended set; see `gateway.sdk.driver.Receipt`."""

    __slots__ = ("_log", "_seq")

    def __init__(self, log: "Log", seq: int) -> None:
        self._log = log
        self._seq = seq

    @property
    def durable(self) -> Awaitable[None]:
        return self._log._when_durable(self._seq)


@dataclass(slots=True)
class _Pending:
    """What the next commit writes beside the sets."""

    series: dict[int, tuple[str, str]] = field(default_factory=dict)
    cursors: set[str] = field(default_factory=set)
    states: dict[tuple[str, str], bytes] = field(default_factory=dict)
    states_since_s: float = 0.0


class Log:
    """The durable queue of sets. Build it with `open`; one per file, one event loop.

    Attributes:
        series: every point ever logged, by id; grows.
        last_values: newest readings by series.
        first_seq: numbers from here on are of this run.
    """

    def __init__(self, settings: LogSettings, clock: Clock, store: Store, writer: Writer, loaded: Loaded, lock: int):
        self.settings = settings
        self.series: dict[int, Series] = {i: Series(i, *name) for i, name in loaded.series.items()}
        self.last_values = LastValues(self.series)
        self.first_seq = loaded.start << 32
        self._clock = clock
        self._store = store
        self._writer = writer
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._boot = loaded.boot
        self._ids: dict[str, dict[str, int]] = {}
        for series in self.series.values():
            self._ids.setdefault(series.device, {})[series.point] = series.id
        self._next_series = max(self.series, default=0) + 1
        self._next_seq = self.first_seq + 1
        self._stored_last = loaded.last
        self._durable_upto = self.first_seq
        self._head = Head(settings.head_bytes)
        self._lanes: dict[str, _Lane] = {}
        self._known_cursors = loaded.cursors
        self._states: dict[str, dict[str, bytes]] = {}
        for (device, key), value in loaded.states.items():
            self._states.setdefault(device, {})[key] = value
        self._pending = _Pending()
        self._stamp = self._stamp_now()
        self._committing: asyncio.Task[None] | None = None
        self._again = False
        self._timer: asyncio.TimerHandle | None = None
        self._housekeeping_at_s = clock.monotonic_s() + _HOUSEKEEPING_S
        self._drained_since_s: float | None = None
        self._arrival = self._loop.create_future()
        self._room = self._loop.create_future()
        self._receipts: list[tuple[int, asyncio.Future[None]]] = []
        self._failure = ""
        self._commits = 0
        self._appended = 0
        self._closed = False
        self._restore(loaded)

    @classmethod
    async def open(cls, settings: LogSettings, *, clock: Clock, consumers: Sequence[Consumer]) -> "Log":
        """Open or make the file, take over cursors, restore the last values.

        Raises:
            LogError: another daemon has the file, or it is not ours.
        """
        lock = _lock(settings.path)
        writer = Writer()
        try:
            store, loaded = await writer.submit(partial(_open_store, settings, clock))
            log = cls(settings, clock, store, writer, loaded, lock)
            for consumer in consumers:
                await log._join(consumer)
        except BaseException as error:
            await writer.close()
            os.close(lock)
            if isinstance(error, sqlite3.Error):
                raise LogError(f"{settings.path} cannot be opened: {error}") from error
            raise
        log._arm()
        return log

    def _restore(self, loaded: Loaded) -> None:
        for columns in loaded.last_values:
            for seq, number, time_us, value, quality, reason, source in zip(
                columns.seq,
                columns.series,
                columns.time_us,
                columns.value,
                columns.quality,
                columns.reason,
                columns.time_source,
                strict=True,
            ):
                reading = Reading(self.series[number].point, value, wall_time(time_us), quality, reason, source)
                self.last_values.note(Entry(seq, (number,), (reading,), self._stamp, 0.0, 0))

    async def _join(self, consumer: Consumer) -> None:
        cursor = self._known_cursors.get(consumer.name)
        if cursor is None:
            self._pending.cursors.add(consumer.name)
            cursor = await self._start_of(consumer)
        lane = self._lanes[consumer.name] = _Lane(cursor)
        lane.stored, lane.oldest_us = await self._writer.submit(partial(self._store.owed, cursor))

    async def _start_of(self, consumer: Consumer) -> int:
        if consumer.start == "oldest":
            return 0
        if consumer.start == "now":
            return max(self._stored_last, self._next_seq - 1)
        return await self._writer.submit(partial(self._store.before, microseconds(consumer.start)))

    # Appending

    async def append(self, readings: ReadingSet) -> SetReceipt:
        """Put a set into the head; waits only while the head is full, or for the card when `commit_every_s` is 0."""
        head = self._head
        while head.full:
            self._start_commit()
            await asyncio.shield(self._room)
        if readings.state:
            self._note_state(readings.device, readings.state)
        items = readings.readings
        if not items:
            return SetReceipt(self, 0)
        seq = self._next_seq
        self._next_seq = seq + 1
        ids = self._ids.get(readings.device)
        try:
            series = tuple([ids[reading.point] for reading in items])  # type: ignore[index]  # None is the rare new device
        except (KeyError, TypeError):
            series = self._new_series(readings)
        now_s = self._clock.monotonic_s()
        entry = Entry(seq, series, items, self._stamp_of(items[0]), now_s, _READING_BYTES * len(items))
        head.append(entry)
        self._appended += len(items)
        self.last_values.note(entry)
        if not self._arrival.done():
            self._arrival.set_result(None)
        if self.settings.commit_every_s == 0:
            await self._when_durable(seq)
        elif self._due(now_s):
            self._start_commit()
        elif self._timer is None:
            self._arm()
        return SetReceipt(self, seq)

    def _new_series(self, readings: ReadingSet) -> tuple[int, ...]:
        ids = self._ids.setdefault(readings.device, {})
        for reading in readings.readings:
            if reading.point not in ids:
                number = ids[reading.point] = self._next_series
                self._next_series += 1
                self.series[number] = Series(number, readings.device, reading.point)
                self._pending.series[number] = (readings.device, reading.point)
        return tuple(ids[reading.point] for reading in readings.readings)

    def _note_state(self, device: str, state: Mapping[str, bytes]) -> None:
        self._states.setdefault(device, {}).update(state)
        if not self._pending.states:
            self._pending.states_since_s = self._clock.monotonic_s()
        for key, value in state.items():
            self._pending.states[device, key] = value

    def note_unreported(self, device: str, reading: Reading) -> None:
        """A reading that thinning keeps from the log: page and status show it."""
        number = self._ids.get(device, {}).get(reading.point)
        if number is None:
            [number] = self._new_series(ReadingSet(device, (reading,)))
        self.last_values.note_unreported(number, reading, self._stamp)

    def _stamp_now(self) -> Stamp:
        offset_us = microseconds(self._clock.now()) - int(self._clock.monotonic_s() * 1e6)
        trusted = self._clock.trust.trusted if isinstance(self._clock, BoxClock) else True
        return Stamp(self._boot, offset_us, trusted)

    def _stamp_of(self, reading: Reading) -> Stamp:
        now, old = self._stamp_now(), self._stamp
        if abs(now.offset_us - old.offset_us) > _STEP_US or now.trusted != old.trusted:
            self._stamp = now
        return self._stamp

    # Reading and settling

    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> Columns | None:
        """Sets after the consumer's cursor, or after a number; about `max_readings`, whole sets. None at the tail."""
        lane = self._lanes[consumer]
        after = max(lane.cursor if after is None else after, lane.empty_upto)
        stored_last = self._stored_last
        if after < stored_last:
            columns = await self._writer.submit(partial(self._store.read, after, max_readings))
            if columns is not None:
                if after == lane.cursor:
                    lane.oldest_us = min(columns.time_us)
                return columns
            lane.empty_upto = max(lane.empty_upto, stored_last)
            after = max(after, stored_last)
        return self._read_head(after, max_readings)

    def _read_head(self, after: int, max_readings: int) -> Columns | None:
        entries = self._head.entries
        start = end = self._head.after(after)
        count = 0
        while end < len(entries) and count < max_readings:
            count += len(entries[end].readings)
            end += 1
        return columns_of(entries[start:end], after) if count else None

    async def settle(self, consumer: str, upto: int) -> None:
        """All up to and including `upto` is done with: accepted, refused or held."""
        lane = self._lanes[consumer]
        if upto <= lane.cursor:
            return
        self._pending.cursors.add(consumer)
        before, lane.cursor = lane.cursor, upto
        if before < self._stored_last:
            if self._drained_since_s is None:
                self._drained_since_s = self._clock.monotonic_s()
            if upto >= self._stored_last:
                lane.stored, lane.oldest_us = 0, None
            else:
                lane.stored, lane.oldest_us = await self._writer.submit(partial(self._store.owed, lane.cursor))
        self._settled_by_all()

    def _settled_by_all(self) -> None:
        if not self._lanes:
            return
        upto = self._settled()
        if self.settings.keep_s == 0:
            self._head.drop(upto)
            self._make_room()
        self._resolve_receipts()

    def _settled(self) -> int:
        return min((lane.cursor for lane in self._lanes.values()), default=0)

    async def wait(self, consumer: str, after: int | None = None) -> None:
        """Until something is there after the cursor, or after a number."""
        while True:
            lane = self._lanes[consumer]
            place = max(lane.cursor if after is None else after, lane.empty_upto)
            entries = self._head.entries
            if self._stored_last > place or (entries and entries[-1].seq > place):
                return
            if self._arrival.done():
                self._arrival = self._loop.create_future()
            await asyncio.shield(self._arrival)

    def backlog(self, consumer: str) -> tuple[int, datetime | None]:
        """Readings owed, and the time of the oldest of them."""
        lane = self._lanes[consumer]
        place = max(lane.cursor, self._stored_last)
        index = self._head.after(place)
        in_head = sum(len(entry.readings) for entry in self._head.entries[index:])
        if lane.stored and lane.oldest_us is not None:
            return lane.stored + in_head, wall_time(lane.oldest_us)
        entries = self._head.entries
        return lane.stored + in_head, entries[index].readings[0].observed_at if in_head else None

    def driver_state(self, device: str) -> Mapping[str, bytes]:
        """The newest driver state of a device, by key."""
        return self._states.get(device, {})

    # Committing

    def _due(self, now_s: float) -> bool:
        """Whether a commit is due: by the age of the oldest set that is still owed, by size, by the hour."""
        entries, pending = self._head.entries, self._pending
        if entries and (
            now_s - entries[0].appended_s >= self.settings.commit_every_s
            or self._head.size_bytes >= self._head.max_bytes // 2
        ):
            return True
        return (
            now_s >= self._housekeeping_at_s
            or (bool(pending.states) and now_s - pending.states_since_s >= _STATE_S)
            or (self._drained_since_s is not None and now_s - self._drained_since_s >= _DRAIN_S)
        )

    def _arm(self) -> None:
        """Look again when the oldest set in the head comes of age, at the latest in a second's multiple of the window."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        wait_s = self.settings.commit_every_s or 1.0
        entries = self._head.entries
        if entries:
            wait_s -= max(0.0, self._clock.monotonic_s() - entries[0].appended_s)
        self._timer = self._loop.call_later(max(wait_s, 0.05), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._due(self._clock.monotonic_s()):
            self._start_commit()
        else:
            self._arm()

    def _start_commit(self) -> None:
        if self._committing is not None:
            self._again = True
            return
        self._committing = self._loop.create_task(self._commit_loop(), name="log-commit")

    async def _commit_loop(self) -> None:
        try:
            while True:
                self._again = False
                await self._commit(housekeeping=self._clock.monotonic_s() >= self._housekeeping_at_s)
                if not self._again or self._failure:
                    return
        finally:
            self._committing = None
            self._arm()

    async def commit(self) -> None:
        """Write everything that is owed, now. For stop and tests; ordinarily age and size decide.

        Raises:
            LogError: the card refused; the sets stay in the head.
        """
        while self._committing is not None:
            await asyncio.shield(self._committing)
        await self._commit(housekeeping=True)
        if self._failure:
            raise LogError(self._failure)

    async def _commit(self, *, housekeeping: bool) -> None:
        settled = self._settled()
        entries = list(self._head.entries)
        pending, self._pending = self._pending, _Pending()
        batch = Batch(
            entries=entries,
            series=pending.series,
            cursors={name: self._lanes[name].cursor for name in pending.cursors},
            states=pending.states,
            last_values=list(self.last_values.saved()) if housekeeping else None,
            settled=settled if self.settings.keep_s == 0 else 0,
        )
        try:
            await self._writer.submit(partial(self._store.commit, batch))
        except sqlite3.Error as error:
            self._take_back(pending)
            self._fail(error)
            return
        self._failure = ""
        self._commits += 1
        self._drained_since_s = None
        if housekeeping:
            self._housekeeping_at_s = self._clock.monotonic_s() + _HOUSEKEEPING_S
        if entries:
            self._stored(entries)

    def _stored(self, entries: list[Entry]) -> None:
        last = entries[-1].seq
        for lane in self._lanes.values():
            owed = sum(len(entry.readings) for entry in entries if entry.seq > lane.cursor)
            if owed and not lane.stored:
                first = next(entry for entry in entries if entry.seq > lane.cursor)
                lane.oldest_us = microseconds(first.readings[0].observed_at)
            lane.stored += owed
        self._stored_last = self._durable_upto = last
        self._head.drop(last)
        self._make_room()
        self._resolve_receipts()

    def _take_back(self, pending: _Pending) -> None:
        """A commit failed: what it carried is for the next one."""
        newer, self._pending = self._pending, pending
        self._pending.series.update(newer.series)
        self._pending.cursors |= newer.cursors
        self._pending.states.update(newer.states)

    def _fail(self, error: sqlite3.Error) -> None:
        if not self._failure:
            _events.error("log_write_failed", path=str(self.settings.path), error=str(error))
        self._failure = f"{self.settings.path} cannot be written: {error}"

    def _make_room(self) -> None:
        if not self._head.full and not self._room.done():
            self._room.set_result(None)
            self._room = self._loop.create_future()

    def _when_durable(self, seq: int) -> Awaitable[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if seq <= self._durable_upto or (self._lanes and seq <= self._settled()):
            future.set_result(None)
            return future
        self._receipts.append((seq, future))
        if self.settings.commit_every_s == 0:
            self._start_commit()
        return future

    def _resolve_receipts(self) -> None:
        if not self._receipts:
            return
        upto = max(self._durable_upto, self._settled())
        waiting = []
        for seq, future in self._receipts:
            if seq > upto:
                waiting.append((seq, future))
            elif not future.done():
                future.set_result(None)
        self._receipts = waiting

    def status(self) -> dict[str, Any]:
        """What `status`, page and metrics show of the log."""
        return {
            "state": "bad" if self._failure else "ok",
            "reason": self._failure,
            "remedy": "free space or replace the card; the newest readings are kept in memory" if self._failure else "",
            "path": str(self.settings.path),
            "head_readings": self._head.readings,
            "head_bytes": self._head.size_bytes,
            "appended": self._appended,
            "commits": self._commits,
            "series": len(self.series),
            "writer_busy_s": round(self._writer.busy_s(), 3),
        }

    async def close(self) -> None:
        """Commit everything, close the file, let the next daemon in.

        Raises:
            LogError: the last commit was refused; what was not written is lost with this process.
        """
        if self._closed:
            return
        try:
            await self.commit()
        finally:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            for _, future in self._receipts:
                future.cancel()
            with contextlib.suppress(sqlite3.Error):
                await self._writer.submit(self._store.close)
            await self._writer.close()
            os.close(self._lock)


def _open_store(settings: LogSettings, clock: Clock) -> tuple[Store, Loaded]:
    store = Store(settings.path, settings.max_size_bytes)
    boot_id = clock.boot_id if isinstance(clock, BoxClock) else "unknown"
    return store, store.load(boot_id, microseconds(clock.now()))


def _lock(path: Path) -> int:
    """One daemon per file. A file beside the database, since closing a second descriptor of that would drop SQLite's locks."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise LogError(
            f"{path} is in use by another citygate (process {owner}); stop that one, or give this one a buffer.path of its own"
        ) from None
    os.truncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle
