"""The log: append, read, settle. The truth of the gateway; what is behind it are consumers, each with its own cursor."""

import asyncio
import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import structlog

from gateway.clock import BoxClock
from gateway.log.boots import STEP_US, Boot, Boots
from gateway.log.head import Head
from gateway.log.held import Held
from gateway.log.last_values import LastValues
from gateway.log.retention import Retention
from gateway.log.salvage import Report, finish, salvage
from gateway.log.segment import Columns as Columns
from gateway.log.segment import Entry, Stamp, entries_of, microseconds, put_entries, wall_time
from gateway.log.segment import Series as Series
from gateway.log.segment import TimeState as TimeState
from gateway.log.stats import HOUR_US, Statistics
from gateway.log.store import Batch, Committed, Connection, Gap, Loaded, Store
from gateway.log.writer import Writer
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet, TimeSource

T = TypeVar("T")
_READING_BYTES: Final = 250  # what one reading costs in the head, as measured with tracemalloc
_HOUSEKEEPING_S: Final = 3600.0
_KEEPS_AGAIN_AFTER_S: Final = 600.0  # a full file drops some with every few commits: that is one state, not many
_STATE_S: Final = 300.0
_DRAIN_S: Final = 60.0  # a cursor that moved over stored segments is written within this
_RETRY_S: Final = 5.0
_FUTURE: Final = timedelta(minutes=5)
_STEP_GRACE_S: Final = 600.0  # how long after a step a reading may still carry a time of before
_DAMAGE: Final = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB
_LATE_SERIES: Final = 1 << 30  # series made while the file could not be read get numbers from here on
_NO_BOOT: Final = Boot(1, "")
_events = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The `buffer:` part of the operator's file, and `clock: unconfirmed`.

    Attributes:
        commit_every_s: declared loss window; 0: `append` returns when the set is on the card.
        max_size_bytes: bound of the file; the oldest readings go first.
        keep_s: settled readings are kept that long.
        unconfirmed: `hold` readings back until their time is known, or hand them out marked.
        head_bytes: bound of the part in memory; at half of it a commit starts early.
    """

    path: Path
    commit_every_s: float = 15.0
    max_size_bytes: int = 1_000_000_000
    max_age_s: float = 90 * 86_400.0
    keep_s: float = 0.0
    unconfirmed: Literal["hold", "mark"] = "hold"
    head_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Consumer:
    """Someone who reads the log to its end and settles what is done; every consumer sees every set.

    Attributes:
        start: where one begins that the file does not know.
        was: name it had before; takes over that cursor.
    """

    name: str
    start: Literal["oldest", "now"] | datetime = "oldest"
    was: str = ""


@dataclass(slots=True)
class _Lane:
    """Where a consumer stands.

    Attributes:
        cursor: all up to here is settled.
        empty_upto: nothing is stored between the cursor and here.
        stored: readings owed that are in the file.
        oldest_us: time of the oldest of those, as far as known.
        held_back: the next set waits for its time to be confirmed, since this time epoch.
    """

    consumer: Consumer
    cursor: int
    empty_upto: int = 0
    stored: int = 0
    oldest_us: int | None = None
    held_back: int = -1


class SetReceipt:
    """Receipt of one appended set; see `gateway.sdk.driver.Receipt`."""

    __slots__ = ("_log", "_seq")

    def __init__(self, log: "Log", seq: int) -> None:
        self._log = log
        self._seq = seq

    @property
    def durable(self) -> Awaitable[None]:
        """Resolves when committed or settled by all; `LogError` when the set had to be given up before."""
        return self._log._when_durable(self._seq)


@dataclass(slots=True)
class _Pending:
    """What the next commit writes beside the sets."""

    series: dict[int, tuple[str, str]] = field(default_factory=dict)
    cursors: set[str] = field(default_factory=set)
    forget: list[str] = field(default_factory=list)
    states: dict[tuple[str, str], bytes] = field(default_factory=dict)
    states_since_s: float = 0.0
    boots: list[Boot] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def urgent(self, now_s: float) -> bool:
        return bool(self.boots) or (bool(self.states) and now_s - self.states_since_s >= _STATE_S)


class Log:
    """The durable queue of sets. Build it with `open`; one per file, one event loop.

    Attributes:
        series: every point ever logged, by id; grows.
        last_values: newest readings by series.
        held: what one broker will not take now.
        statistics: expected, got, bad, latency per point and hour.
        first_seq: numbers from here on are of this run.
    """

    def __init__(self, settings: LogSettings, clock: Clock, lock: int, connect: Callable[[Path], Connection] | None):
        self.settings = settings
        self._clock = clock
        self._box = clock if isinstance(clock, BoxClock) else None  # asked once: looking at a protocol is slow
        self._lock = lock
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._writer = Writer()
        self._store: Store | None = None
        now_s, now_us = clock.monotonic_s(), microseconds(clock.now())
        self.series: dict[int, Series] = {}
        self.boots = Boots([_NO_BOOT], _NO_BOOT.id)
        self.last_values = LastValues(self.series, self.boots)
        self.held = Held(self._job, lambda: self._stamp)
        self.statistics = Statistics(self.series, hour=now_us // HOUR_US, up_s=now_s)
        self.first_seq = 0
        self._ids: dict[str, dict[str, int]] = {}
        self._next_series = _LATE_SERIES + secrets.randbelow(2**20) * 1000
        self._next_seq = 1
        self._stored_last = 0
        self._durable_upto = 0
        self._head = Head(settings.head_bytes)
        self._lanes: dict[str, _Lane] = {}
        self._cursors: dict[str, int] = {}  # of all that the file knows, removed ones too
        self._states: dict[str, dict[str, bytes]] = {}
        self._pending = _Pending()
        self._stamp = self._stamp_now()
        self._before_step: tuple[Stamp, float] | None = None
        self._time_epoch = 0  # counts what was learned about time
        self._committing: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._attempt = self._loop.create_future()
        self._again = False
        self._timer: asyncio.TimerHandle | None = None
        self._housekeeping_at_s = now_s + _HOUSEKEEPING_S
        self._drained_since_s: float | None = None
        self._arrival = self._loop.create_future()
        self._room = self._loop.create_future()
        self._receipts: list[tuple[int, asyncio.Future[None]]] = []
        self._failure = ""
        self._bad_since = clock.now()
        self._failed_s = 0.0
        self._dropping = ""
        self._dropped_s = 0.0
        self._gaps: list[Gap] = []
        self._salvaged: Report | None = None
        self._size_bytes = 0
        self._commits = 0
        self._appended = 0
        self._closed = False

    @classmethod
    async def open(
        cls,
        settings: LogSettings,
        *,
        clock: Clock,
        consumers: Sequence[Consumer],
        connect: Callable[[Path], Connection] | None = None,
    ) -> "Log":
        """Open or make the file, take over cursors, restore the last values.

        A card that is full, read-only or absent does not stop it: the newest readings are kept in memory and the file
        is tried again. A damaged file is set aside and what is sound in it is taken over.

        Args:
            connect: opens the database, for tests.

        Raises:
            LogError: another daemon has the file, it is not ours, or a newer citygate wrote it.
        """
        log = cls(settings, clock, _lock(settings.path), connect)
        log._lanes = {consumer.name: _Lane(consumer, 0) for consumer in consumers}
        try:
            async with log._one_at_a_time:
                await log._open_file()
        except BaseException:
            await log._writer.close()
            if log._lock >= 0:
                os.close(log._lock)
            raise
        log._arm()
        return log

    @property
    def _boot_name(self) -> str:
        return "unknown" if self._box is None else self._box.boot_id

    # The file

    async def _open_file(self) -> None:
        """Try to open the file and take over what it holds; a failure is noted and tried again with the next commit."""
        name, at = self._boot_name, self._clock.now()
        try:
            store, loaded, report = await self._writer.submit(lambda: self._open_store(name, at))
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
            return
        self._store = store
        try:
            await self._take_over(loaded, report)
        except sqlite3.Error as error:
            self._store = None
            await self._writer.submit(store.close)
            self._fail(error)

    def _open_store(self, boot_name: str, at: datetime) -> tuple[Store, Loaded, Report | None]:
        """In the writer thread: open, after salvage when the file is damaged."""
        path, size = self.settings.path, self.settings.max_size_bytes
        report = None
        finish(path)
        try:
            store = Store(path, size, self._connect)
            loaded = _load(store, boot_name, at)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            report = salvage(path, size, at)
            store = Store(path, size, self._connect)
            loaded = _load(store, boot_name, at)
        return store, loaded, report

    async def _take_over(self, loaded: Loaded, report: Report | None) -> None:
        """The file is open: number the sets that were waiting for it, join the consumers."""
        assert self._store is not None
        if loaded.newest_us and self._box is not None:
            self._box.raise_floor(wall_time(loaded.newest_us))
        self.boots = Boots(loaded.boots, loaded.boot)
        self._store.boots = self.boots
        self._store.now_us = self._trusted_now_us
        self._stamp = self._stamp_now()
        late = self._next_seq > 1
        self._renumber(loaded.start << 32, self._take_series(loaded))
        self._take_last_values(loaded, late=late)
        self.held.take(loaded.held)
        self.statistics.load(loaded.statistics)
        for (device, key), value in loaded.states.items():
            self._states.setdefault(device, {}).setdefault(key, value)
        self._gaps = loaded.gaps
        self._cursors = dict(loaded.cursors)
        self._stored_last = loaded.last
        for lane in self._lanes.values():
            await self._join(lane, max(self._stored_last, self.first_seq), salvaged=report is not None)
        self._failure = ""
        self._time_learned()
        if report is not None:
            self._note_salvage(report)
        await self._commit_now(sets=True, housekeeping=False)

    def _take_series(self, loaded: Loaded) -> dict[int, int]:
        """Series of the file; returns what those made before it could be read are called there."""
        self.series.update((number, Series(number, *name)) for number, name in loaded.series.items())
        known, made = self._ids, {}
        self._ids, self._pending.series = {}, {}
        for number, (device, point) in loaded.series.items():
            self._ids.setdefault(device, {})[point] = number
        self._next_series = max(loaded.series, default=0) + 1
        for device, points in known.items():
            for point, number in points.items():
                made[number] = self._series_of(device, point)
        return made

    def _take_last_values(self, loaded: Loaded, *, late: bool) -> None:
        points = {number: series.point for number, series in self.series.items()}
        self.last_values.start(self.boots)
        for stamp, columns in loaded.last_values:
            self.last_values.restore(entries_of(columns, stamp, points))
        if late:
            self.last_values.unchanged()
        for entry in self._head.entries:
            self.last_values.note(entry, self._future())

    def _renumber(self, first_seq: int, series: Mapping[int, int]) -> None:
        """Numbers given before the file could be read were provisional, below all that a file can hold."""
        more = first_seq - self.first_seq
        stamps = {e.stamp: replace(e.stamp, boot=self.boots.current) for e in self._head.entries}
        self.first_seq = first_seq
        self._next_seq += more
        self._durable_upto = first_seq
        self._head.replace(
            [
                e._replace(seq=e.seq + more, stamp=stamps[e.stamp], series=tuple(series[number] for number in e.series))
                for e in self._head.entries
            ]
        )
        self._receipts = [(seq + more, future) for seq, future in self._receipts]
        for lane in self._lanes.values():
            lane.cursor = lane.cursor + more if lane.cursor else 0

    async def _join(self, lane: _Lane, now: int, *, salvaged: bool = False) -> None:
        """Give a consumer its place: where it was, else where the operator lets it start; `now` is the number of now."""
        consumer, sent_upto = lane.consumer, lane.cursor
        cursor = self._cursors.get(consumer.name)
        if cursor is None and consumer.was in self._cursors:
            cursor = self._cursors.pop(consumer.was)
            self._pending.forget.append(consumer.was)
        if cursor is None:
            cursor = 0 if salvaged else await self._start_of(consumer, now)
        self._cursors[consumer.name] = lane.cursor = cursor
        self._pending.cursors.add(consumer.name)
        lane.stored, lane.oldest_us = await self._job(lambda store: store.owed(cursor))
        if not lane.stored:
            lane.cursor = max(cursor, sent_upto)

    async def set_consumers(self, consumers: Sequence[Consumer]) -> None:
        """The config has changed: who reads from now on. One that is gone holds nothing back and keeps its cursor."""
        lanes = {}
        for consumer in consumers:
            lane = lanes[consumer.name] = self._lanes.get(consumer.name) or _Lane(consumer, 0)
            lane.consumer = consumer
            if consumer.name not in self._lanes and self._store is not None:
                await self._join(lane, self._next_seq - 1)
        self._lanes = lanes
        self._settled_by_all()
        self._wake()
        self._start_commit()

    async def _start_of(self, consumer: Consumer, now: int) -> int:
        if consumer.start == "oldest":
            return 0
        if consumer.start == "now":
            return now
        time_us = microseconds(consumer.start)
        return await self._job(lambda store: store.before(time_us))

    async def _job(self, work: Callable[[Store], T]) -> T:
        """Run work with the store in the writer thread; a damaged file is salvaged, then the work is done again.

        Raises:
            LogError: the file cannot be used now.
        """
        if self._store is None:
            raise LogError(self._failure or f"{self.settings.path} is not open")
        try:
            result, report = await self._writer.submit(lambda: self._run(work))
        except (sqlite3.Error, OSError) as error:
            raise LogError(f"{self.settings.path}: {error}") from error
        if report is not None:
            await self._after_salvage(report)
        return result

    def _run(self, work: Callable[[Store], T]) -> tuple[T, Report | None]:
        """In the writer thread."""
        store = self._store
        assert store is not None
        try:
            return work(store), None
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
        with contextlib.suppress(sqlite3.Error):
            store.close()
        try:
            report = salvage(self.settings.path, self.settings.max_size_bytes, self._clock.now())
            fresh = Store(self.settings.path, self.settings.max_size_bytes, self._connect)
            _load(fresh, self._boot_name, self._clock.now())
        except BaseException:
            self._store = None  # the next commit opens the file anew
            raise
        fresh.boots, fresh.now_us = self.boots, self._trusted_now_us
        self._store = fresh
        return work(fresh), report

    async def _after_salvage(self, report: Report) -> None:
        """The file was made anew while running: what memory knows better goes into it with the next commit."""
        self._pending.series.update((s.id, (s.device, s.point)) for s in self.series.values())
        self._pending.cursors.update(self._lanes)
        self._pending.boots += self.boots.rows()
        if self._store is not None:
            self._gaps = await self._writer.submit(self._store.gaps)
            self.held.take(await self._writer.submit(self._store.held_rows))
        self._note_salvage(report)
        await self._recount()
        self._start_commit()

    def _note_salvage(self, report: Report) -> None:
        self._salvaged = report
        _events.error("log_salvaged", path=str(self.settings.path), report=str(report))

    async def _recount(self) -> None:
        for lane in self._lanes.values():
            cursor = lane.cursor
            lane.stored, lane.oldest_us = await self._job(partial(_owed, after=cursor))

    # Appending

    async def append(self, readings: ReadingSet) -> SetReceipt:
        """Put a set into the head; waits only while the head is full, or for the card when `commit_every_s` is 0."""
        head = self._head
        while head.full:
            await self._wait_for_room()
        if readings.state:
            self._note_state(readings.device, readings.state)
        items = readings.readings
        if not items:
            return SetReceipt(self, self._next_seq - 1)  # as durable as all before it: a repeat waits for the first
        seq = self._next_seq
        self._next_seq = seq + 1
        ids = self._ids.get(readings.device)
        try:
            series = tuple([ids[reading.point] for reading in items])  # type: ignore[index]  # None: a new device
        except (KeyError, TypeError):
            series = self._new_series(readings)
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        stamp = self._stamp_of(items[0], now, now_s)
        size_bytes = _READING_BYTES * len(items)
        for reading in items:
            if isinstance(reading.value, str):
                size_bytes += 2 * len(reading.value)
        entry = Entry(seq, series, items, stamp, now_s, size_bytes)
        head.append(entry)
        self._appended += len(items)
        bad = self.last_values.note(entry, now + _FUTURE if stamp.source > 1 else None)
        late = now - items[0].observed_at
        self.statistics.note(series, (late.days * 86_400 + late.seconds) * 1_000_000 + late.microseconds, bad)
        if not self._arrival.done():
            self._arrival.set_result(None)
        if self.settings.commit_every_s == 0:
            await self._written(seq)
        elif self._due(now_s):
            self._start_commit()
        elif self._timer is None:
            self._arm()
        return SetReceipt(self, seq)

    async def _written(self, seq: int) -> None:
        """Until the set is on the card, or the card has refused: then it stays in the head like any other."""
        while seq > self._durable_upto and seq > self._settled() and not self._failure:
            self._start_commit()
            await asyncio.shield(self._attempt)

    async def _wait_for_room(self) -> None:
        """A slow card slows polling; a card that refuses costs the oldest sets in memory, counted."""
        if self._failure and not self._one_at_a_time.locked():
            self._give_up(self._head.drop_oldest(self._head.max_bytes * 9 // 10))
            return
        self._start_commit()
        await asyncio.shield(self._room)

    def _give_up(self, entries: Sequence[Entry]) -> None:
        upto = entries[-1].seq if entries else 0
        owed = {
            name: sum(len(entry.readings) for entry in entries if entry.seq > lane.cursor)
            for name, lane in self._lanes.items()
        }
        readings = sum(len(entry.readings) for entry in entries)
        first, last = entries[0].readings[0].observed_at, entries[-1].readings[0].observed_at
        gap = Gap(microseconds(self._clock.now()), microseconds(first), microseconds(last), readings, "memory", owed)
        newest = self._pending.gaps[-1] if self._pending.gaps else None
        if newest is not None and newest.reason == gap.reason:
            self._pending.gaps[-1] = _joined(newest, gap)
        else:
            self._pending.gaps.append(gap)
        self._note_gaps([gap])
        for seq, future in self._receipts:
            if seq <= upto and not future.done():
                future.set_exception(LogError(f"{self.settings.path} refused the set and memory is full"))
                future.exception()  # whoever awaits it gets it; nobody has to
        self._receipts = [(seq, future) for seq, future in self._receipts if seq > upto]

    def _new_series(self, readings: ReadingSet) -> tuple[int, ...]:
        return tuple(self._series_of(readings.device, reading.point) for reading in readings.readings)

    def _series_of(self, device: str, point: str) -> int:
        """The number of a series, given now when it is new."""
        ids = self._ids.setdefault(device, {})
        if point not in ids:
            number = ids[point] = self._next_series
            self._next_series += 1
            self.series[number] = Series(number, device, point)
            self._pending.series[number] = (device, point)
        return ids[point]

    def _note_state(self, device: str, state: Mapping[str, bytes]) -> None:
        self._states.setdefault(device, {}).update(state)
        if not self._pending.states:
            self._pending.states_since_s = self._clock.monotonic_s()
        for key, value in state.items():
            self._pending.states[device, key] = value

    def note_unreported(self, device: str, reading: Reading) -> None:
        """A reading that thinning keeps from the log: page and status show it."""
        self.last_values.note_unreported(self._series_of(device, reading.point), reading, self._stamp)

    # Time

    def _stamp_now(self) -> Stamp:
        offset_us = microseconds(self._clock.now()) - int(self._clock.monotonic_s() * 1e6)
        return Stamp(self.boots.current, offset_us, self._source())

    def _source(self) -> int:
        return 7 if self._box is None else int(self._box.trust.source)

    def _stamp_of(self, reading: Reading, now: datetime, now_s: float) -> Stamp:
        """The stamp a set belongs under; a new one when the clock was set or is worth something else."""
        stamp, source = self._stamp, self._source()
        offset_us = microseconds(now) - int(now_s * 1e6)
        if source != stamp.source or abs(offset_us - stamp.offset_us) > STEP_US:
            self._before_step = (stamp, now_s) if abs(offset_us - stamp.offset_us) > STEP_US else None
            stamp = self._stamp = Stamp(self.boots.current, offset_us, source)
            self._time_learned()
        if self._before_step is not None and reading.time_source is TimeSource.GATEWAY:
            return self._stamp_by_time(reading, now, now_s)
        return stamp

    def _stamp_by_time(self, reading: Reading, now: datetime, now_s: float) -> Stamp:
        """Just after a step a reading may still carry a time of the clock before: whichever now it is nearer to."""
        assert self._before_step is not None
        old, stepped_s = self._before_step
        if now_s - stepped_s > _STEP_GRACE_S:
            self._before_step = None
            return self._stamp
        then = now + timedelta(microseconds=old.offset_us - self._stamp.offset_us)
        nearer_now = abs(reading.observed_at - now) <= abs(reading.observed_at - then)
        return self._stamp if nearer_now else old

    def _look_at_clock(self) -> None:
        """The clock may have become trusted while nothing was appended."""
        now = self._stamp_now()
        if now.source != self._stamp.source or abs(now.offset_us - self._stamp.offset_us) > STEP_US:
            self._before_step = (self._stamp, self._clock.monotonic_s())
            self._stamp = now
            self._time_learned()

    def _time_learned(self) -> None:
        """Persist what the present stamp says of this boot's true time; used from that commit on."""
        self._pending.boots += self.boots.learned(self._stamp)
        if self._pending.boots:
            self._start_commit()

    def _use_boots(self, boots: Sequence[Boot]) -> None:
        if not boots:
            return
        self.boots.take(boots)
        self._time_epoch += 1
        self.last_values.confirm(self._future())
        self._wake()

    def _trusted_now_us(self) -> int | None:
        return microseconds(self._clock.now()) if self._source() > 1 else None

    def _future(self) -> datetime | None:
        return self._clock.now() + _FUTURE if self._source() > 1 else None

    # Reading and settling

    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> Columns | None:
        """Sets after the consumer's cursor, or after a number; about `max_readings`, whole sets. None at the tail.

        Raises:
            LogError: the file cannot be read now.
        """
        lane = self._lanes[consumer]
        after = max(lane.cursor if after is None else after, lane.empty_upto)
        hold = self.settings.unconfirmed == "hold"
        stored_last, epoch = self._stored_last, self._time_epoch
        if after < stored_last:
            place = after
            columns = await self._job(lambda store: store.read(place, max_readings, hold=hold))
            if columns is not None:
                if after == lane.cursor:
                    lane.oldest_us = min(columns.time_us)
                return columns
            if hold and not self.boots.confirmed and (await self._job(partial(_owed, after=place)))[0]:
                lane.held_back = epoch
                return None
            lane.empty_upto = max(lane.empty_upto, stored_last)
            after = max(after, stored_last)
        return self._read_head(lane, after, max_readings, hold=hold)

    def _read_head(self, lane: _Lane, after: int, max_readings: int, *, hold: bool) -> Columns | None:
        columns = Columns(after)
        now_us = self._trusted_now_us()
        entries = self._head.entries
        i = self._head.after(after)
        while i < len(entries) and len(columns.seq) < max_readings:
            start, j, stamp = len(columns.seq), i, entries[i].stamp
            if hold and self.boots.resolve(stamp)[1] is TimeState.UNCONFIRMED:
                lane.held_back = self._time_epoch
                break
            count = start
            while j < len(entries) and entries[j].stamp is stamp and count < max_readings:
                count += len(entries[j].readings)
                j += 1
            put_entries(entries[i:j], columns)
            self.boots.correct(columns, start, stamp, now_us)
            i = j
        return columns if columns.seq else None

    async def scan(self, after: int, max_readings: int = 2000) -> Columns | None:
        """Sets after a number, settled or not, held back or not; for export. None behind the last."""
        if after < self._stored_last:
            columns = await self._job(lambda store: store.read(after, max_readings))
            if columns is not None:
                return columns
        lane = _Lane(Consumer(""), after)
        return self._read_head(lane, max(after, self._stored_last), max_readings, hold=False)

    async def verify(self, after: int) -> tuple[int, int, list[str], int | None]:
        """Check the next segments: how many, their readings, what is wrong, where to go on (None: behind the last)."""
        return await self._job(lambda store: store.verify(after))

    async def progress(self, upto: int) -> tuple[int, int]:
        """Readings in the file up to a number, and all of them."""
        return await self._job(lambda store: store.progress(upto))

    def now(self) -> datetime:
        """Wall time as the log sees it."""
        return self._clock.now()

    async def settle(self, consumer: str, upto: int) -> None:
        """All up to and including `upto` is done with: accepted, refused or held."""
        lane = self._lanes[consumer]
        if upto <= lane.cursor:
            return
        if upto >= self._next_seq:
            raise LogError(f"{consumer} settles number {upto}, the newest is {self._next_seq - 1}")
        self._pending.cursors.add(consumer)
        before, lane.cursor = lane.cursor, upto
        self._cursors[consumer] = upto
        if lane.stored and before < self._stored_last:
            if self._drained_since_s is None:
                self._drained_since_s = self._clock.monotonic_s()
            if upto >= self._stored_last:
                lane.stored, lane.oldest_us = 0, None
            else:
                await self._count_stored(lane)
        self._settled_by_all()

    async def _count_stored(self, lane: _Lane) -> None:
        cursor = lane.cursor
        with contextlib.suppress(LogError):  # shown elsewhere; the count is corrected with the next one
            stored, oldest_us = await self._job(lambda store: store.owed(cursor))
            if lane.cursor == cursor:
                lane.stored, lane.oldest_us = stored, oldest_us

    def _settled_by_all(self) -> None:
        if self.settings.keep_s == 0:
            self._head.drop(self._settled())
            self._make_room()
        self._resolve_receipts()

    def _settled(self) -> int:
        """Up to here every consumer is done; without consumers nothing is."""
        return min((lane.cursor for lane in self._lanes.values()), default=0)

    async def wait(self, consumer: str, after: int | None = None) -> None:
        """Until something can be read after the cursor, or after a number."""
        while True:
            lane = self._lanes[consumer]
            place = max(lane.cursor if after is None else after, lane.empty_upto)
            entries = self._head.entries
            there = self._stored_last > place or (entries and entries[-1].seq > place)
            if there and lane.held_back != self._time_epoch:
                return
            if self._arrival.done():
                self._arrival = self._loop.create_future()
            await asyncio.shield(self._arrival)

    def _wake(self) -> None:
        if not self._arrival.done():
            self._arrival.set_result(None)

    def backlog(self, consumer: str) -> tuple[int, datetime | None]:
        """Readings owed, and the time of the oldest of them."""
        lane = self._lanes[consumer]
        entries = self._head.entries[self._head.after(max(lane.cursor, self._stored_last)) :]
        in_head = sum(len(entry.readings) for entry in entries)
        if lane.stored and lane.oldest_us is not None:
            return lane.stored + in_head, wall_time(lane.oldest_us)
        return lane.stored + in_head, entries[0].readings[0].observed_at if in_head else None

    def driver_state(self, device: str) -> Mapping[str, bytes]:
        """The newest driver state of a device, by key."""
        return self._states.get(device, {})

    async def forget(self, consumer: str) -> bool:
        """Forget the cursor of a consumer that is no longer configured; False when there is none.

        Raises:
            LogError: it is still configured.
        """
        if consumer in self._lanes:
            raise LogError(f"{consumer} is in the config; remove the broker first")
        if self._cursors.pop(consumer, None) is None:
            return False
        self._pending.forget.append(consumer)
        await self.commit()
        return True

    # Committing

    def _due(self, now_s: float) -> bool:
        """Whether a commit is due: for the sets in the head, or by the hour, or for what settling and drivers left."""
        if self._failure and now_s - self._failed_s < _RETRY_S:
            return False
        return (
            self._sets_due(now_s)
            or now_s >= self._housekeeping_at_s
            or self._pending.urgent(now_s)
            or (self._drained_since_s is not None and now_s - self._drained_since_s >= _DRAIN_S)
        )

    def _sets_due(self, now_s: float) -> bool:
        """Whether the oldest set that is still owed is of age, or the head is half full."""
        entries = self._head.entries
        return bool(entries) and (
            now_s - entries[0].appended_s >= self.settings.commit_every_s
            or self._head.size_bytes >= self._head.max_bytes // 2
        )

    def _arm(self) -> None:
        """Look again when the oldest set in the head comes of age."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        wait_s = self.settings.commit_every_s or 1.0
        entries = self._head.entries
        if self._failure:
            wait_s = _RETRY_S
        elif entries:
            wait_s -= max(0.0, self._clock.monotonic_s() - entries[0].appended_s)
        self._timer = self._loop.call_later(max(wait_s, 0.05), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._look_at_clock()
        if self._failure or self._due(self._clock.monotonic_s()):
            self._start_commit()
        else:
            self._arm()

    def _start_commit(self) -> None:
        if self._committing is not None:
            self._again = True
        elif not self._closed:
            self._committing = self._loop.create_task(self._commit_loop(), name="log-commit")

    async def _commit_loop(self) -> None:
        try:
            while True:
                self._again = False
                now_s = self._clock.monotonic_s()
                # young sets stay in memory: most are settled before they are of age, and never written
                await self._commit(sets=self._sets_due(now_s), housekeeping=now_s >= self._housekeeping_at_s)
                if not self._again or self._failure or self._closed:
                    return
        finally:
            self._committing = None
            self._make_room()
            self._arm()

    async def commit(self) -> None:
        """Write everything that is owed, now. For stop and tests; ordinarily age and size decide.

        Raises:
            LogError: the card refused; the sets stay in the head.
        """
        while self._committing is not None:
            await asyncio.shield(self._committing)
        await self._commit(sets=True, housekeeping=True)
        if self._failure:
            raise LogError(self._failure)

    async def _commit(self, *, sets: bool = True, housekeeping: bool = False) -> None:
        async with self._one_at_a_time:
            await self._commit_now(sets=sets, housekeeping=housekeeping)

    async def _commit_now(self, *, sets: bool, housekeeping: bool) -> None:
        if self._store is None:
            await self._open_file()
            if self._store is None:
                self._use_boots(self._pending.boots)  # the cities must not wait for the card
                self._attempted()
                return
        # driver state never goes before its set: a source that sends again what was not durable would be refused it
        entries = list(self._head.entries) if sets or self._pending.states else []
        pending, self._pending = self._pending, _Pending()
        batch = self._batch(entries, pending, housekeeping)
        cursors = {name: lane.cursor for name, lane in self._lanes.items()}
        retention = Retention(self.settings.max_age_s, self.settings.keep_s, cursors)
        try:
            done = await self._job(lambda store: store.commit(batch, retention))
        except (LogError, OSError) as error:
            self._take_back(pending)
            self._fail(error)
            self._use_boots(pending.boots)  # the cities must not wait for the card
            self._attempted()
            return
        if self._failure:
            _events.info("log_writes_again", path=str(self.settings.path))
        self._failure = ""
        self._commits += 1
        self._size_bytes = done.size_bytes
        self._drained_since_s = self._clock.monotonic_s() - _DRAIN_S if done.more else None
        self._again |= done.more
        if housekeeping:
            self._housekeeping_at_s = self._clock.monotonic_s() + _HOUSEKEEPING_S
        await self._stored(entries, done)
        self._use_boots(pending.boots)
        self._attempted()

    def _attempted(self) -> None:
        """A commit has ended, well or not."""
        attempt, self._attempt = self._attempt, self._loop.create_future()
        attempt.set_result(None)

    def _batch(self, entries: Sequence[Entry], pending: _Pending, housekeeping: bool) -> Batch:
        now_s, now_us = self._clock.monotonic_s(), microseconds(self._clock.now())
        batch = Batch(
            entries=entries,
            series=pending.series,
            cursors={name: self._cursors[name] for name in pending.cursors if name in self._cursors},
            forget=pending.forget,
            states=pending.states,
            boots=pending.boots,
            gaps=pending.gaps,
            settled=self._settled(),
            prune=self.settings.keep_s == 0,
            now_us=now_us,
        )
        if housekeeping:
            self.last_values.confirm(self._future())
            self.statistics.turn(now_us // HOUR_US, now_s)
            batch.last_values = self.last_values.saved()
            batch.statistics = self.statistics.to_save()
            batch.statistics_from = (now_us - int(self.settings.max_age_s * 1e6)) // HOUR_US
            batch.up_us = int(now_s * 1e6)
        return batch

    async def _stored(self, entries: list[Entry], done: Committed) -> None:
        if entries:
            last = entries[-1].seq
            for lane in self._lanes.values():
                owed = [entry for entry in entries if entry.seq > lane.cursor]
                if owed and not lane.stored:
                    lane.oldest_us = microseconds(owed[0].readings[0].observed_at)
                lane.stored += sum(len(entry.readings) for entry in owed)
            self._stored_last = self._durable_upto = last
            self._head.drop(last)
            self._make_room()
            self._resolve_receipts()
        if done.gaps:
            self._note_gaps(done.gaps)
            with contextlib.suppress(LogError):
                await self._recount()
        elif (
            self._dropping and not self._failure and self._clock.monotonic_s() - self._dropped_s >= _KEEPS_AGAIN_AFTER_S
        ):
            self._dropping = ""
            _events.info("log_keeps_everything_again", path=str(self.settings.path))

    def _note_gaps(self, gaps: Sequence[Gap]) -> None:
        self._gaps += gaps
        del self._gaps[:-1000]
        reason = gaps[-1].reason
        self._dropped_s = self._clock.monotonic_s()
        if reason != self._dropping:
            self._dropping = reason
            self._bad_since = self._clock.now()
            _events.warning("log_drops_the_oldest", path=str(self.settings.path), reason=reason)

    def _take_back(self, pending: _Pending) -> None:
        """A commit failed: what it carried is for the next one."""
        newer, self._pending = self._pending, pending
        self._pending.series.update(newer.series)
        self._pending.cursors |= newer.cursors
        self._pending.forget += newer.forget
        self._pending.states.update(newer.states)
        self._pending.boots += newer.boots
        self._pending.gaps += newer.gaps

    def _fail(self, error: Exception) -> None:
        self._failed_s = self._clock.monotonic_s()
        if not self._failure:
            self._bad_since = self._clock.now()
            _events.error("log_write_failed", path=str(self.settings.path), error=str(error))
        self._failure = f"{self.settings.path} cannot be written: {error}"

    def _make_room(self) -> None:
        if not self._room.done() and (not self._head.full or self._failure):
            self._room.set_result(None)
        if self._room.done():
            self._room = self._loop.create_future()

    def _when_durable(self, seq: int) -> Awaitable[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if seq <= self._durable_upto or seq <= self._settled():
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

    # Showing

    @property
    def gaps(self) -> Sequence[Gap]:
        """What was given up, oldest first; the newest thousand."""
        return self._gaps

    def status(self) -> dict[str, Any]:
        """What `status`, page and metrics show of the log."""
        state, reason, remedy = self._state()
        return {
            "state": state,
            "reason": reason,
            "remedy": remedy,
            "since": None if state == "ok" else self._bad_since,
            "path": str(self.settings.path),
            "size_bytes": self._size_bytes,
            "max_size_bytes": self.settings.max_size_bytes,
            "head_readings": self._head.readings,
            "head_bytes": self._head.size_bytes,
            "appended": self._appended,
            "commits": self._commits,
            "series": len(self.series),
            "gaps": len(self._gaps),
            "dropped": sum(gap.readings for gap in self._gaps),
            "salvaged": str(self._salvaged) if self._salvaged else "",
            "time_confirmed": self.boots.confirmed,
            "consumers": {name: self._consumer_status(name) for name in self._lanes},
            "removed_consumers": sorted(set(self._cursors) - set(self._lanes)),
            "writer_busy_s": round(self._writer.busy_s(), 3),
        }

    def _consumer_status(self, name: str) -> dict[str, Any]:
        backlog, oldest_at = self.backlog(name)
        oldest = oldest_at and oldest_at.isoformat().replace("+00:00", "Z")
        return {"backlog": backlog, "oldest_unsent_at": oldest}

    def _state(self) -> tuple[str, str, str]:
        if self._failure:
            return "bad", self._failure, "free space, or check and replace the card; the newest readings are in memory"
        if self._dropping:
            return (
                "bad",
                f"gives up the oldest readings ({self._dropping})",
                "reach the brokers, or raise buffer.max_size",
            )
        if self._salvaged:
            return "bad", str(self._salvaged), "check the card; delete the old file when it is no longer needed"
        if not self.boots.confirmed and self.settings.unconfirmed == "hold":
            return "bad", "the clock is not confirmed: readings are held back", "connect a time source"
        return "ok", "", ""

    async def close(self) -> None:
        """Commit everything, close the file, let the next daemon in.

        Raises:
            LogError: the last commit was refused; what was not written is lost with this process.
        """
        if self._closed:
            return
        self._closed = True  # no commit starts by itself from here on: it would meet a closed file
        try:
            await self.commit()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for _, future in self._receipts:
                future.cancel()
            if self._store is not None:
                with contextlib.suppress(sqlite3.Error):
                    await self._writer.submit(self._store.close)
            await self._writer.close()
            if self._lock >= 0:
                os.close(self._lock)


def _owed(store: Store, after: int) -> tuple[int, int | None]:
    return store.owed(after)


def _joined(one: Gap, two: Gap) -> Gap:
    owed = {name: one.owed.get(name, 0) + two.owed.get(name, 0) for name in {**one.owed, **two.owed}}
    return Gap(two.at_us, one.from_us, two.to_us, one.readings + two.readings, one.reason, owed)


def _load(store: Store, boot_name: str, at: datetime) -> Loaded:
    try:
        return store.load(boot_name, microseconds(at))
    except BaseException:
        store.close()
        raise


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


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
