"""A recipe makes the tables that it was written of, whatever has become of config, template and model meanwhile; and never crashes."""

import contextlib
import json
import zlib
from collections.abc import Mapping as MappingOf
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.model import CityProfile, TypeRule
from gateway.harmonise.compile import Mapping, compile_device, joined
from gateway.harmonise.entity import harmonise
from gateway.harmonise.recipe import (
    RecipeError,
    entities_of,
    is_same_kind,
    kind_name,
    kind_of,
    points_of,
    recipe_of,
    tables_of,
)
from gateway.models.catalogue import catalogue
from gateway.sdk.config import Calibration
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point
from gateway.sdk.template import EntityMapping, Template, TemplatePoint
from tests.gateway.harmonise.test_shipped_templates import NOON_US, SHIPPED, planned

PROFILE = CityProfile(
    id="urn:ngsi-ld:{Type}:{city}:{device}",
    static={"dataProvider": "city"},
    types={"Device": TypeRule(id="urn:x:{device}"), "ACMeasurement": TypeRule(static={"name": "a meter"})},
    provider="somebody",
    broker={"url": "https://secret.example", "tenant": "a_tenant"},
)


def compiled(template: Template, profile: CityProfile = PROFILE, **config: Any) -> tuple[Mapping, ...]:
    device = planned(template)
    device = replace(device, config=device.config.model_copy(update=config))
    tables, problems = compile_device(device, gateway_id="gw-1", city="milano", profile=profile)
    assert not [problem for problem in problems if problem.severity == "error"]
    return joined({"dev-1": tables})[0]["dev-1"]


def again(tables: tuple[Mapping, ...], device: str = "dev-1") -> tuple[Mapping, ...]:
    return tables_of(recipe_of(tables), device, catalogue())


def plain(table: Mapping) -> Any:
    """A table without its functions and without what nobody needs who sends."""
    slots = {
        point: [(slot.key, slot.member, slot.unit, len(slot.epochs)) for slot in of]
        for point, of in table.slots.items()
    }
    times = [name for name, _ in table.times]
    return table.entity_id, table.entity_type, table.context, table.mandatory, slots, table.static, times


def meter(**entity: Any) -> Template:
    mapping = {
        "type": "ACMeasurement",
        "attributes": {"phaseVoltage.L1": "voltage"},
        "static": {"phaseType": "singlePhase"},
    }
    return Template(
        vendor="acme",
        model="meter",
        name="acme/meter",
        points={"voltage": TemplatePoint(quantity="voltage"), "spare": TemplatePoint(quantity="current")},
        entity=EntityMapping.model_validate({**mapping, **entity}),
    )


@pytest.mark.parametrize(("name", "driver", "template"), SHIPPED, ids=[name for name, _, _ in SHIPPED])
def test_of_every_shipped_template_the_recipe_makes_the_same_entities(
    name: str, driver: Any, template: Template
) -> None:
    tables = compiled(template)
    if not tables:
        return
    found = again(tables)

    assert list(map(plain, found)) == list(map(plain, tables))
    assert recipe_of(tables) == recipe_of(compiled(template)), "nothing is written anew that did not change"
    values = {point: (_value(its), NOON_US) for point, its in planned(template).points.items()}
    for one, other in zip(found, tables, strict=True):
        assert harmonise(one, values) == harmonise(other, values)


def _value(point: Point) -> Any:
    return {"text": "x", "boolean": True, "integer": 3}.get(quantities()[point.quantity].kind, 3.5)


def test_calibration_by_date_place_period_and_further_entities_are_in_it() -> None:
    more = {
        "spare": {
            "type": "ACMeasurement",
            "attributes": {"current.L1": "spare"},
            "static": {"phaseType": "singlePhase"},
        }
    }
    calibrate = {
        "voltage": Calibration.model_validate(
            {"gain": 2, "valid_from": "2026-05-01", "previous": [{"offset": 5, "valid_from": "2025-01-01"}]}
        )
    }
    tables = compiled(meter(period="15 min", more=more), calibrate=calibrate)

    found = again(tables)

    assert {table.name: table.entity_id for table in found} == entities_of(recipe_of(tables))
    for time_us in (NOON_US, NOON_US - 300 * 86_400_000_000, 0):
        readings = {"voltage": (100.0, time_us + 1), "spare": (1.5, time_us + 1)}
        assert [harmonise(t, readings) for t in found] == [harmonise(t, readings) for t in tables]
    assert points_of(recipe_of(tables)) == {"voltage", "spare"}


def test_the_readings_may_be_called_otherwise_than_the_device_was() -> None:
    [table] = again(compiled(meter()), "dev-1 (acme/meter 1234)")
    assert (table.device, table.entity_id) == ("dev-1 (acme/meter 1234)", "urn:ngsi-ld:ACMeasurement:milano:dev-1")


def test_a_citys_own_model_is_in_it() -> None:
    index = catalogue()._index["types"]["ACMeasurement"]
    models = catalogue().with_index({"types": {"TramMeter": {**index, "origin": "models"}}, "terms": {}})
    device = planned(meter(type="TramMeter"))
    tables, problems = compile_device(device, gateway_id="gw-1", city="milano", profile=PROFILE, models=models)
    assert not problems

    [table] = tables_of(recipe_of(tables), "dev-1", catalogue())  # it is not in the catalogue any more

    assert plain(table) == plain(tables[0])


def test_what_others_gave_to_a_shared_entity_is_not_asked_of_it_alone() -> None:
    shared = compiled(meter())[0]
    [table] = again((replace(shared, mandatory=frozenset({"phaseVoltage"}), static={}),))
    assert table.mandatory == {"phaseVoltage"}
    assert table.static == {}


def test_it_holds_no_address_of_a_broker() -> None:
    text = zlib.decompress(recipe_of(compiled(meter()))[7:]).decode()
    assert "secret.example" not in text
    assert "a_tenant" not in text
    assert set(json.loads(text)) == {
        "name", "gateway", "city", "location", "points", "entity", "calibrate", "profile", "types", "tables",
    }  # fmt: skip


RECIPE = recipe_of(compiled(meter()))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "damaged"),
        (RECIPE[:-1], "damaged"),
        (RECIPE[:20] + bytes((RECIPE[20] ^ 1,)) + RECIPE[21:], "damaged"),
        (RECIPE[:2] + b"\x02" + RECIPE[3:], "version 2, this one knows 1"),
    ],
)
def test_one_that_is_damaged_or_of_another_version_says_so(body: bytes, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        tables_of(body, "dev-1", catalogue())
    with pytest.raises(RecipeError, match=reason):
        points_of(body)
    assert entities_of(body) == {}


def packed(content: Any) -> bytes:
    body = zlib.compress(json.dumps(content).encode())
    return RECIPE[:3] + zlib.crc32(body).to_bytes(4, "little") + body


CONTENT = json.loads(zlib.decompress(RECIPE[7:]))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.sampled_from(sorted(CONTENT)), _json)
def test_any_content_makes_tables_or_says_why_not(key: str, value: Any) -> None:
    body = packed({**CONTENT, key: value})
    with contextlib.suppress(RecipeError):
        tables_of(body, "dev-1", catalogue())
    with contextlib.suppress(RecipeError):
        points_of(body)
    entities_of(body)


@settings(max_examples=40)
@given(_json)
def test_any_json_is_no_recipe(content: Any) -> None:
    with pytest.raises(RecipeError):
        tables_of(packed(content), "dev-1", catalogue())
    assert entities_of(packed(content)) == {}
    assert is_same_kind(packed(content), KIND)
    kind_name(packed(content))


# --- kinds -------------------------------------------------------------------------------------------------------------


def kind(name: str = "acme/meter", **points: tuple[str, str]) -> bytes:
    of = {point: Point(point, *its) for point, its in points.items()}
    return kind_of(meter().model_copy(update={"name": name}), of)


VOLTAGE, CURRENT = ("voltage", "VLT"), ("current", "AMP")
KIND = kind(u=VOLTAGE, i=CURRENT)


@pytest.mark.parametrize(
    ("new", "same"),
    [
        (kind(u=VOLTAGE, i=CURRENT), True),
        (kind(i=CURRENT, u=VOLTAGE), True),
        (kind(u=VOLTAGE, i=CURRENT, f=("frequency", "HTZ")), True),
        (kind(u=VOLTAGE), False),
        (kind(u=("voltage", "2Z"), i=CURRENT), False),
        (kind(u=("voltage_l1", "VLT"), i=CURRENT), False),
        (kind("acme/other", u=VOLTAGE, i=CURRENT), False),
    ],
    ids=["same", "order", "more", "fewer", "unit", "quantity", "template"],
)
def test_readings_are_of_one_kind_while_all_points_mean_what_they_did(new: bytes, same: bool) -> None:
    assert is_same_kind(KIND, new) is same
    assert (kind_name(KIND) == kind_name(new)) is (new == KIND)


def test_a_kind_is_called_by_its_template() -> None:
    assert kind_name(KIND).startswith("acme/meter ")
    named: MappingOf[str, str] = {
        kind_name(kind(u=(quantity, "VLT"))): quantity for quantity in ("voltage", "voltage_l1")
    }
    assert len(named) == 2
