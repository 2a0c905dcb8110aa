"""The log: append, read, settle. The truth of the gateway; what is behind it are consumers, each with its own cursor.

Its rooms, from the front door to the cellar; each asks only those below it, and `Log.__init__` names the few arrows back:

- `committer` writes what is due, and `opening` begins again with a file that is found late, or made anew;
- `lanes` knows the consumers, `receipts` who waits for the card, `points` what is known by name;
- `file` is the open file and its thread, `stamps` the clock, `condition` what is wrong, `head` the sets in memory.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from gateway.claims import BACK
from gateway.log.adopt import adopt_all
from gateway.log.boots import Boots
from gateway.log.committer import Committer
from gateway.log.condition import Condition
from gateway.log.file import File, real
from gateway.log.head import Head
from gateway.log.held import FORGOTTEN, Held
from gateway.log.lanes import Consumer, Lanes
from gateway.log.pending import Pending
from gateway.log.points import Points
from gateway.log.receipts import Receipts, SetReceipt
from gateway.log.recipes import Devices, Recipes
from gateway.log.segment import Columns, Entry, Series, TimeState, microseconds
from gateway.log.settings import LogSettings
from gateway.log.stamps import FUTURE, WEAK, Stamps
from gateway.log.store import Connection, Gap
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet

__all__ = ["Columns", "Consumer", "Log", "LogSettings", "Series", "SetReceipt", "TimeState"]
_READING_BYTES: Final = 250  # what one reading costs in the head, as measured with tracemalloc


class Log:
    """The durable queue of sets. Build it with `open`; one per file, one event loop.

    Attributes:
        series: every point ever logged, by id; grows.
        last_values: newest readings by series.
        held: what one broker will not take now.
        statistics: expected, got, bad, latency per point and hour.
    """

    def __init__(self, settings: LogSettings, clock: Clock, connect: Callable[[Path], Connection] | None) -> None:
        self.settings = settings
        self._clock = clock
        self._condition = condition = Condition(settings.path, clock)
        self._head = head = Head(settings.head_bytes)
        pending = Pending()
        self._stamps = stamps = Stamps(clock, pending, max_age_s=settings.max_age_s)
        self._points = points = Points(clock, stamps, pending, condition)
        self.series, self.last_values, self.statistics = points.series, points.last_values, points.statistics
        self._file = file = File(settings, clock, stamps, condition, connect)
        self.held = Held(file.job, lambda: stamps.current, condition.note_gaps, points.call_as_card)
        self._recipes = recipes = Recipes(points, pending, self.held, head)
        self._each_set = settings.commit_every_s == 0
        self._receipts = receipts = Receipts(head, condition, each_set=self._each_set)
        self._lanes = lanes = Lanes(
            settings, clock, file=file, head=head, stamps=stamps, points=points, pending=pending, receipts=receipts
        )
        self._committer = Committer(
            settings,
            clock,
            file=file,
            held=self.held,
            head=head,
            stamps=stamps,
            points=points,
            pending=pending,
            receipts=receipts,
            lanes=lanes,
            recipes=recipes,
            condition=condition,
        )
        # the arrows that go back
        receipts.settled = lanes.done
        lanes.renamed = self.held.renamed
        lanes.is_gone = recipes.is_gone
        receipts.wanted = stamps.learned_anew = self._committer.start
        file.made_anew = self._committer.made_anew
        self._adopting: asyncio.Task[None] | None = None
        self._appended = 0

    @classmethod
    async def open(
        cls,
        settings: LogSettings,
        *,
        clock: Clock,
        consumers: Sequence[Consumer] | None,
        devices: Devices | None = None,
        connect: Callable[[Path], Connection] | None = None,
    ) -> "Log":
        """Open or make the file, take over cursors, restore the last values.

        A card that is full, read-only or absent does not stop it: the newest readings are kept in memory and the file
        is tried again. A damaged file is set aside and what is sound in it is taken over; a file that is no log of ours,
        or that of a newer citygate, is set aside as it is.

        Args:
            consumers: of the config; None: nobody knows, so that nobody is taken for removed.
            devices: what the config makes of the devices that the file knows; None: a command that only looks has none.
            connect: opens the database, for tests.

        Raises:
            LogError: another daemon has the file.
        """
        log = cls(replace(settings, path=real(settings.path)), clock, connect)
        log._lanes.begin(consumers)
        log._recipes.begin(devices)
        try:
            await log._committer.open()
        except BaseException:
            await log._file.close()
            raise
        log._committer.arm()
        if not settings.leave_foreign:
            log._adopting = asyncio.get_running_loop().create_task(log._adopt(), name="log-adopt")
        return log

    async def _adopt(self) -> None:
        submit, boot = self._file.writer.submit, self._stamps.boot_name
        await adopt_all(
            self.settings.path, self, self._points, self._recipes, submit, boot, self._clock.now, self._condition
        )

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
        head, points = self._head, self._points
        while head.full:
            await self._committer.wait_for_room()
        if self._condition.closed:
            raise LogError(f"{self.settings.path} is closed: the set was not taken")
        if readings.state:
            points.note_state(readings.device, readings.state)
        items = readings.readings
        if not items:  # as durable as all before it: a repeat waits for the first
            return SetReceipt(self._receipts, head.next_seq - 1 - head.first_seq)
        seq = head.next_seq
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        series: tuple[int, ...] = ()
        try:  # all that the set itself can spoil comes before it is in the head
            ids = points.ids.get(readings.device)
            try:
                series = tuple([ids[reading.point] for reading in items])  # type: ignore[index]  # None: a new device
            except (KeyError, TypeError):
                series = points.numbers_of(readings)
            stamp = self._stamps.of(items[0], now, now_s)
            size_bytes = _READING_BYTES * len(items)
            for reading in items:
                if isinstance(reading.value, str):
                    size_bytes += 2 * len(reading.value)
            claim = None
            if stamp.source <= WEAK or received_s is not None:  # nobody knows, or by a coin cell: judged again later
                claim = self._stamps.claim(items, stamp, device_back, now_s if received_s is None else received_s)
            entry = Entry(seq, series, items, stamp, now_s, size_bytes, claim)
            late = now - items[0].observed_at
            bad = self.last_values.note(entry, now + FUTURE if stamp.source > 1 else None)
            self.statistics.note(series, (late.days * 86_400 + late.seconds) * 1_000_000 + late.microseconds, bad)
        except Exception as error:  # noqa: BLE001  counted and told; the next set is another one
            return SetReceipt(self._receipts, self._committer.spoilt(readings, series, error) - head.first_seq)
        head.append(entry)
        self._appended += len(items)
        arrival = self._lanes.arrival
        if not arrival.done():
            arrival.set_result(None)
        if self._each_set:
            await self._committer.written(seq)
        elif now_s >= self._committer.look_at_s or head.size_bytes >= head.max_bytes // 2:
            self._committer.look(now_s)
        return SetReceipt(self._receipts, seq - head.first_seq)

    def note_unreported(self, device: str, reading: Reading, *, device_back: timedelta = BACK) -> None:
        """A reading that thinning keeps from the log: page and status show it."""
        self._points.note_unreported(device, reading, device_back)

    def driver_state(self, device: str) -> Mapping[str, bytes]:
        """The newest driver state of a device, by key."""
        return self._points.state_of(device)

    # Consumers

    async def set_consumers(self, consumers: Sequence[Consumer], devices: Devices | None = None) -> None:
        """The config has changed: who reads from now on. One that is gone keeps its place and what it is owed by now.

        Args:
            devices: what the new config makes of the devices that are known; None: nothing.
        """
        if devices is not None:
            self._recipes.use(devices)
        await self._lanes.set_consumers(consumers)
        self._committer.start()

    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> Columns | None:
        """Sets after the consumer's cursor, or after a number; about `max_readings`, whole sets. None at the tail.

        Raises:
            LogError: the file cannot be read now.
        """
        return await self._lanes.read(consumer, after, max_readings)

    async def wait(self, consumer: str, after: int | None = None) -> None:
        """Until something can be read after the cursor, or after a number."""
        await self._lanes.wait(consumer, after)

    async def settle(self, consumer: str, upto: int) -> None:
        """All up to and including `upto` is done with: accepted, refused or held."""
        await self._lanes.settle(consumer, upto)

    def accepted(self, consumer: str, upto: int, sure: int | None = None) -> None:
        """All up to and including `upto` was sent, and is settled when that is sure: it is no backlog.

        Args:
            sure: up to here no kill loses it, so that it is in no hurry either; None: all of it.
        """
        self._lanes.accept(consumer, upto, upto if sure is None else sure)

    def accepted_upto(self, consumer: str) -> int:
        """Up to here a consumer has sent, or is done."""
        return self._lanes.accepted_upto(consumer)

    def backlog(self, consumer: str) -> tuple[int, datetime | None]:
        """Readings owed, and the time of the oldest of them."""
        return self._lanes.backlog(consumer)

    def given_up(self, consumer: str) -> int:
        """Readings that bounds of size, age, memory and of what is held took from a consumer; purged ones not."""
        return self._condition.given_up(consumer)

    async def forget(self, consumer: str) -> bool:
        """Give up all that a consumer is owed that is no longer configured, and its place; False when there is neither.

        What is given up is counted in a gap record.

        Raises:
            LogError: it is still configured; or the card refuses: it is forgotten with the commit that succeeds.
        """
        lane = self._lanes.gone(consumer)
        if lane is not None:
            newest_us = None
            with contextlib.suppress(LogError):
                newest_us = await self._file.job(lambda store: store.newest_in(lane.cursor, lane.upto))
            if consumer in self._lanes.names():  # it came back meanwhile
                return False
            if self._lanes.gone(consumer) is not lane:
                return await self.forget(consumer)
            self._count_forgotten(consumer, newest_us)
            self._lanes.forget(consumer)
            self._points.forget_states(f"broker {consumer}")
            await self.commit()
        return bool(await self.held.forget(consumer, self._clock.now())) or lane is not None

    def _count_forgotten(self, consumer: str, newest_us: int | None) -> None:
        readings, oldest = self._lanes.backlog(consumer)
        if readings:
            now_us = microseconds(self._clock.now())
            first_us = None if oldest is None else microseconds(oldest)
            last_us = max(newest_us or now_us, first_us or 0)
            gap = Gap(now_us, first_us, last_us, readings, FORGOTTEN, {consumer: readings})
            self._committer.count(gap)

    async def forget_device(self, device: str) -> bool:
        """Give up all that anybody is owed of a device that is no longer in the config; False when there is none.

        What is given up is counted in a gap record. Should the device come back, it begins anew.

        Raises:
            LogError: it is still configured; or the card refuses.
        """
        if self._recipes.is_there(device):
            raise LogError(f"{device} is in the config; remove the device first")
        if device not in self.gone():
            return False
        await self.held.forget_device(device, self._clock.now())
        owed, times_us = await self._lanes.owed_of(device)
        if device not in self.gone():  # it came back meanwhile, or all was sent
            return True
        if times_us:
            now_us = microseconds(self._clock.now())
            self._committer.count(Gap(now_us, min(times_us), max(times_us), max(owed.values()), FORGOTTEN, owed))
        self._lanes.forgotten(self._recipes.forget(device))
        await self.commit()
        return True

    async def counted(self) -> None:
        """What is owed is known from here on."""
        await self._lanes.counted()

    def gone_consumers(self) -> dict[str, dict[str, Any]]:
        """Consumers that are no longer configured -> what they are still owed, in the log and held."""
        owed = self._lanes.status_of_gone()
        for piece in self.held.pieces():
            if piece.broker not in owed and piece.broker not in self._lanes.there():
                owed[piece.broker] = {"backlog": 0, "oldest_unsent_at": None}
        counts = {name: self.held.count(name) for name in owed}
        return {name: {**its, "later": counts[name][0], "dead": counts[name][1]} for name, its in sorted(owed.items())}

    # Devices that are gone

    def recipe(self, device: str, consumer: str) -> bytes | None:
        """What the readings of a device that is no longer in the config become; None when that consumer is owed none."""
        return self._recipes.of(device, consumer)

    def is_there(self, device: str) -> bool:
        """Whether a device is in the config."""
        return self._recipes.is_there(device)

    @property
    def recipes(self) -> Mapping[tuple[str, str], bytes]:
        """Every recipe by device and consumer; of consumer "" what the device's readings are."""
        return self._recipes.known

    def gone(self) -> Mapping[str, Sequence[str]]:
        """Devices that are no longer in the config, with the consumers that may still be owed readings of them."""
        return self._recipes.gone(self._lanes.cursors)

    def gone_devices(self) -> dict[str, dict[str, Any]]:
        """Devices that are no longer in the config -> what is still owed of them, in the log and held: in all, and by consumer.

        What a removed consumer is owed of them is told with that one. A count that is not known yet is None.
        """
        found = {}
        for device, consumers in self.gone().items():
            here = [name for name in consumers if name in self._lanes.names()]
            rows = {name: self._owed_of_gone(device, name) for name in here}
            rows = {name: row for name, row in rows.items() if row["backlog"] != 0 or row["later"] or row["dead"]}
            if rows:
                found[device] = {**_in_all(list(rows.values())), "brokers": rows}
        return found

    def _owed_of_gone(self, device: str, consumer: str) -> dict[str, Any]:
        states = [piece.state for piece in self.held.pieces(consumer, device=device)]
        held = {state: states.count(state) for state in ("later", "dead")}
        return {**self._lanes.status_of_device(device, consumer), **held}

    # For export and checks

    async def scan(self, after: int, max_readings: int = 2000) -> Columns | None:
        """Sets after a number, settled or not, held back or not; for export. None behind the last."""
        return await self._lanes.scan(after, max_readings)

    async def verify(self, after: int) -> tuple[int, int, list[str], int | None]:
        """Check the next segments: how many, their readings, what is wrong, where to go on (None: behind the last)."""
        return await self._file.job(lambda store: store.verify(after))

    async def progress(self, upto: int) -> tuple[int, int]:
        """Readings in the file up to a number, and all of them."""
        return await self._file.job(lambda store: store.progress(upto))

    # Time

    def now(self) -> datetime:
        """Wall time as the log sees it."""
        return self._clock.now()

    @property
    def clock_confirmed(self) -> bool:
        """Whether somebody vouches for the present time."""
        return self._stamps.source() > 1

    def before_step(self) -> datetime | None:
        """What the clock would show now that was set a moment ago; None when it was not."""
        return self._stamps.before_step()

    # Showing

    @property
    def boots(self) -> Boots:
        """The true time of each boot, as far as it is known."""
        return self._stamps.boots

    @property
    def first_seq(self) -> int:
        """Numbers from here on are of this run."""
        return self._head.first_seq

    @property
    def given(self) -> int:
        """How many numbers were given in this run."""
        return self._head.next_seq - 1 - self._head.first_seq

    @property
    def gaps(self) -> Sequence[Gap]:
        """What was given up, oldest first; the newest thousand."""
        return self._condition.gaps

    def status(self) -> dict[str, Any]:
        """What `status`, page and metrics show of the log."""
        condition, committer = self._condition, self._committer
        confirmed = self.boots.confirmed
        return {
            **condition.shown(held_back=not confirmed and self.settings.unconfirmed == "hold"),
            "path": str(self.settings.path),
            "size_bytes": committer.size_bytes,
            "max_size_bytes": self.settings.max_size_bytes,
            "head_readings": self._head.readings,
            "head_bytes": self._head.size_bytes,
            "appended": self._appended,
            "commits": committer.commits,
            "series": len(self.series),
            "gaps": len(condition.gaps),
            "dropped": sum(gap.readings for gap in condition.gaps),
            "lost": condition.lost(),
            "salvaged": condition.salvaged,
            "time_confirmed": confirmed,
            "consumers": self._lanes.status(),
            "gone": self.gone_consumers(),
            "gone_devices": self.gone_devices(),
            "writer_busy_s": round(self._file.writer.busy_s(), 3),
        }

    # Ending

    async def commit(self) -> None:
        """Write everything that is owed, now. For stop and tests; ordinarily age and size decide.

        Raises:
            LogError: the card refused; the sets stay in the head.
        """
        await self._committer.commit_all()

    async def close(self) -> None:
        """Commit everything, close the file, let the next daemon in.

        Raises:
            LogError: the last commit was refused; what was not written is lost with this process.
        """
        if self._condition.closed:
            return
        if self._adopting is not None:
            self._adopting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._adopting
        await self._lanes.close()
        self._condition.closed = True
        try:
            await self.commit()  # waits for a look at the file, too
        finally:
            self._committer.disarm()
            self._receipts.close()
            await self._file.close()


def _in_all(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is owed of a device to several."""
    backlogs = [row["backlog"] for row in rows]
    return {
        "backlog": None if None in backlogs else sum(backlogs),
        "oldest_unsent_at": min((row["oldest_unsent_at"] for row in rows if row["oldest_unsent_at"]), default=None),
        "later": sum(row["later"] for row in rows),
        "dead": sum(row["dead"] for row in rows),
    }
