"""The state lane: what is true now, every linger, from the last values. It never reads the log and never moves the cursor."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime

from gateway.claims import latest_us
from gateway.forward.broker import Accepted, Broker, Outcome, ReadRefused, observed
from gateway.forward.feeds import Feeds
from gateway.forward.updates import Feed, Fits, Good, Key, Mark, Sent, Update, instant, is_measured
from gateway.harmonise.entity import Entity
from gateway.sdk.driver import Clock

ENTITY_RETRY_S = 30.0  # an entity that the broker refused, or put off, is tried again with newer values


class StateLane:
    """Sends the newest value of what changed, unless the broker holds a newer one.

    Args:
        accepted, sent: shared with the history lane.
        doubted: by entity, series and times that an earlier lane sent without an answer.
    """

    def __init__(
        self,
        broker: Broker,
        feeds: Feeds,
        *,
        accepted: Accepted,
        sent: Sent,
        clock: Clock,
        doubted: Mapping[str, Set[tuple[int, int]]] | None = None,
    ) -> None:
        self._broker = broker
        self._feeds = feeds
        self._accepted = accepted
        self._sent = sent
        self._clock = clock
        self._mark = 0
        self._numbers_from = feeds.numbers_from
        self._dirty: dict[Key, set[int]] = {}  # series whose newest value the broker still lacks
        self._feed: dict[Key, Feed] = {}
        self._ahead: dict[tuple[Key, int], int] = {}  # time of a newest value that lies in the future
        self._unreadable: set[str] = set()  # entities whose state at the broker cannot be asked
        # entity -> series, time that may have been taken
        self._doubted = {entity_id: set(points) for entity_id, points in (doubted or {}).items()}
        self._not_before_s: dict[str, float] = {}  # entity -> monotonic time of its next try
        self.cut = False  # the last sweep left out what did not fit

    @property
    def doubted(self) -> Mapping[str, Set[tuple[int, int]]]:
        """By entity, series and times of which it is not known whether the broker took them."""
        return self._doubted

    def changed(self) -> bool:
        """Whether something is to be sent now."""
        self.look()
        if self._ahead:
            self._arrived()
        return any(self._due(key) for key in self._dirty)

    def look(self) -> None:
        """Take over what changed since the last look; who asks for single readings looks once before, not for each."""
        if self._numbers_from != self._feeds.numbers_from:
            self._renumber()
        self._mark, new = self._feeds.since(self._mark)
        for number in new:
            for feed in self._feeds.takers(number):
                self._feed[feed.key] = feed
                self._dirty.setdefault(feed.key, set()).add(number)

    def _renumber(self) -> None:
        """The log's file was opened late: series are called otherwise."""
        self._numbers_from = self._feeds.numbers_from
        self._feeds.renumbered()
        now = self._feeds.number_now
        self._dirty = {key: set(map(now, numbers)) for key, numbers in self._dirty.items()}
        self._ahead = {(key, now(number)): time_us for (key, number), time_us in self._ahead.items()}
        self._doubted = {of: {(now(number), us) for number, us in some} for of, some in self._doubted.items()}

    def pending(self, feed: Feed, series: int, time_us: int) -> bool:
        """Whether this very reading is still the state lane's to send, or to ask about: the history lane waits for it."""
        if (series, time_us) in self._doubted.get(feed.entity_id, ()):
            return True
        return feed.entity_id not in self._not_before_s and self._is_newest(feed, series, time_us)

    def put_off(self, update: Update) -> bool:
        """Whether any of it was refused or put off and may still become current."""
        feed = update.feed
        return feed.entity_id in self._not_before_s and any(
            self._is_newest(feed, number, time_us)
            for point, (_, time_us, number) in update.readings.items()
            if feed.keys[point]
        )

    def _is_newest(self, feed: Feed, series: int, time_us: int) -> bool:
        if series not in self._dirty.get(feed.key, ()):
            return False
        good = self._feeds.newest(series)
        return good is not None and good.time_us == time_us and time_us <= self._latest_us()

    def unasked(self, feed: Feed) -> bool:
        """Whether the broker is still to be asked what it holds of this entity."""
        return feed.key in self._dirty and not self._accepted.knows(feed.entity_id)

    def hurry(self) -> None:
        """After an outage nothing waits for its own retry."""
        self._not_before_s.clear()

    async def send(self, most: int | None = None, *, skip: int = 0, fits: Fits | None = None) -> Outcome:
        """One sweep over what changed; what waits for longest goes first.

        Args:
            most: send at most this many entities, `skip` being left out first (a probe tries them in turn).
            fits: how many of them may go now, by the readings of each.

        Raises:
            BrokerUnavailable: what the broker holds could not be read back.
        """
        tried = [self._update(key) for key in list(self._dirty) if self._due(key)]
        due = [update for update in tried if update is not None]
        if most is not None and due:
            due = [due[(skip + n) % len(due)] for n in range(min(most, len(due)))]
        if fits is not None:
            may = fits([len(update.readings) for update in due])
            self.cut, due = may < len(due), due[:may]
        await self._read_back(due)
        batch = self._newest([update for update in map(self._guarded, due) if update is not None])
        faults = self._broker.traffic.faults
        for update in batch:  # a reload may end this before the answer
            points = {(number, time_us) for _, time_us, number in update.readings.values()}
            self._doubted.setdefault(update.entity_id, set()).update(points)
        outcome = await self._broker.state(_merged(batch)) if batch else Outcome()
        mark = self._sent.mark(faults if self._broker.traffic.faults == faults else None)
        for update in batch:
            self._settle(update, outcome, mark)
        return outcome

    def _arrived(self) -> None:
        """Readings that lay in the future and do no longer."""
        latest = self._latest_us()
        for key, number in [place for place, time_us in self._ahead.items() if time_us <= latest]:
            del self._ahead[key, number]
            self._dirty.setdefault(key, set()).add(number)

    def _due(self, key: Key) -> bool:
        if self._not_before_s.get(key[0], 0.0) > self._clock.monotonic_s():
            return False
        return not self._feeds.complete.lacks(self._feed[key])

    def _latest_us(self) -> int:
        return latest_us(self._clock.now())

    def _update(self, key: Key) -> Update | None:
        feed = self._feed[key]
        dirty = self._dirty[key]
        everything = not self._accepted.knows(feed.entity_id)  # the first time: all there is
        latest = self._latest_us()
        readings: dict[str, Good] = {}
        for point, number in self._feeds.complete.points(feed.device).items():
            keys = feed.keys.get(point)
            if keys is None or (keys and not everything and number not in dirty):
                continue  # a point that is only a sub-attribute goes along
            good = self._feeds.newest(number)
            if good is None or good.value is None:
                continue
            if good.time_us <= latest:
                readings[point] = (good.value, good.time_us, number)
            elif keys:
                self._ahead[key, number] = good.time_us
        for number in [n for (of, n) in self._ahead if of == key]:
            self._clean(key, number)
        update = Update(feed, readings, 0) if readings else None
        if update is not None and not is_measured(update.entity):  # the model allows none of it
            for number in list(dirty):
                self._clean(key, number)
            return None
        return update

    async def _read_back(self, due: Sequence[Update]) -> None:
        unknown = [update for update in due if not self._accepted.knows(update.entity.id)]
        if not unknown:
            return
        try:
            found = await self._broker.read_back([update.entity for update in unknown])
        except ReadRefused:
            self._unreadable.update(update.entity.id for update in unknown)
            for update in unknown:
                self._accepted.note(update.entity.id, {})
                self._doubted.pop(update.entity.id, None)
            return
        mark = self._sent.mark()
        for update in unknown:
            entity = update.entity
            held = self._accepted.read_back(entity.id, found.get(entity.id, {}))
            for number, time_us in self._doubted.pop(entity.id, ()):
                keys = update.feed.keys.get(self._feeds.point(number), ())
                if any(held.get(key) == instant(time_us) for key in keys):
                    self._sent.note(entity.id, number, time_us, mark)
            for point, (_, time_us, number) in update.readings.items():
                if any(key in held and held[key] == _time(entity, key) for key in update.feed.keys[point]):
                    self._sent.note(entity.id, number, time_us, mark)  # by an earlier run, or by a request in doubt

    def _guarded(self, update: Update) -> Update | None:
        """The update without what the broker holds newer; None when nothing is left. What is left out is no longer ours."""
        entity_id = update.entity.id
        all_of_it = readings = update.readings
        if entity_id in self._unreadable:  # of an earlier run, it may be older than what the broker holds: history only
            readings = {p: good for p, good in readings.items() if self._of_this_run(good)}
            update = update.part(readings) if readings else update
        newer = self._accepted.newer(update.entity) if readings else None
        kept = {} if newer is None else newer.attributes
        for point, (_, _, number) in all_of_it.items():
            if point not in readings or not any(key in kept for key in update.feed.keys[point]):
                self._clean(update.feed.key, number)
        if newer is None:
            return None
        update.entity = newer
        return update

    def _newest(self, batch: list[Update]) -> list[Update]:
        """Of an attribute that several devices give (one is gone, and another tells it now) the newest; the rest is history."""
        if len({update.entity_id for update in batch}) == len(batch):
            return batch
        newest: dict[tuple[str, str], Update] = {}
        for update in batch:
            for key in _told(update):
                other = newest.setdefault((update.entity_id, key), update)
                at, known = _time(update.entity, key), _time(other.entity, key)
                if at is not None and known is not None and at > known:
                    newest[update.entity_id, key] = update
        return [left for update in batch if (left := self._without_overtaken(update, newest)) is not None]

    def _without_overtaken(self, update: Update, newest: Mapping[tuple[str, str], Update]) -> Update | None:
        entity, keys = update.entity, update.feed.keys
        gone = {key for key in _told(update) if newest[entity.id, key] is not update}
        if not gone:
            return update
        kept = {name: attribute for name, attribute in entity.attributes.items() if name not in gone}
        left = {}
        for point, good in update.readings.items():
            if keys[point] and not any(key in kept for key in keys[point]):
                self._clean(update.feed.key, good[2])
            else:
                left[point] = good
        if not any(keys[point] for point in left):
            return None
        part = update.part(left)
        part.entity = replace(entity, attributes=kept)
        return part

    def _of_this_run(self, reading: Good) -> bool:
        """Whether this very reading was taken in this run: a newer one may have come while the broker was asked."""
        _, time_us, number = reading
        good = self._feeds.newest(number)
        return good is not None and good.time_us == time_us and good.seq >= self._feeds.first_seq

    def _clean(self, key: Key, number: int) -> None:
        dirty = self._dirty.get(key)
        if dirty is not None:
            dirty.discard(number)
            if not dirty:
                del self._dirty[key]

    def _settle(self, update: Update, outcome: Outcome, mark: Mark) -> None:
        entity = update.entity
        if entity.id not in outcome.doubtful:
            self._doubted.pop(entity.id, None)
        if entity.id in outcome.accepted:
            self._not_before_s.pop(entity.id, None)
            self._accepted.note(entity.id, observed(entity))
            for point, (_, time_us, number) in update.readings.items():
                if any(key in entity.attributes for key in update.feed.keys[point]):
                    self._sent.note(entity.id, number, time_us, mark)
                self._clean(update.feed.key, number)
            return
        if entity.id in outcome.doubtful:
            self._accepted.doubt(entity.id)
        if entity.id in outcome.absent:
            self._accepted.doubt(entity.id)
        if outcome.fault is None:
            self._not_before_s[entity.id] = self._clock.monotonic_s() + ENTITY_RETRY_S


def _told(update: Update) -> list[str]:
    """The attributes that its readings are."""
    return [key for point in update.readings for key in update.feed.keys[point] if key in update.entity.attributes]


def _merged(batch: Sequence[Update]) -> list[Entity]:
    """Every id once, although several devices may feed it; of what both give (its time) the newest."""
    merged: dict[str, Entity] = {}
    for update in sorted(batch, key=lambda update: update.newest_us):
        entity = update.entity
        known = merged.get(entity.id)
        merged[entity.id] = (
            entity
            if known is None
            else replace(
                entity,
                attributes={**known.attributes, **entity.attributes},
                readings=known.readings + entity.readings,
            )
        )
    return list(merged.values())


def _time(entity: Entity, key: str) -> datetime | None:
    attribute = entity.attributes.get(key)
    return None if attribute is None else attribute.observed_at
