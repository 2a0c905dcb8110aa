"""Devices that go, come back, are renamed or become others: what is owed of them reaches the city once, whatever happens between."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import urllib.request
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main
from gateway.cli.status_text import status_text
from gateway.sdk.errors import LogError
from gateway.sdk.reading import ReadingSet
from tests.gateway.daemon_scene import InProcess, QuickClock
from tests.support.strict_broker import StrictBroker

METER = "      meter-1: {template: acme/meter, unit_id: 1}\n"
NEIGHBOUR = "      meter-0: {template: acme/meter, unit_id: 9}\n"
CONFIGURED = ("      meter-1:", NEIGHBOUR + "      meter-1:")
# as acme/meter, but what it tells is another thing, and as much of another entity
MILLIVOLT = """\
vendor: Acme
model: Millivolt
points:
  voltage: {quantity: voltage, unit: 2Z}
entity:
  type: ACMeasurement
  attributes: {phaseVoltage.L1: voltage}
  static: {phaseType: singlePhase}
samples: []
"""


def entity(device: str = "meter-1") -> str:
    return f"urn:ngsi-ld:ACMeasurement:milano:gw-1:{device}"


def points(broker: StrictBroker) -> Counter[tuple[str, float]]:
    """Every measured point of the history, by entity and value; a repeat counts twice."""
    return Counter((name, value["L1"]) for name, key, _, value in broker.temporal_history() if key == "phaseVoltage")


@contextlib.asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[InProcess]:
    """A box that has not begun, with a neighbour on its link and another template beside the config; and its city."""
    (folder / "templates" / "acme").mkdir(parents=True)
    (folder / "templates" / "acme" / "millivolt.yaml").write_text(MILLIVOLT)
    broker = StrictBroker()
    async with broker.serve() as url:
        its = InProcess(folder, url, broker, QuickClock())
        its.edit(CONFIGURED, ("commit_every: 100 ms", "commit_every: 1 h"))
        yield its


async def killed(its: InProcess, folder: Path) -> InProcess:
    """The box as it would be found if it were killed now; the one that runs goes on."""
    shutil.copytree(its.folder, folder, ignore=shutil.ignore_patterns("buffer.*", "*.sock", ".last-good*"))
    files = [file for end in ("", "-wal") if (file := its.folder / f"buffer.db{end}").exists()]
    # by another process: to close the file in this one would drop SQLite's locks
    assert await (await asyncio.create_subprocess_exec("cp", *files, folder)).wait() == 0
    found = InProcess(folder, "", its.broker, its.clock)
    found.path.write_text(its.path.read_text().replace(str(its.folder), str(folder)))
    return found


async def drained(its: InProcess) -> None:
    """Until the city is owed nothing, and nothing is held for it."""

    def rest() -> bool:
        milano = its.daemon.status()["brokers"]["milano"]
        return not (milano["backlog"] or milano["later"] or milano["dead"])

    its.broker.behaviour.fault = ""
    await its.daemon.verbs["buffer-requeue"]({"all": True})
    await its.until(rest)


async def hold(its: InProcess, device: str = "meter-1") -> None:
    """What is owed of a device is set aside, as the lane does with what the city puts off."""
    log = its.daemon._log
    columns = await log.read("milano")
    assert columns is not None
    later = datetime.now(UTC) + timedelta(hours=1)
    await log.held.hold("milano", entity(device), device, columns, reason="later", at=log.now(), next_try_at=later)
    await log.settle("milano", columns.last)


async def owes(its: InProcess, where: str, *values: float, device: str = "meter-1") -> None:
    """Values that the city, which is away from now on, is owed."""
    its.broker.behaviour.fault = "503"
    for value in values:
        await its.emit("roof", device, voltage=value)
    if where == "held":
        await hold(its, device)
    if where != "memory":
        await its.daemon._log.commit()


@dataclass(frozen=True)
class Case:
    """A change, and what becomes of 1.0 and 2.0, owed before it, and of 3.0, told after it by `device`."""

    change: tuple[str, str]
    expected: dict[tuple[str, float], int]
    device: str = "meter-1"


def of(device: str, *values: float) -> dict[tuple[str, float], int]:
    return {(entity(device), value): 1 for value in values}


CASES = {
    "removed": Case((METER, ""), of("meter-1", 1.0, 2.0), ""),
    "renamed": Case(("meter-1: {", "meter-2: {was: meter-1, "), of("meter-2", 1.0, 2.0, 3.0), "meter-2"),
    "another": Case(("meter-1: {", "meter-2: {"), of("meter-1", 1.0, 2.0) | of("meter-2", 3.0), "meter-2"),
    "template": Case(
        ("meter-1: {template: acme/meter", "meter-1: {template: acme/millivolt"), of("meter-1", 1.0, 2.0, 0.003)
    ),
    "entity id": Case(
        ("acme/meter, unit_id: 1", f"acme/meter, unit_id: 1, entity: {{id: '{entity('other')}'}}"),
        of("other", 1.0, 2.0, 3.0),
    ),
    "calibration": Case(
        ("acme/meter, unit_id: 1", "acme/meter, unit_id: 1, calibrate: {voltage: {gain: 10}}"),
        of("meter-1", 10.0, 20.0, 30.0),
    ),
    "renamed and another template": Case(
        ("meter-1: {template: acme/meter", "meter-2: {was: meter-1, template: acme/millivolt"),
        of("meter-1", 1.0, 2.0) | of("meter-2", 0.003),
        "meter-2",
    ),
}


@pytest.mark.parametrize(("where", "kill"), [("memory", False), ("card", True), ("held", True)])
@pytest.mark.parametrize("case", CASES)
async def test_what_is_owed_when_a_device_changes_reaches_the_city_once(
    tmp_path: Path, case: str, where: str, kill: bool
) -> None:
    change, expected, device = CASES[case].change, CASES[case].expected, CASES[case].device
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, where, 1.0, 2.0)
            await its.reload(change)
            found = await killed(its, tmp_path / "found") if kill else its
            if not kill and device:
                await its.emit("roof", device, voltage=3.0)
            if not kill:
                await drained(its)
        if kill:
            async with found.at_work():
                if device:
                    await found.emit("roof", device, voltage=3.0)
                await drained(found)

    assert points(its.broker) == expected


# --- in odd orders, twice, and with a restart between -------------------------------------------------------------------


async def test_a_device_that_comes_back_has_its_new_mapping_also_for_what_is_owed(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "card", 1.0)
            await its.reload((METER, ""))
        async with its.at_work():
            calibrated = METER.replace("unit_id: 1", "unit_id: 1, calibrate: {voltage: {gain: 10}}")
            await its.reload(("  air:", calibrated + "  air:"))
            await its.emit("roof", "meter-1", voltage=2.0)
            await drained(its)

    assert points(its.broker) == of("meter-1", 10.0, 20.0)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_device_that_comes_back_as_another_kind_is_not_taken_for_what_it_was(
    tmp_path: Path, restart: bool
) -> None:
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "card", 1.0)
            await its.reload((METER, ""))
            if not restart:
                await its.reload(("  air:", METER.replace("meter,", "millivolt,") + "  air:"))
                await its.emit("roof", "meter-1", voltage=2000.0)
                await drained(its)
        if restart:
            its.edit(("  air:", METER.replace("meter,", "millivolt,") + "  air:"))
            async with its.at_work():
                await its.emit("roof", "meter-1", voltage=2000.0)
                await drained(its)

    assert points(its.broker) == of("meter-1", 1.0, 2.0)


async def test_the_last_value_of_another_kind_is_not_shown_nor_sent_as_one_of_this_kind(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its, its.at_work():
        await its.emit("roof", "meter-1", voltage=1.0)
        await drained(its)
        await its.broker.until(lambda: points(its.broker) == of("meter-1", 1.0))

        await its.reload(("meter-1: {template: acme/meter", "meter-1: {template: acme/millivolt"))

        assert its.device("roof", "meter-1")["points"]["voltage"]["value"] is None
        await its.emit("roof", "meter-0", voltage=5.0)
        await drained(its)
        assert its.broker.current(entity(), "phaseVoltage") == {"L1": 1.0}


async def test_a_template_there_and_back_again_leaves_each_reading_what_it_was(tmp_path: Path) -> None:
    there = ("meter-1: {template: acme/meter", "meter-1: {template: acme/millivolt")
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "card", 1.0)
            await its.reload(there)
            await its.emit("roof", "meter-1", voltage=2000.0)
            await its.daemon._log.commit()
        async with its.at_work():
            await its.reload(there[::-1])
            await its.emit("roof", "meter-1", voltage=3.0)
            await its.reload(there)
            await its.emit("roof", "meter-1", voltage=4000.0)
            await drained(its)

    assert points(its.broker) == of("meter-1", 1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_new_name_may_be_explained_late(tmp_path: Path, restart: bool) -> None:
    """First the new name alone; what the new name told itself stays."""
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "card", 1.0)
            await its.reload(("meter-1: {", "meter-2: {"))
            await its.emit("roof", "meter-2", voltage=2.0)
            if not restart:
                await its.reload(("meter-2: {", "meter-2: {was: meter-1, "))
                await its.emit("roof", "meter-2", voltage=3.0)
                await drained(its)
        if restart:
            its.edit(("meter-2: {", "meter-2: {was: meter-1, "))
            for _ in range(2):
                async with its.at_work():
                    pass
            async with its.at_work():
                await its.emit("roof", "meter-2", voltage=3.0)
                await drained(its)

    assert points(its.broker) == of("meter-2", 1.0, 2.0, 3.0)


async def test_a_device_is_renamed_twice_while_the_city_is_away(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "held", 1.0)
            await its.reload(("meter-1: {", "meter-2: {was: meter-1, "))
            await its.emit("roof", "meter-2", voltage=2.0)
        async with its.at_work():
            await its.reload(("meter-2: {was: meter-1, ", "meter-3: {was: meter-2, "))
            await its.emit("roof", "meter-3", voltage=3.0)
        async with its.at_work():
            await its.emit("roof", "meter-3", voltage=4.0)
            await drained(its)

    assert points(its.broker) == of("meter-3", 1.0, 2.0, 3.0, 4.0)


async def test_a_renamed_device_goes_on_with_values_statistics_and_driver_state(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            log = its.daemon._log
            await log.append(ReadingSet("meter-1", (), {"frame": b"7", "both": b"old"}))
            await its.emit("roof", "meter-1", voltage=1.0)
            await its.reload(("meter-1: {", "meter-2: {was: meter-1, "))
            assert its.device("roof", "meter-2")["points"]["voltage"]["value"] == 1.0
            assert log.driver_state("meter-2") == {"frame": b"7", "both": b"old"}
        async with its.at_work():
            log = its.daemon._log
            assert its.device("roof", "meter-2")["points"]["voltage"]["value"] == 1.0
            assert log.driver_state("meter-2") == {"frame": b"7", "both": b"old"}
            assert log.driver_state("meter-1") == {}
            counted = await its.daemon.verbs["buffer-status"]({})
            assert [row["got"] for row in counted["points"] if row["device"] == "meter-2"] == [1]
            assert not [row for row in counted["points"] if row["device"] == "meter-1"]


async def test_a_device_that_is_gone_is_owed_to_the_one_city_that_is_away(tmp_path: Path) -> None:
    porto = StrictBroker()
    async with porto.serve() as url, scene(tmp_path / "box") as its:
        its.edit(("brokers:\n", f'brokers:\n  porto: {{url: "{url}", linger: 0 s}}\n'))
        async with its.at_work():
            porto.behaviour.fault = "503"
            await its.emit("roof", "meter-1", voltage=1.0)
            await its.broker.until(lambda: points(its.broker) == of("meter-1", 1.0))
            await its.until(lambda: its.daemon.status()["brokers"]["milano"]["backlog"] == 0)
            await its.reload((METER, ""))
            assert its.daemon.status()["log"]["gone_devices"]["meter-1"]["brokers"].keys() == {"porto"}
            assert its.daemon.status()["brokers"]["porto"]["backlog"] == 1
        async with its.at_work():
            porto.behaviour.fault = ""
            await porto.until(lambda: points(porto) == of("meter-1", 1.0))
            await its.until(lambda: its.daemon.status()["brokers"]["porto"]["backlog"] == 0)
            await its.until(lambda: "porto" not in str(its.daemon.status()["log"]["gone_devices"]))
            assert porto.state(entity())["phaseType"][0]["value"] == "singlePhase", "static attributes went along"

    assert points(its.broker) == of("meter-1", 1.0)


async def test_a_device_of_a_shared_entity_is_owed_although_the_others_alone_would_not_do(tmp_path: Path) -> None:
    """What the other device gives to the entity is not asked of the one that is gone."""
    shared = "entity: {id: 'urn:ngsi-ld:AirQualityObserved:milano:square', attributes: {pm25: %s, pm10: %s}}"
    async with scene(tmp_path / "box") as its:
        air = "      air-1: {template: acme/air, " + shared % ("pm2_5", "null") + "}\n"
        two = "      air-2: {template: acme/air, " + shared % ("null", "pm10") + "}\n"
        its.edit(("      air-1: {template: acme/air}\n", air + two))
        async with its.at_work():
            its.broker.behaviour.fault = "503"
            await its.emit("air", "air-1", pm2_5=1.0)
            await its.emit("air", "air-2", pm10=2.0)
            await its.daemon._log.commit()
            await its.reload((two, ""))
            await drained(its)
        square = its.broker.state("urn:ngsi-ld:AirQualityObserved:milano:square")

    assert [square[name][0]["value"] for name in ("pm25", "pm10")] == [1.0, 2.0]


async def test_a_device_that_a_city_is_no_longer_sent_is_not_sent_to_it_from_then_on(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its, its.at_work():
        await owes(its, "card", 1.0)
        await its.reload(("linger: 0 s}", "linger: 0 s, send: [meter-0]}"))
        await its.emit("roof", "meter-1", voltage=2.0)
        await its.emit("roof", "meter-0", voltage=3.0)
        await drained(its)

        assert points(its.broker) == of("meter-0", 3.0)
        assert its.daemon.status()["log"]["gone_devices"] == {}


@pytest.mark.parametrize("change", ["removed", "renamed", "template"])
async def test_a_device_that_changes_while_the_card_is_away_loses_nothing_of_the_card_nor_of_memory(
    tmp_path: Path, change: str
) -> None:
    case = CASES[change]
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "card", 1.0)
        buffer, away = its.folder / "buffer.db", its.folder / "away"
        buffer.rename(away)
        buffer.symlink_to(buffer)  # what cannot be opened
        its.broker.behaviour.fault = "503"
        async with its.at_work():
            await its.emit("roof", "meter-1", voltage=2.0)
            await its.reload(case.change)
            if case.device:
                await its.emit("roof", case.device, voltage=3.0)
            away.replace(buffer)  # at one moment: where none is, a new one is begun
            with contextlib.suppress(LogError):
                await its.daemon._log.commit()
            await its.until(lambda: its.daemon.status()["log"]["state"] == "ok")
            await drained(its)

    assert points(its.broker) == case.expected


# --- told everywhere, and given up ------------------------------------------------------------------------------------


async def metrics(its: InProcess) -> str:
    assert its.daemon.server is not None
    asking = asyncio.to_thread(urllib.request.urlopen, its.daemon.server.url.rstrip("/") + "/metrics")
    return str((await asking).read().decode())


@pytest.mark.parametrize("where", ["memory", "card"])
async def test_a_device_that_is_gone_is_told_everywhere_until_nothing_is_owed(tmp_path: Path, where: str) -> None:
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "held", 1.0)
            await its.emit("roof", "meter-0", voltage=9.0)
            await owes(its, where, 2.0, 3.0)
            assert its.daemon.status()["log"]["gone_devices"] == {}
            await its.reload((METER, ""))
            await its.until(lambda: its.daemon.status()["log"]["gone_devices"]["meter-1"]["backlog"] is not None)
            status = its.daemon.status()
            gone = status["log"]["gone_devices"]["meter-1"]
            assert (gone["backlog"], gone["later"], gone["dead"]) == (2, 1, 0)
            assert gone["brokers"]["milano"] == {key: gone[key] for key in gone if key != "brokers"}
            said = "device meter-1  gone: 2 readings owed, 1 held for later to milano; it is sent, or"
            assert f"{said} `citygate buffer forget --device meter-1`" in status_text(status)
            told = await metrics(its)
            assert 'citygate_gone_device_backlog_readings{broker="milano",device="meter-1"} 2.0' in told
            assert 'citygate_gone_device_held_later{broker="milano",device="meter-1"} 1.0' in told
        async with its.at_work():
            await its.until(lambda: its.daemon.status()["log"]["gone_devices"]["meter-1"]["backlog"] == 2)
            await drained(its)
            await its.until(lambda: its.daemon.status()["log"]["gone_devices"] == {})

    assert points(its.broker) == of("meter-1", 1.0, 2.0, 3.0) | of("meter-0", 9.0)


async def test_a_device_of_which_something_is_held_alone_is_told_too(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its, its.at_work():
        await owes(its, "held", 1.0)
        await its.reload((METER, ""))
        await its.until(lambda: its.daemon.status()["log"]["gone_devices"]["meter-1"]["backlog"] == 0)
        assert its.daemon.status()["log"]["gone_devices"]["meter-1"]["later"] == 1


@pytest.mark.parametrize("live", [True, False])
async def test_what_is_owed_of_a_device_that_is_gone_can_be_given_up(
    tmp_path: Path, live: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted, for good, also when the device comes back; its neighbours and what it tells then are sent."""
    async with scene(tmp_path / "box") as its, contextlib.AsyncExitStack() as running:

        async def citygate(*verb: str) -> Any:
            code = await asyncio.to_thread(main, [*verb, "-c", str(its.path), "--json"])
            out, err = capsys.readouterr()
            return json.loads(out[out.index("{") :]) if code == 0 else (code, out + err)

        await running.enter_async_context(its.at_work())
        await owes(its, "held", 1.0)
        await owes(its, "card", 2.0, 3.0)
        await its.emit("roof", "meter-0", voltage=9.0)
        if not live:
            await running.aclose()
            its.edit((METER, ""))
        else:
            await its.reload((METER, ""))
            await its.until(lambda: its.daemon.status()["log"]["gone_devices"]["meter-1"]["backlog"] == 2)

        status = await citygate("buffer", "status")
        assert status["gone_devices"].keys() == {"meter-1"}
        assert status["gone_devices"]["meter-1"]["backlog"] == 2
        assert "is in the config" in (await citygate("buffer", "forget", "--device", "meter-0"))[1]
        assert "there are: meter-1" in (await citygate("buffer", "forget", "--device", "meter-9"))[1]
        assert "say --device" in (await citygate("buffer", "forget", "meter-1"))[1]
        forget = "buffer", "forget", "--device", "meter-1", "--yes"
        assert await citygate(*forget) == {"forgotten": "meter-1", "readings": 2, "held": 1}
        assert (await citygate(*forget))[0] == 1
        status = await citygate("buffer", "status")
        assert (status["gone_devices"], status["lost"]) == ({}, {"forgotten": 3})
        assert status["consumers"]["milano"]["backlog"] == 1

        if live:
            await its.reload(("  air:", METER + "  air:"))
        else:
            its.edit(("  air:", METER + "  air:"))
            await running.enter_async_context(its.at_work())
        await its.emit("roof", "meter-1", voltage=4.0)
        await drained(its)
        await its.broker.until(lambda: points(its.broker) == of("meter-1", 4.0) | of("meter-0", 9.0))


# --- recipes that cannot be used ---------------------------------------------------------------------------------------


async def test_readings_whose_recipe_is_spoilt_are_held_with_the_reason_and_nothing_else_waits(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await owes(its, "card", 1.0)
        its.edit((METER, ""))
        sound = spoil(its.folder / "buffer.db")
        async with its.at_work():
            await its.emit("roof", "meter-0", voltage=5.0)
            its.broker.behaviour.fault = ""
            await its.until(lambda: its.daemon.status()["brokers"]["milano"]["dead"] == 1, within_s=20)
            await its.broker.until(lambda: points(its.broker) == of("meter-0", 5.0))
            [piece] = await its.daemon.verbs["buffer-held-list"]({})
            assert (piece["device"], piece["state"], piece["readings"]) == ("meter-1", "dead", 1)
            assert piece["reason"] == "its recipe is of another citygate (version 9, this one knows 1)"
        spoil(its.folder / "buffer.db", sound)
        async with its.at_work():
            await drained(its)

    assert points(its.broker) == of("meter-0", 5.0) | of("meter-1", 1.0)


def spoil(file: Path, body: bytes | None = None) -> bytes:
    """Put a recipe of a version that nobody knows, or this one, in the place of meter-1's; that which was there."""
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        where = "device = 'meter-1' AND broker = 'milano'"
        [(was,)] = db.execute(f"SELECT body FROM recipe WHERE {where}").fetchall()
        db.execute(f"UPDATE recipe SET body = ? WHERE {where}", (body or was[:2] + b"\x09" + was[3:],))
    return bytes(was)


# --- what is written ---------------------------------------------------------------------------------------------------


async def test_no_secret_of_the_config_is_in_the_database(tmp_path: Path) -> None:
    """Neither in its bytes nor in what is packed in them."""
    secrets = [f"hush-{n}-very-long" for n in range(6)]
    async with scene(tmp_path / "box") as its:
        (its.folder / "cities").mkdir()
        (its.folder / "cities" / "milano.yaml").write_text(f"broker: {{auth: {{bearer: {secrets[0]}}}}}\n")
        (its.folder / "secrets").mkdir()
        (its.folder / "secrets" / "app").write_text(secrets[1])
        its.edit(
            ("linger: 0 s}", "linger: 0 s, use: cities/milano}"),
            ("brokers:\n", "brokers:\n" + PORTO.format(*secrets[2:])),
            ("unit_id: 1}", "unit_id: 1, key: !secret app, dev_eui: 24e124713d123456}"),
            ("http: {", f"http: {{token: {secrets[5]}, "),
            ("publish: {devices: 0 s}\n", ""),
        )
        async with its.at_work():
            await its.emit("roof", "meter-1", voltage=1.0)
            await its.reload(("meter-1: {", "meter-2: {was: meter-1, "))
            await its.daemon._log.commit()
        with contextlib.closing(sqlite3.connect(its.folder / "buffer.db")) as db:
            recipes = [body for (body,) in db.execute("SELECT body FROM recipe")]
        told = "".join(zlib.decompress(body[7:]).decode() for body in recipes)
        written = b"".join(file.read_bytes() for file in its.folder.glob("buffer.db*"))

    assert len(recipes) > 4
    assert "phaseVoltage" in told
    for secret in (*secrets, "192.0.2", "24e124713d123456", "idm.example", "/dev/serial"):
        assert secret.encode() not in written, secret
        assert secret not in told, secret


PORTO = """\
  porto:
    url: http://127.0.0.1:9
    auth: {{oauth2: {{token_url: 'https://idm.example/t', client_id: {0}, client_secret: {1}, password: {2}, user: u}}}}
"""


async def test_a_recipe_is_written_when_it_changes_and_at_no_other_time(tmp_path: Path) -> None:
    def rows(folder: Path) -> set[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(folder / "buffer.db")) as db, db:
            # a row that is written again is another one
            db.execute("CREATE TABLE IF NOT EXISTS told(device TEXT, broker TEXT)")
            for what in ("INSERT", "DELETE", "UPDATE"):
                row = "OLD" if what == "DELETE" else "NEW"
                db.execute(
                    f"CREATE TRIGGER IF NOT EXISTS on_{what} AFTER {what} ON recipe"
                    f" BEGIN INSERT INTO told VALUES({row}.device, {row}.broker); END"
                )
            found = set(db.execute("SELECT device, broker FROM told"))
            db.execute("DELETE FROM told")
        return found

    async with scene(tmp_path / "box") as its:
        async with its.at_work():
            await its.emit("roof", "meter-1", voltage=1.0)
        rows(its.folder)
        for _ in range(2):
            async with its.at_work():
                await its.emit("roof", "meter-1", voltage=2.0)
                await its.reload()
                await its.reload((" linger", "  linger"))
        assert rows(its.folder) == set()
        async with its.at_work():
            await its.reload(("unit_id: 1", "unit_id: 1, calibrate: {voltage: {gain: 2}}"))
        assert rows(its.folder) == {("meter-1", "milano")}
