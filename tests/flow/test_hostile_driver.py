"""A third party's driver does everything wrong that a driver can, beside healthy neighbours: they lose nothing, each
misdeed is named, and stop and reload work as ever."""

import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.box import Box, Process, eventually
from tests.support.hostile_package.hostile_driver import MISDEEDS

PACKAGE = Path(__file__).parents[1] / "support" / "hostile_package"
HEAD = """
version: 1
gateway: {{id: gw-flow, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
publish: {{devices: 0 s}}
links:
"""
LINK = """  {name}: {{driver: hostile, does: {does}, told: "{told}", devices: {{{name}-1: {{template: acme/gadget}}}}}}
"""
NAMED = {  # link state or reason, device reason, counter or journal, in which each misdeed is named
    "crash": "a bug of mine",
    "crash_base": "raised BaseException",
    "returns": "ended by itself",
    "cancels": "cancelled itself",
    "leaks": "tasks left behind",
    "exits": "SystemExit",
    "blocks": "blocked the event loop",
    "nan": "not_finite",
    "no_time": "bad_time",
    "naive_time": "bad_time",
    "surrogate": "wrong_type",
    "undeclared": "secret",
    "rejects": "version",
}


def config(box: Box, *misdeeds: str) -> str:
    text = HEAD.format(box=box.folder, http=box.port)
    for name in ("well", "twin"):
        text += LINK.format(name=name, does="well", told=box.folder / f"told-{name}")
    return text + "".join(LINK.format(name=name, does=name, told="") for name in misdeeds)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    try:
        yield box
    finally:
        box.close()


def start(box: Box, *misdeeds: str) -> Process:
    box.write(config(box, *misdeeds))
    return box.start_daemon(PYTHONPATH=f"{PACKAGE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def told(box: Box, name: str) -> int:
    try:
        return int((box.folder / f"told-{name}").read_text() or 0)
    except FileNotFoundError:
        return 0


def neighbours_go_on(box: Box, sets: int) -> None:
    for name in ("well", "twin"):
        wanted = told(box, name) + sets
        eventually(f"{name} goes on", partial(_told_at_least, box, name, wanted), within_s=40)


def _told_at_least(box: Box, name: str, sets: int) -> bool:
    return told(box, name) >= sets


def neighbours_lost_nothing(box: Box) -> None:
    """What they handed over is what the box counts; asked after the stop, of the file."""
    for name in ("well", "twin"):
        status = eventually("status", box.status)
        device = status["links"][name]["devices"][f"{name}-1"]
        assert device["sets"] >= told(box, name) - 1
        assert (device["bad"], status["links"][name]["restarts"]) == (0, 0)


def heard_of_others(box: Box) -> int:
    """Sets in the log that no neighbour has handed over."""
    status = eventually("status", box.status)
    neighbours: int = sum(status["links"][name]["devices"][f"{name}-1"]["sets"] for name in ("well", "twin"))
    return int(status["log"]["appended"]) - neighbours


def said(box: Box, name: str) -> str:
    """All that status says of a link."""
    return str((box.status() or {}).get("links", {}).get(name, ""))


@pytest.mark.parametrize("misdeed", sorted(NAMED))
def test_each_misdeed_is_named_and_costs_its_neighbours_nothing(box: Box, misdeed: str) -> None:
    daemon = start(box, misdeed)

    eventually(f"{misdeed} is named", lambda: NAMED[misdeed] in said(box, misdeed), within_s=60)
    neighbours_go_on(box, 5)
    neighbours_lost_nothing(box)

    assert daemon.end() == 0


def test_all_misdeeds_at_once(box: Box) -> None:
    daemon = start(box, *sorted(set(MISDEEDS) - {"blocks"}))

    neighbours_go_on(box, 20)
    neighbours_lost_nothing(box)
    status = eventually("status", box.status)
    assert status["log"]["state"] == "ok"
    eventually("what was emitted is on the card", lambda: _stored(box.folder / "buffer.db"))

    assert daemon.end() == 0
    assert re.search("left_behind|service_ignores_cancel", daemon.text())


def test_one_that_ignores_cancel_holds_up_neither_reload_nor_stop(box: Box) -> None:
    daemon = start(box, "ignores_cancel")
    eventually("it speaks", lambda: box.device("ignores_cancel", "ignores_cancel-1").get("sets"))

    box.write(config(box))
    daemon.popen.send_signal(signal.SIGHUP)
    eventually("it is gone", lambda: "ignores_cancel" not in (box.status() or {"links": "ignores_cancel"})["links"])
    heard = heard_of_others(box)
    neighbours_go_on(box, 20)
    assert heard_of_others(box) <= heard + 2, "it speaks on, to nobody"

    assert daemon.end() == 0


def test_whoever_asks_to_exit_the_daemon_goes_on(box: Box) -> None:
    daemon = start(box, "exits", "exits_in_a_task", "exits_in_a_callback")

    eventually("it is told", lambda: daemon.text().count("exit_refused") >= 2)
    neighbours_go_on(box, 5)
    neighbours_lost_nothing(box)

    assert daemon.end() == 0


@pytest.mark.parametrize("misdeed", ["never_times", "blocks_threads", "stops_the_loop", "raises_an_odd_error"])
def test_what_a_driver_does_to_the_loop_stays_its_own_matter(box: Box, misdeed: str) -> None:
    daemon = start(box, misdeed)
    if misdeed != "raises_an_odd_error":
        eventually("it speaks", lambda: box.device(misdeed, f"{misdeed}-1").get("sets"))

    neighbours_go_on(box, 40)
    neighbours_lost_nothing(box)

    assert daemon.end() == 0


def test_a_driver_that_cancels_everybody_ends_the_daemon_as_a_fault_with_all_on_the_card(box: Box) -> None:
    """It cannot be told apart from the gateway's own doing; but it is no clean end, and nothing is lost by it."""
    daemon = start(box, "cancels_everybody")

    assert daemon.popen.wait(60) == 1
    assert "cancelled_unasked" in daemon.text()
    assert _stored(box.folder / "buffer.db")


def _stored(path: Path) -> Any:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as file:
        return file.execute("select count(*) from segment").fetchone()[0]
