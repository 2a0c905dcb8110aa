"""The door for what a driver hands over beside values: sets, state, counters, offered times. A driver is foreign: what it
gets wrong costs that one thing, and is told as a fault of the driver. Pure."""

from collections import Counter
from collections.abc import Callable, Container, Mapping
from datetime import datetime
from typing import Any

from gateway.sdk.errors import FrameError, foreign
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.values import told, value_of

MAX_READINGS = 10_000  # of one set; a data logger that was away for a week sends some thousand
MAX_STATE_KEYS = 64  # of one device
MAX_STATE_BYTES = 256  # of one value
MAX_COUNTERS = 128  # names of one record
MAX_COUNT = 2**53  # what JSON and metrics hold exactly
MAX_NAME_CHARACTERS = 64  # of a key or a counter


_READING: frozenset[type] = frozenset((Reading,))


def is_sound(handed: Any, devices: Container[str]) -> bool:
    """Whether this is a set of readings that can be taken as it is; what the readings hold is judged at intake."""
    return (
        type(handed) is ReadingSet
        and type(handed.readings) is tuple
        and len(handed.readings) <= MAX_READINGS
        and handed.state is None
        and type(handed.device) is str
        and handed.device in devices
        and set(map(type, handed.readings)) <= _READING
    )


def mended(
    handed: Any, devices: Container[str], state_of: Callable[[str], Mapping[str, bytes]]
) -> tuple[ReadingSet, str]:
    """What of a set can be taken, and as a remark what cannot ("" when all can).

    Args:
        state_of: the state of a device so far.

    Raises:
        FrameError: it is no set, or of no device of this link.
    """
    with foreign("set of readings"):
        if not issubclass(type(handed), ReadingSet):
            raise FrameError(f"{_kind(handed)} handed over in place of a set of readings")
        name, readings, state = handed.device, handed.readings, handed.state
        device = str.__str__(name) if issubclass(type(name), str) else ""
        if device not in devices:
            raise FrameError(f"a set of device {told(name)}, which this link does not have")
        if not issubclass(type(readings), tuple | list):
            raise FrameError(f"a set whose readings are {_kind(readings)}, not a tuple")
        kept = tuple(reading for reading in readings[:MAX_READINGS] if type(reading) is Reading)
        left_out = len(readings) - len(kept)
        remark = f"{left_out} readings left out of a set: too many, or no readings" if left_out else ""
        if state is not None:
            state, fault = _bounded_state(dict(state), state_of(device))
            remark = remark or fault
        return ReadingSet(device, kept, state or None), remark


def _bounded_state(state: Mapping[Any, Any], known: Mapping[str, bytes]) -> tuple[dict[str, bytes], str]:
    """The entries that fit, and the first that does not."""
    kept: dict[str, bytes] = {}
    fault, left_out = "", 0
    room = max(0, MAX_STATE_KEYS - len(known))
    for key, value in state.items():
        found = _state_fault(key, value)
        new = not found and key not in known
        if new and not room:
            found = f"more than {MAX_STATE_KEYS} keys"
        if found:
            fault, left_out = fault or found, left_out + 1
        else:
            kept[key] = value
            room -= new
    more = f" and {left_out - 1} more" if left_out > 1 else ""
    return kept, f"driver state left out: {fault}{more}" if fault else ""


def _state_fault(key: Any, value: Any) -> str:
    if not _is_name(key):
        return f"the key {told(key, 40)}"
    if type(value) is not bytes:
        return f"{key} is {_kind(value)}, not bytes"
    return f"{key} has {len(value)} bytes, at most {MAX_STATE_BYTES} are kept" if len(value) > MAX_STATE_BYTES else ""


def added(counters: Counter[str], name: Any, n: Any) -> str:
    """Add to a counter; what is wrong when it cannot be counted, else ""."""
    if type(n) is int and type(name) is str and 0 <= n <= MAX_COUNT and name in counters:  # nearly always
        counters[name] = min(counters[name] + n, MAX_COUNT)
        return ""
    whole = value_of("integer", n)
    if whole is None or not 0 <= whole <= MAX_COUNT:  # type: ignore[operator]  # an integer is none but an int
        return f"{told(name, 40)} counted by {_kind(n) if whole is None else 'less than 0 or too much'}"
    if not _is_name(name):
        return f"a counter named {told(name, 40)}"
    if name not in counters and len(counters) >= MAX_COUNTERS:
        return f"more than {MAX_COUNTERS} counters, {name} among them"
    counters[name] = min(counters[name] + int(whole), MAX_COUNT)
    return ""


def offered(utc: Any, uncertainty_s: Any) -> str:
    """What is wrong with the shape of a time that is offered; "" when the clock can judge it."""
    if type(utc) is not datetime or utc.tzinfo is None:
        return f"{_kind(utc)} without a time zone offered as the time"
    number = value_of("number", uncertainty_s)
    if number is None or not 0 <= number <= MAX_COUNT:  # type: ignore[operator]  # a number is none but a float or int
        return f"the time offered with an uncertainty of {_kind(uncertainty_s)}"
    return ""


def _is_name(name: Any) -> bool:
    return type(name) is str and 0 < len(name) <= MAX_NAME_CHARACTERS and told(name) == name


def _kind(thing: Any) -> str:
    return f"a {told(type(thing).__name__, 40)}"
