"""From a point's value to an attribute's: which steps there are, and what makes them impossible, found at load."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.harmonise.units import Step, convert, decimals
from gateway.models.catalogue import AttributeSpec, Kind
from gateway.models.rules import allows, constant_fault, instant_of, is_uri, text_fault
from gateway.sdk.quantities import Quantity, units
from gateway.sdk.reading import Point, Value
from gateway.sdk.template import AttributeMapping, GasState

Conversion = Callable[[Value], Any]  # point value -> attribute value, None when the model does not allow it

_NUMBERS = (float, int)  # by type(), because True is an int in Python


class Mismatch(Exception):
    """A point that cannot become this attribute, or a constant that the model does not allow."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        self.code, self.message, self.remedy = code, message, remedy
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Converted:
    """The step found.

    Attributes:
        unit: UN/CEFACT code sent with the value; "" = none.
        allows: what the model allows, for the reason when a value is left out.
    """

    convert: Conversion
    unit: str = ""
    allows: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """What the mapping says of one attribute, with the point that feeds it.

    Attributes:
        bounds: plausible range in the point's unit as the template declares it; None = the quantity's.
        gain, shift: calibration of the raw value, in the point's unit.
    """

    mapping: AttributeMapping
    point: Point
    quantity: Quantity
    bounds: tuple[float, float] | None
    gain: float = 1.0
    shift: float = 0.0


def conversion(spec: AttributeSpec, kind: Kind, source: Source) -> Converted:
    """The step from this point to this attribute.

    Raises:
        Mismatch: there is none.
    """
    if source.mapping.translate:
        return _translation(spec, source)
    if source.mapping.pattern:
        return _text(spec, kind, source)
    if source.quantity.kind == "text":
        return _instant() if spec.format == "date-time" else _text(spec, kind, source)
    if source.quantity.kind == "boolean":
        return _flag(spec, source)
    return _number(spec, kind, source)


# numbers


def _number(spec: AttributeSpec, kind: Kind, source: Source) -> Converted:
    name = source.point.name
    if spec.json and not {"number", "integer"} & set(spec.json):
        if source.quantity.kind == "integer" and "string" in spec.json and not spec.enum:
            return Converted(_digits, "", "a whole number as text")
        remedy = "translate: {…} gives a text for each value" if "string" in spec.json else ""
        raise Mismatch("mapping-value", f"{name} is a number, {spec.name} wants {' or '.join(spec.json)}", remedy)
    scale, offset, unit = _linear(spec, source)
    turn = (
        kind != "geo"
        and unit in units()
        and units()[unit].dimension == "angle"
        and (spec.minimum, spec.maximum) in _TURNS
    )
    step = Step(
        scale=scale,
        offset=offset,
        digits=decimals(scale) if (scale, offset) != (1.0, 0.0) else None,
        whole=bool(spec.json) and "number" not in spec.json,
        wrap_from=spec.minimum if turn else None,
        low=Step().low if spec.minimum is None else spec.minimum,
        high=Step().high if spec.maximum is None else spec.maximum,
    )
    _check_range(spec, step, source)
    shown = "" if source.quantity.kind == "integer" and unit == "C62" else unit
    return Converted(_stepped(step), shown, allows(spec))


_TURNS = ((-180, 180), (0, 360))


def _linear(spec: AttributeSpec, source: Source) -> tuple[float, float, str]:
    """(scale, offset, unit code) from the raw value, calibration and gain included."""
    mapping, point = source.mapping, source.point
    target = mapping.unit or spec.unit or point.unit
    gain, shift = source.gain, source.shift
    at = mapping.at or GasState()
    gained = (mapping.gain, mapping.offset) != (1.0, 0.0)
    if spec.unit and target in units() and not source.quantity.molar_mass and not _alike(target, spec.unit):
        is_, wanted = units()[target].dimension, units()[spec.unit].dimension
        raise Mismatch(
            "mapping-unit", f"{spec.name} is a {wanted} ({spec.unit}), not a {is_} ({target})", f"unit: {spec.unit}"
        )
    if gained and mapping.unit and mapping.unit in units() and not _alike(mapping.unit, point.unit):
        # a gain with a unit of another dimension makes that unit: the volume of one pulse
        return gain * mapping.gain, shift * mapping.gain + mapping.offset, mapping.unit
    if gained:
        gain, shift = gain * mapping.gain, shift * mapping.gain + mapping.offset
    state = {"temperature_k": at.temperature + 273.15, "pressure_pa": at.pressure * 100}
    try:
        scale, offset = convert(source.quantity, point.unit, target, gain=gain, shift=shift, **state)
    except ValueError as error:
        remedy = "" if mapping.unit else f"{spec.name} is sent in {target}"
        raise Mismatch("mapping-unit", f"{point.name} cannot become {spec.name}: {error}", remedy) from None
    return scale, offset, target


def _alike(one: str, other: str) -> bool:
    return one in units() and other in units() and units()[one].dimension == units()[other].dimension


def _check_range(spec: AttributeSpec, step: Step, source: Source) -> None:
    """A point whose plausible values lie wholly outside what the model allows can never be sent."""
    declared = source.bounds
    bounds = declared or source.quantity.range
    if bounds is None or step.wrap_from is not None or (declared is None and source.point.unit != source.quantity.unit):
        return
    low, high = sorted(bound * step.scale + step.offset for bound in bounds)
    if high < step.low or low > step.high:
        message = f"{source.point.name} gives {low:g} to {high:g}, {spec.name} allows {allows(spec)}"
        raise Mismatch("mapping-range", message, "check unit and gain")


def _stepped(step: Step) -> Conversion:
    low, high = step.low, step.high
    if not step.changes:

        def bounded(value: Value) -> Any:
            return value if type(value) in _NUMBERS and low <= value <= high else None  # type: ignore[operator]

        return bounded

    def stepped(value: Value) -> Any:
        return step.apply(value) if type(value) in _NUMBERS else None  # type: ignore[arg-type]

    return stepped


def _digits(value: Value) -> Any:
    return str(value) if type(value) is int else None


# flags, texts, instants


def _flag(spec: AttributeSpec, source: Source) -> Converted:
    if not spec.json or "boolean" in spec.json:
        return Converted(lambda value: value if type(value) is bool else None, "", "true or false")
    if {"number", "integer"} & set(spec.json) and set(spec.enum) <= {0, 1}:
        return Converted(lambda value: int(value) if type(value) is bool else None, "", "true or false")
    values = ", ".join(map(str, spec.enum or spec.json))
    remedy = f"say which: {{point: {source.point.name}, translate: {{true: …, false: …}}}}"
    raise Mismatch("mapping-value", f"{source.point.name} is true or false, {spec.name} wants {values}", remedy)


def _text(spec: AttributeSpec, kind: Kind, source: Source) -> Converted:
    if spec.json and kind != "relationship" and not {"string", "array"} & set(spec.json):
        wanted = " or ".join(spec.json)
        raise Mismatch("mapping-value", f"a text cannot become {spec.name}, which wants {wanted}")
    listed = "array" in spec.json and "string" not in spec.json
    inner = spec.items if listed and spec.items else spec
    pattern, reference = source.mapping.pattern, kind == "relationship"

    def text(value: Value) -> Any:
        out = pattern.replace("{value}", str(value)) if pattern else value
        if not isinstance(out, str):
            return None
        if text_fault(out) or not is_uri(out) if reference else constant_fault(inner, out):
            return None
        return [out] if listed else out

    return Converted(text, "", "the id of an entity" if reference else allows(inner))


def _instant() -> Converted:
    return Converted(lambda value: instant_of(str(value)), "", "a time with its zone")


def _translation(spec: AttributeSpec, source: Source) -> Converted:
    table = {key: checked_constant(spec, value) for key, value in source.mapping.translate.items()}
    if source.quantity.kind == "boolean" and not set(table) <= {"true", "false"}:
        odd = ", ".join(sorted(set(table) - {"true", "false"}))
        raise Mismatch(
            "mapping-value", f"{source.point.name} is true or false, never {odd}", "translate: {true: …, false: …}"
        )

    def translate(value: Value) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return table.get(str(value).lower() if isinstance(value, bool) else str(value))

    return Converted(translate, source.mapping.unit, f"translated are {', '.join(table)}")


# constants


def checked_constant(spec: AttributeSpec, value: Any) -> Any:
    """The constant as the model wants it. Raises Mismatch."""
    if spec.enum and value not in spec.enum and str(value) in spec.enum:
        value = str(value)  # YAML reads sonometerClass: 1 as a number
    if "array" in spec.json and not isinstance(value, list) and "string" not in spec.json:
        value = [value]
    fault = constant_fault(spec, value)
    if fault:
        raise Mismatch("mapping-value", f"{spec.name}: {fault}")
    return value
