"""Register bytes and values: one description of an encoding serves reading and writing."""

import math
import struct
from collections.abc import Mapping
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
_FLOAT32 = struct.Struct(">f")
MAX_FLOAT32 = 3.4028234663852886e38
_CODED = ("bcd16", "bcd32", "signmag16", "signmag32")  # their numbers are not the bits as they stand
_BCD, _SIGNMAG, _FLOATS = ("bcd16", "bcd32"), ("signmag16", "signmag32"), ("float32", "float64")


def words_of(kind: Type) -> int:
    """Registers of a type; 0 for a string, which says it itself."""
    return _WORDS.get(kind, 0)


def raw_range(kind: Type, bits: tuple[int, int] | None = None, *, signed: bool = False) -> tuple[int, int] | None:
    """Smallest and largest raw number that a type, or a bit field of it, can give; None for floats and text.

    Args:
        signed: the bits are two's complement although the type is not.
    """
    if kind in _FLOATS or kind == "string":
        return None
    if kind in _BCD:
        return 0, 10 ** (4 * _WORDS[kind]) - 1
    count = 1 if kind == "bit" else bits[1] if bits is not None else 16 * _WORDS[kind]
    half = 1 << (count - 1)
    if kind in _SIGNMAG:
        return 1 - half, half - 1
    return (-half, half - 1) if count > 1 and (signed or kind.startswith("int")) else (0, 2 * half - 1)


def sentinels(kind: Type, bits: tuple[int, int] | None, numbers: tuple[int | float, ...]) -> frozenset[float]:
    """Raw values that mean "no value", as they are compared: the bits as they stand, before sign and digits.

    A number may be written as those bits (0x8000) or as what they would be read as (-32768, the digits 9999 of a BCD).

    Raises:
        ValueError: a number that can never stand there.
    """
    if kind == "float32":
        if any(abs(number) > MAX_FLOAT32 for number in numbers):
            raise ValueError(f"no float32 is beyond {MAX_FLOAT32:g}")
        return frozenset(_FLOAT32.unpack(_FLOAT32.pack(number))[0] for number in numbers)
    if kind == "float64":
        return frozenset(numbers)
    count = 1 if kind == "bit" else bits[1] if bits is not None else 16 * words_of(kind)
    return frozenset(_pattern(kind, count, number) for number in numbers)


def _pattern(kind: Type, count: int, number: float) -> int:
    raw = int(number)
    if raw != number or raw >= 1 << count:
        raise ValueError(f"{number:g} cannot stand in {count} bits")
    if kind in _BCD and 0 <= raw < 10 ** (count // 4):
        return int(str(raw), 16)
    if raw >= 0:
        return raw
    if kind in _SIGNMAG and -raw < 1 << (count - 1):
        return (1 << (count - 1)) - raw
    if kind in _BCD or kind in _SIGNMAG or raw < -(1 << (count - 1)):
        raise ValueError(f"{number:g} cannot stand in {count} bits of {kind}")
    return raw + (1 << count)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one value stands in its registers. value = raw * scale + offset.

    Attributes:
        words: registers it takes (a bit table: bits, always 1).
        word_order: big = the register with the lowest address holds the most significant part.
        byte_order: within a register; Modbus says big, some devices do not.
        bits: (lowest bit, number of bits) of a bitfield within an integer; that of a signed type is two's complement.
        enum: raw integer -> text.
        invalid: raw values that mean "no value" (see `sentinels`); NaN always is one.
        signed: the bits are two's complement although the type is not.
        divisor: 1/scale where that is a whole number: 3 / 10 is 0.3, 3 * 0.1 is not.
        plain: a float that is the value as it stands, if it is finite.
        whole: scale and offset as integers, where they are.
        none: `invalid` as it is compared.
        sign: the sign bit of a two's complement bit field; 0 without one.
        texts: `enum` as it is looked up.
    """

    type: Type
    words: int = 0
    word_order: Order = "big"
    byte_order: Order = "big"
    bits: tuple[int, int] | None = None
    scale: float = 1.0
    offset: float = 0.0
    enum: tuple[tuple[int, str], ...] = ()
    invalid: tuple[int | float, ...] = ()
    signed: bool = False
    divisor: float = field(init=False, default=0.0)
    plain: bool = field(init=False, default=False)
    whole: tuple[int, int] | None = field(init=False, default=None)
    none: frozenset[float] = field(init=False, default=frozenset())
    sign: int = field(init=False, default=0)
    texts: Mapping[int, str] = field(init=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.words:
            object.__setattr__(self, "words", _WORDS.get(self.type, 1))
        inverse = 1 / self.scale if self.scale else 0.0
        if abs(inverse) > 1 and abs(inverse - round(inverse)) < 1e-9 * abs(inverse):
            object.__setattr__(self, "divisor", float(round(inverse)))
        if float(self.scale).is_integer() and float(self.offset).is_integer():
            object.__setattr__(self, "whole", (int(self.scale), int(self.offset)))  # an integer stays one
        object.__setattr__(self, "none", self._none())
        object.__setattr__(self, "texts", dict(self.enum))
        if self.bits is not None and self.bits[1] > 1 and (self.signed or self.type.startswith("int")):
            object.__setattr__(self, "sign", 1 << (self.bits[1] - 1))
        unscaled = self.scale == 1 and not (self.offset or self.enum or self.bits)
        object.__setattr__(self, "plain", self.type in _FLOATS and unscaled and not self.invalid)

    def _none(self) -> frozenset[float]:
        """Sentinels in the form of what they are compared with."""
        found = sentinels(self.type, self.bits, self.invalid)
        if self.type == "float32":
            return frozenset(map(shortest, found))
        half = 1 << (16 * self.words - 1)
        if self.bits is None and self.type.startswith("int"):  # its numbers have their sign when they are unpacked
            return frozenset(number - 2 * half if number >= half else number for number in found)
        return found

    @property
    def code(self) -> str:
        """`struct` code of the big-endian registers; `Ns` where bytes must be put in order first."""
        if self.type == "string" or (self.type != "bit" and (self.word_order, self.byte_order) != ("big", "big")):
            return f"{2 * self.words}s"
        return _CODES[self.type]

    def _is_none(self, unpacked: int | float | bytes) -> bool:
        """Of a coded number or a text: its bits say that there is no value."""
        if self.type == "string":
            return not bytes(unpacked).strip(b"\xff")  # type: ignore[arg-type]  # a string is bytes; nobody wrote them
        return (int.from_bytes(self.ordered(unpacked), "big") if isinstance(unpacked, bytes) else unpacked) in self.none

    def raw(self, unpacked: int | float | bytes) -> int | float | str | None:
        """Number or text from what `code` unpacked; None for what is none: digits (BCD), characters."""
        number: int | float
        if isinstance(unpacked, bytes):
            ordered = self.ordered(unpacked)
            if self.type == "string":
                return _text(ordered.split(b"\0")[0])
            [number] = struct.unpack(">" + _CODES[self.type], ordered)
        else:
            number = unpacked
        if self.type == "float32":
            return shortest(float(number))
        if self.type in _BCD:
            digits = f"{number:x}"
            return int(digits) if digits.isdecimal() else None
        if self.type in _SIGNMAG:
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
            return None, Reason.NOT_AVAILABLE if self._is_none(unpacked) else Reason.BAD_FRAME
        if isinstance(raw, str):
            return (raw, Reason.NONE) if raw else (None, Reason.NOT_AVAILABLE)
        if raw != raw:  # NaN is how devices with floats say that there is no value
            return None, Reason.NOT_AVAILABLE
        if self.bits is not None:
            raw = int(raw) >> self.bits[0] & (1 << self.bits[1]) - 1
            if raw in self.none:
                return None, Reason.NOT_AVAILABLE
            raw = (raw ^ self.sign) - self.sign
        elif self.none and (self._is_none(unpacked) if self.type in _CODED else raw in self.none):
            return None, Reason.NOT_AVAILABLE
        if self.texts:
            text = self.texts.get(int(raw)) if math.isfinite(raw) else None
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
        if self.type in _FLOATS:
            return exact
        if abs(exact - round(exact)) > 1e-6 * max(1.0, abs(exact)):
            raise ValueError(f"{value!r} is not a multiple of the step {self.scale:g}")
        return round(exact)

    def _packed(self, raw: float | int) -> bytes:
        if self.type in _BCD:
            if not 0 <= raw < 10 ** (4 * self.words):
                raise ValueError(f"{raw} does not fit {self.type}")
            raw = int(str(raw), 16)
        elif self.type in _SIGNMAG:
            sign = 1 << (16 * self.words - 1)
            if abs(raw) >= sign:
                raise ValueError(f"{raw} does not fit {self.type}")
            raw = sign - int(raw) if raw < 0 else raw
        try:
            return struct.pack(">" + _CODES[self.type], raw)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{raw} does not fit {self.type}") from error


def _text(data: bytes) -> str | None:
    """Text as devices store it (ASCII, some UTF-8), padding taken off; None when these bytes are no text that can be read."""
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None
