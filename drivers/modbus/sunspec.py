"""Where a SunSpec device keeps its models.

Source: SunSpec Device Information Model Specification: the marker `SunS` at holding register 40000, 0 or 50000, then
models one after the other, each with its number and length, up to the number 0xFFFF. Many devices end the list in
another way: the next read is refused or stays silent. What was found up to there counts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from drivers.modbus.codec.frames import DeviceException, Table
from gateway.sdk.errors import Busy, FrameError, NoAnswer

Read = Callable[[Table, int, int], Awaitable[bytes]]

BASES = (40000, 0, 50000)
MARKER = b"SunS"
END = 0xFFFF
MAX_MODELS = 64  # a device that never comes to an end is not believed


@dataclass(slots=True)
class Models:
    """The models of one device, the first of each kind.

    Attributes:
        bases: model number -> address of its ID register.
        ends: model number -> address behind its last register; another firmware may have a shorter model.
        whole: the list was read to its end, or as far as it was wanted; else the rest may be there another time.
    """

    bases: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    whole: bool = True


class Search:
    """The search of one unit, base by base. Silence at one base ends this try only; the next one begins behind it, so
    that a unit that is not there costs one timeout a try."""

    def __init__(self) -> None:
        self._place = 0

    async def models(self, read: Read, wanted: frozenset[int] | None = None) -> Models | None:
        """The models found; None when there is no SunSpec map.

        Args:
            read: reads holding registers; a refusal of a base address only means that the map is elsewhere.
            wanted: enough when these are found; None: all.

        Raises:
            NoAnswer, FrameError, Busy: at a base address.
        """
        for _ in BASES:
            base, self._place = BASES[self._place], (self._place + 1) % len(BASES)
            try:
                marker = await read("holding", base, 2)
            except DeviceException:
                continue
            if marker == MARKER:
                self._place = BASES.index(base)
                return await _walk(read, base + 2, wanted)
        return None


async def _walk(read: Read, address: int, wanted: frozenset[int] | None) -> Models:
    found = Models()
    for _ in range(MAX_MODELS):
        if address > 0xFFFE or (wanted is not None and wanted <= found.bases.keys()):
            break
        try:
            head = await read("holding", address, 2)
        except DeviceException:
            break
        except (NoAnswer, FrameError, Busy):
            found.whole = False
            break
        model, length = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:], "big")
        if model in (0, END):
            break
        if model not in found.bases:
            found.bases[model], found.ends[model] = address, address + 2 + length
        address += 2 + length
    return found
