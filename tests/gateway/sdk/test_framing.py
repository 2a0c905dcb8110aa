"""Framers find what is there whatever surrounds it, and however the stream is cut."""

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.errors import FrameError
from gateway.sdk.framing import Cursor, FixedFramer, LineFramer, crc16_modbus, sum8

HEADER, SIZE, TAIL = b"\xaa\xc0", 8, b"\xab"


def frame(payload: bytes) -> bytes:
    return HEADER + payload + TAIL


payloads = st.binary(min_size=5, max_size=5)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(stream) + 1) for place in places} | {len(stream)})
    return [stream[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def fed(framer: FixedFramer | LineFramer, pieces: list[bytes]) -> list[bytes]:
    return [found for piece in pieces for found in framer.feed(piece)]


@given(st.lists(payloads, max_size=8), st.lists(st.integers(0, 100)))
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(payload: list[bytes], places: list[int]) -> None:
    stream = b"".join(frame(its) for its in payload)

    assert fed(FixedFramer(HEADER, SIZE, TAIL), cut(stream, places)) == [frame(its) for its in payload]


@given(st.binary(max_size=40), st.lists(st.integers(0, 100)))
def test_cutting_noise_elsewhere_changes_nothing(noise: bytes, places: list[int]) -> None:
    whole, pieces = FixedFramer(HEADER, SIZE, TAIL), FixedFramer(HEADER, SIZE, TAIL)

    assert fed(whole, [noise]) == fed(pieces, cut(noise, places))
    assert whole.skipped == pieces.skipped


@given(st.binary(max_size=30).filter(lambda noise: b"\xaa" not in noise), payloads)
def test_a_frame_after_noise_is_found_and_the_noise_counted(noise: bytes, payload: bytes) -> None:
    framer = FixedFramer(HEADER, SIZE, TAIL)

    assert fed(framer, [noise + frame(payload)]) == [frame(payload)]
    assert framer.skipped == len(noise)


def test_a_frame_inside_a_false_start_is_found() -> None:
    assert fed(FixedFramer(HEADER, SIZE, TAIL), [HEADER + b"\x01" + frame(b"12345")]) == [frame(b"12345")]


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda line: not set(line) & {10, 13}), max_size=6),
       st.sampled_from([b"\n", b"\r", b"\r\n"]), st.lists(st.integers(0, 200)))  # fmt: skip
def test_lines_come_out_whole_whatever_ends_them(lines: list[bytes], end: bytes, places: list[int]) -> None:
    stream = b"".join(line + end for line in lines)

    assert fed(LineFramer(), cut(stream, places)) == lines


@given(st.integers(1, 50), st.lists(st.integers(0, 300)))
def test_a_line_beyond_the_bound_is_dropped_whole_and_the_next_one_kept(bound: int, places: list[int]) -> None:
    framer = LineFramer(max_line_bytes=bound)

    assert fed(framer, cut(b"x" * (bound * 3 + 1) + b"\n" + b"ok"[:bound] + b"\n", places)) == [b"ok"[:bound]]
    assert framer.dropped == 1


@given(st.binary(max_size=20), st.integers(-3, 25))
def test_a_cursor_never_reads_past_the_end(data: bytes, count: int) -> None:
    cursor = Cursor(data)
    if 0 <= count <= len(data):
        assert cursor.take(count) == data[:count]
        assert cursor.left == len(data) - count
    else:
        with pytest.raises(FrameError, match="bytes left"):
            cursor.take(count)
        assert cursor.left == len(data)


def test_a_cursor_unpacks_in_order() -> None:
    cursor = Cursor(bytes.fromhex("0102ff9b"))

    assert (*cursor.unpack(struct.Struct(">BB")), *cursor.unpack(struct.Struct(">h"))) == (1, 2, -101)


def test_checksums_give_their_check_values() -> None:
    assert crc16_modbus(b"123456789") == 0x4B37
    assert sum8(b"\xff\x02") == 1


@pytest.mark.parametrize(
    "piece", [b"no header at all in this ", b"\xaa\xc0" + bytes(7) + b"\xab", b"\xaa\xc0 no tail in"]
)
def test_nothing_is_left_of_what_is_done_with_however_long_the_stream(piece: bytes) -> None:
    framer = FixedFramer(b"\xaa\xc0", 10, b"\xab")
    tracemalloc.start()
    try:
        for _ in range(2000):
            for _ in framer.feed(piece):
                pass
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 10_000


def test_what_is_given_back_is_noise_but_for_the_frame_in_it() -> None:
    framer = FixedFramer(b"\xaa", 4)
    frames = []
    for found in framer.feed(b"\xaa\xaa12345"):
        if found == b"\xaa\xaa12":
            framer.give_back()
        else:
            frames.append(found)
    assert frames == [b"\xaa123"]
    assert framer.skipped == 3
