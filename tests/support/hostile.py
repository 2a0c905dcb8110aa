"""What comes in from outside at its worst, for property tests of every door: strategies and the plain lists behind them."""

import enum
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

# Texts that break who trusts them: half surrogate pairs, NUL, controls, bidi, a BOM, one that is only long.
TEXTS = (
    "",
    "\ud83d",
    "\udc80",
    "a\udfffb",
    "\0",
    "a\0b",
    "\x1b[2J",
    "\u202egnp.exe",
    "\ufeff",
    "\r\nX: y",
    "é" * 300,
    "x" * 10_000,
    "x" * 1_000_000,
    "NaN",
    "-Infinity",
    "1e999",
    "0x10",
    "١٢٣",
    "__class__",
)

# Integers at and beyond what 32, 53, 64 bits and a float can say.
INTEGERS = tuple(
    sign * (bound + step)
    for bound in (0, 2**31, 2**32, 2**53, 2**63, 2**64, 10**308, 10**400)
    for step in (-1, 0, 1)
    for sign in (1, -1)
)

# Floats that are none, denormal, absurd, or integers in disguise.
FLOATS = (
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    5e-324,
    -2.4e-41,
    1e-30,
    1e30,
    1e300,
    -1.7976931348623157e308,
    3.0,
    20.7999992371,
    2.0**53,
    2.0**63,
    2.0**64,
)


class _Int(enum.IntEnum):
    """An int by inheritance only."""

    ONE = 1


class _Str(enum.StrEnum):
    """A str by inheritance only."""

    ON = "on"


class _Float(float):
    """A float by inheritance only, as numpy's are."""


class _Raises:
    """A value that raises at whatever is asked of it, but for hash and repr, which tests need."""

    def _no(self, *_: object) -> Any:
        raise RuntimeError("asked")

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = _no
    __float__ = __int__ = __index__ = __str__ = _no
    __hash__ = object.__hash__


RAISES: Any = _Raises()

# Objects a careless parser hands over in place of float, int, bool or str.
OBJECTS: tuple[Any, ...] = (
    _Int.ONE,
    _Str.ON,
    _Float(21.5),
    _Float(math.nan),
    Decimal("21.50"),
    Decimal("sNaN"),
    Fraction(1, 3),
    1j,
    b"21.5",
    bytearray(b"1"),
    [],
    [1],
    {},
    {"a": 1},
    {1},
    object(),
    float,
    RAISES,
)

# Aware, naive, and so near the ends of the calendar that a change of zone or a sum overflows.
DATES = (
    datetime.min,
    datetime.max,
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-23, minutes=-59))),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2007, 1, 1, tzinfo=UTC),
    datetime(2040, 1, 1, tzinfo=UTC),
    datetime(2026, 6, 1, 12, 0),  # naive
)

# The same as senders spell them, and spellings that look like times.
DATE_TEXTS = (
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-23:59",
    "9999-12-31T23:59:60Z",
    "1970-01-01T00:00:00Z",
    "2040-01-01T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "2026-06-01T12:00:00",
    "2026-06-01T12:00:00.123456789123456789Z",
    "2026-06-01T12:00:00+99:99",
    "2026-W23-1",
    "+002026-06-01T12:00:00Z",
    "\ud83d",
    "",
)


def texts(*, max_size: int = 40) -> st.SearchStrategy[str]:
    """Any text, half surrogate pairs and NUL included."""
    letters = st.characters(codec=None, exclude_categories=())
    return st.one_of(st.sampled_from(TEXTS), st.text(letters, max_size=max_size))


def integers() -> st.SearchStrategy[int]:
    """Integers of any size, those at the edges often."""
    return st.one_of(st.sampled_from(INTEGERS), st.integers(), st.integers(-300, 300))


def floats() -> st.SearchStrategy[float]:
    """All floats, NaN, infinities and denormals included."""
    return st.one_of(st.sampled_from(FLOATS), st.floats(allow_subnormal=True))


def scalars() -> st.SearchStrategy[Any]:
    """What JSON can say in one place."""
    return st.one_of(st.none(), st.booleans(), integers(), floats(), texts())


def values() -> st.SearchStrategy[Any]:
    """Whatever a driver may take for a value, things that are none included."""
    return st.one_of(scalars(), st.sampled_from(OBJECTS))


def json_trees(*, max_leaves: int = 20) -> st.SearchStrategy[Any]:
    """Objects and lists of hostile scalars under hostile keys."""
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts(max_size=8), inner, max_size=4)),
        max_leaves=max_leaves,
    )


def dates() -> st.SearchStrategy[datetime]:
    """Aware and naive times over the whole calendar, in any zone."""
    zones = st.one_of(st.none(), st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))))
    return st.one_of(st.sampled_from(DATES), st.datetimes(timezones=zones))


def date_texts() -> st.SearchStrategy[str]:
    """Times as senders spell them, right and wrong."""
    return st.one_of(st.sampled_from(DATE_TEXTS), dates().map(datetime.isoformat))


def nested(depth: int, leaf: Any = 1, *, key: str | None = None) -> Any:
    """`leaf` in so many lists, or in so many objects under `key`."""
    tree = leaf
    for _ in range(depth):
        tree = [tree] if key is None else {key: tree}
    return tree


def replaced(tree: Any, by: Iterable[Any]) -> Iterable[Any]:
    """Copies of a JSON tree, each with one place (a scalar, a list or an object) replaced by one of `by`, or left out."""
    by = tuple(by)
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield {other: its for other, its in tree.items() if other != key}
            yield from ({**tree, key: new} for new in (*by, *replaced(value, by)))
    elif isinstance(tree, list):
        for n, value in enumerate(tree):
            yield from ([*tree[:n], new, *tree[n + 1 :]] for new in (*by, *replaced(value, by)))
