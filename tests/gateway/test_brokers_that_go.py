"""Brokers that go, come back, are renamed or moved, with a backlog in memory, on the card or held, and kill -9 in between:
the city has in the end all that was measured while it was in the config, once."""

import asyncio
import contextlib
import json
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.status_text import status_text
from gateway.sdk.errors import CitygateError
from tests.gateway.daemon_scene import InProcess, QuickClock
from tests.support.strict_broker import StrictBroker

ENTITY = "urn:ngsi-ld:ACMeasurement:milano:gw-1:meter-1"


@dataclass
class Cities:
    """A box that serves milano and porto, and a broker to which porto may move.

    Attributes:
        entry: porto's line of the file.
    """

    its: InProcess
    porto: StrictBroker
    other: StrictBroker
    entry: str
    other_url: str
    folder: Path = field(default_factory=Path)

    async def owes(self, where: str) -> None:
        """porto has 1.0 and is away, and owed 2.0 and 3.0."""
        its = self.its
        await its.emit("roof", "meter-1", voltage=1.0)
        await self.porto.until(lambda: 1.0 in points(self.porto))
        await its.until(lambda: its.daemon.status()["brokers"]["porto"]["backlog"] == 0)
        self.porto.behaviour.fault = "503"
        for value in (2.0, 3.0):
            await its.emit("roof", "meter-1", voltage=value)
        if where != "memory":
            await its.daemon._log.commit()
        if where == "held":
            await self.hold()

    async def hold(self) -> None:
        """What porto is owed is set aside, as its lane does with what the city puts off."""
        log = self.its.daemon._log
        columns = await log.read("porto")
        assert columns is not None
        later = datetime.now(UTC) + timedelta(hours=1)
        await log.held.hold("porto", ENTITY, "meter-1", columns, reason="later", at=log.now(), next_try_at=later)
        await log.settle("porto", columns.last)
        await log.commit()

    async def killed(self) -> InProcess:
        """The box as it would be found if it were killed now."""
        folder = self.its.folder / "found"
        folder.mkdir()
        files = [file for end in ("", "-wal") if (file := self.its.folder / f"buffer.db{end}").exists()]
        # by another process: to close the file in this one would drop SQLite's locks
        assert await (await asyncio.create_subprocess_exec("cp", *files, folder)).wait() == 0
        found = InProcess(folder, "", self.its.broker, self.its.clock)
        found.path.write_text(self.its.path.read_text().replace(f"{self.its.folder}/buffer", f"{folder}/buffer"))
        return found


@contextlib.asynccontextmanager
async def cities(folder: Path) -> AsyncIterator[Cities]:
    milano, porto, other = StrictBroker(), StrictBroker(), StrictBroker()
    async with milano.serve() as url, porto.serve() as at, other.serve() as elsewhere:
        entry = f'  porto: {{url: "{at}", linger: 0 s}}\n'
        its = InProcess(folder, url, milano, QuickClock())
        its.edit(("brokers:\n", "brokers:\n" + entry), ("commit_every: 100 ms", "commit_every: 1 h"))
        yield Cities(its, porto, other, entry, elsewhere)


def points(broker: StrictBroker, tenant: str = "") -> Counter[float]:
    """Every voltage of a history; a repeat counts twice."""
    return Counter(value["L1"] for _, key, _, value in broker.temporal_history(tenant) if key == "phaseVoltage")


WHERE = ("memory", "card", "held")
CASES = [
    *((change, where, kill) for change in ("removed", "renamed") for where in WHERE for kill in (False, True)),
    *(("renamed later", where, True) for where in WHERE),
    *(("moved", where, False) for where in WHERE),
    *(("tenant", where, False) for where in WHERE),
    ("publish", "card", False),
]


@pytest.mark.parametrize(("change", "where", "kill"), CASES)
async def test_nothing_owed_is_lost_or_doubled_over_a_change_of_its_broker(
    tmp_path: Path, change: str, where: str, kill: bool
) -> None:
    async with cities(tmp_path) as scene:
        its, entry = scene.its, scene.entry
        renamed = entry.replace("porto: {", "lisboa: {was: porto, ")
        before, after = {
            "removed": (entry, ""),
            "renamed": (entry, renamed),
            "renamed later": (entry, ""),
            "moved": (entry, entry.replace(entry.split('"')[1], scene.other_url)),
            "tenant": (entry, entry.replace("linger", "tenant: t1, linger")),
            "publish": ("devices: 0 s", "devices: 0 s, provider: Porto"),
        }[change]
        async with contextlib.AsyncExitStack() as first:
            await first.enter_async_context(its.at_work())
            await scene.owes(where)
            await its.reload((before, after))
            if after == "":
                gone = its.daemon.status()["log"]["gone"]["porto"]
                assert (gone["backlog"], gone["later"]) == ((0, 1) if where == "held" else (2, 0))
            await its.emit("roof", "meter-1", voltage=4.0)
            await its.broker.until(lambda: 4.0 in points(its.broker))
            if kill:
                await its.daemon._log.commit()  # what is in memory alone is what commit_every declares
                its = await scene.killed()
                await first.aclose()
                await first.enter_async_context(its.at_work())
            back = {"removed": entry, "renamed later": renamed}.get(change, "")
            if back:
                await its.reload(("brokers:\n", "brokers:\n" + back))
            scene.porto.behaviour.fault = ""
            await its.emit("roof", "meter-1", voltage=5.0)
            tenant, city = "t1" if change == "tenant" else "", scene.other if change == "moved" else scene.porto
            await its.daemon.verbs["buffer-requeue"]({"all": True})
            await city.until(lambda: {2.0, 3.0, 5.0} <= points(city, tenant).keys())
            name = "lisboa" if "renamed" in change else "porto"
            log = its.daemon._log
            await its.until(lambda: log.backlog(name)[0] == 0 and log.held.count(name) == (0, 0))
            assert its.daemon.status()["log"]["gone"] == {}
        found = points(city, tenant)
        if back:
            assert found.pop(4.0, 1) == 1  # it was not in the config; that it is stored is chance
        else:
            assert found.pop(4.0) == 1
        expected = {2.0: 1, 3.0: 1, 5.0: 1}
        if change in ("moved", "tenant"):
            assert points(scene.porto) == {1.0: 1}
            found.pop(1.0, None)  # the newest value, as its current state
        else:
            expected[1.0] = 1
        assert found == expected


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("change", ["moved", "tenant", "renamed and moved", "the same"])
async def test_what_one_place_took_and_has_not_shown_yet_is_no_matter_of_another(
    tmp_path: Path, change: str, temporal: bool
) -> None:
    """It is still in the log, and owed to who goes by the name now: its city is another one."""
    async with cities(tmp_path) as scene, scene.its.at_work():
        its, entry = scene.its, scene.entry
        moved = entry.replace(entry.split('"')[1], scene.other_url)
        after = {
            "moved": moved,
            "tenant": entry.replace("linger", "tenant: t1, linger"),
            "renamed and moved": moved.replace("porto: {", "lisboa: {was: porto, "),
            "the same": entry.replace("porto: {", "lisboa: {was: porto, "),
        }[change]
        scene.porto.behaviour.records_after_s = 3600.0
        for value in (1.0, 2.0):
            await its.emit("roof", "meter-1", voltage=value)
            await scene.porto.until(lambda value=value: scene.porto.current(ENTITY, "phaseVoltage") == {"L1": value})
        await its.until(lambda: its.daemon.status()["brokers"]["porto"]["backlog"] == 0)

        scene.other.behaviour.temporal = temporal
        if change != "the same":
            scene.porto.behaviour.records_after_s, scene.porto.behaviour.temporal = 0.0, temporal

        await its.reload((entry, after))

        name = "lisboa" if "was" in after else "porto"
        if change == "the same":
            await its.emit("roof", "meter-1", voltage=3.0)
            await scene.porto.until(lambda: scene.porto.current(ENTITY, "phaseVoltage") == {"L1": 3.0})
            await its.until(lambda: its.daemon.status()["brokers"][name]["backlog"] == 0)
            assert not [told for told in scene.porto.requests if told[1:3] == ("POST", "/ngsi-ld/v1/temporal/entities")]
            return
        tenant, city = ("t1", scene.porto) if change == "tenant" else ("", scene.other)
        await city.until(lambda: points(city, tenant) == {1.0: 1, 2.0: 1})
        assert city.state(ENTITY, tenant)["phaseType"][0]["value"] == "singlePhase"


async def test_that_one_city_records_by_itself_is_not_believed_of_another(tmp_path: Path) -> None:
    async with cities(tmp_path) as scene, scene.its.at_work():
        its = scene.its

        def shown() -> str:
            return str(its.daemon.status()["brokers"]["porto"]["records"])

        await its.emit("roof", "meter-1", voltage=1.0)
        await its.until(lambda: shown() == "yes (seen)")
        scene.other.behaviour.records = False
        await its.reload((scene.entry.split('"')[1], scene.other_url))
        await its.emit("roof", "meter-1", voltage=2.0)
        await scene.other.until(lambda: scene.other.current(ENTITY, "phaseVoltage") == {"L1": 2.0})
        assert shown() == "not known yet"


async def test_static_attributes_that_one_city_has_are_new_to_another_that_cannot_be_asked(tmp_path: Path) -> None:
    async with cities(tmp_path) as scene:
        its, now = scene.its, scene.entry.replace("linger", "history: latest-only, linger")
        its.edit((scene.entry, now))
        async with its.at_work():
            for broker, change in ((scene.porto, None), (scene.other, (scene.entry.split('"')[1], scene.other_url))):
                broker.behaviour.readable = False
                if change is not None:
                    await its.reload(change)
                await its.until(lambda: its.daemon.status()["brokers"]["porto"]["state"] == "ok")
                await its.emit("roof", "meter-1", voltage=1.0)
                await broker.until(lambda broker=broker: broker.state(ENTITY))
                assert broker.state(ENTITY)["phaseType"][0]["value"] == "singlePhase"


async def test_over_a_new_name_it_is_known_what_was_sent_under_the_old_one(tmp_path: Path) -> None:
    async with cities(tmp_path) as scene, scene.its.at_work():
        its, porto = scene.its, scene.porto
        await its.emit("roof", "meter-1", voltage=0.0)
        await porto.until(lambda: 0.0 in points(porto))
        await its.reload(("linger: 0 s", "linger: 500 ms"))
        await its.until(lambda: its.daemon.status()["brokers"]["porto"]["state"] == "ok")
        porto.behaviour.path, porto.behaviour.fault = "temporal", "503"
        for value in (1.0, 2.0, 3.0):  # the newest gets through, the past does not
            await its.emit("roof", "meter-1", voltage=value)
        await porto.until(lambda: 3.0 in points(porto))

        await its.reload(("porto: {", "lisboa: {was: porto, "))
        porto.behaviour.fault = ""

        await porto.until(lambda: points(porto).total() >= 4, timeout_s=20)
        await its.until(lambda: its.daemon._log.backlog("lisboa")[0] == 0)
        assert points(porto) == dict.fromkeys((0.0, 1.0, 2.0, 3.0), 1)


async def test_a_gone_broker_is_told_everywhere_and_forgotten_on_a_live_box(tmp_path: Path) -> None:
    async with cities(tmp_path) as scene, scene.its.at_work():
        its = scene.its
        await scene.owes("memory")
        await its.reload((scene.entry, ""))
        status = its.daemon.status()
        assert "broker porto  gone: 2 readings owed; put it back, or `citygate buffer forget porto`" in status_text(
            status
        )
        assert not [line for line in its.daemon.ready() if "porto" in line]
        assert its.daemon.server is not None
        asking = asyncio.to_thread(urllib.request.urlopen, its.daemon.server.url.rstrip("/") + "/metrics")
        metrics = (await asking).read().decode()
        assert 'citygate_gone_broker_backlog_readings{broker="porto"} 2.0' in metrics

        forget = its.daemon.verbs["buffer-forget"]
        with pytest.raises(CitygateError, match="there are: porto"):
            await forget({"consumer": "lisboa"})
        with pytest.raises(CitygateError, match="in the config"):
            await forget({"consumer": "milano"})
        assert await forget({"consumer": "porto"}) == {"forgotten": "porto", "readings": 2, "held": 0}
        told: dict[str, Any] = await its.daemon.verbs["buffer-status"]({})
        assert (told["gone"], told["lost"]) == ({}, {"forgotten": 2})
        [gap] = [gap for gap in told["newest_gaps"] if gap["reason"] == "forgotten"]
        assert gap["owed"] == {"porto": 2}
        assert gap["from"] <= gap["to"]
        json.dumps(told)
        assert told["state"] == "ok"
