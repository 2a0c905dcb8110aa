"""Lanes: one for each consumer, from its cursor to the newest set. Where each stands, what it reads, what it is still owed."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

from gateway.log.file import File
from gateway.log.head import Head
from gateway.log.owed import Owed, Takes
from gateway.log.pending import Pending
from gateway.log.points import Points
from gateway.log.receipts import Receipts
from gateway.log.segment import Columns, Entry, microseconds, put_entries, wall_time
from gateway.log.settings import LogSettings
from gateway.log.stamps import Stamps
from gateway.log.store import Store
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError

_COUNT_READINGS: Final = 5000  # of what an earlier run left, between two commits
_COUNT_PAUSE_S: Final = 0.01
_COUNTED_READINGS: Final = 5_000_000  # a longer backlog is shown with all readings in it


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
class Lane:
    """Where a consumer stands.

    Attributes:
        cursor: all up to here is settled.
        accepted: all up to here was sent, or is settled.
        sure: all up to here the city has: a second fault would be needed to lose it.
        empty_upto: nothing is stored between the cursor and here.
        stored: readings owed that are in the file.
        oldest_us: time of the oldest of those, as far as known.
        held_back: the next set waits for its time to be confirmed, since this time epoch.
        owed: what it is to be sent of that; None while what an earlier run left is not counted yet.
    """

    consumer: Consumer
    cursor: int
    accepted: int = 0
    sure: int = 0
    empty_upto: int = 0
    stored: int = 0
    oldest_us: int | None = None
    held_back: int = -1
    owed: Owed | None = None


class Lanes:
    """All consumers of the log.

    Attributes:
        cursors: of all that the file knows, removed ones too.
        arrival: resolves when there may be something to read; a new one is made by whoever waits.
        counting: tasks that count what an earlier run left.
        drained_since_s: when a cursor first moved over stored segments that are not pruned yet.
        recount_due: what is owed is no longer what was counted.
    """

    def __init__(
        self,
        settings: LogSettings,
        clock: Clock,
        *,
        file: File,
        head: Head,
        stamps: Stamps,
        points: Points,
        pending: Pending,
        receipts: Receipts,
    ) -> None:
        self.cursors: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self.arrival = self._loop.create_future()
        self.counting: set[asyncio.Task[None]] = set()
        self.drained_since_s: float | None = None
        self.recount_due = False
        self._lanes: dict[str, Lane] = {}
        self._hold = settings.unconfirmed == "hold"
        self._keeps = settings.keep_s != 0
        self._clock = clock
        self._file = file
        self._head = head
        self._stamps = stamps
        self._series = points.series
        self._pending = pending
        self._receipts = receipts

    # Who reads

    def begin(self, consumers: Sequence[Consumer]) -> None:
        """Who reads; each gets its place when the file is open."""
        self._lanes = {consumer.name: Lane(consumer, 0) for consumer in consumers}

    async def take_places(self, cursors: Mapping[str, int], *, known: bool, salvaged: int | None) -> None:
        """The file is open: join all consumers.

        Args:
            known: it was open before and could not be used for a while: memory knows better how far everybody is.
            salvaged: the file was damaged, and up to here everybody had settled: from there on one whose place is lost.
        """
        mine = dict(self.cursors) if known else {}
        self.cursors = {name: max(seq, mine.get(name, 0)) for name, seq in {**mine, **cursors}.items()}
        for lane in self._lanes.values():
            await self._join(lane, max(self._head.stored_last, self._head.first_seq), salvaged=salvaged)

    def renumber(self, more: int) -> None:
        """The file is open: the numbers given before have grown."""
        for lane in self._lanes.values():
            lane.cursor = lane.cursor + more if lane.cursor else 0
            lane.accepted = lane.accepted + more if lane.accepted else 0
            lane.sure = lane.sure + more if lane.sure else 0
            lane.owed = None

    async def _join(self, lane: Lane, now: int, *, salvaged: int | None = None) -> None:
        """Give a consumer its place: where it was, else where the operator lets it start; `now` is the number of now."""
        consumer, sent_upto = lane.consumer, lane.cursor
        cursor = self.cursors.get(consumer.name)
        if cursor is None and consumer.was in self.cursors:
            cursor = self.cursors.pop(consumer.was)
            self._pending.forget.append(consumer.was)
        if cursor is None:
            cursor = await self._start_of(consumer, now) if salvaged is None else salvaged
        self.cursors[consumer.name] = lane.cursor = cursor
        lane.empty_upto = 0
        self._pending.cursors.add(consumer.name)
        lane.stored, lane.oldest_us = await self._file.job(lambda store: store.owed(cursor))
        self._count_anew(lane)
        if lane.stored:
            lane.accepted = lane.sure = 0  # what the file has from before is not sent yet
        else:
            self.cursors[consumer.name] = lane.cursor = max(lane.cursor, sent_upto)

    async def _start_of(self, consumer: Consumer, now: int) -> int:
        if consumer.start == "oldest":
            return 0
        if consumer.start == "now":
            return now
        time_us = microseconds(consumer.start)
        return await self._file.job(lambda store: store.before(time_us))

    async def set_consumers(self, consumers: Sequence[Consumer]) -> None:
        """The config has changed: who reads from now on. One that is gone holds nothing back and keeps its cursor."""
        now, before = self._head.next_seq - 1, self._lanes
        lanes = {consumer.name: before.get(consumer.name) or Lane(consumer, 0) for consumer in consumers}
        # from here on nothing that is in memory now is forgotten before a new one has its place
        self._lanes = {**before, **lanes}
        for consumer in consumers:
            lane = lanes[consumer.name]
            if lane.consumer.takes is not consumer.takes:
                lane.owed = None
            lane.consumer = consumer
            if consumer.name not in before and self._file.store is not None:
                try:
                    await self._join(lane, now)
                except LogError:  # told in status; rather too much for it than too little
                    lane.cursor = self.cursors.setdefault(consumer.name, 0)
                    self._pending.cursors.add(consumer.name)
                    self.recount_due = True
        self._lanes = lanes
        for lane in lanes.values():
            if lane.owed is None:
                self._count_anew(lane)
        self._settled_by_all()
        self.wake()

    def forget(self, consumer: str) -> bool:
        """Forget the cursor of a consumer that is no longer configured; False when there is none.

        Raises:
            LogError: it is still configured.
        """
        if consumer in self._lanes:
            raise LogError(f"{consumer} is in the config; remove the broker first")
        if self.cursors.pop(consumer, None) is None:
            return False
        self._pending.forget.append(consumer)
        return True

    def removed(self) -> list[str]:
        """Consumers whose cursors are kept although they are not configured."""
        return sorted(set(self.cursors) - set(self._lanes))

    def places(self) -> dict[str, int]:
        """Consumer -> settled up to."""
        return {name: lane.cursor for name, lane in self._lanes.items()}

    # Reading

    async def read(self, consumer: str, after: int | None, max_readings: int) -> Columns | None:
        """Sets after the consumer's cursor, or after a number; None at the tail, or where the time is not confirmed."""
        lane = self._lanes[consumer]
        after = max(lane.cursor, lane.empty_upto, after or 0)  # a place from before the file was open is none of it
        hold = self._hold
        # what a job tells holds for the moment of the job: a commit meanwhile may have moved sets from the head to the file
        while after < (stored_last := self._head.stored_last):
            place, epoch = after, self._stamps.epoch
            columns = await self._file.job(partial(_read, after=place, max_readings=max_readings, hold=hold))
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

    def _read_head(self, lane: Lane, after: int, max_readings: int, *, hold: bool) -> Columns | None:
        columns = Columns(after)
        now_us = self._stamps.trusted_now_us()
        entries = self._head.entries
        i = self._head.after(after)
        while i < len(entries) and len(columns.seq) < max_readings:
            start, j, stamp = len(columns.seq), i, entries[i].stamp
            if hold and self._stamps.unconfirmed(stamp):
                lane.held_back = self._stamps.epoch
                break
            count = start
            while j < len(entries) and entries[j].stamp is stamp and count < max_readings:
                count += len(entries[j].readings)
                j += 1
            put_entries(entries[i:j], columns)
            self._stamps.boots.correct(columns, start, stamp, now_us)
            i = j
        return columns if columns.seq else None

    async def scan(self, after: int, max_readings: int) -> Columns | None:
        """Sets after a number, whoever has settled them, held back or not; None behind the last."""
        place = after
        while place < (stored_last := self._head.stored_last):
            columns = await self._file.job(lambda store: store.read(after, max_readings))
            if columns is not None:
                return columns
            place = stored_last
        return self._read_head(Lane(Consumer(""), place), place, max_readings, hold=False)

    async def wait(self, consumer: str, after: int | None) -> None:
        """Until something can be read after the cursor, or after a number."""
        while True:
            lane = self._lanes[consumer]
            place = max(lane.cursor, lane.empty_upto, after or 0)  # as `read` takes it
            entries = self._head.entries
            there = self._head.stored_last > place or (entries and entries[-1].seq > place)
            if there and lane.held_back != self._stamps.epoch:
                return
            if self.arrival.done():
                self.arrival = self._loop.create_future()
            await asyncio.shield(self.arrival)

    def wake(self) -> None:
        """There may be something to read."""
        if not self.arrival.done():
            self.arrival.set_result(None)

    # Settling

    async def settle(self, consumer: str, upto: int) -> None:
        """All up to and including `upto` is done with: accepted, refused or held."""
        lane, head = self._lanes[consumer], self._head
        if upto <= lane.cursor:
            return
        if upto >= head.next_seq:
            raise LogError(f"{consumer} settles number {upto}, the newest is {head.next_seq - 1}")
        self._pending.cursors.add(consumer)
        before, lane.cursor = lane.cursor, upto
        self.cursors[consumer] = upto
        if lane.stored and before < head.stored_last:
            if self.drained_since_s is None:
                self.drained_since_s = self._clock.monotonic_s()
            if upto >= head.stored_last:
                lane.stored, lane.oldest_us = 0, None
            else:
                self._settled_by_all()
                with contextlib.suppress(LogError):  # shown elsewhere; the count is corrected with the next one
                    await self._count_stored(lane)
                return
        self._settled_by_all()

    def accept(self, consumer: str, upto: int, sure: int) -> None:
        """All up to and including `upto` was sent, and is to be settled when that is sure."""
        lane = self._lanes[consumer]
        lane.accepted = max(lane.accepted, min(upto, self._head.next_seq - 1))
        lane.sure = max(lane.sure, min(sure, lane.accepted))

    def accepted_upto(self, consumer: str) -> int:
        """Up to here a consumer has sent, or is done."""
        lane = self._lanes[consumer]
        return max(lane.accepted, lane.cursor)

    def accepted(self) -> int:
        """Up to here every city has it, or its consumer is done; without consumers nobody has."""
        return min((max(lane.sure, lane.cursor) for lane in self._lanes.values()), default=0)

    def settled(self) -> int:
        """Up to here every consumer is done; without consumers nothing is."""
        return min((lane.cursor for lane in self._lanes.values()), default=0)

    def _settled_by_all(self) -> None:
        if not self._keeps:
            self._head.drop(self.settled())
            self._receipts.make_room()
        self._receipts.resolve()

    # What is owed

    def backlog(self, consumer: str) -> tuple[int, datetime | None]:
        """Readings owed, and the time of the oldest of them."""
        lane, head = self._lanes[consumer], self._head
        sent_upto = max(lane.cursor, lane.accepted)
        if lane.owed is not None:
            self._count_head(lane.owed, sent_upto)
            oldest_us = lane.owed.oldest_us
            return lane.owed.total, None if oldest_us is None else wall_time(oldest_us)
        entries = head.entries[head.after(max(sent_upto, head.stored_last)) :]
        in_head = sum(len(entry.readings) for entry in entries)
        stored = 0 if sent_upto >= head.stored_last else lane.stored
        if stored and lane.oldest_us is not None:
            return stored + in_head, wall_time(lane.oldest_us)
        if not entries:
            return stored, None
        first = entries[0]
        oldest = wall_time(first.claim.received_us) if first.claim else first.readings[0].observed_at
        return stored + in_head, oldest

    def _count_head(self, owed: Owed, cursor: int) -> None:
        """Count what came since, and no more what is settled."""
        owed.entries(self._head.entries[self._head.after(cursor) :])
        owed.settled(cursor)

    def status(self) -> dict[str, dict[str, Any]]:
        """Of each consumer what is owed."""
        return {name: self._status_of(name) for name in self._lanes}

    def _status_of(self, name: str) -> dict[str, Any]:
        backlog, oldest_at = self.backlog(name)
        oldest = oldest_at and oldest_at.isoformat().replace("+00:00", "Z")
        return {"backlog": backlog, "oldest_unsent_at": oldest}

    def in_file(self) -> dict[str, int]:
        """Consumer -> readings owed that are in the file."""
        return {name: lane.stored for name, lane in self._lanes.items()}

    def stored(self, entries: Sequence[Entry]) -> None:
        """These sets are in the file now."""
        for lane in self._lanes.values():
            owed = [entry for entry in entries if entry.seq > lane.cursor]
            if lane.owed is not None:
                lane.owed.settled(max(lane.cursor, lane.accepted))
                lane.owed.entries(owed)
            if owed and not lane.stored:
                lane.oldest_us = microseconds(owed[0].readings[0].observed_at)
            lane.stored += sum(len(entry.readings) for entry in owed)

    def given_up(self, first: int, last: int) -> None:
        """These sets are owed to nobody any more."""
        for lane in self._lanes.values():
            if lane.owed is not None:
                lane.owed.given_up(first, last)

    async def recount(self) -> None:
        """Retention or damage has taken something: count again what the file holds.

        Raises:
            LogError: the file cannot be read now; it is due again.
        """
        self.recount_due = False
        try:
            for lane in tuple(self._lanes.values()):
                await self._count_stored(lane)
                if lane.owed is not None:
                    self._count_head(lane.owed, lane.cursor)
                    in_head = self._head.count(max(lane.cursor, self._head.stored_last), self._head.next_seq)
                    lane.owed.at_most(lane.stored + in_head)
        except LogError:
            self.recount_due = True
            raise

    async def _count_stored(self, lane: Lane) -> None:
        cursor = lane.cursor
        stored, oldest_us = await self._file.job(partial(_owed, after=cursor))
        if lane.cursor == cursor:  # else whoever settled meanwhile counts, or has nothing left to count
            lane.stored, lane.oldest_us = stored, oldest_us

    def _count_anew(self, lane: Lane) -> None:
        """Count what a consumer is to be sent: beside the work, for what an earlier run left may be much."""
        if lane.consumer.takes is None:
            return
        lane.owed = None
        task = self._loop.create_task(self._count(lane, Owed(lane.consumer.takes, self._series)))
        self.counting.add(task)
        task.add_done_callback(self.counting.discard)

    async def _count(self, lane: Lane, owed: Owed) -> None:
        after, left = lane.cursor, _COUNTED_READINGS
        while after < self._head.stored_last and left > 0:
            place = max(after, lane.cursor)
            try:
                columns = await self._file.job(partial(_stretch, after=place))
            except LogError:  # shown elsewhere; all readings count, as if it took all
                return
            if columns is None:
                break
            owed.columns(columns)
            after, left = columns.last, left - len(columns.seq)
            await asyncio.sleep(_COUNT_PAUSE_S)
        if left > 0:
            lane.owed = owed

    async def close(self) -> None:
        """Count no more."""
        for task in tuple(self.counting):
            task.cancel()
        await asyncio.gather(*self.counting, return_exceptions=True)


def _read(store: Store, after: int, max_readings: int, *, hold: bool) -> Columns | None:
    return store.read(after, max_readings, hold=hold)


def _stretch(store: Store, after: int) -> Columns | None:
    return store.read(after, _COUNT_READINGS)


def _owed(store: Store, after: int) -> tuple[int, int | None]:
    return store.owed(after)
