"""The history lanes: everything from the cursor, in order; they alone settle.

`InOrderLane`, for a broker whose history is what its current state once was: each set becomes one update of each of its
entities; an entity stands once per request, so its updates go one after the other in time order. `PastLane`, for a
broker with a temporal API (or, by option, for none): what the state lane did not send goes to the history alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

from gateway.forward.aside import FUTURE, LATER_S, Aside
from gateway.forward.broker import Accepted, Broker, Outcome, Point, ReadRefused, Streak, believed, observed
from gateway.forward.updates import (
    Complete,
    Good,
    Sent,
    Update,
    instant,
    is_measured,
    past_only,
    sets,
    update_of,
    updates,
)
from gateway.harmonise.entity import Entity
from gateway.log.segment import TimeState
from gateway.sdk.driver import Clock

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping
    from gateway.log.log import Columns, Series

FUTURE_S = 300.0  # further ahead than this a reading is held until its time comes
FUTURE_AGAIN_S = 86_400.0  # it is looked at again after this at the latest
INCOMPLETE_S = 60.0  # how often an entity without its mandatory attributes is looked at again
UPDATES_A_REQUEST = 100  # a live request waits behind one such at most
LATE = "older than what the broker holds, and it has no temporal API"


class Source(Protocol):
    """What a lane asks of the log."""

    @property
    def series(self) -> "MappingOf[int, Series]": ...

    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> "Columns | None": ...

    async def settle(self, consumer: str, upto: int) -> None: ...


@dataclass(slots=True)
class LaneCounts:
    """What a lane did since the start, in updates of entities."""

    accepted: int = 0
    refused: int = 0
    known: int = 0  # not sent: the broker held it already
    late: int = 0  # not sent: the broker holds newer, and has no temporal API
    skipped: int = 0  # not sent: latest-only


@dataclass(frozen=True, slots=True)
class Shared:
    """What the lanes of one broker have in common.

    Attributes:
        name: the broker's, and so the consumer's.
        mappings: by device; devices that are not there are not sent to this broker, only settled.
    """

    name: str
    broker: Broker
    mappings: "MappingOf[str, Sequence[Mapping]]"
    log: Source
    aside: Aside
    clock: Clock
    accepted: Accepted
    sent: Sent
    complete: Complete
    streak: Streak
    max_readings: int = 5000

    def latest_us(self) -> int:
        """Readings beyond this lie in the future."""
        return int((self.clock.now().timestamp() + FUTURE_S) * 1e6)

    async def settle(self, last: int | None) -> int | None:
        """Settle up to `last`, unless something is still gathered to be set aside; returns what is left to settle."""
        await self.aside.write()
        if last is None or not self.aside.empty:
            return last
        await self.log.settle(self.name, last)
        return None

    def bury(self, refused: "Sequence[tuple[Update, str]]") -> int:
        """Refused updates become dead letters; returns how many."""
        self.streak.clear(update.entity.id for update, _ in refused)
        for update, reason in refused:
            self.aside.put(update, reason, None, offered=True)
        return len(refused)

    def puts_off(self, entity_id: str) -> bool:
        """Whether an entity that is not taken now steps aside. Put off with all others, or while that is open, it stays in the log."""
        if self.streak.one_bad:
            self.streak.clear([entity_id])
        return not self.streak.begun

    def must_wait(self, update: Update) -> tuple[str, float] | None:
        """Why an update of the log cannot be sent yet, and for how long; None when it can."""
        if self.complete.lacks(update.mapping):
            return f"waits for {', '.join(self.complete.missing[update.mapping.entity_id])}", INCOMPLETE_S
        ahead_us = update.newest_us - self.latest_us()
        if ahead_us > 0:
            return FUTURE, min(ahead_us / 1e6, FUTURE_AGAIN_S)
        if self.aside.waiting(update.mapping.entity_id):
            return "waits for older sets of this entity", 1.0
        return None


class InOrderLane:
    """Reads a stretch of the log, sends it round by round, settles it when all of it is done.

    Args:
        remember: another lane may follow at once, which must know what was sent.
        ahead: the state was sent ahead of what the log still holds, so that being older than the broker's value does not
            mean that the broker has it. True until the tail of the log is reached.
    """

    def __init__(self, shared: Shared, *, remember: bool = False, ahead: bool = False) -> None:
        self._of = shared
        self._remember = remember
        self.ahead = ahead
        self._queues: dict[str, deque[Update]] = {}  # by entity id, oldest first
        self._refused: list[tuple[Update, str]] = []  # verdict open
        self._last: int | None = None  # settle up to here once all is done
        self._sent_seq: dict[str, int] = {}  # entity -> newest set accepted in this run
        self.counts = LaneCounts()

    @property
    def idle(self) -> bool:
        """Nothing to send."""
        return not self._queues

    @property
    def position(self) -> int | None:
        """All up to here was read; None: as far as the cursor."""
        return self._last

    @property
    def waiting_readings(self) -> int:
        """Readings taken from the log and not yet done."""
        return sum(len(update.readings) for queue in self._queues.values() for update in queue)

    async def fill(self) -> bool:
        """Read the next stretch; False at the tail."""
        of = self._of
        columns = await of.log.read(of.name, after=self._last, max_readings=of.max_readings)
        if columns is None:
            self._caught_up()
            return False
        columns = confirmed(columns)
        if columns is None:
            return False
        read = list(updates(columns, of.log.series, of.mappings))
        self._last = columns.last  # a fault in the walk leaves the stretch unread
        touched = set()
        for update in read:
            why = of.must_wait(update)
            if why is not None:
                of.aside.put(update, *why)
                continue
            self._queues.setdefault(update.entity.id, deque()).append(update)
            touched.add(update.entity.id)
        self._sort(touched)
        await self.settle()
        return True

    def _caught_up(self) -> None:
        """From here on everything is sent in order."""
        if self.ahead and not self._queues:
            self.ahead = False
            if not self._remember:
                self._of.sent.clear()

    def forget(self) -> None:
        """No other lane follows."""
        self._remember = False
        self._of.sent.clear()

    def take_over(self, past: "PastLane") -> None:
        """What a lane of the history had read and not sent goes on here, so that it is read but once."""
        self._queues, self._refused, self._last = past.hand_over()
        self._sort(self._queues)

    async def put_first(self, held: Sequence[Update]) -> None:
        """Held updates whose time has come go before what the log has of their entities."""
        self._put_first(held)

    def _put_first(self, held: Sequence[Update]) -> None:
        for update in reversed(held):
            self._queues.setdefault(update.entity.id, deque()).appendleft(update)
        self._sort({update.entity.id for update in held})

    def _sort(self, entity_ids: Iterable[str]) -> None:
        for entity_id in entity_ids:
            queue = self._queues[entity_id]
            times = [update.newest_us for update in queue]
            if times != sorted(times):
                self._queues[entity_id] = deque(sorted(queue, key=lambda update: update.newest_us))

    async def send(self, most: int | None = None, *, skip: int = 0) -> Outcome:
        """Send one round: the oldest waiting update of every entity. Settles when nothing is left.

        Args:
            most: at most so many entities, `skip` being left out first (a probe tries them in turn).

        Raises:
            BrokerUnavailable: what the broker holds could not be read back.
        """
        await self._read_back()
        batch = await self._round()
        if most is not None:
            batch = [batch[(skip + n) % len(batch)] for n in range(min(most, len(batch)))]
        outcome = await self._of.broker.state([update.entity for update in batch]) if batch else Outcome()
        await self._done(batch, outcome)
        await self.settle()
        return outcome

    async def _done(self, batch: Sequence[Update], outcome: Outcome) -> None:
        streak = self._of.streak
        streak.note(outcome)
        for update in batch:
            entity_id = update.entity.id
            if entity_id in outcome.accepted:
                self._of.accepted.note(entity_id, observed(update.entity))
                self._sent_seq[entity_id] = update.seq
                for _, time_us, number in update.readings.values() if self._remember else ():
                    self._of.sent.note(entity_id, number, time_us)
                self.counts.accepted += 1
                self._of.aside.done(update)
                self._pop(entity_id)
            elif entity_id in outcome.refused:
                self._refused.append((update, outcome.refused[entity_id]))
                self._pop(entity_id)
            else:
                if entity_id in outcome.doubtful:
                    self._of.accepted.doubt(entity_id)
                if outcome.fault is None and self._of.puts_off(entity_id):
                    self._put_off(entity_id, outcome.later[entity_id])
        self._judge()

    def _judge(self) -> None:
        """Refused alone among accepted ones: the entity's fault. Refused with all others, again and again: the config's."""
        refused, streak = self._refused, self._of.streak
        if streak.config_fault:
            self._refused = []
            self._put_first([update for update, _ in refused])
        elif refused and (not streak.begun or streak.one_bad):
            self._refused = []
            self.counts.refused += self._of.bury(refused)

    def _put_off(self, entity_id: str, reason: str) -> None:
        """The broker works but not for this entity: all its waiting updates step aside, in order."""
        for n, update in enumerate(self._queues.pop(entity_id)):
            self._of.aside.put(update, reason, LATER_S[0], offered=n == 0)

    def _pop(self, entity_id: str) -> None:
        queue = self._queues[entity_id]
        queue.popleft()
        if not queue:
            del self._queues[entity_id]

    async def _round(self) -> list[Update]:
        batch = []
        for entity_id, queue in list(self._queues.items()):
            while queue:
                update = queue[0]
                newer = self._of.accepted.newer(update.entity)
                if newer is not update.entity:
                    await self._left_out(update, newer)
                if newer is not None:
                    update.entity = newer
                    batch.append(update)
                    break
                queue.popleft()
            if not queue:
                del self._queues[entity_id]
        return batch

    async def _left_out(self, update: Update, newer: Entity | None) -> None:
        """The broker holds that time or a newer one: it had it from an earlier run, or it came too late."""
        kept = {} if newer is None else newer.attributes
        slots = update.mapping.slots
        gone = {p: g for p, g in update.readings.items() if slots[p] and not any(slot.key in kept for slot in slots[p])}
        late = self.ahead or bool(update.held) or update.seq > self._sent_seq.get(update.entity.id, update.seq)
        if gone and late and any(not self._held_by_broker(update, point) for point in gone):
            self.counts.late += 1
            part = update_of(update.mapping, gone, update.seq)
            part.held = update.held if newer is None else 0
            self._of.aside.put(part, LATE, None)
        else:
            self.counts.known += bool(gone)
            if newer is None:
                self._of.aside.done(update)
        update.readings = {p: g for p, g in update.readings.items() if p not in gone}

    def _held_by_broker(self, update: Update, point: str) -> bool:
        _, time_us, number = update.readings[point]
        at = instant(time_us)
        return self._of.sent.take(update.entity.id, number, time_us) or any(
            self._of.accepted.holds(update.entity.id, slot.key, at) for slot in update.mapping.slots[point]
        )

    async def _read_back(self) -> None:
        """Ask what the broker holds of entities not yet sent in this run, and of those in doubt."""
        accepted = self._of.accepted
        unknown = [queue[0].entity for entity_id, queue in self._queues.items() if not accepted.knows(entity_id)]
        if not unknown:
            return
        try:
            found = await self._of.broker.read_back(unknown)
        except ReadRefused:
            found = {}  # nothing else is to be had: what an earlier run sent is sent again, in order
        latest = instant(self._of.latest_us())
        for entity in unknown:
            accepted.note(entity.id, believed(found.get(entity.id, {}), latest))

    async def settle(self) -> None:
        """Settle what was read when all of it is done, and what was set aside is on the card."""
        self._judge()
        if not self._queues and not self._refused:
            self._last = await self._of.settle(self._last)


class PastLane:
    """Sends to the history what the state lane did not and will not send; settles what is done.

    Args:
        pending: whether a reading is still the state lane's to send.
        records: the broker records by itself what the state lane sends.
        temporal: False counts instead of sending (`latest-only`).
        first_seq: sets below it are of an earlier run, whose points the broker may hold: they are asked for first.
    """

    def __init__(
        self,
        shared: Shared,
        pending: Callable[[str, int, int], bool],
        *,
        records: bool,
        temporal: bool = True,
        first_seq: int = 0,
    ) -> None:
        self._of = shared
        self._pending = pending
        self._records = records
        self._temporal = temporal
        self._first_seq = first_seq
        self._queues: dict[str, deque[Update]] = {}
        self._doubtful: set[str] = set()
        self._most: dict[str, int] = {}  # entity -> updates a request, while a bad one among them is searched for
        self._refused: list[tuple[Update, str]] = []  # verdict open
        self._last: int | None = None
        self.counts = LaneCounts()

    @property
    def idle(self) -> bool:
        """Nothing to send."""
        return not self._queues

    @property
    def position(self) -> int | None:
        """All up to here was read; None: as far as the cursor."""
        return self._last

    def hand_over(self) -> "tuple[dict[str, deque[Update]], list[tuple[Update, str]], int | None]":
        """Updates waiting by entity, those with an open verdict, and up to where the log was read."""
        return self._queues, self._refused, self._last

    @property
    def of_earlier_run(self) -> bool:
        """Whether what is next was read in an earlier run, or is in doubt."""
        entity_id = next(iter(self._queues), "")
        return entity_id in self._doubtful or self._queues[entity_id][0].seq < self._first_seq

    async def fill(self) -> bool:
        """Read the next stretch, as far as it is not the state lane's; False when there is none."""
        of = self._of
        columns = await of.log.read(of.name, after=self._last, max_readings=of.max_readings)
        if columns is None:
            return False
        last, complete = self._last, True
        for seq, parts in groupby(sets(columns, of.log.series), key=itemgetter(0)):
            taken = [(mapping, points) for _, device, points in parts for mapping in of.mappings.get(device, ())]
            if any(self._waits(mapping, points) for mapping, points in taken):
                complete = False  # this set, and all after it, stay in the log for now
                break
            for mapping, points in taken:
                await self._take(mapping, points, seq)
            last = seq
        if not complete and last == self._last:
            return False
        self._last = columns.last if complete else last
        await self.settle()
        return True

    async def put_first(self, held: Sequence[Update]) -> None:
        """Held updates whose time has come; what the state lane has sent meanwhile is done, what it will send waits on."""
        for update in reversed(held):
            entity_id = update.entity.id
            if self._waits(update.mapping, update.readings):
                self._of.aside.put(update, "waits for the current value to be taken", INCOMPLETE_S)
                continue
            left = self._unsent(update.mapping, update.readings)
            if left:
                again = update_of(update.mapping, left, update.seq)
                again.held = update.held
                self._queues.setdefault(entity_id, deque()).appendleft(again)
                self._doubtful.add(entity_id)
            else:
                self._of.aside.done(update)

    async def send(self) -> Outcome:
        """One request: the oldest waiting updates of one entity.

        Raises:
            BrokerUnavailable: what the history holds could not be read back.
        """
        entity_id = next(iter(self._queues))
        queue = self._queues[entity_id]
        batch = [queue[n] for n in range(min(len(queue), self._most.get(entity_id, UPDATES_A_REQUEST)))]
        if not self._temporal:
            self.counts.skipped += len(batch)
            await self._finish(entity_id, batch)
            return Outcome()
        batch = await self._unknown(entity_id, batch)
        if not batch:
            return Outcome()
        outcome = await self._of.broker.history([past_only(update) for update in batch])
        await self._done(entity_id, batch, outcome)
        return outcome

    def _waits(self, mapping: "Mapping", points: MappingOf[str, Good]) -> bool:
        if not self._records or self._of.complete.lacks(mapping):
            return False
        return any(
            self._pending(mapping.entity_id, number, time_us)
            for point, (_, time_us, number) in points.items()
            if mapping.slots.get(point)
        )

    def _unsent(self, mapping: "Mapping", points: MappingOf[str, Good]) -> dict[str, Good]:
        """What the state lane did not send; points that are only sub-attributes go along."""
        sent, left, alone = self._of.sent, {}, True
        for point, good in points.items():
            if not mapping.slots[point]:
                left[point] = good
            elif not (sent.take(mapping.entity_id, good[2], good[1]) and self._records):
                left[point] = good
                alone = False
        return {} if alone else left

    async def _take(self, mapping: "Mapping", points: MappingOf[str, Good], seq: int) -> None:
        mine = {point: good for point, good in points.items() if point in mapping.slots}
        if not mine:
            return
        update = Update(mapping, Entity(mapping.entity_id, mapping.entity_type, mapping.context, {}, ""), mine, seq)
        why = self._of.must_wait(update)
        if why is not None:
            self._of.aside.put(update, *why)
            return
        left = self._unsent(mapping, mine)
        if left:
            update = update_of(mapping, left, seq)
            if is_measured(past_only(update)):
                self._queues.setdefault(mapping.entity_id, deque()).append(update)

    async def _unknown(self, entity_id: str, batch: list[Update]) -> list[Update]:
        """The batch without what the broker's history holds: asked when in doubt, and for what an earlier run may have sent."""
        if entity_id not in self._doubtful and batch[-1].seq >= self._first_seq and batch[0].seq >= self._first_seq:
            return batch
        try:
            points = await self._of.broker.history_back([past_only(update) for update in batch])
        except ReadRefused:
            return batch
        self._doubtful.discard(entity_id)
        known = [update for update in batch if _points(past_only(update)) <= points]
        self.counts.known += len(known)
        await self._finish(entity_id, known)
        return [_without(update, points) for update in batch if update not in known]

    async def _done(self, entity_id: str, batch: list[Update], outcome: Outcome) -> None:
        streak = self._of.streak
        if entity_id in outcome.doubtful:
            self._doubtful.add(entity_id)
        if outcome.fault is not None:
            return
        if entity_id in outcome.accepted:
            streak.note(outcome)
            self._most.pop(entity_id, None)
            self.counts.accepted += len(batch)
            await self._finish(entity_id, batch)
        elif len(batch) > 1:
            self._most[entity_id] = len(batch) // 2  # one of them is to blame
        elif entity_id in outcome.refused:
            streak.note(outcome)
            self._refused.append((batch[0], outcome.refused[entity_id]))
            self._drop(entity_id, batch)
        else:
            streak.note(outcome)
            queue = self._queues.pop(entity_id)
            if self._of.puts_off(entity_id):
                for n, update in enumerate(queue):
                    self._of.aside.put(update, outcome.later[entity_id], LATER_S[0], offered=n == 0)
            else:
                self._queues[entity_id] = queue  # at the end of the turn: another entity tries next
        self._judge()

    def _judge(self) -> None:
        """As in the other lane."""
        refused, streak = self._refused, self._of.streak
        if streak.config_fault:
            self._refused = []
            for update, _ in reversed(refused):  # at the end of the turn: another entity tries next
                queue = self._queues.pop(update.entity.id, None) or deque()
                queue.appendleft(update)
                self._queues[update.entity.id] = queue
        elif refused and (not streak.begun or streak.one_bad):
            self._refused = []
            self.counts.refused += self._of.bury(refused)

    async def _finish(self, entity_id: str, batch: Sequence[Update]) -> None:
        for update in batch:
            self._of.aside.done(update)
        self._drop(entity_id, batch)
        await self.settle()

    def _drop(self, entity_id: str, batch: Sequence[Update]) -> None:
        done = {id(update) for update in batch}
        left = deque(update for update in self._queues.get(entity_id, ()) if id(update) not in done)
        if left:
            self._queues[entity_id] = left
        else:
            self._queues.pop(entity_id, None)

    async def settle(self) -> None:
        """Settle what was read when all of it is done, and what was set aside is on the card."""
        self._judge()
        if not self._queues and not self._refused:
            self._last = await self._of.settle(self._last)


def confirmed(columns: "Columns") -> "Columns | None":
    """What comes before the first set whose time is not confirmed: such a set may not become current."""
    if TimeState.UNCONFIRMED in columns.time_state:
        first = columns.seq[columns.time_state.index(TimeState.UNCONFIRMED)]
        columns.cut(columns.seq.index(first))
        if not columns.seq:
            return None
        columns.last = columns.seq[-1]
    return columns


def _points(entity: Entity) -> set[Point]:
    return {(entity.id, key, at) for key, at in observed(entity).items()}


def _without(update: Update, points: frozenset[Point]) -> Update:
    """The update without the attributes that the history holds at their times."""
    entity = update.entity
    kept = {
        key: attribute
        for key, attribute in entity.attributes.items()
        if attribute.observed_at is None or (entity.id, key, attribute.observed_at) not in points
    }
    update.entity = replace(entity, attributes=kept)
    return update
