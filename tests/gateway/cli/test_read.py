"""read and preview: through the daemon when it runs, else here, with the same shapes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.sdk.errors import LinkError
from tests.gateway.cli.conftest import Command
from tests.support.box import Process, eventually, free_port
from tests.support.fake_view import FakeView

ROW = {"point", "quantity", "value", "unit", "quality", "reason", "observed_at"}


@pytest.fixture
def meter(tmp_path: Path) -> Path:
    """A config with one Modbus TCP meter and a sensor on a line that is not there; no daemon."""
    (tmp_path / "citygate.yaml").write_text(f"""\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {tmp_path}/buffer.db}}
links:
  plant: {{driver: modbus, host: 127.0.0.1, port: {free_port()}, devices: {{meter-1: {{template: eastron/sdm120, unit_id: 1, every: 1 s}}}}}}
  air: {{driver: serial, port: {tmp_path}/none, devices: {{air-1: {{template: nova/sds011}}}}}}
clock: {{trust: system}}
""")
    return tmp_path


@pytest.fixture
def simulated(meter: Path) -> Iterator[Path]:
    """The same with the meter played."""
    process = Process(meter / "simulate.log", "-m", "gateway", "simulate", "-c", str(meter), "--link", "plant")
    eventually("simulator", lambda: "playing" in process.text(), within_s=60)
    yield meter
    process.end()


def test_a_running_daemon_is_asked(citygate: Command, daemon: FakeView, folder: Path) -> None:
    ended = citygate("read", "meter-12", "-c", str(folder), "--json")
    assert daemon.asked == [("read", "meter-12")]
    assert (ended.code, set(ended.json[0])) == (0, ROW)


def test_as_text_the_raw_bytes_come_first(citygate: Command, daemon: FakeView, folder: Path) -> None:
    lines = citygate("read", "meter-12", "-c", str(folder)).out.splitlines()
    assert [line.split() for line in lines] == [
        ["sent", "01", "04"],
        ["received", "01", "04", "02"],
        ["voltage", "230.5", "V", "voltage"],
    ]


def test_a_link_that_is_down_is_unreachable(citygate: Command, daemon: FakeView, folder: Path) -> None:
    daemon.error = LinkError("link roof is down: no port")
    ended = citygate("read", "meter-12", "-c", str(folder))
    assert ended.code == 4
    assert "link roof is down" in ended.err


def test_without_a_daemon_the_device_is_read_here(citygate: Command, simulated: Path) -> None:
    ended = citygate("read", "meter-1", "-c", str(simulated), "--json")
    assert ended.code == 0, ended.err
    rows = {row["point"]: row for row in ended.json}
    assert set(rows["voltage"]) == ROW
    assert (rows["voltage"]["unit"], rows["voltage"]["quality"]) == ("VLT", "good")
    assert 220 < rows["voltage"]["value"] < 240
    assert not (simulated / "buffer.db").exists()  # nothing is logged


def test_repeated_reads_print_one_reading_a_line(
    citygate: Command, simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(
        simulated / "read.log", "-m", "gateway", "read", "meter-1", "-c", str(simulated), "--json", "--repeat", "--every", "50 ms"
    )  # fmt: skip
    eventually("three reads", lambda: process.text().count('"point":"voltage"') >= 3, within_s=60)
    import signal

    assert process.end(signal.SIGINT) == 0
    lines = process.text().splitlines()
    assert all(set(json.loads(line)) == ROW for line in lines)


def test_a_device_behind_a_closed_port_is_unreachable(citygate: Command, meter: Path) -> None:
    for device, why in (("meter-1", "Connection refused"), ("air-1", "No such file")):
        ended = citygate("read", device, "-c", str(meter))
        assert ended.code == 4
        assert why in ended.err


def test_a_port_that_another_program_holds_is_not_shared(citygate: Command, meter: Path) -> None:
    import os
    import subprocess
    import sys
    import tty

    master, slave = os.openpty()
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'rb+', 0); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    try:
        tty.setraw(slave)
        (meter / "none").symlink_to(os.ttyname(slave))
        with subprocess.Popen(
            [sys.executable, "-c", hold, os.ttyname(slave)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            ended = citygate("read", "air-1", "-c", str(meter))
            other.communicate(b"\n")
        assert ended.code == 4
        assert f"(process {other.pid}), holds the port" in ended.err
    finally:
        os.close(master)
        os.close(slave)


def test_a_device_that_is_not_there_is_wrong_use(citygate: Command, meter: Path) -> None:
    for verb in ("read", "preview"):
        ended = citygate(verb, "nope", "-c", str(meter))
        assert ended.code == 2
        assert "there are air-1, meter-1" in ended.err


def test_preview_of_a_daemon_is_entities_by_broker(citygate: Command, daemon: FakeView, folder: Path) -> None:
    ended = citygate("preview", "meter-12", "-c", str(folder), "--json")
    assert (ended.code, ended.json) == (0, {"milano": [{"id": "urn:x", "type": "T"}]})
    assert "from the last values" in ended.err


def test_preview_without_a_daemon_is_of_the_templates_sample_and_says_so(citygate: Command, meter: Path) -> None:
    ended = citygate("preview", "air-1", "-c", str(meter), "--json")
    assert ended.code == 0
    assert "sample frames of template nova/sds011" in ended.err
    [entity] = ended.json["read API"]
    assert entity["id"] == "urn:ngsi-ld:AirQualityObserved:milano:gw-1:air-1"
    assert entity["pm25"]["value"] == 0.6
    assert entity["location"]["value"]["coordinates"] == [9.1, 45.5]
