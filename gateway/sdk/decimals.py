"""The decimal that was meant by a binary float: a sensor that says 20.8 did not measure 20.799999237060547. Pure."""

import math
import struct

_FLOAT32 = struct.Struct(">f")
_FLOAT32_MAX = 3.4e38
_TELLING = 5  # digits fewer: only one number in 100,000 is by chance a float32 so much shorter


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: for a number that is known to be one."""
    if value.is_integer() or not math.isfinite(value):
        return value
    packed = _FLOAT32.pack(value)
    short = float(f"{value:.6g}")  # enough for what most sensors say
    if _FLOAT32.pack(short) == packed:
        return short
    for digits in ("7", "8"):
        short = float(format(value, f".{digits}g"))
        if _FLOAT32.pack(short) == packed:
            return short
    return value


def decimal_meant(value: float) -> float:
    """The decimal behind a number of unknown making, as in a foreign program's result.

    Two kinds of noise are taken away. A float32 that was printed wide, exactly or rounded, where its shortest decimal is
    at least five digits shorter: 20.7999992371 is 20.8; that moves a number by less than half a step of a float32. And
    what arithmetic left behind the 13th digit, where at most 10 digits are before it (behind the 15th: 12):
    20.700000000000003 is 20.7; that moves it by less than 5e-13 of itself. Any other number stays as it is, however many
    digits it has.
    """
    if not math.isfinite(value) or value.is_integer():
        return value
    digits = _digits(value)
    if digits <= _TELLING:
        return value
    if abs(value) < _FLOAT32_MAX:
        single = _FLOAT32.unpack(_FLOAT32.pack(value))[0]
        if float(format(single, f".{digits}g")) == value:  # as somebody printed a float32
            short = shortest(single)
            if digits - _digits(short) >= _TELLING:
                return short
    for kept, most in ((15, 12), (13, 10)):
        short = float(format(value, f".{kept}g"))
        if _digits(short) <= min(most, digits - 2):
            return short
    return value


def _digits(value: float) -> int:
    """Significant digits of the shortest decimal that is this float."""
    mantissa = repr(value).partition("e")[0].lstrip("-")
    return len(mantissa.replace(".", "").lstrip("0").rstrip("0"))
