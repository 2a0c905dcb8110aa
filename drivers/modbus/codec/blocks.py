"""Blocks: which registers are read together, and what the points in a block's reply say."""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from drivers.modbus.codec.frames import MAX_READ_BITS, MAX_READ_WORDS, Table
from drivers.modbus.codec.registers import Encoding
from gateway.sdk.decimals import shortest
from gateway.sdk.reading import Quality, Reading, Reason, Value


@dataclass(frozen=True, slots=True)
class Field:
    """Where one point stands.

    Attributes:
        address: 0-based wire address of its first register or bit.
        alone: never merged with others; for devices that answer some registers only by themselves.
        model: SunSpec model that `address` counts from, until it is placed.
    """

    point: str
    table: Table
    address: int
    encoding: Encoding
    alone: bool = False
    model: int | None = None

    @property
    def end(self) -> int:
        return self.address + self.encoding.words


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device takes in one request.

    Attributes:
        max_words, max_bits: registers, bits per request.
        max_hole: registers or bits nobody asked for that may be read along to save a request.
        forbidden: (table, address) that answers no read; a block never covers one.
    """

    max_words: int = MAX_READ_WORDS
    max_bits: int = MAX_READ_BITS
    max_hole: int = 16
    forbidden: frozenset[tuple[Table, int]] = frozenset()

    def most(self, table: Table) -> int:
        return self.max_bits if table in ("coil", "discrete") else self.max_words


@dataclass(frozen=True, slots=True)
class Block:
    """Registers read with one request, and the fields in them."""

    table: Table
    address: int
    count: int
    fields: tuple[Field, ...]
    _layouts: tuple[tuple[struct.Struct, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.table in ("holding", "input"):
            object.__setattr__(self, "_layouts", _layouts(self))
        else:
            object.__setattr__(self, "_layouts", ())

    def unpack(self, data: bytes) -> list[int | float | bytes]:
        """What stands in each field, in their order; `data` is the reply's payload, its length already checked."""
        if not self._layouts:
            offsets = (f.address - self.address for f in self.fields)
            return [data[offset >> 3] >> (offset & 7) & 1 for offset in offsets]
        if len(self._layouts) == 1:
            return list(self._layouts[0][0].unpack(data))
        unpacked: list[int | float | bytes] = [0] * len(self.fields)
        for layout, places in self._layouts:
            for place, value in zip(places, layout.unpack(data), strict=True):
                unpacked[place] = value
        return unpacked

    def values(self, data: bytes) -> list[tuple[Value | None, Reason]]:
        """Value of each field, or None and why."""
        return [f.encoding.value(raw) for f, raw in zip(self.fields, self.unpack(data), strict=True)]

    def readings(self, data: bytes, observed_at: datetime) -> list[Reading]:
        """Readings of the block's points."""
        readings = []
        for f, raw in zip(self.fields, self.unpack(data), strict=True):
            if f.encoding.plain and type(raw) is float and math.isfinite(raw):  # the common case, without a detour
                decimal = shortest(raw) if f.encoding.type == "float32" else raw
                readings.append(Reading(f.point, decimal, observed_at))
                continue
            value, reason = f.encoding.value(raw)
            quality = Quality.GOOD if value is not None else Quality.BAD
            readings.append(Reading(f.point, value, observed_at, quality, reason))
        return readings

    def without_values(self, reason: Reason, observed_at: datetime) -> list[Reading]:
        """The block's points without value."""
        return [Reading(f.point, None, observed_at, Quality.BAD, reason) for f in self.fields]

    def split(self) -> tuple["Block", ...]:
        """Smaller blocks for a device that refuses this one: at its widest hole, else in two halves; itself when it
        holds one field."""
        if len(self.fields) < 2:
            return (self,)
        ends = _running_ends(self.fields)
        gaps = [(self.fields[i].address - ends[i - 1], i) for i in range(1, len(self.fields))]
        widest, place = max(gaps, key=lambda gap: (gap[0], -abs(gap[1] - len(self.fields) / 2)))
        if widest <= 0:
            place = len(self.fields) // 2
        return _block(self.fields[:place]), _block(self.fields[place:])


def plan(fields: Iterable[Field], limits: Limits = Limits()) -> tuple[Block, ...]:
    """Few requests that cover all fields: neighbours are read together when the hole between them is small enough.

    No field is cut in two, so a 32-bit value never comes from two moments.
    """
    blocks: list[Block] = []
    group: list[Field] = []
    for f in sorted(fields, key=lambda f: (f.table, f.address, f.end)):
        if group and not _fits(group, f, limits):
            blocks.append(_block(group))
            group = []
        group.append(f)
    if group:
        blocks.append(_block(group))
    return tuple(blocks)


def _fits(group: Sequence[Field], f: Field, limits: Limits) -> bool:
    last_end = max(member.end for member in group)
    start = group[0].address
    return (
        group[0].table == f.table
        and not f.alone
        and not group[-1].alone
        and f.address - last_end <= limits.max_hole
        and max(last_end, f.end) - start <= limits.most(f.table)
        and not any((f.table, address) in limits.forbidden for address in range(last_end, f.address))
    )


def _block(fields: Sequence[Field]) -> Block:
    start = fields[0].address
    return Block(fields[0].table, start, max(f.end for f in fields) - start, tuple(fields))


def _running_ends(fields: Sequence[Field]) -> list[int]:
    ends: list[int] = []
    for f in fields:
        ends.append(max(f.end, ends[-1]) if ends else f.end)
    return ends


def _layouts(block: Block) -> tuple[tuple[struct.Struct, tuple[int, ...]], ...]:
    """As few `struct` layouts as unpack all fields; fields that overlap (bits of one register) need one each."""
    rows: list[list[int]] = []
    for index, f in enumerate(block.fields):
        for row in rows:
            if block.fields[row[-1]].end <= f.address:
                row.append(index)
                break
        else:
            rows.append([index])
    layouts = []
    for row in rows:
        codes, at = ">", block.address
        for f in (block.fields[index] for index in row):
            codes += f"{2 * (f.address - at)}x{f.encoding.code}"
            at = f.end
        codes += f"{2 * (block.address + block.count - at)}x"
        layouts.append((struct.Struct(codes), tuple(row)))
    return tuple(layouts)
