"""What was sent as current state and is to stand in the history: it is settled when it is seen there.

Some brokers (Scorpio) keep what they record in memory until their tenant is silent, and lose it with a restart or with their
database, after they acknowledged it. So an accepted update waits here, in memory, while its readings stay in the log:

- A *witness* is a point of an entity that this run's state lane sent and that the history shows. All that was accepted of
  that entity before it, with no fault of the broker between, has come there before it.
- After a fault the whole stretch is read: what is there is seen, and what is not, although a witness accepted later was
  there a look before, is *forgotten*: it goes by the temporal API.
- That something is not there proves nothing by itself: on a busy tenant nothing shows for hours.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from gateway.forward.broker import Broker, ContextMissing, Point, ReadRefused, observed
from gateway.forward.feeds import Feeds
from gateway.forward.recording import Recording
from gateway.forward.settings import ForwardSettings
from gateway.forward.updates import Feed, Mark, Update, instant
from gateway.harmonise.entity import Entity
from gateway.journal import event
from gateway.log.segment import microseconds
from gateway.sdk.driver import Clock

ENTITIES_A_LOOK: Final = 20  # as many as one query takes
UPDATES_A_STRETCH: Final = 500
PATIENCE: Final = 12  # a look that shows nothing is followed by a later one, up to so many times later
DOUBLES_OF: Final = 50  # newest points of an attribute in which a doubled one is looked for
WENT: Final = 1000  # points of one entity of which is known how often they were sent


@dataclass(slots=True, eq=False)
class _Waiting:
    """An update that was accepted, or that may have been.

    Attributes:
        known: it was accepted; else that is not known, and in doubt it is sent again.
        since_s: on the clock of the broker's presence.
        alone: it went as state alone: that the history shows it tells that the broker recorded it.
    """

    update: Update
    mark: Mark
    known: bool
    since_s: float
    alone: bool = True


@dataclass(slots=True)
class _Of:
    """What waits of one entity, by its number in the log.

    Attributes:
        witness: the newest point seen that this run sent.
        witness_s: when it was seen.
        asked: how many waited after the last look.
        asked_s: when that was; None: never.
        read: the witness there was when the stretch was last read.
        read_s: when that was; None: never.
    """

    feed: Feed
    items: list[_Waiting] = field(default_factory=list)
    witness: Mark | None = None
    witness_s: float = 0.0
    asked: int = 0
    asked_s: float | None = None
    read: Mark | None = None
    read_s: float | None = None

    def suspects(self) -> list[_Waiting]:
        """Those that no later witness of their own epoch can settle."""
        witness = self.witness
        return [
            item
            for item in self.items
            if item.mark.epoch is None or (witness is not None and item.mark.order < witness.order)
        ]


class Unseen:
    """What waits to be seen in the history of one broker.

    Args:
        done: called with each update that waits no longer and need not be sent.

    Attributes:
        given_up: points that were settled although they were never seen.
    """

    def __init__(
        self,
        broker: Broker,
        recording: Recording,
        clock: Clock,
        settings: ForwardSettings,
        *,
        done: Callable[[Update], None] = lambda update: None,
    ) -> None:
        self.recording = recording
        self.given_up = 0
        self._broker = broker
        self._contexts = broker.traffic.contexts
        self._clock = clock
        self._settings = settings
        self._done = done
        self._of: dict[str, _Of] = {}
        self._points = {True: 0, False: 0}  # known to be accepted, or not
        self._oldest: int | None = None
        self._oldest_holds = True
        self._up_s = 0.0  # the broker was there so long
        self._looked_at_s = clock.monotonic_s()
        self._faults, self._requests = broker.traffic.faults, broker.traffic.requests  # by the last look
        self._next_s = 0.0  # on the clock of presence, like all below
        self._wait_s = settings.look_s
        self._asked_s: float | None = None  # when a look was answered
        self._learned_s = 0.0
        self._watched: Feed | None = None  # doubled points of it are looked for
        self._went = Counter[tuple[str, int]]()  # how often each point of it went by the temporal API
        self._went_lately = False  # any of them since the last look
        self._doubles_s = settings.learn_s
        self._doubles_wait_s = settings.learn_s

    def __len__(self) -> int:
        """Points that wait."""
        return self._points[True] + self._points[False]

    @property
    def unknown(self) -> int:
        """Points that wait of which nobody knows whether they were ever accepted."""
        return self._points[False]

    @property
    def unknown_us(self) -> int | None:
        """Time of the oldest of those; None when there are none."""
        if not self.unknown:
            return None
        firsts = (next((item.update for item in of.items if not item.known), None) for of in self._of.values())
        return min((update.newest_us for update in firsts if update is not None), default=None)

    @property
    def unknown_seq(self) -> int | None:
        """Number of the oldest set in the log with any of those."""
        if not self.unknown:
            return None
        items = (item for of in self._of.values() for item in of.items)
        return min((item.update.seq for item in items if not item.known and item.update.seq), default=None)

    @property
    def sure(self) -> bool:
        """Whether all that waits was accepted, at a broker that writes it into its history by itself."""
        return bool(self.recording.by_itself) and not self.unknown

    @property
    def full(self) -> bool:
        """Too much of that waits: the log is not read on."""
        return self.unknown >= self._settings.unseen_points

    @property
    def oldest_seq(self) -> int | None:
        """Number of the oldest set in the log that waits; None when none does."""
        if not self._oldest_holds:
            heads = (next((i.update.seq for i in of.items if i.update.seq), None) for of in self._of.values())
            self._oldest = min((seq for seq in heads if seq is not None), default=None)
            self._oldest_holds = True
        return self._oldest

    # what comes

    def put(self, update: Update, mark: Mark, *, known: bool) -> None:
        """It was accepted in that request; or nobody knows whether it ever was."""
        of = self._of.get(update.entity_id)
        if of is None:
            of = self._of[update.entity_id] = _Of(update.feed)
        if known and of.witness is not None and _covers(of.witness, mark):
            self._done(update)
            return
        item = _Waiting(update, mark, known, self._up_s)
        if not of.items or update.seq >= of.items[-1].update.seq:
            of.items.append(item)
        else:
            insort(of.items, item, key=_seq_of)
        self._points[known] += len(update.readings)
        seq = update.seq  # 0: it comes from a held piece
        if seq and self._oldest_holds and (self._oldest is None or seq < self._oldest):
            self._oldest = seq
        if known and self._points[True] > self._settings.unseen_points:
            self._make_room()

    def goes_past(self, updates: Sequence[Update]) -> None:
        """These, of one entity, go by the temporal API: a device may have told several values for one time."""
        points = [point for update in updates for point in _points_of(update)]
        if self.recording.by_itself is False:
            self._note_went(updates[0].feed, points)
        of, times = self._of.get(updates[0].entity_id), {time_us for _, time_us in points}
        if of is None or max(times) < min((item.update.newest_us for item in of.items), default=0):
            return  # of a backlog
        shown = set(points)
        for item in of.items:
            item.alone = item.alone and not _shows(item, shown)

    def _note_went(self, feed: Feed, points: Iterable[tuple[str, int]]) -> None:
        if self._watched is None or (not self._went_lately and self._up_s >= self._doubles_s):
            self._watched, self._went = feed, Counter()
        if self._watched.key == feed.key:
            self._went_lately = True
            self._went.update(points)
            while len(self._went) > WENT:
                del self._went[next(iter(self._went))]

    def known(self) -> list[Update]:
        """What was accepted and waits."""
        return [item.update for of in self._of.values() for item in of.items if item.known]

    def take_all(self) -> list[Update]:
        """Nobody looks any more; returns those of which nothing is known."""
        items = [item for of in self._of.values() for item in of.items]
        for of in self._of.values():
            self._drop(of, of.items)
        for item in items:
            if item.known:
                self._done(item.update)
        return [item.update for item in items if not item.known]

    def renumber(self, feeds: Feeds, first: int, more: int) -> None:
        """The log's numbers from there on have grown."""
        for of in self._of.values():
            for item in of.items:
                feeds.renumber(item.update, first, more)
            of.items.sort(key=_seq_of)
        self._oldest_holds = False

    # when

    def due(self) -> bool:
        """Whether it is time for a look at the history. Time counts only while the broker is there."""
        now_s, traffic = self._clock.monotonic_s(), self._broker.traffic
        faults, requests = traffic.faults - self._faults, traffic.requests - self._requests
        if faults < requests or not faults:  # who fails at some of it is there
            self._up_s += now_s - self._looked_at_s
        if faults:  # soon
            self._wait_s = self._settings.look_s
            self._next_s = min(self._next_s, self._up_s + self._wait_s)
        self._looked_at_s, self._faults, self._requests = now_s, traffic.faults, traffic.requests
        if self._up_s < self._next_s:
            return False
        if self._stretch_due() is None and not self._look_due() and not self._doubles_due():
            self._next_s = self._up_s + self._settings.look_s
            return False
        return True

    def _look_due(self) -> list[_Of]:
        """Entities to be asked for their newest point, those not asked for longest first; none when none is urgent."""
        settings, learning = self._settings, self.recording.by_itself is None
        due, soon = [], []
        for of in self._of.values():
            if not of.items or self._contexts.away(of.feed.context):
                continue
            new, first = len(of.items) - of.asked, of.items[0]
            since_s = first.since_s if of.asked_s is None else of.asked_s
            if (
                new >= settings.look_updates
                or self._up_s - since_s >= settings.look_within_s
                or self._up_s - first.since_s >= settings.unseen_s
                or (learning and of.items[-1].mark.epoch is not None)
                or not first.update.seq  # its piece stays on the card until it is seen
                or self._suspicious(of)
            ):
                due.append(of)
            elif 2 * new >= settings.look_updates:
                soon.append(of)
        due.sort(key=lambda of: -1.0 if of.asked_s is None else of.asked_s)
        return [*due, *soon] if due else []

    def _suspicious(self, of: _Of) -> bool:
        """A fault lies between what was accepted, and the history may show by now what came after it."""
        last = of.items[-1].mark
        if last.epoch is None or (of.witness is not None and of.witness.order >= last.order):
            return False
        return any(item.mark.epoch != last.epoch for item in of.items)

    def _stretch_due(self) -> _Of | None:
        """An entity whose stretch is to be read: as it is, and again a look after a later point was seen."""
        settings = self._settings
        for of in self._of.values():
            if not of.items or self._contexts.away(of.feed.context):
                continue
            if of.read != of.witness and self._up_s - of.witness_s >= settings.look_s and of.suspects():
                return of
            since_s = None if of.read_s is None else self._up_s - of.read_s
            if of.items[0].mark.epoch is None and (since_s is None or since_s >= settings.look_within_s):
                return of
        return None

    def _doubles_due(self) -> bool:
        feed = self._watched if self._went_lately else None
        return (
            self.recording.by_itself is False
            and feed is not None
            and not self._contexts.away(feed.context)
            and self._up_s >= self._doubles_s
        )

    # looking

    async def look(self) -> list[Update]:
        """One request; returns what is to be sent by the temporal API.

        Raises:
            BrokerUnavailable: the history could not be read.
        """
        of = self._stretch_due()
        try:
            if of is not None:
                return await self._read_stretch(of)
            if self._doubles_due():
                await self._look_for_doubles()
            return await self._look_at(_alike(self._look_due()))
        except ContextMissing:  # of these alone: they are asked for when it is there
            return []
        except ReadRefused:
            self._next_s = self._up_s + PATIENCE * self._settings.look_s
            return self.overdue()

    def overdue(self) -> list[Update]:
        """What waited too long is given up, or returned as it is to be sent: a history that cannot be read holds nothing for ever."""
        return self._expired(list(self._of.values()))

    async def _look_at(self, some: Sequence[_Of]) -> list[Update]:
        if not some:
            return []
        seen = await self._ask(some)
        self._wait_s = self._settings.look_s if seen else min(2 * self._wait_s, PATIENCE * self._settings.look_s)
        asked = {id(of) for of in some}
        more = seen and any(id(of) not in asked for of in self._look_due())
        self._next_s = self._up_s if more else self._up_s + self._wait_s
        self._learn()
        return self._expired(some)

    async def _ask(self, some: Sequence[_Of]) -> bool:
        """Ask for the newest point of some entities; whether anything new was seen."""
        oldest_us = min(time_us for of in some for item in of.items for _, time_us, _ in item.update.readings.values())
        names = {_name_of(item.update) for of in some for item in (of.items[0], of.items[-1])}
        found = await self._broker.history_newest(
            [_asked(of.feed) for of in some], since=instant(oldest_us), attributes=sorted(names)
        )
        seen = False
        for of in some:
            seen = self._saw(of, found.get(of.feed.entity_id, ())) or seen
            of.asked, of.asked_s = len(of.items), self._up_s
        return seen

    def _saw(self, of: _Of, points: Iterable[tuple[str, datetime]]) -> bool:
        """The history shows these of an entity; whether one is a new witness."""
        shown = {(key, microseconds(at)) for key, at in points}
        best = next(
            (i.mark for i in reversed(of.items) if i.alone and i.mark.epoch is not None and _shows(i, shown)), None
        )
        if best is None or (of.witness is not None and best.order <= of.witness.order):
            return False
        self.recording.seen()
        of.witness, of.witness_s = best, self._up_s
        self._settle(of, [item for item in of.items if _covers(best, item.mark)])
        return True

    async def _read_stretch(self, of: _Of) -> list[Update]:
        witness, suspects = of.witness, of.suspects()
        some = suspects[:UPDATES_A_STRETCH]
        asked = [item.update.part(item.update.readings).past for item in some]  # of a part: what waits stays small
        wanted = [points_in(entity) for entity in asked]
        found = await self._broker.history_back(asked) if any(wanted) else frozenset[Point]()
        seen = [item for item, points in zip(some, wanted, strict=True) if points <= found]
        forgotten = [
            item
            for item, points in zip(some, wanted, strict=True)
            if witness is not None and item.mark.order < witness.order and not points <= found
        ]
        self._settle(of, seen)
        self._drop(of, forgotten)
        if len(some) == len(suspects) or not (seen or forgotten):
            of.read, of.read_s = witness, self._up_s
        if forgotten:
            event("history_forgotten", entity=of.feed.entity_id, updates=len(forgotten))
        return [without(item.update, found) for item in forgotten]

    async def _look_for_doubles(self) -> None:
        """It was taken for one that does not record: if it does, each point stands there twice."""
        feed, went = self._watched, self._went
        if feed is None:
            return
        self._went_lately = False
        self._doubles_wait_s = min(2 * self._doubles_wait_s, self._settings.look_within_s)
        self._doubles_s = self._up_s + self._doubles_wait_s
        points = (await self._broker.history_newest([_asked(feed)], last=DOUBLES_OF)).get(feed.entity_id, ())
        counted = Counter((key, microseconds(at)) for key, at in points)
        if any(count > went.get(point, count) for point, count in counted.items()):
            self.recording.seen()

    def _learn(self) -> None:
        """A look was answered. So long the broker was there, looked at, and showed nothing that was sent as state."""
        asked_s, self._asked_s = self._asked_s, self._up_s
        if self.recording.by_itself is not None or not any(
            item.mark.epoch is not None for of in self._of.values() for item in of.items[-1:]
        ):
            self._asked_s, self._learned_s = None, 0.0  # nothing to learn, or nothing to learn by
        elif asked_s is not None:
            self._learned_s += min(self._up_s - asked_s, PATIENCE * self._settings.look_s)
            if self._learned_s >= self._settings.learn_s:
                self.recording.not_seen()

    def _expired(self, some: Iterable[_Of]) -> list[Update]:
        """What waited too long: known to be accepted it is given up, unless the broker does not record; else it is sent."""
        again, limit_s = list[Update](), self._up_s - self._settings.unseen_s
        for of in some:
            kept = self.recording.by_itself is not False
            old = [item for item in of.items if item.since_s <= limit_s]
            sent = [item for item in old if not (item.known and kept)]
            self._give_up(of, [item for item in old if item.known and kept])
            self._drop(of, sent)
            again += [item.update for item in sent]
        return again

    # what goes

    def _make_room(self) -> None:
        """The oldest go, a fiftieth at once."""
        known = [(item.update.seq, of, item) for of in self._of.values() for item in of.items if item.known]
        known.sort(key=lambda one: one[0])
        points, gone = 0, dict[int, tuple[_Of, list[_Waiting]]]()
        for _, of, item in known:
            if points > self._settings.unseen_points // 50:
                break
            gone.setdefault(id(of), (of, []))[1].append(item)
            points += len(item.update.readings)
        for of, items in gone.values():
            self._give_up(of, items)

    def _give_up(self, of: _Of, items: Sequence[_Waiting]) -> None:
        self.given_up += sum(len(item.update.readings) for item in items)
        self._settle(of, items)

    def _settle(self, of: _Of, items: Sequence[_Waiting]) -> None:
        self._drop(of, items)
        for item in items:
            self._done(item.update)

    def _drop(self, of: _Of, items: Sequence[_Waiting]) -> None:
        if not items:
            return
        for item in items:
            self._points[item.known] -= len(item.update.readings)
        gone = {id(item) for item in items}
        of.items = [item for item in of.items if id(item) not in gone]
        of.asked = min(of.asked, len(of.items))
        self._oldest_holds = False


def _seq_of(item: _Waiting) -> int:
    return item.update.seq


def points_in(entity: Entity) -> set[Point]:
    """The measured points of an entity."""
    return {(entity.id, key, at) for key, at in observed(entity).items()}


def without(update: Update, points: frozenset[Point]) -> Update:
    """The update without the attributes that the history holds at their times."""
    entity = update.entity
    kept = {
        key: attribute
        for key, attribute in entity.attributes.items()
        if attribute.observed_at is None or (entity.id, key, attribute.observed_at) not in points
    }
    update.entity = replace(entity, attributes=kept)
    return update


def _covers(witness: Mark, mark: Mark) -> bool:
    """Whether a witness proves what was accepted then: before it, and no fault between."""
    return mark.epoch is not None and mark.epoch == witness.epoch and mark.order <= witness.order


def _points_of(update: Update) -> Iterable[tuple[str, int]]:
    """Attribute and time of what an update says."""
    keys = update.feed.keys
    return ((key, time_us) for point, (_, time_us, _) in update.readings.items() for key in keys[point])


def _shows(item: _Waiting, shown: set[tuple[str, int]]) -> bool:
    return any(point in shown for point in _points_of(item.update))


def _name_of(update: Update) -> str:
    """An attribute that an update has, as it is called on the wire."""
    keys = (key for point in update.readings for key in update.feed.keys[point])
    return next(keys, "").partition(" ")[0]


def _asked(feed: Feed) -> Entity:
    return Entity(feed.entity_id, feed.entity_type, feed.context, {}, feed.device)


def _alike(due: Sequence[_Of]) -> list[_Of]:
    """Those of the first one's kind, which one query can ask for."""
    kind = [
        of for of in due if (of.feed.entity_type, of.feed.context) == (due[0].feed.entity_type, due[0].feed.context)
    ]
    return kind[:ENTITIES_A_LOOK]
