"""The closed list and the unit table, against the published table of UN/CEFACT codes."""

import csv
import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.quantities import conversion, gas_conversion, plausible_range, quantities, unit_fits, units
from tests.support.ngsi import ROOT

# Where the published factor is wrong: mm/h and µSv/h have one zero too many (1/3600 = 2.78e-4).
WRONG_IN_TABLE = {"H67", "P72"}
# A level, not a multiple of the neper; a factor printed with few digits.
NOT_A_FACTOR = {"2N", "DBM", "Q30", "RPM"}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@cache
def published() -> dict[str, dict[str, str]]:
    with (ROOT / "tests" / "data" / "ngsi" / "units-of-measure.csv").open(encoding="utf-8") as file:
        return {row["CommonCode"]: row for row in csv.DictReader(file)}


def factor(text: str) -> float:
    """`10⁻³ kg/m³` -> 0.001; `3,6 x 10⁶ J` -> 3.6e6; a unit alone -> 1."""
    text = text.replace("\xa0", " ").replace("×", "x").strip()
    if text.startswith("5/9"):
        return 5 / 9
    power = re.search(r"10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    before = re.match(r"[\d ,.]+", text[: power.start()] if power else text)
    mantissa = float(before[0].replace(" ", "").replace(",", ".")) if before and before[0].strip() else 1.0
    return mantissa * 10.0 ** int(power[1].translate(_SUPERSCRIPT) if power else "0")


@pytest.mark.parametrize("code", sorted(units()))
def test_every_unit_is_in_the_published_table_and_not_deleted(code: str) -> None:
    row = published()[code]
    assert row["Status"] not in ("X", "D")
    assert row["Name"].replace("\xa0", " ").strip() == units()[code].name


@pytest.mark.parametrize("code", sorted(set(units()) - WRONG_IN_TABLE - NOT_A_FACTOR))
def test_scale_agrees_with_the_published_factor(code: str) -> None:
    text = published()[code]["ConversionFactor"]
    if text:
        assert units()[code].scale == pytest.approx(factor(text), rel=3e-6), text


@pytest.mark.parametrize("code", ["HPA", "LX", "KTM"])
def test_codes_that_look_right_but_are_not_are_refused(code: str) -> None:
    assert code not in units()
    with pytest.raises(ValueError, match=code):
        conversion(code, "PAL")


@pytest.mark.parametrize(
    ("value", "from_code", "to_code", "expected"),
    [
        (100.0, "CEL", "FAH", 212.0),
        (0.0, "KEL", "CEL", -273.15),
        (1013.25, "A97", "PAL", 101325.0),
        (54.0, "P1", "C62", 0.54),
        (1200.0, "G42", "D10", 0.12),
        (36.0, "KMH", "MTS", 10.0),
        (1.0, "MQH", "E32", 1000.0),
        (1.0, "KWH", "3B", 3.6),
        (7.2, "H67", "MTS", 2e-6),
    ],
)
def test_conversions_known_by_heart(value: float, from_code: str, to_code: str, expected: float) -> None:
    scale, offset = conversion(from_code, to_code)
    assert value * scale + offset == pytest.approx(expected)


@pytest.mark.parametrize(
    ("one", "other"), [("WTT", "D46"), ("KWH", "K3"), ("NTU", "FNU"), ("2N", "DBM"), ("CEL", "P1")]
)
def test_what_must_not_be_mixed_is_refused_with_both_dimensions(one: str, other: str) -> None:
    with pytest.raises(
        ValueError, match=f"unit of {re.escape(units()[one].dimension)}.*{re.escape(units()[other].dimension)}"
    ):
        conversion(one, other)


@given(st.sampled_from(sorted(units())), st.floats(-1e6, 1e6), st.data())
def test_there_and_back_gives_the_same_value(code: str, value: float, data: st.DataObject) -> None:
    alike = sorted(c for c, u in units().items() if u.dimension == units()[code].dimension)
    other = data.draw(st.sampled_from(alike))
    scale, offset = conversion(code, other)
    back_scale, back_offset = conversion(other, code)
    span = abs(units()[code].offset / units()[code].scale) + abs(value) + 1.0
    assert (value * scale + offset) * back_scale + back_offset == pytest.approx(value, abs=1e-9 * span)


@pytest.mark.parametrize(("gas", "per_ppb"), [("no2", 1.91), ("o3", 2.00), ("no", 1.25), ("so2", 2.66)])
def test_ppb_of_a_gas_becomes_micrograms_at_20_degrees_and_1013_hectopascal(gas: str, per_ppb: float) -> None:
    scale, offset = gas_conversion("61", "GQ", quantities()[gas].molar_mass)
    assert offset == 0
    assert scale == pytest.approx(per_ppb, rel=0.005)


def test_a_warmer_gas_weighs_less() -> None:
    mass = quantities()["no2"].molar_mass
    cold, _ = gas_conversion("61", "GQ", mass, temperature_k=273.15)
    warm, _ = gas_conversion("61", "GQ", mass, temperature_k=298.15)
    assert warm / cold == pytest.approx(273.15 / 298.15)


@pytest.mark.parametrize("name", sorted(quantities()))
def test_a_quantity_is_complete(name: str) -> None:
    quantity = quantities()[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert quantity.meaning
    if quantity.kind in ("text", "boolean"):
        assert (quantity.unit, quantity.range) == ("", None)
    else:
        assert units()[quantity.unit].dimension == quantity.dimension
        assert quantity.range is not None
        assert quantity.range[0] < quantity.range[1]
    if quantity.molar_mass:
        assert quantity.dimension in ("one", "mass concentration")


def test_the_plausible_range_follows_the_unit_of_the_point() -> None:
    assert plausible_range(quantities()["humidity"], "C62") == pytest.approx((0.0, 1.0))
    assert plausible_range(quantities()["air_temperature"], "FAH") == pytest.approx((-76.0, 185.0))
    low, high = plausible_range(quantities()["no2"], "61") or (0, 0)
    assert (low, high) == pytest.approx((0.0, 26150), rel=1e-3)
    assert plausible_range(quantities()["door_open"], "") is None
    with pytest.raises(ValueError, match="humidity"):
        plausible_range(quantities()["humidity"], "CEL")


def test_only_gases_may_be_fractions_and_masses_alike() -> None:
    assert unit_fits(quantities()["no2"], "61")
    assert not unit_fits(quantities()["pm25"], "61")
    assert not unit_fits(quantities()["no2"], "CEL")
    assert not unit_fits(quantities()["text"], "C62")
    assert not unit_fits(quantities()["no2"], "")
