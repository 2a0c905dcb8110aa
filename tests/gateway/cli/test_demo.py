"""demo: the first minute, as a newcomer and as a script see it."""

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gateway.cli.demo import value_lines
from tests.support.box import Process, eventually, get_json
from tests.support.fake_view import device_status, status


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary folder with a short path: a socket's path is bounded, and pytest's own can be long."""
    with tempfile.TemporaryDirectory(prefix="cg") as folder:
        yield Path(folder)


def test_a_short_demo_ends_with_counts_of_three_devices_and_leaves_nothing(short_path: Path) -> None:
    process = Process(short_path / "demo.out", "-m", "gateway", "demo", "--for", "3s", "--json", TMPDIR=str(short_path))
    assert process.popen.wait(90) == 0, process.text()
    summary = json.loads(process.text())
    assert set(summary) == {"sets", "readings", "entities", "errors", "devices"}
    assert set(summary["devices"]) == {"meter-12", "meter-13", "air-1"}
    assert all(readings > 0 for readings in summary["devices"].values())
    assert (summary["entities"], summary["errors"]) == (3, 0)
    assert summary["readings"] == sum(summary["devices"].values())
    assert [path.name for path in short_path.iterdir()] == ["demo.out"]


def test_ending_one_simulator_turns_its_device_bad_while_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "box"
    process = Process(tmp_path / "demo.out", "-m", "gateway", "demo", "--keep", str(folder))
    try:
        eventually("where to look", lambda: "try: kill" in process.text(), within_s=60)
        page = _first(r"page +(http\S+)", process.text())
        assert (folder / "rs485").is_char_device()
        assert (folder / "air").is_char_device()
        eventually("all well", lambda: _states(page) == {"meter-12": "ok", "meter-13": "ok", "air-1": "ok"})
        os.kill(int(_first(r"meter-12 +pid (\d+)", process.text())), signal.SIGTERM)
        eventually("bad", lambda: _states(page).get("meter-12") == "bad")
        before = _sets(page)
        eventually("others go on", lambda: all(_sets(page)[name] > before[name] for name in ("meter-13", "air-1")))
        assert _states(page) == {"meter-12": "bad", "meter-13": "ok", "air-1": "ok"}
        children = psutil.Process(process.popen.pid).children()
    finally:
        assert process.end(signal.SIGINT) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "demo ended" in process.text()


def test_a_demo_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    folder = tmp_path / "box"
    process = Process(tmp_path / "demo.out", "-m", "gateway", "demo", "--keep", str(folder))
    eventually("started", lambda: "try: kill" in process.text(), within_s=60)
    children = psutil.Process(process.popen.pid).children()
    assert len(children) == 4
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_folder_that_is_there_is_not_used(tmp_path: Path) -> None:
    process = Process(tmp_path / "demo.out", "-m", "gateway", "demo", "--keep", str(tmp_path))
    assert process.popen.wait(90) == 1
    assert "cannot make the folder" in process.text()


def test_a_line_of_the_table_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = status()
    shown["links"]["roof"]["devices"]["meter-13"] = device_status(state="bad", reason="no answer " * 20)
    lines = value_lines(shown)
    assert len(lines) == 2
    assert all(len(line) <= 40 for line in lines)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]


def _devices(page: str) -> dict[str, dict[str, object]]:
    found = get_json(f"{page}status") or {"links": {}}
    return {name: device for link in found["links"].values() for name, device in link["devices"].items()}


def _states(page: str) -> dict[str, object]:
    return {name: device["state"] for name, device in _devices(page).items()}


def _sets(page: str) -> dict[str, int]:
    return {name: int(str(device["sets"])) for name, device in _devices(page).items()}
