"""A file becomes wrong, then the power goes: the box as a service starts it, with its own command."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.box import REPOSITORY, Box, Process, eventually, get_json

CONFIG = """
version: 1
gateway: {{id: gw-flow, name: {name}, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    write(box, "first")
    yield box
    box.close()


def write(box: Box, name: str) -> None:
    box.write(CONFIG.format(box=box.folder, http=box.port, name=name))


def service(box: Box, **environment: str) -> Process:
    """As the unit starts it, once it answers."""
    environment = environment or {"STATE_DIRECTORY": str(box.folder)}
    daemon = box.start("daemon", "-m", "gateway", "run", "--last-good", "-c", str(box.config), **environment)
    eventually("it answers", lambda: daemon.popen.poll() is not None or get_json(f"{box.url}/status"))
    assert daemon.popen.poll() is None, daemon.text()
    return daemon


def config(box: Box) -> dict[str, Any]:
    found: dict[str, Any] = (box.status() or {}).get("config", {})
    return found


def test_the_unit_starts_it_so() -> None:
    unit = (REPOSITORY / "systemd" / "citygate.service").read_text()
    assert "ExecStart=/opt/citygate/bin/citygate run --last-good -c /etc/citygate\n" in unit
    assert "StateDirectory=citygate\n" in unit, "where the last good config is"
    assert "RestartPreventExitStatus=3\n" in unit


def test_a_file_that_becomes_wrong_and_a_power_cut_leave_a_box_that_works_and_says_so(box: Box) -> None:
    kept = box.folder / "last-good.json"
    daemon = service(box)
    eventually("it is kept", kept.exists)
    assert config(box)["using"] == "file"
    box.write("\0garbage: [\n")
    daemon.kill()

    daemon = service(box)
    assert "last_good_config_at_work" in daemon.text()
    assert "config_problem" in daemon.text()
    assert get_json(f"{box.url}/status")["gateway"]["name"] == "first"
    assert config(box)["using"] == "last good"
    assert config(box)["last_good"]["of"] == json.loads(kept.read_text())["written_at"][:19] + "Z"

    write(box, "mended")
    daemon.popen.send_signal(signal.SIGHUP)
    eventually("the mended one is at work", lambda: box.status()["gateway"]["name"] == "mended")
    assert config(box)["using"] == "file"
    eventually("and kept", lambda: "mended" in kept.read_text())


def test_a_file_that_is_gone_does_not_hide_what_was_kept_beside_the_log(box: Box) -> None:
    environment = {"STATE_DIRECTORY": "", "XDG_STATE_HOME": str(box.folder / "state")}
    daemon = service(box, **environment)
    eventually("it is kept", (box.folder / "last-good.json").exists)
    box.config.unlink()
    daemon.kill()

    service(box, **environment)
    assert get_json(f"{box.url}/status")["gateway"]["name"] == "first"
    assert config(box)["using"] == "last good"
