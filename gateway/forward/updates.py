"""Updates: what the readings of a set change in an entity. The one walk that both lanes share."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from gateway.harmonise.entity import Entity, harmonise
from gateway.log.segment import wall_time
from gateway.sdk.reading import Quality, Value

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping
    from gateway.log.last_values import LastValue
    from gateway.log.log import Columns, Series

Good = tuple[Value, int, int]  # value, UTC microseconds, series


@dataclass(slots=True)
class Update:
    """A change of one entity, with the readings it comes from.

    Attributes:
        entity: what is sent; the part that a broker already holds may have been taken out of it.
        readings: by point, as they stand in the log.
        seq: number of their set.
        held: id of the held piece it comes from; 0 = it comes from the log.
    """

    mapping: "Mapping"
    entity: Entity
    readings: dict[str, Good]
    seq: int
    held: int = 0

    @property
    def newest_us(self) -> int:
        return max(time_us for _, time_us, _ in self.readings.values())


def instant(time_us: int) -> datetime:
    """The moment so many microseconds after the epoch."""
    return wall_time(time_us)


def update_of(mapping: "Mapping", readings: dict[str, Good], seq: int) -> Update:
    """Walk the table."""
    return Update(mapping, harmonise(mapping, readings), readings, seq)


def sets(columns: "Columns", series: "MappingOf[int, Series]") -> Iterator[tuple[int, str, dict[str, Good]]]:
    """Number, device and good readings of each set by point. A point that repeats in a set (a data logger's) begins another."""
    rows = zip(columns.seq, columns.series, columns.time_us, columns.value, columns.quality, strict=True)
    device, current = "", -1
    points: dict[str, Good] = {}
    good = Quality.GOOD
    for seq, number, time_us, value, quality in rows:
        if value is None or quality is not good:
            continue
        of = series[number]
        if points and (seq != current or of.point in points):
            yield current, device, points
            points = {}
        device, current = of.device, seq
        points[of.point] = (value, time_us, number)
    if points:
        yield current, device, points


def updates(
    columns: "Columns", series: "MappingOf[int, Series]", mappings: "MappingOf[str, Sequence[Mapping]]"
) -> Iterator[Update]:
    """One update per set and entity, in the order of the log."""
    for seq, device, points in sets(columns, series):
        for mapping in mappings.get(device, ()):
            slots = mapping.slots
            mine = {point: good for point, good in points.items() if point in slots}
            if mine:
                update = update_of(mapping, mine, seq)
                if is_measured(update.entity):  # else the model allows none of it
                    yield update


def is_measured(entity: Entity) -> bool:
    """Whether anything in it has a time."""
    return any(attribute.observed_at is not None for attribute in entity.attributes.values())


def past_only(update: Update) -> Entity:
    """The measured part: what is static, or says no more than `observedAt` does, is no history."""
    derived = {name for name, _ in update.mapping.times}
    kept = {
        name: attribute
        for name, attribute in update.entity.attributes.items()
        if attribute.observed_at is not None and name not in derived
    }
    return replace(update.entity, attributes=kept)


class Values(Protocol):
    """What is asked of the last values."""

    def since(self, mark: int) -> tuple[int, list[int]]: ...
    def good(self, series: int) -> "LastValue | None": ...


class Complete:
    """Which entities have all their mandatory attributes: an entity is first sent when it has."""

    def __init__(self, values: Values, series: "MappingOf[int, Series]") -> None:
        self._values = values
        self._series = series
        self._complete: set[tuple[str, str]] = set()
        self._by_device: dict[str, dict[str, int]] = {}
        self._seen = 0
        self.missing: dict[str, list[str]] = {}

    def points(self, device: str) -> dict[str, int]:
        """Series of a device by point."""
        if len(self._series) != self._seen:
            self._seen = len(self._series)
            self._by_device = {}
            for number, of in self._series.items():
                self._by_device.setdefault(of.device, {})[of.point] = number
        return self._by_device.get(device, {})

    def lacks(self, mapping: "Mapping") -> bool:
        """Whether a mandatory attribute is still unknown; `missing` tells which."""
        key = (mapping.entity_id, mapping.device)
        if key in self._complete:
            return False
        have = {p for p, number in self.points(mapping.device).items() if self._values.good(number) is not None}
        missing = mapping.missing(have)
        if missing:
            self.missing[mapping.entity_id] = sorted(missing)
            return True
        self._complete.add(key)
        self.missing.pop(mapping.entity_id, None)
        return False


class Sent:
    """Points that the state lane sent and that the history lane has not passed yet.

    A broker that records history by itself has them already. Times of a series stand in order, so that the readings of a
    long backlog, older than all of them, cost a comparison.
    """

    LIMIT = 200_000  # about 10 MB

    def __init__(self) -> None:
        self._times: dict[tuple[str, int], list[int]] = {}
        self._count = 0

    @property
    def full(self) -> bool:
        """The state lane must wait until the history lane has caught up."""
        return self._count >= self.LIMIT

    def note(self, entity_id: str, series: int, time_us: int) -> None:
        """The broker has it as a current value, or had."""
        times = self._times.setdefault((entity_id, series), [])
        at = bisect_left(times, time_us)
        if at == len(times) or times[at] != time_us:
            times.insert(at, time_us)
            self._count += 1

    def clear(self) -> None:
        """The log was read past all of them."""
        self._times.clear()
        self._count = 0

    def take(self, entity_id: str, series: int, time_us: int) -> bool:
        """Whether it was sent; then it is forgotten."""
        times = self._times.get((entity_id, series))
        if times is None:
            return False
        at = bisect_left(times, time_us)
        if at == len(times) or times[at] != time_us:
            return False
        del times[at]
        self._count -= 1
        if not times:
            del self._times[entity_id, series]
        return True
