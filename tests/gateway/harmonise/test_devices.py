"""The box and its sensors as Device entities that the official schema accepts."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from gateway.config.model import CityProfile
from gateway.harmonise.compile import Mapping
from gateway.harmonise.devices import MARK, box_set, box_table, controlled, sensor_set, sensor_table
from gateway.harmonise.dialects import key_values, ngsi_ld
from gateway.harmonise.entity import Entity, harmonise
from gateway.models.catalogue import catalogue
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point, Quality, ReadingSet
from tests.support.ngsi import Device, compiled, device, expand, schema_errors

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
SEEN = datetime(2026, 6, 1, 11, 59, 30, tzinfo=UTC)
AIR = {"type": "AirQualityObserved", "attributes": {"pm25": "pm"}}
POINTS = {
    "pm": "pm25",
    "rh": "humidity",
    "power_left": {"quantity": "battery_level"},
    "signal": "rssi",
    "fw": "firmware_version",
}


def table_of(plan: Device, profile: CityProfile | None = None, driver: str = "chirpstack") -> Mapping:
    profile = profile or CityProfile()
    tables, _ = compiled(plan, profile)
    [table], problems = sensor_table(plan, tables, driver=driver, gateway_id="gw-1", city="milano", profile=profile)
    assert problems == ()
    return table


def walked(table: Mapping, readings: ReadingSet) -> Entity:
    good = {r.point: (r.value, int(r.observed_at.timestamp()) * 1_000_000) for r in readings.readings}
    return harmonise(table, good)


def test_a_sensor_tells_what_it_is_and_how_it_is() -> None:
    plan = device(POINTS, AIR, calibrate={"pm": {"gain": 1.1, "valid_from": date(2026, 3, 1)}})
    told = sensor_set(
        plan,
        {"pm": 12.0, "power_left": 80, "signal": -97, "fw": "1.4"},
        state="ok", reason="", last_value_at=SEEN, now=NOON,
    )  # fmt: skip
    assert told.device == "@dev-1"
    assert {(reading.quality, reading.observed_at) for reading in told.readings} == {(Quality.GOOD, NOON)}
    body = key_values(walked(table_of(plan), told))
    assert schema_errors(body) == []
    assert {k: v for k, v in body.items() if k not in ("location", "dateObserved")} == {
        "id": "urn:ngsi-ld:Device:milano:gw-1:dev-1",
        "type": "Device",
        "name": "dev-1",
        "description": "Acme T-1",
        "deviceCategory": ["sensor"],
        "controlledProperty": ["airPollution", "humidity"],
        "controlledAsset": ["urn:ngsi-ld:AirQualityObserved:milano:gw-1:dev-1"],
        "supportedProtocol": ["lora"],
        "dateLastCalibration": "2026-03-01T00:00:00Z",
        "deviceState": "ok",
        "dateLastValueReported": "2026-06-01T11:59:30Z",
        "batteryLevel": 0.8,
        "rssi": -97,
        "firmwareVersion": "1.4",
    }


def test_every_name_of_a_device_entity_has_a_term() -> None:
    plan = device(POINTS, AIR)
    told = sensor_set(plan, {"power_left": 80}, state="bad", reason="timeout", last_value_at=None, now=NOON)
    entity = walked(table_of(plan), told)
    assert entity.attributes["deviceState"].value == "bad: timeout"
    assert "dateLastValueReported" not in entity.attributes
    assert [iri for iri in expand(ngsi_ld(entity), entity.context) if "default-context" in iri] == []


def test_a_protocol_that_the_model_does_not_know_is_not_named() -> None:
    assert "supportedProtocol" not in table_of(device(POINTS, AIR), driver="modbus").static


@pytest.mark.parametrize("pattern", [None, "urn:ngsi-ld:{Type}:{city}:{device}", "urn:ngsi-ld:thing:{city}:{device}"])
def test_what_a_sensor_measures_points_to_its_device_entity(pattern: str | None) -> None:
    profile = CityProfile.model_validate({"id": pattern})
    plan = device(POINTS, AIR)
    [measured], _ = compiled(plan, profile)
    assert measured.static["refDevice"].value == table_of(plan, profile).entity_id
    assert measured.entity_id != table_of(plan, profile).entity_id


def test_an_entity_that_the_operator_maps_by_hand_is_left_alone() -> None:
    plan = device(
        POINTS, {"type": "Device", "attributes": {"rssi": "signal"}, "static": {"controlledProperty": ["motion"]}}
    )
    tables, _ = compiled(plan)
    assert sensor_table(plan, tables, driver="ble", gateway_id="gw-1", city="milano", profile=CityProfile())[0] == ()


def test_the_box_is_a_network_device_that_controls_its_sensors() -> None:
    [table], problems = box_table(
        ["dev-1", "dev-2"], gateway_id="gw-1", name="School roof", location=(9.1, 45.5), version="0.1.0",
        city="milano", profile=CityProfile(),
    )  # fmt: skip
    assert problems == ()
    assert table.device == MARK
    body = key_values(
        walked(table, box_set(state="degraded", reason="link roof: port is absent", last_value_at=SEEN, now=NOON))
    )
    assert schema_errors(body) == []
    assert body["id"] == "urn:ngsi-ld:Device:milano:gw-1:gw-1"
    assert body["deviceCategory"] == ["network"]
    assert body["controlledAsset"] == ["urn:ngsi-ld:Device:milano:gw-1:dev-1", "urn:ngsi-ld:Device:milano:gw-1:dev-2"]
    assert body["deviceState"] == "degraded: link roof: port is absent"


@pytest.mark.parametrize("quantity", sorted(quantities()))
def test_every_quantity_has_words_of_the_closed_enum(quantity: str) -> None:
    spec: Any = catalogue().type("Device").attributes["controlledProperty"]  # type: ignore[union-attr]
    words = controlled([Point("p", quantity)])
    assert words
    assert set(words) <= set(spec.items.enum)


def test_a_battery_in_a_fraction_is_told_in_percent() -> None:
    plan = device({"b": {"quantity": "battery_level", "unit": "C62"}, "pm": "pm25"}, AIR)
    told = sensor_set(plan, {"b": 0.5}, state="ok", reason="", last_value_at=None, now=NOON)
    assert walked(table_of(plan), told).attributes["batteryLevel"].value == pytest.approx(0.5)
