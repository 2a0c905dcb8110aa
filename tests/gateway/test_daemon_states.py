"""What was before a reload leaves no mark on what comes after it: links that are left alone, devices that move, brokers
that come and go, one-shot reads that wait."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from gateway.driver_run import SharedLoop
from gateway.sdk.driver import Context
from gateway.sdk.errors import LinkError
from gateway.sdk.reading import Reason
from tests.gateway.daemon_scene import box
from tests.gateway.test_daemon import entity, seen, sent
from tests.support.strict_broker import StrictBroker

AT_ONCE_S = 10.0  # on a busy machine; a request that nobody comes to waits for 30 s
METER_1 = "      meter-1: {template: acme/meter, unit_id: 1}\n"
METER_2 = "      meter-2: {template: acme/meter, unit_id: 2}\n"


def held(broker: StrictBroker) -> set[float]:
    """Every voltage in the history of another broker."""
    return {value["L1"] for of, key, _, value in broker.temporal_history() if key == "phaseVoltage"}


async def unplugged(context: Context) -> None:
    raise LinkError("cannot open usb-x")


# --- links -------------------------------------------------------------------------------------------------------------


async def test_a_link_that_is_down_goes_on_waiting_for_its_next_try_when_it_did_not_change(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        its.driver.work["roof"] = unplugged
        await its.reload(("unit_id: 1", "unit_id: 2"))
        await its.until(lambda: its.link("roof")["state"] == "down")

        assert (await its.reload(("192.0.2.1", "192.0.2.2")))["restarted"] == ["air"]
        assert its.link("roof")["state"] == "down"


def test_threads_of_a_link_end_with_it(tmp_path: Path) -> None:
    def of_roof() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("link roof")]

    async def looks_up(context: Context) -> None:
        await asyncio.to_thread(time.sleep, 0)

    async def reloads() -> None:
        async with box(tmp_path) as its:
            its.driver.work["roof"] = looks_up
            await its.reload(("unit_id: 1", "unit_id: 2"))
            await its.until(of_roof)

            del its.driver.work["roof"]
            await its.reload(("unit_id: 2", "unit_id: 3"))
            await its.until(lambda: not of_roof())

    with asyncio.Runner(loop_factory=SharedLoop) as runner:
        runner.run(reloads())


async def test_a_device_that_moves_to_another_link_is_the_same_to_its_city_and_nothing_is_left_behind(
    tmp_path: Path,
) -> None:
    async with box(tmp_path, (METER_1, METER_1 + METER_2)) as its:
        await sent(its, 230.0)
        await its.emit("roof", "meter-1", voltage=Reason.TIMEOUT)

        its.edit((METER_1, ""), ("acme/air}\n", "acme/air}\n" + METER_1))
        said = await its.reload()
        assert said["restarted"] == ["air", "roof"], "its entity is made as before"
        [moved] = said["changed"]
        assert moved.startswith("device meter-1: on link roof, template acme/meter, unit_id 1 → on link air, ")
        assert set(its.link("roof")["devices"]) == {"meter-2"}
        assert its.device("air", "meter-1")["state"] == "waiting"
        assert not [line for line in its.daemon.ready() if "meter-1" in line]

        await its.emit("air", "meter-1", voltage=231.0)
        await its.broker.until(lambda: seen(its, entity()) == {230.0, 231.0})


async def test_a_link_that_goes_and_comes_again_counts_from_nothing_and_owes_nothing_twice(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await sent(its, 230.0)
        its.driver.runs["roof"][-1][1].count("answers", 7)
        text = its.path.read_text()
        roof = text[text.index("  roof:") : text.index("  air:")]

        assert (await its.reload((roof, "")))["restarted"] == ["roof", "milano"]
        assert set(its.daemon.status()["links"]) == {"air"}
        await its.reload(("  air:", roof + "  air:"))

        assert (its.link("roof")["state"], its.link("roof")["counters"]) == ("starting", {})
        await sent(its, 231.0)
        history = [row for row in its.broker.temporal_history() if row[:2] == (entity(), "phaseVoltage")]
        assert len(history) == len(set(map(str, history))) == 2


# --- one-shot reads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [False, True], ids=["waits", "taken"])
async def test_a_read_that_waits_while_its_link_is_restarted_is_answered_at_once(tmp_path: Path, taken: bool) -> None:
    took = asyncio.Event()

    async def takes(context: Context) -> None:
        if taken:
            await context.requests.get()
        took.set()

    async with box(tmp_path) as its:
        its.driver.work["roof"] = takes
        await its.reload(("unit_id: 1", "unit_id: 2"))
        read = asyncio.create_task(its.daemon.read("meter-1"))
        await took.wait()

        await its.reload(("unit_id: 2", "unit_id: 3"))

        with pytest.raises(LinkError, match="link roof was ended before it answered; ask again"):
            await asyncio.wait_for(read, AT_ONCE_S)


async def test_a_read_that_a_driver_took_before_it_failed_is_answered_at_once(tmp_path: Path) -> None:
    async def fails(context: Context) -> None:
        await context.requests.get()
        raise ZeroDivisionError

    async with box(tmp_path) as its:
        its.driver.work["roof"] = fails
        await its.reload(("unit_id: 1", "unit_id: 2"))
        with pytest.raises(LinkError, match="link roof was ended"):
            await asyncio.wait_for(its.daemon.read("meter-1"), AT_ONCE_S)


# --- brokers -----------------------------------------------------------------------------------------------------------


async def test_a_broker_that_comes_is_served_and_one_that_goes_leaves_no_complaint(tmp_path: Path) -> None:
    porto = StrictBroker()
    async with porto.serve() as url, box(tmp_path) as its:
        entry = f'  porto: {{url: "{url}", linger: 0 s}}\n'
        await its.reload(("brokers:\n", "brokers:\n" + entry))
        await sent(its, 230.0)
        await porto.until(lambda: held(porto) == {230.0})
        porto.behaviour.fault = "503"
        await sent(its, 231.0)
        await its.until(lambda: [line for line in its.daemon.ready() if "porto" in line])

        assert (await its.reload((entry, "")))["restarted"] == ["porto"]
        assert set(its.daemon.status()["brokers"]) == {"milano"}
        assert not [line for line in its.daemon.ready() if "porto" in line]
        assert "porto" in its.daemon.status()["log"]["gone"]
        await sent(its, 232.0)

        porto.behaviour.fault = ""
        await its.reload(("brokers:\n", "brokers:\n" + entry))
        assert its.daemon.status()["brokers"]["porto"]["state"] in ("starting", "ok")
        await sent(its, 233.0)
        await porto.until(lambda: 233.0 in held(porto))


async def test_a_broker_whose_entry_changed_does_not_show_what_was_wrong_before(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        its.broker.behaviour.fault = "503"
        await its.emit("roof", "meter-1", voltage=230.0)
        await its.until(lambda: its.daemon.status()["brokers"]["milano"]["state"] == "down")
        before = its.daemon.status()["brokers"]["milano"]

        its.broker.behaviour.fault, its.broker.behaviour.delay_s = "slow", 1.0
        await its.reload(("linger: 0 s}", "linger: 1 s}"))
        now = its.daemon.status()["brokers"]["milano"]
        assert (before["reason"] != "", now["state"], now["reason"]) == (True, "starting", "")
        assert now["since"] > before["since"]
        its.broker.behaviour.fault, its.broker.behaviour.delay_s = "", 0.0
        await sent(its, 231.0)


async def test_how_often_the_box_tells_of_its_sensors_changes_at_once_and_restarts_nothing_else(tmp_path: Path) -> None:
    async with box(tmp_path, ("publish: {devices: 0 s}", "publish: {devices: 1 h}")) as its:
        assert (await its.reload(("devices: 1 h", "devices: 100 ms")))["restarted"] == []
        await its.broker.until(lambda: its.broker.state("urn:ngsi-ld:Device:milano:gw-1:meter-1"))
