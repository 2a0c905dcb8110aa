"""The closed list of quantities and the unit table, from quantities.yaml and units.yaml beside this module."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

import yaml

# Gas constant, J/(mol K), and the reference state of European air quality limits (2008/50/EC, annex VI C): 20 °C, 101.3 kPa.
GAS_CONSTANT = 8.314462618
REFERENCE_TEMPERATURE_K = 293.15
REFERENCE_PRESSURE_PA = 101300.0


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a point can measure.

    Attributes:
        dimension: of its units, as in the unit table; "" for text and flags.
        unit: canonical UN/CEFACT common code; "" for text and flags.
        range: plausible values in `unit`; outside lies a fault of the sensor. None for text and flags.
        personal: personal data by nature: hashed before it is logged, unless the template says otherwise.
        molar_mass: g/mol of a gas, whose points may also be a fraction (ppm, ppb) or a mass by volume; else 0.
    """

    name: str
    dimension: str
    unit: str
    range: tuple[float, float] | None
    meaning: str
    kind: Literal["number", "integer", "boolean", "text"] = "number"
    molar_mass: float = 0.0
    personal: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measure: SI value = value * scale + offset. `code` is the UN/CEFACT common code."""

    code: str
    symbol: str
    name: str
    dimension: str
    scale: float
    offset: float


def _read(name: str) -> dict[str, dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = (files("gateway.sdk") / name).read_text(encoding="utf-8")
    return {str(key): value for key, value in yaml.load(content, loader).items()}


@cache
def units() -> Mapping[str, Unit]:
    """The unit table by UN/CEFACT common code."""
    return MappingProxyType(
        {
            code: Unit(
                code,
                str(entry["symbol"]),
                entry["name"],
                entry["dimension"],
                float(entry.get("scale", 1.0)),
                float(entry.get("offset", 0.0)),
            )
            for code, entry in _read("units.yaml").items()
        }
    )


@cache
def quantities() -> Mapping[str, Quantity]:
    """The closed list by name."""
    return MappingProxyType({name: _quantity(name, entry) for name, entry in _read("quantities.yaml").items()})


def _quantity(name: str, entry: Mapping[str, Any]) -> Quantity:
    unit = str(entry.get("unit", ""))
    bounds = entry.get("range")
    return Quantity(
        name=name,
        dimension=units()[unit].dimension if unit else "",
        unit=unit,
        range=(float(bounds[0]), float(bounds[1])) if bounds else None,
        meaning=entry["meaning"],
        kind=entry.get("kind", "number"),
        molar_mass=float(entry.get("molar_mass", 0.0)),
        personal=bool(entry.get("personal", False)),
    )


@cache
def conversion(from_code: str, to_code: str) -> tuple[float, float]:
    """(scale, offset) with value_to = value * scale + offset.

    Raises:
        ValueError: a code is not in the unit table, or the dimensions differ.
    """
    source, target = _unit(from_code), _unit(to_code)
    if source is target:
        return 1.0, 0.0
    if source.dimension != target.dimension:
        raise ValueError(
            f"{from_code} ({source.name}) is a unit of {source.dimension}, {to_code} ({target.name}) of {target.dimension}"
        )
    return source.scale / target.scale, (source.offset - target.offset) / target.scale


def gas_conversion(
    from_code: str,
    to_code: str,
    molar_mass: float,
    *,
    temperature_k: float = REFERENCE_TEMPERATURE_K,
    pressure_pa: float = REFERENCE_PRESSURE_PA,
) -> tuple[float, float]:
    """As `conversion`, and between a fraction (ppm, ppb) and a mass by volume of an ideal gas.

    Args:
        molar_mass: g/mol.
        temperature_k, pressure_pa: the state for which the mass by volume is stated.

    Raises:
        ValueError: the units are neither of one dimension nor a fraction and a mass by volume.
    """
    source, target = _unit(from_code), _unit(to_code)
    # kg/m³ of the pure gas in that state: what a fraction of one weighs
    density = molar_mass / 1000 * pressure_pa / (GAS_CONSTANT * temperature_k)
    if (source.dimension, target.dimension) == ("one", "mass concentration"):
        return source.scale * density / target.scale, 0.0
    if (source.dimension, target.dimension) == ("mass concentration", "one"):
        return source.scale / density / target.scale, 0.0
    return conversion(from_code, to_code)


def unit_fits(quantity: Quantity, code: str) -> bool:
    """Whether a point of this quantity may be handed over in this unit."""
    if not quantity.unit or not code:
        return quantity.unit == code
    unit = units().get(code)
    if unit is None:
        return False
    return unit.dimension == quantity.dimension or (
        quantity.molar_mass > 0 and unit.dimension in ("one", "mass concentration")
    )


def plausible_range(quantity: Quantity, code: str) -> tuple[float, float] | None:
    """The quantity's plausible range in the unit of a point; None for text and flags.

    Raises:
        ValueError: the unit does not fit the quantity.
    """
    if quantity.range is None:
        return None
    if not unit_fits(quantity, code):
        raise ValueError(f"{code or 'no unit'} is not a unit of {quantity.name} ({quantity.dimension})")
    scale, offset = gas_conversion(quantity.unit, code, quantity.molar_mass or 1.0)
    low, high = quantity.range
    return low * scale + offset, high * scale + offset


def _unit(code: str) -> Unit:
    unit = units().get(code)
    if unit is None:
        raise ValueError(f"{code!r} is not a code of the unit table")
    return unit
