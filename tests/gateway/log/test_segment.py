"""Segments: any sets come back as they were; any damage is found, never decoded into something else."""

import contextlib
import math
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.log.segment import (
    LAST_VALUES,
    LOG,
    Columns,
    DamagedSegment,
    Entry,
    Layouts,
    Stamp,
    decode,
    encode,
    entries_of,
    microseconds,
    put_entries,
    read_header,
    wall_time,
)
from gateway.sdk.reading import Quality, Reading, Reason, TimeSource
from gateway.sdk.testing import NOON

STAMP = Stamp(3, -(10**15), 6)
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2199, 1, 1)).map(
    lambda t: t.replace(tzinfo=UTC)
)
FINE_TIMES = st.integers(-(10**9), 10**9).map(lambda n: NOON + timedelta(microseconds=n))
DECIMALS = st.builds(lambda n, d: n / 10**d, st.integers(-(10**12), 10**12), st.integers(0, 9))
VALUES = st.one_of(
    DECIMALS,
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(width=32),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.text(max_size=30),
    st.none(),
)
READINGS = st.builds(
    Reading,
    st.just(""),
    VALUES,
    st.one_of(TIMES, FINE_TIMES),
    st.sampled_from(Quality),
    st.sampled_from(Reason),
    st.sampled_from(TimeSource),
)
SERIES = st.integers(1, 2**31)


@st.composite
def sets(draw: st.DrawFn) -> list[Entry]:
    """Sets in order, gaps between their numbers, the same shapes again and again."""
    seq, entries = draw(st.integers(0, 2**60)), []
    shapes = draw(st.lists(st.lists(SERIES, min_size=1, max_size=5), min_size=1, max_size=3))
    for _ in range(draw(st.integers(1, 8))):
        seq += draw(st.sampled_from((1, 1, 1, 2, 2**33)))
        shape = draw(st.sampled_from(shapes))
        readings = tuple(draw(READINGS) for _ in shape)
        if draw(st.booleans()):  # as a poll gives them: one time, good, floats on a grid
            at = draw(FINE_TIMES)
            readings = tuple(Reading("", draw(DECIMALS), at) for _ in shape)
        entries.append(Entry(seq, tuple(shape), readings, STAMP, 0.0, 0))
    return entries


def exactly(value: object) -> object:
    """Equal exactly when nothing was lost: type, sign of zero and bits of a float included."""
    return (
        type(value),
        struct.pack(">d", value) if isinstance(value, float) and not math.isnan(value) else repr(value),
    )


def assert_same(found: Columns, entries: list[Entry]) -> None:
    expected = Columns(0)
    put_entries(entries, expected)
    assert [exactly(value) for value in found.value] == [exactly(value) for value in expected.value]
    found.value = expected.value = []
    assert found == expected


@given(sets())
def test_any_sets_come_back_as_they_were(entries: list[Entry]) -> None:
    layouts, columns = Layouts(), Columns(0)
    header = decode(encode(entries, layouts, sealed_us=5, settled=entries[0].seq - 1), layouts, columns)
    assert_same(columns, entries)
    assert (header.first, header.last) == (entries[0].seq, entries[-1].seq)
    assert header.readings == len(columns.seq)
    assert header.stamp == STAMP
    assert header.oldest_us == min(columns.time_us) or header.oldest_us <= min(columns.time_us)
    assert header.settled == entries[0].seq - 1
    assert header.kind == LOG


@given(st.lists(sets(), min_size=2, max_size=3))
def test_segments_stand_alone_and_share_the_dictionary(parts: list[list[Entry]]) -> None:
    layouts = Layouts()
    blobs = [encode(part, layouts) for part in parts]
    again = Layouts(layouts.unsaved)  # as after a restart
    for blob, part in reversed(list(zip(blobs, parts, strict=True))):
        columns = Columns(0)
        decode(blob, again, columns)
        assert_same(columns, part)


@given(sets(), st.integers(0, 7))
def test_only_sets_above_the_cursor_are_given(entries: list[Entry], index: int) -> None:
    layouts, columns = Layouts(), Columns(0)
    after = entries[min(index, len(entries) - 1)].seq
    decode(encode(entries, layouts), layouts, columns, after=after)
    columns.last = entries[-1].seq
    kept = [entry for entry in entries if entry.seq > after]
    if kept:
        assert_same(columns, kept)
    else:
        assert columns.seq == []


@given(sets(), st.data())
def test_any_damage_is_found(entries: list[Entry], data: st.DataObject) -> None:
    layouts = Layouts()
    blob = bytearray(encode(entries, layouts))
    kind = data.draw(st.sampled_from(("bit", "bytes", "cut")))
    place = data.draw(st.integers(0, len(blob) - 1))
    if kind == "bit":
        blob[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "bytes":
        noise = data.draw(st.binary(min_size=1, max_size=40))
        if bytes(blob[place : place + len(noise)]) == noise[: len(blob) - place]:
            return
        blob[place : place + len(noise)] = noise[: len(blob) - place]
    else:
        del blob[place:]
    columns = Columns(0)
    with pytest.raises(DamagedSegment):
        decode(bytes(blob), layouts, columns)
    assert columns.seq == []


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    for blob in (data, b"CG\x01" + data):
        with contextlib.suppress(DamagedSegment):
            read_header(blob)


def test_a_segment_that_names_an_unknown_layout_is_refused() -> None:
    entries = [Entry(1, (1,), (Reading("", 1.5, NOON),), STAMP, 0.0, 0)]
    with pytest.raises(DamagedSegment, match="cannot be decoded"):
        decode(encode(entries, Layouts()), Layouts(), Columns(0))


def test_a_later_version_is_refused_by_name() -> None:
    with pytest.raises(DamagedSegment, match="version 9"):
        read_header(b"CG\x09" + bytes(20))


def test_points_that_fail_in_turn_do_not_fill_the_dictionary() -> None:
    layouts = Layouts()
    shape = tuple(range(12))
    for mask in range(4096):
        readings = tuple(Reading("", 1.5 if mask >> i & 1 else None, NOON) for i in shape)
        blob = encode([Entry(mask, shape, readings, STAMP, 0.0, 0)], layouts)
    assert len(layouts.unsaved) <= 16
    columns = Columns(0)
    decode(blob, layouts, columns)
    assert columns.value == [1.5] * 12


def test_an_ordinary_commit_costs_few_bytes_per_reading() -> None:
    layouts = Layouts()
    sizes = []
    for turn in range(2):
        entries = [
            Entry(
                turn * 100 + n,
                tuple(range(n * 4, n * 4 + 4)),
                tuple(Reading("", round(20 + n / 7 + i, 1), NOON + timedelta(milliseconds=1200 * n)) for i in range(4)),
                STAMP,
                0.0,
                0,
            )
            for n in range(12)
        ]
        sizes.append(len(encode(entries, layouts, sealed_us=microseconds(NOON) + 15_000_000)))
    assert sizes[-1] / 48 < 4.5


def test_a_point_may_come_more_than_once_in_a_set() -> None:
    """A data logger hands over several values of one point at once."""
    readings = tuple(Reading("", 20.0 + n / 10, NOON + timedelta(seconds=n)) for n in range(5))
    entries = [Entry(seq, (7,) * 5, readings, STAMP, 0.0, 0) for seq in (1, 2)]
    layouts, columns = Layouts(), Columns(0)
    decode(encode(entries, layouts), layouts, columns)
    assert_same(columns, entries)


def test_columns_become_sets_again() -> None:
    readings = (Reading("a", 1.5, NOON), Reading("b", "on", NOON, Quality.UNCERTAIN, Reason.WARMING_UP))
    entries = [Entry(7, (1, 2), readings, STAMP, 0.0, 0), Entry(9, (2,), readings[1:], STAMP, 0.0, 0)]
    columns = Columns(0)
    put_entries(entries, columns)
    assert entries_of(columns, STAMP, {1: "a", 2: "b"}) == entries


def test_kinds_are_told_apart_and_times_are_exact() -> None:
    entries = [Entry(1, (1,), (Reading("", 1.5, NOON),), STAMP, 0.0, 0)]
    assert read_header(encode(entries, Layouts(), kind=LAST_VALUES)).kind == LAST_VALUES
    at = datetime(2026, 6, 1, 12, 0, 0, 123457, tzinfo=UTC)
    assert wall_time(microseconds(at)) == at


def test_every_quality_reason_and_source_has_its_code() -> None:
    for reason in Reason:
        for quality in Quality:
            for source in TimeSource:
                layouts, columns = Layouts(), Columns(0)
                entry = Entry(1, (1,), (Reading("", None, NOON, quality, reason, source),), STAMP, 0.0, 0)
                decode(encode([entry], layouts), layouts, columns)
                assert (columns.quality, columns.reason, columns.time_source) == ([quality], [reason], [source])
