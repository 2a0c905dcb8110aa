"""Each kind of city sensor: the shipped sample mapping, readings as a device gives them, and the official example as the judge."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from gateway.harmonise.dialects import concise, key_values, ngsi_ld, ngsi_v2
from gateway.harmonise.entity import Entity, harmonise
from tests.support.ngsi import EXAMPLES, ROOT, compiled, device, expand, schema_errors

MAPPINGS = ROOT / "config" / "mappings"
NOON_US = int(datetime(2026, 6, 1, 12, 0, tzinfo=UTC).timestamp()) * 1_000_000
ORION_FORBIDS = set("<>\"'=;()")

# Readings as devices give them, so that the official example comes out. Where the example has no value of ours (or is
# itself not valid against its schema), the expected value stands in OTHERWISE.
READINGS: dict[str, dict[str, Any]] = {
    "AirQualityObserved": {
        "no2_ppb": 36.0869, "nitric_oxide": 45, "nox": 139, "so2": 11, "co_mg": 0.5, "temperature": 12.2,
        "humidity": 54.0, "wind_speed": 0.64, "wind_direction": 186.0, "rain": 0.0,
    },
    "IndoorEnvironmentObserved": {"temperature": 12.2, "humidity": 54.0, "co2": 500, "light": 1000, "people": 10},
    "NoiseLevelObserved": {"laeq": 67.8, "lamax": 94.5, "las": 91.6},
    "WeatherObserved": {
        "temperature": 3.3, "humidity": 100.0, "pressure": 93890.0, "wind_speed": 7.2, "wind_direction": 135.0,
        "rain": 0.0, "snow": 0.2, "light": 1000.0, "uv": 1.0,
    },
    "GreenspaceRecord": {"moisture": 87.0, "temperature": 13.0, "conductivity": 1200.0, "tension": -12.0},
    "ParkingSpot": {"occupied": False},
    "OnStreetParking": {"free": 3, "taken": 3, "total": 6},
    "WasteContainer": {"distance": 0.45, "temperature": 21.5, "lid": True},
    "Streetlight": {"power_on": False, "failure": False, "level": 80.0, "voltage": 50.0, "current": 250.0, "power_factor": 0.7},
    "TrafficFlowObserved": {"vehicles": 197, "speed": 52.6, "length": 9.87, "headway": 0.5, "occupancy": 76.0},
    "CrowdFlowObserved": {"people": 100, "towards": 50, "away": 50, "headway": 5},
    "ItemFlowObserved": {
        "items": 12, "speed": 2.7, "slowest": 2.6, "fastest": 3.8, "headway": 156, "gap": 35.28, "length": 7.44,
        "occupancy": 15.62,
    },
    "FloodMonitoring": {"distance": 3.22},
    "WaterObserved": {"level": 352.0, "flow": 43200.0},
    "WaterQualityObserved": {
        "temperature": 24.4, "ph": 7.4, "conductivity": 50.0, "nitrate": 0.01, "flow": 127.53, "turbidity": 3.0,
    },
    "WaterConsumptionObserved": {
        "volume": 191.0512, "max_flow": 0.62, "min_flow": 0.001, "tamper": False, "leak": False,
    },
    "ACMeasurement": {
        "voltage_l1": 234.961304, "voltage_l2": 234.563477, "voltage_l3": 235.354034, "current_l1": 56.126038,
        "current_l2": 45.894356, "current_l3": 50.872452, "current_n": 0.0, "power_l1": 11.996416016,
        "power_l2": 9.461501953, "power_l3": 10.242351562, "power": 31700.269531, "apparent": 36019.089844,
        "reactive": -7830.332031, "frequency": 50.020672, "import": 150781.96448, "export": 1059.80176,
    },
    "ThreePhaseAcMeasurement": {
        "voltage_l1": 234.961304, "voltage_l2": 234.563477, "voltage_l3": 235.354034, "thd_l1": 1.471114,
        "thd_l2": 1.600046, "thd_l3": 1.541459, "power": 31700.269531, "frequency": 50.020672, "import": 150781.96448,
    },
    "EVChargingStation": {"power": 10.0, "connected": True},
    "Device": {"battery": 75.0, "rssi": -61.0, "lon": 9.16, "lat": 45.5},
    "DeviceMeasurement": {"level": 55.2, "note": "checked"},
}  # fmt: skip
OTHERWISE: dict[str, dict[str, Any]] = {
    # the example's 500 mg/m³ of CO is absurd; its 186° and "typeOfLocation" are not valid against its own schema
    "AirQualityObserved": {"co": 500.0, "windDirection": -174.0, "typeofLocation": "outdoor"},
    "IndoorEnvironmentObserved": {"co2": 0.915},
    "NoiseLevelObserved": {"sonometerClass": "1"},
    "GreenspaceRecord": {"soilMoistureEc": 0.12, "soilMoisturePressure": -12.0},
    "WasteContainer": {"fillingLevel": 0.7, "temperature": 21.5, "status": "lidOpen"},
    "Streetlight": {"illuminanceLevel": 0.8},
    "TrafficFlowObserved": {},
    "WaterQualityObserved": {"turbidity": 3.0},
    "EVChargingStation": {"status": "working"},
    "Device": {"rssi": -61.0},  # the example's 0.86 is neither dBm nor mW
    "DeviceMeasurement": {"unit": "P1"},  # the example's UDT0000016 is no UN/CEFACT code
}
AUTOMATIC = {"id", "type", "location", "refDevice", "dateObserved", "dateObservedFrom", "dateObservedTo",
             "observationDateTime", "timeInstant"}  # fmt: skip


def entities(kind: str) -> list[Entity]:
    content = yaml.safe_load((MAPPINGS / f"{kind}.yaml").read_text())
    tables, problems = compiled(device(content["points"], content["entity"]))
    assert [p for p in problems if p.severity == "error"] == []
    return [harmonise(table, {p: (v, NOON_US) for p, v in READINGS[kind].items()}) for table in tables]


def test_there_is_a_sample_mapping_for_every_kind_we_promise() -> None:
    assert {file.stem for file in MAPPINGS.glob("*.yaml")} == set(READINGS)
    assert len(READINGS) == 21


@pytest.mark.parametrize("kind", sorted(READINGS))
def test_the_entity_is_valid_and_every_point_reaches_it(kind: str) -> None:
    content = yaml.safe_load((MAPPINGS / f"{kind}.yaml").read_text())
    tables, _ = compiled(device(content["points"], content["entity"]))
    assert tables[0].unused == ()
    for entity in entities(kind):
        assert entity.dropped == {}
        assert schema_errors(key_values(entity)) == []


@pytest.mark.parametrize("kind", sorted(READINGS))
def test_the_entity_equals_the_official_example_on_the_mapped_attributes(kind: str) -> None:
    example = json.loads((EXAMPLES / kind / "example.jsonld").read_text())
    body = key_values(entities(kind)[0])
    mapped = set(body) - AUTOMATIC
    compared = 0
    for name in mapped:
        expected = OTHERWISE.get(kind, {}).get(name, example.get(name))
        assert expected is not None, f"{name} is in neither example nor OTHERWISE"
        if isinstance(expected, dict):
            assert body[name] == pytest.approx({m: v for m, v in expected.items() if m in body[name]}, rel=1e-4)
        elif isinstance(expected, int | float):
            assert body[name] == pytest.approx(expected, rel=1e-3), name
        else:
            assert body[name] == expected, name
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("kind", sorted(READINGS))
def test_every_name_expands_to_a_term_of_its_model(kind: str) -> None:
    for entity in entities(kind):
        for body in (ngsi_ld(entity), concise(entity)):
            expanded = expand(body, entity.context)
            assert expanded["@type"][0].endswith(f"/{entity.type}")
            assert [iri for iri in expanded if "default-context" in iri] == []
            assert len(expanded) == len(body), "a name that expands to nothing would be lost"


@pytest.mark.parametrize("kind", sorted(READINGS))
def test_the_ngsi_v2_form_has_nothing_that_orion_refuses(kind: str) -> None:
    for entity in entities(kind):
        body = ngsi_v2(entity)
        for name, attribute in body.items():
            assert not ORION_FORBIDS & set(name)
            if name not in ("id", "type"):
                assert set(attribute) == {"type", "value", "metadata"}
                if attribute["type"] != "TextUnrestricted":
                    assert not ORION_FORBIDS & set(json.dumps(attribute["value"]).replace('"', ""))
        assert "@context" not in body
