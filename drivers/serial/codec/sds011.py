"""Codec of the Nova SDS011 (also SDS018, SDS021) particle sensor. Source: Nova Fitness, Laser PM2.5 Sensor
specification SDS011 V1.3, "UART communication protocol": 9600 8N1, one frame a second."""

import struct
from datetime import datetime

from gateway.sdk.errors import FrameError
from gateway.sdk.framing import FixedFramer, sum8
from gateway.sdk.reading import Reading

HEADER = b"\xaa\xc0"  # head of message, commander number of a measurement
TAIL = b"\xab"
FRAME = struct.Struct("<2sHH2sBc")  # header, PM2.5, PM10, device id, checksum, tail
STEPS_PER_UG_M3 = 10
MAX_STEPS = 9999  # "measuring range 0.0-999.9 µg/m³": more is damage that the 8-bit sum does not show


def framer() -> FixedFramer:
    """Cuts the stream into measurement frames of 10 bytes."""
    return FixedFramer(HEADER, FRAME.size, TAIL)


def decode(frame: bytes, *, received_at: datetime) -> tuple[Reading, ...]:
    """Decode one measurement frame.

    Args:
        frame: 10 bytes, `AA C0` to `AB`.
        received_at: reception time in UTC; the sensor has no clock.

    Returns:
        Points `pm2_5` and `pm10` (µg/m³, step 0.1).

    Raises:
        FrameError: length, header, tail or checksum is wrong, or it says more than the sensor can measure.
    """
    if len(frame) != FRAME.size:
        raise FrameError(f"{len(frame)} bytes, expected {FRAME.size}", frame=frame, offset=len(frame))
    header, pm2_5, pm10, _, checksum, tail = FRAME.unpack(frame)
    if header != HEADER:
        raise FrameError(f"header {header.hex()}, expected {HEADER.hex()}", frame=frame, offset=0)
    if tail != TAIL:
        raise FrameError(f"tail {tail.hex()}, expected {TAIL.hex()}", frame=frame, offset=9)
    expected = sum8(frame[2:8])  # the two values and the device id
    if checksum != expected:
        raise FrameError(f"checksum {checksum:02x}, expected {expected:02x}", frame=frame, offset=8)
    if max(pm2_5, pm10) > MAX_STEPS:
        raise FrameError(f"{max(pm2_5, pm10) / STEPS_PER_UG_M3} µg/m³, the sensor ends at 999.9", frame=frame, offset=2)
    return (
        Reading("pm2_5", pm2_5 / STEPS_PER_UG_M3, received_at),
        Reading("pm10", pm10 / STEPS_PER_UG_M3, received_at),
    )


def identity(frame: bytes) -> bytes:
    """The device id of a sound frame."""
    return frame[6:8]
