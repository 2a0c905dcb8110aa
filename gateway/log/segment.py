"""Segments: many sets as one blob with CRC-32 and boot stamp. Pure; the file format of docs/log.md.

    magic "CG" | version | crc32 of what follows | header varints | numbers | floats | text

Numbers is one stream of varints: per set its layout, flags, time and values. A layout names the series of a set and how
each value is written: as a step on its decimal grid (delta to the value before), a float of 4 or 8 bytes, an
integer, a boolean, text, or nothing. Layouts live in a dictionary beside the segments, since a device sends the same
few shapes for years; a rare shape is spelled out in its segment.
"""

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

from gateway.claims import Claim
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Quality, Reading, Reason, TimeSource, Value

MAGIC: Final = b"CG"
VERSION: Final = 1
CLAIMS_VERSION: Final = 2  # the same, and some sets say when they were received
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)

# Numbers on disk are positions in these tables: append only.
QUALITIES: Final = (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD)
REASONS: Final = (
    Reason.NONE,
    Reason.TIMEOUT,
    Reason.LINK_DOWN,
    Reason.BUSY,
    Reason.BAD_FRAME,
    Reason.REFUSED,
    Reason.NOT_AVAILABLE,
    Reason.OUT_OF_RANGE,
    Reason.NOT_FINITE,
    Reason.WARMING_UP,
    Reason.DEVICE_FAULT,
    Reason.MISSING,
    Reason.WRONG_TYPE,
    Reason.BAD_TIME,
)
SOURCES: Final = (TimeSource.GATEWAY, TimeSource.DEVICE, TimeSource.NETWORK)
_QUALITY_CODE: Final = {quality: code for code, quality in enumerate(QUALITIES)}
_REASON_CODE: Final = {reason: code for code, reason in enumerate(REASONS)}
# a newer citygate may have written reasons that this one does not know: the value is not good, and that is said
_REASON_OF: Final = REASONS + (Reason.NOT_AVAILABLE,) * (256 - len(REASONS))
_QUALITY_OF: Final = (*QUALITIES, Quality.BAD)
_SOURCE_CODE: Final = {source: code for code, source in enumerate(SOURCES)}

# How a value is written. 0-9: float on a grid of so many decimals.
_MAX_DECIMALS: Final = 9
_INTEGER, _FLOAT32, _FLOAT64, _BOOLEAN, _TEXT, _NOTHING = range(10, 16)
_POWERS: Final = tuple(10.0**decimals for decimals in range(_MAX_DECIMALS + 1))
_GRID_LIMIT: Final = 2**53  # above it a float is no longer exact in steps of one
_F32: Final = struct.Struct("<f")
_F64: Final = struct.Struct("<d")

# Flags of a set.
_TIMES, _UNIFORM_QUALITY, _QUALITIES, _GAP, _CLAIM = 1, 2, 4, 32, 64
_SOURCE_SHIFT, _MIXED_SOURCES = 3, 3

_LAYOUTS_PER_SHAPE: Final = 16  # a device whose points fail in turn would otherwise fill the dictionary


class TimeState(StrEnum):
    """How far a time can be trusted when it is read."""

    SURE = "sure"  # true, or corrected since
    ESTIMATED = "estimated"  # its boot never learned the time: placed between its neighbours
    UNCONFIRMED = "unconfirmed"  # the clock of its boot is not trusted yet
    FUTURE = "future"  # more than 5 minutes ahead of a trusted clock


class DamagedSegment(LogError):
    """These bytes are not a segment as it was written."""


@dataclass(frozen=True, slots=True)
class Series:
    """One point of one device; the id is stable over restarts."""

    id: int
    device: str
    point: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """The clock while readings were taken.

    Attributes:
        boot: number of the boot in the boot table.
        offset_us: wall time minus boot time, microseconds.
        source: rank of who vouched for the wall time; 0 and 1: nobody.
    """

    boot: int
    offset_us: int
    source: int

    @property
    def trusted(self) -> bool:
        return self.source > 1


class Entry(NamedTuple):
    """One set in the head, as it goes into a segment.

    Attributes:
        series: series id of each reading.
        appended_s: monotonic time of the append.
        claim: how its claimed times are judged once the clock is known better; None when they were.
    """

    seq: int
    series: tuple[int, ...]
    readings: tuple[Reading, ...]
    stamp: Stamp
    appended_s: float
    size_bytes: int
    claim: Claim | None = None


@dataclass(slots=True)
class Columns:
    """Many sets read back as columns: lists of equal length, one item per reading, sets whole and in order.

    Attributes:
        last: sequence number up to which this goes; `settle(consumer, last)` when all of it is done.
        time_us: UTC, microseconds since the epoch.
        time_state: only SURE may enter a broker's current state.
        claims: first index, index behind the last, and claim of the sets whose claimed times are still to be judged.
    """

    last: int
    seq: list[int] = field(default_factory=list)
    series: list[int] = field(default_factory=list)
    time_us: list[int] = field(default_factory=list)
    value: list[Value | None] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)
    reason: list[Reason] = field(default_factory=list)
    time_source: list[TimeSource] = field(default_factory=list)
    time_state: list[TimeState] = field(default_factory=list)
    claims: list[tuple[int, int, Claim]] = field(default_factory=list)

    def cut(self, length: int) -> None:
        """Forget the readings from index `length` on."""
        lists: tuple[list[Any], ...] = (
            self.seq,
            self.series,
            self.time_us,
            self.value,
            self.quality,
            self.reason,
            self.time_source,
            self.time_state,
        )
        for column in lists:
            del column[length:]


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of a set: its series and how each value is written."""

    id: int
    series: tuple[int, ...]
    codes: tuple[int, ...]


class Layouts:
    """The dictionary of layouts; `unsaved` must be written with or before the segments that use them."""

    def __init__(self, known: Iterable[Layout] = ()) -> None:
        self._by_id: dict[int, Layout] = {}
        self._by_shape: dict[tuple[int, ...], dict[tuple[int, ...], Layout]] = {}
        self.unsaved: list[Layout] = []
        for layout in known:
            self._add(layout)
        self._next_id = max(self._by_id, default=0) + 1

    def _add(self, layout: Layout) -> None:
        self._by_id[layout.id] = layout
        self._by_shape.setdefault(layout.series, {})[layout.codes] = layout

    def __getitem__(self, layout_id: int) -> Layout:
        return self._by_id[layout_id]

    def known(self) -> list[Layout]:
        return list(self._by_id.values())

    def newest(self, series: tuple[int, ...]) -> Layout | None:
        """The layout this shape was written with last."""
        known = self._by_shape.get(series)
        return next(reversed(known.values())) if known else None

    def get(self, series: tuple[int, ...], codes: tuple[int, ...]) -> Layout:
        """The layout, made when there is room for it; id 0: spelled out in the segment."""
        known = self._by_shape.setdefault(series, {})
        layout = known.pop(codes, None)
        if layout is None:
            if len(known) >= _LAYOUTS_PER_SHAPE:
                return Layout(0, series, codes)
            layout = Layout(self._next_id, series, codes)
            self._next_id += 1
            self._by_id[layout.id] = layout
            self.unsaved.append(layout)
        known[codes] = layout  # the newest last
        return layout


Kind = Literal[0, 1, 2]
LOG: Final = 0
LAST_VALUES: Final = 1
HELD: Final = 2


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself.

    Attributes:
        oldest_us: time of its oldest reading, as stamped.
        sealed_us: wall time when it was written, as stamped.
        settled: every consumer was done with all up to here.
        size_bytes: length of the blob.
        kind: whether it is part of the log, of the last values, or of a held piece.
    """

    first: int
    last: int
    sets: int
    readings: int
    stamp: Stamp
    oldest_us: int
    sealed_us: int
    settled: int
    size_bytes: int
    kind: int


def encode(
    entries: Sequence[Entry], layouts: Layouts, *, kind: Kind = 0, sealed_us: int = 0, settled: int = 0
) -> bytes:
    """One blob of many sets, all with the stamp of the first, sequence numbers ascending; at least one reading each."""
    times = [_times_us(entry.readings) for entry in entries]
    unit_us = 1 if any(t % 1000 for ts in times for t in ts) else 1000
    before: dict[int, int] = {}
    numbers, floats, text = bytearray(), bytearray(), bytearray()
    first = expected = entries[0].seq
    base = at = times[0][0] // unit_us
    for entry, set_times in zip(entries, times, strict=True):
        steps, layout = _write_values(entry, layouts, before, floats, text)
        flags, extra = _exceptions(entry.readings)
        if len(set_times) > 1:
            flags |= _TIMES
        head = [layout.id]
        if not layout.id:
            head += [len(layout.series), *layout.series, *layout.codes]
        if entry.claim is not None:
            flags |= _CLAIM
            received_us, device_s, network_s = entry.claim
            extra[:0] = [_zigzag(received_us - set_times[0]), device_s, network_s]
        if entry.seq != expected:
            flags |= _GAP
            extra.insert(0, entry.seq - expected)
        head.append(flags)
        for t in set_times:
            step = t // unit_us - at
            head.append(step << 1 if step >= 0 else (-step << 1) - 1)
            at += step
        _put(numbers, head)
        _put(numbers, extra)
        _put(numbers, steps)
        expected = entry.seq + 1
    stamp = entries[0].stamp
    header = bytearray()
    _put(
        header,
        [
            (unit_us == 1000) | stamp.source << 1 | kind << 4,
            first,
            expected - 1 - first,
            len(entries),
            sum(len(entry.readings) for entry in entries),
            stamp.boot,
            _zigzag(stamp.offset_us),
            _zigzag(base),
            base - min(map(min, times)) // unit_us,
            _zigzag(sealed_us // unit_us - base),
            max(0, first - settled),
            len(numbers),
            len(floats),
            len(text),
        ],
    )
    body = b"".join((header, numbers, floats, text))
    version = VERSION if all(entry.claim is None for entry in entries) else CLAIMS_VERSION
    return MAGIC + bytes((version,)) + zlib.crc32(body).to_bytes(4, "little") + body


def _times_us(readings: tuple[Reading, ...]) -> list[int]:
    """One time when all readings share it, else one each."""
    first = readings[0].observed_at
    for reading in readings:
        if reading.observed_at is not first and reading.observed_at != first:
            return [microseconds(reading.observed_at) for reading in readings]
    return [microseconds(first)]


def microseconds(at: datetime) -> int:
    """UTC microseconds since the epoch of an aware time; exact."""
    passed = at - EPOCH
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def wall_time(time_us: int) -> datetime:
    """The aware time of microseconds since the epoch; what no calendar holds becomes its first or last moment."""
    try:
        return EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return _LAST if time_us > 0 else _FIRST


def _exceptions(readings: tuple[Reading, ...]) -> tuple[int, list[int]]:
    """Flags and numbers for what is not good or not by the gateway's clock; nothing for the ordinary set."""
    flags, extra = 0, []
    good, gateway = Quality.GOOD, TimeSource.GATEWAY
    for reading in readings:
        if reading.quality is not good or reading.reason:
            codes = [_QUALITY_CODE[r.quality] | _REASON_CODE[r.reason] << 2 for r in readings]
            uniform = min(codes) == max(codes)
            flags |= _UNIFORM_QUALITY if uniform else _QUALITIES
            extra += codes[:1] if uniform else codes
            break
    source = readings[0].time_source
    for reading in readings:
        if reading.time_source is not source:
            extra += [_SOURCE_CODE[r.time_source] for r in readings]
            return flags | _MIXED_SOURCES << _SOURCE_SHIFT, extra
    if source is not gateway:
        flags |= _SOURCE_CODE[source] << _SOURCE_SHIFT
    return flags, extra


def _write_values(
    entry: Entry, layouts: Layouts, before: dict[int, int], floats: bytearray, text: bytearray
) -> tuple[list[int], Layout]:
    """The numbers of one set's values, floats and text appended, in the layout that fits."""
    layout = layouts.newest(entry.series)
    if layout is None or (steps := _steps(entry, layout, before, floats, text)) is None:
        codes = layout.codes if layout else (_NOTHING,) * len(entry.series)
        wanted = [_fitting(reading.value, code) for reading, code in zip(entry.readings, codes, strict=True)]
        layout = layouts.get(entry.series, tuple(wanted))
        steps = _steps(entry, layout, before, floats, text)
        assert steps is not None, "a layout made for these values fits them"
    return steps, layout


def _steps(
    entry: Entry, layout: Layout, before: dict[int, int], floats: bytearray, text: bytearray
) -> list[int] | None:
    """Numbers of the values in this layout, or None when one does not fit; then nothing was written."""
    steps: list[int] = []
    grid: dict[int, int] = {}  # a point may come more than once in a set, as a data logger's do
    fixed = words = b""
    for reading, code, series in zip(entry.readings, layout.codes, layout.series, strict=True):
        value = reading.value
        if code <= _INTEGER:
            n = _on_grid(value, code)
            if n is None:
                return None
            step = n - (grid[series] if series in grid else before.get(series, 0))
            steps.append(step << 1 if step >= 0 else (-step << 1) - 1)
            grid[series] = n
        elif code == _NOTHING:
            if value is not None:
                return None
        elif code == _BOOLEAN:
            if type(value) is not bool:
                return None
            steps.append(value)
        elif code == _TEXT:
            if type(value) is not str:
                return None
            word = value.encode("utf-8", "surrogatepass")
            steps.append(len(word))
            words += word
        else:
            if type(value) is not float or (code == _FLOAT32 and not _is_float32(value)):
                return None
            fixed += _F32.pack(value) if code == _FLOAT32 else _F64.pack(value)
    before.update(grid)
    floats += fixed
    text += words
    return steps


def _on_grid(value: Value | None, code: int) -> int | None:
    """The value in steps of its grid, or None when it is not exactly on it."""
    if code == _INTEGER:
        return value if type(value) is int else None
    if type(value) is not float:
        return None
    power = _POWERS[code]
    try:
        n = round(value * power)
    except (OverflowError, ValueError):  # infinite, NaN
        return None
    if n / power != value or not -_GRID_LIMIT < n < _GRID_LIMIT:
        return None
    return None if not n and math.copysign(1.0, value) < 0 else n


def _is_float32(value: float) -> bool:
    try:
        return bool(_F32.unpack(_F32.pack(value))[0] == value)
    except OverflowError:
        return False


def _fitting(value: Value | None, code: int) -> int:
    """How to write a value: as before when that fits, else the smallest that does."""
    kind = type(value)
    if kind is float:
        assert isinstance(value, float)
        start = code if code <= _MAX_DECIMALS else 0
        if code in (_FLOAT32, _FLOAT64) and (code == _FLOAT64 or _is_float32(value)):
            return code
        for decimals in range(start, _MAX_DECIMALS + 1):
            if _on_grid(value, decimals) is not None:
                return decimals
        return _FLOAT32 if _is_float32(value) else _FLOAT64
    if kind is int:
        return _INTEGER
    if kind is bool:
        return _BOOLEAN
    return _NOTHING if value is None else _TEXT


def _zigzag(n: int) -> int:
    return n << 1 if n >= 0 else (-n << 1) - 1


def _unzigzag(n: int) -> int:
    return -(n + 1 >> 1) if n & 1 else n >> 1


def _put(out: bytearray, numbers: list[int]) -> None:
    append = out.append
    for n in numbers:
        while n > 127:
            append(n & 127 | 128)
            n >>= 7
        append(n)


def _varints(data: bytes) -> list[int]:
    """All varints of a stream that ends with one."""
    out: list[int] = []
    append = out.append
    n = shift = 0
    for byte in data:
        if byte < 128:
            append(n | byte << shift)
            n = shift = 0
        else:
            n |= (byte & 127) << shift
            shift += 7
    return out


_HEADER_NUMBERS: Final = 14
_MAX_HEADER_BYTES: Final = 160


def read_header(blob: bytes) -> Header:
    """What a segment says of itself, its CRC checked. `blob` may be longer than the segment.

    Raises:
        DamagedSegment: no sound segment starts here.
    """
    return _open(blob)[0]


def _open(blob: bytes) -> tuple[Header, int, int, int, list[int]]:
    """Header, start of the numbers, of the floats and of the text, header numbers."""
    if blob[:2] != MAGIC or len(blob) < 8:
        raise DamagedSegment("no segment starts here")
    if blob[2] not in (VERSION, CLAIMS_VERSION):
        raise DamagedSegment(f"segment version {blob[2]}; this citygate reads up to version {CLAIMS_VERSION}")
    start, fields, n, shift = 7, [], 0, 0
    for position in range(7, min(len(blob), 7 + _MAX_HEADER_BYTES)):
        byte = blob[position]
        n |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            fields.append(n)
            n = shift = 0
            if len(fields) == _HEADER_NUMBERS:
                start = position + 1
                break
    else:
        raise DamagedSegment("the segment's header is cut short")
    flags, first, span, sets, readings, boot, offset, base, below, sealed, owed, n_numbers, n_floats, n_text = fields
    end = start + n_numbers + n_floats + n_text
    if end > len(blob):
        raise DamagedSegment(f"{len(blob)} bytes, the segment says {end}")
    if zlib.crc32(memoryview(blob)[7:end]).to_bytes(4, "little") != blob[3:7]:
        raise DamagedSegment(f"CRC of segment {first} does not match")
    unit_us = 1000 if flags & 1 else 1
    stamp = Stamp(boot, _unzigzag(offset), flags >> 1 & 7)
    base = _unzigzag(base)
    sealed_us = (base + _unzigzag(sealed)) * unit_us
    header = Header(
        first, first + span, sets, readings, stamp, (base - below) * unit_us, sealed_us, first - owed, end, flags >> 4
    )
    return header, start, start + n_numbers, start + n_numbers + n_floats, fields


def decode(blob: bytes, layouts: Layouts, columns: Columns, *, after: int = -1) -> Header:
    """Append the sets with a sequence number above `after` to `columns`, times as stamped, `time_state` left alone.

    Raises:
        DamagedSegment: the bytes are not as they were written, or name a layout that is not in the dictionary.
    """
    header, at_numbers, at_floats, at_text, fields = _open(blob)
    try:
        _decode(blob, header, (at_numbers, at_floats, at_text), fields, layouts, columns, after)
    except MemoryError:
        raise  # the box is short of it: the segment may be sound
    except Exception as error:
        raise DamagedSegment(f"segment {header.first} cannot be decoded: {error!r}") from error
    columns.last = max(columns.last, header.last)
    return header


def _decode(
    blob: bytes,
    header: Header,
    places: tuple[int, int, int],
    fields: list[int],
    layouts: Layouts,
    columns: Columns,
    after: int,
) -> None:
    at_numbers, at_floats, at_text = places
    numbers = _varints(blob[at_numbers:at_floats])
    unit_us = 1000 if fields[0] & 1 else 1
    seq, time = header.first, _unzigzag(fields[7])
    before: dict[int, int] = {}
    good, fine, sources = QUALITIES[0], REASONS[0], SOURCES
    i = 0
    for _ in range(header.sets):
        layout_id = numbers[i]
        i += 1
        if layout_id:
            layout = layouts[layout_id]
            series, codes = layout.series, layout.codes
            count = len(series)
        else:
            count = numbers[i]
            series = tuple(numbers[i + 1 : i + 1 + count])
            codes = tuple(numbers[i + 1 + count : i + 1 + 2 * count])
            i += 1 + 2 * count
        flags = numbers[i]
        i += 1
        times = []
        for _ in range(count if flags & _TIMES else 1):
            n = numbers[i]
            i += 1
            time += -(n + 1 >> 1) if n & 1 else n >> 1
            times.append(time * unit_us)
        if flags & _GAP:
            seq += numbers[i]
            i += 1
        if flags & _CLAIM:
            claim = Claim(times[0] + _unzigzag(numbers[i]), numbers[i + 1], numbers[i + 2])
            i += 3
            if seq > after:
                columns.claims.append((len(columns.seq), len(columns.seq) + count, claim))
        quality_codes: Sequence[int] = ()
        if flags & (_UNIFORM_QUALITY | _QUALITIES):
            used = 1 if flags & _UNIFORM_QUALITY else count
            quality_codes = numbers[i : i + used]
            i += used
        source = flags >> _SOURCE_SHIFT & 3
        mixed = numbers[i : i + count] if source == _MIXED_SOURCES else []
        i += len(mixed)
        values: list[Value | None] = []
        put = values.append
        for code, name in zip(codes, series, strict=True):
            if code <= _INTEGER:
                n = numbers[i]
                i += 1
                n = before.get(name, 0) + (-(n + 1 >> 1) if n & 1 else n >> 1)
                before[name] = n
                put(n if code == _INTEGER else n / _POWERS[code])
            elif code == _FLOAT32:
                put(_F32.unpack_from(blob, at_floats)[0])
                at_floats += 4
            elif code == _FLOAT64:
                put(_F64.unpack_from(blob, at_floats)[0])
                at_floats += 8
            elif code == _NOTHING:
                put(None)
            elif code == _BOOLEAN:
                put(bool(numbers[i]))
                i += 1
            else:
                put(blob[at_text : at_text + numbers[i]].decode("utf-8", "replace"))  # a lone surrogate is no text
                at_text += numbers[i]
                i += 1
        if seq > after:
            columns.seq += [seq] * count
            columns.series += series
            columns.time_us += times if flags & _TIMES else times * count
            columns.value += values
            if not quality_codes:
                columns.quality += [good] * count
                columns.reason += [fine] * count
            else:
                each = quality_codes if len(quality_codes) == count else [quality_codes[0]] * count
                columns.quality += [_QUALITY_OF[code & 3] for code in each]
                columns.reason += [_REASON_OF[code >> 2] for code in each]
            columns.time_source += [sources[code] for code in mixed] if mixed else [sources[source]] * count
        seq += 1


def put_entries(entries: Iterable[Entry], columns: Columns) -> None:
    """Append sets of the head to `columns`, times as stamped, `time_state` left alone."""
    for entry in entries:
        count = len(entry.readings)
        if entry.claim is not None:
            columns.claims.append((len(columns.seq), len(columns.seq) + count, entry.claim))
        columns.seq += [entry.seq] * count
        columns.series += entry.series
        times = _times_us(entry.readings)
        columns.time_us += times if len(times) == count else times * count
        columns.value += [r.value for r in entry.readings]
        columns.quality += [r.quality for r in entry.readings]
        columns.reason += [r.reason for r in entry.readings]
        columns.time_source += [r.time_source for r in entry.readings]
        columns.last = entry.seq


def entries_of(columns: Columns, stamp: Stamp, points: Mapping[int, str] | None = None) -> list[Entry]:
    """Columns as sets again, times as they are in the columns.

    Args:
        points: series id -> point name; "" when it does not matter, as in a segment, or was lost with its record.
    """
    entries = []
    claims = {first: claim for first, _, claim in columns.claims}
    start = 0
    for end in range(1, len(columns.seq) + 1):
        if end < len(columns.seq) and columns.seq[end] == columns.seq[start]:
            continue
        part = slice(start, end)
        readings = tuple(
            Reading(points.get(number, "") if points else "", value, wall_time(time_us), quality, reason, source)
            for number, value, time_us, quality, reason, source in zip(
                columns.series[part],
                columns.value[part],
                columns.time_us[part],
                columns.quality[part],
                columns.reason[part],
                columns.time_source[part],
                strict=True,
            )
        )
        entries.append(
            Entry(columns.seq[start], tuple(columns.series[part]), readings, stamp, 0.0, 0, claims.get(start))
        )
        start = end
    return entries
