"""The mapping language: places from points, sub-properties, instances, references, calibration by date, several entities."""

import math
from datetime import UTC, date, datetime
from typing import Any

import pytest

from gateway.harmonise.compile import Mapping, joined
from gateway.harmonise.dialects import key_values, ngsi_ld, ngsi_v2
from gateway.harmonise.entity import harmonise
from tests.support.ngsi import compiled, device, schema_errors

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
TRACKER = {
    "type": "Device",
    "attributes": {"batteryLevel": "battery", "location": {"longitude": "lon", "latitude": "lat"}},
    "static": {"controlledProperty": ["location"]},
}
TRACKER_POINTS = {"battery": "battery_level", "lon": "longitude", "lat": "latitude"}


def table(points: dict[str, Any], entity: dict[str, Any], **config: Any) -> Mapping:
    [found], problems = compiled(device(points, entity, **config))
    assert [p for p in problems if p.severity == "error"] == []
    return found


def at_noon(mapping: Mapping, **values: Any) -> Any:
    return harmonise(mapping, {p: v if isinstance(v, tuple) else (v, NOON_US) for p, v in values.items()})


# places


def test_two_points_make_a_place_that_the_installed_location_does_not_overrule() -> None:
    entity = at_noon(table(TRACKER_POINTS, TRACKER), battery=75.0, lon=9.16, lat=45.5)
    assert ngsi_ld(entity)["location"] == {
        "type": "GeoProperty",
        "value": {"type": "Point", "coordinates": [9.16, 45.5]},
        "observedAt": "2026-06-01T12:00:00Z",
    }
    assert schema_errors(key_values(entity)) == []
    assert ngsi_v2(entity)["location"]["type"] == "geo:json"


@pytest.mark.parametrize(
    "place", [{"lon": 9.16}, {"lon": 9.16, "lat": 95.0}, {"lon": 9.16, "lat": (45.5, NOON_US - 60_000_000)}]
)
def test_half_a_place_is_left_out_with_its_reason(place: dict[str, Any]) -> None:
    entity = at_noon(table(TRACKER_POINTS, TRACKER), battery=75.0, **place)
    assert "location" not in entity.attributes
    assert "location" in entity.dropped
    assert "batteryLevel" in entity.attributes


def test_a_place_is_known_when_both_its_points_are() -> None:
    mapping = table(
        {"pm": "pm25", "lon": "longitude", "lat": "latitude"},
        {
            "type": "AirQualityObserved",
            "attributes": {"pm25": "pm", "location": {"longitude": "lon", "latitude": "lat"}},
        },
    )
    assert mapping.missing({"pm", "lon"}) == {"location"}
    assert mapping.missing({"pm", "lon", "lat"}) == frozenset()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([45.5, 99.0, 1, 2], "GeoJSON"),
        ([9.1, 145.5], "not a place on earth"),
        ("Milano", "GeoJSON"),
        ({"type": "Circle", "coordinates": [1, 2]}, "GeoJSON"),
        ({"type": "Point", "coordinates": []}, "list of coordinates"),
        ({"type": "Point", "coordinates": [9.1, "45"]}, "list of coordinates"),
    ],
)
def test_a_constant_place_that_is_none_is_a_problem(value: Any, message: str) -> None:
    entity = {"type": "AirQualityObserved", "attributes": {"pm25": "pm"}, "static": {"location": value}}
    _, problems = compiled(device({"pm": "pm25"}, entity))
    assert [p.code for p in problems] == ["mapping-value"]
    assert message in problems[0].message
    assert problems[0].path[-2:] == ("static", "location")


# sub-properties, instances, references


def test_a_property_has_constant_and_measured_sub_properties() -> None:
    mapping = table(
        {"pm": "pm25", "rh": "humidity"},
        {
            "type": "AirQualityObserved",
            "attributes": {
                "pm25": {"point": "pm", "sub": {"reliability": {"value": 0.7}, "relativeHumidity": {"point": "rh"}}}
            },
        },
    )
    body = ngsi_ld(at_noon(mapping, pm=12.0, rh=81.0))
    assert body["pm25"]["reliability"] == {"type": "Property", "value": 0.7}
    assert body["pm25"]["relativeHumidity"] == {
        "type": "Property",
        "value": 81.0,
        "unitCode": "P1",
        "observedAt": "2026-06-01T12:00:00Z",
    }
    assert "relativeHumidity" not in ngsi_ld(at_noon(mapping, pm=12.0))["pm25"]
    assert "rh" in mapping.slots, "readings of the point must reach the walk"


def test_a_wrong_sub_property_is_a_problem_with_its_place() -> None:
    entity = {
        "type": "AirQualityObserved",
        "attributes": {
            "pm25": {
                "point": "pm",
                "sub": {"reliability": {"value": 7}, "observedAt": {"value": 1}, "x": {"point": "y"}},
            }
        },
    }
    _, problems = compiled(device({"pm": "pm25"}, entity))
    found = {p.path[-1]: p.code for p in problems if p.severity == "error"}
    assert found == {"reliability": "mapping-value", "observedAt": "mapping-name", "x": "mapping-point"}


def test_two_sensors_of_one_quantity_are_instances_with_dataset_ids() -> None:
    mapping = table(
        {"a": "pm25", "b": "pm25"},
        {
            "type": "AirQualityObserved",
            "attributes": {"pm25": "a", "pm10": {"point": "b", "dataset": "urn:ngsi-ld:Dataset:b"}},
        },
    )
    body = ngsi_ld(at_noon(mapping, a=1.0, b=2.0))
    assert body["pm10"]["datasetId"] == "urn:ngsi-ld:Dataset:b"


def test_a_pattern_makes_an_id_or_a_text_of_a_value() -> None:
    mapping = table(
        {"tag": "identifier", "n": "count"},
        {
            "type": "WasteObserved",
            "attributes": {
                "refGarbageTruck": {"point": "tag", "pattern": "urn:ngsi-ld:Vehicle:milano:{value}"},
                "name": {"point": "n", "pattern": "pick-up {value}"},
            },
        },
    )
    body = ngsi_ld(at_noon(mapping, tag="AB123", n=7))
    assert body["refGarbageTruck"] == {
        "type": "Relationship",
        "object": "urn:ngsi-ld:Vehicle:milano:AB123",
        "observedAt": "2026-06-01T12:00:00Z",
    }
    assert body["name"]["value"] == "pick-up 7"
    assert "refGarbageTruck" in at_noon(mapping, tag="no id <>", n=7).dropped


def test_several_targets_may_be_constants_with_the_devices_own_names_in_them() -> None:
    mapping = table(
        {"on": "power_on"},
        {
            "type": "Streetlight",
            "attributes": {"powerState": {"point": "on", "translate": {True: "on", False: "off"}}},
            "static": {"status": "ok", "refDevice": ["urn:ngsi-ld:Device:{city}:{device}", "urn:ngsi-ld:Device:other"]},
        },
    )
    body = ngsi_ld(at_noon(mapping, on=True))
    assert body["powerState"]["value"] == "on"
    assert [part["object"] for part in body["refDevice"]] == [
        "urn:ngsi-ld:Device:milano:dev-1",
        "urn:ngsi-ld:Device:other",
    ]


@pytest.mark.parametrize(
    ("translate", "said"),
    [({"true": "taken", "false": "free"}, "'taken' is not one of"), ({"yes": "occupied"}, "never yes")],
)
def test_a_translation_is_checked_against_the_enum_and_the_point(translate: dict[str, str], said: str) -> None:
    entity = {
        "type": "ParkingSpot",
        "attributes": {"status": {"point": "p", "translate": translate}},
        "static": {"category": ["onStreet"], "refParkingSite": "urn:ngsi-ld:ParkingSite:1"},
    }
    _, problems = compiled(device({"p": "occupied"}, entity))
    assert any(said in p.message for p in problems), problems


def test_a_state_that_the_translation_does_not_know_is_left_out_with_its_reason() -> None:
    mapping = table(
        {"s": "state_code", "t": "internal_temperature"},
        {
            "type": "WasteContainer",
            "attributes": {"status": {"point": "s", "translate": {0: "ok", 1: "lidOpen"}}, "temperature": "t"},
        },
    )
    assert at_noon(mapping, s=1, t=20.0).attributes["status"].value == "lidOpen"
    assert "translated are 0, 1" in at_noon(mapping, s=9, t=20.0).dropped["status"]


@pytest.mark.parametrize(("value", "said"), [(1, "lidOpen"), (1.0, "lidOpen"), (1.7, None), (math.inf, None)])
def test_a_number_is_translated_when_it_is_whole(value: float, said: str | None) -> None:
    status = {"status": {"point": "s", "translate": {0: "ok", 1: "lidOpen"}}}
    entity = at_noon(table({"s": "distance"}, {"type": "WasteContainer", "attributes": status}), s=value)
    assert (entity.attributes["status"].value if "status" in entity.attributes else None) == said


@pytest.mark.parametrize(
    ("text", "sent"), [("2026-06-01T14:00:00+02:00", True), ("2026-06-01T12:00:00", False), ("yesterday", False)]
)
def test_an_instant_from_the_device_needs_its_zone(text: str, sent: bool) -> None:
    mapping = table({"e": "text", "t": "internal_temperature"}, {"type": "WasteContainer", "attributes": {
        "dateLastEmptying": "e", "temperature": "t"}, "static": {"status": "ok"}})  # fmt: skip
    entity = at_noon(mapping, e=text, t=20.0)
    if sent:
        assert key_values(entity)["dateLastEmptying"] == "2026-06-01T12:00:00Z"
    else:
        assert "a time with its zone" in entity.dropped["dateLastEmptying"]


# gains, gases, calibration


def test_a_pulse_has_a_volume() -> None:
    mapping = table({"n": "pulse_count"}, {"type": "WaterConsumptionObserved", "attributes": {
        "waterConsumption": {"point": "n", "gain": 10, "unit": "LTR"}}})  # fmt: skip
    found = at_noon(mapping, n=12345).attributes["waterConsumption"]
    assert (found.value, found.unit) == (123450, "LTR")


@pytest.mark.parametrize("unit", [{}, {"unit": "MTR"}, {"unit": "CMT"}])
def test_a_gain_without_another_dimension_is_on_top_of_the_conversion(unit: dict[str, str]) -> None:
    distance = {"measuredDistance": {"point": "d", "gain": 2, **unit}}
    points = {"d": {"quantity": "distance", "unit": "CMT"}}
    found = at_noon(table(points, {"type": "FloodMonitoring", "attributes": distance}), d=100.0)
    sent = found.attributes["measuredDistance"]
    assert (sent.value, sent.unit) == ((200.0, "CMT") if unit == {"unit": "CMT"} else (2.0, "MTR"))


def test_a_unit_of_another_dimension_than_the_attributes_is_refused_even_with_a_gain() -> None:
    entity = {
        "type": "WaterConsumptionObserved",
        "attributes": {"waterConsumption": {"point": "n", "gain": 10, "unit": "KWH"}},
    }
    _, problems = compiled(device({"n": "pulse_count"}, entity))
    assert [p.code for p in problems] == ["mapping-unit"]


def test_the_state_of_the_gas_can_be_stated() -> None:
    gas = {"g": {"quantity": "no2", "unit": "61"}}
    warm = {
        "type": "AirQualityObserved",
        "attributes": {"no2": {"point": "g", "at": {"temperature": 25, "pressure": 1013.25}}},
    }
    assert at_noon(table(gas, warm), g=1.0).attributes["no2"].value == pytest.approx(1.880, abs=0.002)


def test_a_reading_is_corrected_by_the_calibration_of_its_day() -> None:
    calibrate = {
        "t": {
            "gain": 1.0,
            "offset": 2.0,
            "valid_from": date(2026, 6, 1),
            "by": "cert 42",
            "previous": [{"offset": 1.0, "valid_from": date(2026, 1, 1)}],
        }
    }
    mapping = table(
        {"t": "air_temperature"}, {"type": "WeatherObserved", "attributes": {"temperature": "t"}}, calibrate=calibrate
    )
    day_us = 86_400_000_000
    seen = {
        days: at_noon(mapping, t=(20.0, NOON_US - days * day_us)).attributes["temperature"].value
        for days in (0, 1, 300)
    }
    assert seen == {0: 22.0, 1: 21.0, 300: 20.0}


# several entities, several devices


def test_one_device_gives_several_entities_with_ids_of_their_own() -> None:
    entity = {
        "type": "AirQualityObserved",
        "attributes": {"pm25": "pm"},
        "more": {"weather": {"type": "WeatherObserved", "attributes": {"temperature": "t"}}},
    }
    tables, problems = compiled(device({"pm": "pm25", "t": "air_temperature", "x": "text"}, entity))
    assert problems == ()
    assert [t.entity_id for t in tables] == [
        "urn:ngsi-ld:AirQualityObserved:milano:gw-1:dev-1",
        "urn:ngsi-ld:WeatherObserved:milano:gw-1:dev-1:weather",
    ]
    assert [t.unused for t in tables] == [("x",), ("x",)]


SHARED = "urn:ngsi-ld:WeatherObserved:milano:roof"


def shared(name: str, attributes: dict[str, Any], **more: Any) -> tuple[Mapping, ...]:
    points = {"t": "air_temperature", "rh": "humidity", "w": "wind_speed"}
    entity = {"type": "WeatherObserved", "id": SHARED, "attributes": attributes, **more}
    tables, problems = compiled(device(points, entity, name=name))
    assert problems == ()
    return tables


def test_several_devices_feed_one_entity_and_do_not_fight_over_it() -> None:
    tables, problems = joined({"a": shared("a", {"temperature": "t"}), "b": shared("b", {"windSpeed": "w"})})
    assert problems == ()
    assert {t.entity_id for of in tables.values() for t in of} == {SHARED}
    assert "refDevice" in tables["a"][0].static
    assert "refDevice" not in tables["b"][0].static, "one of them names the device, else it would flip"


def test_a_mandatory_attribute_may_come_from_the_other_device() -> None:
    points = {"t": "air_temperature", "o": "occupied"}
    spot = {"type": "ParkingSpot", "id": "urn:ngsi-ld:ParkingSpot:1"}
    site = {"category": ["onStreet"], "refParkingSite": "urn:ngsi-ld:ParkingSite:1"}
    state = {"status": {"point": "o", "translate": {"true": "occupied", "false": "free"}}}
    first, found = compiled(device(points, {**spot, "attributes": state, "static": site}, name="a"))
    second, more = compiled(device(points, {**spot, "static": {"width": 2.5}}, name="b"))
    assert (found, more) == ((), ())
    tables, problems = joined({"a": first, "b": second})
    assert problems == ()
    assert "status" not in tables["b"][0].mandatory
    _, problems = joined({"b": second})
    assert {p.code for p in problems} == {"mapping-mandatory"}
    assert "status" in problems[-1].message


def test_two_devices_that_send_the_same_attribute_are_a_problem() -> None:
    _, [problem] = joined({"a": shared("a", {"temperature": "t"}), "b": shared("b", {"temperature": "t"})})
    assert (problem.code, problem.path[3]) == ("mapping-shared", "b")
    assert "temperature" in problem.message


def test_one_entity_has_one_type() -> None:
    other, _ = compiled(
        device({"pm": "pm25"}, {"type": "AirQualityObserved", "id": SHARED, "attributes": {"pm25": "pm"}}, name="b")
    )
    _, [problem] = joined({"a": shared("a", {"temperature": "t"}), "b": other})
    assert "as WeatherObserved" in problem.message


def test_different_constants_of_one_entity_are_a_problem() -> None:
    one = shared("a", {"temperature": "t"}, static={"name": "Roof"})
    two = shared("b", {"windSpeed": "w"}, static={"name": "Cellar"})
    same = shared("b", {"windSpeed": "w"}, static={"name": "Roof"})
    assert joined({"a": one, "b": same})[1] == ()
    _, [problem] = joined({"a": one, "b": two})
    assert "another name" in problem.message


# names and terms


@pytest.mark.parametrize("name", ["value", "features"])
def test_a_word_of_ngsi_ld_itself_is_no_attribute_name(name: str) -> None:
    model = {"value": "Device", "features": "StreetlightControlCabinet"}[name]
    _, problems = compiled(device({"t": "text"}, {"type": model, "attributes": {name: "t"}}))
    assert ("mapping-name", name) in {(p.code, p.path[-1]) for p in problems}


def test_a_term_that_means_something_else_in_the_citys_context_is_an_error() -> None:
    from gateway.config.model import CityProfile

    energy = "https://raw.githubusercontent.com/smart-data-models/dataModel.Energy/master/context.jsonld"
    profile = CityProfile.model_validate({"types": {"WeatherObserved": {"context": energy}}})
    plan = device(
        {"t": "air_temperature", "w": "wind_speed"}, {"type": "WeatherObserved", "attributes": {"windSpeed": "w"}}
    )
    _, problems = compiled(plan, profile)
    assert any(p.code == "mapping-term" and "default-context" in p.message for p in problems)
    refs = [p for p in problems if "refDevice" in p.message]
    assert all("the model means" in p.message for p in refs)


def test_a_gas_may_be_sent_as_a_fraction_when_the_city_wants_it_so() -> None:
    gas = {"g": {"quantity": "no2", "unit": "61"}}
    entity = {"type": "AirQualityObserved", "attributes": {"no2": {"point": "g", "unit": "61"}}}
    found = at_noon(table(gas, entity), g=30.0).attributes["no2"]
    assert (found.value, found.unit) == (30.0, "61")


def test_thinning_a_member_of_a_structured_value_is_warned_of() -> None:
    meter = {
        "type": "ACMeasurement",
        "static": {"phaseType": "threePhase"},
        "attributes": {"current.L1": "a", "current.L2": "b", "frequency": "f"},
    }
    points = {"a": "current", "b": "current", "f": "frequency"}
    thinned = {"a": {"on_change": 1.0}, "f": {"on_change": 0.1}}
    tables, problems = compiled(device(points, meter, report=thinned))
    assert len(tables) == 1
    [warning] = problems
    assert (warning.code, warning.severity, warning.path[-1]) == ("mapping-thinned", "warning", "current.L1")
    assert warning.message.startswith("a is thinned by report:, and current is sent whole")
