"""From what the registers hold to the device's set: scale factors that the device keeps in registers, counters that
restart, a status that says whether the rest can be trusted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from drivers.modbus.codec.counters import Counter
from gateway.sdk.reading import Quality, Reading, Reason

MAX_EXPONENT = 10  # SunSpec: a scale factor is -10 to 10


def factor_name(address: int) -> str:
    """The hidden point of a scale factor's register."""
    return f"@{address}"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the raw points of one device type need beyond scale and offset.

    Attributes:
        order: the points, as the template lists them.
        factors: point -> hidden point whose value is the power of ten to multiply with.
        rollover: point -> the value at which its counter restarts from 0, in the point's unit.
        status: (point, value): any other value means that the device doubts its other points.
    """

    order: tuple[str, ...]
    factors: Mapping[str, str]
    rollover: Mapping[str, float]
    status: tuple[str, float] | None

    @property
    def plain(self) -> bool:
        """Nothing to do but put in order."""
        return not (self.factors or self.rollover or self.status)


def finish(readings: Iterable[Reading], rules: Rules, counters: Mapping[str, Counter]) -> tuple[Reading, ...]:
    """The readings of one poll, complete and in order; counters move on."""
    by_point = {reading.point: reading for reading in readings}
    for point, factor in rules.factors.items():
        if point in by_point:
            by_point[point] = _multiplied(by_point[point], by_point.get(factor))
    if rules.status is not None:
        _doubt(by_point, *rules.status)
    for point, rollover in rules.rollover.items():  # last: what the device doubts moves no counter
        reading = by_point.get(point)
        if reading is not None and reading.value is not None:
            by_point[point] = _counted(reading, rollover, counters[point])
    return tuple(by_point[point] for point in rules.order if point in by_point)


def in_order(readings: Sequence[Reading], order: tuple[str, ...]) -> tuple[Reading, ...]:
    """As the template lists the points."""
    if tuple([reading.point for reading in readings]) == order:  # the common case
        return tuple(readings)
    by_point = {reading.point: reading for reading in readings}
    return tuple(by_point[point] for point in order if point in by_point)


def _multiplied(reading: Reading, factor: Reading | None) -> Reading:
    if reading.value is None or isinstance(reading.value, str | bool):
        return reading
    exponent = factor.value if factor is not None else None
    if not isinstance(exponent, int) or abs(exponent) > MAX_EXPONENT:
        reason = Reason.NOT_AVAILABLE if factor is None or not factor.reason else factor.reason
        return replace(reading, value=None, quality=Quality.BAD, reason=reason)
    # division, so that 2305 and -1 make 230.5 and not 230.50000000000003
    value = reading.value * 10**exponent if exponent >= 0 else reading.value / 10**-exponent
    return replace(reading, value=value)


def _counted(reading: Reading, rollover: float, counter: Counter) -> Reading:
    """The running total instead of the count; no value while it is in doubt."""
    assert isinstance(reading.value, int | float)  # the template's check: a counter is a number
    total = counter.take(reading.value, rollover, reading.observed_at.timestamp())
    if total is None:
        return replace(reading, value=None, quality=Quality.BAD, reason=Reason.OUT_OF_RANGE)
    return replace(reading, value=total)


def _doubt(by_point: dict[str, Reading], status: str, healthy: float) -> None:
    said = by_point.get(status)
    if said is None or said.value is None or said.value == healthy:
        return
    for point, reading in by_point.items():
        if point != status and reading.value is not None:
            by_point[point] = replace(reading, value=None, quality=Quality.BAD, reason=Reason.DEVICE_FAULT)
