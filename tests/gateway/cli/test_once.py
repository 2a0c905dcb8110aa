"""once on a box whose daemon does not run: read, sent, stopped, nothing left behind; and never beside a running one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command
from tests.support.box import Box, Process, eventually, free_port, get_json


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    broker = box.start("broker", "-m", "tests.support.strict_broker", "--port", "0")
    port = eventually("broker", lambda: broker.text().strip().split()[-1:])[0]
    box.write(f"""\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {tmp_path}/buffer.db}}
links:
  plant: {{driver: modbus, host: 127.0.0.1, port: {free_port()}, devices: {{meter-1: {{template: eastron/sdm120, unit_id: 1, every: 1 h}}}}}}
brokers: {{milano: {{kind: ngsi-ld, url: "http://127.0.0.1:{port}"}}}}
http: {{listen: "127.0.0.1:{box.port}"}}
clock: {{trust: system}}
""")
    (tmp_path / "broker-url").write_text(f"http://127.0.0.1:{port}")
    yield box
    box.close()


def _simulated(box: Box) -> Process:
    process = box.start_simulator("plant")
    eventually("simulator", lambda: "playing" in process.text())
    return process


def test_once_reads_sends_and_leaves_no_daemon(citygate: Command, box: Box) -> None:
    _simulated(box)
    ended = citygate("once", "-c", str(box.folder), "--json")
    assert ended.code == 0, ended.out + ended.err
    assert ended.json["devices"]["meter-1"]["readings"] > 0
    assert ended.json["brokers"]["milano"]["backlog"] == 0
    url = (box.folder / "broker-url").read_text()
    held = get_json(f"{url}/ngsi-ld/v1/entities/urn:ngsi-ld:ACMeasurement:milano:gw-1:meter-1")
    assert held["totalActivePower"]["value"] is not None
    assert citygate("status", "-c", str(box.folder)).code == 4


def test_once_with_a_silent_device_ends_with_4_and_names_it(citygate: Command, box: Box) -> None:
    box.config.write_text(re.sub(r"^brokers:.*\n", "", box.config.read_text(), flags=re.MULTILINE))
    ended = citygate("once", "-c", str(box.folder))
    assert ended.code == 4
    assert "✗ meter-1" in ended.out


def test_once_with_an_invalid_config_ends_with_3_and_its_places(citygate: Command, box: Box) -> None:
    box.config.write_text(box.config.read_text() + "bufer: {}\n")
    ended = citygate("once", "-c", str(box.folder))
    assert ended.code == 3
    assert "did you mean buffer" in ended.err
