"""`check` on a box: what the file would make of what is still owed there, without touching the log."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.clock import SystemClock
from gateway.daemon import _consumer
from gateway.log.log import Log, LogSettings
from gateway.plan import make_plan
from gateway.recipes import devices_of
from gateway.registry import Registry
from gateway.sdk.reading import Reading, ReadingSet
from tests.gateway.cli.conftest import Command
from tests.support.fake_view import FakeView

METER = "      meter-1: {template: eastron/sdm120, unit_id: 1}\n"
CONFIG = """\
version: 1
gateway: {id: gw-1, city: milano, location: [9.159, 45.503]}
publish: {devices: 0 s}
links:
  roof:
    driver: modbus
    host: 192.0.2.1
    port: 502
    devices:
      meter-0: {template: eastron/sdm120, unit_id: 2}
"""
BROKERS = """\
brokers:
  milano: {url: "http://127.0.0.1:1"}
  porto: {url: "http://127.0.0.1:2"}
"""
ENTITY = "urn:ngsi-ld:ACMeasurement:milano:gw-1:meter-1"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A box that owes 3 readings of meter-1 to two cities, and does not run."""
    file = tmp_path / "citygate.yaml"
    file.write_text(f"buffer: {{path: {tmp_path}/buffer.db}}\n" + CONFIG + METER + BROKERS)

    async def run() -> None:
        plan = make_plan(file, Registry())
        devices = devices_of(plan)
        consumers = [_consumer(broker, devices) for broker in plan.brokers.values()]
        settings = LogSettings(tmp_path / "buffer.db")
        log = await Log.open(settings, clock=SystemClock("system"), consumers=consumers, devices=devices)
        for n in range(3):
            at = datetime.now(UTC) - timedelta(seconds=9 - n)
            await log.append(ReadingSet("meter-1", (Reading("voltage", 230.0 + n, at),)))
        columns = await log.read("milano")
        assert columns is not None
        await log.settle("milano", columns.seq[0])
        await log.close()

    asyncio.run(run())
    return file


def said(capsys: pytest.CaptureFixture[str], config: Path, old: str = "", new: str = "") -> list[str]:
    """What a check says of the changed file; the log stays as it was, byte for byte."""
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new) if old else text)
    buffer = config.parent / "buffer.db"
    before = buffer.read_bytes()
    assert main(["check", "-c", str(config), "--json"]) == 0
    found = [f"{fate['of']}: {fate['text']}" for fate in json.loads(capsys.readouterr().out)["becomes"]]
    assert main(["check", "-c", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in found] == found
    assert buffer.read_bytes() == before
    return found


def test_a_file_that_changes_nothing_says_nothing(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert said(capsys, config) == []


def test_a_device_and_a_broker_that_would_go(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert said(capsys, config, METER, "") == [
        "device meter-1: 2 readings owed to milano: go out by its last mapping; it is gone from the config",
        "device meter-1: 3 readings owed to porto: go out by its last mapping; it is gone from the config",
        f"device meter-1: entity {ENTITY} is told no more; it stays there with its last value (milano, porto)",
    ]
    assert said(capsys, config, '  porto: {url: "http://127.0.0.1:2"}\n', "")[0] == (
        "broker porto: 3 readings owed: kept until it is put back, or `citygate buffer forget porto`; at most 90 days, and "
        "while all of the log fits into 1000 MB"
    )


def test_what_would_be_given_up_is_said_with_how_many(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert said(capsys, config, '27.0.0.1:2"', '27.0.0.1:2", send: [meter-0]')[0] == (
        "device meter-1: 3 readings owed to porto: will not be sent, the mapping or `send:` takes them no longer"
    )


def test_a_log_that_is_in_use_or_none_at_all_is_left_alone(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    """A daemon that holds it and does not answer; then it is told of what is committed all the same."""

    async def held() -> None:
        settings = LogSettings(config.parent / "buffer.db", leave_foreign=True)
        log = await Log.open(settings, clock=SystemClock("system"), consumers=None)
        assert len(await asyncio.to_thread(said, capsys, config, METER, "")) == 3
        await log.close()

    asyncio.run(held())
    (config.parent / "buffer.db").unlink()
    assert main(["check", "-c", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["becomes"] == []
    (config.parent / "buffer.db").write_bytes(b"no database at all" * 1000)
    assert main(["check", "-c", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["becomes"] == []
    assert sorted(file.name for file in config.parent.glob("buffer*")) == [
        "buffer.db",
        "buffer.db.lock",
    ]  # that of the log before


@pytest.mark.parametrize("other", [False, True])
def test_the_daemon_of_this_file_is_asked(citygate: Command, daemon: FakeView, folder: Path, other: bool) -> None:
    daemon.config_file = "/etc/other/citygate.yaml" if other else str(folder / "citygate.yaml")
    fate = {"of": "broker porto", "readings": 9, "lost": 0, "text": "9 readings owed: go on to lisboa"}
    daemon.reloaded = {"changed": [], "becomes": [fate]}
    assert citygate("check", "-c", str(folder), "--json").json["becomes"] == ([] if other else [fate])
    assert daemon.asked[-1:] == [("reload", True)]
