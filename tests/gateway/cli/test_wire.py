"""Verbs at the wire, against simulated devices on a pty and a real daemon."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.sdk.recording import exchanges, parsed
from tests.gateway.cli.conftest import Command
from tests.support.box import Box, Process, eventually

CONFIG = """\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {folder}/buffer.db}}
http: {{listen: "127.0.0.1:{http}"}}
links:
  roof:
    driver: modbus
    port: {folder}/roof
    baud_rate: 9600
    timeout: 300 ms
    devices:
      climate: {{template: sht20/xy-md02, unit_id: 1, every: 500 ms, writes: [temperature_correction]}}
clock: {{trust: system}}
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    box.write(CONFIG.format(folder=tmp_path, http=box.port))
    yield box
    box.close()


@pytest.fixture
def simulator(box: Box) -> Process:
    process = box.start_simulator("roof", values="wave")
    eventually("the simulated line", lambda: (box.folder / "roof").exists())
    return process


@pytest.mark.usefixtures("simulator")
def test_scan_solve_and_provision_a_device_that_nobody_has_set_up(box: Box, citygate: Command) -> None:
    port = str(box.folder / "roof")

    found = citygate("scan", "modbus", port, "--units", "1-3", "--baud", "9600", "--parity", "N", "--json")
    assert found.code == 0
    assert [(f["unit_id"], f["baud_rate"], f["templates"]) for f in found.json] == [(1, 9600, ["sht20/xy-md02"])]

    ways = citygate(
        "solve",
        "modbus",
        port,
        "--unit",
        "1",
        "--value",
        "1",
        "--table",
        "holding",
        "--first",
        "257",
        "--count",
        "1",
        "--json",
    )
    assert ways.json[0] == {"table": "holding", "address": 257, "type": "uint16", "value": 1.0}

    done = citygate("provision", "sht20/xy-md02", port, "--new-unit", "7", "--json")
    assert done.json["unit_id"] == 7
    assert "unit id 7 written" in done.err

    nobody = citygate("scan", "modbus", port, "--units", "1-3", "--baud", "9600", "--parity", "N")
    assert nobody.code == 4
    assert "nobody answered" in nobody.out


@pytest.mark.usefixtures("simulator")
def test_a_running_daemon_leaves_its_line_to_a_scan_and_takes_it_up_again(box: Box, citygate: Command) -> None:
    port, config = str(box.folder / "roof"), ("-c", str(box.config))
    box.start_daemon()
    eventually("the device is well", lambda: box.device("roof", "climate").get("state") == "ok")

    found = citygate("scan", "modbus", port, *config, "--units", "1-2", "--baud", "9600", "--parity", "N", "--json")
    assert (found.code, [its["unit_id"] for its in found.json]) == (0, [1]), found.err
    assert "the daemon leaves link roof to this command" in found.err

    assert box.status()["links"]["roof"]["state"] != "paused"
    sets = box.device("roof", "climate")["sets"]
    eventually("it is read again", lambda: box.device("roof", "climate")["sets"] > sets)
    assert box.status()["links"]["roof"]["restarts"] == 0


@pytest.mark.usefixtures("simulator")
def test_write_needs_permission_and_is_read_back_with_and_without_a_daemon(box: Box, citygate: Command) -> None:
    config = ("-c", str(box.config))

    alone = citygate("write", "climate", "temperature_correction", "-0.5", *config, "--json")
    assert [(r["point"], r["value"]) for r in alone.json] == [("temperature_correction", -0.5)]

    box.start_daemon()
    live = citygate("write", "climate", "temperature_correction", "1.5", *config, "--json")
    assert live.json[0]["value"] == 1.5
    refused = citygate("write", "climate", "humidity_correction", "1", *config)
    assert refused.code == 1
    assert "add writes: [humidity_correction] to device climate" in refused.err


def test_a_recording_is_played_back_and_becomes_a_case(box: Box, simulator: Process, citygate: Command) -> None:
    config = ("-c", str(box.config))
    box.start_daemon()
    file = box.folder / "roof.rec"

    recorded = citygate("record", "roof", "--for", "1.5s", "--to", str(file), *config)
    assert recorded.code == 0
    asked = exchanges(parsed(file.read_text()))
    assert len(asked) >= 4
    before = box.device("roof", "climate")["points"]["temperature"]["value"]
    assert before is not None

    simulator.end()
    box.start("playback", "-m", "gateway", "simulate", "-c", str(box.config), "--from", str(file))
    sets = box.device("roof", "climate")["sets"]
    eventually("the recording is read", lambda: box.device("roof", "climate")["sets"] > sets + 4)
    eventually("the device is well", lambda: box.device("roof", "climate")["state"] == "ok")

    case = box.folder / "case"
    made = citygate("case", str(file), "--template", "sht20/xy-md02", "--to", str(case))
    assert made.code == 0
    assert set(json.loads((case / "expected.json").read_text())) == {
        "temperature", "humidity", "temperature_correction", "humidity_correction",
    }  # fmt: skip
    assert (case / "frames.hex").read_text().count("\n> ") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("scan", "modbus", "/dev/does-not-exist", "--json"), 4, "cannot open"),
        (("scan", "serial", "/dev/x"), 2, "cannot do this; modbus can"),
        (("scan", "modbus", "/dev/x", "--units", "a-b"), 2, "no number"),
        (("provision", "eastron/sdm120", "/dev/x", "--new-unit", "7"), 1, "declares no register"),
        (("case", "/does/not/exist", "--template", "eastron/sdm120", "--to", "/tmp/x"), 1, "cannot read"),
    ],
)
def test_what_cannot_be_done_is_said(citygate: Command, arguments: tuple[str, ...], code: int, why: str) -> None:
    ended = citygate(*arguments)

    assert ended.code == code
    assert why in ended.err + ended.out
