"""Mapping mistakes are found at load, each with its place; a sound mapping gives a table."""

from typing import Any

import pytest

from gateway.config.model import CityProfile
from tests.support.ngsi import compiled, device

AIR = {"pm": "pm25", "t": "air_temperature", "rh": "humidity", "gas": {"quantity": "no2", "unit": "61"}, "note": "text"}


def air(attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "AirQualityObserved", "attributes": attributes, **more}


def test_a_sound_mapping_has_no_problem_and_says_which_points_are_not_used() -> None:
    [table], problems = compiled(device(AIR, air({"pm25": "pm", "temperature": "t"})))
    assert problems == ()
    assert table.entity_id == "urn:ngsi-ld:AirQualityObserved:milano:gw-1:dev-1"
    assert table.unused == ("rh", "gas", "note")
    assert table.missing(set()) == {"dateObserved"}
    assert table.missing({"pm"}) == frozenset()


def test_a_template_that_maps_nothing_gives_no_table_and_no_problem() -> None:
    assert compiled(device(AIR, {})) == ((), ())


@pytest.mark.parametrize(
    ("entity", "code", "inside", "message", "remedy"),
    [
        (air({"pm25": "pm"}, static={"areaServd": "x"}), "mapping-attribute", ("static", "areaServd"), "no attribute", "areaServed"),
        (air({"pm2_5": "pm"}), "mapping-attribute", ("attributes", "pm2_5"), "no attribute pm2_5", "pm25"),
        (air({"typeOfLocation": "note"}), "mapping-attribute", ("attributes", "typeOfLocation"), "", "typeofLocation"),
        (air({"pm25": "pm2"}), "mapping-point", ("attributes", "pm25"), "pm2 is not a point", "points: pm, t"),
        (air({"pm25": "t"}), "mapping-unit", ("attributes", "pm25"), "temperature.*mass concentration", "GQ"),
        (air({"pm25": {"point": "pm", "unit": "PM"}}), "mapping-unit", ("attributes", "pm25"), "'PM' is not a code", ""),
        (air({"pm25": "note"}), "mapping-value", ("attributes", "pm25"), "a text cannot become", ""),
        ({"attributes": {"pm25": "pm"}}, "mapping-type", (), "no entity type", "add type"),
        ({"type": "AirQualityObservd"}, "mapping-type", ("type",), "not a type", "AirQualityObserved"),
        (air({"pm25": "pm", "pm_10": None}), "mapping-attribute", ("attributes", "pm_10"), "no attribute", "pm10"),
        (air({"pm25": "pm"}, static={"areaServd": None}), "mapping-attribute", ("static", "areaServd"), "no attribute", "areaServed"),
        (air({"pm25": "pm"}, static={"address.addressLocality": "x"}), "mapping-attribute", ("static", "address.addressLocality"), "no attribute", ""),
        (air({"pm25": "pm"}, static={"typeofLocation": "outside"}), "mapping-value", ("static", "typeofLocation"), "outdoor", ""),
        (air({"pm25": "pm"}, static={"reliability": 1.5}), "mapping-value", ("static", "reliability"), "above 1", ""),
        (air({"pm25": "pm"}, static={"reliability": "good"}), "mapping-value", ("static", "reliability"), "string", ""),
        (air({"pm25": "pm"}, static={"areaServed": "a\x00b"}), "mapping-value", ("static", "areaServed"), "control", ""),
        (air({"pm25": "pm"}, static={"refPointOfInterest": "the park"}), "mapping-value", ("static", "refPointOfInterest"), "id", "urn"),
        (air({"pm25": "pm"}, id="urn:ngsi-ld:{Typ}:1"), "mapping-id", ("id",), "{Typ}", "{Type}"),
        (air({"pm25": "pm"}, id="bovisa roof"), "mapping-id", ("id",), "not an entity id", "urn:ngsi-ld"),
        (air({"pm25": "pm"}, id="urn:ngsi-ld:A:" + "x" * 300), "mapping-id", ("id",), "314 characters", ""),
        (air({"pm25": "pm"}, id="urn:x:<script>"), "mapping-id", ("id",), "not an entity id", ""),
        ({"type": "ParkingSpot", "static": {"status": "free"}}, "mapping-mandatory", (), "needs category", "static"),
        ({"type": "NoiseLevelObserved"}, "mapping-mandatory", (), "needs dateObservedFrom", "period"),
        ({"type": "WaterQualityObserved", "attributes": {"N-TOT": "pm"}}, "mapping-name", ("attributes", "N-TOT"), "not a legal", ""),
        ({"type": "ACMeasurement", "attributes": {"activePower.L4": "pm"}}, "mapping-attribute", ("attributes", "activePower.L4"), "no member L4", "L1"),
        ({"type": "ACMeasurement", "attributes": {"activePower": "pm"}}, "mapping-attribute", ("attributes", "activePower"), "structured", "activePower.L1"),
        (air({"pm25.x": "pm"}), "mapping-attribute", ("attributes", "pm25.x"), "not a structured value", ""),
    ],
)  # fmt: skip
def test_a_static_mistake_is_a_problem_with_its_place(
    entity: dict[str, Any], code: str, inside: tuple[str, ...], message: str, remedy: str
) -> None:
    tables, problems = compiled(device(AIR, entity))
    found = [
        p for p in problems if p.code == code and p.path == ("links", "roof", "devices", "dev-1", "entity", *inside)
    ]
    assert found, [(p.code, p.path, p.message) for p in problems]
    import re

    assert any(re.search(message, p.message) for p in found), [p.message for p in found]
    assert any(remedy in p.remedy or remedy in p.message for p in found), [p.remedy for p in found]
    assert tables == (), "a table with an error in it must not be used"


def test_a_missing_location_is_a_problem_of_the_device() -> None:
    _, [problem] = compiled(device(AIR, air({"pm25": "pm"}), location=None))
    assert problem.code == "mapping-location"
    assert "location" in problem.remedy


@pytest.mark.parametrize(("unit", "remedy"), [("", "no2 is sent in GQ"), ("GQ", "")])
def test_a_unit_is_named_as_the_remedy_where_the_operator_named_none(unit: str, remedy: str) -> None:
    attribute = {"point": "n", **({"unit": unit} if unit else {})}
    _, [problem] = compiled(device({"n": "state_code"}, air({"no2": attribute})))
    assert (problem.code, problem.remedy) == ("mapping-unit", remedy)


@pytest.mark.parametrize(("characters", "problems"), [(256, []), (257, ["the id has 257 characters, at most 256"])])
def test_an_id_has_at_most_256_characters(characters: int, problems: list[str]) -> None:
    name = "urn:ngsi-ld:A:".ljust(characters, "x")
    assert [p.message for p in compiled(device(AIR, air({"pm25": "pm"}, id=name)))[1]] == problems


def test_all_mistakes_come_at_once() -> None:
    _, problems = compiled(device(AIR, air({"pm2_5": "pm", "temperature": "tt"}, id="no id")))
    assert {p.code for p in problems} == {"mapping-attribute", "mapping-point", "mapping-id"}


def test_a_device_lays_its_own_mapping_over_the_templates_key_by_key() -> None:
    plan = device(
        AIR,
        air({"pm25": "pm", "temperature": "t"}, static={"areaServed": "Bovisa"}),
        entity={"attributes": {"temperature": None, "relativeHumidity": "rh"}, "static": {"areaServed": "Isola"}},
    )
    [table], problems = compiled(plan)
    assert problems == ()
    assert sorted(table.slots) == ["pm", "rh"]
    assert table.static["areaServed"].value == "Isola"


def test_null_for_a_structured_attribute_takes_away_all_its_members() -> None:
    points = {"v": "voltage", "a1": "current", "a2": "current"}
    mapping: dict[str, Any] = {
        "type": "ACMeasurement",
        "static": {"phaseType": "threePhase"},
        "attributes": {"phaseVoltage.L1": "v", "current.L1": "a1", "current.L2": "a2"},
    }
    [table], problems = compiled(device(points, mapping, entity={"attributes": {"current": None}}))
    assert (sorted(table.slots), problems) == (["v"], ())
    [table], _ = compiled(device(points, mapping, entity={"attributes": {"current": None, "current.L3": "a2"}}))
    assert sorted(table.slots) == ["a2", "v"]
    laid = {
        **mapping,
        "attributes": {**mapping["attributes"], "current": None},
    }  # by a variant of the template, or on a base
    [table], _ = compiled(device(points, laid))
    assert sorted(table.slots) == ["v"]
    [table], _ = compiled(device(points, mapping, entity={"attributes": {"current.L2": None}}))
    assert sorted(table.slots) == ["a1", "v"]


def test_another_type_in_the_device_starts_afresh() -> None:
    plan = device(AIR, air({"pm25": "pm"}), entity={"type": "WeatherObserved", "attributes": {"temperature": "t"}})
    [table], problems = compiled(plan)
    assert problems == ()
    assert (table.entity_type, sorted(table.slots)) == ("WeatherObserved", ["t"])


def test_a_city_profile_gives_ids_context_and_extra_attributes() -> None:
    profile = CityProfile.model_validate(
        {
            "id": "urn:ngsi-ld:{Type}:{city}:{device}",
            "provider": "Comune",
            "static": {"areaServed": "Milano", "notInThisModel": 1},
            "types": {
                "AirQualityObserved": {
                    "context": "https://milano.example/air.jsonld",
                    "static": {"typeofLocation": "outdoor"},
                }
            },
        }
    )
    [table], problems = compiled(device(AIR, air({"pm25": "pm"})), profile)
    assert problems == ()
    assert table.entity_id == "urn:ngsi-ld:AirQualityObserved:milano:dev-1"
    assert table.context == "https://milano.example/air.jsonld"
    assert {n: a.value for n, a in table.static.items() if n in ("areaServed", "dataProvider", "typeofLocation")} == {
        "areaServed": "Milano",
        "dataProvider": "Comune",
        "typeofLocation": "outdoor",
    }
    assert "notInThisModel" not in table.static


def test_a_rule_of_the_city_is_for_the_type_as_the_mapping_writes_it() -> None:
    rule = {"static": {"areaServed": "Milano"}}
    profile = CityProfile.model_validate({"types": {"synchronicity/PrivacyObject": rule}})
    [table], _ = compiled(device({"n": "people_count"}, {"type": "synchronicity/PrivacyObject"}), profile)
    assert (table.entity_type, table.static["areaServed"].value) == ("PrivacyObject", "Milano")
