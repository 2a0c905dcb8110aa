"""How many readings one consumer is still to be sent: good ones of points that it takes. Pure; the log tells what comes and goes."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from gateway.log.segment import Columns, Entry, Series, microseconds
from gateway.sdk.reading import Quality

Takes = Callable[[str, str], bool]  # device, point
MAX_PARTS = 4096  # beyond it two neighbours become one: then a settled part counts until all of it is


class Owed:
    """A running count, by stretches of the log.

    Args:
        series: every point by its number.
    """

    def __init__(self, takes: Takes, series: Mapping[int, Series]) -> None:
        self._takes = takes
        self._series = series
        self._wanted: dict[int, bool] = {}
        self._parts: deque[tuple[int, int, int]] = deque()  # last number, readings, time of the oldest
        self._upto = 0
        self.total = 0

    @property
    def oldest_us(self) -> int | None:
        """Time of the oldest stretch that is owed."""
        return self._parts[0][2] if self._parts else None

    def entries(self, entries: Iterable[Entry]) -> None:
        """Sets of the head, in order; those counted before are left out."""
        good = Quality.GOOD
        for entry in entries:
            if entry.seq > self._upto:
                self._upto = entry.seq
                count = sum(
                    1
                    for number, reading in zip(entry.series, entry.readings, strict=True)
                    if reading.quality is good and self._is_wanted(number)
                )
                self._add(entry.seq, count, microseconds(entry.readings[0].observed_at))

    def columns(self, columns: Columns) -> None:
        """Sets of the file, in order."""
        if not columns.seq:
            return
        good = Quality.GOOD
        count = sum(
            1
            for number, quality in zip(columns.series, columns.quality, strict=True)
            if quality is good and self._is_wanted(number)
        )
        self._upto = max(self._upto, columns.last)
        self._add(columns.last, count, min(columns.time_us))

    def settled(self, cursor: int) -> None:
        """All up to here is done with."""
        while self._parts and self._parts[0][0] <= cursor:
            self.total -= self._parts.popleft()[1]
        self._upto = max(self._upto, cursor)

    def given_up(self, first: int, last: int) -> None:
        """Sets that memory gave up."""
        self._parts = deque(part for part in self._parts if not first <= part[0] <= last)
        self.total = sum(count for _, count, _ in self._parts)

    def at_most(self, readings: int) -> None:
        """The file holds no more than this: its oldest sets were given up."""
        while self._parts and self.total > readings:
            self.total -= self._parts.popleft()[1]

    def _is_wanted(self, number: int) -> bool:
        wanted = self._wanted.get(number)
        if wanted is None:
            of = self._series.get(number)
            wanted = self._wanted[number] = of is not None and self._takes(of.device, of.point)
        return wanted

    def _add(self, last: int, count: int, time_us: int) -> None:
        if not count:
            return
        self.total += count
        self._parts.append((last, count, time_us))
        if len(self._parts) > MAX_PARTS:
            parts, self._parts = list(self._parts), deque()
            for one, two in zip(parts[::2], [*parts[1::2], None], strict=False):
                self._parts.append(one if two is None else (two[0], one[1] + two[1], one[2]))
