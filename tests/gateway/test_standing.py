"""How the box stands with its file: what waits stays shown, a wrong file never stops it, a missing secret stops its city alone."""

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from gateway.config.last_good import LastGood, snapshot
from gateway.environment import Environment
from gateway.hidden import hidden
from gateway.http.metrics import render
from gateway.log.log import Log
from gateway.sdk.errors import ConfigError
from gateway.sdk.reading import Reason
from gateway.sdk.testing import ManualClock
from gateway.standing import Standing
from tests.gateway.daemon_scene import InProcess, box
from tests.gateway.test_plan import BASE
from tests.support.bench_driver import BenchDevice, BenchLink, BenchRegistry
from tests.support.box import REPOSITORY
from tests.support.rights import without_root

COMMIT = ("commit_every: 100 ms", "commit_every: 200 ms")
WRONG = ("unit_id: 1", "unit_id: 300")
OUTSIDE = "citygate.yaml:12:48: links.roof.devices.meter-1.unit_id: 300 is outside"


METER = (REPOSITORY / "tests" / "config" / "templates" / "acme" / "meter.yaml").read_text()


def config(its: InProcess) -> dict[str, Any]:
    """What the status says of the file."""
    found: dict[str, Any] = its.daemon.status()["config"]
    return found


def reasons(its: InProcess) -> list[str]:
    """What is said of the file where people and machines ask whether all is well."""
    said = [line for line in its.daemon.ready() if line.startswith("config: ")]
    assert said == [line for line in its.daemon.status()["gateway"]["ready"] if line.startswith("config: ")]
    return said


def metric(its: InProcess, name: str) -> float:
    rows = render(its.daemon.status()).decode().splitlines()
    return float(next(row.split()[1] for row in rows if row.startswith(f"citygate_config_{name} ")))


async def kept(its: InProcess, text: str) -> None:
    """Until this is in the last good config."""
    await its.until(lambda: its.last_good.exists() and text in its.last_good.read_text())


# --- what waits ------------------------------------------------------------------------------------------------------


async def test_what_only_a_restart_applies_stays_shown_over_further_reloads_until_it_is_changed_back(
    tmp_path: Path,
) -> None:
    async with box(tmp_path) as its:
        assert reasons(its) == []
        said = await its.reload(COMMIT, ("clock: {trust: system}", "clock: {trust: system, unconfirmed: mark}"))
        assert said["waiting"] == ["buffer.commit_every", "clock.unconfirmed"]
        for change in ((), (("unit_id: 1", "unit_id: 2"),)):
            await its.reload(*change)
            assert reasons(its) == [
                "config: buffer.commit_every: 100 ms → 200 ms waits for a restart of the daemon",
                "config: clock.unconfirmed: hold (default) → mark waits for a restart of the daemon",
            ]
            assert metric(its, "waiting") == 2
        assert config(its)["waiting"][0] == {"path": "buffer.commit_every", "running": "100 ms", "file": "200 ms"}

        said = await its.reload(COMMIT[::-1])
        assert said["waiting"] == ["clock.unconfirmed"]
        assert [row["applies"] for row in said["changes"]] == ["at once"], "it is as the daemon was started"
        await its.reload((", unconfirmed: mark", ""))
        assert reasons(its) == []
        assert metric(its, "waiting") == 0

        await its.reload(COMMIT)
    async with its.at_work():
        assert reasons(its) == [], "that was the restart"


async def test_a_refused_file_stays_shown_until_one_is_taken(tmp_path: Path) -> None:
    async with box(tmp_path, ("air:\n    driver: bench", "air:\n    driver: broken")) as its:  # which is a warning
        assert config(its)["since"] is not None
        for _ in range(2):
            with pytest.raises(ConfigError):
                await its.reload(WRONG) if WRONG[0] in its.path.read_text() else await its.reload()
            [line] = reasons(its)
            assert OUTSIDE in line
            assert "at work is what was read at" in line
            assert line.endswith("`citygate check` lists what is wrong; mend it, then `citygate reload`")
            assert (metric(its, "refused"), metric(its, "last_good")) == (1, 0)
        assert [problem["line"] for problem in config(its)["problems"]] == [12]
        assert config(its)["using"] == "file"

        assert (await its.reload(WRONG[::-1]))["restarted"] == []
        assert reasons(its) == []
        assert metric(its, "refused") == 0


# --- a dry run -------------------------------------------------------------------------------------------------------


async def test_a_dry_run_says_all_and_does_nothing(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        its.broker.behaviour.fault = "503"
        for value in (230.0, 231.0, 232.0):
            await its.emit("roof", "meter-1", voltage=value)
        await its.emit("air", "air-1", pm2_5=7.0)
        runs, shown = its.runs(), config(its)
        its.edit(("unit_id: 1", "unit_id: 2"), ("linger: 0 s", "linger: 1 s"), COMMIT)

        said = await its.daemon.reload(dry_run=True)

        assert said["changed"] == [
            "buffer.commit_every: 100 ms → 200 ms",
            "links.roof.devices.meter-1.unit_id: 1 → 2",
            "brokers.milano.linger: 0 s → 1 s",
        ]
        assert (said["restarts"], said["restarted"]) == ({"links": ["roof"], "brokers": ["milano"]}, [])
        assert [row["applies"] for row in said["changes"]] == [
            "restart the daemon",
            "restart link roof",
            "restart broker milano",
        ]
        assert said["waiting"] == ["buffer.commit_every"]
        assert said["owed"] == {"brokers": {"milano": 4}, "devices": {"meter-1": {"milano": 3}}, "all_counted": True}
        assert (its.runs(), config(its), reasons(its)) == (runs, shown, [])

        its.edit(("unit_id: 2", "unit_id: 300"))
        with pytest.raises(ConfigError):
            await its.daemon.reload(dry_run=True)
        assert reasons(its) == [], "who only asks changes nothing"


async def test_what_is_owed_is_counted_in_the_file_and_in_memory_and_what_was_sent_is_not(tmp_path: Path) -> None:
    async with box(tmp_path, ("commit_every: 100 ms", "commit_every: 1 h")) as its:
        await its.emit("roof", "meter-1", voltage=1.0)
        await its.until(lambda: its.daemon.status()["brokers"]["milano"]["accepted"])
        await its.until(lambda: not its.daemon.status()["brokers"]["milano"]["backlog"])
        its.broker.behaviour.fault = "503"
        await its.emit("roof", "meter-1", voltage=2.0)
        log: Log = its.daemon._log
        await log.commit()
        await its.emit("roof", "meter-1", voltage=3.0)
        its.edit(("unit_id: 1", "unit_id: 2"))

        said = await its.daemon.reload(dry_run=True)

        assert said["owed"]["devices"] == {"meter-1": {"milano": 2}}
        its.broker.behaviour.fault = ""


async def test_of_several_brokers_each_is_owed_what_it_is_sent_and_has_not_got(tmp_path: Path) -> None:
    porto = '  porto: {url: "http://127.0.0.1:9"}\n  lodi: {url: "http://127.0.0.1:9", send: [meter-*]}\n'
    unmapped = ("template: acme/air", "template: acme/air, entity: {attributes: {pm10: null}}")
    async with box(tmp_path, ("brokers:\n", "brokers:\n" + porto), unmapped) as its:
        await its.emit("air", "air-1", pm2_5=7.0, pm10=9.0)
        await its.emit("air", "air-1", pm2_5=Reason.TIMEOUT, pm10=Reason.TIMEOUT)
        await its.emit("air", "air-1", pm2_5=8.0, pm10=9.0)
        await its.emit("roof", "meter-1", voltage=230.0)
        await its.until(lambda: its.daemon.status()["brokers"]["milano"]["accepted"])
        await its.until(lambda: not its.daemon.status()["brokers"]["milano"]["backlog"])
        its.edit(("192.0.2.1", "192.0.2.2"), ("template: acme/air, ", "template: acme/air, mac: x, "))

        said = await its.daemon.reload(dry_run=True)

        assert said["owed"] == {"brokers": {}, "devices": {"air-1": {"porto": 2}}, "all_counted": True}


# --- the last good config --------------------------------------------------------------------------------------------


async def test_a_box_whose_file_has_become_wrong_starts_with_the_last_good_one_and_takes_a_mended_one(
    tmp_path: Path,
) -> None:
    async with box(tmp_path) as its:
        await kept(its, "unit_id: 1")
        await its.reload(("unit_id: 1", "unit_id: 7"))
        await kept(its, "unit_id: 7")
        with pytest.raises(ConfigError):
            await its.reload(("unit_id: 7", "unit_id: 300"))
        was = its.last_good.read_text()
    assert its.last_good.read_text() == was

    for _ in range(2):  # a box that is started again and again on a bad day
        async with its.at_work():
            assert its.driver.runs["roof"][-1][0].devices["meter-1"].unit_id == 7
            [line] = reasons(its)
            assert line.startswith("config: the file is wrong, at work is the last good one of 20")
            assert OUTSIDE in line
            assert config(its)["using"] == "last good"
            assert config(its)["last_good"]["of"] == json.loads(was)["written_at"][:19] + "Z"
            assert (metric(its, "last_good"), metric(its, "refused")) == (1, 1)
            assert its.last_good.read_text() == was

    async with its.at_work():
        with pytest.raises(ConfigError):
            await its.reload(("unit_id: 300", "unit_id: 400"))
        assert "unit_id: 400 is outside" in reasons(its)[0]
        assert "at work is the last good one of" in reasons(its)[0]
        assert (await its.reload(("unit_id: 400", "unit_id: 8")))["restarted"] == ["roof"]
        assert reasons(its) == []
        assert (config(its)["using"], config(its)["last_good"]["of"]) == ("file", None)
        assert metric(its, "last_good") == 0
        await kept(its, "unit_id: 8")


async def test_the_file_of_the_last_good_one_again_is_nothing_to_do(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await kept(its, "unit_id: 1")
    its.edit(WRONG)
    async with its.at_work():
        assert (await its.reload(WRONG[::-1]))["restarted"] == []
        assert reasons(its) == []


async def test_a_base_is_reloaded_kept_and_refused_as_the_file_of_the_box(tmp_path: Path) -> None:
    folder, base = tmp_path / "box", tmp_path / "base.yaml"
    folder.mkdir()
    async with box(folder) as its:
        base.write_text(its.path.read_text())
        its.path.write_text("base: ../base.yaml\n")
        said = await its.daemon.reload()
        assert ([row["path"] for row in said["changes"]], said["restarted"]) == (["base"], [])
        base.write_text(base.read_text().replace("unit_id: 1", "unit_id: 7"))
        assert (await its.reload())["restarted"] == ["roof"]
        await kept(its, "unit_id: 7")
        base.write_text(base.read_text().replace("unit_id: 7", "unit_id: 300"))
        with pytest.raises(ConfigError):
            await its.reload()
        assert f"{base}:12:48: links.roof.devices.meter-1.unit_id: 300 is outside" in reasons(its)[0]
    base.unlink()
    async with its.at_work():
        assert its.driver.runs["roof"][-1][0].devices["meter-1"].unit_id == 7
        assert f"base: {base} cannot be read" in reasons(its)[0]


async def test_a_config_that_is_gone_is_a_wrong_one(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await kept(its, "unit_id: 1")
    text = its.path.read_text()
    its.path.unlink()
    async with its.at_work():
        assert reasons(its)[0].startswith("config: the file is wrong, at work is the last good one of")
        its.path.write_text(text)
        await its.daemon.reload()
        assert reasons(its) == []


def standing(folder: Path, path: Path) -> Standing:
    return Standing(path, BenchRegistry(), LastGood(folder / "last-good.json"), lambda: datetime.now(UTC))


@pytest.mark.parametrize("given", ["etc", "etc/citygate.yaml"])
def test_a_folder_that_may_not_be_entered_is_a_wrong_config(tmp_path: Path, given: str) -> None:
    main = tmp_path / "etc" / "citygate.yaml"
    main.parent.mkdir()
    main.write_text(BASE)
    LastGood(tmp_path / "last-good.json").write(snapshot(main), config=str(main), at=datetime.now(UTC))
    (tmp_path / "last-good.json").chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid != os.getuid() or folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    main.parent.chmod(0)
    its = standing(tmp_path, tmp_path / given)

    with without_root():
        assert its.start(fall_back=True).config.gateway.id == "gw-1"
        assert its.reasons()[0].startswith("config: the file is wrong, at work is the last good one")
        its.close()
    main.parent.chmod(0o755)


@pytest.mark.parametrize("given", ["etc", "etc/citygate.yaml"])
def test_a_folder_that_is_gone_is_a_wrong_config_and_another_boxs_is_not_taken(tmp_path: Path, given: str) -> None:
    for name in ("etc", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "citygate.yaml").write_text(BASE)
    main = tmp_path / "etc" / "citygate.yaml"
    LastGood(tmp_path / "last-good.json").write(snapshot(main), config=str(main), at=datetime.now(UTC))
    main.unlink()
    main.parent.rmdir()
    (tmp_path / "other" / "citygate.yaml").write_text("version: 2\n")

    its = standing(tmp_path, tmp_path / given)
    assert its.start(fall_back=True).config.gateway.id == "gw-1"
    its.close()

    with pytest.raises(ConfigError, match=r"is that of .*/etc/citygate\.yaml"):
        standing(tmp_path, tmp_path / "other").start(fall_back=True)
    with pytest.raises(ConfigError) as caught:
        standing(tmp_path, tmp_path / given).start(fall_back=False)
    assert "last-good" not in {problem.code for problem in caught.value.problems}


class Updated(BenchDevice):
    """The devices of a driver that has another key since."""

    unit_id: None = None


class UpdatedLink(BenchLink):
    devices: dict[str, Updated] = Field(min_length=1)  # type: ignore[assignment]


OWN = """\
vendor: Acme
model: Own
points: {voltage: {quantity: voltage}}
"""


async def test_it_is_whole_by_itself_own_templates_profiles_and_fragments_with_it_and_secrets_where_they_were(
    tmp_path: Path,
) -> None:
    files = {
        "templates/acme/own.yaml": OWN,
        "cities/own.yaml": "city: lodi\nbroker: {auth: {bearer: !secret lodi}}\n",
        "conf.d/own.yaml": "links: {own: {driver: bench, host: 192.0.2.9, devices: {own-1: {template: acme/own}}}}\n",
        "secrets/lodi": "hunter2hunter2",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "secrets" / "lodi").chmod(0o600)
    async with box(tmp_path, ("milano: {url", "milano: {use: cities/own, url")) as its:
        await kept(its, "unit_id: 1")
    assert "hunter2" not in its.last_good.read_text()
    for name in list(files)[:3]:
        (tmp_path / name).write_text("[")

    async with its.at_work():
        [line] = reasons(its)
        assert "(and " in line
        plan = its.daemon.plan
        assert plan.devices["own-1"].template.model == "Own"
        assert plan.brokers["milano"].config.auth.bearer == "hunter2hunter2"
        assert its.daemon.status()["brokers"]["milano"]["state"] != "off"
        [table] = plan.read_api["air-1"]
        assert table.entity_id.endswith(":milano:gw-1:air-1")
        [table] = plan.brokers["milano"].mappings["air-1"]
        assert table.entity_id.endswith(":lodi:gw-1:air-1")


async def test_without_one_or_with_one_that_is_wrong_too_the_problems_of_both_are_told(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await kept(its, "unit_id: 1")
    its.edit(WRONG)
    whole = its.last_good.read_bytes()

    async def said() -> list[str]:
        with pytest.raises(ConfigError) as caught:
            async with its.at_work():
                raise AssertionError("it must not start")
        return [f"{problem.code}: {problem.message}" for problem in caught.value.problems]

    its.last_good.write_bytes(whole[:200])
    first, second = await said()
    assert first.startswith("out-of-range: 300")
    assert "it is damaged" in second
    its.last_good.unlink()
    assert "there is no last good config yet" in (await said())[1]
    its.last_good.write_bytes(whole)
    its.driver.config_model = UpdatedLink
    problems = await said()
    assert problems[1:] == [
        "last-good: the last good config cannot be used either",
        "wrong-type: 1 instead of nothing",
    ]


async def test_a_card_that_refuses_is_told_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.standing.KEEP_AGAIN_S", 0.05)
    (tmp_path / "last-good.json").mkdir()
    async with box(tmp_path) as its:
        await its.until(lambda: reasons(its))
        [line] = reasons(its)
        assert line.startswith("config: no last good one is kept: ")
        assert line.endswith("Is a directory; a wrong file would stop this box at its start")
        its.last_good.rmdir()
        await kept(its, "unit_id: 1")
        await its.until(lambda: not reasons(its))


class Slow(BenchRegistry):
    """Between the main file and the templates somebody saves a file."""

    def __init__(self, file: Path, text: str) -> None:
        self._file, self._text = file, text

    def driver(self, name: str) -> Any:
        self._file.write_text(self._text)
        return super().driver(name)


@pytest.mark.parametrize(
    ("name", "text"), [("citygate.yaml", "version: 9\n"), ("templates/acme/meter.yaml", METER + "description: new\n")]
)
async def test_a_file_that_is_written_while_it_is_read_is_not_kept(tmp_path: Path, name: str, text: str) -> None:
    for file, its in (("citygate.yaml", BASE), ("templates/acme/meter.yaml", METER)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(its)
    kept = LastGood(tmp_path / "last-good.json")

    async def start(registry: BenchRegistry) -> bool:
        its = Standing(tmp_path, registry, kept, lambda: datetime.now(UTC))
        its.start(fall_back=False)
        its.good()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(its.keep(), 0.2)
        return kept.file.exists()

    assert not await start(Slow(tmp_path / name, text))
    (tmp_path / "citygate.yaml").write_text(BASE)
    assert await start(BenchRegistry())


class Crashes(BenchRegistry):
    """A fault of ours, or of a driver's package, that only some files meet."""

    left = 1

    def driver(self, name: str) -> Any:
        if self.left:
            self.left -= 1
            raise RecursionError("too deep")
        return super().driver(name)


def test_a_file_at_which_the_gateway_itself_fails_is_a_wrong_one_too(tmp_path: Path) -> None:
    main = tmp_path / "citygate.yaml"
    main.write_text(BASE)
    kept = LastGood(tmp_path / "last-good.json")
    kept.write(snapshot(main), config=str(main), at=datetime.now(UTC))
    its = Standing(tmp_path, Crashes(), kept, lambda: datetime.now(UTC))

    its.start(fall_back=True)

    assert "internal" not in its.reasons()[0]
    assert "RecursionError: too deep" in its.reasons()[0]
    assert its.status()["problems"][0]["remedy"] == "please report it"
    its.close()


async def test_systemd_is_told_so_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with box(tmp_path) as its:
        await kept(its, "unit_id: 1")
    its.edit(WRONG)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        said: list[str] = []

        def told() -> bool:
            with contextlib.suppress(BlockingIOError):
                said.append(systemd.recv(4096).decode())
            return any(line.startswith("STATUS=config: the file is wrong, at work is the last good") for line in said)

        async with its.at_work():
            await its.until(told)


def test_the_copy_that_was_unpacked_goes_when_the_daemon_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))

    async def days() -> None:
        async with box(tmp_path) as its:
            await kept(its, "unit_id: 1")
        its.edit(WRONG)
        async with its.at_work():
            assert len(list(runtime.iterdir())) == 1, "models are read from it when they are needed"
            with pytest.raises(ConfigError):
                await its.reload()
            assert len(list(runtime.iterdir())) == 1
        assert list(runtime.iterdir()) == []
        async with its.at_work():
            await its.reload(WRONG[::-1])
            assert list(runtime.iterdir()) == []

    asyncio.run(days())


# --- secrets ---------------------------------------------------------------------------------------------------------

LODI = '  lodi: {url: "http://127.0.0.1:9", auth: {bearer: !secret lodi}}\n'


def secret(folder: Path, text: str) -> Path:
    (folder / "secrets").mkdir(exist_ok=True)
    file = folder / "secrets" / "lodi"
    file.touch(mode=0o600)
    file.write_text(text)
    return file


async def test_a_missing_secret_stops_its_city_alone_which_is_owed_and_comes_back_at_reload(tmp_path: Path) -> None:
    async with box(tmp_path, ("brokers:\n", "brokers:\n" + LODI)) as its:
        await its.emit("roof", "meter-1", voltage=230.0)
        await its.until(lambda: its.broker.history())
        lodi = its.daemon.status()["brokers"]["lodi"]
        assert (lodi["state"], lodi["backlog"]) == ("off", 1)
        assert lodi["reason"].startswith("no secret lodi: looked in ")
        assert lodi["remedy"] == "put it there, then `citygate reload`"
        assert [line for line in its.daemon.ready() if line.startswith("broker lodi: off: no secret lodi")]
        assert reasons(its) == [], "its own state says it"
        said = await its.reload()
        assert said["restarted"] == []
        assert [row["severity"] for row in said["warnings"] if row["code"] == "missing-secret"] == ["warning"]

        secret(tmp_path, "hunter2hunter2")
        assert (await its.reload())["restarted"] == ["lodi"]
        await its.until(lambda: its.daemon.status()["brokers"]["lodi"]["state"] == "down")
        assert its.daemon.status()["brokers"]["lodi"]["backlog"] == 1


async def test_a_secret_that_vanishes_stops_nothing_that_is_at_work_and_is_shown_until_it_is_back(
    tmp_path: Path,
) -> None:
    file = secret(tmp_path, "hunter2hunter2")
    async with box(tmp_path, ("brokers:\n", "brokers:\n" + LODI)) as its:
        file.unlink()
        for _ in range(2):
            assert (await its.reload())["restarted"] == []
            [line] = reasons(its)
            assert line.startswith("config: no secret lodi: looked in ")
            assert "goes on with the text that it had" in line
            assert "hunter2" not in line
        assert (await its.reload(("unit_id: 1", "unit_id: 2")))["restarted"] == ["roof"]
        secret(tmp_path, "hunter2hunter2")
        assert (await its.reload())["restarted"] == []
        assert reasons(its) == []
        file.unlink()
    async with its.at_work():
        assert its.daemon.status()["brokers"]["lodi"]["state"] == "off"


async def test_a_missing_secret_of_a_link_stops_that_link_alone(tmp_path: Path) -> None:
    async with box(tmp_path, ("template: acme/air", "template: acme/air, key: !secret lodi")) as its:
        assert its.link("air")["state"] == "off"
        assert its.link("air")["remedy"] == "put it there, then `citygate reload`"
        assert list(its.runs()) == ["roof"]
        assert reasons(its) == [], "its own state says it"
        secret(tmp_path, "hunter2hunter2")
        assert (await its.reload())["restarted"] == ["air"]
        assert its.driver.runs["air"][-1][0].devices["air-1"].key.get_secret_value() == "hunter2hunter2"  # type: ignore[union-attr]


async def told(its: InProcess) -> dict[str, Any]:
    """What is said of the secret of Lodi; never its text."""
    answer = await its.daemon.verbs["secrets"]({})
    assert answer["config"] == str(its.path)
    assert "hunter" not in str(answer)
    row: dict[str, Any] = answer["secrets"]["lodi"]
    return row


async def test_of_a_secret_it_is_told_where_it_was_read_and_what_is_there_now(tmp_path: Path) -> None:
    file = secret(tmp_path, "hunter2hunter2")
    async with box(tmp_path, ("brokers:\n", "brokers:\n" + LODI)) as its:
        since = its.daemon.status()["config"]["since"]
        assert await told(its) == {"place": str(file), "read_at": since, "now": "same", "taken_up_by": "reload"}
        file.write_text("hunter3hunter3\n")
        assert (await told(its))["now"] == "changed"
        await its.reload()
        assert (await told(its))["now"] == "same"
        file.unlink()
        assert (await told(its))["now"] == "gone"
        await its.reload()
        row = await told(its)
        assert (row["now"], row["place"], row["taken_up_by"]) == ("gone", "", "reload")
        secret(tmp_path, "hunter3hunter3")
        assert (await told(its))["now"] == "same"


def test_what_the_service_was_given_is_as_it_was_at_the_start_whatever_was_read_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "citygate.yaml"
    file.write_text(BASE + LODI + LODI.replace("lodi", "monza"))
    secret(tmp_path, "hunter2hunter2")
    monkeypatch.setenv("CITYGATE_SECRET_MONZA", "hunter4hunter4")
    clock = ManualClock()
    standing = Standing(file, BenchRegistry(), None, clock.now, environment=Environment())
    started = standing.secrets(standing.start(fall_back=False))["secrets"]["monza"]
    assert (started["place"], started["taken_up_by"]) == ("$CITYGATE_SECRET_MONZA", "restart")
    clock.advance(3600.0)
    read = standing.read()
    standing.at_work(read)
    rows = standing.secrets(read)["secrets"]
    assert rows["monza"]["read_at"] == started["read_at"]
    assert rows["lodi"]["read_at"] > started["read_at"]


async def test_the_brokers_of_the_file_as_it_is_now_are_looked_at_and_none_without_its_login(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        found = await its.daemon.verbs["reach"]({})
        assert [row["state"] for row in found["milano"]] == ["ok"] * 4
        its.edit(
            (
                "brokers:\n",
                "brokers:\n" + LODI.replace("http://127.0.0.1:9", its.daemon.plan.brokers["milano"].config.url),
            )
        )
        found = await its.daemon.verbs["reach"]({})
        assert [row["state"] for row in found["lodi"]] == ["ok", "warn"]
        assert found["lodi"][1]["message"] == "login not tried: its secret lodi is not to be had"
        assert list(its.daemon.plan.brokers) == ["milano"], "nothing is applied"
        secret(tmp_path, "hunter2hunter2")
        found = await its.daemon.verbs["reach"]({})
        assert [row["state"] for row in found["lodi"]] == ["ok"] * 4
        assert "hunter2" not in hidden("a broker says hunter2hunter2"), "before it can be said by one"
