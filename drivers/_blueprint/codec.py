"""Frames of the TH-2, a made-up street climate node that talks by itself. Copy this file and put in your device.

A frame: A5 5A, version, temperature (0.01 °C), humidity (0.5 %), battery (mV), sum of the bytes before; big-endian.
"""

import struct
from datetime import datetime

from gateway.sdk.errors import FrameError
from gateway.sdk.framing import FixedFramer, sum8
from gateway.sdk.reading import Quality, Reading, Reason

HEADER = b"\xa5\x5a"
FRAME = struct.Struct(">2sBhBHB")  # header, version, temperature, humidity, battery, sum
VERSION = 1
NO_TEMPERATURE = -0x8000  # the sensor element is broken


def framer() -> FixedFramer:
    """Cuts the byte stream into frames and finds the next one after noise."""
    return FixedFramer(HEADER, FRAME.size)


def decode(frame: bytes, *, received_at: datetime) -> tuple[Reading, ...]:
    """Decode one frame.

    Args:
        frame: as cut by `framer`.
        received_at: reception time in UTC; the node has no clock of its own.

    Returns:
        Points `temperature` (°C, step 0.01), `humidity` (%, step 0.5), `battery` (V, step 0.001).

    Raises:
        FrameError: length, header, version or sum is wrong.
    """
    if len(frame) != FRAME.size:
        raise FrameError(f"{len(frame)} bytes, expected {FRAME.size}", frame=frame)
    header, version, temperature, humidity, battery, said = FRAME.unpack(frame)
    if header != HEADER:
        raise FrameError("no TH-2 header", frame=frame)
    if said != sum8(frame[:-1]):
        raise FrameError(f"sum {said}, expected {sum8(frame[:-1])}", frame=frame, offset=FRAME.size - 1)
    if version != VERSION:
        raise FrameError(f"frame version {version}, expected {VERSION}", frame=frame, offset=2)
    return (
        Reading("temperature", None, received_at, Quality.BAD, Reason.NOT_AVAILABLE)
        if temperature == NO_TEMPERATURE
        else Reading("temperature", temperature / 100, received_at),
        Reading("humidity", humidity / 2, received_at),
        Reading("battery", battery / 1000, received_at),
    )
