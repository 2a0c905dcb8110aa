"""status and run: shapes, exit codes, what a technician reads."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.status_text import status_text
from tests.gateway.cli.conftest import Command
from tests.support.box import Process, eventually
from tests.support.fake_view import FakeView, device_status, status


def test_status_prints_the_daemons_own_and_ends_fine_when_all_is_well(
    citygate: Command, daemon: FakeView, folder: Path
) -> None:
    ended = citygate("status", "-c", str(folder), "--json")
    assert (ended.code, ended.json) == (0, status())


def test_status_as_text_names_values_with_units_and_ages(citygate: Command, daemon: FakeView, folder: Path) -> None:
    ended = citygate("status", "-c", str(folder))
    assert ended.code == 0
    for words in ("School roof", "roof", "meter-12", "230.5 V", "5 s", "milano", "in-order"):
        assert words in ended.out, words
    assert "\033" not in ended.out  # no colours into a file


def test_a_bad_device_is_told_with_its_remedy_and_ends_with_1(
    citygate: Command, daemon: FakeView, folder: Path
) -> None:
    bad = device_status(state="bad", reason="timeout", remedy="is it powered?", last_good_at=None)
    daemon.shown["links"]["roof"]["devices"]["meter-12"] = bad
    ended = citygate("status", "-c", str(folder))
    assert ended.code == 1
    assert "✗ meter-12" in ended.out
    assert "timeout" in ended.out
    assert "→ is it powered?" in ended.out


@pytest.mark.parametrize(
    ("part", "name", "state", "code"),
    [
        ("links", "roof", "down", 1),
        ("links", "roof", "off", 1),
        ("links", "roof", "starting", 0),
        ("brokers", "milano", "down", 1),
        ("brokers", "milano", "login", 1),
        ("brokers", "milano", "config_fault", 1),
        ("brokers", "milano", "starting", 0),
    ],
)
def test_the_exit_code_says_whether_somebody_is_needed(
    citygate: Command, daemon: FakeView, folder: Path, part: str, name: str, state: str, code: int
) -> None:
    daemon.shown[part][name]["state"] = state
    assert citygate("status", "-c", str(folder), "--json").code == code


def test_a_pause_shows_how_long_it_lasts(citygate: Command, daemon: FakeView, folder: Path) -> None:
    paused = device_status(state="paused", reason="maintenance", paused_until="2026-06-01T12:30:05Z")
    daemon.shown["links"]["roof"]["devices"]["meter-12"] = paused
    ended = citygate("status", "-c", str(folder))
    assert ended.code == 0
    assert "paused: maintenance, 30 min left" in ended.out


def test_what_is_dropped_or_waits_is_told_with_what_to_add(citygate: Command, daemon: FakeView, folder: Path) -> None:
    daemon.shown["links"]["roof"]["devices"]["meter-12"]["undeclared"] = {"co2": 3}
    daemon.shown["brokers"]["milano"]["waiting"] = {"urn:x": ["dateObserved"]}
    out = citygate("status", "-c", str(folder)).out
    for words in (
        "co2 came 3 times",
        "co2: {quantity",
        "templates/eastron/sdm120.yaml",
        "urn:x is sent once dateObserved",
    ):
        assert words in out, words


def test_what_a_device_says_cannot_steer_the_terminal(citygate: Command, daemon: FakeView, folder: Path) -> None:
    daemon.shown["links"]["roof"]["reason"] = "\x1b[2J\x07 cleared"
    assert "\x1b" not in citygate("status", "-c", str(folder)).out


def test_without_a_daemon_status_ends_with_4(citygate: Command, folder: Path) -> None:
    ended = citygate("status", "-c", str(folder))
    assert ended.code == 4
    assert "no daemon answers" in ended.err
    assert ended.out == ""


def test_without_a_daemon_json_is_still_one_object(citygate: Command, folder: Path) -> None:
    ended = citygate("status", "-c", str(folder), "--json")
    assert ended.code == 4
    assert "no daemon answers" in ended.json["error"]


def test_status_works_while_the_config_is_broken(citygate: Command, daemon: FakeView, folder: Path) -> None:
    file = folder / "citygate.yaml"
    file.write_text(file.read_text() + "nonsense: 3\nlinks: [not, a, map]\n")
    assert citygate("status", "-c", str(folder), "--json").code == 0


def test_a_name_shows_that_part_alone(citygate: Command, daemon: FakeView, folder: Path) -> None:
    daemon.shown["links"]["roof"]["devices"]["meter-13"] = device_status(state="bad", reason="timeout")
    ended = citygate("status", "meter-12", "-c", str(folder))
    assert ended.code == 0
    assert "meter-12" in ended.out
    assert "meter-13" not in ended.out
    assert list(citygate("status", "milano", "--json", "-c", str(folder)).json["brokers"]) == ["milano"]
    unknown = citygate("status", "nope", "-c", str(folder))
    assert (unknown.code, "nope" in unknown.err) == (2, True)


def test_a_box_with_many_devices_shows_values_of_those_that_are_named(
    citygate: Command, daemon: FakeView, folder: Path
) -> None:
    daemon.shown["links"]["roof"]["devices"] = {f"meter-{n}": device_status() for n in range(50)}
    whole = citygate("status", "-c", str(folder)).out
    assert "230.5 V" not in whole
    assert "meter-49" in whole
    assert "230.5 V" in citygate("status", "meter-7", "-c", str(folder)).out


def test_run_with_an_invalid_config_ends_with_3_and_every_problem(folder: Path) -> None:
    (folder / "citygate.yaml").write_text("version: 1\ngateway: {id: gw, city: milano}\nbufer: {}\nlinks: 3\n")
    (folder / "last-good.json").write_text("{}")  # by hand it is offered, not taken
    command = [sys.executable, "-m", "gateway", "run", "-c", str(folder)]
    environment = {**os.environ, "STATE_DIRECTORY": str(folder)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environment)
    assert ended.returncode == 3
    assert "citygate.yaml:3:1" in ended.stderr
    assert "did you mean buffer" in ended.stderr
    assert "citygate.yaml:4" in ended.stderr
    assert "`citygate run --last-good` starts with the config that worked last" in ended.stderr
    assert not (folder / "buffer.db").exists()


def test_a_page_that_cannot_listen_is_told_by_the_verbs_that_still_work(citygate: Command, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = folder / "citygate.yaml"
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        file.write_text(file.read_text() + f"http: {{listen: '{listen}'}}\nclock: {{trust: system}}\n")
        process = Process(folder / "daemon.out", "-m", "gateway", "run", "-c", str(folder))
        try:
            eventually("status", lambda: citygate("status", "-c", str(folder)).code == 1)
            assert f"http: cannot listen on {listen}" in citygate("status", "-c", str(folder)).out
        finally:
            assert process.end() == 0


def test_what_was_rejected_is_told_with_device_age_and_remedy() -> None:
    shown = status()
    row = {
        "kind": "not JSON",
        "reason": "not JSON",
        "device": "bin-42",
        "remedy": "set json = true",
        "count": 5,
        "first_at": "2026-06-01T11:00:00Z",
        "last_at": "2026-06-01T12:00:00Z",
    }
    shown["links"]["roof"]["rejected"] = [row, {**row, "reason": "old news", "last_at": "2026-05-01T12:00:00Z"}]

    text = status_text(shown)

    assert "5× rejected of bin-42, 5 s ago: not JSON" in text
    assert "→ set json = true" in text
    assert "old news" not in text


def test_a_daemon_that_runs_another_file_is_remarked_upon_in_any_alphabet(
    citygate: Command, daemon: FakeView, folder: Path
) -> None:
    daemon.config_file = "/etc/città 1/citygate.yaml"
    assert "! the daemon here runs /etc/città 1/citygate.yaml, not " in citygate("status", "-c", str(folder)).err
    assert citygate("reload", "-c", str(folder)).code == 2
    assert daemon.asked == []


def test_a_daemon_that_cannot_tell_its_status_can_be_reloaded(
    citygate: Command, daemon: FakeView, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.config_file = str(folder / "citygate.yaml")
    monkeypatch.setattr(daemon, "status", dict[str, dict[str, str]]().popitem)
    assert citygate("status", "-c", str(folder)).code == 1
    assert citygate("reload", "-c", str(folder)).code == 0
    assert daemon.asked == [("reload",)]
