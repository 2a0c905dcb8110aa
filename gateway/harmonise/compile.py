"""Template x device x city profile -> the tables that the walk needs, or every problem of the mapping with its place."""

import math
import re
from collections.abc import Callable, Iterator
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Protocol

from gateway.config.model import CityProfile
from gateway.harmonise.entity import Attribute
from gateway.harmonise.units import Step, convert, decimals
from gateway.models.catalogue import DEFAULT_VOCABULARY, AttributeSpec, Catalogue, EntityType, Kind, catalogue
from gateway.sdk.config import Calibration, DeviceConfig
from gateway.sdk.errors import Problem
from gateway.sdk.quantities import Quantity, quantities, units
from gateway.sdk.reading import Point, Value
from gateway.sdk.template import AttributeMapping, EntityMapping, GasState, Template

DEFAULT_ID = "urn:ngsi-ld:{Type}:{city}:{gateway}:{device}"
DEVICE_ID = "urn:ngsi-ld:Device:{city}:{gateway}:{device}"
MAX_ID_CHARACTERS = 256
_ID = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:@!$*+,/-]+")  # a URI that NGSIv2 takes as well
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # NGSI-LD, clause 4.6.2
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_INSTANTS = ("dateObserved", "observationDateTime", "timeInstant")
_MAX_TEXT = 2048
_NUMBERS = (float, int)  # by type(), because True is an int in Python

Path = tuple[str | int, ...]
Shape = Callable[[datetime], Any]
Report = Callable[..., None]


class DevicePlan(Protocol):
    """What is compiled: see gateway.plan."""

    @property
    def name(self) -> str: ...
    @property
    def link(self) -> str: ...
    @property
    def config(self) -> DeviceConfig: ...
    @property
    def template(self) -> Template: ...
    @property
    def points(self) -> MappingOf[str, Point]: ...
    @property
    def location(self) -> tuple[float, float] | None: ...


@dataclass(frozen=True, slots=True)
class Slot:
    """One attribute, or one member of a structured one, fed by a point.

    Attributes:
        key: attribute name, followed by " dataset_id" for an instance that is not the default one.
        member: name within the structured value; "" = the value is the attribute.
        convert: point value -> attribute value; None when the model does not allow it.
        allows: what the model allows, for the reason.
    """

    key: str
    member: str
    kind: Kind
    unit: str
    convert: Callable[[Value], Any]
    allows: str = ""
    dataset_id: str = ""
    sub: MappingOf[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Mapping:
    """All that turns good readings of one device into one entity.

    Attributes:
        slots: by point.
        static: attributes that never change, by name.
        times: attribute -> its value, given the newest observation time.
        mandatory: attributes without which the entity is not sent.
        unused: declared points that no attribute takes.
    """

    device: str
    entity_id: str
    entity_type: str
    context: str
    mandatory: frozenset[str]
    slots: MappingOf[str, tuple[Slot, ...]]
    static: MappingOf[str, Attribute]
    times: tuple[tuple[str, Shape], ...] = ()
    unused: tuple[str, ...] = ()

    def missing(self, have: set[str]) -> frozenset[str]:
        """Mandatory attributes that are still unknown when these points have had a good value."""
        fed = {slot.key for point, slots in self.slots.items() if point in have for slot in slots}
        times = {name for name, _ in self.times} if fed else set()  # nothing measured, nothing observed
        return self.mandatory - fed - times - set(self.static)


def compile_device(
    device: DevicePlan, *, gateway_id: str, city: str, profile: CityProfile
) -> tuple[tuple[Mapping, ...], tuple[Problem, ...]]:
    """The tables of one device for one city, and all that is wrong with its mapping.

    Returns:
        One table per entity of the device (none when its template maps nothing), and the problems, with paths below the
        device's own. A table with an error in it is left out.
    """
    compiler = _Compiler(device, gateway_id, city, profile, catalogue())
    return tuple(compiler.run()), tuple(compiler.problems)


class _Compiler:
    """One device, one city; problems are gathered, nothing is raised."""

    def __init__(self, device: DevicePlan, gateway_id: str, city: str, profile: CityProfile, models: Catalogue) -> None:
        self.device = device
        self.profile = profile
        self.models = models
        self.names = {"city": city, "gateway": gateway_id, "device": device.name}
        self.problems: list[Problem] = []

    def run(self) -> Iterator[Mapping]:
        entity = merged(self.device.template.entity, self.device.config.entity)
        if entity.type is None and not entity.attributes and not entity.more:
            return
        yield from self._table(entity, ("entity",), "")
        for name, further in entity.more.items():
            yield from self._table(further, ("entity", "more", name), name)

    def report(self, code: str, path: Path, message: str, remedy: str = "", **more: Any) -> None:
        """Note a problem at a path below the device."""
        where = ("links", self.device.link, "devices", self.device.name, *path)
        self.problems.append(Problem(code, where, message, remedy, **more))

    def _table(self, entity: EntityMapping, path: Path, name: str) -> Iterator[Mapping]:
        if entity.type is None and not entity.attributes:
            return
        model = self.models.type(entity.type or "")
        if model is None:
            self._unknown_type(entity.type, path)
            return
        before = len(self.problems)
        builder = _Table(self, model, entity, path, name)
        table = builder.build()
        if not any(problem.severity == "error" for problem in self.problems[before:]):
            yield table

    def _unknown_type(self, name: str | None, path: Path) -> None:
        if name is None:
            self.report("mapping-type", path, "attributes are given but no entity type", "add type: …")
            return
        near = self.models.near(name)
        remedy = f"did you mean {near}?" if near else "see citygate models search"
        self.report("mapping-type", (*path, "type"), f"{name} is not a type of the catalogue", remedy)


class _Table:
    """One entity of the device."""

    def __init__(self, whole: _Compiler, model: EntityType, entity: EntityMapping, path: Path, name: str) -> None:
        self.whole = whole
        self.device = whole.device
        self.model = model
        self.entity = entity
        self.path = path
        self.name = name
        self.rule = whole.profile.types.get(entity.type or model.name)
        self.context = (self.rule.context if self.rule and self.rule.context else None) or model.context

    def report(self, code: str, path: Path, message: str, remedy: str = "", **more: Any) -> None:
        self.whole.report(code, (*self.path, *path), message, remedy, **more)

    def build(self) -> Mapping:
        slots: dict[str, list[Slot]] = {}
        for key, source in self.entity.attributes.items():
            if source is not None:
                for point, slot in self._slots(key, source):
                    slots.setdefault(point, []).append(slot)
        times = tuple(self._times())
        static = self._static()
        table = Mapping(
            device=self.device.name,
            entity_id=self._id(),
            entity_type=self.model.name,
            context=self.context,
            mandatory=self.model.mandatory,
            slots={point: tuple(of_point) for point, of_point in slots.items()},
            static=static,
            times=times,
            unused=tuple(point for point in self.device.points if point not in slots),
        )
        self._check_supplied(table)
        return table

    # ids

    def _id(self) -> str:
        pattern = self.entity.id or (self.rule.id if self.rule else None) or self.whole.profile.id or DEFAULT_ID
        if self.name and self.entity.id is None:
            pattern += ":{name}"
        names = {**self.whole.names, "Type": self.model.name, "name": self.name}
        unknown = sorted(set(re.findall(r"\{([^{}]*)\}", pattern)) - set(names))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in names)
            self.report("mapping-id", ("id",), f"{{{unknown[0]}}} is not known in an id pattern", f"use {known}")
        entity_id = re.sub(r"\{([^{}]*)\}", lambda match: names.get(match[1], match[0]), pattern)
        if not unknown and not _ID.fullmatch(entity_id):
            self.report(
                "mapping-id",
                ("id",),
                f"{entity_id!r} is not an entity id: it must be a URI of letters, digits and . _ ~ : @ ! $ * + , / -",
                "write it as in urn:ngsi-ld:AirQualityObserved:milano:roof-1",
            )
        if len(entity_id) > MAX_ID_CHARACTERS:
            self.report("mapping-id", ("id",), f"the id has {len(entity_id)} characters, at most {MAX_ID_CHARACTERS}")
        return entity_id

    # attributes from points

    def _slots(self, key: str, source: AttributeMapping) -> Iterator[tuple[str, Slot]]:
        where: Path = ("attributes", key)
        spec = self._spec(key, where)
        if spec is None:
            return
        if source.longitude or source.latitude:
            self.report("mapping-attribute", where, "a location from points needs a model with moving places", "")
            return
        point = self._point(source.point, where)
        if point is None:
            return
        name, _, member = key.partition(".")
        compiled = self._conversion(spec, source, point, where)
        if compiled is not None:
            convert_value, unit, allows = compiled
            slot_key = f"{name} {source.dataset}" if source.dataset else name
            kind = self._kind(name, spec)
            yield point.name, Slot(slot_key, member, kind, unit, convert_value, allows, source.dataset)

    def _point(self, name: str | None, where: Path) -> Point | None:
        if name is None:
            self.report("mapping-point", where, "no point is named", f"points: {', '.join(self.device.points)}")
            return None
        point = self.device.points.get(name)
        if point is None:
            self.report(
                "mapping-point",
                where,
                f"{name} is not a point of {self.device.template.name or 'the template'}",
                f"points: {', '.join(self.device.points)}",
            )
        return point

    def _spec(self, key: str, where: Path) -> AttributeSpec | None:
        """The attribute (or member) in the model, or a problem at its key."""
        name, dot, member = key.partition(".")
        spec = self.model.attributes.get(name)
        if spec is None:
            near = self.model.near(name)
            self.report(
                "mapping-attribute",
                where,
                f"{self.model.name} has no attribute {name}",
                f"did you mean {near}?" if near else f"see citygate models show {self.model.name}",
                at="key",
            )
            return None
        if not _NAME.fullmatch(name):
            self.report("mapping-name", where, f"{name} is not a legal NGSI-LD name: brokers refuse it", at="key")
            return None
        self._check_term(name, where)
        if dot:
            return self._member(spec, name, member, where)
        if spec.members and "object" in spec.json and not set(spec.json) - {"object"}:
            example = f"{name}.{next(iter(spec.members))}"
            self.report(
                "mapping-attribute", where, f"{name} is a structured value", f"map a member: {example}", at="key"
            )
            return None
        return spec

    def _member(self, spec: AttributeSpec, name: str, member: str, where: Path) -> AttributeSpec | None:
        found = spec.members.get(member)
        if found is None:
            members = ", ".join(spec.members)
            message = f"{name} has no member {member}" if members else f"{name} is not a structured value"
            self.report("mapping-attribute", where, message, f"members: {members}" if members else "", at="key")
        return found

    def _check_term(self, name: str, where: Path) -> None:
        if self.whole.models.knows_context(self.context):
            iri = self.whole.models.iri(self.context, name)
            if iri.startswith(DEFAULT_VOCABULARY):
                self.report(
                    "mapping-term",
                    where,
                    f"{name} has no term in {self.context}: it would mean {iri}",
                    severity="warning",
                    at="key",
                )

    def _kind(self, name: str, spec: AttributeSpec) -> Kind:
        # some schemas call a reference a Property; in NGSI-LD it is a Relationship
        return "relationship" if re.match(r"ref[A-Z]", name) else spec.kind

    def _conversion(
        self, spec: AttributeSpec, source: AttributeMapping, point: Point, where: Path
    ) -> tuple[Callable[[Value], Any], str, str] | None:
        """(function, unit, what the model allows)."""
        quantity = quantities()[point.quantity]
        if source.translate:
            return self._translation(spec, source, where)
        if quantity.kind == "text":
            return self._text(spec, source, where)
        if quantity.kind == "boolean":
            return self._flag(spec, point, where)
        return self._number(spec, source, point, quantity, where)

    def _number(
        self, spec: AttributeSpec, source: AttributeMapping, point: Point, quantity: Quantity, where: Path
    ) -> tuple[Callable[[Value], Any], str, str] | None:
        if spec.json and not {"number", "integer"} & set(spec.json):
            self.report(
                "mapping-value",
                where,
                f"{point.name} is a number, {spec.name} wants {' or '.join(spec.json)}",
                "translate: {…} gives a text for each value" if "string" in spec.json else "",
            )
            return None
        linear = self._linear(spec, source, point, quantity, where)
        if linear is None:
            return None
        scale, offset, unit = linear
        low = spec.minimum if spec.minimum is not None else -Step().high
        high = spec.maximum if spec.maximum is not None else Step().high
        turn = unit in units() and units()[unit].dimension == "angle" and high - low == 360
        step = Step(
            scale=scale,
            offset=offset,
            digits=decimals(scale) if (scale, offset) != (1.0, 0.0) else None,
            whole=bool(spec.json) and "number" not in spec.json,
            wrap_from=low if turn else None,
            low=low,
            high=high,
        )
        self._check_range(spec, step, point, quantity, where)
        shown_unit = "" if quantity.kind == "integer" and unit == "C62" else unit
        return _number_step(step), shown_unit, _allows(spec)

    def _linear(
        self, spec: AttributeSpec, source: AttributeMapping, point: Point, quantity: Quantity, where: Path
    ) -> tuple[float, float, str] | None:
        """(scale, offset, unit code) from raw point value to attribute, calibration and gain included."""
        calibration = self.device.config.calibrate.get(point.name, Calibration())
        gain, shift = calibration.gain, calibration.offset
        target = source.unit or spec.unit or point.unit
        at = source.at or GasState()
        gained = source.gain != 1.0 or source.offset != 0.0
        if gained and source.unit and not _same_dimension(source.unit, point.unit):
            return gain * source.gain, shift * source.gain + source.offset, source.unit
        if gained:
            gain, shift = gain * source.gain, shift * source.gain + source.offset
        try:
            scale, offset = convert(
                quantity,
                point.unit,
                target,
                gain=gain,
                shift=shift,
                temperature_k=at.temperature + 273.15,
                pressure_pa=at.pressure * 100,
            )
        except ValueError as error:
            remedy = f"{spec.name} is sent in {target}" if not source.unit else ""
            self.report("mapping-unit", where, f"{point.name} cannot become {spec.name}: {error}", remedy)
            return None
        return scale, offset, target

    def _check_range(self, spec: AttributeSpec, step: Step, point: Point, quantity: Quantity, where: Path) -> None:
        """A point whose plausible values lie wholly outside what the model allows can never be sent."""
        declared = self.device.template.points[point.name].range
        bounds = declared or quantity.range
        if bounds is None or step.wrap_from is not None or (declared is None and point.unit != quantity.unit):
            return
        ends = sorted(bound * step.scale + step.offset for bound in bounds)
        if ends[1] < step.low or ends[0] > step.high:
            self.report(
                "mapping-range",
                where,
                f"{point.name} gives {ends[0]:g} to {ends[1]:g}, {spec.name} allows {_allows(spec)}",
            )

    def _flag(self, spec: AttributeSpec, point: Point, where: Path) -> tuple[Callable[[Value], Any], str, str] | None:
        if not spec.json or "boolean" in spec.json:
            return bool, "", ""
        if {"number", "integer"} & set(spec.json) and not spec.enum:
            return int, "", ""
        values = ", ".join(map(str, spec.enum or spec.json))
        self.report(
            "mapping-value",
            where,
            f"{point.name} is true or false, {spec.name} wants {values}",
            "say which: {point: " + point.name + ", translate: {true: …, false: …}}",
        )
        return None

    def _text(
        self, spec: AttributeSpec, source: AttributeMapping, where: Path
    ) -> tuple[Callable[[Value], Any], str, str] | None:
        if spec.json and not {"string", "array"} & set(spec.json):
            self.report(
                "mapping-value", where, f"a text cannot become {spec.name}, which wants {' or '.join(spec.json)}"
            )
            return None
        listed = "array" in spec.json and "string" not in spec.json
        allowed = frozenset((spec.items.enum if listed and spec.items else spec.enum) or ())
        return _text_step(source.pattern, allowed, listed, self._kind(spec.name, spec)), "", _allows(spec)

    def _translation(
        self, spec: AttributeSpec, source: AttributeMapping, where: Path
    ) -> tuple[Callable[[Value], Any], str, str] | None:
        table: dict[str, Any] = {}
        for key, value in source.translate.items():
            checked = self._constant(spec, value, (*where, "translate", key))
            if checked is not None:
                table[key] = checked
        return _translate_step(table), source.unit, f"translated are {', '.join(table)}"

    # constants

    def _static(self) -> dict[str, Attribute]:
        static: dict[str, Attribute] = {}
        for name, value in self._location().items():
            static[name] = value
        for name, value in self._references():
            static[name] = value
        for name, value, where, known_only in self._constants():
            if name in self.entity.attributes and self.entity.attributes[name] is not None:
                continue  # measured beats constant
            if known_only and name not in self.model.attributes:
                continue
            attribute = self._static_attribute(name, value, where)
            if attribute is not None:
                static[name] = attribute
        return static

    def _constants(self) -> Iterator[tuple[str, Any, Path, bool]]:
        """(name, value, path, only if the model has it); later ones win."""
        profile = self.whole.profile
        if profile.provider:
            yield "dataProvider", profile.provider, (), True
        for name, value in profile.static.items():
            yield name, value, (), True
        for name, value in (self.rule.static if self.rule else {}).items():
            yield name, value, (), False
        for name, value in self.entity.static.items():
            yield name, value, ("static", name), False

    def _static_attribute(self, name: str, value: Any, where: Path) -> Attribute | None:
        spec = self._spec_of_static(name, where)
        if spec is None or value is None:
            return None
        kind = self._kind(name, spec)
        if kind == "geo":
            value = self._geometry(value, where)
        elif kind == "relationship":
            value = self._targets(spec, value, where)
        else:
            value = self._constant(spec, value, where)
        if value is None:
            return None
        return Attribute(
            kind, value, spec.unit if isinstance(value, float | int) and not isinstance(value, bool) else ""
        )

    def _spec_of_static(self, name: str, where: Path) -> AttributeSpec | None:
        spec = self.model.attributes.get(name)
        if spec is None or not _NAME.fullmatch(name):
            return self._spec(name, where)
        self._check_term(name, where)
        return spec

    def _geometry(self, value: Any, where: Path) -> Any:
        if isinstance(value, list) and len(value) == 2:
            value = {"type": "Point", "coordinates": value}
        if not (isinstance(value, dict) and isinstance(value.get("coordinates"), list) and "type" in value):
            self.report("mapping-value", where, "this is not GeoJSON", "write [lon, lat] or {type: …, coordinates: …}")
            return None
        return value

    def _targets(self, spec: AttributeSpec, value: Any, where: Path) -> Any:
        wanted = value if isinstance(value, list) else [value]
        targets = [self._filled(target) for target in wanted]
        for target in targets:
            if not (isinstance(target, str) and _URI.fullmatch(target)):
                self.report("mapping-value", where, f"{target!r} is not the id of an entity", "a URI, urn:ngsi-ld:…")
                return None
        return targets if "array" in spec.json or isinstance(value, list) else targets[0]

    def _filled(self, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        names = {**self.whole.names, "Type": self.model.name, "name": self.name}
        return re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], match[0]), text)

    def _constant(self, spec: AttributeSpec, value: Any, where: Path) -> Any:
        """The constant as the model wants it, or a problem."""
        if spec.enum and value not in spec.enum and str(value) in spec.enum:
            value = str(value)  # YAML reads sonometerClass: 1 as a number
        if "array" in spec.json and not isinstance(value, list) and "string" not in spec.json:
            value = [value]
        fault = constant_fault(spec, value)
        if fault:
            self.report("mapping-value", where, f"{spec.name}: {fault}")
            return None
        return value

    def _location(self) -> dict[str, Attribute]:
        if "location" not in self.model.attributes or self.device.location is None:
            return {}
        longitude, latitude = self.device.location
        return {"location": Attribute("geo", {"type": "Point", "coordinates": [longitude, latitude]})}

    def _references(self) -> Iterator[tuple[str, Attribute]]:
        spec = self.model.attributes.get("refDevice")
        if spec is None:
            return
        device = self._filled(DEVICE_ID)
        yield "refDevice", Attribute("relationship", [device] if "array" in spec.json else device)

    # times

    def _times(self) -> Iterator[tuple[str, Shape]]:
        given = {*self.entity.static, *(k for k, v in self.entity.attributes.items() if v is not None)}
        period_s = self.entity.period_s
        for name in _INSTANTS:
            spec = self.model.attributes.get(name)
            if spec is None or name in given or self.entity.attributes.get(name, self) is None:
                continue
            if spec.format == "date-time" or name != "dateObserved":
                yield name, _instant
            elif period_s is not None:
                yield name, _interval(timedelta(seconds=period_s))
        if period_s is not None and "dateObservedFrom" in self.model.attributes:
            if "dateObservedFrom" not in given:
                yield "dateObservedFrom", _before(timedelta(seconds=period_s))
            if "dateObservedTo" not in given:
                yield "dateObservedTo", _instant

    # the whole

    def _check_supplied(self, table: Mapping) -> None:
        supplied = {name for name, _ in table.times}
        for name in sorted(table.missing(set(self.device.points)) - supplied):
            if name == "location":
                self.report(
                    "mapping-location",
                    (),
                    f"{self.model.name} needs a location, and neither device nor gateway has one",
                    "add location: [lon, lat]",
                )
            elif name in ("dateObservedFrom", "dateObservedTo"):
                self.report("mapping-mandatory", (), f"{self.model.name} needs {name}", "add period: … to the mapping")
            else:
                self.report(
                    "mapping-mandatory",
                    (),
                    f"{self.model.name} needs {name}, which nothing supplies",
                    f"map a point to it, or add static: {{{name}: …}}",
                )


def merged(template: EntityMapping, device: EntityMapping | None) -> EntityMapping:
    """The template's mapping with the device's laid over it, key by key; another type starts afresh."""
    if device is None:
        return template
    if device.type is not None and template.type is not None and device.type != template.type:
        return device
    return template.model_copy(
        update={
            "type": device.type or template.type,
            "id": device.id or template.id,
            "attributes": {**template.attributes, **device.attributes},
            "static": {**template.static, **device.static},
            "period_s": device.period_s if device.period_s is not None else template.period_s,
            "more": {
                **template.more,
                **{n: merged(template.more[n], m) if n in template.more else m for n, m in device.more.items()},
            },
        }
    )


def constant_fault(spec: AttributeSpec, value: Any) -> str:
    """Why the model does not allow this constant; "" when it does."""
    if isinstance(value, list) and "array" in spec.json:
        faults = (constant_fault(spec.items, item) for item in value) if spec.items else iter(())
        return next(filter(None, faults), "")
    if spec.enum and value not in spec.enum:
        return f"{value!r} is not one of {', '.join(map(str, spec.enum))}"
    if (
        spec.json
        and _json_type(value) not in spec.json
        and not (_json_type(value) == "integer" and "number" in spec.json)
    ):
        return f"{value!r} is {_json_type(value)}, the model wants {' or '.join(spec.json)}"
    if isinstance(value, str) and (_CONTROL.search(value) or len(value) > _MAX_TEXT):
        return "the text has control characters or is too long"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is not a number"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if spec.minimum is not None and value < spec.minimum:
            return f"{value} is below {spec.minimum}"
        if spec.maximum is not None and value > spec.maximum:
            return f"{value} is above {spec.maximum}"
    return ""


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _same_dimension(one: str, other: str) -> bool:
    return one in units() and other in units() and units()[one].dimension == units()[other].dimension


def _allows(spec: AttributeSpec) -> str:
    if spec.enum:
        return f"one of {', '.join(map(str, spec.enum))}"
    low = "" if spec.minimum is None else f"{spec.minimum:g}"
    high = "" if spec.maximum is None else f"{spec.maximum:g}"
    return (
        f"{low or '-∞'} to {high or '∞'}" if low or high else "a finite number" if "number" in spec.json else "a text"
    )


def _number_step(step: Step) -> Callable[[Value], Any]:
    low, high = step.low, step.high
    if replace(step, low=0, high=0) == Step(low=0, high=0):

        def bounded(value: Value) -> Any:
            return value if type(value) in _NUMBERS and low <= value <= high else None  # type: ignore[operator]

        return bounded

    def stepped(value: Value) -> Any:
        return step.apply(value) if type(value) in _NUMBERS else None  # type: ignore[arg-type]

    return stepped


def _text_step(pattern: str, allowed: frozenset[Any], listed: bool, kind: Kind) -> Callable[[Value], Any]:
    def text(value: Value) -> Any:
        out = pattern.replace("{value}", str(value)) if pattern else value
        if not isinstance(out, str) or len(out) > _MAX_TEXT or _CONTROL.search(out):
            return None
        if (allowed and out not in allowed) or (kind == "relationship" and not _URI.fullmatch(out)):
            return None
        return [out] if listed else out

    return text


def _translate_step(table: MappingOf[str, Any]) -> Callable[[Value], Any]:
    def translate(value: Value) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return table.get(str(value).lower() if isinstance(value, bool) else str(value))

    return translate


def _instant(newest: datetime) -> Any:
    return newest


def _before(period: timedelta) -> Shape:
    return lambda newest: newest - period


def _interval(period: timedelta) -> Shape:
    def interval(newest: datetime) -> str:
        return "/".join(time.isoformat().removesuffix("+00:00") + "Z" for time in (newest - period, newest))

    return interval
