"""Last values: point -> newest reading, and what changed since. Memory only; the housekeeping commit saves it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gateway.log.segment import Entry, Series, Stamp, microseconds
from gateway.sdk.reading import Quality, Reading, Reason, TimeSource, Value


@dataclass(frozen=True, slots=True)
class LastValue:
    """One reading as it was taken.

    Attributes:
        time_us: UTC, microseconds since the epoch.
        seq: of its set; 0 when it was not reported, so never logged.
    """

    time_us: int
    value: Value | None
    quality: Quality
    reason: Reason
    time_source: TimeSource
    seq: int


class _Kept(NamedTuple):
    reading: Reading
    seq: int
    stamp: Stamp


class LastValues:
    """Newest reading by series: the latest of any quality for page and status, the latest good reported one for the cities.

    Newest means by `observed_at`; of two with one time the later set wins.
    """

    def __init__(self, series: Mapping[int, Series]) -> None:
        self._names = series
        self._latest: dict[int, _Kept] = {}
        self._good: dict[int, _Kept] = {}
        self._changed: dict[int, int] = {}  # series -> mark, the newest change last
        self._mark = 0

    def note(self, entry: Entry) -> None:
        """Take over the readings of a set that was appended to the log."""
        self._mark += 1
        latest, good, changed, mark = self._latest, self._good, self._changed, self._mark
        quality_good = Quality.GOOD
        for series, reading in zip(entry.series, entry.readings, strict=True):
            kept = _Kept(reading, entry.seq, entry.stamp)
            at = reading.observed_at
            old = latest.get(series)
            if old is None or old.reading.observed_at <= at:
                latest[series] = kept
            if reading.quality is quality_good:
                old = good.get(series)
                if old is None or old.reading.observed_at <= at:
                    good[series] = kept
                    changed.pop(series, None)
                    changed[series] = mark

    def note_unreported(self, series: int, reading: Reading, stamp: Stamp) -> None:
        """A reading that thinning keeps from the log: seen on the page, never sent."""
        old = self._latest.get(series)
        if old is None or old.reading.observed_at <= reading.observed_at:
            self._latest[series] = _Kept(reading, 0, stamp)

    def since(self, mark: int) -> tuple[int, list[int]]:
        """New mark, and the series whose latest good reported reading changed after `mark`; 0 asks for all."""
        found = []
        for series in reversed(self._changed):
            if self._changed[series] <= mark:
                break
            found.append(series)
        found.reverse()
        return self._mark, found

    def good(self, series: int) -> LastValue | None:
        """The latest good reported reading."""
        kept = self._good.get(series)
        return kept and _last_value(kept)

    def latest(self, series: int) -> LastValue | None:
        """The latest reading of any quality, reported or not."""
        kept = self._latest.get(series)
        return kept and _last_value(kept)

    def device(self, name: str) -> dict[str, LastValue]:
        """Latest reading of any quality, by point."""
        return {
            series.point: _last_value(self._latest[number])
            for number, series in self._names.items()
            if series.device == name and number in self._latest
        }

    def saved(self) -> Iterator[Entry]:
        """The latest reported readings as sets, in order, for the housekeeping commit."""
        sets: dict[tuple[int, Stamp], dict[int, Reading]] = {}
        for table in (self._good, self._latest):
            for series, kept in table.items():
                if kept.seq:
                    sets.setdefault((kept.seq, kept.stamp), {})[series] = kept.reading
        for (seq, stamp), readings in sorted(sets.items(), key=lambda item: item[0][0]):
            yield Entry(seq, tuple(readings), tuple(readings.values()), stamp, 0.0, 0)

    def restore(self, entries: Iterable[Entry]) -> None:
        """Take back what `saved` gave."""
        for entry in entries:
            self.note(entry)


def _last_value(kept: _Kept) -> LastValue:
    reading = kept.reading
    return LastValue(
        microseconds(reading.observed_at),
        reading.value,
        reading.quality,
        reading.reason,
        reading.time_source,
        kept.seq,
    )
