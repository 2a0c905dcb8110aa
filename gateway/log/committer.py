"""Committer: when sets are written, and what beside them; what becomes of a commit that fails, and of what cannot be written."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gateway.log import isolate
from gateway.log.condition import Condition
from gateway.log.file import File
from gateway.log.head import Head
from gateway.log.held import Held
from gateway.log.isolate import Unwritable
from gateway.log.lanes import Lanes
from gateway.log.opening import Opening
from gateway.log.pending import Pending, as_called
from gateway.log.places import between, stretches
from gateway.log.points import Points
from gateway.log.receipts import Receipts
from gateway.log.recipes import Recipes
from gateway.log.retention import Retention
from gateway.log.salvage import Report
from gateway.log.segment import Entry, microseconds
from gateway.log.settings import LogSettings
from gateway.log.stamps import Stamps
from gateway.log.store import Batch, Committed, Gap, HeldRow, Store
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.reading import ReadingSet

_HOUSEKEEPING_S: Final = 3600.0
_DRAIN_S: Final = 60.0  # a cursor that moved over stored segments is written within this
_RETRY_S: Final = 5.0
_ACCEPTED_S: Final = 3600.0  # what every consumer has sent, and has yet to settle, is written when it is as old
_SLOWEST_FADES: Final = 0.95  # how much of the slowest commit is remembered from one to the next
_HEADROOM: Final = 1.5  # a commit may take that much longer than the slowest so far


class Schedule:
    """When a commit is due.

    Attributes:
        housekeeping_at_s: when last values and statistics are to be saved.
    """

    def __init__(
        self,
        every_s: float,
        *,
        now_s: float,
        head: Head,
        pending: Pending,
        lanes: Lanes,
        receipts: Receipts,
        condition: Condition,
    ) -> None:
        self.housekeeping_at_s = now_s + _HOUSEKEEPING_S
        self._every_s = every_s
        self._slowest_s = 0.0  # a commit, of late
        self._head = head
        self._pending = pending
        self._lanes = lanes
        self._receipts = receipts
        self._condition = condition

    def due(self, now_s: float) -> bool:
        """Whether a commit is due: for the sets in the head, or by the hour, or for what settling and drivers left."""
        if self._condition.failure and now_s - self._condition.failed_s < _RETRY_S:
            return False
        drained_since_s = self._lanes.drained_since_s
        return (
            self.sets_due(now_s)
            or self.housekeeping_due(now_s)
            or self._pending.urgent(now_s)
            or (drained_since_s is not None and now_s - drained_since_s >= _DRAIN_S)
        )

    def sets_due(self, now_s: float) -> bool:
        """Whether the oldest set that somebody needs is of age, or the head is half full."""
        head, entries, needed_s = self._head, self._head.entries, self._needed_s()
        return bool(entries) and (
            (needed_s is not None and now_s - needed_s >= self._window_s)
            or now_s - entries[0].appended_s >= max(_ACCEPTED_S, self._window_s)
            or head.size_bytes >= head.max_bytes // 2
        )

    def _needed_s(self) -> float | None:
        """When the oldest set came that one consumer has not sent yet, or that a receipt is waited for; None: all may wait."""
        head, sent_upto = self._head, self._lanes.accepted() if self._every_s else 0  # else nothing waits
        first = self._receipts.first_waited_for
        at = head.after(sent_upto if first is None else min(sent_upto, first - 1))
        return head.entries[at].appended_s if at < len(head.entries) else None

    def housekeeping_due(self, now_s: float) -> bool:
        return now_s >= self.housekeeping_at_s

    @property
    def _window_s(self) -> float:
        """How old a set may be when its commit begins: it has to end within `commit_every`."""
        return self._every_s - min(_HEADROOM * self._slowest_s, self._every_s / 2)

    def wait_s(self, now_s: float) -> float:
        """Until the oldest set that somebody needs comes of age; so long at most, as a set may come at once."""
        wait_s = self._window_s or 1.0
        needed_s = self._needed_s()
        if self._condition.failure:
            wait_s = _RETRY_S
        elif needed_s is not None:
            wait_s -= max(0.0, now_s - needed_s)
        return max(wait_s, 0.001)

    def took(self, seconds: float) -> None:
        """A commit took so long."""
        self._slowest_s = max(seconds, _SLOWEST_FADES * self._slowest_s)


class Committer:
    """Writes the head and what is pending, one commit at a time.

    Attributes:
        schedule: when a commit is due.
        look_at_s: when the timer fires, or a set that comes later does its work.
        running: the commits that were started here; None while none is.
        commits: how many were written.
        size_bytes: of the file after the last of them.
    """

    def __init__(
        self,
        settings: LogSettings,
        clock: Clock,
        *,
        file: File,
        held: Held,
        head: Head,
        pending: Pending,
        stamps: Stamps,
        points: Points,
        receipts: Receipts,
        lanes: Lanes,
        recipes: Recipes,
        condition: Condition,
    ) -> None:
        self.schedule = Schedule(
            settings.commit_every_s,
            now_s=clock.monotonic_s(),
            head=head,
            pending=pending,
            lanes=lanes,
            receipts=receipts,
            condition=condition,
        )
        self.look_at_s = 0.0
        self.running: asyncio.Task[None] | None = None
        self.commits = 0
        self.size_bytes = 0
        self._settings = settings
        self._clock = clock
        self._file = file
        self._opening = Opening(
            clock,
            file=file,
            held=held,
            head=head,
            stamps=stamps,
            points=points,
            pending=pending,
            receipts=receipts,
            lanes=lanes,
            recipes=recipes,
            condition=condition,
        )
        self._head = head
        self._pending = pending
        self._stamps = stamps
        self._points = points
        self._receipts = receipts
        self._lanes = lanes
        self._recipes = recipes
        self._condition = condition
        self._loop = asyncio.get_running_loop()
        self._one_at_a_time = asyncio.Lock()
        self._attempt = self._loop.create_future()
        self._carried = Pending()  # by the commit at work
        self._again = False
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    # When

    def look(self, now_s: float) -> None:
        """A set came: whether a commit is due is looked at now."""
        if self.schedule.due(now_s):
            self.start()
        else:
            self.arm()

    def arm(self) -> None:
        """Look again when the oldest set in the head comes of age."""
        if self._condition.closed:
            return
        self.disarm()
        now_s = self._clock.monotonic_s()
        wait_s = self.schedule.wait_s(now_s)
        self.look_at_s = now_s + wait_s
        self._timer = self._loop.call_later(wait_s, self._tick)

    def disarm(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer, self.look_at_s = None, 0.0
        self._stamps.look()
        if self._condition.failure or self.schedule.due(self._clock.monotonic_s()):
            self.start()
        else:
            self._looking = self._loop.create_task(self._look_after_file(), name="log-look")

    async def _look_after_file(self) -> None:
        """While the card rests nothing is written for an hour: a file taken away in that time is noticed all the same."""
        try:
            async with self._one_at_a_time:
                if self._file.store is not None and not self._condition.closed:
                    await self._file.job(self._file.still_there)
        except Exception as error:  # noqa: BLE001  told, and tried again as a commit that failed
            self._condition.failed(error)
        finally:
            self.arm()

    def start(self) -> None:
        """Commit what is due, in a task of its own."""
        if self.running is not None:
            self._again = True
        elif not self._condition.closed:
            self.running = self._loop.create_task(self._run(), name="log-commit")

    def made_anew(self, report: Report, gaps: list[Gap], held: list[HeldRow]) -> None:
        """The file was made anew while running: all that memory knows goes into it, and what is else written by the hour."""
        called = [as_called(row, self._carried.held) for row in held]
        self._opening.made_anew(report, [*gaps, *self._carried.gaps], called)
        self.schedule.housekeeping_at_s = self._clock.monotonic_s()
        self.start()

    async def _run(self) -> None:
        try:
            while True:
                self._again = False
                now_s = self._clock.monotonic_s()
                # young sets stay in memory: most are settled before they are of age, and never written
                sets, housekeeping = self.schedule.sets_due(now_s), self.schedule.housekeeping_due(now_s)
                await self.commit(sets=sets, housekeeping=housekeeping)
                if not self._again or self._condition.failure or self._condition.closed:
                    return
        finally:
            self.running = None
            self._receipts.make_room()
            self.arm()

    # Who waits for it

    async def commit_all(self) -> None:
        """Write everything that is owed, now.

        Raises:
            LogError: the card refused; the sets stay in the head.
        """
        while self.running is not None:
            await asyncio.shield(self.running)
        # whoever waits here may be cancelled; what was begun is ended
        await asyncio.shield(self._loop.create_task(self.commit(housekeeping=True), name="log-commit-all"))
        if self._condition.failure:
            raise LogError(self._condition.failure)

    async def written(self, seq: int) -> None:
        """Until the set is on the card, or the card has refused: then it stays in the head like any other."""
        while seq > self._receipts.done() and not self._condition.failure:
            self.start()
            await asyncio.shield(self._attempt)

    async def wait_for_room(self) -> None:
        """A slow card slows polling; a card that refuses costs the oldest sets in memory, counted."""
        if self._condition.failure and not self._one_at_a_time.locked():
            self._give_up(self._head.drop_oldest(self._head.max_bytes * 9 // 10))
            return
        self.start()
        await asyncio.shield(self._receipts.room)

    # What

    async def open(self) -> None:
        """Open the file, write what waited for it.

        Raises:
            LogError: another daemon has it.
        """
        async with self._one_at_a_time:
            await self._open()

    async def _open(self) -> None:
        if await self._opening.open():
            await self._commit(sets=True, housekeeping=False)

    async def commit(self, *, sets: bool = True, housekeeping: bool = False) -> None:
        """One commit, after the one at work; never raises but when cancelled."""
        async with self._one_at_a_time:
            await self._commit(sets=sets, housekeeping=housekeeping)

    async def _commit(self, *, sets: bool, housekeeping: bool) -> None:
        """Never raises but when cancelled: what went wrong is put back, shown in status, and tried again."""
        begun_s = self._clock.monotonic_s()
        try:
            if self._file.store is None:
                await self._open()  # ends with a commit of its own
                if self._file.store is None:
                    self._use_boots(self._pending)  # the cities must not wait for the card
            elif await self._commit_once(sets=sets, housekeeping=housekeeping):
                self.schedule.took(self._clock.monotonic_s() - begun_s)
                self._condition.worked()
        except Exception as error:  # noqa: BLE001  the file is of use again when its cause is gone; until then it is told
            self._condition.failed(error)
        finally:
            self._attempted()

    async def _commit_once(self, *, sets: bool, housekeeping: bool) -> bool:
        """Whether all that was to be written is."""
        # driver state never goes before its set: a source that sends again what was not durable would be refused it
        entries = list(self._head.entries) if sets or self._pending.states else []
        self._lanes.note_known()
        self._recipes.forget_settled(self._lanes.cursors)
        self._carried = carried = self._pending.taken()
        in_doubt, self._condition.in_doubt = self._condition.in_doubt, True
        try:
            done, unwritable = await self._write(entries, carried, housekeeping=housekeeping, in_doubt=in_doubt)
        except BaseException as error:
            self._pending.take_back(carried)
            if not isinstance(error, Exception):
                raise  # cancelled: the writer may still have done it
            self._condition.failed(error)
            self._use_boots(carried)  # the cities must not wait for the card
            return False
        finally:
            self._carried = Pending()
        if unwritable is not None:
            # nobody waits for those
            self._receipts.durable_upto = max(self._receipts.durable_upto, *(entry.seq for entry in entries), 0)
            entries = self._set_apart(entries, unwritable)
        self.commits += 1
        self.size_bytes = done.size_bytes
        self._lanes.drained_since_s = self._clock.monotonic_s() - _DRAIN_S if done.more else None
        self._again |= done.more
        if housekeeping:
            self.schedule.housekeeping_at_s = self._clock.monotonic_s() + _HOUSEKEEPING_S
            if not self._condition.unkept:
                self._points.statistics.saved()
        await self._stored(entries, done, in_doubt=in_doubt)
        self._use_boots(carried)
        self._condition.in_doubt = False
        return True

    async def _write(
        self, entries: list[Entry], carried: Pending, *, housekeeping: bool, in_doubt: bool
    ) -> tuple[Committed, Unwritable | None]:
        batch = self._batch(entries, carried)
        if housekeeping:
            self._points.keep_house(batch, max_age_s=self._settings.max_age_s)
        places, ends = self._lanes.places(), self._lanes.ends()
        retention = Retention(self._settings.max_age_s, self._settings.keep_s, places, ends)

        def work(store: Store) -> tuple[Committed, Unwritable | None]:
            self._file.still_there(store)
            return isolate.commit(store, batch, retention, places, ends, in_doubt=in_doubt)

        return await self._file.job(work)

    def _batch(self, entries: Sequence[Entry], carried: Pending) -> Batch:
        cursors = self._lanes.cursors
        owed = stretches(self._lanes.places(), self._lanes.ends())
        return Batch(
            entries=entries,
            series=carried.series,
            cursors={name: cursors[name] for name in carried.cursors if name in cursors},
            consumers={name: known for name in carried.consumers if (known := self._lanes.known.get(name)) is not None},
            renamed=carried.renamed,
            forget=[name for name in carried.forget if name not in cursors],  # one may have come back
            stateless=carried.stateless,
            states=carried.states,
            recipes=carried.recipes,
            moved=carried.moved,
            held=carried.held,
            boots=carried.boots,
            gaps=carried.gaps,
            settled=owed[0][0],
            free=between(owed),
            prune=self._settings.keep_s == 0 and not self._settings.leave_foreign,
            now_us=microseconds(self._clock.now()),
        )

    async def _stored(self, entries: list[Entry], done: Committed, *, in_doubt: bool) -> None:
        if entries:
            last = entries[-1].seq
            self._head.stored_last = self._receipts.durable_upto = last
            self._head.drop(last)
            self._receipts.make_room()
            self._receipts.resolve()
            self._lanes.stored(entries)
        if done.gaps:
            self._condition.note_gaps(done.gaps)
        self._lanes.recount_due |= bool(done.gaps) or in_doubt
        if self._lanes.recount_due:
            with contextlib.suppress(LogError):
                await self._lanes.recount()
                if in_doubt:  # what retention took in a commit that was written though it failed nobody has heard of
                    self._condition.gaps = [*await self._file.job(Store.gaps), *self._pending.gaps]
        else:
            self._condition.note_kept()

    def _use_boots(self, carried: Pending) -> None:
        if self._stamps.use(carried.boots):
            self._lanes.wake()
            self._points.last_values.confirm(self._stamps.future())

    def _attempted(self) -> None:
        """A commit has ended, well or not."""
        attempt, self._attempt = self._attempt, self._loop.create_future()
        attempt.set_result(None)

    # What is given up

    def spoilt(self, readings: ReadingSet, series: tuple[int, ...], error: Exception) -> int:
        """A set that is none: it is not taken, and counted. Returns its number."""
        device = readings.device if isinstance(readings.device, str) else repr(readings.device)[:100]
        self._points.last_values.forget(series)
        seq = self._head.skip()
        self._receipts.give_up(seq, seq, f"{type(error).__name__}: {error}")
        try:
            count = len(readings.readings)
        except TypeError:
            count = 0
        now_us = microseconds(self._clock.now())
        self.count(Gap(now_us, now_us, now_us, count, isolate.REASON, dict.fromkeys(self._lanes.names(), count)))
        self._condition.note_unwritable(f"a set of {device}: {type(error).__name__}: {error}")
        return seq

    def _give_up(self, entries: Sequence[Entry]) -> None:
        """The card refuses, memory is full."""
        if not entries:
            return
        first, last = entries[0].seq, entries[-1].seq
        self._lanes.given_up(first, last)
        now_us = microseconds(self._clock.now())
        gap = isolate.lost(list(entries), now_us, self._lanes.places(), self._lanes.ends())
        self.count(replace(gap, reason="memory"))
        self._receipts.give_up(first, last, "refused the set and memory is full")

    def _set_apart(self, entries: list[Entry], found: Unwritable) -> list[Entry]:
        """What cannot be written is forgotten, and told; returns the sets that were written."""
        self._condition.note_unwritable(str(found))
        gone = {entry.seq for entry in found.entries}
        for entry in found.entries:
            self._receipts.give_up(entry.seq, entry.seq, f"cannot hold the set: {found}")
            self._lanes.given_up(entry.seq, entry.seq)
        self._head.take_out(gone)
        self._points.forget(found)
        if found.gap is not None:
            self._condition.note_gaps([found.gap])
        return [entry for entry in entries if entry.seq not in gone]

    def count(self, gap: Gap) -> None:
        """A gap record for the next commit."""
        self._pending.add_gap(gap)
        self._condition.note_gaps([gap])
