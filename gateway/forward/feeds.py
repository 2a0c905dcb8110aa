"""What one broker is told of this box: the readings of the log, walked through the mappings. Nobody else joins the two."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gateway.forward.updates import Feed, Good, Key, Update, instant, is_measured
from gateway.harmonise.entity import Attribute, Entity, harmonise
from gateway.harmonise.recipe import RecipeError
from gateway.journal import event
from gateway.log.segment import TimeState
from gateway.sdk.reading import Quality

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping
    from gateway.log.last_values import LastValue
    from gateway.log.log import Columns, Series


UNMAPPED = "unmapped"  # instead of an entity's id: what a device's readings were to become cannot be read
Recipes = Callable[[str], "Sequence[Mapping]"]


class Values(Protocol):
    """What is asked of the last values."""

    def since(self, mark: int) -> tuple[int, list[int]]: ...
    def good(self, series: int) -> "LastValue | None": ...


class Source(Protocol):
    """What is asked of the log."""

    @property
    def series(self) -> "MappingOf[int, Series]": ...
    @property
    def last_values(self) -> Values: ...
    @property
    def first_seq(self) -> int: ...
    @property
    def given(self) -> int: ...
    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> "Columns | None": ...
    async def settle(self, consumer: str, upto: int) -> None: ...
    def accepted(self, consumer: str, upto: int, sure: int | None = None) -> None: ...
    def accepted_upto(self, consumer: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """What comes next in the log.

    Attributes:
        last: number of its last set; None: the time of its first is not confirmed.
        sets: number of each set with what it changes, in the order of the log; walked while it is iterated.
    """

    last: int | None
    sets: Iterator[tuple[int, list[Update]]]


class Feeds:
    """All that one broker may be told by this box: what was, what is now, and who tells it.

    Args:
        consumer: the broker's name.
        mappings: by device; devices that are not there are not sent to this broker, only settled.
        recipes: the tables of a device that is gone and still owed to this broker; raises RecipeError.

    Attributes:
        more: told of such tables when readings of the device are first met.
        sent_before: up to here an earlier run had sent all, as it noted.
    """

    def __init__(
        self,
        consumer: str,
        log: Source,
        mappings: "MappingOf[str, Sequence[Mapping]]",
        *,
        recipes: Recipes = lambda device: (),
        max_readings: int = 5000,
    ) -> None:
        self.more: Callable[[Sequence[Mapping]], None] = lambda tables: None
        self.sent_before = 0
        self._recipes = recipes
        self._consumer = consumer
        self._log = log
        self._max_readings = max_readings
        self._given = log.given  # before this forwarder began: another one, of before a reload, may have sent them
        self._sent = log.accepted_upto(consumer) - log.first_seq
        self._planned = {device: tuple(map(_feed, of)) for device, of in mappings.items()}
        self._of_device = _ByDevice(self._gone, self._planned)
        self._feeds = {feed.key: feed for of in self._planned.values() for feed in of}
        self._takers: dict[int, tuple[Feed, ...]] = {}
        self.complete = Complete(log)

    @property
    def first_seq(self) -> int:
        """Sets below it are of an earlier run, of this box or of its forwarder."""
        return self._log.first_seq + (self._given + 1 if self._given else 0)

    @property
    def numbers_from(self) -> int:
        """Numbers from here on are of this run of the box; they grow when the log's file is opened late."""
        return self._log.first_seq

    def was_sent(self, seq: int) -> bool:
        """Whether an earlier forwarder had sent all of a set, or was done with it: of this run, or of one that noted it."""
        return seq <= self.sent_before or 0 <= seq - self._log.first_seq <= self._sent

    def renumbered(self) -> None:
        """The log's file was opened late: series may be called otherwise, too, and devices be known that are gone."""
        self._takers.clear()
        for device in self._of_device.keys() - self._planned.keys():
            del self._of_device[device]
        self.complete.renumbered()

    def number_now(self, series: int) -> int:
        """What a series is called by now."""
        of = self._log.series[series]
        return self.complete.points(of.device).get(of.point, series)

    @property
    def devices(self) -> dict[str, str]:
        """The devices of each entity, by its id."""
        found: dict[str, list[str]] = {}
        for entity_id, device in self._feeds:
            found.setdefault(entity_id, []).append(device)
        return {entity_id: ", ".join(devices) for entity_id, devices in found.items()}

    def of(self, entity_id: str, device: str) -> Feed | None:
        """What a device tells of an entity; None when it is no longer sent to this broker."""
        self._of_device[device]  # which may be gone
        return self._feeds.get((entity_id, device))

    def of_piece(self, entity_id: str, device: str) -> tuple[Feed, ...]:
        """What a device tells of an entity, or of all its entities when it could not be said of which; () = of none."""
        if entity_id == UNMAPPED:
            return self._of_device[device]
        feed = self.of(entity_id, device)
        return () if feed is None else (feed,)

    def _gone(self, device: str) -> tuple[Feed, ...]:
        """What a device tells that is no longer in the config."""
        try:
            tables = self._recipes(device)
            feeds = tuple(map(_feed, tables))
        except RecipeError as error:
            event("recipe_unusable", broker=self._consumer, device=device, reason=str(error))
            feeds, tables = (_unmapped(device, str(error), self.complete.points(device)),), ()
        self._feeds.update((feed.key, feed) for feed in feeds)
        if tables:
            self.more(tables)
        return feeds

    def of_entity(self, entity_id: str) -> Feed:
        """What any device tells of an entity."""
        return next(feed for feed in self._feeds.values() if feed.entity_id == entity_id)

    def look_for_missing(self) -> None:
        """Which entities wait for a mandatory attribute since an earlier run; they are shown before they change again."""
        for feed in self._feeds.values():
            if any(self.newest(number) is not None for number in self.complete.points(feed.device).values()):
                self.complete.lacks(feed)

    # what was

    async def read(self, after: int | None = None, *, confirmed: bool = False) -> Stretch | None:
        """The next stretch behind `after`, or behind the cursor; None at the tail.

        Args:
            confirmed: it ends before the first set whose time is not confirmed: such a set may not become current.
        """
        columns = await self._log.read(self._consumer, after=after, max_readings=self._max_readings)
        if columns is None:
            return None
        if confirmed and not _confirmed(columns):
            return Stretch(None, iter(()))
        return Stretch(columns.last, self._sets(columns))

    async def settle(self, upto: int) -> None:
        """All up to there is done with."""
        await self._log.settle(self._consumer, upto)

    def accepted(self, upto: int, sure: int) -> None:
        """All up to there was sent, or is done with."""
        self._log.accepted(self._consumer, upto, sure)

    @property
    def accepted_upto(self) -> int:
        """All up to here was sent, or is done with: what is not counts as owed in the log."""
        return self._log.accepted_upto(self._consumer)

    async def pass_over_bad(self) -> bool:
        """Readings without a value concern no city: devices that are all silent leave no backlog. Whether there were any."""
        columns = await self._log.read(self._consumer, max_readings=self._max_readings)
        if columns is None or Quality.GOOD in columns.quality:
            return False
        await self.settle(columns.last)
        return True

    def renumber(self, update: Update, first: int, more: int) -> None:
        """Numbers from there on have grown: that of its set, and of its series."""
        if update.seq >= max(first, 1):
            update.seq += more
        numbers = self.complete.points(update.feed.device)
        update.readings = {p: (value, us, numbers.get(p, n)) for p, (value, us, n) in update.readings.items()}

    def updates(self, feed: Feed, columns: "Columns") -> list[Update]:
        """What readings that were held change in one entity."""
        walked = self._sets(columns, defaultdict(tuple, {feed.device: (feed,)}))
        return [update for _, updates in walked for update in updates if is_measured(update.entity)]

    def _sets(
        self, columns: "Columns", feeds: MappingOf[str, tuple[Feed, ...]] | None = None
    ) -> Iterator[tuple[int, list[Update]]]:
        """A point that repeats in a set (a data logger's) begins another update."""
        rows = zip(columns.seq, columns.series, columns.time_us, columns.value, columns.quality, strict=True)
        series, of_device, good = self._log.series, self._of_device if feeds is None else feeds, Quality.GOOD
        device, current = "", -1
        found: list[Update] = []
        points: dict[str, Good] = {}
        for seq, number, time_us, value, quality in rows:
            if value is None or quality is not good:
                continue
            of = series[number]
            if points and (seq != current or of.point in points):
                found += _updates(of_device[device], points, current)
                points = {}
                if seq != current:
                    yield current, found
                    found = []
            device, current = of.device, seq
            points[of.point] = (value, time_us, number)
        if points:
            yield current, found + _updates(of_device[device], points, current)

    # what is now

    def since(self, mark: int) -> tuple[int, list[int]]:
        """A new mark, and the series that got a newer value since the old one."""
        return self._log.last_values.since(mark)

    def takers(self, series: int) -> tuple[Feed, ...]:
        """Who tells this series as an attribute of its own."""
        takers = self._takers.get(series)
        if takers is None:
            of = self._log.series[series]
            # of two series with one name (one was taken over from another device) the newest is current
            newest = self.complete.points(of.device).get(of.point) == series
            feeds = self._of_device[of.device] if newest else ()
            takers = tuple(feed for feed in feeds if feed.keys.get(of.point) and not feed.fault)
            self._takers[series] = takers
        return takers

    def newest(self, series: int) -> "LastValue | None":
        """The newest good value of a series."""
        return self._log.last_values.good(series)

    def point(self, series: int) -> str:
        """Of which point a series is."""
        return self._log.series[series].point


class _ByDevice(dict[str, tuple[Feed, ...]]):
    """Feeds by device; those of a device that is gone are made when it is first met."""

    def __init__(self, gone: Callable[[str], tuple[Feed, ...]], planned: MappingOf[str, tuple[Feed, ...]]) -> None:
        super().__init__(planned)
        self._gone = gone

    def __missing__(self, device: str) -> tuple[Feed, ...]:
        found = self[device] = self._gone(device)
        return found


class Complete:
    """Which entities have all their mandatory attributes: an entity is first sent when it has."""

    def __init__(self, log: Source) -> None:
        self._log = log
        self._complete: set[Key] = set()
        self._by_device: dict[str, dict[str, int]] = {}
        self._seen = 0
        self.missing: dict[str, list[str]] = {}

    def points(self, device: str) -> dict[str, int]:
        """Series of a device by point."""
        series = self._log.series
        if len(series) != self._seen:
            self._seen = len(series)
            self._by_device = {}
            for number, of in series.items():
                self._by_device.setdefault(of.device, {})[of.point] = number
        return self._by_device.get(device, {})

    def renumbered(self) -> None:
        """Series may have other numbers."""
        self._seen = 0

    def lacks(self, feed: Feed) -> bool:
        """Whether a mandatory attribute is still unknown; `missing` tells which."""
        if feed.key in self._complete:
            return False
        good = self._log.last_values.good
        missing = feed.missing({p for p, number in self.points(feed.device).items() if good(number) is not None})
        if missing:
            self.missing[feed.entity_id] = sorted(missing)
            return True
        self._complete.add(feed.key)
        self.missing.pop(feed.entity_id, None)
        return False


def _feed(mapping: "Mapping") -> Feed:
    return Feed(
        entity_id=mapping.entity_id,
        entity_type=mapping.entity_type,
        context=mapping.context,
        device=mapping.device,
        keys={point: tuple(slot.key for slot in slots) for point, slots in mapping.slots.items()},
        derived=frozenset(name for name, _ in mapping.times),
        make=partial(harmonise, replace(mapping, static={})),  # see `Statics`
        missing=mapping.missing,
    )


def _unmapped(device: str, fault: str, points: MappingOf[str, int]) -> Feed:
    """All that a device told; nobody knows any more of what."""

    def make(readings: MappingOf[str, Good]) -> Entity:
        told = {point: Attribute("property", value, "", instant(us)) for point, (value, us, _) in readings.items()}
        return Entity(UNMAPPED, "", "", told, device)

    return Feed(
        entity_id=UNMAPPED,
        entity_type="",
        context="",
        device=device,
        keys={point: (point,) for point in points},
        derived=frozenset(),
        make=make,
        missing=lambda have: frozenset(),
        fault=fault,
    )


def _updates(feeds: Sequence[Feed], points: dict[str, Good], seq: int) -> list[Update]:
    found = []
    for feed in feeds:
        keys = feed.keys
        mine = {point: good for point, good in points.items() if point in keys}
        if mine:
            found.append(Update(feed, mine, seq))
    return found


def _confirmed(columns: "Columns") -> bool:
    """Leave what comes before the first set whose time is not confirmed; whether that is anything."""
    if TimeState.UNCONFIRMED in columns.time_state:
        first = columns.seq[columns.time_state.index(TimeState.UNCONFIRMED)]
        columns.cut(columns.seq.index(first))
        if not columns.seq:
            return False
        columns.last = columns.seq[-1]
    return True
