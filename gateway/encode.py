"""JSON of what holds foreign values: a status, rows of the log, entities. What JSON cannot say is mended, never raised. Pure.

Intake lets no such value in; an older version's log, a broker's answer or a decoder's error may still hold one.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.sdk.values import told

MAX_DEPTH = 100
_HALF = re.compile("[\ud800-\udfff]")


def to_json(value: Any, option: int = 0) -> bytes:
    """The bytes of a JSON text; `option` as in orjson."""
    try:
        return orjson.dumps(value, option=option)
    except (TypeError, ValueError):
        return orjson.dumps(mended(value), option=option)


def mended(value: Any, room: int = MAX_DEPTH) -> Any:
    """The same with half surrogate pairs replaced, integers beyond 64 bits as floats, and words for what is no JSON."""
    if isinstance(value, str):
        return _HALF.sub("\N{REPLACEMENT CHARACTER}", value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _as_float(value)
    if room and isinstance(value, Mapping):
        return {mended(str(key)): mended(inner, room - 1) for key, inner in value.items()}
    if room and isinstance(value, list | tuple | set | frozenset):
        return [mended(inner, room - 1) for inner in value]
    return told(value)


def _as_float(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None
