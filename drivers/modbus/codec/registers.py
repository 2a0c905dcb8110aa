"""Register bytes and values: one description of an encoding serves reading and writing."""

import math
import struct
from dataclasses import dataclass, field
from typing import Literal

from gateway.sdk.decimals import shortest
from gateway.sdk.reading import Reason, Value

Order = Literal["big", "little"]
Type = Literal[
    "bit", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
    "bcd16", "bcd32", "signmag16", "signmag32", "string",
]  # fmt: skip

_CODES = {
    "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "uint64": "Q", "int64": "q", "float32": "f", "float64": "d",
    "bcd16": "H", "bcd32": "I", "signmag16": "H", "signmag32": "I", "bit": "B",
}  # fmt: skip
_WORDS = {"bit": 1} | {name: max(1, struct.calcsize(">" + code) // 2) for name, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one value stands in its registers. value = raw * scale + offset.

    Attributes:
        words: registers it takes (a bit table: bits, always 1).
        word_order: big = the register with the lowest address holds the most significant part.
        byte_order: within a register; Modbus says big, some devices do not.
        bits: (lowest bit, number of bits) of a bitfield within the unsigned integer.
        enum: raw integer -> text.
        invalid: raw values that mean "no value" (sentinels); NaN always is one.
        divisor: 1/scale where that is a whole number: 3 / 10 is 0.3, 3 * 0.1 is not.
        plain: a float that is the value as it stands, if it is finite.
        whole: scale and offset as integers, where they are.
    """

    type: Type
    words: int = 0
    word_order: Order = "big"
    byte_order: Order = "big"
    bits: tuple[int, int] | None = None
    scale: float = 1.0
    offset: float = 0.0
    enum: tuple[tuple[int, str], ...] = ()
    invalid: tuple[float, ...] = ()
    divisor: float = field(init=False, default=0.0)
    plain: bool = field(init=False, default=False)
    whole: tuple[int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.words:
            object.__setattr__(self, "words", _WORDS.get(self.type, 1))
        inverse = 1 / self.scale if self.scale else 0.0
        if abs(inverse) > 1 and abs(inverse - round(inverse)) < 1e-9 * abs(inverse):
            object.__setattr__(self, "divisor", float(round(inverse)))
        if float(self.scale).is_integer() and float(self.offset).is_integer():
            object.__setattr__(self, "whole", (int(self.scale), int(self.offset)))  # an integer stays one
        unscaled = self.scale == 1 and not (self.offset or self.enum or self.bits)
        object.__setattr__(self, "plain", self.type in ("float32", "float64") and unscaled and not self.invalid)

    @property
    def code(self) -> str:
        """`struct` code of the big-endian registers; `Ns` where bytes must be put in order first."""
        if self.type == "string" or (self.type != "bit" and (self.word_order, self.byte_order) != ("big", "big")):
            return f"{2 * self.words}s"
        return _CODES[self.type]

    def raw(self, unpacked: int | float | bytes) -> int | float | str | None:
        """Number or text from what `code` unpacked; None for digits that are none (BCD)."""
        number: int | float
        if isinstance(unpacked, bytes):
            ordered = self.ordered(unpacked)
            if self.type == "string":
                return ordered.split(b"\0")[0].decode("ascii", "replace").strip()
            [number] = struct.unpack(">" + _CODES[self.type], ordered)
        else:
            number = unpacked
        if self.type == "float32":
            return shortest(float(number))
        if self.type in ("bcd16", "bcd32"):
            digits = f"{number:x}"
            return int(digits) if digits.isdecimal() else None
        if self.type in ("signmag16", "signmag32"):
            sign = 1 << (16 * self.words - 1)
            return sign - int(number) if int(number) & sign else number
        return number

    def ordered(self, data: bytes) -> bytes:
        """Registers' bytes, most significant first; the same function undoes itself."""
        if self.byte_order == "little":
            swapped = bytearray(data)
            swapped[0::2], swapped[1::2] = data[1::2], data[0::2]
            data = bytes(swapped)
        if self.word_order == "little" and self.type != "string":
            data = b"".join(data[i : i + 2] for i in range(len(data) - 2, -1, -2))
        return data

    def value(self, unpacked: int | float | bytes) -> tuple[Value | None, Reason]:
        """Value in the point's unit, or None and why."""
        raw = self.raw(unpacked)
        if raw is None:
            return None, Reason.BAD_FRAME
        if isinstance(raw, str):
            return (raw, Reason.NONE) if raw else (None, Reason.NOT_AVAILABLE)
        if raw in self.invalid or raw != raw:  # NaN is how devices with floats say that there is no value
            return None, Reason.NOT_AVAILABLE
        if self.bits is not None:
            raw = int(raw) >> self.bits[0] & (1 << self.bits[1]) - 1
        if self.enum:
            text = dict(self.enum).get(int(raw))
            return (text, Reason.NONE) if text is not None else (None, Reason.OUT_OF_RANGE)
        if self.type == "bit" or (self.bits is not None and self.bits[1] == 1):
            return bool(raw), Reason.NONE
        if not math.isfinite(raw):
            return None, Reason.NOT_FINITE
        return self._scaled(raw), Reason.NONE

    def _scaled(self, raw: int | float) -> int | float:
        if self.divisor:
            return raw / self.divisor + self.offset if self.offset else raw / self.divisor
        if self.whole is not None:
            return raw * self.whole[0] + self.whole[1]
        return raw * self.scale + self.offset

    def encode(self, value: Value) -> bytes:
        """Registers' bytes that read back as `value`; a bit gives one byte.

        Raises:
            ValueError: the value does not fit the type, is no step of it, or is no member of the enum.
        """
        if self.bits is not None:
            raise ValueError("a bitfield cannot be written alone: its register holds other things too")
        if self.type == "string":
            data = str(value).encode("ascii")
            if len(data) > 2 * self.words:
                raise ValueError(f"{value!r} is longer than {2 * self.words} characters")
            return self.ordered(data.ljust(2 * self.words, b"\0"))
        if self.type == "bit":
            if value not in (0, 1, True, False):
                raise ValueError(f"{value!r} is not a flag")
            return bytes((int(value),))
        return self.ordered(self._packed(self._unscaled(value)))

    def _unscaled(self, value: Value) -> float | int:
        if self.enum:
            for raw, text in self.enum:
                if text == value:
                    return raw
            raise ValueError(f"{value!r} is none of {', '.join(text for _, text in self.enum)}")
        if isinstance(value, str) or not math.isfinite(value):
            raise ValueError(f"{value!r} is not a number")
        if isinstance(value, int) and self.whole is not None and (value - self.whole[1]) % self.whole[0] == 0:
            return (value - self.whole[1]) // self.whole[0]  # a float could not hold 64 bits
        exact = (value - self.offset) * self.divisor if self.divisor else (value - self.offset) / self.scale
        if self.type in ("float32", "float64"):
            return exact
        if abs(exact - round(exact)) > 1e-6 * max(1.0, abs(exact)):
            raise ValueError(f"{value!r} is not a multiple of the step {self.scale:g}")
        return round(exact)

    def _packed(self, raw: float | int) -> bytes:
        if self.type in ("bcd16", "bcd32"):
            if not 0 <= raw < 10 ** (4 * self.words):
                raise ValueError(f"{raw} does not fit {self.type}")
            raw = int(str(raw), 16)
        elif self.type in ("signmag16", "signmag32"):
            sign = 1 << (16 * self.words - 1)
            if abs(raw) >= sign:
                raise ValueError(f"{raw} does not fit {self.type}")
            raw = sign - int(raw) if raw < 0 else raw
        try:
            return struct.pack(">" + _CODES[self.type], raw)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{raw} does not fit {self.type}") from error
