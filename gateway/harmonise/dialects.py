"""Entity -> the JSON a broker takes: NGSI-LD normalized, concise and key-values; NGSIv2 normalized."""

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from gateway.harmonise.entity import Attribute, Entity

# NGSIv2: forbidden anywhere in a request (Orion manual, "Forbidden characters")
_FORBIDDEN = frozenset("<>\"'=;()")
_V2_TYPES = {
    bool: "Boolean",
    int: "Number",
    float: "Number",
    str: "Text",
    datetime: "DateTime",
    dict: "StructuredValue",
}


@lru_cache(maxsize=256)  # the readings of a set share their time
def wire_time(time: datetime) -> str:
    """RFC 3339, UTC, `Z`, microseconds where there are any."""
    return time.isoformat().removesuffix("+00:00") + "Z"


def ngsi_ld(entity: Entity) -> dict[str, Any]:
    """NGSI-LD normalized, without @context."""
    return _entity(entity, _normalized)


def concise(entity: Entity) -> dict[str, Any]:
    """NGSI-LD concise (5.2.36): a value alone where there is nothing beside it."""
    return _entity(entity, _concise)


def key_values(entity: Entity) -> dict[str, Any]:
    """NGSI-LD simplified: what the published schemas describe. Of several instances the default one, else the first."""
    out: dict[str, Any] = {"id": entity.id, "type": entity.type}
    for key, attribute in entity.attributes.items():
        name, _, dataset = key.partition(" ")
        if not dataset or name not in out:
            out[name] = _plain(attribute.value)
    return out


def ngsi_v2(entity: Entity) -> dict[str, Any]:
    """NGSIv2 normalized: time and unit as metadata, `TimeInstant` of the newest; no @context, no dataset ids.

    Of several instances the default one is sent, else the first: NGSIv2 has no other.
    """
    out: dict[str, Any] = {"id": entity.id, "type": entity.type}
    newest: datetime | None = None
    for key, attribute in entity.attributes.items():
        name, _, dataset = key.partition(" ")
        if dataset and name in out:
            continue
        out[name] = _v2(attribute)
        if attribute.observed_at is not None and (newest is None or attribute.observed_at > newest):
            newest = attribute.observed_at
    if newest is not None:
        out["TimeInstant"] = {"type": "DateTime", "value": _v2_time(newest), "metadata": {}}
    return out


def _entity(entity: Entity, shape: Callable[[Attribute], Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"id": entity.id, "type": entity.type}
    for key, attribute in entity.attributes.items():
        if attribute.kind == "relationship" and type(attribute.value) is list:
            _add(out, key.partition(" ")[0], _targets(attribute, shape))
        elif attribute.dataset_id or key in out:
            _add(out, key.partition(" ")[0], [shape(attribute)])
        else:
            out[key] = shape(attribute)
    return out


def _add(out: dict[str, Any], name: str, instances: list[Any]) -> None:
    """Put instances beside those that are there; a single one stands alone."""
    there = out.get(name)
    together = ([] if there is None else there if isinstance(there, list) else [there]) + instances
    out[name] = together[0] if len(together) == 1 else together


def _targets(attribute: Attribute, shape: Callable[[Attribute], Any]) -> list[Any]:
    """One instance per target (4.5.5): the first is the default, the others are told apart by their target."""
    uris: list[str] = attribute.value
    return [
        shape(attribute._replace(value=uri, dataset_id=attribute.dataset_id if n == 0 else uri))
        for n, uri in enumerate(uris)
    ]


def _normalized(attribute: Attribute) -> dict[str, Any]:
    kind, value, unit, observed_at, sub, dataset_id = attribute
    out: dict[str, Any]
    if kind == "property":
        out = {"type": "Property", "value": _typed(value) if type(value) is datetime else value}
        if unit:
            out["unitCode"] = unit
    elif kind == "relationship":
        out = {"type": "Relationship", "object": value}
    elif kind == "geo":
        out = {"type": "GeoProperty", "value": value}
    else:
        out = {"type": "LanguageProperty", "languageMap": value}
    if observed_at is not None:
        out["observedAt"] = wire_time(observed_at)
    if dataset_id:
        out["datasetId"] = dataset_id
    if sub:
        for name, inner in sub.items():
            out[name] = _normalized(inner)
    return out


def _concise(attribute: Attribute) -> Any:
    out = _normalized(attribute)
    kind = out.pop("type")
    alone = len(out) == 1 and kind in ("Property", "GeoProperty")
    # a bare object would be read as an attribute with members, so only GeoJSON may stand alone
    if alone and (kind == "GeoProperty" or not isinstance(out["value"], dict)):
        return out["value"]
    for name, inner in attribute.sub.items():
        out[name] = _concise(inner)
    return out


def _typed(value: datetime) -> dict[str, str]:
    return {"@type": "DateTime", "@value": wire_time(value)}


def _plain(value: Any) -> Any:
    return wire_time(value) if isinstance(value, datetime) else value


@lru_cache(maxsize=256)
def _v2_time(time: datetime) -> str:
    """Milliseconds: what Orion keeps."""
    return time.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _v2(attribute: Attribute) -> dict[str, Any]:
    value = attribute.value
    metadata: dict[str, Any] = {}
    if attribute.unit:
        metadata["unitCode"] = {"type": "Text", "value": attribute.unit}
    if attribute.observed_at is not None:
        metadata["TimeInstant"] = {"type": "DateTime", "value": _v2_time(attribute.observed_at)}
    for name, inner in attribute.sub.items():
        metadata[name] = {"type": _v2_type(inner), "value": _v2_value(inner.value)}
    return {"type": _v2_type(attribute), "value": _v2_value(value), "metadata": metadata}


def _v2_type(attribute: Attribute) -> str:
    if attribute.kind == "geo":
        return "geo:json"
    if attribute.kind == "relationship":
        return "Relationship"
    if attribute.kind == "property" and _forbidden(attribute.value):
        return "TextUnrestricted"  # the type for which Orion does not look at the characters
    return _V2_TYPES.get(type(attribute.value), "StructuredValue")


def _v2_value(value: Any) -> Any:
    return _v2_time(value) if isinstance(value, datetime) else value


def _forbidden(value: Any) -> bool:
    if isinstance(value, str):
        return not _FORBIDDEN.isdisjoint(value)
    if isinstance(value, list):
        return any(_forbidden(item) for item in value)
    if isinstance(value, dict):
        return any(_forbidden(item) for pair in value.items() for item in pair)
    return False
