"""`citygate buffer` on a box whose daemon does not run: the file itself, under the daemon's lock."""

import asyncio
import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import CITY, a_set, opened


@pytest.fixture
async def config(tmp_path: Path) -> Path:
    """A config whose log holds 3000 sets of two readings and one dead letter."""
    file = tmp_path / "citygate.yaml"
    file.write_text(
        f"version: 1\ngateway: {{id: gw, location: [9.1, 45.5], city: milano}}\nbuffer: {{path: {tmp_path}/buffer.db}}\n"
    )
    log = await opened(tmp_path, CITY)
    for n in range(3000):
        await log.append(a_set(n))
    columns = await log.read("milano")
    assert columns is not None
    columns.cut(4)
    await log.held.hold("milano", "urn:x", "meter-1", columns, reason="refused: 400", at=NOON)
    await log.close()
    return file


def run(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> tuple[int, str]:
    code = main(["buffer", *arguments, "-c", str(config)])
    return code, capsys.readouterr().out


def test_held_pieces_are_listed_shown_requeued_and_purged(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    listed: list[dict[str, Any]] = json.loads(run(capsys, config, "held", "list", "--json")[1])
    assert [(row["broker"], row["entity"], row["state"], row["reason"]) for row in listed] == [
        ("milano", "urn:x", "dead", "refused: 400")
    ]
    number = str(listed[0]["id"])
    shown = json.loads(run(capsys, config, "held", "show", number, "--json")[1])
    assert [row["value"] for row in shown["content"]] == [0, 230.0, 1, 230.1]
    assert run(capsys, config, "requeue", number) == (0, "1 requeued\n")
    assert json.loads(run(capsys, config, "held", "list", "--json")[1])[0]["state"] == "later"
    assert main(["buffer", "purge", "-c", str(config)]) == 1  # of what, it must be said
    capsys.readouterr()
    assert run(capsys, config, "purge", "--all") == (0, "1 purged\n")
    status = json.loads(run(capsys, config, "status", "--json")[1])
    assert status["newest_gaps"][0]["reason"] == "purged"
    assert status["held"] == {"later": 0, "dead": 0}


def test_export_gives_every_reading_as_json_lines_and_csv(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    code, text = run(capsys, config, "export", "--point", "count")
    assert code == 0
    assert [json.loads(line)["value"] for line in text.splitlines()] == list(range(3000))
    window = ("--from", "2026-06-01T12:00:10Z", "--to", "2026-06-01T12:00:12Z")
    rows = list(csv.DictReader(io.StringIO(run(capsys, config, "export", "--csv", *window)[1])))
    assert [(row["point"], row["value"]) for row in rows] == [
        ("count", "10"),
        ("voltage", "231.0"),
        ("count", "11"),
        ("voltage", "231.1"),
    ]
    assert main(["buffer", "export", "--from", "yesterday", "-c", str(config)]) == 1


def test_verify_finds_a_flipped_bit(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert json.loads(run(capsys, config, "verify", "--json")[1]) == {
        "ok": True,
        "segments": 24,
        "readings": 6000,
        "damaged": [],
    }
    file = config.parent / "buffer.db"
    content = bytearray(file.read_bytes())
    [(body,)] = sqlite3.connect(file).execute("SELECT body FROM segment LIMIT 1").fetchall()
    content[content.find(body) + 40] ^= 1
    file.write_bytes(content)
    code, text = run(capsys, config, "verify", "--json")
    assert code == 1
    assert len(json.loads(text)["damaged"]) == 1


def test_a_removed_broker_can_be_forgotten_once(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert run(capsys, config, "forget", "milano")[0] == 0
    assert run(capsys, config, "forget", "milano")[0] == 1


def test_a_removed_broker_is_told_and_forgotten_without_a_daemon(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = 'brokers: {milano: {url: "http://127.0.0.1:1"}}\n'
    text = config.read_text()
    config.write_text(text + entry)
    found = json.loads(run(capsys, config, "status", "--json")[1])
    assert (found["gone"], found["consumers"]["milano"]["backlog"]) == ({}, 6000)
    assert main(["buffer", "forget", "milano", "-c", str(config)]) == 1
    assert "in the config" in capsys.readouterr().err
    config.write_text(text + entry.replace("milano:", "porto:").replace('1"', '1", was: milano'))  # next start's
    found = json.loads(run(capsys, config, "status", "--json")[1])
    assert (found["gone"], found["consumers"]["porto"]["backlog"]) == ({}, 6000)
    assert main(["buffer", "forget", "milano", "-c", str(config)]) == 1
    capsys.readouterr()

    config.write_text(text + "brokers: {{")
    assert json.loads(run(capsys, config, "status", "--json")[1])["gone"] == {}
    assert main(["buffer", "forget", "milano", "-c", str(config)]) == 1
    assert "cannot be read" in capsys.readouterr().err

    config.write_text(text)
    assert "broker milano  gone: 6000 readings owed, 1 held as dead letters" in run(capsys, config, "status")[1]
    assert main(["buffer", "forget", "milan", "-c", str(config)]) == 1
    assert "there are: milano" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    assert main(["buffer", "forget", "milano", "-c", str(config)]) == 1
    assert "6000 readings and 1 held piece of milano" in capsys.readouterr().err
    assert json.loads(run(capsys, config, "status", "--json")[1])["gone"]["milano"]["backlog"] == 6000
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    said = json.loads(run(capsys, config, "forget", "milano", "--json")[1])
    assert said == {"forgotten": "milano", "readings": 6000, "held": 1}
    found = json.loads(run(capsys, config, "status", "--json")[1])
    assert (found["gone"], found["lost"]) == ({}, {"forgotten": 6004})


class Terminal(io.StringIO):
    """Where somebody can answer."""

    def isatty(self) -> bool:
        return True


def test_without_daemon_and_file_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "citygate.yaml"
    file.write_text(f"version: 1\nbuffer: {{path: {tmp_path}/none.db}}\n")
    assert main(["buffer", "status", "-c", str(file)]) == 4
    assert "no log at" in capsys.readouterr().err


async def test_a_text_that_an_older_version_let_in_can_be_exported(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    log = await opened(config.parent, CITY)
    await log.append(ReadingSet("cam", (Reading("text", "a\ud83d", NOON),)))
    await log.close()

    for form in ("--json", "--csv"):
        code, text = await asyncio.to_thread(run, capsys, config, "export", "--device", "cam", form)
        assert code == 0
        assert "a\ufffd" in text
