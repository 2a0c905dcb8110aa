"""The history lanes: everything from the cursor, in order; they alone settle.

`InOrderLane`, for a broker whose history is what its current state once was: each set becomes one update of each of its
entities; an entity stands once per request, so its updates go one after the other in time order. `PastLane`, for a
broker with a temporal API (or, by option, for none): what the state lane did not send goes to the history alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway.forward.aside import INCOMPLETE_S
from gateway.forward.broker import Outcome, Point, ReadRefused, observed
from gateway.forward.updates import Feed, Fits, Good, Update, instant, is_measured
from gateway.forward.verdicts import LaneCounts, Shared, Taken
from gateway.harmonise.entity import Entity

UPDATES_A_REQUEST = 100  # a live request waits behind one such at most
LATE = "older than what the broker holds, and it has no temporal API"


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
        self._taken = Taken(shared, in_turns=False)
        self._sent_seq: dict[str, int] = {}  # entity -> newest set accepted in this run

    @property
    def idle(self) -> bool:
        """Nothing to send."""
        return not self._taken.queues

    @property
    def position(self) -> int | None:
        """All up to here was read; None: as far as the cursor."""
        return self._taken.position

    @property
    def counts(self) -> LaneCounts:
        """What was done since the start."""
        return self._taken.counts

    @property
    def waiting_readings(self) -> int:
        """Readings taken from the log and not yet done."""
        return sum(len(update.readings) for queue in self._taken.queues.values() for update in queue)

    async def fill(self) -> bool:
        """Read the next stretch; False at the tail."""
        taken = self._taken
        stretch = await self._of.feeds.read(taken.position, confirmed=True)
        if stretch is None:
            self.caught_up()
        if stretch is None or stretch.last is None:
            return False
        # those of which the model allows nothing are left out; a fault in the walk leaves the stretch unread
        read = [update for _, updates in stretch.sets for update in updates if is_measured(update.entity)]
        taken.position = stretch.last
        ready = [update for update in read if taken.ready(update)]
        for update in ready:
            taken.put_last(update)
        taken.sort({update.entity_id for update in ready})
        await taken.settle()
        return True

    def caught_up(self) -> None:
        """Nothing is left in the log: from here on everything is sent in order."""
        if self.ahead and self.idle:
            self.ahead = False
            if not self._remember:
                self._of.sent.clear()

    def forget(self) -> None:
        """No other lane follows."""
        self._remember = False
        self._of.sent.clear()

    def take_over(self, past: "PastLane") -> None:
        """What a lane of the history had read and not sent goes on here, so that it is read but once."""
        past.hand_over(self._taken)

    async def put_first(self, held: Sequence[Update]) -> None:
        """Held updates whose time has come go before what the log has of their entities."""
        self._taken.put_first(held)
        self._taken.sort({update.entity_id for update in held})

    async def send(self, most: int | None = None, *, skip: int = 0, fits: Fits | None = None) -> Outcome:
        """Send one round: the oldest waiting update of every entity. Settles when nothing is left.

        Args:
            most: at most so many entities, `skip` being left out first (a probe tries them in turn).
            fits: how many of them may go now, by the readings of each.

        Raises:
            BrokerUnavailable: what the broker holds could not be read back.
        """
        await self._read_back()
        batch = self._round()
        if most is not None:
            batch = [batch[(skip + n) % len(batch)] for n in range(min(most, len(batch)))]
        if fits is not None:
            batch = batch[: fits([len(update.readings) for update in batch])]
        outcome = await self._of.broker.state([update.entity for update in batch]) if batch else Outcome()
        self._done(batch, outcome)
        await self._taken.settle()
        return outcome

    def _done(self, batch: Sequence[Update], outcome: Outcome) -> None:
        of = self._of
        for update in self._taken.judged(batch, outcome):
            of.accepted.note(update.entity_id, observed(update.entity))
            self._sent_seq[update.entity_id] = update.seq
            for _, time_us, number in update.readings.values() if self._remember else ():
                of.sent.note(update.entity_id, number, time_us)
        for entity_id in outcome.doubtful:
            of.accepted.doubt(entity_id)

    def _round(self) -> list[Update]:
        batch = []
        for entity_id, queue in list(self._taken.queues.items()):
            while queue:
                update = queue[0]
                newer = self._of.accepted.newer(update.entity)
                if newer is not update.entity:
                    self._left_out(update, newer)
                if newer is not None:
                    update.entity = newer
                    batch.append(update)
                    break
                queue.popleft()
            if not queue:
                del self._taken.queues[entity_id]
        return batch

    def _left_out(self, update: Update, newer: Entity | None) -> None:
        """The broker holds that time or a newer one: it had it from an earlier run, or it came too late."""
        kept = {} if newer is None else newer.attributes
        keys = update.feed.keys
        gone = {p: g for p, g in update.readings.items() if keys[p] and not any(key in kept for key in keys[p])}
        late = self.ahead or bool(update.held) or update.seq > self._sent_seq.get(update.entity_id, update.seq)
        if gone and late and any(not self._held_by_broker(update, point) for point in gone):
            self.counts.late += 1
            part = update.part(gone)
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
        return self._of.sent.take(update.entity_id, number, time_us) or any(
            self._of.accepted.holds(update.entity_id, key, at) for key in update.feed.keys[point]
        )

    async def _read_back(self) -> None:
        """Ask what the broker holds of entities not yet sent in this run, and of those in doubt."""
        accepted = self._of.accepted
        queues = self._taken.queues
        unknown = [queue[0].entity for entity_id, queue in queues.items() if not accepted.knows(entity_id)]
        if not unknown:
            return
        try:
            found = await self._of.broker.read_back(unknown)
        except ReadRefused:
            found = {}  # nothing else is to be had: what an earlier run sent is sent again, in order
        for entity in unknown:
            accepted.read_back(entity.id, found.get(entity.id, {}))

    async def settle(self) -> None:
        """Settle what was read when all of it is done, and what was set aside is on the card."""
        await self._taken.settle()


class PastLane:
    """Sends to the history what the state lane did not and will not send; settles what is done.

    Args:
        pending: whether a reading is still the state lane's to send.
        records: the broker records by itself what the state lane sends.
        temporal: False counts instead of sending (`latest-only`).
    """

    def __init__(
        self, shared: Shared, pending: Callable[[Feed, int, int], bool], *, records: bool, temporal: bool = True
    ) -> None:
        self._of = shared
        self._pending = pending
        self._records = records
        self._temporal = temporal
        self._taken = Taken(shared, in_turns=True)
        self._doubtful: set[str] = set()
        self._most: dict[str, int] = {}  # entity -> updates a request, while a bad one among them is searched for

    @property
    def idle(self) -> bool:
        """Nothing to send."""
        return not self._taken.queues

    @property
    def position(self) -> int | None:
        """All up to here was read; None: as far as the cursor."""
        return self._taken.position

    @property
    def counts(self) -> LaneCounts:
        """What was done since the start."""
        return self._taken.counts

    def hand_over(self, to: Taken) -> None:
        """Another lane goes on with what was read and is not done."""
        to.take_over(self._taken)

    @property
    def of_earlier_run(self) -> bool:
        """Whether what is next was read in an earlier run, or is in doubt."""
        queues = self._taken.queues
        entity_id = next(iter(queues), "")
        return entity_id in self._doubtful or queues[entity_id][0].seq < self._of.feeds.first_seq

    async def fill(self) -> bool:
        """Read the next stretch, as far as it is not the state lane's; False when there is none."""
        taken = self._taken
        stretch = await self._of.feeds.read(taken.position)
        if stretch is None:
            return False
        last, complete = taken.position, True
        for seq, updates in stretch.sets:
            if any(self._waits(update) for update in updates):
                complete = False  # this set, and all after it, stay in the log for now
                break
            for update in updates:
                self._take(update)
            last = seq
        if not complete and last == taken.position:
            return False
        taken.position = stretch.last if complete else last
        await taken.settle()
        return True

    async def put_first(self, held: Sequence[Update]) -> None:
        """Held updates whose time has come; what the state lane has sent meanwhile is done, what it will send waits on."""
        for update in reversed(held):
            if self._waits(update):
                self._of.aside.put(update, "waits for the current value to be taken", INCOMPLETE_S)
                continue
            left = self._unsent(update)
            if left:
                self._taken.put_first([update.part(left)])
                self._doubtful.add(update.entity_id)
            else:
                self._of.aside.done(update)

    async def send(self, fits: Fits | None = None) -> Outcome:
        """One request: the oldest waiting updates of one entity.

        Args:
            fits: how many of them may go now, by the readings of each.

        Raises:
            BrokerUnavailable: what the history holds could not be read back.
        """
        entity_id, queue = next(iter(self._taken.queues.items()))
        batch = [queue[n] for n in range(min(len(queue), self._most.get(entity_id, UPDATES_A_REQUEST)))]
        if not self._temporal:
            self.counts.skipped += len(batch)
            await self._finish(entity_id, batch)
            return Outcome()
        if fits is not None:
            batch = batch[: fits([len(update.readings) for update in batch])]
        if not batch:
            return Outcome()
        batch = await self._unknown(entity_id, batch)
        if not batch:
            return Outcome()
        outcome = await self._of.broker.history([update.past for update in batch])
        await self._done(entity_id, batch, outcome)
        return outcome

    def _waits(self, update: Update) -> bool:
        feed = update.feed
        if not self._records or self._of.feeds.complete.lacks(feed):
            return False
        return any(
            self._pending(feed, number, time_us)
            for point, (_, time_us, number) in update.readings.items()
            if feed.keys[point]
        )

    def _unsent(self, update: Update) -> dict[str, Good]:
        """What the state lane did not send; points that are only sub-attributes go along."""
        sent, keys, entity_id = self._of.sent, update.feed.keys, update.entity_id
        left, alone = {}, True
        for point, good in update.readings.items():
            if not keys[point]:
                left[point] = good
            elif not (sent.take(entity_id, good[2], good[1]) and self._records):
                left[point] = good
                alone = False
        return {} if alone else left

    def _take(self, update: Update) -> None:
        if not self._taken.ready(update):
            return
        left = self._unsent(update)
        if left:
            update.readings = left
            if is_measured(update.past):
                self._taken.put_last(update)

    async def _unknown(self, entity_id: str, batch: list[Update]) -> list[Update]:
        """The batch without what the broker's history holds: asked when in doubt, and for what an earlier run may have sent."""
        first_seq = self._of.feeds.first_seq
        if entity_id not in self._doubtful and batch[-1].seq >= first_seq and batch[0].seq >= first_seq:
            return batch
        try:
            points = await self._of.broker.history_back([update.past for update in batch])
        except ReadRefused:
            return batch
        self._doubtful.discard(entity_id)
        known = [update for update in batch if _points(update.past) <= points]
        self.counts.known += len(known)
        await self._finish(entity_id, known)
        return [_without(update, points) for update in batch if update not in known]

    async def _done(self, entity_id: str, batch: list[Update], outcome: Outcome) -> None:
        self._doubtful |= outcome.doubtful
        if outcome.fault is not None:
            return
        if entity_id not in outcome.accepted and len(batch) > 1:
            self._most[entity_id] = len(batch) // 2  # one of them is to blame
            self._taken.judge()
        elif self._taken.judged(batch, outcome):
            self._most.pop(entity_id, None)
            await self.settle()

    async def _finish(self, entity_id: str, batch: Sequence[Update]) -> None:
        self._taken.done(entity_id, batch)
        await self.settle()

    async def settle(self) -> None:
        """Settle what was read when all of it is done, and what was set aside is on the card."""
        await self._taken.settle()


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
