"""Which registers, read how, give the value that stands on the display? The word-order question, answered by trying."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from drivers.modbus.codec.registers import Encoding, Order, Type

TYPES: tuple[Type, ...] = (
    "float32", "uint16", "int16", "uint32", "int32", "float64", "uint64", "int64", "bcd16", "bcd32", "signmag16", "signmag32",
)  # fmt: skip
SCALES = (1.0, 0.1, 0.01, 0.001, 10.0, 100.0, 1000.0, 0.0001)
FLOAT_SCALES = (1.0, 1000.0, 0.001)  # kW for W, Wh for kWh
ORDERS: tuple[tuple[Order, Order], ...] = (("big", "big"), ("little", "big"), ("big", "little"), ("little", "little"))


@dataclass(frozen=True, slots=True)
class Way:
    """One way to read the value.

    Attributes:
        address: 0-based wire address of the first register.
        value: what it gives.
        cost: how unusual it is; the most usual first.
    """

    address: int
    encoding: Encoding
    value: float
    cost: int


def solutions(data: bytes, address: int, shown: str) -> list[Way]:
    """Ways in which the registers give the value on the display, the most usual first.

    Args:
        data: registers as on the wire, from wire address `address`.
        shown: as displayed, e.g. `230.1`: what agrees with all digits shown is a way.

    Raises:
        ValueError: `shown` is no number.
    """
    try:
        wanted = Decimal(shown)
    except ArithmeticError:
        raise ValueError(f"{shown!r} is not a number as a display shows it") from None
    if not wanted.is_finite():
        raise ValueError(f"{shown!r} is not a number as a display shows it")
    half_digit = float(Decimal(1).scaleb(int(wanted.as_tuple().exponent))) / 2
    found: dict[tuple[int, bytes, float], Way] = {}
    for way in _ways(data, address):
        if abs(way.value - float(wanted)) <= half_digit * 1.0000001 and way.value != 0:
            # types that read the same bytes as the same number are one way: int16 and uint16 of 2301
            start = 2 * (way.address - address)
            read = way.encoding.ordered(data[start : start + 2 * way.encoding.words])
            key = (way.address, read, way.encoding.scale)
            if key not in found or way.cost < found[key].cost:
                found[key] = way
    return sorted(found.values(), key=lambda way: (way.cost, way.address))


def _ways(data: bytes, address: int) -> Iterator[Way]:
    for kind_cost, kind in enumerate(TYPES):
        for order_cost, (word_order, byte_order) in enumerate(ORDERS):
            probe = Encoding(kind, word_order=word_order, byte_order=byte_order)
            if probe.words == 1 and word_order == "little":
                continue
            for start in range(0, len(data) - 2 * probe.words + 1, 2):
                [unpacked] = struct.unpack_from(">" + probe.code, data, start)
                raw = probe.raw(unpacked)
                if raw is None or isinstance(raw, str) or raw != raw:
                    continue
                for scale_cost, scale in enumerate(FLOAT_SCALES if kind.startswith("float") else SCALES):
                    encoding = Encoding(kind, word_order=word_order, byte_order=byte_order, scale=scale)
                    value = float(raw) / encoding.divisor if encoding.divisor else float(raw) * scale
                    cost = scale_cost + 3 * order_cost + kind_cost + (4 if probe.words == 4 else 0)
                    yield Way(address + start // 2, encoding, value, cost)
