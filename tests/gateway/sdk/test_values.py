"""The one conversion of foreign values, and foreign texts as they may be shown."""

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.values import MAX_TEXT_CHARACTERS, Kind, told, value_of
from tests.support import hostile

KINDS: tuple[Kind, ...] = ("number", "integer", "boolean", "text")
EXACT: dict[Kind, tuple[type, ...]] = {"number": (float, int), "integer": (int,), "boolean": (bool,), "text": (str,)}


@pytest.mark.parametrize(
    ("raw", "number", "integer", "boolean", "text"),
    [
        (3, 3, 3, None, None),
        (3.0, 3.0, 3, None, None),
        (-0.0, -0.0, 0, False, None),
        (3.5, 3.5, None, None, None),
        (0, 0, 0, False, None),
        (1, 1, 1, True, None),
        (1.0, 1.0, 1, True, None),
        (2, 2, 2, None, None),
        (True, None, None, True, None),
        ("21.50", 21.5, None, None, "21.50"),
        ("-7", -7, -7, None, "-7"),
        ("3.0", 3.0, 3, None, "3.0"),
        ("1", 1, 1, None, "1"),
        ("1e5", None, None, None, "1e5"),
        ("21,5", None, None, None, "21,5"),
        ("NaN", None, None, None, "NaN"),
        ("٣", None, None, None, "٣"),
        ("", None, None, None, ""),
        ("true", None, None, None, "true"),
        (math.inf, math.inf, None, None, None),
        (None, None, None, None, None),
        (Decimal("21.5"), None, None, None, None),
        (b"21.5", None, None, None, None),
        ("\ud83d", None, None, None, None),
        ("a\0", None, None, None, None),
        ("x" * (MAX_TEXT_CHARACTERS + 1), None, None, None, None),
    ],
)
def test_a_foreign_value_is_one_of_its_kind_or_none(
    raw: object, number: object, integer: object, boolean: object, text: object
) -> None:
    for kind, expected in zip(KINDS, (number, integer, boolean, text), strict=True):
        found = value_of(kind, raw)
        assert (found, type(found)) == (expected, type(expected)), kind


@given(st.sampled_from(KINDS), hostile.values())
def test_what_comes_out_is_exactly_of_its_kind(kind: Kind, raw: Any) -> None:
    found = value_of(kind, raw)

    assert found is None or type(found) in EXACT[kind]
    if isinstance(found, str):
        found.encode()


def test_a_value_that_only_inherits_becomes_the_plain_one() -> None:
    one, on, float64 = hostile.OBJECTS[:3]

    assert [type(value_of("integer", one)), type(value_of("text", on)), type(value_of("number", float64))] == [
        int,
        str,
        float,
    ]


@given(st.one_of(hostile.texts(), hostile.values()))
def test_what_is_told_can_be_encoded_and_is_short(foreign: Any) -> None:
    shown = told(foreign, 50)

    assert len(shown) <= 50
    shown.encode()
    assert not set(shown) & {"\0", "\n", "\x1b", "\u202e"}
