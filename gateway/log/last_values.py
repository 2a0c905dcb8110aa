"""Last values: point -> newest reading, and what changed since. Memory only; the housekeeping commit saves it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from gateway.claims import AHEAD, EARLIEST, FOREVER, Claim
from gateway.log.boots import Boots
from gateway.log.segment import Entry, Series, Stamp, TimeState, microseconds, wall_time
from gateway.sdk.reading import Quality, Reading, Reason, TimeSource, Value

_FOREVER_S: Final = int(FOREVER.total_seconds())


@dataclass(frozen=True, slots=True)
class LastValue:
    """One reading.

    Attributes:
        time_us: UTC, microseconds since the epoch, corrected.
        seq: of its set; 0 when it was not reported, so never logged.
    """

    time_us: int
    value: Value | None
    quality: Quality
    reason: Reason
    time_source: TimeSource
    seq: int
    time_state: TimeState = TimeState.SURE


class _Kept(NamedTuple):
    reading: Reading
    seq: int
    stamp: Stamp
    claim: Claim | None = None


class LastValues:
    """Newest reading by series: the latest of any quality for page and status, the latest good reported one for the cities.

    Newest means by corrected time; of two with one time the later set wins. A reading whose time is not sure (the clock
    is not trusted, or it lies in the future) shows as latest at once, and counts as good when its time is confirmed.
    """

    def __init__(self, series: Mapping[int, Series], boots: Boots) -> None:
        self._series = series
        self._boots = boots
        self._latest: dict[int, _Kept] = {}
        self._good: dict[int, _Kept] = {}
        self._unsure: dict[int, _Kept] = {}  # good but for its time
        self._changed: dict[int, int] = {}  # series -> mark, the newest change last
        self._mark = 0

    def start(self, boots: Boots) -> None:
        """Forget what came before the file was open; it is noted again behind what the file holds."""
        self._boots = boots
        for table in (self._latest, self._good, self._unsure, self._changed):
            table.clear()

    def unchanged(self) -> None:
        """What is known so far is of an earlier run; whoever asks `since` has other news."""
        self._changed.clear()

    def note(self, entry: Entry, future: datetime | None = None) -> list[int]:
        """Take over the readings of a set; returns the series whose reading is not good.

        Args:
            future: times from here on are not believed; None: cannot be said.
        """
        self._mark += 1
        latest, good, changed, mark = self._latest, self._good, self._changed, self._mark
        stamp, claim, quality_good = entry.stamp, entry.claim, Quality.GOOD
        state = self._boots.resolve(stamp)[1]
        sure = claim is None and state is TimeState.SURE
        bad = []
        for series, reading in zip(entry.series, entry.readings, strict=True):
            kept = _Kept(reading, entry.seq, stamp, claim)
            old = latest.get(series)
            newer = old is None or self._newer(kept, old) or self._overtakes(kept, old, future)
            if newer:
                latest[series] = kept
            if reading.quality is not quality_good:
                bad.append(series)
            elif sure and (future is None or reading.observed_at < future):
                known = good.get(series)
                if known is None or (
                    newer if known is old else self._newer(kept, known) or self._overtakes(kept, known, future)
                ):
                    good[series] = kept
                    changed.pop(series, None)
                    changed[series] = mark
            else:
                old = self._unsure.get(series)
                if old is None or self._newer(kept, old):
                    self._unsure[series] = kept
        if claim is not None and state is not TimeState.UNCONFIRMED:
            self.confirm(future)
        return bad

    def forget(self, series: Iterable[int]) -> None:
        """Points whose newest reading cannot be kept."""
        for number in series:
            for table in (self._latest, self._good, self._unsure, self._changed):
                table.pop(number, None)

    def note_unreported(
        self,
        series: int,
        reading: Reading,
        stamp: Stamp,
        claim: Claim | None = None,
        future: datetime | None = None,
    ) -> None:
        """A reading that thinning keeps from the log: seen on the page, never sent."""
        kept = _Kept(reading, 0, stamp, claim)
        old = self._latest.get(series)
        if old is None or self._newer(kept, old) or self._overtakes(kept, old, future):
            self._latest[series] = kept

    def _overtakes(self, new: _Kept, old: _Kept, future: datetime | None) -> bool:
        """Whether a reading of now stands before one of a clock that ran ahead and was set back: that hides nothing."""
        if future is None:
            return False
        latest_us = microseconds(future)
        return self._true(old)[0] >= latest_us > self._true(new)[0]

    def _newer(self, new: _Kept, old: _Kept) -> bool:
        reading, seq, stamp, claim = new
        known, known_seq, known_stamp, known_claim = old
        if stamp is known_stamp and claim is known_claim is None and reading.time_source is known.time_source:
            at, known_at = reading.observed_at, known.observed_at
            return at > known_at or (at == known_at and (seq >= known_seq or not seq))
        new_us, _, new_state = self._true(new)
        old_us, _, old_state = self._true(old)
        # of one time, or of two clocks that cannot be compared: the later set; what is not logged has no number
        if TimeState.UNCONFIRMED in (new_state, old_state) or new_us == old_us:
            return seq >= known_seq or not seq
        return new_us > old_us

    def _true(self, kept: _Kept) -> tuple[int, TimeSource, TimeState]:
        time_us, source = microseconds(kept.reading.observed_at), kept.reading.time_source
        shift_us, state = self._boots.resolve(kept.stamp)
        if source is TimeSource.GATEWAY:
            return time_us + shift_us, source, state
        if kept.claim is not None:
            return self._boots.judge(kept.stamp, kept.claim, time_us, source)
        return time_us, source, state if state is TimeState.UNCONFIRMED else TimeState.SURE

    def confirm(self, future: datetime | None = None) -> None:
        """The clock has become trusted, or time has passed: what was unsure may count as good now."""
        self._mark += 1
        for series, kept in list(self._unsure.items()):
            time_us, _, state = self._true(kept)
            if state is not TimeState.SURE or (future is not None and time_us >= microseconds(future)):
                continue
            del self._unsure[series]
            old = self._good.get(series)
            if old is None or self._newer(kept, old):
                self._good[series] = kept
                self._changed.pop(series, None)
                self._changed[series] = self._mark

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
        """The latest good reported reading with a sure time."""
        kept = self._good.get(series)
        return kept and self._last_value(kept)

    def latest(self, series: int) -> LastValue | None:
        """The latest reading of any quality, reported or not."""
        kept = self._latest.get(series)
        return kept and self._last_value(kept)

    def device(self, name: str) -> dict[str, LastValue]:
        """Latest reading of any quality, by point."""
        return {
            series.point: self._last_value(self._latest[number])
            for number, series in self._series.items()
            if series.device == name and number in self._latest
        }

    def _last_value(self, kept: _Kept) -> LastValue:
        reading = kept.reading
        time_us, source, state = self._true(kept)
        return LastValue(time_us, reading.value, reading.quality, reading.reason, source, kept.seq, state)

    def saved(self) -> list[Entry]:
        """The latest reported readings as sets, in order, for the housekeeping commit."""
        sets: dict[tuple[int, Stamp, Claim | None], dict[int, Reading]] = {}
        for table in (self._good, self._unsure, self._latest):
            for series, kept in table.items():
                if kept.seq:
                    sets.setdefault((kept.seq, kept.stamp, kept.claim), {})[series] = kept.reading
        return list(_entries(sets))

    def restore(self, entries: Iterable[Entry], sealed_us: int, *, saved: bool) -> None:
        """Take back what `saved` gave, and the sets stored after it.

        Args:
            sealed_us: when it was written, by the clock of then: nothing in it was received later.
            saved: it is what `saved` gave. A time that cannot be, as an earlier citygate kept it, is then left out: it
                hid a true one.
        """
        latest, claim = wall_time(sealed_us) + AHEAD, Claim(sealed_us, _FOREVER_S, _FOREVER_S)
        for entry in entries:
            if entry.claim is None and any(_is_claim(reading) for reading in entry.readings):
                if saved and entry.stamp.trusted:
                    entry = _without_impossible(entry, latest)
                elif not entry.stamp.trusted or any(not EARLIEST <= r.observed_at <= latest for r in entry.readings):
                    entry = entry._replace(claim=claim)
            self.note(entry)


def _is_claim(reading: Reading) -> bool:
    return reading.time_source is not TimeSource.GATEWAY


def _without_impossible(entry: Entry, latest: datetime) -> Entry:
    """The set without readings whose claimed time cannot be."""
    kept = [
        (series, reading)
        for series, reading in zip(entry.series, entry.readings, strict=True)
        if not _is_claim(reading) or EARLIEST <= reading.observed_at <= latest
    ]
    return entry._replace(series=tuple(series for series, _ in kept), readings=tuple(reading for _, reading in kept))


def _entries(sets: dict[tuple[int, Stamp, Claim | None], dict[int, Reading]]) -> Iterator[Entry]:
    for (seq, stamp, claim), readings in sorted(sets.items(), key=lambda item: item[0][0]):
        yield Entry(seq, tuple(readings), tuple(readings.values()), stamp, 0.0, 0, claim)
