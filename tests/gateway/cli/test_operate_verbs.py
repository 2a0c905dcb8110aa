"""watch, reload, once, pause on a running daemon's socket, and what they say when there is none."""

import json
from pathlib import Path

import pytest

from gateway.http.outcome import UnknownName
from gateway.sdk.errors import ConfigError, Problem
from tests.gateway.cli.conftest import Command
from tests.support.fake_view import FakeView, status


def test_pause_takes_a_time_as_people_write_it(citygate: Command, daemon: FakeView, folder: Path) -> None:
    ended = citygate("pause", "meter-12", "--for", "30m", "-c", str(folder))
    assert ended.code == 0
    assert daemon.asked == [("pause", "meter-12", 1800.0)]
    assert "2026-06-01T12:30:00Z" in ended.out


def test_pause_prints_until_when(citygate: Command, daemon: FakeView, folder: Path) -> None:
    ended = citygate("pause", "meter-12", "--for", "30m", "--json", "-c", str(folder))
    assert ended.json == {"device": "meter-12", "until": "2026-06-01T12:30:00Z"}


def test_a_device_that_is_not_there_is_wrong_use(citygate: Command, daemon: FakeView, folder: Path) -> None:
    daemon.error = UnknownName("no device nope; there are meter-12")
    ended = citygate("pause", "nope", "--for", "1s", "-c", str(folder))
    assert ended.code == 2
    assert "there are meter-12" in ended.err


def test_reload_says_what_was_restarted(citygate: Command, daemon: FakeView, folder: Path) -> None:
    assert citygate("reload", "-c", str(folder)).out == "roof\nrestarted: roof\n"
    ended = citygate("reload", "--json", "-c", str(folder))
    assert (ended.code, ended.json) == (0, {"changed": ["roof"], "restarted": ["roof"], "warnings": []})


def test_a_dry_run_of_a_reload_shows_what_would_be(citygate: Command, daemon: FakeView, folder: Path) -> None:
    daemon.reloaded = {
        "changed": ["links.roof.port: /dev/ttyUSB0 → /dev/ttyUSB1", "buffer.max_size: 1 GB → 2 GB"],
        "restarts": {"links": ["roof"], "brokers": ["milano", "porto"]},
        "restarted": [],
        "waiting": ["buffer.max_size"],
        "owed": {
            "brokers": {"milano": 912},
            "devices": {"meter-12": {"milano": 1, "porto": 40}},
            "all_counted": False,
        },
        "warnings": [],
    }

    ended = citygate("reload", "--dry-run", "-c", str(folder))

    assert daemon.asked == [("reload", True)]
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "links.roof.port: /dev/ttyUSB0 → /dev/ttyUSB1",
        "buffer.max_size: 1 GB → 2 GB",
        "would restart: link roof, broker milano, broker porto",
        "broker milano: 912 readings still to be sent",
        "device meter-12: still to be sent: at least 1 reading to milano, at least 40 readings to porto",
        "waits for a restart of the daemon (`systemctl restart citygate`): buffer.max_size",
        "nothing was applied; `citygate reload` applies it",
    ]
    assert citygate("reload", "--dry-run", "--json", "-c", str(folder)).json == daemon.reloaded

    daemon.reloaded = {"changed": [], "restarts": {"links": [], "brokers": []}, "restarted": [], "warnings": []}
    assert citygate("reload", "--dry-run", "-c", str(folder)).out == "nothing changed\n"


def test_a_refused_reload_lists_every_problem_with_its_place(citygate: Command, daemon: FakeView, folder: Path) -> None:
    problems = (
        Problem(
            "unknown-key", ("bufer",), "unknown key", "did you mean buffer?", file="citygate.yaml", line=3, column=1
        ),
        Problem("wrong-type", ("links",), "3 should be a map", file="citygate.yaml", line=4, column=8),
    )
    daemon.error = ConfigError(problems)
    ended = citygate("reload", "-c", str(folder))
    assert ended.code == 3
    for words in ("citygate.yaml:3:1: error: bufer: unknown key", "did you mean buffer?", "citygate.yaml:4:8"):
        assert words in ended.err
    assert [row["line"] for row in citygate("reload", "--json", "-c", str(folder)).json["problems"]] == [3, 4]


@pytest.mark.parametrize("verb", [("reload",), ("pause", "meter-12", "--for", "1s"), ("watch",)])
def test_what_needs_a_daemon_ends_with_4_without_one(citygate: Command, folder: Path, verb: tuple[str, ...]) -> None:
    ended = citygate(*verb, "-c", str(folder))
    assert ended.code == 4
    assert "no daemon answers" in ended.err


def test_watch_prints_one_status_a_line(citygate: Command, daemon: FakeView, folder: Path) -> None:
    ended = citygate("watch", "--every", "50 ms", "--for", "120 ms", "--json", "-c", str(folder))
    lines = ended.out.splitlines()
    assert len(lines) >= 2
    assert all(json.loads(line) == status() for line in lines)


def test_once_with_a_daemon_reads_all_and_shows_what_the_brokers_took(
    citygate: Command, daemon: FakeView, folder: Path
) -> None:
    ended = citygate("once", "--json", "-c", str(folder))
    assert ended.code == 0
    assert daemon.asked == [("once",)]
    assert ended.json["devices"] == {"meter-12": {"readings": 3, "error": ""}}
    assert ended.json["brokers"]["milano"]["accepted"] == 5


def test_once_waits_for_what_is_owed(citygate: Command, daemon: FakeView, folder: Path) -> None:
    backlog = iter([7, 3, 0])
    asked = daemon.status
    daemon.shown["brokers"]["milano"]["backlog"] = 9

    def falling() -> dict[str, object]:
        shown = asked()
        shown["brokers"]["milano"]["backlog"] = next(backlog, 0)
        return shown

    daemon.status = falling  # type: ignore[method-assign]  # a broker that takes its time
    ended = citygate("once", "--json", "-c", str(folder))
    assert (ended.code, ended.json["brokers"]["milano"]["backlog"]) == (0, 0)


@pytest.mark.parametrize(
    ("oldest_unsent_at", "code"), [("2026-06-01T12:00:01Z", 0), ("2026-06-01T11:00:00Z", 4), (None, 4)]
)
def test_once_waits_for_nothing_that_was_read_after_its_cycle(
    citygate: Command, daemon: FakeView, folder: Path, monkeypatch: pytest.MonkeyPatch, oldest_unsent_at: str, code: int
) -> None:
    monkeypatch.setattr("gateway.cli.operate.STUCK_AFTER_S", 0.3)
    backlog = iter(range(10, 40))
    asked = daemon.status

    def growing() -> dict[str, object]:
        shown = asked()
        shown["gateway"]["now"] = "2026-06-01T12:00:00Z"
        shown["brokers"]["milano"] |= {"backlog": next(backlog), "oldest_unsent_at": oldest_unsent_at}
        return shown

    daemon.status = growing  # type: ignore[method-assign]  # a box at work: ever more is owed
    ended = citygate("once", "-c", str(folder))
    assert ended.code == code, ended.out
    assert ("still owed" in ended.out) == (code == 4)


def test_refused_entities_are_a_problem(citygate: Command, daemon: FakeView, folder: Path) -> None:
    daemon.shown["brokers"]["milano"]["refused"] = 2
    assert citygate("once", "-c", str(folder)).code == 1
