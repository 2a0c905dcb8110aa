"""What a city refuses is not "all is well": status, exit code, readiness, metrics, held list and text say it, and say the same."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.box import REPOSITORY, Box, eventually, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]  # an entity whose state was refused is tried every 30 s

CONFIG = """
version: 1
gateway: {{id: gw-flow, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
publish: {{devices: 0 s}}
links:
  plant:
    driver: modbus
    host: 127.0.0.1
    port: {plant}
    timeout: 500 ms
    devices:
      meter-1: {{template: eastron/sdm120, unit_id: 1, every: 300 ms}}
      meter-2: {{template: eastron/sdm120, unit_id: 2, every: 300 ms}}
brokers:
  city: {{kind: ngsi-ld, url: "http://127.0.0.1:{broker}", linger: 100 ms, history: {history}}}
"""


@pytest.fixture(params=["temporal", "in-order"])
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    box = Box(tmp_path)
    port = free_port()
    box.write(CONFIG.format(box=box.folder, http=box.port, plant=free_port(), broker=port, history=request.param))
    try:
        box.start("broker", "-m", "tests.support.strict_broker", "--port", str(port))
        box.start_simulator("plant")
        box.start_daemon()
        box.broker_port = port  # type: ignore[attr-defined]
        yield box
    finally:
        box.close()


def behave(box: Box, **fields: Any) -> None:
    url = f"http://127.0.0.1:{box.broker_port}/_strict/behave"  # type: ignore[attr-defined]
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(fields).encode(), method="POST"), timeout=5).close()


def command(box: Box, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments, "-c", str(box.config)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def text(box: Box, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{box.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


def city(box: Box) -> dict[str, Any]:
    found: dict[str, Any] = (box.status() or {}).get("brokers", {}).get("city", {})
    return found


def test_a_device_whose_data_the_city_refuses_is_told_everywhere_until_it_is_accepted(box: Box) -> None:
    eventually("accepted", lambda: city(box).get("accepted", 0) > 4 and city(box)["state"] == "ok")
    assert command(box, "status")[0] == 0
    behave(box, refuse="meter-2$")

    [row] = eventually("refusal is told", lambda: city(box).get("refusing") or [])
    assert row["device"] == "meter-2"
    assert "refused by rule" in row["reason"]
    assert row["remedy"]
    status = box.status() or {}
    assert "refused by rule" in status["links"]["plant"]["devices"]["meter-2"]["refused_by"]["city"]
    assert status["links"]["plant"]["devices"]["meter-1"]["refused_by"] == {}
    assert any("meter-2" in reason and "refused by rule" in reason for reason in status["gateway"]["ready"])
    assert json.loads(text(box, "/readyz"))["ready"] is False
    code, said = command(box, "status")
    assert code == 1
    assert "all is well" not in said
    assert "refuses" in said
    assert command(box, "status", "meter-2")[0] == 1
    assert command(box, "status", "meter-1")[0] == 0
    assert 'citygate_broker_refusing_entities{broker="city"} 1.0' in text(box, "/metrics")

    behave(box, refuse="")
    command(box, "buffer", "requeue", "--all")
    eventually(
        "all is well again",
        lambda: not city(box).get("refusing") and not (box.status() or {})["gateway"]["ready"],
        within_s=45,
    )
    assert command(box, "status")[0] == 0


def test_what_is_held_is_counted_alike_everywhere_at_once(box: Box) -> None:
    eventually("accepted", lambda: city(box).get("accepted", 0) > 4)
    behave(box, refuse="meter-2$")

    def alike() -> bool:
        listed = json.loads(command(box, "buffer", "held", "list", "--json")[1])
        found = city(box)
        dead, later = (sum(row["state"] == state for row in listed) for state in ("dead", "later"))
        assert (
            f'citygate_broker_held_dead{{broker="city"}} {float(found["dead"])}' in text(box, "/metrics")
            or dead != found["dead"]
        )
        return dead > 0 and (found["dead"], found["later"]) == (dead, later)

    eventually("held list and status agree", alike, within_s=60)
    behave(box, refuse="")
    command(box, "buffer", "purge", "--all")
    listed = json.loads(command(box, "buffer", "held", "list", "--json")[1])
    assert city(box)["dead"] == sum(row["state"] == "dead" for row in listed)
