"""A command may have the wire of a link for a while: the link rests, and goes on by itself whatever becomes of the command."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.http.outcome import UnknownName
from gateway.sdk.driver import Context
from gateway.sdk.errors import CitygateError
from tests.gateway.daemon_scene import InProcess, box

AIR = "  air:\n    driver: bench\n    host: 192.0.2.1\n    devices:\n      air-1: {template: acme/air}\n"
PORT = "/dev/serial/by-id/usb-x"


async def lend(its: InProcess, seconds: Any, **place: Any) -> str:
    answer = await its.daemon.verbs["lend"]({**(place or {"port": PORT}), "seconds": seconds})
    return str(answer["link"])


async def test_a_link_rests_while_its_port_is_lent_and_no_other_does(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        assert await lend(its, 60) == "roof"
        assert its.link("roof")["state"] == "paused"
        assert its.link("roof")["reason"] == "a command has its port"
        with pytest.raises(CitygateError, match="link roof is paused"):
            await its.daemon.read("meter-1")
        assert await lend(its, 60) == "roof"  # it asks again, as one does who needs it longer
        assert its.link("air")["state"] != "paused"

        assert await lend(its, 0) == "roof"
        await its.until(lambda: its.runs() == {"roof": 2, "air": 1})
        assert its.link("roof")["state"] != "paused"
        assert await lend(its, 0) == "roof"  # given back twice
        assert its.runs() == {"roof": 2, "air": 1}
        await its.emit("roof", "meter-1", voltage=230.0)
        await its.until(lambda: its.device("roof", "meter-1")["state"] == "ok")


async def test_it_goes_on_by_itself_when_the_command_is_not_heard_of_again(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await lend(its, 0.05)
        await its.until(lambda: its.runs() == {"roof": 2, "air": 1})


@pytest.mark.parametrize(
    ("place", "link"),
    [
        ({"port": PORT}, "roof"),
        ({"port": "/dev/ttyUSB9"}, ""),
        ({"host": "192.0.2.1", "port": "502"}, "air"),
        ({"host": "192.0.2.1"}, "air"),
        ({"host": "192.0.2.1", "port": "503"}, ""),
        ({"host": "192.0.2.2"}, ""),
        ({}, ""),
    ],
)
async def test_the_link_is_known_by_its_wire(tmp_path: Path, place: dict[str, Any], link: str) -> None:
    async with box(tmp_path) as its:
        assert (await its.daemon.verbs["lend"]({**place, "seconds": 60}))["link"] == link


async def test_a_link_that_is_off_has_no_port_to_lend(tmp_path: Path) -> None:
    async with box(tmp_path, ("template: acme/air", "template: acme/air, key: !secret nowhere")) as its:
        assert await lend(its, 60, host="192.0.2.1") == ""
        assert its.link("air")["state"] == "off"


async def test_who_listens_everywhere_listens_at_each_address(tmp_path: Path) -> None:
    async with box(tmp_path, ("host: 192.0.2.1", "host: 0.0.0.0")) as its:
        assert await lend(its, 60, host="127.0.0.1") == "air"


async def test_a_port_is_known_by_whatever_name_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "tty").write_text("")
    (tmp_path / "by-id").symlink_to(tmp_path / "tty")
    async with box(tmp_path, (PORT, str(tmp_path / "by-id"))) as its:
        assert await lend(its, 60, port=str(tmp_path / "tty")) == "roof"


@pytest.mark.parametrize("seconds", [-1, 61, "5", None])
async def test_nobody_has_it_for_ever(tmp_path: Path, seconds: Any) -> None:
    async with box(tmp_path) as its:
        with pytest.raises(UnknownName, match="up to 60 s"):
            await lend(its, seconds)
        assert its.link("roof")["state"] != "paused"


async def test_a_reload_while_it_is_lent_starts_no_link_twice_and_one_that_is_gone_not_at_all(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await lend(its, 60)
        await its.reload(("unit_id: 1", "unit_id: 2"))  # the link is another: it is at work again
        assert its.runs() == {"roof": 2, "air": 1}
        assert await lend(its, 0) == "roof"
        assert its.runs() == {"roof": 2, "air": 1}

        await lend(its, 60, host="192.0.2.1")
        await its.reload((AIR, ""))
        assert await lend(its, 0, host="192.0.2.1") == ""
        await its.reload()
        assert its.runs() == {"roof": 2, "air": 1}


async def test_a_time_that_is_over_in_the_middle_of_a_reload_starts_no_link_twice(tmp_path: Path) -> None:
    async def slow_to_end(_: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(2.2)  # longer than from one look at the times to the next

    async with box(tmp_path) as its:
        its.driver.work["roof"] = slow_to_end
        await lend(its, 60)
        await lend(its, 0)
        await its.until(lambda: its.runs() == {"roof": 2, "air": 1})
        its.driver.work.clear()
        await lend(its, 0.05, host="192.0.2.1")
        await its.reload(("unit_id: 1", "unit_id: 2"), ("host: 192.0.2.1", "host: 192.0.2.3"))
        assert its.runs() == {"roof": 3, "air": 2}


async def test_a_time_of_a_link_that_is_gone_meanwhile_is_nothing(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await lend(its, 0.001, host="192.0.2.1")
        await its.reload((AIR, ""))
        assert await lend(its, 60) == "roof"
        assert list(its.daemon.status()["links"]) == ["roof"]


async def test_a_stop_while_it_is_lent_is_clean(tmp_path: Path) -> None:
    async with box(tmp_path) as its:
        await lend(its, 60)
