"""Where a SunSpec device keeps its models.

Source: SunSpec Device Information Model Specification: the marker `SunS` at holding register 40000, 0 or 50000, then
models one after the other, each with its number and length, up to the number 0xFFFF.
"""

from collections.abc import Awaitable, Callable

from drivers.modbus.codec.frames import DeviceException, Table

Read = Callable[[Table, int, int], Awaitable[bytes]]

BASES = (40000, 0, 50000)
MARKER = b"SunS"
END = 0xFFFF
MAX_MODELS = 64  # a device that never comes to an end is not believed


async def find_models(read: Read) -> dict[int, int] | None:
    """Model number -> address of its ID register, the first of each kind; None when there is no SunSpec map.

    Args:
        read: reads holding registers; a refusal of a base address only means that the map is elsewhere.

    Raises:
        NoAnswer, FrameError, Busy, DeviceException: while walking the map.
    """
    for base in BASES:
        try:
            marker = await read("holding", base, 2)
        except DeviceException:
            continue
        if marker == MARKER:
            return await _walk(read, base + 2)
    return None


async def _walk(read: Read, address: int) -> dict[int, int]:
    models: dict[int, int] = {}
    for _ in range(MAX_MODELS):
        if address > 0xFFFE:
            break
        head = await read("holding", address, 2)
        model, length = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:], "big")
        if model == END:
            break
        models.setdefault(model, address)
        address += 2 + length
    return models
