"""How many readings one consumer is still to be sent: good ones of points that it takes. Pure; the log tells what comes and goes."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from gateway.log.segment import Columns, Entry, Series, microseconds
from gateway.sdk.reading import Quality

Takes = Callable[[str, str], bool]  # device, point
MAX_PARTS = 4096  # beyond it two neighbours become one: then a settled part counts until all of it is


class _Part(NamedTuple):
    """A stretch.

    Attributes:
        last: number of its last set.
        time_us: of its oldest reading.
        gone: of these readings, those of devices that are gone, by device.
    """

    last: int
    readings: int
    time_us: int
    gone: Counter[str]


class Owed:
    """A running count, by stretches of the log; of devices that are gone by device, too.

    Args:
        series: every point by its number.
        is_gone: whether a device is no longer in the config.
    """

    def __init__(
        self, takes: Takes, series: Mapping[int, Series], is_gone: Callable[[str], bool] = lambda device: False
    ) -> None:
        self._takes = takes
        self._series = series
        self._is_gone = is_gone
        self._wanted: dict[int, str | None] = {}  # None: it is not; the device, when that is gone, else ""
        self._parts: deque[_Part] = deque()
        self._upto = 0
        self.total = 0

    @property
    def oldest_us(self) -> int | None:
        """Time of the oldest stretch that is owed."""
        return self._parts[0].time_us if self._parts else None

    def of_gone(self, device: str) -> tuple[int, int | None]:
        """Readings of a device that is gone, and the time of the oldest stretch with any."""
        parts = [part for part in self._parts if part.gone[device]]
        return sum(part.gone[device] for part in parts), parts[0].time_us if parts else None

    def entries(self, entries: Iterable[Entry]) -> None:
        """Sets of the head, in order; those counted before are left out."""
        good = Quality.GOOD
        for entry in entries:
            if entry.seq > self._upto:
                self._upto = entry.seq
                pairs = zip(entry.series, entry.readings, strict=True)
                numbers = [number for number, reading in pairs if reading.quality is good]
                self._add(entry.seq, numbers, microseconds(entry.readings[0].observed_at))

    def columns(self, columns: Columns) -> None:
        """Sets of the file, in order."""
        if not columns.seq:
            return
        good = Quality.GOOD
        pairs = zip(columns.series, columns.quality, strict=True)
        numbers = [number for number, quality in pairs if quality is good]
        self._upto = max(self._upto, columns.last)
        self._add(columns.last, numbers, min(columns.time_us))

    def settled(self, cursor: int) -> None:
        """All up to here is done with."""
        while self._parts and self._parts[0].last <= cursor:
            self.total -= self._parts.popleft().readings
        self._upto = max(self._upto, cursor)

    def given_up(self, first: int, last: int) -> None:
        """Sets that memory gave up."""
        self._parts = deque(part for part in self._parts if not first <= part.last <= last)
        self.total = sum(part.readings for part in self._parts)

    def at_most(self, readings: int) -> None:
        """The file holds no more than this: its oldest sets were given up."""
        while self._parts and self.total > readings:
            self.total -= self._parts.popleft().readings

    def _is_wanted(self, number: int) -> str | None:
        if number not in self._wanted:
            of = self._series.get(number)
            its = None if of is None or not self._takes(of.device, of.point) else of.device
            self._wanted[number] = its if its is None or self._is_gone(its) else ""
        return self._wanted[number]

    def _add(self, last: int, numbers: Iterable[int], time_us: int) -> None:
        """Good readings of a stretch, each by its number."""
        wanted = [device for device in map(self._is_wanted, numbers) if device is not None]
        if not wanted:
            return
        self.total += len(wanted)
        self._parts.append(_Part(last, len(wanted), time_us, Counter(filter(None, wanted))))
        if len(self._parts) > MAX_PARTS:
            parts, self._parts = list(self._parts), deque()
            for one, two in zip(parts[::2], [*parts[1::2], None], strict=False):
                self._parts.append(one if two is None else _joined(one, two))


def _joined(one: _Part, two: _Part) -> _Part:
    return _Part(two.last, one.readings + two.readings, one.time_us, one.gone + two.gone)
