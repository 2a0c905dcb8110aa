"""The history lanes: everything from the cursor, in order; they alone settle.

`InOrderLane`, for a broker whose history is what its current state once was: each set becomes one update of each of its
entities; an entity stands once per request, so its updates go one after the other in time order. `PastLane`, for a
broker with a temporal API (or, by option, for none): what the state lane did not send goes to the history alone.
"""

from collections.abc import Callable, Sequence

from gateway.forward.aside import BEHIND, BEHIND_S, INCOMPLETE_S, UNTAKEN
from gateway.forward.broker import ContextMissing, Outcome, ReadRefused, observed, waiting
from gateway.forward.pace import UPDATES_A_REQUEST
from gateway.forward.recording import Recording
from gateway.forward.updates import UNKNOWN, Feed, Fits, Good, Mark, Update, instant, is_measured
from gateway.forward.verdicts import LaneCounts, Shared, Taken
from gateway.forward.verify import Unseen, points_in, without
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable

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
    def open_seq(self) -> int | None:
        """Number of the oldest set that was read and is not done; None when there is none."""
        return self._taken.open_seq

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
        sent = self._of.feeds.was_sent  # before a reload, by lanes that waited to see it in a history
        read = [u for seq, updates in stretch.sets if not sent(seq) for u in updates if is_measured(u.entity)]
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
        of, mark = self._of, self._of.sent.mark()
        for update in self._taken.judged(batch, outcome):
            of.accepted.note(update.entity_id, observed(update.entity))
            self._sent_seq[update.entity_id] = update.seq
            for _, time_us, number in update.readings.values() if self._remember else ():
                of.sent.note(update.entity_id, number, time_us, mark)
        for entity_id in outcome.doubtful | outcome.absent:
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
        return self._of.sent.take(update.entity_id, number, time_us) is not None or any(
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
        except ReadRefused:  # nothing else is to be had: what an earlier run sent is sent again, in order
            for entity in unknown:
                accepted.note(entity.id, {})
            return
        for entity in unknown:
            accepted.read_back(entity.id, found.get(entity.id, {}))

    async def settle(self) -> None:
        """Settle what was read when all of it is done, and what was set aside is on the card."""
        await self._taken.settle()


class PastLane:
    """Sends to the history what the state lane did not and will not send; settles what is done.

    Args:
        pending: whether a reading is still the state lane's to send, as of its last look.
        look: lets the state lane look at what is new.
        recording: whether the broker records by itself what the state lane sends.
        unseen: where such a thing waits until the history shows it; None: the broker is trusted to record it.
        unasked: whether the state lane is still to ask what the broker holds of an entity.
        put_off: whether any of it was refused as state and may still be taken.
        temporal: False counts instead of sending (`latest-only`).
    """

    def __init__(
        self,
        shared: Shared,
        pending: Callable[[Feed, int, int], bool],
        *,
        recording: Recording,
        look: Callable[[], None] = lambda: None,
        unseen: Unseen | None = None,
        unasked: Callable[[Feed], bool] = lambda feed: False,
        put_off: Callable[[Update], bool] = lambda update: False,
        temporal: bool = True,
    ) -> None:
        self._of = shared
        self._pending = pending
        self._recording = recording
        self._look = look
        self._unseen = unseen
        self._unasked = unasked
        self._put_off = put_off
        self._temporal = temporal
        self._taken = Taken(shared, in_turns=True, unseen=unseen)
        self._numbers_from = shared.feeds.numbers_from
        self._read_upto = 0
        self._passed = 0  # of this run all up to here was read before its numbers grew
        self._again: list[Update] = []  # they were done with, and are not
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
        counts = self._taken.counts
        if self._unseen is not None:
            again = self._again = self._taken.still(self._again) if self._again else []
            counts.unseen = self._unseen.given_up
            owed = [update for update in again if 0 < update.seq <= self._of.feeds.accepted_upto]
            counts.unknown = self._unseen.unknown + sum(len(update.readings) for update in owed)
            oldest_us = [self._unseen.unknown_us, *(update.newest_us for update in owed)]
            counts.unknown_us = min((us for us in oldest_us if us is not None), default=None)
        return counts

    @property
    def open_seq(self) -> int | None:
        """Number of the oldest set of which nobody knows that the city has it; None when there is none."""
        seqs = self._taken.open_seq, None if self._unseen is None else self._unseen.unknown_seq
        return min((seq for seq in seqs if seq is not None), default=None)

    def hand_over(self, to: Taken) -> None:
        """Another lane goes on with what was read and is not done."""
        for update in self._unseen.take_all() if self._unseen is not None else ():
            self._taken.put_last(update)
        to.take_over(self._taken)

    def note_sent(self) -> None:
        """It ends here: what waits to be seen, the next one is to know as sent."""
        for update in self._unseen.known() if self._unseen is not None else ():
            for _, time_us, number in update.readings.values():
                self._of.sent.note(update.entity_id, number, time_us)

    async def look(self) -> bool:
        """Look, when it is time, at what the history shows of what was accepted; whether it was.

        Raises:
            BrokerUnavailable: the history could not be read.
        """
        if self._unseen is None or not self._unseen.due():
            return False
        try:
            await self._goes_again(await self._unseen.look())
        except BrokerUnavailable:
            await self._goes_again(self._unseen.overdue())
            raise
        return True

    async def _goes_again(self, forgotten: Sequence[Update]) -> None:
        """The rest of what was looked for is done with, or waits on."""
        self._taken.put_first(forgotten)
        self._again += forgotten
        entities = {update.entity_id for update in forgotten}
        self._doubtful |= entities  # it may have come there meanwhile
        self._taken.sort(entities)
        await self.settle()

    @property
    def of_earlier_run(self) -> bool:
        """Whether what is next was read in an earlier run, or is in doubt."""
        queues = self._taken.queues
        entity_id = next(iter(queues), "")
        return entity_id in self._doubtful or queues[entity_id][0].seq < self._of.feeds.first_seq

    async def fill(self) -> bool:
        """Read the next stretch, as far as it is not the state lane's; False when there is none."""
        taken = self._taken
        self._renumber()
        stretch = await self._of.feeds.read(taken.position)
        if stretch is None:
            return False
        if self._unseen is not None and (taken.position or 0) < self._of.feeds.first_seq:
            await self._of.aside.recall()
        self._look()  # from here to the end of the walk nothing else is at work
        last, complete = taken.position, True
        for seq, updates in stretch.sets:
            if self._numbers_from <= seq <= self._passed:
                last = seq
                continue
            full = self._unseen is not None and self._unseen.full
            if full or any(self._waits(update) for update in updates):
                complete = False  # this set, and all after it, stay in the log for now
                break
            for update in updates:
                self._take(update)
            last = seq
        if not complete and last == taken.position:
            return False
        taken.position = stretch.last if complete else last
        self._read_upto = taken.position or 0
        await taken.settle()
        return True

    def _renumber(self) -> None:
        """The log's file was opened late: what this run has read is not read again, what an earlier one left is read first."""
        first, feeds, taken = self._numbers_from, self._of.feeds, self._taken
        more = feeds.numbers_from - first
        if not more:
            return
        self._numbers_from += more
        feeds.renumbered()
        self._of.sent.renumber(feeds.number_now)
        taken.renumber(first, more)
        self._of.aside.renumber(feeds, first, more)
        if self._unseen is not None:
            self._unseen.renumber(feeds, first, more)
        if self._read_upto >= max(first, 1):
            self._read_upto += more
            self._passed, taken.position = self._read_upto, None

    async def put_first(self, held: Sequence[Update]) -> None:
        """Held updates whose time has come; what the state lane has sent meanwhile is done, what it will send waits on."""
        self._look()
        for update in held:  # what only kept its order was never held
            if not update.held:
                self._take_behind(update)
        # a piece goes as a whole: a part of it that is done would be done again with the rest
        waiting = {update.held for update in held if self._waits(update) or self._is_put_off(update)}
        for update in reversed([update for update in held if update.held]):
            if update.held in waiting:
                self._of.aside.put(update, UNTAKEN, INCOMPLETE_S)
                continue
            sent, left = self._split(update)
            if left:
                self._taken.put_first([update.part(left)])
                self._doubtful.add(update.entity_id)
            elif self._wait_to_see(update, sent):
                self._of.aside.rests(update)
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
            self._taken.counts.skipped += len(batch)
            await self._finish(entity_id, batch)
            return Outcome()
        if fits is not None:
            batch = batch[: fits([len(update.readings) for update in batch])]
        if not batch:
            return Outcome()
        try:
            batch = await self._unknown(entity_id, batch)
            if not batch:
                return Outcome()
            if self._unseen is not None:
                self._unseen.goes_past(batch)
            outcome = await self._of.broker.history([update.past for update in batch])
        except ContextMissing as missing:
            outcome = waiting([batch[0].past], str(missing))
        await self._done(entity_id, batch, outcome)
        return outcome

    def _waits(self, update: Update) -> bool:
        feed = update.feed
        if self._recording.by_itself is False or self._of.feeds.complete.lacks(feed):
            return False
        if (
            update.seq
            and self._is_earlier(update)
            and self._of.accepted.first(feed.entity_id) is None
            and self._unasked(feed)
        ):
            return True
        return any(
            self._pending(feed, number, time_us)
            for point, (_, time_us, number) in update.readings.items()
            if feed.keys[point]
        )

    def _is_put_off(self, update: Update) -> bool:
        """Whether the broker did not take it as state and would record it if it did: then it must not have it already."""
        return self._recording.by_itself is not False and self._put_off(update)

    def _split(self, update: Update) -> tuple[dict[Mark, dict[str, Good]], dict[str, Good]]:
        """What the state lane sent, by request, and what it did not; points that are only sub-attributes go along."""
        keys, entity_id = update.feed.keys, update.entity_id
        sent: dict[Mark, dict[str, Good]] = {}
        left: dict[str, Good] = {}
        along: dict[str, Good] = {}
        for point, good in update.readings.items():
            if not keys[point]:
                along[point] = good
                continue
            mark = self._of.sent.take(entity_id, good[2], good[1])
            if mark is None or self._recording.by_itself is False:
                left[point] = good
            else:
                sent.setdefault(mark, {})[point] = good
        if along:
            for part in (*sent.values(), left):
                part.update(along if part else {})
        return sent, left

    def _take_behind(self, update: Update) -> None:
        if self._waits(update):
            self._of.aside.put(update, BEHIND, BEHIND_S)
        else:
            self._take(update)

    def _take(self, update: Update) -> None:
        if self._of.aside.has_points and self._is_earlier(update):  # what that run set aside is on the card
            of, entity_id = self._of.aside, update.entity_id
            owed = {p: g for p, g in update.readings.items() if not of.holds(entity_id, g[2], g[1])}
            if len(owed) < len(update.readings):
                if not any(update.feed.keys[point] for point in owed):
                    return
                update = update.part(owed)
        why = self._taken.must_wait(update)
        if why is not None and why[0] != BEHIND:
            self._of.aside.put(update, *why)
            return
        # what was sent, or may have been, stands in no order any more: it waits behind nothing
        sent, left = self._split(update)
        self._wait_to_see(update, sent)
        if left and self._unseen is not None and self._recording.verified and self._is_earlier(update):
            left = self._never_current(update, left)
        if not left:
            return
        update = update if len(left) == len(update.readings) else update.part(left)
        if why is not None:
            self._of.aside.put(update, *why)
        elif self._is_put_off(update):  # it goes to the history when it can no longer become current
            self._of.aside.put(update, UNTAKEN, INCOMPLETE_S)
        elif is_measured(update.past):
            self._taken.put_last(update)

    def _wait_to_see(self, update: Update, sent: dict[Mark, dict[str, Good]]) -> bool:
        """What the state lane sent waits until the history shows it, where the broker may forget it; whether it does."""
        if self._unseen is None or not self._recording.verified:
            return False
        if update.held and len(sent) > 1:  # a piece is done with when each of its updates is, once
            sent = {Mark(max(mark.order for mark in sent), None): update.readings}
        for mark, part in sent.items():
            whole = len(part) == len(update.readings)
            self._unseen.put(update if whole else update.part(part), mark, known=True)
        return bool(sent)

    def _is_earlier(self, update: Update) -> bool:
        """Whether it was read in an earlier run: that one may have sent it."""
        return update.seq < self._of.feeds.first_seq

    def _never_current(self, update: Update, left: dict[str, Good]) -> dict[str, Good]:
        """Of what an earlier run may have sent, what is newer than the broker's state was then; the rest is to be seen."""
        if self._unseen is not None and self._of.feeds.was_sent(update.seq):
            self._unseen.put(update.part(left), UNKNOWN, known=True)
            return {}
        first = self._of.accepted.first(update.entity_id)
        keys = update.feed.keys
        newer = {
            point: good
            for point, good in left.items()
            if first is not None and all(key not in first or first[key] < instant(good[1]) for key in keys[point])
        }
        open_ = {point: good for point, good in left.items() if point not in newer or not keys[point]}
        if any(keys[point] for point in open_) and self._unseen is not None:
            whole = len(open_) == len(update.readings)
            self._unseen.put(update if whole else update.part(open_), UNKNOWN, known=False)
        return newer if any(keys[point] for point in newer) else {}

    async def _unknown(self, entity_id: str, batch: list[Update]) -> list[Update]:
        """The batch without what the broker's history holds: asked when in doubt, and for what an earlier run may have sent."""
        if entity_id not in self._doubtful and not any(map(self._is_earlier, batch)):
            return batch
        try:
            points = await self._of.broker.history_back([update.past for update in batch])
        except ReadRefused:
            return batch
        self._doubtful.discard(entity_id)
        known = [update for update in batch if points_in(update.past) <= points]
        self._taken.counts.known += len(known)
        await self._finish(entity_id, known)
        return [without(update, points) for update in batch if update not in known]

    async def _done(self, entity_id: str, batch: list[Update], outcome: Outcome) -> None:
        self._doubtful |= outcome.doubtful
        if outcome.fault is not None:
            return
        if not {entity_id} & (outcome.accepted | outcome.absent) and len(batch) > 1:
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
