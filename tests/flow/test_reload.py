"""The technician's verbs on a live box, as processes: reload, read, pause, preview, once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.box import REPOSITORY, Box, eventually, free_port

CONFIG = """
version: 1
gateway: {{id: gw-flow, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
links:
  plant:
    driver: modbus
    host: 127.0.0.1
    port: {plant}
    devices:
      meter-1: {{template: eastron/sdm120, unit_id: 1, every: 200 ms}}
  roof:
    driver: modbus
    port: "{box}/roof"
    baud_rate: 115200
    devices:
      meter-2: {{template: eastron/sdm120, unit_id: 1, every: 200 ms}}
"""


@pytest.fixture
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    box.write(CONFIG.format(box=box.folder, http=box.port, plant=free_port()))
    try:
        box.start_simulator("plant")
        box.start_simulator("roof")
        box.start_daemon()
        for name, device in (("plant", "meter-1"), ("roof", "meter-2")):
            eventually(f"{device} is good", lambda n=name, d=device: box.device(n, d).get("state") == "ok")  # type: ignore[misc]
        yield box
    finally:
        box.close()


def verb(box: Box, name: str, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, JSON and standard error of a verb."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", name, *arguments, "-c", str(box.config), "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr


def edit(box: Box, old: str, new: str) -> None:
    text = box.config.read_text()
    assert old in text
    box.write(text.replace(old, new))


def test_a_reload_that_changes_one_link_leaves_the_others_connected(box: Box) -> None:
    sets = box.device("plant", "meter-1")["sets"]
    edit(box, "baud_rate: 115200", "baud_rate: 57600")

    code, said, _ = verb(box, "reload")

    assert code == 0
    assert said["restarted"] == ["roof"]
    link = box.status()["links"]["plant"]
    assert link["restarts"] == 0
    assert link["counters"].get("reconnects", 0) == 0
    assert link["devices"]["meter-1"]["sets"] >= sets
    eventually("meter-2 polls again", lambda: box.device("roof", "meter-2").get("state") == "ok")


def test_a_reload_of_a_broken_file_changes_nothing_and_says_where(box: Box) -> None:
    edit(box, "unit_id: 1, every: 200 ms", "unit_id: 300, every: 200 ms")

    code, said, _ = verb(box, "reload")

    assert code == 3
    assert {problem["line"] for problem in said["problems"]} == {13, 19}
    sets = box.device("plant", "meter-1")["sets"]
    eventually("the old config goes on", lambda: box.device("plant", "meter-1")["sets"] > sets + 2)


def test_a_device_that_comes_and_one_that_goes(box: Box) -> None:
    edit(box, "meter-2:", "meter-3:")

    assert verb(box, "reload")[0] == 0

    eventually("meter-3 is there", lambda: box.device("roof", "meter-3").get("state") == "ok")
    assert box.device("roof", "meter-2") == {}


def test_read_goes_through_the_links_own_queue_while_it_polls(box: Box) -> None:
    sets = box.device("roof", "meter-2")["sets"]

    code, rows, _ = verb(box, "read", "meter-2")

    assert code == 0
    [voltage] = [row for row in rows if row["point"] == "voltage"]
    assert voltage["quality"] == "good"
    assert voltage["unit"] == "VLT"
    assert voltage["observed_at"].endswith("Z")
    eventually("polls go on", lambda: box.device("roof", "meter-2")["sets"] > sets)


def test_a_pause_keeps_values_from_the_log_and_ends_by_itself(box: Box) -> None:
    code, said, _ = verb(box, "pause", "meter-1", "--for", "1500ms")

    assert code == 0
    paused = box.device("plant", "meter-1")
    assert paused["state"] == "paused"
    assert paused["paused_until"] == said["until"]
    eventually("it ends by itself", lambda: box.device("plant", "meter-1")["state"] == "ok")
    assert box.device("plant", "meter-1")["sets"] > paused["sets"]


def test_preview_shows_the_entity_that_would_be_sent(box: Box) -> None:
    code, brokers, _ = verb(box, "preview", "meter-1")

    assert code == 0
    [[entity]] = brokers.values()
    assert entity["id"] == "urn:ngsi-ld:ACMeasurement:testville:gw-flow:meter-1"
    assert entity["frequency"]["unitCode"] == "HTZ"


def test_once_reads_every_device(box: Box) -> None:
    code, said, _ = verb(box, "once")

    assert code == 0
    assert said["devices"]["meter-1"]["readings"] > 5
    assert said["devices"]["meter-2"]["error"] == ""


def test_a_name_that_is_not_there_is_refused_with_those_that_are(box: Box) -> None:
    code, said, error = verb(box, "read", "meter-9")

    assert code == 2
    assert "meter-1" in json.dumps(said) + error
