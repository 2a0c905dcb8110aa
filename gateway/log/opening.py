"""Opening: the file can be read, at the start, late or made anew while running. Every room takes from it, or gives it, its part."""

from gateway.log.condition import Condition
from gateway.log.file import File
from gateway.log.head import Head
from gateway.log.held import Held
from gateway.log.lanes import Lanes
from gateway.log.pending import Pending, as_called
from gateway.log.points import Points
from gateway.log.receipts import Receipts
from gateway.log.recipes import Recipes
from gateway.log.refusal import Refusal
from gateway.log.salvage import Report
from gateway.log.segment import microseconds
from gateway.log.stamps import Stamps
from gateway.log.store import Gap, HeldRow, Loaded, Store
from gateway.sdk.driver import Clock


class Opening:
    """What is between a file and a log that can be used."""

    def __init__(
        self,
        clock: Clock,
        *,
        file: File,
        head: Head,
        stamps: Stamps,
        points: Points,
        pending: Pending,
        receipts: Receipts,
        lanes: Lanes,
        held: Held,
        recipes: Recipes,
        condition: Condition,
    ) -> None:
        self._clock = clock
        self._file = file
        self._head = head
        self._stamps = stamps
        self._points = points
        self._pending = pending
        self._receipts = receipts
        self._lanes = lanes
        self._held = held
        self._recipes = recipes
        self._condition = condition

    async def open(self) -> bool:
        """Try to open the file and take over what it holds; a failure is noted and tried again with the next commit.

        Raises:
            LogError: another daemon has the file.
        """
        try:
            store, loaded, report = await self._file.open()
        except Refusal as error:
            self._condition.failed(error)
            return False
        self._file.store = store
        try:
            await self._take_over(store, loaded, report)
        except Exception as error:  # noqa: BLE001  told in status, tried again: the box goes on without the file
            await self._file.let_go(store)
            self._condition.failed(error)
            return False
        return True

    async def _take_over(self, store: Store, loaded: Loaded, report: Report | None) -> None:
        """Number the sets that were waiting for the file, join the consumers."""
        head = self._head
        self._stamps.take(loaded)
        self._recipes.take(loaded)
        store.boots, store.now_us = self._stamps.boots, self._stamps.trusted_now_us
        late, known = head.next_seq > 1, head.first_seq > 0
        more = head.renumber(loaded.start << 32, self._points.take_names(loaded), self._stamps.boots.current)
        self._receipts.renumber(more)
        self._lanes.renumber(more)
        self._points.take_rest(loaded, head.entries, late=late)
        self._held.take(loaded.held)
        self._condition.gaps = [*loaded.gaps, *self._pending.gaps]
        head.stored_last = loaded.last
        self._recipes.look()
        settled = report.settled if report else None
        await self._lanes.take_places(loaded.cursors, loaded.consumers, known=known, salvaged=settled)
        self._condition.failure = ""
        self._stamps.learn()
        if report is not None:
            self._condition.note_salvage(report)

    def made_anew(self, report: Report, gaps: list[Gap], held: list[HeldRow]) -> None:
        """The file was made anew while running: what memory knows better goes into it with the next commit."""
        pending = self._pending
        self._points.owe_all()
        self._recipes.owe_all()
        pending.cursors.update(self._lanes.cursors)
        pending.consumers.update(self._lanes.known)
        pending.boots += self._stamps.boots.rows()
        self._condition.gaps = [*gaps, *pending.gaps]
        self._held.take([as_called(row, pending.held) for row in held])
        self._condition.note_salvage(report)
        if report.all_lost:
            owed = self._lanes.in_file()
            gap = Gap(microseconds(self._clock.now()), None, None, max(owed.values(), default=0), "damage", owed)
            pending.gaps.append(gap)
            self._condition.gaps.append(gap)
        self._lanes.recount_due = True
