"""Foreign values and texts: what of them may become a value of a quantity, and how a foreign text may be shown. Pure."""

import re
from typing import Any, Literal

from gateway.sdk.reading import Value

Kind = Literal["number", "integer", "boolean", "text"]

MAX_TEXT_CHARACTERS = 512  # of a value
MAX_TOLD_CHARACTERS = 200  # of a remark, a reason, a name that somebody else chose

# As JSON, CSV and displays write a number; neither exponent nor comma, which mean different things to different senders.
_DECIMAL = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what neither UTF-8 nor PostgreSQL can hold
_UNSHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def value_of(kind: Kind, raw: Any) -> Value | None:
    """The one conversion of a foreign value into a value of this kind of quantity.

    JSON knows one kind of number, so 3.0 is an integer, 0 and 1 are flags, and a text that is nothing but a decimal
    number is that number. A flag is no number: what `true` would measure cannot be known. Not judged here: NaN, infinity
    and ranges.

    Returns:
        An exact float, int, bool or str; None when it is no value of this kind.
    """
    if kind == "text":
        return _text(raw)
    if kind == "boolean" and type(raw) is bool:
        return raw
    number = _number(raw)
    if number is None or kind == "number":
        return number
    if kind == "boolean":
        return bool(number) if number in (0, 1) and not isinstance(raw, str) else None
    return int(number) if isinstance(number, int) or number.is_integer() else None


def _number(raw: Any) -> float | int | None:
    """An exact float or int, also of what only inherits from them (an enum, numpy's float64)."""
    kind = type(raw)
    if kind is float or kind is int:
        return raw  # type: ignore[no-any-return]  # known by its exact type
    if kind is bool:
        return None
    if kind is str:
        return (float(raw) if "." in raw else int(raw)) if _DECIMAL.fullmatch(raw) else None
    if issubclass(kind, int):
        return int.__index__(raw)
    return float.__float__(raw) if issubclass(kind, float) else None


def _text(raw: Any) -> str | None:
    if not issubclass(type(raw), str):
        return None
    text = str.__str__(raw)  # exact, also of an enum
    return None if len(text) > MAX_TEXT_CHARACTERS or _NO_TEXT.search(text) else text


def told(foreign: Any, most: int = MAX_TOLD_CHARACTERS) -> str:
    """A foreign text as it may be shown, logged and stored: encodable, without control characters, bounded in length."""
    if not issubclass(type(foreign), str):
        return f"({type(foreign).__name__})"[:most]
    text = str.__str__(foreign)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)
