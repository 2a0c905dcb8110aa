"""The box and its sensors tell how they are, as Device entities that take the way of all readings."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.box import Box, eventually, free_port, get_json
from tests.support.ngsi import schema_errors

CONFIG = """
version: 1
gateway: {{id: gw-flow, name: School roof, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
publish: {{devices: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
links:
  plant:
    driver: modbus
    host: 127.0.0.1
    port: {plant}
    devices:
      meter-1: {{template: eastron/sdm120, unit_id: 1, every: 200 ms}}
  gone:
    driver: modbus
    host: 127.0.0.1
    port: {nobody}
    devices:
      meter-2: {{template: eastron/sdm120, unit_id: 1, every: 200 ms}}
"""


@pytest.fixture
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    box.write(CONFIG.format(box=box.folder, http=box.port, plant=free_port(), nobody=free_port()))
    try:
        box.start_simulator("plant")
        box.start_daemon()
        yield box
    finally:
        box.close()


def test_a_healthy_and_a_dead_sensor_and_the_box_are_told_apart(box: Box) -> None:
    base = f"http://127.0.0.1:{box.port}/ngsi-ld/v1/entities"

    def told() -> dict[str, Any]:
        found = get_json(f"{base}?type=Device&options=keyValues&limit=100") or []
        by_name = {entity["id"].rpartition(":")[2]: entity for entity in found}
        return by_name if by_name.get("meter-1", {}).get("deviceState") == "ok" and len(by_name) == 3 else {}

    devices = eventually("three Device entities", told)
    for entity in devices.values():
        assert schema_errors(entity) == []
    assert devices["meter-1"]["controlledAsset"] == ["urn:ngsi-ld:ACMeasurement:testville:gw-flow:meter-1"]
    assert "dateLastValueReported" in devices["meter-1"]
    assert devices["meter-2"]["deviceState"] != "ok"
    assert "dateLastValueReported" not in devices["meter-2"]
    assert devices["gw-flow"]["deviceState"].startswith("degraded")
    measured = get_json(f"{base}?type=ACMeasurement&options=keyValues")
    assert [entity["refDevice"] for entity in measured] == [["urn:ngsi-ld:Device:testville:gw-flow:meter-1"]]
