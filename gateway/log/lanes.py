"""Lanes: one for each consumer, from its cursor to the newest set. Where each stands, what it reads, what it is still owed."""

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

from gateway.log.file import File
from gateway.log.head import Head
from gateway.log.owed import Owed, Takes
from gateway.log.pending import Pending
from gateway.log.places import END
from gateway.log.points import Points
from gateway.log.receipts import Receipts
from gateway.log.segment import Columns, Entry, microseconds, put_entries, wall_time
from gateway.log.settings import LogSettings
from gateway.log.stamps import Stamps
from gateway.log.store import Known, Store
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Quality

_COUNT_READINGS: Final = 5000  # of what an earlier run left, between two commits
_COUNT_PAUSE_S: Final = 0.01
_COUNTED_READINGS: Final = 5_000_000  # a longer backlog is shown with all readings in it


@dataclass(frozen=True, slots=True)
class Consumer:
    """Someone who reads the log to its end and settles what is done; every consumer sees every set.

    Attributes:
        start: where one begins that the file does not know.
        was: name it had before; takes over all that one had, unless it has a place of its own.
        takes: whether it is to be sent a point of a device; None: everything counts as owed.
        city: who goes by the name: what another one was sent, and is not settled, is owed to this one.
    """

    name: str
    start: Literal["oldest", "now"] | datetime = "oldest"
    was: str = ""
    takes: Takes | None = None
    city: str = ""


@dataclass(slots=True)
class Lane:
    """Where a consumer stands.

    Attributes:
        cursor: all up to here is settled.
        upto: what it is owed ends here, for it is no longer in the config.
        accepted: all up to here was sent, or is settled.
        sure: all up to here the city has: a second fault would be needed to lose it.
        empty_upto: nothing is stored between the cursor and here.
        stored: readings owed that are in the file.
        oldest_us: time of the oldest of those, as far as known.
        held_back: the next set waits for its time to be confirmed, since this time epoch.
        owed: what it is to be sent of that; None while what an earlier run left is not counted yet.
        takes: numbers of the points that it is to be sent, of so many points.
    """

    consumer: Consumer
    cursor: int
    upto: int = END
    accepted: int = 0
    sure: int = 0
    empty_upto: int = 0
    stored: int = 0
    oldest_us: int | None = None
    held_back: int = -1
    owed: Owed | None = None
    takes: tuple[frozenset[int] | None, int] = (None, -1)

    @property
    def empty(self) -> bool:
        """Whether it is owed nothing, whatever comes."""
        return self.cursor >= self.upto


class Lanes:
    """All consumers of the log.

    Attributes:
        cursors: of all that the file knows, removed ones too.
        known: what else the file is to know of them.
        renamed: called with the old and the new name of one.
        is_gone: whether a device is no longer in the config.
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
        self.known: dict[str, Known] = {}
        self.renamed: Callable[[str, str], None]
        self.is_gone: Callable[[str], bool]
        self._loop = asyncio.get_running_loop()
        self.arrival = self._loop.create_future()
        self.counting: set[asyncio.Task[None]] = set()
        self.drained_since_s: float | None = None
        self.recount_due = False
        self._lanes: dict[str, Lane] = {}
        self._gone: dict[str, Lane] = {}
        self._anybody = False
        self._looks = (
            settings.leave_foreign
        )  # a command opened the file: it gives no place, and says of nobody that he went
        self._hold = settings.unconfirmed == "hold"
        self._keeps = settings.keep_s != 0
        self._clock = clock
        self._file = file
        self._head = head
        self._stamps = stamps
        self._points = points
        self._series = points.series
        self._pending = pending
        self._receipts = receipts

    # Who reads

    def begin(self, consumers: Sequence[Consumer] | None) -> None:
        """Who reads; each gets its place when the file is open. None: whoever the file does not know to be removed."""
        self._anybody = consumers is None
        self._lanes = {consumer.name: Lane(consumer, 0) for consumer in consumers or ()}

    async def take_places(
        self, cursors: Mapping[str, int], consumers: Mapping[str, Known], *, known: bool, salvaged: int | None
    ) -> None:
        """The file is open: join all consumers.

        Args:
            consumers: what else the file knows of them.
            known: it was open before and could not be used for a while: memory knows better how far everybody is.
            salvaged: the file was damaged, and up to here everybody had settled: from there on one whose place is lost.
        """
        mine = dict(self.cursors) if known else {}
        placeless = {name: salvaged or 0 for name, its in consumers.items() if its.upto is not None}
        found = {name: seq for name, seq in {**placeless, **cursors}.items() if name not in self._pending.forget}
        self.cursors = {name: max(seq, mine.get(name, 0)) for name, seq in {**mine, **found}.items()}
        self.known = {**consumers, **(self.known if known else {})}
        now = max(self._head.stored_last, self._head.first_seq)
        if self._anybody:
            there = [name for name in self.cursors if self.known.get(name, Known()).upto is None]
            self._lanes = {name: Lane(Consumer(name), 0) for name in there}
        if self._looks:
            self._lanes = {
                name: lane for name, lane in self._lanes.items() if self._place_of(lane.consumer) is not None
            }
            for lane in self._lanes.values():  # what it takes, the file alone knows
                its = self.known.get(lane.consumer.name) or self.known.get(lane.consumer.was)
                if its is not None and its.takes is not None:
                    lane.consumer = replace(lane.consumer, takes=self._by_number(its.takes))
        for lane in (*self._lanes.values(), *self._gone.values()):
            lane.takes = None, -1
        for lane in self._lanes.values():
            await self._join(lane, now, salvaged=salvaged)
        for name in self.cursors.keys() - self.there():
            await self._take_gone(name, now)

    async def _take_gone(self, name: str, now: int) -> None:
        """One that the file knows and the config does not: it went while this run could not see it, or before."""
        lane = self._gone.get(name)
        if lane is None:
            its = self.known.get(name, Known())
            takes = None if its.takes is None else self._by_number(its.takes)
            lane = Lane(Consumer(name, takes=takes), 0, now if its.upto is None else its.upto)
            self._gone[name] = lane
        lane.cursor = self.cursors[name]
        if not self._looks:
            await self._count_stored(lane)
            self._count_anew(lane)

    def _by_number(self, numbers: frozenset[int]) -> Takes:
        ids = self._points.ids
        return lambda device, point: ids.get(device, {}).get(point) in numbers

    def renumber(self, more: int) -> None:
        """The file is open: the numbers given before have grown."""
        first = self._head.first_seq - more  # below it are numbers of earlier runs
        for lane in self._all():
            lane.cursor = lane.cursor + more if lane.cursor else 0
            lane.accepted = lane.accepted + more if lane.accepted else 0
            lane.sure = lane.sure + more if lane.sure else 0
            lane.upto = lane.upto + more if first <= lane.upto < END else lane.upto
            lane.owed = None

    async def _join(self, lane: Lane, now: int, *, salvaged: int | None = None) -> None:
        """Give a consumer its place: where it was, else where the operator lets it start; `now` is the number of now."""
        consumer, sent_upto = lane.consumer, lane.cursor
        cursor = self._place_of(consumer)
        if cursor is None:
            cursor = await self._start_of(consumer, now) if salvaged is None else salvaged
        elif consumer.name not in self.cursors and not self._looks:
            self._rename(consumer.was, consumer.name)
        if self._looks:
            lane.cursor = cursor
        else:
            self.cursors[consumer.name] = lane.cursor = cursor
            self._pending.cursors.add(consumer.name)
        if self._looks:
            return
        lane.empty_upto = 0
        lane.stored, lane.oldest_us = await self._file.job(lambda store: store.owed(cursor))
        self._count_anew(lane)
        if lane.stored:
            lane.accepted = lane.sure = 0  # what the file has from before is not sent yet
        else:
            self.cursors[consumer.name] = lane.cursor = max(lane.cursor, sent_upto)

    def _place_of(self, consumer: Consumer) -> int | None:
        """Its own place, else that of its old name."""
        old = None if consumer.was in self._lanes else self.cursors.get(consumer.was)
        return self.cursors.get(consumer.name, old)

    def _rename(self, old: str, new: str) -> None:
        """All that is kept under the old name goes on under the new one, with the next commit."""
        self.cursors[new] = self.cursors.pop(old)
        self.known.pop(old, None)
        self._gone.pop(old, None)
        self._pending.forget.append(old)
        self._pending.cursors.add(new)
        self._pending.renamed[old] = new
        self._points.move_states({f"broker {old}": f"broker {new}"})  # as the forwarders call their notes
        self.renamed(old, new)

    async def _start_of(self, consumer: Consumer, now: int) -> int:
        if consumer.start == "oldest":
            return 0
        if consumer.start == "now":
            return now
        time_us = microseconds(consumer.start)
        return await self._file.job(lambda store: store.before(time_us))

    async def set_consumers(self, consumers: Sequence[Consumer]) -> None:
        """The config has changed: who reads from now on.

        One that is gone keeps its place, and is owed what came until now; if it comes back, it goes on there.
        """
        now, before = self._head.next_seq - 1, self._lanes
        names = {consumer.name for consumer in consumers}
        # from here to the first await in one go: whatever is in memory now is owed to somebody all the time
        lanes = {its.name: before.get(its.name) or self._lane_before(its, names) or Lane(its, 0) for its in consumers}
        kept = [id(lane) for lane in lanes.values()]
        for name, lane in before.items():
            if id(lane) not in kept:
                lane.upto, lane.accepted, lane.sure = now, 0, 0
                self._gone[name] = lane
        reading = [id(lane) for lane in before.values()]
        joining = [lane for lane in lanes.values() if lane.upto != END or id(lane) not in reading]
        self._lanes = lanes
        for consumer in consumers:
            lane = lanes[consumer.name]
            if lane.consumer.takes is not consumer.takes:
                lane.owed, lane.takes = None, (None, -1)
            if lane.consumer.city != consumer.city:
                lane.accepted = lane.sure = 0
            lane.consumer, lane.upto = consumer, END
        for lane in joining:
            if self._file.store is not None:
                try:
                    await self._join(lane, now)
                except LogError:  # told in status; rather too much for it than too little
                    name = lane.consumer.name
                    lane.cursor = self.cursors.setdefault(name, 0)
                    self._pending.cursors.add(name)
                    self.recount_due = True
        for lane in lanes.values():
            if lane.owed is None:
                self._count_anew(lane)
        self._settled_by_all()
        self.wake()

    def _lane_before(self, consumer: Consumer, names: set[str]) -> Lane | None:
        """Of one that comes back, or has another name now: where it stood."""
        name, old = consumer.name, consumer.was
        if name in self._gone:
            return self._gone.pop(name)
        if not old or old in names or name in self.cursors:
            return None
        lane = self._lanes.get(old) or self._gone.get(old)
        if old in self.cursors:  # else with the file, when it can be opened
            self._rename(old, name)
        return lane

    def gone(self, consumer: str) -> Lane | None:
        """Where one stood that is no longer configured; None when there is none.

        Raises:
            LogError: it is still configured.
        """
        if consumer in self.there():
            raise LogError(f"{consumer} is in the config; remove the broker first")
        return self._gone.get(consumer)

    def forget(self, consumer: str) -> None:
        """Forget the place of one that is no longer configured."""
        del self._gone[consumer]
        self.cursors.pop(consumer, None)
        self.known.pop(consumer, None)
        self._pending.forget.append(consumer)
        self._settled_by_all()

    def removed(self) -> list[str]:
        """Consumers whose places are kept although they are not configured."""
        return sorted(self._gone)

    def _all(self) -> Iterator[Lane]:
        yield from self._lanes.values()
        yield from self._gone.values()

    def _lane(self, consumer: str) -> Lane:
        """Also of one that was removed a moment ago, and has not ended yet."""
        return self._lanes.get(consumer) or self._gone[consumer]

    def names(self) -> list[str]:
        """Of those that are owed what comes."""
        return list(self._lanes)

    def there(self) -> set[str]:
        """Names of the config, those too that will be taken over with the daemon's start."""
        return {*self._lanes, *(lane.consumer.was for lane in self._lanes.values() if self._looks)}

    def places(self) -> dict[str, int]:
        """Consumer -> settled up to."""
        return {lane.consumer.name: lane.cursor for lane in self._all()}

    def ends(self) -> dict[str, int]:
        """Consumer that was removed -> the end of what it is owed."""
        return {name: lane.upto for name, lane in self._gone.items()}

    def note_known(self) -> None:
        """What the file is to know of each consumer, with the next commit if it is news."""
        if self._looks:
            return
        for lane in self._all():
            name, upto = lane.consumer.name, None if lane.upto == END else lane.upto
            its = Known(upto, self._taken(lane))
            if self.known.get(name) != its:
                self.known[name] = its
                self._pending.consumers.add(name)

    def _taken(self, lane: Lane) -> frozenset[int] | None:
        takes, count = lane.consumer.takes, len(self._series)
        if takes is not None and lane.takes[1] != count:
            numbers = frozenset(number for number, its in self._series.items() if takes(its.device, its.point))
            lane.takes = numbers, count
        return lane.takes[0]

    # Reading

    async def read(self, consumer: str, after: int | None, max_readings: int) -> Columns | None:
        """Sets after the consumer's cursor, or after a number; None at the tail, or where the time is not confirmed."""
        lane = self._lane(consumer)
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
            lane = self._lane(consumer)
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
        lane, head = self._lane(consumer), self._head
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
        lane = self._lane(consumer)
        lane.accepted = max(lane.accepted, min(upto, self._head.next_seq - 1))
        lane.sure = max(lane.sure, min(sure, lane.accepted))

    def accepted_upto(self, consumer: str) -> int:
        """Up to here a consumer has sent, or is done."""
        lane = self._lane(consumer)
        return max(lane.accepted, lane.cursor)

    def accepted(self) -> int:
        """Up to here every city has it, or its consumer is done; without consumers nobody has."""
        return self._but_for_gone(max(lane.sure, lane.cursor) for lane in self._lanes.values())

    def done(self) -> int:
        """Up to here nobody needs memory to hold it; without consumers nothing is done with."""
        return self._but_for_gone(lane.cursor for lane in self._lanes.values())

    def _but_for_gone(self, places: Iterator[int]) -> int:
        """The lowest of these, and of what is owed to removed ones all that is not in the file yet."""
        stored_last = self._head.stored_last
        owing = [lane for lane in self._gone.values() if not lane.empty and lane.upto > stored_last]
        return min([min(places, default=0), *(max(lane.cursor, stored_last) for lane in owing)])

    def _settled_by_all(self) -> None:
        if not self._keeps:
            self._head.drop(self.done())
            self._receipts.make_room()
        self._receipts.resolve()

    # What is owed

    def backlog(self, consumer: str) -> tuple[int, datetime | None]:
        """Readings owed, and the time of the oldest of them."""
        lane, head = self._lane(consumer), self._head
        sent_upto = max(lane.cursor, lane.accepted)
        if lane.owed is not None:
            self._count_head(lane, sent_upto)
            oldest_us = lane.owed.oldest_us
            return lane.owed.total, None if oldest_us is None else wall_time(oldest_us)
        entries = head.entries[head.after(max(sent_upto, head.stored_last)) : head.after(lane.upto)]
        in_head = sum(len(entry.readings) for entry in entries)
        stored = 0 if sent_upto >= head.stored_last else lane.stored
        if stored and lane.oldest_us is not None:
            return stored + in_head, wall_time(lane.oldest_us)
        if not entries:
            return stored, None
        first = entries[0]
        oldest = wall_time(first.claim.received_us) if first.claim else first.readings[0].observed_at
        return stored + in_head, oldest

    def _count_head(self, lane: Lane, cursor: int) -> None:
        """Count what came since, and no more what is settled."""
        assert lane.owed is not None
        lane.owed.entries(self._head.entries[self._head.after(cursor) : self._head.after(lane.upto)])
        lane.owed.settled(cursor)

    def status(self) -> dict[str, dict[str, Any]]:
        """Of each consumer what is owed."""
        return {name: self._status_of(name) for name in self._lanes}

    def status_of_gone(self) -> dict[str, dict[str, Any]]:
        """The same of removed ones."""
        return {name: self._status_of(name) for name in self.removed()}

    def _status_of(self, name: str) -> dict[str, Any]:
        backlog, oldest_at = self.backlog(name)
        return {"backlog": backlog, "oldest_unsent_at": _text(oldest_at)}

    def status_of_device(self, device: str, name: str) -> dict[str, Any]:
        """Of one consumer what is owed of a device that is gone; None as long as that is being counted."""
        lane = self._lanes[name]
        if lane.owed is None:
            return {"backlog": None, "oldest_unsent_at": None}
        self._count_head(lane, max(lane.cursor, lane.accepted))
        backlog, oldest_us = lane.owed.of_gone(device)
        return {"backlog": backlog, "oldest_unsent_at": None if oldest_us is None else _text(wall_time(oldest_us))}

    async def owed_of(self, device: str) -> tuple[dict[str, int], list[int]]:
        """Of a device, readings that each is owed, removed ones too, counted one by one; and the times of all of them.

        Raises:
            LogError: the file cannot be read now.
        """
        numbers = {number for number, its in self._series.items() if its.device == device}
        stretches = {its.consumer.name: (max(its.cursor, its.accepted), its.upto, its) for its in self._all()}
        counts, times_us = dict[str, int](), list[int]()
        place = min((after for after, _, _ in stretches.values()), default=0)
        while stretches and (columns := await self.scan(place, _COUNT_READINGS)) is not None:
            place = columns.last
            rows = zip(columns.seq, columns.series, columns.quality, columns.time_us, strict=True)
            for seq, number, quality, time_us in rows:
                if number not in numbers or quality is not Quality.GOOD:
                    continue
                for name, (after, upto, lane) in stretches.items():
                    taken = self._taken(lane)
                    if after < seq <= upto and (taken is None or number in taken):
                        counts[name] = counts.get(name, 0) + 1
                        times_us.append(time_us)
        return counts, times_us

    def forgotten(self, called: str) -> None:
        """A device goes by this name from now on, and nobody takes it any more."""
        numbers = {number for number, its in self._series.items() if its.device == called}
        for lane in self._all():
            name, takes = lane.consumer.name, lane.consumer.takes
            if takes is not None:
                lane.consumer, lane.takes = replace(lane.consumer, takes=_all_but(called, takes)), (None, -1)
                self._count_anew(lane)
            its = self.known.get(name, Known())
            if its.takes is not None:
                self.known[name] = Known(its.upto, its.takes - numbers)
                self._pending.consumers.add(name)

    def in_file(self) -> dict[str, int]:
        """Consumer -> readings owed that are in the file."""
        return {lane.consumer.name: lane.stored for lane in self._all()}

    def stored(self, entries: Sequence[Entry]) -> None:
        """These sets are in the file now."""
        for lane in self._all():
            owed = [entry for entry in entries if lane.cursor < entry.seq <= lane.upto]
            if lane.owed is not None:
                lane.owed.settled(max(lane.cursor, lane.accepted))
                lane.owed.entries(owed)
            if owed and not lane.stored:
                lane.oldest_us = microseconds(owed[0].readings[0].observed_at)
            lane.stored += sum(len(entry.readings) for entry in owed)

    def given_up(self, first: int, last: int) -> None:
        """These sets are owed to nobody any more."""
        for lane in self._all():
            if lane.owed is not None:
                lane.owed.given_up(first, last)

    async def recount(self) -> None:
        """Retention or damage has taken something: count again what the file holds.

        Raises:
            LogError: the file cannot be read now; it is due again.
        """
        self.recount_due = False
        try:
            for lane in tuple(self._all()):
                await self._count_stored(lane)
                in_head = self._head.count(max(lane.cursor, self._head.stored_last), lane.upto)
                if lane.owed is not None:
                    self._count_head(lane, lane.cursor)
                    lane.owed.at_most(lane.stored + in_head)
                if lane.upto <= self._head.stored_last and not lane.stored:  # all of it was given up
                    self.cursors[lane.consumer.name] = lane.cursor = max(lane.cursor, lane.upto)
                    self._pending.cursors.add(lane.consumer.name)
        except LogError:
            self.recount_due = True
            raise

    async def _count_stored(self, lane: Lane) -> None:
        cursor, upto = lane.cursor, lane.upto
        stored, oldest_us = await self._file.job(partial(_owed, after=cursor, upto=upto))
        if (lane.cursor, lane.upto) == (
            cursor,
            upto,
        ):  # else whoever settled meanwhile counts, or has nothing left to count
            lane.stored, lane.oldest_us = stored, oldest_us

    def _count_anew(self, lane: Lane) -> None:
        """Count what a consumer is to be sent: beside the work, for what an earlier run left may be much."""
        if lane.consumer.takes is None:
            return
        lane.owed = None
        task = self._loop.create_task(self._count(lane, Owed(lane.consumer.takes, self._series, self.is_gone)))
        self.counting.add(task)
        task.add_done_callback(self.counting.discard)

    async def counted(self) -> None:
        """What is owed is known from here on; who only looks at the file counts when he is asked."""
        if not self._looks:
            return
        for lane in self._all():
            await self._count_stored(lane)
            self._count_anew(lane)
        await asyncio.gather(*self.counting)

    async def _count(self, lane: Lane, owed: Owed) -> None:
        after, left = lane.cursor, _COUNTED_READINGS
        while after < min(self._head.stored_last, lane.upto) and left > 0:
            place = max(after, lane.cursor)
            try:
                columns = await self._file.job(partial(_stretch, after=place))
            except LogError:  # shown elsewhere; all readings count, as if it took all
                return
            if columns is None:
                break
            columns.cut(bisect_right(columns.seq, lane.upto))
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


def _all_but(called: str, takes: Takes) -> Takes:
    return lambda device, point: device != called and takes(device, point)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")


def _read(store: Store, after: int, max_readings: int, *, hold: bool) -> Columns | None:
    return store.read(after, max_readings, hold=hold)


def _stretch(store: Store, after: int) -> Columns | None:
    return store.read(after, _COUNT_READINGS)


def _owed(store: Store, after: int, upto: int) -> tuple[int, int | None]:
    return store.owed(after, upto)
