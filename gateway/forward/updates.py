"""Updates: what some readings change in an entity. All that the lanes know of what is sent, wherever it comes from."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from gateway.harmonise.entity import Entity
from gateway.log.segment import wall_time
from gateway.sdk.reading import Value

Good = tuple[
    Value, int, int
]  # value, UTC microseconds, where it comes from: a number that stands for one point of one device
Key = tuple[str, str]  # entity, device
Fits = Callable[[Sequence[int]], int]  # readings of each update, in order -> how many of them may go now


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Feed:
    """What one device tells of one entity; several devices may feed one.

    Attributes:
        keys: by point, the attributes that its value becomes; a point without any is only a sub-attribute and goes along.
        derived: attributes that say no more than `observedAt` does.
        make: the entity of some readings, without static attributes.
        missing: mandatory attributes that are still unknown when these points have had a good value.
        fault: why none of it can be sent; "" = it can.
    """

    entity_id: str
    entity_type: str
    context: str
    device: str
    keys: MappingOf[str, tuple[str, ...]]
    derived: frozenset[str]
    make: Callable[[MappingOf[str, Good]], Entity]
    missing: Callable[[set[str]], AbstractSet[str]]
    fault: str = ""
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.entity_id, self.device))


class Update:
    """A change of one entity, with the readings it comes from.

    Attributes:
        readings: by point.
        seq: number of their set.
        held: id of the held piece it comes from; 0 = none.
    """

    __slots__ = ("_entity", "feed", "held", "readings", "seq")

    def __init__(self, feed: Feed, readings: dict[str, Good], seq: int, held: int = 0) -> None:
        self.feed = feed
        self.readings = readings
        self.seq = seq
        self.held = held
        self._entity: Entity | None = None

    @property
    def entity(self) -> Entity:
        """What is sent, made when first asked for; the part that a broker already holds may have been taken out of it."""
        if self._entity is None:
            self._entity = self.feed.make(self.readings)
        return self._entity

    @entity.setter
    def entity(self, entity: Entity) -> None:
        self._entity = entity

    @property
    def entity_id(self) -> str:
        return self.feed.entity_id

    @property
    def newest_us(self) -> int:
        return max(time_us for _, time_us, _ in self.readings.values())

    @property
    def past(self) -> Entity:
        """The measured part: what is static, or says no more than `observedAt` does, is no history."""
        entity, derived = self.entity, self.feed.derived
        kept = {
            name: attribute
            for name, attribute in entity.attributes.items()
            if attribute.observed_at is not None and name not in derived
        }
        return replace(entity, attributes=kept)

    def part(self, readings: dict[str, Good]) -> "Update":
        """Another update, of these of its readings."""
        return Update(self.feed, readings, self.seq, self.held)


def instant(time_us: int) -> datetime:
    """The moment so many microseconds after the epoch."""
    return wall_time(time_us)


def is_measured(entity: Entity) -> bool:
    """Whether anything in it has a time."""
    return any(attribute.observed_at is not None for attribute in entity.attributes.values())


class Mark(NamedTuple):
    """When a broker accepted something as current state.

    Attributes:
        order: number of the request in this run; 0: of an earlier one, if ever.
        epoch: faults of the broker before it; None: not known, or there was one meanwhile.
    """

    order: int
    epoch: int | None


UNKNOWN = Mark(0, None)


class Sent:
    """Points that the state lane sent and that the history lane has not passed yet.

    A broker that records history by itself has them already. Times of a series stand in order, so that the readings of a
    long backlog, older than all of them, cost a comparison.
    """

    LIMIT = 200_000  # about 10 MB

    def __init__(self) -> None:
        self._times: dict[tuple[str, int], tuple[list[int], list[Mark]]] = {}
        self._count = 0
        self._order = 0

    @property
    def full(self) -> bool:
        """The state lane must wait until the history lane has caught up."""
        return self._count >= self.LIMIT

    def mark(self, epoch: int | None = None) -> Mark:
        """A request of current state was answered, or what it is now was read."""
        self._order += 1
        return Mark(self._order, epoch)

    def note(self, entity_id: str, series: int, time_us: int, mark: Mark = UNKNOWN) -> None:
        """The broker has it as a current value, or had."""
        times, marks = self._times.setdefault((entity_id, series), ([], []))
        at = bisect_left(times, time_us)
        if at == len(times) or times[at] != time_us:
            times.insert(at, time_us)
            marks.insert(at, mark)
            self._count += 1

    def renumber(self, now: Callable[[int], int]) -> None:
        """Series may have other numbers: `now` gives a series' own."""
        before, self._times, self._count = self._times, {}, 0
        for (entity_id, series), (times, marks) in before.items():
            for time_us, mark in zip(times, marks, strict=True):
                self.note(entity_id, now(series), time_us, mark)

    def clear(self) -> None:
        """The log was read past all of them."""
        self._times.clear()
        self._count = 0

    def take(self, entity_id: str, series: int, time_us: int) -> Mark | None:
        """When it was sent, and then it is forgotten; None when it was not."""
        times, marks = self._times.get((entity_id, series), _NONE)
        at = bisect_left(times, time_us)
        if at == len(times) or times[at] != time_us:
            return None
        del times[at]
        self._count -= 1
        if not times:
            del self._times[entity_id, series]
        return marks.pop(at)


_NONE: tuple[list[int], list[Mark]] = [], []


@dataclass(frozen=True, slots=True)
class Told:
    """What a broker was told as current by a forwarder that has ended: the next one of this run goes on from there.

    Attributes:
        sent: what the broker accepted, and what is not settled yet of it.
        doubted: by entity, series and times that it may have accepted.
        first: by entity, what it held when it was first asked.
    """

    sent: Sent
    doubted: MappingOf[str, AbstractSet[tuple[int, int]]]
    first: MappingOf[str, MappingOf[str, datetime]]
