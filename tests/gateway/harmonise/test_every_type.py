"""Every type of the catalogue can be reached from YAML: each legal attribute takes a point, and the result is valid."""

from typing import Any

import pytest

from gateway.harmonise.dialects import key_values, ngsi_ld
from gateway.harmonise.entity import harmonise
from gateway.models.catalogue import AttributeSpec, EntityType, catalogue
from gateway.sdk.quantities import quantities, unit_fits
from tests.support.ngsi import compiled, device, expand, schema_errors

STANDARD = [name for name in catalogue().names() if catalogue().type(name).origin == "standard"]  # type: ignore[union-attr]
# Not made by sensors, and full of agents, agreements and catalogues.
OFFICE = {"Agent", "Catalogue", "CatalogueRecord", "DataService", "Dataset", "Distribution"}
NOON_US = 1_780_315_200_000_000
TIMES = {"dateObserved", "dateObservedFrom", "dateObservedTo", "observationDateTime", "timeInstant"}
REFERENCES_AS_NUMBERS = {"WaterQualityObserved.refPointOfInterest"}


def point_for(spec: AttributeSpec) -> tuple[dict[str, Any], Any] | None:
    """A quantity that fits the attribute, and a value within its bounds; None for what no single point can give."""
    if spec.kind in ("geo", "relationship") or spec.enum or spec.format or spec.pattern:
        return None
    if "boolean" in spec.json:
        return {"quantity": "alarm"}, True
    if {"number", "integer"} & set(spec.json):
        low = spec.minimum if spec.minimum is not None else 0.0
        high = spec.maximum if spec.maximum is not None else low + 1.0
        if spec.unit:
            fitting = next(q for q in quantities().values() if q.kind == "number" and unit_fits(q, spec.unit))
            return {"quantity": fitting.name, "unit": spec.unit, "range": [-1e9, 1e9]}, (low + high) / 2
        return {"quantity": "index"}, (low + high) / 2
    if spec.json == ("string",):
        return {"quantity": "text"}, "as the device says"
    return None


def constant_for(spec: AttributeSpec) -> Any:
    if spec.kind == "relationship":
        return "urn:ngsi-ld:Thing:1"
    if spec.kind == "geo":
        return [9.1, 45.5]
    if spec.enum:
        return spec.enum[0]
    if spec.json == ("array",):
        return [constant_for(spec.items) if spec.items else "x"]
    if spec.format == "date-time":
        return "2026-06-01T12:00:00Z"
    if {"number", "integer"} & set(spec.json):
        return spec.minimum if spec.minimum is not None else 1
    return "urn:ngsi-ld:Thing:1" if spec.format == "uri" else "text"


def mapping_of(model: EntityType, name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(points, entity, readings) that use every attribute a point can feed and give the rest of what is mandatory."""
    points: dict[str, Any] = {}
    attributes: dict[str, str] = {}
    readings: dict[str, Any] = {}
    for key, spec in model.attributes.items():
        members = {f"{key}.{m}": s for m, s in spec.members.items()} if spec.json == ("object",) else {key: spec}
        for attribute, inner in members.items():
            found = None if key in TIMES or key.startswith("ref") else point_for(inner)
            if found and key.isidentifier() and key not in ("value", "features", "dataset", "type", "id"):
                point = f"p{len(points)}"
                points[point], readings[point] = found
                attributes[attribute] = point
    given = {a.partition(".")[0] for a in attributes} | TIMES | {"location"}
    static = {key: constant_for(model.attributes[key]) for key in model.mandatory - given}
    points.setdefault("p", {"quantity": "index"})
    return points, {"type": name, "attributes": attributes, "static": static, "period": "5 min"}, readings


@pytest.mark.parametrize("name", sorted(set(STANDARD) - OFFICE))
def test_a_type_is_reachable_from_yaml(name: str) -> None:
    model = catalogue().type(name)
    assert model is not None
    points, entity, readings = mapping_of(model, name)
    tables, problems = compiled(device(points, entity))
    assert [p for p in problems if p.severity == "error"] == []
    result = harmonise(tables[0], {p: (v, NOON_US) for p, v in readings.items()})
    assert result.dropped == {}
    assert schema_errors(key_values(result)) == []
    expanded = expand(ngsi_ld(result), result.context)
    assert expanded["@type"][0].startswith("https://smartdatamodels.org/")
