"""Whatever stands in a mapping, compiling gives tables or problems and never a traceback; whatever comes out can be sent."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.harmonise.compile import joined
from gateway.harmonise.dialects import concise, key_values, ngsi_ld, ngsi_v2
from gateway.harmonise.entity import Attribute, Entity, harmonise
from gateway.models.catalogue import catalogue
from gateway.sdk.quantities import units
from tests.gateway.harmonise.test_every_type import mapping_of
from tests.support.ngsi import compiled, device, schema_errors

POINTS = {
    "any": {"quantity": "index", "range": [-1e9, 1e9]},
    "pm": "pm25", "gas": {"quantity": "no2", "unit": "61"}, "t": "air_temperature", "d": "wind_direction", "n": "count",
    "on": "power_on", "s": "text", "lon": "longitude", "lat": "latitude", "open": "door_open",
}  # fmt: skip
NOON_US = 1_780_315_200_000_000
TYPES = [
    "AirQualityObserved",
    "WeatherObserved",
    "ParkingSpot",
    "Device",
    "ACMeasurement",
    "WasteContainer",
    "FloodMonitoring",
]
NAMES = sorted({name for type_name in TYPES for name in catalogue().type(type_name).attributes})  # type: ignore[union-attr]

AUTOMATIC = {
    "dateObserved",
    "dateObservedFrom",
    "dateObservedTo",
    "observationDateTime",
    "timeInstant",
    "location",
    "refDevice",
}

texts = st.sampled_from(
    ["", "ok", "free", "on", "a b", "x\x00y", "<>", "urn:ngsi-ld:X:1", "2026-01-01", "é", "{device}", "{x}"]
) | st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = (
    st.sampled_from(NAMES)
    | st.sampled_from(["current.L1", "current.N", "location.x", "value", "N-TOT", "", "."])
    | texts
)
points = st.sampled_from([*POINTS, "any", "any", "s", "s", "nothing"])
sources = (
    points
    | st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "point": points,
            "unit": st.sampled_from([*list(units())[:40], "XX", ""]),
            "gain": st.floats(-1e6, 1e6),
            "offset": st.floats(-1e6, 1e6),
            "translate": st.dictionaries(texts, values, max_size=3),
            "pattern": texts,
            "longitude": points,
            "latitude": points,
            "sub": st.dictionaries(
                names, st.fixed_dictionaries({}, optional={"value": values, "point": points}), max_size=2
            ),
            "dataset": texts,
        },
    )
)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(points, mapping, readings) that are sound in every attribute of a type, but for up to three odd things."""
    name = draw(st.sampled_from(TYPES))
    model: Any = catalogue().type(name)
    sound_points, mapping, values_of = mapping_of(model, name)
    known = {**POINTS, **sound_points}
    keys = st.sampled_from(list(mapping["attributes"]))
    for odd in draw(
        st.lists(st.sampled_from(["type", "id", "attribute", "source", "static", "period", "reading"]), max_size=3)
    ):
        if odd == "type":
            mapping["type"] = draw(st.sampled_from(["Nonsense", "", *TYPES]))
        elif odd == "id":
            mapping["id"] = draw(texts | st.just("urn:ngsi-ld:{Type}:{city}:{device}"))
        elif odd == "attribute":
            mapping["attributes"][draw(names)] = draw(sources)
        elif odd == "source":
            mapping["attributes"][draw(keys)] = draw(sources)
        elif odd == "static":
            mapping["static"][draw(names)] = draw(values)
        elif odd == "period":
            mapping["period"] = draw(st.sampled_from(["1 s", "15 min", "0 s"]))
        else:
            values_of[draw(st.sampled_from(list(known)))] = draw(raw)
    return known, mapping, values_of


raw = st.booleans() | st.integers() | st.floats() | texts


@settings(max_examples=150)
@given(scenes())
def test_a_mapping_gives_tables_or_problems_and_its_entities_can_be_sent(scene: tuple[dict[str, Any], ...]) -> None:
    known, mapping, values_of = scene
    try:
        plan = device(known, mapping)
    except ValidationError:
        return  # the loader says so, with the place
    tables, problems = compiled(plan)
    assert all(problem.path[:4] == ("links", "roof", "devices", "dev-1") and problem.message for problem in problems)
    _, more = joined({"dev-1": tables})
    if not tables or any(problem.severity == "error" for problem in more):
        return
    have = {point: (value, NOON_US) for point, value in values_of.items()}
    for table in tables:
        entity = harmonise(table, have)
        for write in (ngsi_ld, concise, key_values, ngsi_v2):
            body = write(entity)
            text = json.dumps(body, allow_nan=False)
            assert "\\u0000" not in text
        if not table.missing(set(have)) and not any(name in table.mandatory for name in entity.dropped):
            assert [e for e in schema_errors(key_values(entity), table.entity_type) if "required" not in e] == []


@given(st.text(max_size=30), st.text(max_size=30))
def test_ngsi_v2_never_has_a_forbidden_character_in_a_text_that_orion_looks_at(one: str, two: str) -> None:
    body = ngsi_v2(
        Entity(
            "urn:x:1", "T", "", {"a": Attribute("property", one), "b": Attribute("property", [one, {"k": two}])}, "d"
        )
    )
    for name in ("a", "b"):
        if body[name]["type"] != "TextUnrestricted":
            assert not any(set("<>\"'=;()") & set(text) for text in _texts(body[name]["value"]))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = list(value.values()) if isinstance(value, dict) else value
    return [text for part in parts for text in _texts(part)]
