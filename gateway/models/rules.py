"""What a model allows, checked value by value against the catalogue: the rules behind every "not allowed"."""

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

from gateway.models.catalogue import AttributeSpec

MAX_TEXT_CHARACTERS = 2048
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")  # RFC 3339, as the schemas' format asks
_DURATION = re.compile(r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)")
_NUMBERS = (float, int)  # by type(), because True is an int in Python


def instant_of(text: str) -> datetime | None:
    """The instant of an ISO 8601 text in UTC; None when it is none, or has no zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if time.tzinfo is None else time.astimezone(UTC)


def constant_fault(spec: AttributeSpec, value: Any) -> str:
    """Why the model does not allow this value; "" when it does."""
    if spec.alternatives:
        found_in = [constant_fault(one, value) for one in spec.alternatives]
        return "" if "" in found_in else found_in[-1]
    if isinstance(value, list) and (not spec.json or "array" in spec.json):
        return _list_fault(spec, value)
    if spec.enum and value not in spec.enum:
        return f"{value!r} is not one of {', '.join(map(str, spec.enum))}"
    found = _json_type(value)
    if spec.json and found not in spec.json and not (found == "integer" and "number" in spec.json):
        return f"{value!r} is {found}, the model wants {' or '.join(spec.json)}"
    if spec.format == "date-time" and not isinstance(value, str):
        return f"{value!r} is not a time"
    if isinstance(value, str):
        return text_fault(value) or _form_fault(spec, value)
    return _odd(value) or _outside(spec, value)


def _list_fault(spec: AttributeSpec, items: list[Any]) -> str:
    if len(items) < spec.fewest:
        return f"{len(items)} of them, at least {spec.fewest}"
    if spec.unique and any(item in items[:n] for n, item in enumerate(items)):
        return "one of them stands there twice"
    faults = (constant_fault(spec.items, item) if spec.items else _odd(item) for item in items)
    return next(filter(None, faults), "")


def _form_fault(spec: AttributeSpec, text: str) -> str:
    shortest, longest = spec.lengths
    if len(text) < shortest or (longest is not None and len(text) > longest):
        return f"{text!r} has {len(text)} characters, {shortest} to {'any number' if longest is None else longest} are allowed"
    if spec.pattern and not re.search(spec.pattern, text):
        return f"{text!r} has not the form {spec.pattern}"
    said = _FORMS.get(spec.format)
    if said is not None and not said[1](text):
        return f"{text!r} is not {said[0]}"
    return ""


def _is_date(text: str) -> bool:
    try:
        return len(text) == 10 and bool(date.fromisoformat(text))
    except ValueError:
        return False


_FORMS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "date-time": (
        "a time with its zone, as in 2026-06-01T12:00:00Z",
        lambda text: bool(_TIME.fullmatch(text) and instant_of(text)),
    ),
    "date": ("a date, as in 2026-06-01", _is_date),
    "time": (
        "a time of day with its zone, as in 12:00:00Z",
        lambda text: bool(_TIME.fullmatch(f"2026-06-01T{text}") and instant_of(f"2026-06-01T{text}")),
    ),
    "duration": ("a duration, as in PT15M", lambda text: bool(_DURATION.fullmatch(text))),
    "uri": ("a URI", lambda text: is_uri(text)),
}


def _odd(value: Any) -> str:
    """What no dialect can carry."""
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is not a number"
    if isinstance(value, dict):
        return next(filter(None, (_odd(part) for pair in value.items() for part in pair)), "")
    if isinstance(value, list):
        return next(filter(None, map(_odd, value)), "")
    return ""


def _outside(spec: AttributeSpec, value: Any) -> str:
    if type(value) not in _NUMBERS:
        return ""
    if spec.minimum is not None and value < spec.minimum:
        return f"{value} is below {spec.minimum}"
    if spec.maximum is not None and value > spec.maximum:
        return f"{value} is above {spec.maximum}"
    return ""


def text_fault(text: str) -> str:
    """Why a text cannot be sent: NUL and other control characters, lone surrogates, too long; "" when it can."""
    if _CONTROL.search(text):
        return "the text has control characters"
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"the text has {len(text)} characters, at most {MAX_TEXT_CHARACTERS}"
    return ""


def is_uri(text: str) -> bool:
    """Whether a text can be the target of a relationship."""
    return bool(_URI.fullmatch(text)) and len(text) <= MAX_TEXT_CHARACTERS


def allows(spec: AttributeSpec) -> str:
    """What the model allows, in words."""
    if spec.enum:
        return f"one of {', '.join(map(str, spec.enum))}"
    if spec.minimum is None and spec.maximum is None:
        return "a finite number" if {"number", "integer"} & set(spec.json) else "a text"
    low = (
        "-∞"
        if spec.minimum is None
        else f"{spec.minimum:g}"
        if abs(spec.minimum) > 1e-300 or not spec.minimum
        else "above 0"
    )
    high = "∞" if spec.maximum is None else f"{spec.maximum:g}"
    return f"{low} to {high}"


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
