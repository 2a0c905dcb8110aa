"""Reads a payload that the template describes as a layout; also what is in an object that somebody else decoded."""

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from drivers.lora.layout import EPOCHS_S, SIZES, Frame, LayoutCodec, Meaning, Repeat, Step, Tlv
from gateway.sdk.decimals import decimal_meant, shortest
from gateway.sdk.errors import FrameError, foreign
from gateway.sdk.reading import Quality, Reading, Reason, TimeSource, Value

MAX_FIELDS = 256  # of one payload; 255 bytes cannot honestly say more
MAX_STEPS = 4096  # through one payload, repetitions included
MAX_TEXT = 512
MAX_DEPTH = 16  # of an object
MAX_PATH = 200
MAX_NODES = 4096
FIRST_TIME = datetime(2015, 1, 1, tzinfo=UTC)  # before it: a device whose clock was never set
FUTURE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Received:
    """When and by whose clock a payload was received.

    Attributes:
        at: aware, UTC.
        source: whose clock said so.
    """

    at: datetime
    source: TimeSource = TimeSource.GATEWAY


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a payload says.

    Attributes:
        readings: maybe of several times, when the payload carries old measurements.
        problem: what of it was not read, and why; "" when all of it was.
        at: byte at which that begins.
    """

    readings: tuple[Reading, ...]
    problem: str = ""
    at: int = 0


def decode_layout(layout: LayoutCodec, payload: bytes, port: int | None, received: Received) -> Decoded:
    """Decode one payload by its template's layout.

    Args:
        port: LoRaWAN FPort; None when the source has none.

    Raises:
        FrameError: no frame of the layout fits, or the first field already cannot be read.
    """
    with foreign("payload", payload):
        frame = _choose(layout, payload, port)
        if frame.ignore:
            return Decoded(())
        reader = _Reader(layout.endian == "big", payload, received)
        try:
            reader.walk(frame.read)
        except FrameError as error:
            if not reader.out:
                raise
            return Decoded(tuple(reader.out), error.message, error.offset)
        left = len(payload) - reader.offset
        told = "" if frame.rest or not left else f"{left} bytes are left over"
        return Decoded(tuple(reader.out), told, reader.offset)


def _choose(layout: LayoutCodec, payload: bytes, port: int | None) -> Frame:
    known_port = False
    for frame in layout.frames:
        if frame.port and port is not None and port not in frame.port:
            continue
        known_port = True
        if frame.length and len(payload) not in frame.length:
            continue
        if frame.starts and not payload.startswith(bytes.fromhex(frame.starts)):
            continue
        return frame
    what = f"no layout for these {len(payload)} bytes" if known_port else f"unknown port {port}"
    raise FrameError(what, frame=payload, offset=0)


@dataclass(slots=True)
class _Reader:
    """A cursor over one payload with what was read so far."""

    big: bool
    payload: bytes
    received: Received
    offset: int = 0
    end: int = -1
    turn: int = 0
    in_record: bool = False
    muted: bool = False
    steps: int = 0
    sent_at: datetime = FIRST_TIME
    names: dict[str, float | int] = field(default_factory=dict)
    out: list[Reading] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end = len(self.payload)
        self.sent_at = self.received.at

    def refuse(self, message: str) -> FrameError:
        return FrameError(message, frame=self.payload, offset=self.offset)

    def take(self, count: int) -> bytes:
        if self.offset + count > self.end:
            raise self.refuse(f"{self.end - self.offset} bytes left, {count} needed")
        self.offset += count
        return self.payload[self.offset - count : self.offset]

    def peek(self, at: int, count: int) -> bytes:
        start = at if at >= 0 else len(self.payload) + at
        if start < 0 or start + count > len(self.payload):
            raise self.refuse(f"{len(self.payload)} bytes, no {count} at {at}")
        return self.payload[start : start + count]

    def walk(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if step.optional and self.offset >= self.end:
                return
            if step.when and not all(self.names.get(name) in allowed for name, allowed in step.when.items()):
                continue
            self.step(step)

    def step(self, step: Step) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise self.refuse(f"more than {MAX_STEPS} steps")
        if step.type is not None:
            size = SIZES[step.type]
            data = self.take(size) if step.at is None else self.peek(step.at, size)
            self.number(step, _number(step.type, data, self._big(step)))
        elif step.skip is not None:
            self.take(step.skip)
        elif step.tlv is not None:
            self.tlv(step.tlv)
        elif step.mask is not None:
            present = int.from_bytes(self.take(SIZES[step.mask.type]), "big" if self._big(step) else "little")
            for bit, group in enumerate(step.mask.groups):
                if present >> bit & 1:
                    self.walk(group)
        elif step.repeat is not None:
            self.repeat(step.repeat)
        else:
            self.meaning(step, sum(self.names.get(name, 0) for name in step.sum), 64)

    def _big(self, step: Step) -> bool:
        return self.big if step.endian is None else step.endian == "big"

    def number(self, step: Step, raw: float | int | None) -> None:
        if step.time is not None:
            self._date(step.time, raw)
            return
        width = 8 * SIZES[step.type or "u8"]
        for part in step.parts or (step,):
            self.meaning(part, raw, width)

    def _date(self, epoch: str, raw: float | int | None) -> None:
        """The device's own time, if its clock was set. Else the uplink's time holds; but not for a record within a
        payload, which may be of any time: its values are left out."""
        at = datetime.fromtimestamp(EPOCHS_S[epoch] + raw, UTC) if raw is not None and 0 < raw < 2**32 else None
        if at is not None and FIRST_TIME <= at <= self.sent_at + FUTURE:
            self.received = Received(at, TimeSource.DEVICE)
        elif self.in_record:
            self.muted = True

    def meaning(self, part: Meaning, raw: float | int | None, width: int) -> None:
        if raw is not None and part.bits is not None:
            width = part.bits[1]
            raw = _bits(int(raw), *part.bits, signed=part.signed)
        if part.name is not None and raw is not None:
            self.names[part.name] = raw
        if part.point is not None:
            self.emit(part.point.replace("{n}", str(self.turn)), *_value(part, raw, width))

    def emit(self, point: str, value: Value | None, reason: Reason) -> None:
        if len(self.out) >= MAX_FIELDS:
            raise self.refuse(f"more than {MAX_FIELDS} values")
        if self.muted:
            return
        quality = Quality.GOOD if value is not None else Quality.BAD
        self.out.append(Reading(point, value, self.received.at, quality, reason, self.received.source))

    def tlv(self, tlv: Tlv) -> None:
        end = self.end
        stop = end - tlv.tail
        while self.offset < stop:
            start = self.offset
            tag = self.take(tlv.tag).hex()
            length = self.take(1)[0] if tlv.length else None
            entry = tlv.entries.get(tag)
            if entry is None and length is None:
                self.offset = start
                raise self.refuse(f"unknown record {tag}, its length is unknown")
            after = stop if length is None else self.offset + length
            if after > stop:
                raise self.refuse(f"record {tag} is {length} bytes long, {stop - self.offset} are left")
            self.group(entry or (), after)
            if length is not None:
                self.offset = after
        self.offset += tlv.tail

    def group(self, steps: tuple[Step, ...], end: int) -> None:
        """Steps with their own end and time: what dates a record does not date its neighbours."""
        outer_end, outer_received = self.end, self.received
        self.end, self.in_record = end, True
        self.walk(steps)
        self.end, self.received, self.in_record, self.muted = outer_end, outer_received, False, False

    def repeat(self, repeat: Repeat) -> None:
        base, outer_turn = self.received, self.turn
        for turn in self._turns(repeat):
            self.turn = turn
            if repeat.step_s:
                self.received = replace(base, at=base.at + timedelta(seconds=repeat.step_s * turn))
            self.walk(repeat.read)
        self.received, self.turn = base, outer_turn

    def _turns(self, repeat: Repeat) -> Iterator[int]:
        if isinstance(repeat.times, str) and repeat.times not in self.names:
            raise self.refuse(f"how often to repeat ({repeat.times}) is not in this payload")
        times = self.names[repeat.times] if isinstance(repeat.times, str) else repeat.times
        if times is not None and times > repeat.limit:
            raise self.refuse(f"{times} repetitions, at most {repeat.limit} are believed")
        turn = 0
        while (self.offset < self.end) if times is None else (turn < times):
            if turn >= repeat.limit:
                raise self.refuse(f"more than {repeat.limit} repetitions")
            before = self.offset
            yield turn
            turn += 1
            if times is None and self.offset == before:
                raise self.refuse("a repetition that reads nothing")


def _bits(raw: int, low: int, count: int, *, signed: bool) -> int:
    value = raw >> low & ((1 << count) - 1)
    return value - (1 << count) if signed and value >> (count - 1) & 1 else value


_FLOATS: dict[tuple[str, bool], Callable[[bytes], tuple[float]]] = {
    (kind, big): struct.Struct((">" if big else "<") + code).unpack
    for kind, code in (("f32", "f"), ("f64", "d"))
    for big in (True, False)
}


def _number(kind: str, data: bytes, big: bool) -> float | int | None:
    """The raw number; None where decimal digits are none (BCD)."""
    if kind[0] in "ui":
        if kind == "u32w" and big:  # two 16-bit words, the low one first
            data = data[2:] + data[:2]
        return int.from_bytes(data, "big" if big else "little", signed=kind[0] == "i")
    if kind[0] == "f":
        number = _FLOATS[kind, big](data)[0]
        return shortest(number) if kind == "f32" else number
    digits = (data if big else data[::-1]).hex()
    return int(digits) if digits.isdecimal() else None


def _value(part: Meaning, raw: float | int | None, width: int) -> tuple[Value | None, Reason]:
    if raw is None or raw in part.none or (raw < 0 and raw + (1 << width) in part.none):  # 0xffff is -1 with a sign
        return None, Reason.NOT_AVAILABLE
    if part.values is not None:
        named = part.values.get(raw)  # type: ignore[arg-type]  # 1.0 finds 1
        return (named, Reason.NONE) if named is not None else (None, Reason.BAD_FRAME)
    if not math.isfinite(raw):
        return None, Reason.NOT_FINITE
    if part.flag:
        return bool(raw), Reason.NONE
    if not part.computes:
        return (round(raw) if part.integer else float(raw)), Reason.NONE
    try:
        x = (raw + part.bias) * part.scale / part.divide
        if part.polynomial is not None:
            x = sum(c * x**n for n, c in enumerate(part.polynomial))
        x = _rounded(x**part.power + part.offset)
    except ArithmeticError:  # 0 to the power -1, or beyond what a float holds
        return None, Reason.NOT_FINITE
    if not math.isfinite(x):
        return None, Reason.NOT_FINITE
    return (round(x) if part.integer else x), Reason.NONE


def _rounded(x: float) -> float:
    """308 x 0.1 is 30.8, not 30.800000000000001; a counter of many digits keeps them."""
    return float(f"{x:.12g}" if abs(x) < 1e9 else f"{x:.15g}")


def read_object(tree: Any, fields: Mapping[str, str], received: Received) -> Decoded:
    """What is in an object that a server's or a vendor's program decoded.

    Args:
        fields: point -> path; any other path keeps its own name.
    """
    values, left_out = flatten(tree)
    problem = f"{left_out} parts of the decoded object are not read: too many, too deep, too long, or named twice"
    return Decoded(_readings_of(values, fields, received), problem if left_out else "")


def flatten(tree: Any) -> tuple[dict[str, Value | None], int]:
    """Scalars of a decoded object by their path, as `a.b[0].c`, and how much was left out because of the bounds.

    A null is a value that is not there. What is no JSON, or has a name that is no text or cannot be encoded, is left out.
    """
    found: dict[str, Value | None] = {}
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    left_out = visited = 0
    while stack:
        path, node, depth = stack.pop()
        visited += 1
        if visited > MAX_NODES:
            return found, left_out + len(stack) + 1
        if isinstance(node, Mapping | list):
            inside, cut = _members(path, node) if depth < MAX_DEPTH else ([], max(len(node), 1))
            stack.extend((name, member, depth + 1) for name, member in reversed(inside))
            left_out += cut
        elif path in found or len(found) >= MAX_FIELDS or not _is_scalar(node):
            left_out += bool(path)
        elif path:
            found[path] = node
    return found, left_out


def _members(path: str, node: Mapping[Any, Any] | list[Any]) -> tuple[list[tuple[str, Any]], int]:
    """Names and values of the members of an object or array, and how many were left out."""
    if isinstance(node, list):
        named = [(f"{path}[{n}]", member) for n, member in enumerate(islice(node, MAX_FIELDS))]
    else:
        first = islice(node.items(), MAX_FIELDS)
        named = [(f"{path}.{key}" if path else key, member) for key, member in first if _is_name(key)]
    kept = [(name, member) for name, member in named if len(name) <= MAX_PATH]
    return kept, len(node) - len(kept)


def _is_name(key: Any) -> bool:
    if not isinstance(key, str) or not key or len(key) > MAX_PATH:
        return False
    return key.isascii() or not any("\ud800" <= c <= "\udfff" for c in key)


def _is_scalar(node: Any) -> bool:
    return node is None or isinstance(node, bool | int | float) or (isinstance(node, str) and len(node) <= MAX_TEXT)


def points_by_field(fields: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Field -> points that take it. A field of no point's name is not here: it fills the point of its own name."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys(fields, ())  # what is called so, but asked of another field
    for point, its in fields.items():
        found[its] = (*found.get(its, ()), point)
    return found


def _readings_of(
    values: Mapping[str, Value | None], fields: Mapping[str, str], received: Received
) -> tuple[Reading, ...]:
    points = points_by_field(fields)
    return tuple(
        _reading(point, value, received) for field, value in values.items() for point in points.get(field, (field,))
    )


def _reading(point: str, value: Value | None, received: Received) -> Reading:
    if value is None:
        return Reading(point, None, received.at, Quality.BAD, Reason.NOT_AVAILABLE, received.source)
    if isinstance(value, float):
        if not math.isfinite(value):
            return Reading(point, None, received.at, Quality.BAD, Reason.NOT_FINITE, received.source)
        value = decimal_meant(value)
    return Reading(point, value, received.at, time_source=received.source)
