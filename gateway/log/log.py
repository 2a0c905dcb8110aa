"""The log: append, read, settle. The truth of the gateway; what is behind it are consumers, each with its own cursor."""

import asyncio
import contextlib
import fcntl
import os
import secrets
import sqlite3
import stat
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import structlog

from gateway.claims import AHEAD, BACK, FOREVER, Claim
from gateway.clock import BoxClock, Source
from gateway.log import isolate
from gateway.log.adopt import adopt, waiting
from gateway.log.boots import STEP_US, Boot, Boots
from gateway.log.head import Head
from gateway.log.held import DROPPED, PURGED, Held
from gateway.log.isolate import Unwritable
from gateway.log.last_values import LastValues
from gateway.log.owed import Owed, Takes
from gateway.log.refusal import KEPT, Gone, NotOurs, Refusal, is_damage, of_the_file, refusal
from gateway.log.retention import Retention
from gateway.log.salvage import Report, finish, put_aside, rescue, salvage
from gateway.log.segment import LAST_VALUES, Entry, Stamp, entries_of, microseconds, put_entries, wall_time
from gateway.log.segment import Columns as Columns
from gateway.log.segment import Series as Series
from gateway.log.segment import TimeState as TimeState
from gateway.log.stats import HOUR_US, Statistics
from gateway.log.store import Batch, Committed, Connection, Gap, HeldRow, Loaded, Store
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
_FUTURE: Final = AHEAD
_WEAK: Final = int(Source.RTC)  # up to this rank what the clock says may still turn out quite wrong
_UNCONFIRMED: Final = "the clock is not confirmed: readings are held back"
_STEP_GRACE_S: Final = 600.0  # how long after a step a reading may still carry a time of before
_STATE_BYTES: Final = 4096  # of one value; what is longer would wear the card with every uplink
_STATE_KEYS: Final = 1000  # of one device
_GIVEN_UP_KEPT: Final = 1000  # stretches of numbers, for receipts that ask later
_SLOWEST_FADES: Final = 0.95  # how much of the slowest commit is remembered from one to the next
_HEADROOM: Final = 1.5  # a commit may take that much longer than the slowest so far
_COUNT_READINGS: Final = 5000  # of what an earlier run left, between two commits
_COUNT_PAUSE_S: Final = 0.01
_COUNTED_READINGS: Final = 5_000_000  # a longer backlog is shown with all readings in it
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
        leave_foreign: a file that is no log of ours is left where it is, for a command that only looks.
    """

    path: Path
    commit_every_s: float = 15.0
    max_size_bytes: int = 1_000_000_000
    max_age_s: float = 90 * 86_400.0
    keep_s: float = 0.0
    unconfirmed: Literal["hold", "mark"] = "hold"
    head_bytes: int = 8 * 2**20
    leave_foreign: bool = False


@dataclass(frozen=True, slots=True)
class Consumer:
    """Someone who reads the log to its end and settles what is done; every consumer sees every set.

    Attributes:
        start: where one begins that the file does not know.
        was: name it had before; takes over that cursor.
        takes: whether it is to be sent a point of a device; None: everything counts as owed.
    """

    name: str
    start: Literal["oldest", "now"] | datetime = "oldest"
    was: str = ""
    takes: Takes | None = None


@dataclass(slots=True)
class _Lane:
    """Where a consumer stands.

    Attributes:
        cursor: all up to here is settled.
        empty_upto: nothing is stored between the cursor and here.
        stored: readings owed that are in the file.
        oldest_us: time of the oldest of those, as far as known.
        held_back: the next set waits for its time to be confirmed, since this time epoch.
        owed: what it is to be sent of that; None while what an earlier run left is not counted yet.
    """

    consumer: Consumer
    cursor: int
    empty_upto: int = 0
    stored: int = 0
    oldest_us: int | None = None
    held_back: int = -1
    owed: Owed | None = None


class SetReceipt:
    """Receipt of one appended set; see `gateway.sdk.driver.Receipt`."""

    __slots__ = ("_log", "_number")

    def __init__(self, log: "Log", number: int) -> None:
        self._log = log
        self._number = number  # within this run: the sequence number changes when the file is opened late

    @property
    def durable(self) -> Awaitable[None]:
        """Resolves when committed or settled by all; `LogError` when the set had to be given up before."""
        return self._log._when_durable(self._log.first_seq + self._number)


class Names(dict[int, Series]):
    """Series by number. One whose name was lost with a damaged record has none: nobody takes it, nobody stumbles over it."""

    def __missing__(self, number: int) -> Series:
        return Series(number, "", "")


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
        self.series: dict[int, Series] = Names()
        self.boots = Boots([_NO_BOOT], _NO_BOOT.id)
        self.last_values = LastValues(self.series, self.boots)
        self.held = Held(self._job, lambda: self._stamp, self._note_gaps)
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
        self._looking: asyncio.Task[None] | None = None
        self._housekeeping_at_s = now_s + _HOUSEKEEPING_S
        self._drained_since_s: float | None = None
        self._arrival = self._loop.create_future()
        self._room = self._loop.create_future()
        self._receipts: list[tuple[int, asyncio.Future[None]]] = []
        self._counting: set[asyncio.Task[None]] = set()
        self._failure = ""
        self._remedy = ""
        self._adopting: asyncio.Task[None] | None = None
        self._not_adopted = ""
        self._unkept = ""  # what of the housekeeping cannot be made
        self._in_doubt = False  # whether a commit that failed may have been written after all
        self._slowest_s = 0.0  # a commit, of late
        self._look_at_s = 0.0  # when the timer fires, or a set that comes later does its work
        self._recount_due = False
        self._given_up: deque[tuple[int, int, str]] = deque(maxlen=_GIVEN_UP_KEPT)  # first, last number, why
        self._unwritable = ""
        self._bad_since = clock.now()
        self._opened_s = now_s
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
        is tried again. A damaged file is set aside and what is sound in it is taken over; a file that is no log of ours,
        or that of a newer citygate, is set aside as it is.

        Args:
            connect: opens the database, for tests.

        Raises:
            LogError: another daemon has the file.
        """
        settings = replace(settings, path=_real(settings.path))
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
        log._adopting = log._loop.create_task(log._adopt(), name="log-adopt")
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
        except Refusal as error:
            self._fail(error)
            return
        self._store = store
        try:
            await self._take_over(loaded, report)
        except Exception as error:  # noqa: BLE001  told in status, tried again: the box goes on without the file
            self._store = None
            with contextlib.suppress(Exception):
                await self._writer.submit(store.close)
            self._fail(error)

    def _open_store(self, boot_name: str, at: datetime) -> tuple[Store, Loaded, Report | None]:
        """In the writer thread: open, after salvage when the file is damaged, anew when it is not ours.

        Raises:
            Refusal: it cannot be opened now.
            LogError: another daemon has it.
        """
        path = self.settings.path
        if self._lock < 0:
            self._lock = _lock(path)
        try:
            finish(path)
            _must_be_a_file(path)
            return self._open_or_replace(boot_name, at)
        except Exception as error:
            raise error if isinstance(error, Refusal) else refusal(error, path) from error

    def _open_or_replace(self, boot_name: str, at: datetime) -> tuple[Store, Loaded, Report | None]:
        path, size = self.settings.path, self.settings.max_size_bytes
        try:
            store = Store(path, size, self._connect)
            return store, _load(store, boot_name, at), None
        except NotOurs as error:
            report = self._put_aside(error, at)
        except Exception as error:
            if of_the_file(error) and not is_damage(error):
                raise
            try:  # rows that cannot be understood are as good as damaged
                report = salvage(path, size, at)
            except NotOurs as other:
                report = self._put_aside(other, at)
        store = Store(path, size, self._connect)
        return store, _load(store, boot_name, at), report

    def _put_aside(self, error: NotOurs, at: datetime) -> Report:
        if self.settings.leave_foreign:
            raise Refusal(str(error), "the daemon sets it aside at its next start")
        return put_aside(self.settings.path, error, at)

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
        # a file that was open before and could not be used for a while: memory knows better how far everybody is
        mine = dict(self._cursors) if self.first_seq else {}
        self._pending.boots = []  # of before the file told how boots are numbered
        self._renumber(loaded.start << 32, self._take_series(loaded))
        self._take_last_values(loaded, late=late)
        self.held.take(loaded.held)
        self.statistics.load(loaded.statistics)
        for (device, key), value in loaded.states.items():
            self._states.setdefault(device, {}).setdefault(key, value)
        self._gaps = loaded.gaps
        self._cursors = {name: max(seq, mine.get(name, 0)) for name, seq in {**mine, **loaded.cursors}.items()}
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
        for header, columns in loaded.last_values:
            entries = entries_of(columns, header.stamp, points)
            self.last_values.restore(entries, header.sealed_us, saved=header.kind == LAST_VALUES)
        if late:
            self.last_values.unchanged()
        for entry in self._head.entries:
            self.last_values.note(entry, self._future())

    def _renumber(self, first_seq: int, series: Mapping[int, int]) -> None:
        """Numbers given before the file could be read were provisional, below all that a file can hold."""
        more = first_seq - self.first_seq
        self._given_up = deque(((a + more, b + more, why) for a, b, why in self._given_up), self._given_up.maxlen)
        if self._before_step is not None:
            old, stepped_s = self._before_step
            self._before_step = replace(old, boot=self.boots.current), stepped_s
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
            lane.owed = None

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
        lane.empty_upto = 0
        self._pending.cursors.add(consumer.name)
        lane.stored, lane.oldest_us = await self._job(lambda store: store.owed(cursor))
        self._count_anew(lane)
        if not lane.stored:
            lane.cursor = max(lane.cursor, sent_upto)

    async def set_consumers(self, consumers: Sequence[Consumer]) -> None:
        """The config has changed: who reads from now on. One that is gone holds nothing back and keeps its cursor."""
        now, before = self._next_seq - 1, self._lanes
        lanes = {consumer.name: before.get(consumer.name) or _Lane(consumer, 0) for consumer in consumers}
        # from here on nothing that is in memory now is forgotten before a new one has its place
        self._lanes = {**before, **lanes}
        for consumer in consumers:
            lane = lanes[consumer.name]
            if lane.consumer.takes is not consumer.takes:
                lane.owed = None
            lane.consumer = consumer
            if consumer.name not in before and self._store is not None:
                try:
                    await self._join(lane, now)
                except LogError:  # told in status; rather too much for it than too little
                    lane.cursor = self._cursors.setdefault(consumer.name, 0)
                    self._pending.cursors.add(consumer.name)
                    self._recount_due = True
        self._lanes = lanes
        for lane in lanes.values():
            if lane.owed is None:
                self._count_anew(lane)
        self._settled_by_all()
        self._wake()
        self._start_commit()

    def _count_anew(self, lane: _Lane) -> None:
        """Count what a consumer is to be sent: beside the work, for what an earlier run left may be much."""
        if lane.consumer.takes is None:
            return
        lane.owed = None
        task = self._loop.create_task(self._count(lane, Owed(lane.consumer.takes, self.series)))
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    async def _count(self, lane: _Lane, owed: Owed) -> None:
        after, left = lane.cursor, _COUNTED_READINGS
        with contextlib.suppress(LogError):  # shown elsewhere
            while after < self._stored_last and left > 0:
                place = max(after, lane.cursor)
                columns = await self._job(partial(_stretch, after=place))
                if columns is None:
                    break
                owed.columns(columns)
                after, left = columns.last, left - len(columns.seq)
                await asyncio.sleep(_COUNT_PAUSE_S)
        if left > 0:
            lane.owed = owed

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
        return await self._writer.submit(lambda: self._run(work))

    def _run(self, work: Callable[[Store], T]) -> T:
        """In the writer thread."""
        try:
            store = self._store
            if store is None:
                raise LogError(self._failure or f"{self.settings.path} is not open")
            try:
                return work(store)
            except Exception as error:
                if not isinstance(error, Gone) and not is_damage(error):
                    raise
                return work(self._renewed(store, error))
        except LogError:
            raise
        except Exception as error:
            raise refusal(error, self.settings.path) from error

    def _renewed(self, store: Store, error: Exception) -> Store:
        """In the writer thread: what can be saved of a file that is damaged, or gone from its path, in a new one."""
        path, size, at = self.settings.path, self.settings.max_size_bytes, self._clock.now()
        try:
            if isinstance(error, Gone):
                self._lock_again()
                report = rescue(store, path, str(error), at)
            else:
                with contextlib.suppress(sqlite3.Error):
                    store.close()
                report = salvage(path, size, at)
            fresh = Store(path, size, self._connect)
            _load(fresh, self._boot_name, at)
        except BaseException:
            if store.closed:
                self._store = None  # the next commit opens the file anew
            raise
        fresh.boots, fresh.now_us = self.boots, self._trusted_now_us
        self._store = fresh
        # not by the result of the job: whoever waits for that may be cancelled
        self._loop.call_soon_threadsafe(self._made_anew, report, fresh.gaps(), fresh.held_rows())
        return fresh

    def _lock_again(self) -> None:
        """Whoever deleted the lock, alone or with the file, has let another daemon in: it may have it by now."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"{self.settings.path}.lock"), os.fstat(self._lock)):
                return
        lock = _lock(self.settings.path)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = lock

    def _made_anew(self, report: Report, gaps: list[Gap], held: list[HeldRow]) -> None:
        """The file was made anew while running: what memory knows better goes into it with the next commit."""
        pending = self._pending
        pending.series.update((s.id, (s.device, s.point)) for s in self.series.values())
        pending.cursors.update(self._cursors)
        pending.boots += self.boots.rows()
        for device, state in self._states.items():
            for key, value in state.items():
                pending.states[device, key] = value
        self._gaps = gaps
        self.held.take(held)
        self._note_salvage(report)
        if report.all_lost:
            owed = {name: lane.stored for name, lane in self._lanes.items()}
            gap = Gap(microseconds(self._clock.now()), None, None, max(owed.values(), default=0), "damage", owed)
            pending.gaps.append(gap)
            self._gaps.append(gap)
        self._recount_due = True
        self._housekeeping_at_s = self._clock.monotonic_s()
        self._start_commit()

    async def _adopt(self) -> None:
        """Logs that an older citygate had to set aside."""
        if self.settings.leave_foreign:
            return
        for file in await self._writer.submit(lambda: waiting(self.settings.path)):
            try:
                await adopt(file, self, self._writer.submit, self._boot_name, self._clock.now())
            except Exception as error:  # noqa: BLE001  it stays, and is tried again at the next start
                self._not_adopted = f"{file} could not be taken over: {error}"
                self._bad_since = self._clock.now()
                _events.error("log_not_adopted", path=str(file), error=str(error))
            else:
                _events.info("log_adopted", path=str(file))

    def has_state(self, device: str, key: str) -> bool:
        """Whether a driver state is known."""
        return key in self._states.get(device, {})

    def number_of(self, device: str, point: str) -> int:
        """The series of a point, made when it is new."""
        return self._series_of(device, point)

    def _note_salvage(self, report: Report) -> None:
        self._salvaged = report
        self._bad_since = self._clock.now()
        _events.error("log_salvaged", path=str(self.settings.path), report=str(report))

    async def _recount(self) -> None:
        self._recount_due = False
        for lane in tuple(self._lanes.values()):
            cursor = lane.cursor
            lane.stored, lane.oldest_us = await self._job(partial(_owed, after=cursor))
            if lane.owed is not None:
                lane.owed.at_most(lane.stored + self._head.count(max(cursor, self._stored_last), self._next_seq))

    # Appending

    async def append(
        self, readings: ReadingSet, *, device_back: timedelta = BACK, received_s: float | None = None
    ) -> SetReceipt:
        """Put a set into the head; waits only while the head is full, or for the card when `commit_every_s` is 0.

        Args:
            device_back: how old a time of the device may be when it comes.
            received_s: monotonic time at which a set came whose claimed times still have to be judged; None: they were,
                as far as the clock is known.
        """
        head = self._head
        while head.full:
            await self._wait_for_room()
        if self._closed:
            raise LogError(f"{self.settings.path} is closed: the set was not taken")
        if readings.state:
            self._note_state(readings.device, readings.state)
        items = readings.readings
        if not items:
            return self._receipt(self._next_seq - 1)  # as durable as all before it: a repeat waits for the first
        seq = self._next_seq
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        series: tuple[int, ...] = ()
        try:  # all that the set itself can spoil comes before it is in the head
            ids = self._ids.get(readings.device)
            try:
                series = tuple([ids[reading.point] for reading in items])  # type: ignore[index]  # None: a new device
            except (KeyError, TypeError):
                series = self._new_series(readings)
            stamp = self._stamp_of(items[0], now, now_s)
            size_bytes = _READING_BYTES * len(items)
            for reading in items:
                if isinstance(reading.value, str):
                    size_bytes += 2 * len(reading.value)
            claim = None
            if stamp.source <= _WEAK or received_s is not None:  # nobody knows, or by a coin cell: judged again later
                claim = self._claim(items, stamp, device_back, now_s if received_s is None else received_s)
            entry = Entry(seq, series, items, stamp, now_s, size_bytes, claim)
            late = now - items[0].observed_at
            bad = self.last_values.note(entry, now + _FUTURE if stamp.source > 1 else None)
            self.statistics.note(series, (late.days * 86_400 + late.seconds) * 1_000_000 + late.microseconds, bad)
        except Exception as error:  # noqa: BLE001  counted and told; the next set is another one
            return self._spoilt(readings, series, error)
        self._next_seq = seq + 1
        head.append(entry)
        self._appended += len(items)
        if not self._arrival.done():
            self._arrival.set_result(None)
        if self.settings.commit_every_s == 0:
            await self._written(seq)
        elif now_s >= self._look_at_s or head.size_bytes >= head.max_bytes // 2:
            if self._due(now_s):
                self._start_commit()
            else:
                self._arm()
        return self._receipt(seq)

    def _receipt(self, seq: int) -> SetReceipt:
        return SetReceipt(self, seq - self.first_seq)

    def _spoilt(self, readings: ReadingSet, series: tuple[int, ...], error: Exception) -> SetReceipt:
        """A set that is none: it is not taken, and counted."""
        device = readings.device if isinstance(readings.device, str) else repr(readings.device)[:100]
        self.last_values.forget(series)
        seq = self._next_seq
        self._next_seq = seq + 1
        self._given_up.append((seq, seq, f"{type(error).__name__}: {error}"))
        try:
            count = len(readings.readings)
        except TypeError:
            count = 0
        now_us = microseconds(self._clock.now())
        gap = Gap(now_us, now_us, now_us, count, isolate.REASON, dict.fromkeys(self._lanes, count))
        self._count_later(gap)
        self._note_unwritable(f"a set of {device}: {type(error).__name__}: {error}")
        return self._receipt(seq)

    def _count_later(self, gap: Gap) -> None:
        """A gap record for the next commit."""
        newest = self._pending.gaps[-1] if self._pending.gaps else None
        if newest is not None and newest.reason == gap.reason:
            self._pending.gaps[-1] = _joined(newest, gap)
        else:
            self._pending.gaps.append(gap)
        self._note_gaps([gap])

    def _note_unwritable(self, what: str) -> None:
        if what != self._unwritable:
            _events.error("log_unwritable", path=str(self.settings.path), what=what)
        if not self._unwritable:
            self._bad_since = self._clock.now()
        self._unwritable = what
        self._dropped_s = self._clock.monotonic_s()

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
        if not entries:
            return
        self._owe_no_more(entries[0].seq, entries[-1].seq)
        gap = isolate.lost(list(entries), microseconds(self._clock.now()), self._places())
        self._count_later(replace(gap, reason="memory"))
        self._fail_receipts(entries[0].seq, entries[-1].seq, "refused the set and memory is full")

    def _owe_no_more(self, first: int, last: int) -> None:
        for lane in self._lanes.values():
            if lane.owed is not None:
                lane.owed.given_up(first, last)

    def _places(self) -> dict[str, int]:
        """Consumer -> settled up to."""
        return {name: lane.cursor for name, lane in self._lanes.items()}

    def _fail_receipts(self, first: int, last: int, why: str) -> None:
        self._given_up.append((first, last, why))
        waiting = []
        for seq, future in self._receipts:
            if not first <= seq <= last:
                waiting.append((seq, future))
            elif not future.done():
                self._refuse_receipt(future, why)
        self._receipts = waiting

    def _refuse_receipt(self, future: "asyncio.Future[None]", why: str) -> None:
        future.set_exception(LogError(f"{self.settings.path} {why}"))
        future.exception()  # whoever awaits it gets it; nobody has to

    def _claim(
        self, readings: Sequence[Reading], stamp: Stamp, device_back: timedelta, received_s: float
    ) -> Claim | None:
        """How the claimed times of a set are judged once the time is known; None when it has none."""
        if all(reading.time_source is TimeSource.GATEWAY for reading in readings):
            return None
        received_us = int(received_s * 1e6) + stamp.offset_us
        network_s = min(int(self.settings.max_age_s), int(FOREVER.total_seconds()))
        return Claim(received_us, int(device_back.total_seconds()), network_s)

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
        known = self._states.setdefault(device, {})
        if not self._pending.states:
            self._pending.states_since_s = self._clock.monotonic_s()
        for key, value in state.items():
            wrong = _wrong_state(key, value) or (
                "too many keys" if key not in known and len(known) >= _STATE_KEYS else ""
            )
            if wrong:
                self._note_unwritable(f"driver state of {device}: {wrong}")
                continue
            known[key] = value
            self._pending.states[device, key] = value

    def note_unreported(self, device: str, reading: Reading, *, device_back: timedelta = BACK) -> None:
        """A reading that thinning keeps from the log: page and status show it."""
        claim = None
        if self._stamp.source <= _WEAK:
            claim = self._claim((reading,), self._stamp, device_back, self._clock.monotonic_s())
        series = self._series_of(device, reading.point)
        self.last_values.note_unreported(series, reading, self._stamp, claim, self._future())

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

    @property
    def clock_confirmed(self) -> bool:
        """Whether somebody vouches for the present time."""
        return self._source() > 1

    def before_step(self) -> datetime | None:
        """What the clock would show now that was set a moment ago; None when it was not."""
        self._look_at_clock()
        if self._before_step is None:
            return None
        return wall_time(int(self._clock.monotonic_s() * 1e6) + self._before_step[0].offset_us)

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
        self._wake()
        self.last_values.confirm(self._future())

    def _trusted_now_us(self) -> int | None:
        return microseconds(self._clock.now()) if self.clock_confirmed else None

    def _future(self) -> datetime | None:
        return self._clock.now() + _FUTURE if self.clock_confirmed else None

    # Reading and settling

    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> Columns | None:
        """Sets after the consumer's cursor, or after a number; about `max_readings`, whole sets. None at the tail.

        Raises:
            LogError: the file cannot be read now.
        """
        lane = self._lanes[consumer]
        after = max(lane.cursor, lane.empty_upto, after or 0)  # a place from before the file was open is none of it
        hold = self.settings.unconfirmed == "hold"
        # what a job tells holds for the moment of the job: a commit meanwhile may have moved sets from the head to the file
        while after < (stored_last := self._stored_last):
            place, epoch = after, self._time_epoch
            columns = await self._job(partial(_read, after=place, max_readings=max_readings, hold=hold))
            if columns is None:
                lane.empty_upto = max(lane.empty_upto, stored_last)
                after = stored_last
            elif columns.seq:
                if place == lane.cursor:
                    lane.oldest_us = min(columns.time_us)
                return columns
            else:
                lane.held_back = epoch  # of before the job: what was learned during it wakes whoever waits
                return None
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
        place = after
        while place < (stored_last := self._stored_last):
            columns = await self._job(lambda store: store.read(after, max_readings))
            if columns is not None:
                return columns
            place = stored_last
        return self._read_head(_Lane(Consumer(""), place), place, max_readings, hold=False)

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
                self._settled_by_all()
                await self._count_stored(lane)
                return
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
        if lane.owed is not None:
            lane.owed.entries(self._head.entries[self._head.after(lane.cursor) :])
            lane.owed.settled(lane.cursor)
            oldest_us = lane.owed.oldest_us
            return lane.owed.total, None if oldest_us is None else wall_time(oldest_us)
        entries = self._head.entries[self._head.after(max(lane.cursor, self._stored_last)) :]
        in_head = sum(len(entry.readings) for entry in entries)
        if lane.stored and lane.oldest_us is not None:
            return lane.stored + in_head, wall_time(lane.oldest_us)
        if not entries:
            return lane.stored, None
        first = entries[0]
        oldest = wall_time(first.claim.received_us) if first.claim else first.readings[0].observed_at
        return lane.stored + in_head, oldest

    def given_up(self, consumer: str) -> int:
        """Readings that bounds of size, age, memory and of what is held took from a consumer; purged ones not."""
        return sum(gap.owed.get(consumer, 0) for gap in self._gaps if gap.reason != PURGED)

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
            now_s - entries[0].appended_s >= self._window_s or self._head.size_bytes >= self._head.max_bytes // 2
        )

    @property
    def _window_s(self) -> float:
        """How old a set may be when its commit begins: it has to end within `commit_every`."""
        every_s = self.settings.commit_every_s
        return every_s - min(_HEADROOM * self._slowest_s, every_s / 2)

    def _arm(self) -> None:
        """Look again when the oldest set in the head comes of age."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        wait_s = self._window_s or 1.0
        entries = self._head.entries
        if self._failure:
            wait_s = _RETRY_S
        elif entries:
            wait_s -= max(0.0, self._clock.monotonic_s() - entries[0].appended_s)
        wait_s = max(wait_s, 0.001)
        self._look_at_s = self._clock.monotonic_s() + wait_s
        self._timer = self._loop.call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._look_at_s = None, 0.0
        self._look_at_clock()
        if self._failure or self._due(self._clock.monotonic_s()):
            self._start_commit()
        else:
            self._looking = self._loop.create_task(self._look_after_file(), name="log-look")

    async def _look_after_file(self) -> None:
        """While the card rests nothing is written for an hour: a file taken away in that time is noticed all the same."""
        try:
            async with self._one_at_a_time:
                if self._store is not None and not self._closed:
                    await self._job(self._still_there)
        except Exception as error:  # noqa: BLE001  told, and tried again as a commit that failed
            self._fail(error)
        finally:
            self._arm()

    def _still_there(self, store: Store) -> None:
        """In the writer thread.

        Raises:
            Gone: what lies at the path is not the open file any more.
            LogError: another daemon took the lock after somebody had deleted it.
        """
        if gone := store.gone():
            raise Gone(gone)
        if self._lock >= 0:
            self._lock_again()

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
        # whoever waits here may be cancelled; what was begun is ended
        await asyncio.shield(self._loop.create_task(self._commit(housekeeping=True), name="log-commit-all"))
        if self._failure:
            raise LogError(self._failure)

    async def _commit(self, *, sets: bool = True, housekeeping: bool = False) -> None:
        async with self._one_at_a_time:
            await self._commit_now(sets=sets, housekeeping=housekeeping)

    async def _commit_now(self, *, sets: bool, housekeeping: bool) -> None:
        """Never raises but when cancelled: what went wrong is put back, shown in status, and tried again."""
        begun_s = self._clock.monotonic_s()
        try:
            if self._store is None:
                await self._open_file()  # ends with a commit of its own
                if self._store is None:
                    self._use_boots(self._pending.boots)  # the cities must not wait for the card
            elif await self._commit_once(sets=sets, housekeeping=housekeeping):
                self._worked(begun_s)
        except Exception as error:  # noqa: BLE001  the file is of use again when its cause is gone; until then it is told
            self._fail(error)
        finally:
            self._attempted()

    async def _commit_once(self, *, sets: bool, housekeeping: bool) -> bool:
        """Whether all that was to be written is."""
        # driver state never goes before its set: a source that sends again what was not durable would be refused it
        entries = list(self._head.entries) if sets or self._pending.states else []
        pending, self._pending = self._pending, _Pending()
        in_doubt, self._in_doubt = self._in_doubt, True
        try:
            done, unwritable = await self._write(entries, pending, housekeeping=housekeeping, in_doubt=in_doubt)
        except BaseException as error:
            self._take_back(pending)
            if not isinstance(error, Exception):
                raise  # cancelled: the writer may still have done it
            self._fail(error)
            self._use_boots(pending.boots)  # the cities must not wait for the card
            return False
        if unwritable is not None:
            self._durable_upto = max(self._durable_upto, *(entry.seq for entry in entries), 0)  # nobody waits for those
            entries = self._set_apart(entries, unwritable)
        self._commits += 1
        self._size_bytes = done.size_bytes
        self._drained_since_s = self._clock.monotonic_s() - _DRAIN_S if done.more else None
        self._again |= done.more
        if housekeeping:
            self._housekeeping_at_s = self._clock.monotonic_s() + _HOUSEKEEPING_S
        await self._stored(entries, done)
        self._use_boots(pending.boots)
        self._in_doubt = False
        return True

    async def _write(
        self, entries: list[Entry], pending: _Pending, *, housekeeping: bool, in_doubt: bool
    ) -> tuple[Committed, Unwritable | None]:
        batch = self._batch(entries, pending, housekeeping)
        places = self._places()
        retention = Retention(self.settings.max_age_s, self.settings.keep_s, places)

        def work(store: Store) -> tuple[Committed, Unwritable | None]:
            self._still_there(store)
            return isolate.commit(store, batch, retention, places, in_doubt=in_doubt)

        return await self._job(work)

    def _worked(self, begun_s: float) -> None:
        took_s = self._clock.monotonic_s() - begun_s
        self._slowest_s = max(took_s, _SLOWEST_FADES * self._slowest_s)
        if self._failure:
            _events.info("log_writes_again", path=str(self.settings.path))
        self._failure = self._remedy = ""

    def _set_apart(self, entries: list[Entry], found: Unwritable) -> list[Entry]:
        """What cannot be written is forgotten, and told; returns the sets that were written."""
        self._note_unwritable(str(found))
        gone = {entry.seq for entry in found.entries}
        for entry in found.entries:
            self._fail_receipts(entry.seq, entry.seq, f"cannot hold the set: {found}")
            self._owe_no_more(entry.seq, entry.seq)
        self._head.take_out(gone)
        self.last_values.forget(number for e in (*found.entries, *found.last_values) for number in e.series)
        self.statistics.forget(found.statistics)
        for number in found.series:
            lost = self.series.pop(number, None)
            if lost is not None:
                self._ids.get(lost.device, {}).pop(lost.point, None)
        for device, key in found.states:
            self._states.get(device, {}).pop(key, None)
        if found.gap is not None:
            self._note_gaps([found.gap])
        return [entry for entry in entries if entry.seq not in gone]

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
            forget=[name for name in pending.forget if name not in self._cursors],  # one may have come back
            states=pending.states,
            boots=pending.boots,
            gaps=pending.gaps,
            settled=self._settled(),
            prune=self.settings.keep_s == 0,
            now_us=now_us,
        )
        if housekeeping:
            batch.up_us = int(now_s * 1e6)
            try:
                self._keep_house(batch, now_s, now_us)
                self._unkept = ""
            except Exception as error:  # noqa: BLE001  sets and cursors do not wait for it
                self._unkept = f"last values and statistics cannot be saved: {type(error).__name__}: {error}"
                _events.error("log_housekeeping_failed", path=str(self.settings.path), error=self._unkept)
        return batch

    def _keep_house(self, batch: Batch, now_s: float, now_us: int) -> None:
        self.last_values.confirm(self._future())
        self.statistics.turn(now_us // HOUR_US, now_s)
        last_values, statistics = self.last_values.saved(), self.statistics.to_save()
        batch.last_values, batch.statistics = last_values, statistics
        batch.statistics_from = (now_us - int(self.settings.max_age_s * 1e6)) // HOUR_US

    async def _stored(self, entries: list[Entry], done: Committed) -> None:
        if entries:
            last = entries[-1].seq
            self._stored_last = self._durable_upto = last
            self._head.drop(last)
            self._make_room()
            self._resolve_receipts()
            for lane in self._lanes.values():
                owed = [entry for entry in entries if entry.seq > lane.cursor]
                if lane.owed is not None:
                    lane.owed.settled(lane.cursor)
                    lane.owed.entries(owed)
                if owed and not lane.stored:
                    lane.oldest_us = microseconds(owed[0].readings[0].observed_at)
                lane.stored += sum(len(entry.readings) for entry in owed)
        if done.gaps:
            self._note_gaps(done.gaps)
        if done.gaps or self._recount_due:
            with contextlib.suppress(LogError):
                await self._recount()
        elif (
            (self._dropping or self._unwritable)
            and not self._failure
            and self._clock.monotonic_s() - self._dropped_s >= _KEEPS_AGAIN_AFTER_S
        ):
            self._dropping = self._unwritable = ""
            _events.info("log_keeps_everything_again", path=str(self.settings.path))

    def _note_gaps(self, gaps: Sequence[Gap]) -> None:
        self._gaps += gaps
        del self._gaps[:-1000]
        reason = gaps[-1].reason
        if reason == PURGED:  # somebody wanted it
            return
        self._dropped_s = self._clock.monotonic_s()
        if reason != self._dropping:
            self._dropping = reason
            self._bad_since = self._clock.now()
            _events.warning("log_gives_up_readings", path=str(self.settings.path), reason=reason)

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
        if not isinstance(error, Refusal):
            told = isinstance(error, LogError)
            said = str(error) if told else f"{self.settings.path}: {type(error).__name__}: {error}"
            error = Refusal(said, KEPT if told else f"please report it with the journal; {KEPT}")
        if not self._failure:
            self._bad_since = self._clock.now()
            _events.error("log_write_failed", path=str(self.settings.path), error=str(error), remedy=error.remedy)
        self._failure, self._remedy = f"not written: {error}", error.remedy
        self._in_doubt = True

    def _make_room(self) -> None:
        if not self._room.done() and (not self._head.full or self._failure):
            self._room.set_result(None)
        if self._room.done():
            self._room = self._loop.create_future()

    def _when_durable(self, seq: int) -> Awaitable[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        why = next((why for first, last, why in self._given_up if first <= seq <= last), "")
        if why:
            self._refuse_receipt(future, why)
            return future
        if seq <= self._durable_upto or seq <= self._settled():
            future.set_result(None)
            return future
        if self._closed:
            self._refuse_receipt(future, "was closed before the set was written")
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
            "since": None
            if state == "ok"
            else self._unconfirmed_since()
            if reason == _UNCONFIRMED
            else self._bad_since,
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
            "lost": self._lost(),
            "salvaged": str(self._salvaged) if self._salvaged else "",
            "time_confirmed": self.boots.confirmed,
            "consumers": {name: self._consumer_status(name) for name in self._lanes},
            "removed_consumers": sorted(set(self._cursors) - set(self._lanes)),
            "writer_busy_s": round(self._writer.busy_s(), 3),
        }

    def _lost(self) -> dict[str, int]:
        """Readings that were given up, by reason."""
        lost = Counter[str]()
        for gap in self._gaps:
            lost[gap.reason] += gap.readings
        return dict(lost)

    def _consumer_status(self, name: str) -> dict[str, Any]:
        backlog, oldest_at = self.backlog(name)
        oldest = oldest_at and oldest_at.isoformat().replace("+00:00", "Z")
        return {"backlog": backlog, "oldest_unsent_at": oldest}

    def _unconfirmed_since(self) -> datetime:
        """When this log was opened, by what is the time now: the clock of then knew less."""
        return self._clock.now() - timedelta(seconds=self._clock.monotonic_s() - self._opened_s)

    def _state(self) -> tuple[str, str, str]:
        if self._failure:
            return "bad", self._failure, self._remedy
        if self._unkept:
            return "bad", self._unkept, "readings are stored; please report it with the journal"
        if self._unwritable:
            return (
                "bad",
                f"given up, since it cannot be written: {self._unwritable}",
                "a driver hands over what is no reading",
            )
        if self._dropping == DROPPED:
            return (
                "bad",
                "gives up the oldest of what brokers refused: too much is held",
                "see `citygate buffer held list`; correct what is refused, then requeue, or purge",
            )
        if self._dropping:
            return (
                "bad",
                f"gives up the oldest readings ({self._dropping})",
                "reach the brokers, or raise buffer.max_size",
            )
        if self._not_adopted:
            return "bad", self._not_adopted, "it is tried again at the next start"
        if self._salvaged:
            return "bad", str(self._salvaged), self._salvaged.remedy
        if not self.boots.confirmed and self.settings.unconfirmed == "hold":
            return "bad", _UNCONFIRMED, "see the clock: its remedy is this one's"
        return "ok", "", ""

    async def close(self) -> None:
        """Commit everything, close the file, let the next daemon in.

        Raises:
            LogError: the last commit was refused; what was not written is lost with this process.
        """
        if self._closed:
            return
        if self._adopting is not None:
            self._adopting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._adopting
        for task in tuple(self._counting):
            task.cancel()
        await asyncio.gather(*self._counting, return_exceptions=True)
        self._closed = True  # no commit starts by itself from here on: it would meet a closed file
        try:
            await self.commit()  # waits for a look at the file, too
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._fail_receipts(0, self._next_seq, "was closed before the set was written")
            if self._store is not None:
                with contextlib.suppress(Exception):  # it is as after its last commit
                    await self._writer.submit(self._store.close)
            await self._writer.close()
            if self._lock >= 0:
                os.close(self._lock)


def _read(store: Store, after: int, max_readings: int, *, hold: bool) -> Columns | None:
    return store.read(after, max_readings, hold=hold)


def _stretch(store: Store, after: int) -> Columns | None:
    return store.read(after, _COUNT_READINGS)


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


def _wrong_state(key: object, value: object) -> str:
    """Why a driver's state cannot be kept, "" when it can."""
    if not isinstance(key, str) or not isinstance(value, bytes):
        return f"{type(key).__name__} and {type(value).__name__} where text and bytes are meant"
    return f"{len(value)} bytes, at most {_STATE_BYTES} are kept" if len(value) > _STATE_BYTES else ""


def _real(path: Path) -> Path:
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
