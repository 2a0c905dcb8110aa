"""One bad thing stays one bad thing: the daemon as a process, with links that cannot work beside one that does."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.box import Box, eventually, free_port

CONFIG = """
version: 1
gateway: {{id: gw-flow, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
links:
  works:
    driver: modbus
    host: 127.0.0.1
    port: {plant}
    timeout: 300 ms
    devices: {{meter-1: {{template: eastron/sdm120, unit_id: 1, every: 300 ms}}}}
  unplugged:
    driver: serial
    port: "{box}/no-such-port"
    devices: {{air-1: {{template: nova/sds011}}}}
  closed:
    driver: modbus
    host: 127.0.0.1
    port: {closed}
    timeout: 300 ms
    devices: {{meter-2: {{template: eastron/sdm120, unit_id: 1, every: 300 ms}}}}
  foreign:
    driver: broken
    port: "{box}/nothing"
    devices: {{thing-1: {{template: any/thing}}}}
brokers:
  away: {{kind: ngsi-ld, url: "http://127.0.0.1:{nobody}"}}
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("degraded"))
    foreign = _package_that_fails_to_import(box.folder / "packages")
    box.write(CONFIG.format(box=box.folder, http=box.port, plant=free_port(), closed=free_port(), nobody=free_port()))
    try:
        path = f"{foreign}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        box.start_simulator("works", PYTHONPATH=path)
        box.start_daemon(PYTHONPATH=path)
        yield box
    finally:
        box.close()


def _package_that_fails_to_import(folder: Path) -> Path:
    info = folder / "brokendriver-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brokendriver\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[citygate.drivers]\nbroken = brokendriver:DRIVER\n")
    (folder / "brokendriver.py").write_text("import a_library_that_is_not_there\n")
    return folder


def link(box: Box, name: str, state: str) -> dict[str, Any]:
    """The status of a link once it has this state."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = (box.status() or {}).get("links", {}).get(name, {})
        return found if found.get("state") == state else {}

    return eventually(f"link {name} is {state}", look)


def test_the_link_that_can_work_works(box: Box) -> None:
    found = link(box, "works", "ok")

    assert found["devices"]["meter-1"]["points"]["voltage"]["quality"] == "good"


def test_an_absent_port_is_named_with_what_to_do(box: Box) -> None:
    found = link(box, "unplugged", "down")

    assert "no-such-port" in found["reason"]
    assert "plugged in" in found["reason"] + found["remedy"]


def test_a_closed_tcp_port_is_named(box: Box) -> None:
    found = link(box, "closed", "down")

    assert "refused" in found["reason"].lower()


def test_a_driver_that_cannot_be_imported_is_named_with_what_to_do(box: Box) -> None:
    found = link(box, "foreign", "off")

    assert "a_library_that_is_not_there" in found["reason"]
    assert "brokendriver 1.0" in found["reason"]
    assert "install" in found["remedy"]


def test_an_absent_broker_is_tried_again_and_nothing_is_dropped(box: Box) -> None:
    def look() -> Any:
        away = (box.status() or {}).get("brokers", {}).get("away", {})
        return away if away.get("state") == "down" and away.get("backlog", 0) > 0 else None

    away = eventually("the broker is down with a backlog", look)

    assert away["next_try_at"] is not None
    assert away["oldest_unsent_at"] is not None


def test_ending_one_simulator_turns_its_device_bad_and_its_return_good(box: Box) -> None:
    link(box, "works", "ok")
    simulator = next(process for process in box.processes if "simulator-works" in process.output.name)
    simulator.end(signal.SIGTERM)

    eventually("meter-1 is bad", lambda: box.device("works", "meter-1").get("state") == "bad", within_s=8)
    box.start_simulator("works", PYTHONPATH=str(box.folder / "packages"))
    eventually("meter-1 is good again", lambda: box.device("works", "meter-1").get("state") == "ok", within_s=60)


def test_sigterm_stops_with_everything_committed(tmp_path: Path) -> None:
    box = Box(tmp_path)
    config = CONFIG.format(box=tmp_path, http=box.port, plant=free_port(), closed=free_port(), nobody=free_port())
    links, _, brokers = config.partition("brokers:")
    # Nothing is committed for an hour unless stopping does it.
    box.write(
        (links.partition("  foreign:")[0] + "brokers:" + brokers).replace("commit_every: 1 s", "commit_every: 1 h")
    )
    try:
        box.start_simulator("works")
        daemon = box.start_daemon()
        link(box, "works", "ok")
        owed = eventually("20 readings are owed", lambda: _owed(box) if _owed(box) >= 20 else 0)

        assert daemon.end() == 0
        box.start_daemon()
        assert eventually("the backlog is there again", lambda: _owed(box)) >= owed
    finally:
        box.close()


def _owed(box: Box) -> int:
    return int((box.status() or {}).get("brokers", {}).get("away", {}).get("backlog", 0))
