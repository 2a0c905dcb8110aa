"""A log that an older version wrote holds texts which no JSON can: after the update every door works, and the city gets
the rest."""

import asyncio
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.reading import Reading, ReadingSet
from tests.support.box import Box, eventually, get_json

CONFIG = """
version: 1
gateway: {{id: gw-flow, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
publish: {{devices: 0 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
links:
  air: {{driver: chirpstack, url: "mqtt://127.0.0.1:1", devices: {{cam: {{template: mine/cam, dev_eui: "0102030405060708"}}}}}}
brokers:
  city: {{kind: ngsi-ld, url: "http://127.0.0.1:{broker}", linger: 100 ms}}
"""
TEMPLATE = """
vendor: Mine
model: cam
codec: {kind: object}
points:
  pm2_5: {quantity: pm25, unit: GQ}
  said: {quantity: text}
entity: {type: AirQualityObserved, attributes: {pm25: pm2_5, description: said}}
"""
HALF = "a\ud83d"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    (tmp_path / "templates" / "mine").mkdir(parents=True)
    (tmp_path / "templates" / "mine" / "cam.yaml").write_text(TEMPLATE)
    try:
        yield box
    finally:
        box.close()


async def old_log(box: Box) -> None:
    """As a version whose intake did not look at texts."""
    settings = LogSettings(box.folder / "buffer.db")
    log = await Log.open(settings, clock=SystemClock(), consumers=[Consumer("city")])
    at = datetime.now(UTC)
    await log.append(ReadingSet("cam", (Reading("pm2_5", 7.5, at), Reading("said", HALF, at))))
    await log.close()


def test_every_door_works_and_the_city_gets_the_rest(box: Box) -> None:
    asyncio.run(old_log(box))
    broker = box.start("broker", "-m", "tests.support.strict_broker", "--port", "0")
    port = eventually("the broker", lambda: broker.text().strip().split()[-1:])[0]
    box.write(CONFIG.format(box=box.folder, http=box.port, broker=port))
    box.start_daemon()

    assert box.device("air", "cam")["points"]["said"]["value"].startswith("a\ufffd")
    with urllib.request.urlopen(f"{box.url}/metrics") as answer:
        assert b"citygate_device_up" in answer.read()
    [entity] = get_json(f"{box.url}/ngsi-ld/v1/entities?type=AirQualityObserved&options=keyValues")
    assert entity["pm25"] == 7.5
    assert entity["description"].startswith("a\ufffd")

    def held() -> object:
        return "7.5" in str(get_json(f"http://127.0.0.1:{port}/_strict/held"))

    eventually("the city has the rest", held)
    city = eventually("all is settled", lambda: _settled(box))
    assert city
    assert (city["later"], city["dead"]) == (0, 0)
    for verb in (("status",), ("buffer", "export", "--csv")):
        command = box.start("verb", "-m", "gateway", *verb, "-c", str(box.config))
        command.popen.wait(60)
        assert "Traceback" not in command.text(), verb
        assert "a\ufffd" in command.text(), verb


def _settled(box: Box) -> dict[str, object] | None:
    city: dict[str, object] = (box.status() or {}).get("brokers", {}).get("city", {})
    return city if city and not city["backlog"] else None
