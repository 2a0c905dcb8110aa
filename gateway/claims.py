"""Claimed times: what the clock of a device or a network says, and how far it is believed. Pure.

One gate for all of them. A claimed time is bounded by reception: it can be no order, no newest value and no obstacle.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource

EARLIEST: Final = datetime(2020, 1, 1, tzinfo=UTC)  # before it: a clock that was never set
LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)  # while nobody knows what time it is, this at least
AHEAD: Final = timedelta(minutes=5)  # clocks of others may run ahead of ours by this
BACK: Final = timedelta(days=1)  # a device that keeps no history, and a driver, tell what is at most so old
FOREVER: Final = timedelta(days=36_525)  # more than lies between EARLIEST and LATEST
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_US: Final = (EARLIEST - _EPOCH) // timedelta(microseconds=1)
AHEAD_US: Final = AHEAD // timedelta(microseconds=1)


def latest_us(now: datetime) -> int:
    """What is of a later time than this lies in the future: no city gets it before its time has come."""
    return (now - _EPOCH) // timedelta(microseconds=1) + AHEAD_US


class Claim(NamedTuple):
    """What it takes to judge the claimed times of a set later, when the clock is known better.

    Attributes:
        received_us: when the set came, by the clock of then.
        device_s, network_s: how long before that a time of a device, or of a network, may lie.
    """

    received_us: int
    device_s: int
    network_s: int

    def holds(self, time_us: int, source: TimeSource, *, shift_us: int = 0, margin_us: int = 0) -> bool:
        """Whether a time is within its bounds.

        Args:
            shift_us: how far the clock of then was behind.
            margin_us: how well that is known.
        """
        received_us = self.received_us + shift_us
        back_us = (self.device_s if source is TimeSource.DEVICE else self.network_s) * 1_000_000
        earliest_us = max(EARLIEST_US, received_us - margin_us - back_us)
        return earliest_us <= time_us <= received_us + margin_us + AHEAD_US


@dataclass(frozen=True, slots=True)
class Reception:
    """When a set came.

    Attributes:
        now: by the clock of this box, UTC.
        confirmed: somebody vouches for that.
        before: what the clock would show that was set a moment ago; None when none was.
    """

    now: datetime
    confirmed: bool
    before: datetime | None = None


@dataclass(slots=True)
class TimeGate:
    """What the times of one device's sets pass.

    Attributes:
        device_back, network_back: how old a time of the device, and of its network, may be when it comes.
        replaced: readings so far that were given the time of reception, because theirs was out of bounds.
        unreadable: readings so far that lost their value, because their time cannot be read.
        wrong: of the newest of those replaced: what it claimed, and whose clock that was.
    """

    device_back: timedelta = BACK
    network_back: timedelta = FOREVER
    replaced: int = 0
    unreadable: int = 0
    wrong: tuple[datetime, TimeSource] = field(default=(EARLIEST, TimeSource.GATEWAY))

    def ordinary(self, readings: tuple[Reading, ...], now: datetime) -> bool:
        """Whether all times are of this box's clock and about now: the common case, asked of every set."""
        low = high = None
        checked: object = readings  # anything that is no time
        gateway = TimeSource.GATEWAY
        for reading in readings:
            at = reading.observed_at
            if reading.time_source is not gateway:
                return False
            if at is not checked:
                if type(at) is not datetime or at.tzinfo is not UTC:
                    return False
                if low is None or high is None:
                    low, high = now - BACK, now + AHEAD
                if not low <= at <= high:
                    return False
                checked = at
        return True

    def admit(self, readings: ReadingSet, reception: Reception) -> tuple[ReadingSet, bool]:
        """The set with times that can be; and whether some of them wait until the clock is confirmed."""
        heard = self._heard(readings.readings, reception)
        dated = tuple(self._dated(reading, reception, heard) for reading in readings.readings)
        waits = not reception.confirmed and any(r.time_source is not TimeSource.GATEWAY for r in dated)
        if all(new is old for new, old in zip(dated, readings.readings, strict=True)):
            return readings, waits
        return replace(readings, readings=dated), waits

    def _heard(self, readings: tuple[Reading, ...], reception: Reception) -> datetime | None:
        """When the network heard the set, if that queued it since: the device's clock is judged by then, not by now."""
        if not reception.confirmed:
            return None
        network = [at for r in readings if r.time_source is TimeSource.NETWORK and (at := utc_or_none(r.observed_at))]
        if not network or not self._holds(heard := min(network), TimeSource.NETWORK, reception):
            return None
        return heard if heard < reception.now - AHEAD else None

    def _dated(self, reading: Reading, reception: Reception, heard: datetime | None) -> Reading:
        now = reception.now
        at = utc_or_none(reading.observed_at)
        if at is None:
            self.unreadable += 1
            return replace(
                reading,
                value=None,
                observed_at=now,
                quality=Quality.BAD,
                reason=Reason.BAD_TIME,
                time_source=TimeSource.GATEWAY,
            )
        source = _source(reading.time_source)
        if heard is not None and source is TimeSource.DEVICE:
            if max(EARLIEST, heard - self.device_back) <= at <= heard + AHEAD:
                return replace(reading, observed_at=at, time_source=source)
            self.replaced += 1
            self.wrong = at, source
            return replace(reading, observed_at=heard, time_source=TimeSource.NETWORK)
        if not self._holds(at, source, reception):
            self.replaced += 1
            self.wrong = at, source
            return replace(reading, observed_at=now, time_source=TimeSource.GATEWAY)
        if at is reading.observed_at and source is reading.time_source:
            return reading
        return replace(reading, observed_at=at, time_source=source)

    def _holds(self, at: datetime, source: TimeSource, reception: Reception) -> bool:
        now = reception.now
        if source is TimeSource.GATEWAY:  # our own clock, whatever it is worth: only a driver's mistake is far from it
            near = (now, reception.before) if reception.before is not None else (now,)
            return any(then - BACK <= at <= then + AHEAD for then in near)
        if not EARLIEST <= at <= LATEST:
            return False
        back = self.device_back if source is TimeSource.DEVICE else self.network_back
        return not reception.confirmed or now - back <= at <= now + AHEAD


def utc_or_none(at: object) -> datetime | None:
    """The moment in UTC; None when it is none: no datetime, without zone, or outside the years that can be told."""
    if type(at) is datetime and at.tzinfo is UTC:
        return at
    try:
        if not isinstance(at, datetime) or at.utcoffset() is None:
            return None
        at = at.astimezone(UTC)
        return datetime(at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, UTC)
    except Exception:  # noqa: BLE001  a zone of somebody else's may raise anything
        return None


def _source(source: object) -> TimeSource:
    """Whose clock it is; what is none of the three is not ours."""
    try:
        return TimeSource(source)  # type: ignore[arg-type]  # anything may stand there
    except ValueError:
        return TimeSource.DEVICE
