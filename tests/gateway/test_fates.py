"""What a reload says, before and when it is done, of readings that are owed and of entities that get another id."""

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.daemon_scene import InProcess
from tests.gateway.test_devices_that_go import METER, entity, hold, owes, scene

TO_MILLIVOLT = ("meter-1: {template: acme/meter", "meter-1: {template: acme/millivolt")
STAYS = "stays there with its last value (milano)"


def becomes(said: dict[str, Any]) -> list[str]:
    return [f"{fate['of']}: {fate['text']}" for fate in said["becomes"]]


async def dry(its: InProcess, change: tuple[str, str]) -> list[str]:
    """What a dry run says; the box goes on as it was, and the reload says the same."""
    its.edit(change)
    said = await its.daemon.reload(dry_run=True)
    assert becomes(await its.daemon.reload(dry_run=True)) == becomes(said)
    assert becomes(await its.daemon.reload()) == becomes(said)
    return becomes(said)


CASES = {
    "device removed": (
        (METER, ""),
        [
            "device meter-1: 2 readings owed and 1 piece held to milano: go out by its last mapping; it is gone from the config",
            f"device meter-1: entity {entity()} is told no more; it {STAYS}",
        ],
    ),
    "device renamed": (
        ("meter-1: {", "meter-2: {was: meter-1, "),
        [
            "device meter-1: 2 readings owed and 1 piece held to milano: go out as those of meter-2",
            f"device meter-1: entity {entity()} becomes {entity('meter-2')}, a new one; the old one {STAYS}",
        ],
    ),
    "template": (
        TO_MILLIVOLT,
        ["device meter-1: 2 readings owed and 1 piece held to milano: go out by the mapping of its old template"],
    ),
    "entity id": (
        ("acme/meter, unit_id: 1", f"acme/meter, unit_id: 1, entity: {{id: '{entity('other')}'}}"),
        [
            "device meter-1: 2 readings owed and 1 piece held to milano: go out by the new mapping",
            f"device meter-1: entity {entity()} becomes {entity('other')}, a new one; the old one {STAYS}",
        ],
    ),
    "calibration": (
        ("acme/meter, unit_id: 1", "acme/meter, unit_id: 1, calibrate: {voltage: {gain: 10}}"),
        ["device meter-1: 2 readings owed and 1 piece held to milano: go out by the new mapping"],
    ),
    "no longer sent": (
        ("linger: 0 s}", "linger: 0 s, send: [meter-0]}"),
        [
            "device meter-1: 2 readings owed to milano: will not be sent, the mapping or `send:` takes them no longer",
            f"device meter-1: entity {entity()} is told no more; it {STAYS}",
        ],
    ),
    "broker removed": (
        ("milano: {url", "porto: {url"),
        [
            "broker milano: 3 readings owed and 1 piece held: kept until it is put back, or `citygate buffer forget milano`; "
            "at most 90 days, and while all of the log fits into 1000 MB"
        ],
    ),
    "broker renamed": (
        ("milano: {url", "porto: {was: milano, url"),
        ["broker milano: 3 readings owed and 1 piece held: go on to porto"],
    ),
    "another tenant": (
        ("linger: 0 s}", "linger: 0 s, tenant: t1}"),
        ["broker milano: 3 readings owed and 1 piece held: go to the new address or tenant"],
    ),
    "nothing of it": (("linger: 0 s}", "linger: 1 s}"), []),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_reload_says_what_becomes_of_what_is_owed(tmp_path: Path, case: str) -> None:
    change, expected = CASES[case]
    async with scene(tmp_path / "box") as its, its.at_work():
        await owes(its, "held", 1.0)
        await owes(its, "card", 2.0)
        await owes(its, "memory", 3.0)
        await owes(its, "memory", 9.0, device="meter-0")
        assert [line for line in await dry(its, change) if "air-1" not in line] == expected


async def test_who_is_back_gets_what_was_kept(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its, its.at_work():
        await owes(its, "card", 1.0)
        text = its.path.read_text()
        entry = text[text.index("  milano: {") :]
        await its.reload((entry, ""), ("brokers:\n", "brokers: {}\n"))
        await its.reload((METER, ""))
        await its.emit("roof", "meter-0", voltage=2.0)

        assert await dry(its, ("brokers: {}\n", "brokers:\n" + entry)) == [
            "broker milano: 1 reading owed: go out, it is back"
        ]
        its.broker.behaviour.fault = "503"
        calibrated = METER.replace("unit_id: 1", "unit_id: 1, calibrate: {voltage: {gain: 10}}")
        assert "device meter-1: 1 reading owed to milano: go out by the new mapping" in await dry(
            its, ("  air:", calibrated + "  air:")
        )


async def test_nothing_is_said_where_nothing_is_owed(tmp_path: Path) -> None:
    async with scene(tmp_path / "box") as its, its.at_work():
        await its.emit("roof", "meter-1", voltage=1.0)
        await its.until(lambda: its.daemon.status()["brokers"]["milano"]["backlog"] == 0)
        assert await dry(its, ("meter-1: {", "meter-2: {was: meter-1, ")) == [
            f"device meter-1: entity {entity()} becomes {entity('meter-2')}, a new one; the old one {STAYS}"
        ]
        assert await dry(its, ("milano: {url", "porto: {url")) == []


async def test_of_a_device_that_is_gone_it_is_said_once(tmp_path: Path) -> None:
    """What an earlier change did is no news of the next one."""
    async with scene(tmp_path / "box") as its, its.at_work():
        await owes(its, "card", 1.0)
        await hold(its)
        await its.reload((METER, ""))
        assert await dry(its, ("linger: 0 s}", "linger: 1 s}")) == []
