"""Template x device x city profile -> the tables that the walk needs, or every problem of the mapping with its place."""

import re
from collections.abc import Callable, Iterator
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from types import MappingProxyType
from typing import Any, Protocol

from gateway.config.model import CityProfile
from gateway.harmonise.entity import Attribute
from gateway.harmonise.values import Conversion, Converted, Mismatch, Source, checked_constant, conversion
from gateway.models.catalogue import DEFAULT_VOCABULARY, AttributeSpec, Catalogue, EntityType, Kind, catalogue, near
from gateway.models.rules import is_uri
from gateway.sdk.config import Calibration, DeviceConfig
from gateway.sdk.errors import Problem
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point
from gateway.sdk.template import AttributeMapping, EntityMapping, SubProperty, Template

DEFAULT_ID = "urn:ngsi-ld:{Type}:{city}:{gateway}:{device}"
MAX_ID_CHARACTERS = 256
_ID = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:@!$*+,/-]+")  # a URI that NGSIv2 takes as well
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # NGSI-LD, clause 4.6.2
_INSTANTS = ("dateObserved", "observationDateTime", "timeInstant")
# Members of an NGSI-LD attribute or entity: as an attribute's name they would be read as that member.
_RESERVED = frozenset(
    [
        "value",
        "object",
        "objectType",
        "languageMap",
        "vocab",
        "json",
        "valueList",
        "objectList",
        "unitCode",
        "observedAt",
        "datasetId",
        "createdAt",
        "modifiedAt",
        "deletedAt",
        "expiresAt",
        "scope",
        "type",
        "id",
        "coordinates",
        "features",
        "dataset",
    ]
)
_AUTOMATIC = ("location", "refDevice")  # static attributes that the gateway adds by itself

Path = tuple[str | int, ...]
Shape = Callable[[datetime], Any]


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


@dataclass(frozen=True)
class BareDevice:
    """All of a device that is compiled, where it stands in no config."""

    name: str
    link: str
    config: DeviceConfig
    template: Template
    points: MappingOf[str, Point]
    location: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Slot:
    """One attribute, or one member of a structured one, fed by a point.

    Attributes:
        key: attribute name, followed by " dataset_id" for an instance that is not the default one.
        member: name within the structured value (`lon` and `lat` of a place); "" = the value is the attribute.
        convert: point value -> attribute value; None when the model does not allow it.
        allows: what the model allows, for the reason.
        sub: constant sub-attributes.
        sub_slots: sub-attributes from points: (point, slot).
        epochs: (from, convert) by calibration, newest first, in UTC microseconds; `convert` holds before the first.
    """

    key: str
    member: str
    kind: Kind
    unit: str
    convert: Conversion
    allows: str = ""
    dataset_id: str = ""
    sub: MappingOf[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))
    sub_slots: tuple[tuple[str, "Slot"], ...] = ()
    epochs: tuple[tuple[int, Conversion], ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """What the tables of a device were compiled from."""

    device: DevicePlan
    entity: EntityMapping
    gateway_id: str
    city: str
    profile: CityProfile
    models: Catalogue


@dataclass(frozen=True, slots=True)
class Mapping:
    """All that turns good readings of one device into one entity.

    Attributes:
        mandatory: attributes without which the entity is not sent; another device's are not among them.
        slots: by point; () for a point that is only a sub-attribute.
        static: attributes that never change, by name.
        times: attribute -> its value, given the newest observation time.
        unused: declared points that no entity of the device takes.
        unsupplied: mandatory attributes that this device cannot give; `joined` looks for another that does.
        path: where the mapping stands.
        name: of a further entity of the device; "" = its first one.
        given: what it was made from.
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
    unsupplied: frozenset[str] = frozenset()
    path: Path = ()
    name: str = ""
    given: Given | None = field(default=None, compare=False, repr=False)

    def missing(self, have: set[str]) -> frozenset[str]:
        """Mandatory attributes that are still unknown when these points have had a good value."""
        fed: set[str] = set()
        partly: set[str] = set()
        for point, slots in self.slots.items():
            for slot in slots:
                if point in have:
                    fed.add(slot.key)
                elif slot.kind == "geo":
                    partly.add(slot.key)  # a place needs both its points
        fed -= partly
        times = {name for name, _ in self.times} if fed else set()  # nothing measured, nothing observed
        return self.mandatory - fed - times - set(self.static)

    @property
    def supplies(self) -> frozenset[str]:
        """Attributes that this device can give."""
        fed = {slot.key for slots in self.slots.values() for slot in slots}
        return frozenset(fed | set(self.static) | {name for name, _ in self.times})


def compile_device(
    device: DevicePlan, *, gateway_id: str, city: str, profile: CityProfile, models: Catalogue | None = None
) -> tuple[tuple[Mapping, ...], tuple[Problem, ...]]:
    """The tables of one device for one city, and all that is wrong with its mapping.

    Args:
        models: the catalogue with the operator's extensions; default: what ships with the gateway.

    Returns:
        One table per entity of the device (none when its template maps nothing), and the problems, with paths below the
        device's own. A table with an error in it is left out. What a table may leave to other devices, `joined` checks.
    """
    models = models or catalogue()
    given = Given(device, merged(device.template.entity, device.config.entity), gateway_id, city, profile, models)
    compiler = _Compiler(given)
    tables = tuple(compiler.run())
    taken = {point for table in tables for point in table.slots}
    unused = tuple(point for point in device.points if point not in taken)
    return tuple(replace(table, unused=unused, given=given) for table in tables), tuple(compiler.problems)


def joined(
    tables: MappingOf[str, tuple[Mapping, ...]],
) -> tuple[dict[str, tuple[Mapping, ...]], tuple[Problem, ...]]:
    """The tables of all devices for one city, where several devices may feed one entity.

    Returns:
        The tables, each with the mandatory attributes that are its own to give; and the problems that show only now: one
        entity with two types, one attribute from two devices, a mandatory attribute from none.
    """
    problems: list[Problem] = []
    by_id: dict[str, list[Mapping]] = {}
    for of_device in tables.values():
        for table in of_device:
            by_id.setdefault(table.entity_id, []).append(table)
    settled: dict[int, Mapping] = {}
    for group in by_id.values():
        for table, own in zip(group, _settle(group, problems), strict=True):
            settled[id(table)] = own
    return {device: tuple(settled[id(t)] for t in of_device) for device, of_device in tables.items()}, tuple(problems)


def _settle(group: list[Mapping], problems: list[Problem]) -> Iterator[Mapping]:
    first = group[0]
    for table in group:
        others = [other for other in group if other is not table]
        elsewhere = frozenset(name for other in others for name in other.supplies)
        own = frozenset(slot.key for slots in table.slots.values() for slot in slots)
        for other in others[: group.index(table)]:
            problems += _conflicts(table, other)
        for name in sorted(table.unsupplied - elsewhere):
            problems.append(_unsupplied(table, name))
        if not others:
            yield table
            continue
        doubled = () if table is first else tuple(name for name in _AUTOMATIC if name in first.static)
        static = {name: value for name, value in table.static.items() if name not in doubled}
        yield replace(table, static=static, mandatory=table.mandatory - (elsewhere - own))


def _conflicts(table: Mapping, other: Mapping) -> Iterator[Problem]:
    def problem(text: str, remedy: str) -> Problem:
        return Problem(
            "mapping-shared", table.path, f"{table.entity_id} is also sent by {other.device}, {text}", remedy
        )

    if table.entity_type != other.entity_type:
        yield problem(f"as {other.entity_type}", "one entity has one type; give one of them another id")
        return
    mine = {slot.key for slots in table.slots.values() for slot in slots}
    theirs = {slot.key for slots in other.slots.values() for slot in slots}
    if both := sorted(mine & theirs):
        yield problem(f"with {', '.join(both)} as well", "map it in one of them, or give one a dataset (a URI)")
    for name in sorted(set(table.static) & set(other.static) - set(_AUTOMATIC)):
        if table.static[name] != other.static[name]:
            yield problem(f"with another {name}", "give the same value, or only one")


def _unsupplied(table: Mapping, name: str) -> Problem:
    what = f"{table.entity_type} needs {'a location' if name == 'location' else name}"
    if name == "location":
        message, remedy = f"{what}, and neither device nor gateway has one", "add location: [lon, lat]"
        return Problem("mapping-location", table.path[:4], message, remedy)
    if name in ("dateObservedFrom", "dateObservedTo"):
        return Problem(
            "mapping-mandatory", table.path, f"{what}: the period is not known", "add period: … to the mapping"
        )
    remedy = f"map a point to it, or add static: {{{name}: …}}"
    return Problem("mapping-mandatory", table.path, f"{what}, which nothing supplies", remedy)


class _Compiler:
    """One device, one city; problems are gathered, nothing is raised."""

    def __init__(self, given: Given) -> None:
        self.device = given.device
        self.profile = given.profile
        self.models = given.models
        self.entity = given.entity
        self.names = {"city": given.city, "gateway": given.gateway_id, "device": given.device.name}
        self.problems: list[Problem] = []

    def run(self) -> Iterator[Mapping]:
        entity = self.entity
        yield from self._table(entity, ("entity",), "")
        for name, further in entity.more.items():
            yield from self._table(further, ("entity", "more", name), name)

    def place(self, path: Path) -> Path:
        """A path below the device as one from the root."""
        return ("links", self.device.link, "devices", self.device.name, *path)

    def _table(self, entity: EntityMapping, path: Path, name: str) -> Iterator[Mapping]:
        if entity.type is None and not entity.attributes:
            return
        model = self.models.type(entity.type or "")
        if model is None:
            self.problems.append(self._unknown_type(entity.type, path))
            return
        before = len(self.problems)
        table = _Table(self, model, entity, path, name).build()
        if not any(problem.severity == "error" for problem in self.problems[before:]):
            yield table

    def _unknown_type(self, name: str | None, path: Path) -> Problem:
        if name is None:
            message, remedy = "attributes are given but no entity type", "add type: …"
            return Problem("mapping-type", self.place(path), message, remedy)
        near = self.models.near(name)
        remedy = f"did you mean {near}?" if near else f"see citygate models search {name}"
        return Problem("mapping-type", self.place((*path, "type")), f"{name} is not a type of the catalogue", remedy)


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
        self.context = (self.rule.context if self.rule else None) or model.context
        self.names = {**whole.names, "Type": model.name, "name": name}
        self.mapped = {key.partition(".")[0] for key, source in entity.attributes.items() if source is not None}

    def report(self, code: str, path: Path, message: str, remedy: str = "", **more: Any) -> None:
        """Note a problem at a path below this mapping."""
        where = self.whole.place((*self.path, *path))
        self.whole.problems.append(Problem(code, where, message, remedy, **more))

    def build(self) -> Mapping:
        slots: dict[str, list[Slot]] = {}
        for key, source in self.entity.attributes.items():
            if source is None:
                self._attribute(key.partition(".")[0], ("attributes", key))  # a misspelt one would be sent on
            else:
                for point, slot in self._slots(key, source):
                    slots.setdefault(point, []).append(slot)
                    for sub_point, _ in slot.sub_slots:
                        slots.setdefault(sub_point, [])
        pattern = self._id_pattern()
        table = Mapping(
            device=self.device.name,
            entity_id=self._id(pattern),
            entity_type=self.model.name,
            context=self.context,
            mandatory=self.model.mandatory,
            slots={point: tuple(of_point) for point, of_point in slots.items()},
            static=self._static(),
            times=tuple(self._times()),
            path=self.whole.place(self.path),
            name=self.name,
        )
        return self._supplied(table, shared="{device}" not in pattern)

    def _supplied(self, table: Mapping, *, shared: bool) -> Mapping:
        """What the table leaves open: for `joined` when other devices may feed the entity, else a problem."""
        open_ = table.mandatory - table.supplies
        if shared:
            return replace(table, unsupplied=open_)
        self.whole.problems += [_unsupplied(table, name) for name in sorted(open_)]
        return table

    # ids

    def _id_pattern(self) -> str:
        pattern = self.entity.id or (self.rule.id if self.rule else None) or self.whole.profile.id or DEFAULT_ID
        return pattern + ":{name}" if self.name and self.entity.id is None else pattern

    def _id(self, pattern: str) -> str:
        unknown = sorted(set(re.findall(r"\{([^{}]*)\}", pattern)) - set(self.names))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in self.names)
            self.report("mapping-id", ("id",), f"{{{unknown[0]}}} is not known in an id pattern", f"use {known}")
        entity_id = self._filled(pattern)
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

    def _filled(self, text: str) -> str:
        return fill(text, self.names)

    # attributes from points

    def _slots(self, key: str, source: AttributeMapping) -> Iterator[tuple[str, Slot]]:
        where: Path = ("attributes", key)
        name, _, member = key.partition(".")
        spec = self._spec(key, where)
        if spec is None:
            return
        kind = kind_of(name, self.model.attributes[name])
        slot_key = f"{name} {source.dataset}" if source.dataset else name
        if source.dataset and not is_uri(source.dataset):
            self.report("mapping-value", where, f"dataset {source.dataset!r} is not a URI", "urn:ngsi-ld:Dataset:…")
            return
        sub, sub_slots = self._sub(source, where)
        if kind == "geo":
            for part, point in self._place_points(source, where):
                bound = 180.0 if part == "lon" else 90.0
                axis = AttributeSpec(part, json=("number",), minimum=-bound, maximum=bound, unit="DD")
                yield from self._slot(
                    point, axis, kind, AttributeMapping(point=point), where, slot_key, part, sub, sub_slots
                )
            return
        yield from self._slot(source.point, spec, kind, source, where, slot_key, member, sub, sub_slots)

    def _slot(
        self,
        point_name: str | None,
        spec: AttributeSpec,
        kind: Kind,
        source: AttributeMapping,
        where: Path,
        key: str,
        member: str,
        sub: MappingOf[str, Attribute],
        sub_slots: tuple[tuple[str, Slot], ...],
    ) -> Iterator[tuple[str, Slot]]:
        point = self._point(point_name, where)
        if point is None:
            return
        if self._has_siblings(key) and point.name in self.device.config.report:
            self._warn_thinned(key, point.name, where)
        try:
            first, epochs = self._epochs(spec, kind, source, point)
        except Mismatch as fault:
            self.report(fault.code, where, fault.message, fault.remedy)
            return
        yield (
            point.name,
            Slot(
                key=key,
                member=member,
                kind=kind,
                unit="" if kind == "geo" else first.unit,
                convert=first.convert,
                allows=first.allows,
                dataset_id=source.dataset,
                sub=sub,
                sub_slots=sub_slots,
                epochs=epochs,
            ),
        )

    def _has_siblings(self, key: str) -> bool:
        """Whether the value of this attribute is put together of several points."""
        sources = [
            source for name, source in self.entity.attributes.items() if name.partition(".")[0] == key.partition(" ")[0]
        ]
        return len(sources) > 1 or any(source is not None and source.longitude for source in sources)

    def _warn_thinned(self, key: str, point: str, where: Path) -> None:
        message = f"{point} is thinned by report:, and {key} is sent whole: it will often lack this member"
        remedy = "thin none of its members"
        self.report("mapping-thinned", where, message, remedy, severity="warning", at="key")

    def _epochs(
        self, spec: AttributeSpec, kind: Kind, source: AttributeMapping, point: Point
    ) -> tuple[Converted, tuple[tuple[int, Conversion], ...]]:
        """The conversion before any dated calibration, and those from a day on, newest first."""

        def by(calibration: Calibration | None) -> Converted:
            gain, shift = (calibration.gain, calibration.offset) if calibration else (1.0, 0.0)
            bounds = self.device.template.points[point.name].range
            return conversion(spec, kind, Source(source, point, quantities()[point.quantity], bounds, gain, shift))

        calibration = self.device.config.calibrate.get(point.name)
        known = [] if calibration is None else [calibration, *calibration.previous]
        undated = next((one for one in known if one.valid_from is None), None)
        dated = sorted(
            ((one.valid_from, one) for one in known if one.valid_from), key=lambda pair: pair[0], reverse=True
        )
        return by(undated), tuple((_day_us(day), by(one).convert) for day, one in dated)

    def _place_points(self, source: AttributeMapping, where: Path) -> Iterator[tuple[str, str]]:
        if source.point or not (source.longitude and source.latitude):
            self.report("mapping-point", where, "a place comes from two points", "{longitude: POINT, latitude: POINT}")
            return
        yield "lon", source.longitude
        yield "lat", source.latitude

    def _sub(
        self, source: AttributeMapping, where: Path
    ) -> tuple[MappingOf[str, Attribute], tuple[tuple[str, Slot], ...]]:
        constant: dict[str, Attribute] = {}
        measured: list[tuple[str, Slot]] = []
        for name, sub in source.sub.items():
            at = (*where, "sub", name)
            if not self._legal(name, at):
                continue
            self._check_term(name, at)
            if sub.point is not None:
                measured += self._sub_slot(name, sub, at)
            else:
                attribute = self._sub_constant(name, sub, at)
                if attribute is not None:
                    constant[name] = attribute
        return MappingProxyType(constant), tuple(measured)

    def _sub_slot(self, name: str, sub: SubProperty, at: Path) -> Iterator[tuple[str, Slot]]:
        spec = AttributeSpec(name, unit=sub.unit)
        plain = AttributeMapping(point=sub.point, unit=sub.unit)
        yield from self._slot(sub.point, spec, kind_of(name, spec), plain, at, name, "", MappingProxyType({}), ())

    def _sub_constant(self, name: str, sub: SubProperty, at: Path) -> Attribute | None:
        spec = self.model.attributes.get(name, AttributeSpec(name))
        try:
            return Attribute(kind_of(name, spec), checked_constant(spec, sub.value), sub.unit)
        except Mismatch as fault:
            self.report(fault.code, at, fault.message, fault.remedy)
            return None

    def _point(self, name: str | None, where: Path) -> Point | None:
        point = self.device.points.get(name or "")
        if point is None:
            template = self.device.template.name or "the template"
            message = f"{name} is not a point of {template}" if name else "no point is named"
            self.report("mapping-point", where, message, f"points: {', '.join(self.device.points)}")
        return point

    # names

    def _spec(self, key: str, where: Path) -> AttributeSpec | None:
        """The attribute (or member) in the model, or a problem at its key."""
        name, dot, member = key.partition(".")
        spec = self._attribute(name, where)
        if spec is None or not self._legal(name, where):
            return None
        self._check_term(name, where)
        if dot:
            return self._member(spec, name, member, where)
        if _is_structured(spec):
            remedy = f"map a member: {name}.{next(iter(spec.members))}"
            self.report("mapping-attribute", where, f"{name} is a structured value", remedy, at="key")
            return None
        return spec

    def _attribute(self, name: str, where: Path) -> AttributeSpec | None:
        spec = self.model.attributes.get(name)
        if spec is None:
            near = self.model.near(name)
            remedy = f"did you mean {near}?" if near else f"see citygate models show {self.model.name}"
            self.report("mapping-attribute", where, f"{self.model.name} has no attribute {name}", remedy, at="key")
        return spec

    def _member(self, spec: AttributeSpec, name: str, member: str, where: Path) -> AttributeSpec | None:
        found = spec.members.get(member)
        if found is None:
            members = ", ".join(spec.members)
            message = f"{name} has no member {member}" if members else f"{name} is not a structured value"
            self.report("mapping-attribute", where, message, f"members: {members}" if members else "", at="key")
        return found

    def _legal(self, name: str, where: Path) -> bool:
        if name in _RESERVED:
            message = f"{name} is a word of NGSI-LD itself: as an attribute's name it would mean something else"
            self.report("mapping-name", where, message, "leave it out, or use an extension model", at="key")
        elif not _NAME.fullmatch(name):
            message = f"{name} is not a legal NGSI-LD name (letters, digits, _): brokers refuse it"
            self.report("mapping-name", where, message, "leave it out, or use an extension model", at="key")
        else:
            return True
        return False

    def _check_term(self, name: str, where: Path) -> None:
        """What the name means to the city: its own IRI, another one, or none."""
        models = self.whole.models
        if not models.knows_context(self.context):
            return
        iri, meant = models.iri(self.context, name), models.iri(self.model.context, name)
        if iri == meant and not iri.startswith(DEFAULT_VOCABULARY):
            return
        where_context = f"in {self.context}"
        if iri.startswith(DEFAULT_VOCABULARY):
            message = f"{name} has no term {where_context}: it would be {iri}"
            self.report("mapping-term", where, message, "", severity="warning", at="key")
        else:
            self.report(
                "mapping-term", where, f"{name} is {iri} {where_context}, the model means {meant}", "", at="key"
            )

    # constants

    def _static(self) -> dict[str, Attribute]:
        static = {**self._location(), **self._reference()}
        for name, value, where, only_if_known in self._constants():
            if name in self.mapped or (only_if_known and name not in self.model.attributes):
                continue  # measured beats constant
            if value is None:
                self._attribute(name, where)
                static.pop(name, None)
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
            yield name, value, (), True
        for name, value in self.entity.static.items():
            yield name, value, ("static", name), False

    def _static_attribute(self, name: str, value: Any, where: Path) -> Attribute | None:
        spec = self._attribute(name, where)
        if spec is None or not self._legal(name, where):
            return None
        self._check_term(name, where)
        kind = kind_of(name, spec)
        try:
            if kind == "geo":
                return Attribute(kind, geometry(value))
            if kind == "relationship":
                return Attribute(kind, self._targets(spec, value))
            value = checked_constant(spec, value)
        except Mismatch as fault:
            self.report(fault.code, where, fault.message, fault.remedy)
            return None
        if self._unknown_members(spec, value, where):
            return None
        measured = type(value) in (int, float) and spec.unit not in ("", "C62")
        return Attribute(kind, value, spec.unit if measured else "")

    def _unknown_members(self, spec: AttributeSpec, value: Any, where: Path) -> bool:
        unknown = (
            [name for name in value if name not in spec.members] if isinstance(value, dict) and spec.members else []
        )
        for name in unknown:
            likely = near(name, spec.members)
            remedy = f"did you mean {likely}?" if likely else f"members: {', '.join(spec.members)}"
            place = (*where, name) if where else where
            self.report("mapping-attribute", place, f"{spec.name} has no member {name}", remedy, at="key")
        return bool(unknown)

    def _targets(self, spec: AttributeSpec, value: Any) -> Any:
        wanted = value if isinstance(value, list) else [value]
        targets = [self._filled(target) if isinstance(target, str) else target for target in wanted]
        for target in targets:
            if not (isinstance(target, str) and is_uri(target)):
                raise Mismatch("mapping-value", f"{target!r} is not the id of an entity", "write a URI, urn:ngsi-ld:…")
        return targets if "array" in spec.json or isinstance(value, list) else targets[0]

    def _location(self) -> dict[str, Attribute]:
        if "location" in self.mapped or "location" not in self.model.attributes or self.device.location is None:
            return {}
        return {"location": Attribute("geo", geometry(list(self.device.location)))}

    def _reference(self) -> dict[str, Attribute]:
        spec = self.model.attributes.get("refDevice")
        if spec is None or "refDevice" in self.mapped:
            return {}
        names = {**self.names, "Type": "Device"}
        device = fill(device_id_pattern(self.whole.profile), names)
        return {"refDevice": Attribute("relationship", [device] if "array" in spec.json else device)}

    # times

    def _times(self) -> Iterator[tuple[str, Shape]]:
        given = {*self.entity.static, *self.entity.attributes}
        for name in (*_INSTANTS, "dateObservedFrom", "dateObservedTo"):
            spec = self.model.attributes.get(name)
            shape = self._time(name, spec) if spec is not None and name not in given else None
            if shape is not None:
                yield name, shape

    def _time(self, name: str, spec: AttributeSpec) -> Shape | None:
        period = None if self.entity.period_s is None else timedelta(seconds=self.entity.period_s)
        if name == "dateObserved" and spec.format != "date-time" and period is not None:
            return _interval(period)  # the schema says text, the examples are ISO 8601 intervals
        if name in _INSTANTS:
            return _instant
        if period is None:
            return None
        return _instant if name == "dateObservedTo" else _before(period)


def device_id_pattern(profile: CityProfile) -> str:
    """How the ids of Device entities are made in this city: what `refDevice` points to."""
    rule = profile.types.get("Device")
    if rule is not None and rule.id:
        return rule.id
    # a pattern without the type in it would give the device the id of what it measures
    return profile.id if profile.id and "{Type}" in profile.id and "{device}" in profile.id else DEFAULT_ID


def fill(text: str, names: MappingOf[str, str]) -> str:
    """The text with what is known of `{Type}`, `{city}`, `{gateway}`, `{device}` put in."""
    return re.sub(r"\{([^{}]*)\}", lambda match: names.get(match[1], match[0]), text)


def _is_structured(spec: AttributeSpec) -> bool:
    return bool(spec.members) and set(spec.json) == {"object"} and spec.kind != "geo"


def constants(model: EntityType) -> list[str]:
    """The attributes of a type that can be given a value."""
    return sorted(name for name in model.attributes if name not in _RESERVED and _NAME.fullmatch(name))


def sources(model: EntityType) -> list[str]:
    """The attributes of a type that a point can be mapped to, and the members of structured ones."""
    specs = {name: model.attributes[name] for name in constants(model)}
    members = (f"{name}.{member}" for name, spec in specs.items() for member in spec.members)
    return sorted([*(name for name, spec in specs.items() if not _is_structured(spec)), *members])


def kind_of(name: str, spec: AttributeSpec) -> Kind:
    """What an attribute is in NGSI-LD. Some schemas call a reference a Property; it is a Relationship all the same."""
    return "relationship" if re.match(r"ref[A-Z]", name) else spec.kind


def geometry(value: Any) -> dict[str, Any]:
    """GeoJSON of `[lon, lat]` or of GeoJSON itself. Raises Mismatch."""
    if isinstance(value, list) and len(value) == 2:
        value = {"type": "Point", "coordinates": value}
    if not isinstance(value, dict) or set(value) - {"type", "coordinates"} or value.get("type") not in _GEOMETRIES:
        raise Mismatch(
            "mapping-value", "this is not a GeoJSON geometry", "write [lon, lat] or {type: Point, coordinates: …}"
        )
    for longitude, latitude in _positions(value.get("coordinates")):
        if not (-180 <= longitude <= 180 and -90 <= latitude <= 90):
            message = f"[{longitude:g}, {latitude:g}] is not a place on earth"
            raise Mismatch("mapping-value", message, "longitude comes first")
    return value


_GEOMETRIES = ("Point", "LineString", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon")


def _positions(coordinates: Any) -> Iterator[tuple[float, float]]:
    if not isinstance(coordinates, list) or not coordinates:
        raise Mismatch("mapping-value", f"{coordinates!r} is not a list of coordinates", "longitude, latitude")
    if all(type(part) in (int, float) for part in coordinates) and len(coordinates) in (2, 3):
        yield coordinates[0], coordinates[1]
        return
    for part in coordinates:
        yield from _positions(part)


def merged(template: EntityMapping, device: EntityMapping | None) -> EntityMapping:
    """The template's mapping with the device's laid over it, key by key; another type starts afresh.

    Null for a structured attribute takes away all its members.
    """
    if device is None:
        return template
    if device.type is not None and template.type is not None and device.type != template.type:
        return device
    more = {
        name: merged(template.more[name], over) if name in template.more else over for name, over in device.more.items()
    }
    gone = {name for name, source in device.attributes.items() if source is None}
    kept = {key: source for key, source in template.attributes.items() if key.partition(".")[0] not in gone}
    return template.model_copy(
        update={
            "type": device.type or template.type,
            "id": device.id or template.id,
            "attributes": {**kept, **device.attributes},
            "static": {**template.static, **device.static},
            "period_s": device.period_s if device.period_s is not None else template.period_s,
            "more": {**template.more, **more},
        }
    )


def _day_us(day: date) -> int:
    return int(datetime.combine(day, clock_time(), UTC).timestamp()) * 1_000_000


def _instant(newest: datetime) -> Any:
    return newest


def _before(period: timedelta) -> Shape:
    return lambda newest: newest - period


def _interval(period: timedelta) -> Shape:
    def interval(newest: datetime) -> str:
        return "/".join(time.isoformat().removesuffix("+00:00") + "Z" for time in (newest - period, newest))

    return interval
