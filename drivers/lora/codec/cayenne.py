"""Cayenne Low Power Payload. Source: Cayenne LPP documentation (myDevices); types of the IPSO registry minus 3200.

Big-endian. An unknown type has an unknown length, so reading ends there: what came before it stands.
"""

from drivers.lora.codec.payload import Decoded, Received, points_by_field
from gateway.sdk.errors import FrameError, foreign
from gateway.sdk.reading import Reading

# type: (name, bytes, signed, step)
TYPES: dict[int, tuple[str, int, bool, float]] = {
    0x00: ("digital_in", 1, False, 1),
    0x01: ("digital_out", 1, False, 1),
    0x02: ("analog_in", 2, True, 0.01),
    0x03: ("analog_out", 2, True, 0.01),
    0x64: ("generic", 4, False, 1),
    0x65: ("luminosity", 2, False, 1),
    0x66: ("presence", 1, False, 1),
    0x67: ("temperature", 2, True, 0.1),
    0x68: ("humidity", 1, False, 0.5),
    0x73: ("barometer", 2, False, 0.1),
    0x74: ("voltage", 2, False, 0.01),
    0x75: ("current", 2, False, 0.001),
    0x76: ("frequency", 4, False, 1),
    0x78: ("percentage", 1, False, 1),
    0x79: ("altitude", 2, True, 1),
    0x7D: ("concentration", 2, False, 1),
    0x80: ("power", 2, False, 1),
    0x82: ("distance", 4, False, 0.001),
    0x83: ("energy", 4, False, 0.001),
    0x84: ("direction", 2, False, 1),
    0x85: ("time", 4, False, 1),
    0x8E: ("switch", 1, False, 1),
}
VECTORS: dict[int, tuple[str, tuple[str, ...], int, tuple[float, ...]]] = {  # signed, but for the colour
    0x71: ("accelerometer", ("x", "y", "z"), 2, (0.001, 0.001, 0.001)),
    0x86: ("gyrometer", ("x", "y", "z"), 2, (0.01, 0.01, 0.01)),
    0x87: ("colour", ("red", "green", "blue"), 1, (1, 1, 1)),
    0x88: ("gps", ("latitude", "longitude", "altitude"), 3, (0.0001, 0.0001, 0.01)),
}


@foreign("Cayenne payload")
def decode(payload: bytes, fields: dict[str, str], received: Received) -> Decoded:
    """Decode one payload.

    Args:
        fields: point -> field; a field is `name_channel` (`temperature_3`), of a vector `gps_1_latitude`.

    Raises:
        FrameError: already the first record cannot be read.
    """
    points = points_by_field(fields)
    readings: list[Reading] = []
    at = 0
    while at < len(payload):
        try:
            found, at = _record(payload, at)
        except FrameError as error:
            if not readings:
                raise
            return Decoded(tuple(readings), error.message, error.offset)
        readings += [
            Reading(point, value, received.at, time_source=received.source)
            for name, value in found
            for point in points.get(name, (name,))
        ]
    return Decoded(tuple(readings))


def _record(payload: bytes, at: int) -> tuple[list[tuple[str, float | int]], int]:
    if len(payload) - at < 2:
        raise FrameError("a record has channel and type", frame=payload, offset=at)
    channel, kind = payload[at], payload[at + 1]
    at += 2
    if vector := VECTORS.get(kind):
        name, axes, size, steps = vector
        numbers = [_integer(payload, at + i * size, size, signed=kind != 0x87) for i in range(len(axes))]
        scaled = [_scaled(raw, step) for raw, step in zip(numbers, steps, strict=True)]
        return [(f"{name}_{channel}_{axis}", value) for axis, value in zip(axes, scaled, strict=True)], at + 3 * size
    if kind not in TYPES:
        raise FrameError(f"unknown type {kind:#04x}, its length is unknown", frame=payload, offset=at - 1)
    name, size, signed, step = TYPES[kind]
    return [(f"{name}_{channel}", _scaled(_integer(payload, at, size, signed=signed), step))], at + size


def _integer(payload: bytes, at: int, size: int, *, signed: bool) -> int:
    if at + size > len(payload):
        raise FrameError(f"{len(payload) - at} bytes left, {size} needed", frame=payload, offset=at)
    return int.from_bytes(payload[at : at + size], "big", signed=signed)


def _scaled(raw: int, step: float) -> float | int:
    return raw if step == 1 else float(f"{raw * step:.12g}")
