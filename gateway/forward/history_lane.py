"""The history lane: everything from the cursor, in order; it alone settles.

`in-order`: each set becomes one update of each of its entities; an entity stands once per request, so the updates of
one entity go one after the other in time order, and those of all entities side by side.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from gateway.forward.broker import Accepted, Broker, Outcome, observed
from gateway.harmonise.entity import Entity, harmonise
from gateway.sdk.reading import Quality, Value

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping
    from gateway.log.log import Columns, Series

Good = tuple[Value, int]  # value, UTC microseconds


class Source(Protocol):
    """What the lane asks of the log."""

    @property
    def series(self) -> "MappingOf[int, Series]": ...

    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> "Columns | None": ...

    async def settle(self, consumer: str, upto: int) -> None: ...


@dataclass(slots=True)
class LaneCounts:
    """What the lane did since the start; in entity updates."""

    accepted: int = 0
    refused: int = 0
    known: int = 0  # not sent: the broker held that time or a newer one already


class HistoryLane:
    """Reads a stretch of the log, sends it round by round, settles it when all of it is done.

    Args:
        mappings: by device; devices that are not there are not sent to this broker, only settled.
        accepted: shared with whoever else sends to this broker.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        mappings: "MappingOf[str, Sequence[Mapping]]",
        log: Source,
        accepted: Accepted,
        *,
        max_readings: int = 5000,
    ) -> None:
        self._name = name
        self._broker = broker
        self._mappings = mappings
        self._log = log
        self._accepted = accepted
        self._max_readings = max_readings
        self._queues: dict[str, deque[Entity]] = {}  # by entity id, oldest first
        self._last: int | None = None  # settle up to here once the queues are empty
        self.counts = LaneCounts()

    @property
    def idle(self) -> bool:
        """Nothing read that is not settled."""
        return self._last is None

    async def fill(self) -> bool:
        """Read the next stretch; False at the tail."""
        columns = await self._log.read(self._name, max_readings=self._max_readings)
        if columns is None:
            return False
        self._last = columns.last
        for entity in updates(columns, self._log.series, self._mappings):
            self._queues.setdefault(entity.id, deque()).append(entity)
        for entity_id, queue in self._queues.items():
            self._queues[entity_id] = deque(sorted(queue, key=_newest))
        return True

    async def send(self) -> Outcome:
        """Send one round: the oldest waiting update of every entity. Settles when nothing is left.

        Raises:
            BrokerUnavailable: what the broker holds could not be read back.
        """
        await self._read_back()
        batch = self._round()
        outcome = await self._broker.state(batch) if batch else Outcome()
        for entity in batch:
            self._done(entity, outcome)
        if not self._queues and self._last is not None:
            await self._log.settle(self._name, self._last)
            self._last = None
        return outcome

    def _done(self, entity: Entity, outcome: Outcome) -> None:
        if entity.id in outcome.later:
            if entity.id in outcome.doubtful:
                self._accepted.doubt(entity.id)
            return
        if entity.id in outcome.accepted:
            self._accepted.note(entity.id, observed(entity))
            self.counts.accepted += 1
        else:
            self.counts.refused += 1
        self._pop(entity.id)

    def _pop(self, entity_id: str) -> None:
        queue = self._queues[entity_id]
        queue.popleft()
        if not queue:
            del self._queues[entity_id]

    def _round(self) -> list[Entity]:
        batch = []
        for entity_id, queue in list(self._queues.items()):
            while queue:
                entity = self._accepted.newer(queue[0])
                if entity is not None:
                    batch.append(entity)
                    break
                self.counts.known += 1
                queue.popleft()
            if not queue:
                del self._queues[entity_id]
        return batch

    async def _read_back(self) -> None:
        """Ask what the broker holds of entities not yet sent in this run, and of those in doubt."""
        unknown = [queue[0] for entity_id, queue in self._queues.items() if not self._accepted.knows(entity_id)]
        if not unknown:
            return
        found = await self._broker.read_back(unknown)
        for entity in unknown:
            self._accepted.note(entity.id, found.get(entity.id, {}))


def updates(
    columns: "Columns", series: "MappingOf[int, Series]", mappings: "MappingOf[str, Sequence[Mapping]]"
) -> Iterator[Entity]:
    """The entity updates of a stretch, in the order of the log: one per set and entity (more where a point repeats)."""
    for device, points in _sets(columns, series):
        for mapping in mappings.get(device, ()):
            slots = mapping.slots
            mine = {point: good for point, good in points.items() if point in slots}
            if mine:
                yield harmonise(mapping, mine)


def _sets(columns: "Columns", series: "MappingOf[int, Series]") -> Iterator[tuple[str, dict[str, Good]]]:
    """Good readings of each set by point. A point that repeats within a set (a data logger) begins another one."""
    rows = zip(columns.seq, columns.series, columns.time_us, columns.value, columns.quality, strict=True)
    device, current = "", -1
    points: dict[str, Good] = {}
    for seq, series_id, time_us, value, quality in rows:
        if value is None or quality is not Quality.GOOD:
            continue
        of = series[series_id]
        if points and (seq != current or of.device != device or of.point in points):
            yield device, points
            points = {}
        device, current = of.device, seq
        points[of.point] = (value, time_us)
    if points:
        yield device, points


def _newest(entity: Entity) -> datetime:
    return max(observed(entity).values())
