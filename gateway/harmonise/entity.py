"""The table walk: mapping and readings become an entity. Pure; all that can fail was checked when the mapping was compiled."""

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gateway.sdk.reading import Value

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping, Slot
    from gateway.harmonise.values import Conversion

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STRUCTURE_SPAN_US = 10_000_000  # members of one structured value are of one poll; older ones stay out
_NONE: MappingOf[str, "Attribute"] = MappingProxyType({})


class Attribute(NamedTuple):
    """One attribute instance of an entity. (A tuple, because thousands a second are made.)

    Attributes:
        kind: what it is in NGSI-LD.
        value: JSON value; a `datetime` for an instant; URI or list of URIs for a relationship; GeoJSON for geo.
        unit: UN/CEFACT code; "" = none.
        observed_at: aware, UTC; None for what is not measured.
        sub: sub-attributes by name.
        dataset_id: URI of the instance; "" = the default one.
    """

    kind: Literal["property", "relationship", "geo", "language"]
    value: Any
    unit: str = ""
    observed_at: datetime | None = None
    sub: MappingOf[str, "Attribute"] = _NONE
    dataset_id: str = ""


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity, or the part of one that changed.

    Attributes:
        context: URL of the subject's @context.
        attributes: by name; an instance with a dataset id stands under "name dataset_id" (names have no space).
        dropped: attribute -> why its value was left out: the model does not allow it.
        readings: of which it was made.
    """

    id: str
    type: str
    context: str
    attributes: dict[str, Attribute]
    device: str
    dropped: MappingOf[str, str] = field(default_factory=dict)
    readings: int = field(default=0, compare=False)


def harmonise(mapping: "Mapping", readings: MappingOf[str, Sequence[Any]]) -> Entity:
    """The entity of these readings, with the mapping's static attributes and times.

    Args:
        readings: point -> (value, time in UTC microseconds, …); good readings only. Points without a slot are skipped.
    """
    attributes: dict[str, Attribute] = {}
    dropped: dict[str, str] = {}
    parts: dict[str, list[tuple[Slot, Any, int]]] = {}
    slots_of = mapping.slots
    newest_us, at_us, at = 0, -1, _EPOCH
    for point, reading in readings.items():
        slots = slots_of.get(point)
        if not slots:
            continue
        raw: Value = reading[0]
        time_us: int = reading[1]
        if time_us != at_us:
            at_us, at = time_us, _EPOCH + timedelta(microseconds=time_us)
        for slot in slots:
            value = (slot.convert if not slot.epochs else _calibrated(slot, time_us))(raw)
            if value is None:
                dropped[slot.key] = f"{raw!r} is not allowed for {slot.key}: {slot.allows}"
                continue
            if time_us > newest_us:
                newest_us = time_us
            if slot.member:
                parts.setdefault(slot.key, []).append((slot, value, time_us))
            else:
                sub = slot.sub if not slot.sub_slots else _sub(slot, readings)
                attributes[slot.key] = Attribute(slot.kind, value, slot.unit, at, sub, slot.dataset_id)
    for key, members in parts.items():
        structure = _structure(members, readings)
        if structure is None:
            dropped[key] = "a place needs longitude and latitude of one moment"
        else:
            attributes[key] = structure
    if newest_us:
        newest = _EPOCH + timedelta(microseconds=newest_us)
        for name, shape in mapping.times:
            attributes[name] = Attribute("property", shape(newest), "", newest)
    attributes.update(mapping.static)
    return Entity(
        mapping.entity_id, mapping.entity_type, mapping.context, attributes, mapping.device, dropped, len(readings)
    )


def _calibrated(slot: "Slot", time_us: int) -> "Conversion":
    """The conversion that was valid when the value was measured."""
    return next((convert for from_us, convert in slot.epochs if time_us >= from_us), slot.convert)


def _sub(slot: "Slot", readings: MappingOf[str, Sequence[Any]]) -> MappingOf[str, Attribute]:
    """Constant sub-attributes, and those whose point is among the readings."""
    sub = dict(slot.sub)
    for point, inner in slot.sub_slots:
        reading = readings.get(point)
        value = None if reading is None else inner.convert(reading[0])
        if reading is not None and value is not None:
            observed_at = _EPOCH + timedelta(microseconds=reading[1])
            sub[inner.key] = Attribute(inner.kind, value, inner.unit, observed_at)
    return sub


def _structure(members: "list[tuple[Slot, Any, int]]", readings: MappingOf[str, Sequence[Any]]) -> Attribute | None:
    """A structured value of the members that were read together, at the time of the newest; None for half a place."""
    newest_us = max(time_us for _, _, time_us in members)
    value = {slot.member: part for slot, part, time_us in members if newest_us - time_us <= STRUCTURE_SPAN_US}
    slot = members[0][0]
    at = _EPOCH + timedelta(microseconds=newest_us)
    shape: dict[str, Any] = value
    if slot.kind == "geo":
        if value.keys() != {"lon", "lat"}:
            return None
        shape = {"type": "Point", "coordinates": [value["lon"], value["lat"]]}
    return Attribute(slot.kind, shape, slot.unit, at, _sub(slot, readings), slot.dataset_id)
