"""Readings: what a driver hands over. Time comes with the reading; nothing here knows a clock, a link or a broker."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

Value = float | int | bool | str


class Quality(StrEnum):
    """How far a reading can be trusted."""

    GOOD = "good"
    UNCERTAIN = "uncertain"  # a value is there, but the device or a rule doubts it; it reaches no city
    BAD = "bad"  # no value


class Reason(StrEnum):
    """Why a reading is not good: the closed list that log, status and metrics share."""

    NONE = ""
    TIMEOUT = "timeout"  # the device did not answer
    LINK_DOWN = "link_down"  # the port or connection is gone
    BUSY = "busy"  # the device answered that it is busy, to the end of the tries
    BAD_FRAME = "bad_frame"  # checksum, length or content of the answer is wrong
    REFUSED = "refused"  # the device answered with an exception: this point cannot be read like this
    NOT_AVAILABLE = "not_available"  # a sentinel: the device says that it has no value
    OUT_OF_RANGE = "out_of_range"  # outside the plausible range of quantity or template
    NOT_FINITE = "not_finite"  # NaN or infinity
    WARMING_UP = "warming_up"  # the device is not ready after power-on
    DEVICE_FAULT = "device_fault"  # the device reports a fault of its own
    MISSING = "missing"  # declared by the template, absent from the frame
    WRONG_TYPE = "wrong_type"  # another kind of value than the point's: text where a number is meant, text that is none
    BAD_TIME = "bad_time"  # the time that came with the value cannot be read at all


class TimeSource(StrEnum):
    """Whose clock `observed_at` comes from. Only `gateway` times are corrected when the box learns the time."""

    GATEWAY = "gateway"
    DEVICE = "device"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Point:
    """A value's name within its device, and what it measures.

    Attributes:
        name: as in the template, e.g. `voltage_l1`.
        quantity: name from the closed list in `quantities.yaml`.
        unit: UN/CEFACT common code of the values a driver hands over, e.g. `VLT`; "" for text and flags.
    """

    name: str
    quantity: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """One point's value with quality and time (SOSA's observation).

    Attributes:
        point: name of the point within its device.
        value: in the point's unit; None exactly when `quality` is bad. An error is never a value.
        observed_at: aware, UTC.
    """

    point: str
    value: Value | None
    observed_at: datetime
    quality: Quality = Quality.GOOD
    reason: Reason = Reason.NONE
    time_source: TimeSource = TimeSource.GATEWAY


@dataclass(frozen=True, slots=True)
class ReadingSet:
    """The readings of one frame or one poll of one device: never split, one sequence number in the log.

    Attributes:
        device: the device's name in the operator's file.
        readings: at least one, unless the set only carries `state`.
        state: small key-value update of driver state (a frame counter), durable with this set or at the
            latest 5 minutes later; None when there is none. Keys are the driver's own; values at most 256 bytes.
    """

    device: str
    readings: tuple[Reading, ...]
    state: Mapping[str, bytes] | None = None

    def values(self) -> dict[str, Value]:
        """Point -> value of the good readings."""
        return {r.point: r.value for r in self.readings if r.value is not None and r.quality is Quality.GOOD}


def no_values(
    device: str, points: tuple[str, ...], reason: Reason, *, observed_at: datetime, quality: Quality = Quality.BAD
) -> ReadingSet:
    """The set of a device that did not answer: every declared point, no value, quality and reason."""
    return ReadingSet(device, tuple(Reading(point, None, observed_at, quality, reason) for point in points))
