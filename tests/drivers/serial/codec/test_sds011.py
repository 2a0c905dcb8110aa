"""The SDS011 codec against captured frames, damage, and any bytes."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.serial.codec.sds011 import decode, framer
from drivers.serial.simulator import frame as simulated_frame
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Value
from gateway.sdk.testing import NOON

TENTHS = st.integers(0, 9999)


def decoded(stream: bytes, *cuts: int) -> list[dict[str, Value | None]]:
    """All sound frames of a stream that arrives cut at `cuts`."""
    cutter, found = framer(), []
    edges = [0, *sorted(cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        for frame in cutter.feed(stream[start:end]):
            with contextlib.suppress(FrameError):
                found.append({r.point: r.value for r in decode(frame, received_at=NOON)})
    return found


@given(TENTHS, TENTHS)
def test_a_frame_built_after_the_data_sheet_gives_its_values(pm2_5: int, pm10: int) -> None:
    assert decoded(simulated_frame(pm2_5, pm10)) == [{"pm2_5": pm2_5 / 10, "pm10": pm10 / 10}]


@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_refused(frame: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert len(decode(frame, received_at=NOON)) == 2


@given(st.lists(st.one_of(st.binary(max_size=12), st.builds(simulated_frame, TENTHS, TENTHS)), max_size=6), st.data())
def test_cutting_the_stream_elsewhere_changes_nothing(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=5))
    assert decoded(stream, *cuts) == decoded(stream)


@given(TENTHS.filter(lambda v: v < 9999), TENTHS)
def test_one_step_of_a_field_moves_its_point_alone(pm2_5: int, pm10: int) -> None:
    [before], [after] = decoded(simulated_frame(pm2_5, pm10)), decoded(simulated_frame(pm2_5 + 1, pm10))
    assert after["pm10"] == before["pm10"]
    assert after["pm2_5"] == pytest.approx((pm2_5 + 1) / 10)


@given(TENTHS, TENTHS, st.integers(2, 8), st.integers(1, 255))
def test_one_damaged_byte_is_never_a_value(pm2_5: int, pm10: int, at: int, flip: int) -> None:
    frame = bytearray(simulated_frame(pm2_5, pm10))
    frame[at] ^= flip
    with pytest.raises(FrameError, match="checksum"):
        decode(bytes(frame), received_at=NOON)


def test_a_false_header_in_noise_does_not_swallow_the_frame_behind_it() -> None:
    assert decoded(b"\xaa\xc0" + simulated_frame(6, 7)) == [{"pm2_5": 0.6, "pm10": 0.7}]
