"""Statistics: per point and hour what was expected, came, was bad, and how late; measured quality, not promised."""

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.log.segment import Series

HOUR_US: Final = 3_600_000_000
_HOURS_KEPT: Final = 48  # in memory; the file keeps them as long as readings


@dataclass(slots=True)
class Quality:
    """One point in one hour, or in several.

    Attributes:
        expected: readings that should have come while the gateway ran; 0 for a device without a rhythm.
        latency: bucket -> readings; see `bucket`.
    """

    expected: float = 0.0
    got: int = 0
    bad: int = 0
    latency: Counter[int] = field(default_factory=Counter)

    def add(self, other: "Quality") -> None:
        self.expected += other.expected
        self.got += other.got
        self.bad += other.bad
        self.latency += other.latency

    def latency_s(self, share: float) -> float | None:
        """The time within which so large a share of the readings came, to 20 %."""
        wanted = share * self.latency.total()
        for number in sorted(self.latency):
            wanted -= self.latency[number]
            if wanted <= 0:
                return float(2 ** ((number + 1) / 4) - 1) / 1000
        return None


def bucket(latency_us: int) -> int:
    """Number of a latency's bucket: four per octave, from a millisecond up; a negative latency counts as none."""
    return int(4 * math.log2(max(0, latency_us) / 1000 + 1))


class Statistics:
    """Counts by point, this hour's and the last two days'."""

    def __init__(self, series: Mapping[int, Series], *, hour: int, up_s: float) -> None:
        self._series = series
        self._hours: dict[int, dict[int, Quality]] = {}
        self._every_s: dict[str, float] = {}
        self._hour = hour
        self._counted_s = up_s
        self._sets: Counter[tuple[tuple[int, ...], int]] = Counter()
        self._bad: Counter[int] = Counter()
        self._unsaved: set[int] = set()  # hours that changed; a card may refuse for many

    def load(self, saved: Mapping[int, bytes]) -> None:
        """Take over what the file holds, as `to_save` gave it: hour number -> blob."""
        self._sets.clear()  # counted under numbers that the file may not know
        self._bad.clear()
        self._hours = {number: _unpack(blob) for number, blob in saved.items()}

    def expect(self, device: str, every_s: float | None) -> None:
        """From now on each point of the device should come so often; None: it has no rhythm."""
        self._every_s.pop(device, None)
        if every_s:
            self._every_s[device] = every_s

    def note(self, series: tuple[int, ...], latency_us: int, bad: list[int]) -> None:
        """A set arrived."""
        self._sets[series, bucket(latency_us)] += 1
        if bad:
            self._bad.update(bad)

    def turn(self, hour: int, up_s: float) -> None:
        """Add what was counted to its hour; `up_s` is monotonic."""
        table = self._hours.setdefault(self._hour, {})
        self._unsaved.add(self._hour)
        for (group, number), count in self._sets.items():
            for series in group:
                quality = table.setdefault(series, Quality())
                quality.got += count
                quality.latency[number] += count
        for series, count in self._bad.items():
            table.setdefault(series, Quality()).bad += count
        self._sets.clear()
        self._bad.clear()
        passed_s, self._counted_s = up_s - self._counted_s, up_s
        # a point that came before the file could be read has a second number since: the newest counts
        for (device, _), series in {(s.device, s.point): number for number, s in self._series.items()}.items():
            if device in self._every_s:
                table.setdefault(series, Quality()).expected += passed_s / self._every_s[device]
        self._hour = hour
        for old in [number for number in self._hours if number <= hour - _HOURS_KEPT]:
            del self._hours[old]

    def to_save(self) -> dict[int, bytes]:
        """What is not `saved` yet, for the housekeeping commit; call `turn` first."""
        return {number: _pack(table) for number, table in self._hours.items() if number in self._unsaved and table}

    def saved(self) -> None:
        """What `to_save` gave is in the file."""
        self._unsaved.clear()

    def forget(self, hours: Iterable[int]) -> None:
        """Hours that cannot be kept."""
        for number in hours:
            self._hours.pop(number, None)

    def of(self, hours: int = 24) -> dict[tuple[str, str], Quality]:
        """(device, point) -> quality over the last hours, the present one included."""
        total: dict[tuple[str, str], Quality] = {}
        for number, table in self._hours.items():
            if number <= self._hour - hours:
                continue
            for series, quality in table.items():
                if series in self._series:
                    name = self._series[series]
                    total.setdefault((name.device, name.point), Quality()).add(quality)
        return total


def _pack(table: Mapping[int, Quality]) -> bytes:
    rows: dict[int, Any] = {
        series: [round(q.expected, 2), q.got, q.bad, list(q.latency.items())] for series, q in table.items()
    }
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 6)


def _unpack(blob: bytes) -> dict[int, Quality]:
    """Damaged counts are left out: they are a service, not data."""
    try:
        rows = json.loads(zlib.decompress(blob))
        return {int(s): Quality(e, g, b, Counter(dict(pairs))) for s, (e, g, b, pairs) in rows.items()}
    except (zlib.error, ValueError, TypeError, AttributeError, RecursionError):
        return {}
