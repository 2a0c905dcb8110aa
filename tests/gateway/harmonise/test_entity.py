"""The table walk: values, units and times; what the model does not allow stays out with its reason."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.harmonise.dialects import key_values, ngsi_ld
from gateway.harmonise.entity import Entity, harmonise
from tests.support.ngsi import compiled, device, schema_errors

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000


def one(points: dict[str, Any], entity: dict[str, Any], values: dict[str, Any], **config: Any) -> Entity:
    """The entity of these values at noon."""
    [table], problems = compiled(device(points, entity, **config))
    assert problems == ()
    return harmonise(table, {p: v if isinstance(v, tuple) else (v, NOON_US) for p, v in values.items()})


def test_a_reading_becomes_a_property_with_unit_and_time() -> None:
    entity = one({"pm": "pm25"}, {"type": "AirQualityObserved", "attributes": {"pm25": "pm"}}, {"pm": 12.5})
    assert ngsi_ld(entity) == {
        "id": "urn:ngsi-ld:AirQualityObserved:milano:gw-1:dev-1",
        "type": "AirQualityObserved",
        "pm25": {"type": "Property", "value": 12.5, "unitCode": "GQ", "observedAt": "2026-06-01T12:00:00Z"},
        "dateObserved": {
            "type": "Property",
            "value": {"@type": "DateTime", "@value": "2026-06-01T12:00:00Z"},
            "observedAt": "2026-06-01T12:00:00Z",
        },
        "location": {"type": "GeoProperty", "value": {"type": "Point", "coordinates": [9.159, 45.503]}},
        "refDevice": {"type": "Relationship", "object": "urn:ngsi-ld:Device:milano:gw-1:dev-1"},
    }
    assert schema_errors(key_values(entity)) == []


@pytest.mark.parametrize(
    ("quantity", "type_name", "attribute", "value", "expected", "unit"),
    [
        ("humidity", "AirQualityObserved", "relativeHumidity", 43.0, 0.43, "C62"),
        ({"quantity": "air_temperature", "unit": "FAH"}, "WeatherObserved", "temperature", 212.0, 100.0, "CEL"),
        ({"quantity": "no2", "unit": "61"}, "AirQualityObserved", "no2", 100.0, 191.2, "GQ"),
        ("wind_direction", "AirQualityObserved", "windDirection", 350.0, -10.0, "DD"),
        ("wind_direction", "AirQualityObserved", "windDirection", 180.0, 180.0, "DD"),
        ("wind_direction", "WeatherObserved", "windDirection", 350.0, 350.0, "DD"),
        ({"quantity": "wind_speed", "unit": "KMH"}, "WeatherObserved", "windSpeed", 36.0, 10.0, "MTS"),
        ("soil_conductivity", "GreenspaceRecord", "soilMoistureEc", 1200.0, 0.12, "D10"),
        ({"quantity": "atmospheric_pressure", "unit": "PAL"}, "WeatherObserved", "atmosphericPressure", 101325, 1013.25, "A97"),
        ({"quantity": "total_suspended_particles"}, "AirQualityObserved", "tsp", 73.3, 73, "GQ"),
    ],
)  # fmt: skip
def test_units_are_converted_to_what_the_model_wants(
    quantity: Any, type_name: str, attribute: str, value: float, expected: float, unit: str
) -> None:
    entity = one({"p": quantity}, {"type": type_name, "attributes": {attribute: "p"}}, {"p": value})
    found = entity.attributes[attribute]
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert type(found.value) is (int if isinstance(expected, int) else float)
    assert found.unit == unit
    assert schema_errors(key_values(entity)) == []


def test_a_converted_value_shows_no_binary_noise() -> None:
    entity = one({"p": "humidity"}, {"type": "WeatherObserved", "attributes": {"relativeHumidity": "p"}}, {"p": 55.1})
    assert str(entity.attributes["relativeHumidity"].value) == "0.551"


def test_calibration_comes_before_the_conversion() -> None:
    entity = one(
        {"p": "humidity"},
        {"type": "WeatherObserved", "attributes": {"relativeHumidity": "p"}},
        {"p": 40.0},
        calibrate={"p": {"gain": 1.1, "offset": -5.0}},
    )
    assert entity.attributes["relativeHumidity"].value == pytest.approx(0.39)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 100.5, "43", 1e400])
def test_what_the_model_does_not_allow_is_left_out_with_its_reason(value: Any) -> None:
    entity = one(
        {"p": "humidity", "t": "air_temperature"},
        {"type": "WeatherObserved", "attributes": {"relativeHumidity": "p", "temperature": "t"}},
        {"p": value, "t": 21.0},
    )
    assert "relativeHumidity" not in entity.attributes
    assert "0 to 1" in entity.dropped["relativeHumidity"]
    assert entity.attributes["temperature"].value == 21.0


@given(st.floats(width=64) | st.integers() | st.text() | st.booleans())
def test_whatever_a_reading_holds_the_entity_is_valid(value: Any) -> None:
    points = {"rh": "humidity", "pm": "pm25", "dir": "wind_direction", "note": "text"}
    attributes = {"relativeHumidity": "rh", "pm25": "pm", "windDirection": "dir", "areaServed": "note"}
    entity = one(points, {"type": "AirQualityObserved", "attributes": attributes}, dict.fromkeys(points, value))
    if "dateObserved" in entity.attributes:
        assert schema_errors(key_values(entity)) == []


def test_date_observed_is_the_newest_of_what_was_sent() -> None:
    entity = one(
        {"a": "pm25", "b": "pm10", "c": "humidity"},
        {"type": "AirQualityObserved", "attributes": {"pm25": "a", "pm10": "b", "relativeHumidity": "c"}},
        {"a": (1.0, NOON_US), "b": (2.0, NOON_US + 5_000_000), "c": (999.0, NOON_US + 9_000_000)},
    )
    assert entity.attributes["dateObserved"].value == NOON + timedelta(seconds=5)
    assert entity.attributes["pm25"].observed_at == NOON


METER = {"type": "ACMeasurement", "static": {"phaseType": "threePhase"}, "attributes": {
    "activePower.L1": "p1", "activePower.L2": "p2", "activePower.L3": "p3"}}  # fmt: skip
PHASES = {"p1": "active_power", "p2": "active_power", "p3": "active_power"}


def test_phases_become_members_of_one_structured_value() -> None:
    entity = one(PHASES, METER, {"p1": 100.0, "p2": 200.0, "p3": 300.0})
    power = entity.attributes["activePower"]
    assert power.value == {"L1": 100.0, "L2": 200.0, "L3": 300.0}
    assert (power.unit, power.observed_at) == ("WTT", NOON)
    assert schema_errors(key_values(entity)) == []


def test_a_phase_of_an_older_poll_does_not_pass_as_new() -> None:
    entity = one(PHASES, METER, {"p1": (100.0, NOON_US), "p2": (200.0, NOON_US - 60_000_000), "p3": (300.0, NOON_US)})
    assert entity.attributes["activePower"].value == {"L1": 100.0, "L3": 300.0}


def test_an_undeclared_point_is_passed_over() -> None:
    entity = one(
        {"pm": "pm25"}, {"type": "AirQualityObserved", "attributes": {"pm25": "pm"}}, {"pm": 1.0, "other": 2.0}
    )
    assert "other" not in str(entity)


@pytest.mark.parametrize(
    ("calibrate", "value", "expected"),
    [
        ({}, 7, 75),  # 10 l a pulse, and what the meter showed when it was mounted
        ({"gain": 2.0}, 7, 145),
        ({"offset": 3.0}, 7, 105),  # three pulses were missed: of the raw value, in pulses
        ({"gain": 2.0, "offset": 3.0}, 7, 175),
    ],
)
def test_calibration_is_of_the_pulses_and_comes_before_what_a_pulse_stands_for(
    calibrate: dict[str, float], value: int, expected: float
) -> None:
    entity = one(
        {"n": {"quantity": "count", "unit": "C62"}},
        {
            "type": "WaterConsumptionObserved",
            "attributes": {"waterConsumption": {"point": "n", "gain": 10, "offset": 5, "unit": "LTR"}},
        },
        {"n": value},
        **({"calibrate": {"n": calibrate}} if calibrate else {}),
    )
    found = entity.attributes["waterConsumption"]
    assert (found.value, found.unit) == (pytest.approx(expected), "LTR")


def test_calibration_gain_and_unit_are_one_after_the_other() -> None:
    entity = one(
        {"t": {"quantity": "air_temperature", "unit": "FAH"}},
        {"type": "WeatherObserved", "attributes": {"temperature": {"point": "t", "gain": 0.5, "offset": 4.0}}},
        {"t": 100.0},
        calibrate={"t": {"gain": 2.0, "offset": -8.0}},
    )
    # (100 · 2 - 8) · 0.5 + 4 = 100 °F
    assert entity.attributes["temperature"].value == pytest.approx((100.0 - 32.0) / 1.8)


@pytest.mark.parametrize(("before_us", "expected"), [(1, 10.0), (0, 20.0), (-1, 20.0)])
def test_a_calibration_holds_from_the_first_moment_of_its_day(before_us: int, expected: float) -> None:
    at_us = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()) * 1_000_000 - before_us
    entity = one(
        {"pm": "pm25"},
        {"type": "AirQualityObserved", "attributes": {"pm25": "pm"}},
        {"pm": (10.0, at_us)},
        calibrate={"pm": {"gain": 2.0, "valid_from": NOON.date()}},
    )
    assert entity.attributes["pm25"].value == pytest.approx(expected)


@pytest.mark.parametrize("order", [("p1", "p2", "p3"), ("p3", "p2", "p1")])
def test_a_structured_value_is_of_the_newest_of_its_members_in_whatever_order(order: tuple[str, ...]) -> None:
    late = dict(zip(order, (NOON_US, NOON_US + 4_000_000, NOON_US + 2_000_000), strict=True))
    power = one(PHASES, METER, {point: (1.0, at_us) for point, at_us in late.items()}).attributes["activePower"]
    assert power.observed_at == NOON + timedelta(seconds=4)
    assert len(power.value) == 3


def test_a_phase_that_the_model_does_not_allow_costs_itself_alone() -> None:
    entity = one(PHASES, METER, {"p1": 100.0, "p2": math.nan, "p3": 300.0})
    assert entity.attributes["activePower"].value == {"L1": 100.0, "L3": 300.0}
    assert "nan" in entity.dropped["activePower"]


@pytest.mark.parametrize(
    ("type_name", "raw", "expected"),
    [
        ("AirQualityObserved", 180.0, 180.0), ("AirQualityObserved", 180.5, -179.5), ("AirQualityObserved", 360.0, 0.0),
        ("AirQualityObserved", -180.0, -180.0), ("AirQualityObserved", 719.0, -1.0),
        ("WeatherObserved", 360.0, 360.0), ("WeatherObserved", 361.0, 1.0), ("WeatherObserved", -1.0, 359.0),
        ("WeatherObserved", 0.0, 0.0),
    ],
)  # fmt: skip
def test_a_direction_keeps_what_the_model_allows_and_is_turned_else(
    type_name: str, raw: float, expected: float
) -> None:
    entity = one({"p": "wind_direction"}, {"type": type_name, "attributes": {"windDirection": "p"}}, {"p": raw})
    assert entity.attributes["windDirection"].value == expected


def test_a_mandatory_attribute_is_missing_until_each_of_its_points_was_good_once() -> None:
    points = {"pm": "pm25", "lon": "longitude", "lat": "latitude"}
    where = {"pm25": "pm", "location": {"longitude": "lon", "latitude": "lat"}}
    [table], problems = compiled(device(points, {"type": "AirQualityObserved", "attributes": where}))
    assert problems == ()
    assert {"location", "dateObserved"} <= table.missing(set())
    assert table.missing({"pm"}) == {"location"}
    assert table.missing({"pm", "lon"}) == table.missing({"pm", "lat"}) == {"location"}
    assert table.missing({"pm", "lon", "lat"}) == frozenset()
    assert "dateObserved" in table.missing({"lon"}), "half a place is nothing measured"


def test_a_sub_attribute_without_a_value_that_can_be_sent_stays_out() -> None:
    entity = one(
        {"pm": "pm25", "rh": "humidity"},
        {
            "type": "AirQualityObserved",
            "attributes": {"pm25": {"point": "pm", "sub": {"relativeHumidity": {"point": "rh"}}}},
        },
        {"pm": 1.0, "rh": math.nan},
    )
    assert entity.attributes["pm25"].value == 1.0
    assert dict(entity.attributes["pm25"].sub) == {}


def test_a_translation_finds_its_number_however_it_is_written() -> None:
    mapping = {"type": "WasteContainer", "attributes": {"status": {"point": "s", "translate": {0: "ok", 1: "lidOpen"}}}}
    for raw in (1, 1.0):
        assert one({"s": "state_code"}, mapping, {"s": raw}).attributes["status"].value == "lidOpen"
