"""A reload takes effect for what it changed, in the next entity and nowhere else; one that fails changes nothing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.driver import Context
from gateway.sdk.errors import CitygateError, ConfigError, LinkError
from gateway.sdk.reading import Reason
from tests.gateway.daemon_scene import InProcess, box

METER = "{template: acme/meter, unit_id: 1"
MILANO = "linger: 0 s}"
ENTITY = "urn:ngsi-ld:ACMeasurement:{city}:{gateway}:meter-1"


def entity(city: str = "milano", gateway: str = "gw-1") -> str:
    return ENTITY.format(city=city, gateway=gateway)


async def sent(its: InProcess, value: float, *, of: str = "") -> dict[str, Any]:
    """A value of meter-1, as the broker has it: the entity, once it carries this value's time and nothing is owed."""
    name = of or entity()
    at = (await its.emit("roof", "meter-1", voltage=value)).isoformat().replace("+00:00", "Z")

    def arrived() -> bool:
        found = its.broker.state(name).get("phaseVoltage", [{}])
        return bool(found[0].get("observedAt") == at)

    await its.broker.until(arrived)
    await its.until(lambda: its.daemon.status()["brokers"]["milano"]["backlog"] == 0)
    return its.broker.state(name)


def voltage(state: dict[str, Any]) -> float:
    return float(state["phaseVoltage"][0]["value"]["L1"])


def seen(its: InProcess, name: str) -> set[float]:
    """Every value of the history of one entity."""
    return {value["L1"] for of, key, _, value in its.broker.temporal_history() if (of, key) == (name, "phaseVoltage")}


async def test_a_calibration_counts_from_the_next_entity_and_restarts_no_link(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        assert voltage(await sent(its, 230.0)) == 230.0

        said = await its.reload((METER, METER + ", calibrate: {voltage: {offset: 1.5}}"))
        assert said["restarted"] == ["milano"]
        assert voltage(await sent(its, 231.0)) == 232.5

        await its.reload(("offset: 1.5", "offset: -1"))
        assert voltage(await sent(its, 232.0)) == 231.0

        await its.reload((", calibrate: {voltage: {offset: -1}}", ""))
        assert voltage(await sent(its, 233.0)) == 233.0
        assert its.runs() == {"roof": 1, "air": 1}
        await its.broker.until(lambda: seen(its, entity()) == {230.0, 232.5, 231.0, 233.0})


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ((METER, METER + ", entity: {static: {name: Roof meter}}"), "name", "Roof meter"),
        (("brokers:", "publish: {provider: City of Milano, devices: 0 s}\nbrokers:"), "dataProvider", "City of Milano"),
        ((METER, METER + ", location: [9.2, 45.6]"), "location", {"type": "Point", "coordinates": [9.2, 45.6]}),
        (("[9.159, 45.503]", "[9.3, 45.7]"), "location", {"type": "Point", "coordinates": [9.3, 45.7]}),
    ],
    ids=["static", "provider", "location", "gateway"],
)
async def test_what_is_not_on_the_wire_is_in_the_next_entity(
    tmp_path: Path, change: tuple[str, str], name: str, value: Any
) -> None:
    async with box(tmp_path, ("publish: {devices: 0 s}\n", "") if change[1].startswith("publish") else ("", "")) as its:
        before = await sent(its, 230.0)

        assert (await its.reload(change))["restarted"] == ["milano"]

        after = await sent(its, 231.0)
        assert before.get(name) != after[name]
        assert after[name][0]["value"] == value
        assert its.runs() == {"roof": 1, "air": 1}


async def test_another_name_in_the_ids_is_another_entity_for_state_and_history_and_back_again(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await sent(its, 230.0)

        await its.reload(("city: milano", "city: monza"))
        await sent(its, 231.0, of=entity("monza"))
        await its.reload(("city: monza", "city: milano"))
        await sent(its, 232.0)

        assert voltage(its.broker.state(entity("monza"))) == 231.0
        await its.broker.until(lambda: seen(its, entity("monza")) == {231.0})
        await its.broker.until(lambda: seen(its, entity()) == {230.0, 232.0})
        assert its.runs() == {"roof": 1, "air": 1}


async def test_a_city_profile_that_changes_in_its_own_file_counts_from_the_next_entity(tmp_path: Path) -> None:
    (tmp_path / "cities").mkdir()
    profile = tmp_path / "cities" / "milano.yaml"
    profile.write_text("static: {seeAlso: 'https://one.example'}\n")
    async with box(tmp_path, (MILANO, "linger: 0 s, use: cities/milano}")) as its:
        assert (await sent(its, 230.0))["seeAlso"][0]["value"] == "https://one.example"

        profile.write_text("city: porto\nstatic: {seeAlso: 'https://two.example'}\n")
        assert (await its.reload())["restarted"] == ["milano"]

        assert (await sent(its, 231.0, of=entity("porto")))["seeAlso"][0]["value"] == "https://two.example"
        assert its.runs() == {"roof": 1, "air": 1}


async def test_a_template_that_changes_on_disk_restarts_its_links_when_they_see_it_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "templates" / "own"
    folder.mkdir(parents=True)
    text = (
        "vendor: Own\nmodel: Meter\npoints:\n  voltage: {quantity: voltage, unit: VLT}\n"
        "entity:\n  type: ACMeasurement\n  attributes: {phaseVoltage.L1: voltage}\n  static: {phaseType: singlePhase}\n"
    )
    (folder / "meter.yaml").write_text(text)
    async with box(tmp_path, ("acme/meter", "own/meter")) as its:
        await sent(its, 230.0)

        (folder / "meter.yaml").write_text(text.replace("singlePhase", "threePhase"))
        assert (await its.reload())["restarted"] == ["milano"]
        assert (await sent(its, 231.0))["phaseType"][0]["value"] == "threePhase"
        assert its.runs() == {"roof": 1, "air": 1}

        (folder / "meter.yaml").write_text(text.replace("unit: VLT", "unit: VLT, range: [0, 300]"))
        assert (await its.reload())["restarted"] == ["roof", "milano"]
        assert its.runs() == {"roof": 2, "air": 1}
        await its.emit("roof", "meter-1", voltage=350.0)
        assert its.device("roof", "meter-1")["reason"] == "out_of_range"
        assert (await sent(its, 232.0))["phaseType"][0]["value"] == "singlePhase"


async def test_a_link_that_changed_is_restarted_once_with_what_it_says_now(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        said = await its.reload(("unit_id: 1", "unit_id: 7"), ("usb-x", "usb-y"))

        assert said["restarted"] == ["roof"]
        config, _ = its.driver.runs["roof"][-1]
        assert (config.port[-5:], config.devices["meter-1"].unit_id) == ("usb-y", 7)
        assert (await its.reload())["restarted"] == []
        assert its.runs() == {"roof": 2, "air": 1}
        await sent(its, 230.0)


async def test_a_reload_that_fails_leaves_everything_as_it_was_and_the_next_one_works(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await sent(its, 230.0)
        plan = its.daemon.plan

        with pytest.raises(ConfigError):
            await its.reload(("city: milano", "city: monza"), ("unit_id: 1", "unit_id: 300"))

        assert its.daemon.plan is plan
        assert its.runs() == {"roof": 1, "air": 1}
        await sent(its, 231.0)
        assert (await its.reload(("unit_id: 300", "unit_id: 1")))["restarted"] == ["milano"]
        await sent(its, 232.0, of=entity("monza"))


async def test_thinning_that_changes_begins_anew_and_the_neighbours_goes_on(tmp_path: Path) -> None:
    async with box(tmp_path, (METER, METER + ", report: {voltage: {on_change: 5}}")) as its:
        await sent(its, 230.0)
        await its.emit("roof", "meter-1", voltage=231.0)
        assert its.device("roof", "meter-1")["points"]["voltage"]["value"] == 231.0, "shown, not sent"

        assert (await its.reload(("on_change: 5", "on_change: 0.5")))["restarted"] == ["roof"]
        await sent(its, 231.2)
        await sent(its, 232.0)
        await its.broker.until(lambda: seen(its, entity()) == {230.0, 231.2, 232.0})


async def test_a_device_that_goes_and_comes_again_starts_from_nothing(tmp_path: Path) -> None:
    other = "      meter-2: {template: acme/meter, unit_id: 2}\n"
    async with box(tmp_path, ("  air:\n", other + "  air:\n")) as its:
        await its.emit("roof", "meter-2", voltage=Reason.TIMEOUT)
        assert its.device("roof", "meter-2")["state"] == "bad"

        await its.reload((other, ""))
        assert set(its.link("roof")["devices"]) == {"meter-1"}
        assert not [line for line in its.daemon.ready() if "meter-2" in line]
        await its.reload(("  air:\n", other + "  air:\n"))

        device = its.device("roof", "meter-2")
        assert (device["state"], device["reason"], device["sets"], device["last_set_at"]) == ("waiting", "", 0, None)


async def test_a_pause_outlives_a_reload_of_its_link_and_ends_by_itself(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        until = (await its.daemon.pause("meter-1", 3600))["until"]
        await its.reload(("unit_id: 1", "unit_id: 2"))

        await its.emit("roof", "meter-1", voltage=99.0)
        device = its.device("roof", "meter-1")
        assert (device["state"], device["paused_until"], device["sets"]) == ("paused", until, 0)

        await its.daemon.pause("meter-1", 0)
        assert (its.device("roof", "meter-1")["state"], its.device("roof", "meter-1")["paused_until"]) == (
            "waiting",
            None,
        )
        await sent(its, 230.0)
        assert seen(its, entity()) <= {230.0}


async def test_a_link_that_gave_up_is_tried_again_by_a_reload_though_its_config_is_the_same(tmp_path: Path) -> None:
    async def gives_up(context: Context) -> None:
        raise ConfigError("no such sensor")

    async with box(tmp_path) as its:
        its.driver.work["roof"] = gives_up
        await its.reload(("unit_id: 1", "unit_id: 2"))
        await its.until(lambda: its.link("roof")["state"] == "off")

        del its.driver.work["roof"]
        assert (await its.reload())["restarted"] == ["roof"]
        await its.until(lambda: its.runs()["roof"] == 3)
        assert its.link("roof")["state"] == "starting"
        await its.emit("roof", "meter-1", voltage=Reason.TIMEOUT)
        assert (its.link("roof")["state"], its.link("roof")["reason"]) == ("ok", "")
        assert (await its.reload())["restarted"] == []


async def test_a_link_that_a_reload_starts_anew_does_not_show_what_was_wrong_before(tmp_path: Path) -> None:
    async def unplugged(context: Context) -> None:
        raise LinkError("cannot open usb-x")

    async with box(tmp_path) as its:
        its.driver.work["roof"] = unplugged
        await its.reload(("unit_id: 1", "unit_id: 2"))
        await its.until(lambda: its.link("roof")["state"] == "down")
        down = its.link("roof")

        del its.driver.work["roof"]
        await its.reload(("usb-x", "usb-y"))
        now = its.link("roof")

        assert (down["reason"], now["state"], now["reason"], now["remedy"]) == ("cannot open usb-x", "starting", "", "")
        assert now["since"] > down["since"]
        assert now["restarts"] == down["restarts"]


async def test_another_driver_is_shown_as_that_and_a_link_whose_driver_goes_has_no_devices(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await its.emit("roof", "meter-1", voltage=Reason.TIMEOUT)
        await its.reload(("roof:\n    driver: bench", "roof:\n    driver: broken"))

        roof = its.link("roof")
        assert (roof["driver"], roof["state"], roof["remedy"], roof["devices"]) == (
            "broken",
            "off",
            "install nowhere",
            {},
        )
        assert not [line for line in its.daemon.ready() if "meter-1" in line]
        with pytest.raises(CitygateError, match="no device meter-1"):
            await its.daemon.read("meter-1")

        await its.reload(("driver: broken", "driver: bench"))
        assert (its.link("roof")["driver"], its.link("roof")["state"]) == ("bench", "starting")
        await sent(its, 230.0)


async def test_whoever_asks_during_a_reload_sees_the_box_before_or_after_it(tmp_path: Path) -> None:
    leaves = asyncio.Event()

    async def leaves_slowly(context: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await leaves.wait()

    async with box(tmp_path) as its:
        its.driver.work["roof"] = leaves_slowly
        await its.reload(("unit_id: 1", "unit_id: 2"))
        text = its.path.read_text()
        air = text[text.index("  air:") : text.index("brokers:")]
        its.edit((air, ""), ("unit_id: 2", "unit_id: 3"))

        reload = asyncio.create_task(its.daemon.reload())
        second = asyncio.create_task(its.daemon.reload())
        await its.until(lambda: its.daemon._links.keys() == {"roof"})
        assert set(its.daemon.status()["links"]) == {"roof", "air"}
        assert not list(its.daemon.entities())
        with pytest.raises(CitygateError, match="air"):
            await its.daemon.read("air-1")
        leaves.set()

        assert (await reload)["restarted"] == ["air", "roof", "milano"]
        assert (await second)["restarted"] == [], "it saw what the first one had done"
        assert set(its.daemon.status()["links"]) == {"roof"}


async def test_a_reload_that_the_stop_overtakes_starts_nothing(tmp_path: Path) -> None:
    leaves = asyncio.Event()

    async def leaves_slowly(context: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await leaves.wait()

    async with box(tmp_path) as its:
        its.driver.work["roof"] = leaves_slowly
        await its.reload(("unit_id: 1", "unit_id: 2"))
        its.edit(("unit_id: 2", "unit_id: 3"))
        reload = asyncio.create_task(its.daemon.reload())
        await its.until(lambda: "link roof" not in its.daemon._tasks)

        its.daemon.stop()
        await its.until(lambda: its.daemon._tasks == {})
        leaves.set()

        with pytest.raises(CitygateError, match="stopped"):
            await reload
    assert its.runs()["roof"] == 2


async def test_a_reload_while_the_broker_is_away_loses_nothing(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await sent(its, 230.0)
        its.broker.behaviour.fault = "503"
        await its.emit("roof", "meter-1", voltage=231.0)
        await its.until(lambda: its.daemon.status()["brokers"]["milano"]["state"] == "down")

        await its.reload((METER, METER + ", calibrate: {voltage: {offset: 10}}"))
        await its.emit("roof", "meter-1", voltage=232.0)
        its.broker.behaviour.fault = ""

        await its.broker.until(lambda: seen(its, entity()) == {230.0, 241.0, 242.0})


async def test_a_link_that_goes_while_it_is_down_leaves_no_complaint_and_comes_again_as_new(tmp_path: Path) -> None:
    async def unplugged(context: Context) -> None:
        raise LinkError("cannot connect")

    async with box(tmp_path) as its:
        its.driver.work["air"] = unplugged
        await its.reload(("192.0.2.1", "192.0.2.2"))
        await its.until(lambda: its.link("air")["state"] == "down")
        assert [line for line in its.daemon.ready() if "air" in line]
        text = its.path.read_text()
        air = text[text.index("  air:") : text.index("brokers:")]

        await its.reload((air, ""))
        assert not [line for line in its.daemon.ready() if "air" in line]

        del its.driver.work["air"]
        await its.reload(("brokers:", air + "brokers:"))
        assert (its.link("air")["state"], its.link("air")["restarts"], its.link("air")["reason"]) == ("starting", 0, "")


async def test_the_past_goes_on_over_a_reload_although_the_device_is_silent_by_now(tmp_path: Path) -> None:
    """The broker holds newer than all of it: what of it was never current, only the forwarder of before knows."""
    async with box(tmp_path, ("linger: 0 s", "linger: 0 s, rate: 2/s")) as its:
        values = {float(n) for n in range(200, 230)}
        for value in sorted(values):
            await its.emit("roof", "meter-1", voltage=value)
        await its.broker.until(lambda: 229.0 in seen(its, entity()))
        assert len(seen(its, entity())) < 20
        assert (await its.reload((", rate: 2/s", "")))["restarted"] == ["milano"]
        await its.broker.until(lambda: seen(its, entity()) == values)
