"""The decimal that was meant by a binary float."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.decimals import decimal_meant, shortest


def single(value: float) -> float:
    made: float = struct.unpack(">f", struct.pack(">f", value))[0]
    return made


@pytest.mark.parametrize(
    ("noisy", "meant"),
    [
        (20.799999237060547, 20.8),  # a float32, printed exactly
        (20.7999992371, 20.8),  # the same with 12 digits
        (-0.699999988079071, -0.7),
        (230.1999969482422, 230.2),
        (25.072504043579102, 25.072504),
        (20.700000000000003, 20.7),  # 207 x 0.1 in JavaScript
        (0.1 + 0.2, 0.3),
        (4051 * 0.01 - 40, 0.51),
        (12345678.901000001, 12345678.901),
        (0.0, 0.0),
        (-0.0, -0.0),
        (21.5, 21.5),
        (45.46420351, 45.46420351),
        (math.pi, math.pi),
        (100 / 3, 100 / 3),
        (2 / 3, 2 / 3),
        (25.0725040436, 25.0725040436),
        (123456789.12345679, 123456789.12345679),
        (5e-324, 5e-324),
        (1e300 / 3, 1e300 / 3),
        (math.inf, math.inf),
    ],
)
def test_noise_goes_and_digits_stay(noisy: float, meant: float) -> None:
    assert decimal_meant(noisy) == meant


@given(st.integers(-9_999_999, 9_999_999), st.integers(0, 6))
def test_a_decimal_of_seven_digits_comes_back_however_it_was_printed(digits: int, places: int) -> None:
    meant = digits / 10**places

    assert decimal_meant(meant) == meant
    assert shortest(single(meant)) == pytest.approx(meant, rel=6e-8)
    if abs(digits) < 1_000_000:  # what a float32 always holds
        assert decimal_meant(single(meant)) == meant
        printed = float(f"{single(meant):.12g}")
        if len(repr(printed)) > 12:  # not by chance shorter
            assert decimal_meant(printed) == meant
        assert shortest(single(meant)) == meant


@given(st.integers(-99_999, 99_999), st.sampled_from([0.1, 0.01, 0.001]), st.integers(0, 500))
def test_what_arithmetic_left_behind_goes(raw: int, step: float, offset: int) -> None:
    meant = round(raw * step - offset, 3)

    assert decimal_meant(raw * step - offset) == pytest.approx(meant, abs=1e-300 if meant else 1e-9)


@given(st.floats())
def test_a_number_moves_by_less_than_half_a_step_of_a_float32(value: float) -> None:
    made = decimal_meant(value)

    assert type(made) is float
    if math.isnan(value):
        assert math.isnan(made)
    else:
        assert made == value or abs(made - value) <= abs(value) * 2**-24 or abs(value) < 1e-37
        assert decimal_meant(made) == made


@given(st.integers(10**10, 10**11 - 1))
def test_a_decimal_of_eleven_digits_is_not_touched(digits: int) -> None:
    value = digits / 10**9

    assert abs(decimal_meant(value) - value) <= value * 2**-24
