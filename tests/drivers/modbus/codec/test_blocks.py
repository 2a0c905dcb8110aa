"""The block planner: few requests, every field whole, nothing forbidden; and parting what a device refuses."""

import itertools
import struct
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.modbus.codec.blocks import Block, Field, Limits, plan
from drivers.modbus.codec.frames import Table
from drivers.modbus.codec.registers import Encoding
from gateway.sdk.reading import Quality, Reading, Reason
from gateway.sdk.testing import NOON

ENCODINGS = [
    Encoding("uint16"),
    Encoding("float32"),
    Encoding("int64"),
    Encoding("string", words=5),
    Encoding("uint16", bits=(3, 2)),
]


@st.composite
def fields(draw: st.DrawFn) -> tuple[Field, ...]:
    found = []
    for n in range(draw(st.integers(1, 25))):
        table = draw(st.sampled_from(["holding", "input", "coil"]))
        encoding = Encoding("bit") if table == "coil" else draw(st.sampled_from(ENCODINGS))
        address = draw(st.integers(0, 400))
        found.append(Field(f"p{n}", table, address, encoding, alone=draw(st.integers(0, 9)) == 0))  # type: ignore[arg-type]  # drawn from its names
    return tuple(found)


limits = st.builds(Limits, max_words=st.integers(5, 125), max_bits=st.integers(1, 200), max_hole=st.integers(0, 40))


@given(fields(), limits)
def test_every_field_is_read_whole_exactly_once_within_the_limits(found: tuple[Field, ...], limit: Limits) -> None:
    blocks = plan(found, limit)

    assert sorted(f.point for b in blocks for f in b.fields) == sorted(f.point for f in found)
    for block in blocks:
        assert 1 <= block.count <= limit.most(block.table)
        for f in block.fields:
            assert f.table == block.table
            assert block.address <= f.address
            assert f.end <= block.address + block.count
        assert len(block.fields) == 1 or not any(f.alone for f in block.fields)


@given(fields(), limits)
def test_no_two_neighbouring_blocks_could_have_been_one(found: tuple[Field, ...], limit: Limits) -> None:
    plain = tuple(Field(f.point, f.table, f.address, f.encoding) for f in found)
    blocks = plan(plain, limit)
    for one, other in itertools.pairwise(blocks):
        hole = other.address - (one.address + one.count)
        first_end = min(f.end for f in other.fields if f.address == other.address)
        together = max(one.address + one.count, first_end) - one.address
        assert one.table != other.table or hole > limit.max_hole or together > limit.most(one.table)


@given(fields(), limits, st.sets(st.integers(0, 410), max_size=8))
def test_a_forbidden_register_is_never_read_along(found: tuple[Field, ...], limit: Limits, holes: set[int]) -> None:
    used = {(f.table, at) for f in found for at in range(f.address, f.end)}
    tables: tuple[Table, ...] = ("holding", "input", "coil")
    forbidden = frozenset((table, at) for table in tables for at in holes if (table, at) not in used)
    for block in plan(found, Limits(limit.max_words, limit.max_bits, limit.max_hole, forbidden)):
        assert not any((block.table, at) in forbidden for at in range(block.address, block.address + block.count))


@given(fields(), limits)
def test_parting_goes_down_to_single_fields_and_loses_none(found: tuple[Field, ...], limit: Limits) -> None:
    for block in plan(found, limit):
        todo, single = [block], list[Block]()
        while todo:
            part = todo.pop()
            parts = part.split()
            if len(parts) == 1:
                single.append(part)
            else:
                assert all(len(p.fields) < len(part.fields) for p in parts)
                todo += parts
        assert sorted(b.fields[0].point for b in single) == sorted(f.point for f in block.fields)


@given(fields(), limits, st.randoms(use_true_random=False))
def test_any_reply_of_the_right_length_gives_each_point_once(found: tuple[Field, ...], limit: Limits, chance) -> None:  # type: ignore[no-untyped-def]
    for block in plan(found, limit):
        size = (block.count + 7) // 8 if block.table == "coil" else 2 * block.count
        readings = block.readings(chance.randbytes(size), NOON)
        assert [r.point for r in readings] == [f.point for f in block.fields]
        assert all((r.value is None) == (r.reason is not Reason.NONE) for r in readings)


def test_bits_of_one_register_are_two_points_of_one_read() -> None:
    block = Block("holding", 10, 2, (
        Field("low", "holding", 10, Encoding("uint16", bits=(0, 4))),
        Field("high", "holding", 10, Encoding("uint16", bits=(12, 4))),
        Field("both", "holding", 10, Encoding("uint32")),
    ))  # fmt: skip

    assert [value for value, _ in block.values(bytes.fromhex("a0050001"))] == [5, 10, 0xA0050001]


def test_coils_stand_lowest_bit_first() -> None:
    block = Block("coil", 100, 10, tuple(Field(f"c{n}", "coil", 100 + n, Encoding("bit")) for n in range(10)))

    assert [value for value, _ in block.values(b"\x81\x02")] == [True, *[False] * 6, True, False, True]


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (partial(Encoding, "float32", offset=5.0), 7.5),
        (partial(Encoding, "float32", scale=2.0), 5.0),
        (partial(Encoding, "float64", invalid=(2.5,)), None),
        (partial(Encoding, "float32", scale=2.0, offset=5.0), 10.0),
    ],
)
def test_a_float_of_a_block_is_computed_as_it_is_alone(made: Callable[[], Encoding], value: float | None) -> None:
    encoding = made()
    block = Block("input", 0, encoding.words, (Field("power", "input", 0, encoding),))

    [reading] = block.readings(struct.pack(">f" if encoding.words == 2 else ">d", 2.5), NOON)

    assert reading.value == value


def test_points_of_a_block_that_was_not_read_are_told_with_time_and_reason() -> None:
    block = Block("coil", 100, 2, tuple(Field(f"c{n}", "coil", 100 + n, Encoding("bit")) for n in range(2)))

    assert block.without_values(Reason.TIMEOUT, NOON) == [
        Reading(f"c{n}", None, NOON, Quality.BAD, Reason.TIMEOUT) for n in range(2)
    ]


@given(st.integers(-999_999, 999_999), st.integers(1, 6))
def test_a_float32_of_a_block_is_the_decimal_that_the_device_meant(digits: int, places: int) -> None:
    meant = digits / 10**places
    block = Block("input", 0, 2, (Field("power", "input", 0, Encoding("float32")),))

    [reading] = block.readings(struct.pack(">f", meant), NOON)

    assert reading.value == meant
