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
    """

    id: str
    type: str
    context: str
    attributes: dict[str, Attribute]
    device: str
    dropped: MappingOf[str, str] = field(default_factory=dict)


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
        if slots is None:
            continue
        raw: Value = reading[0]
        time_us: int = reading[1]
        if time_us != at_us:
            at_us, at = time_us, _EPOCH + timedelta(microseconds=time_us)
        for slot in slots:
            value = slot.convert(raw)
            if value is None:
                dropped[slot.key] = f"{raw!r} is not allowed for {slot.key}: {slot.allows}"
                continue
            newest_us = max(newest_us, time_us)
            if slot.member:
                parts.setdefault(slot.key, []).append((slot, value, time_us))
            else:
                attributes[slot.key] = Attribute(slot.kind, value, slot.unit, at, slot.sub, slot.dataset_id)
    for key, members in parts.items():
        attributes[key] = _structure(members)
    if newest_us:
        newest = _EPOCH + timedelta(microseconds=newest_us)
        for name, shape in mapping.times:
            attributes[name] = Attribute("property", shape(newest), "", newest)
    attributes.update(mapping.static)
    return Entity(mapping.entity_id, mapping.entity_type, mapping.context, attributes, mapping.device, dropped)


def _structure(members: "list[tuple[Slot, Any, int]]") -> Attribute:
    """A structured value of the members that were read together, at the time of the newest."""
    newest_us = max(time_us for _, _, time_us in members)
    value = {slot.member: part for slot, part, time_us in members if newest_us - time_us <= STRUCTURE_SPAN_US}
    slot = members[0][0]
    at = _EPOCH + timedelta(microseconds=newest_us)
    return Attribute(slot.kind, value, slot.unit, at, slot.sub, slot.dataset_id)
