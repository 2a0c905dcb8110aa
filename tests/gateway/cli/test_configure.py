"""check: shape and exit codes (what is found is tested with the config)."""

from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command

KEYS = {"code", "severity", "file", "line", "column", "path", "message", "remedy"}


def test_a_good_config_is_fine(citygate: Command, folder: Path) -> None:
    ended = citygate("check", "-c", str(folder), "--json")
    assert ended.code == 0
    assert ended.json["ok"] is True
    assert citygate("check", "-c", str(folder)).code == 0


def test_a_broken_config_ends_with_3_and_says_where(citygate: Command, folder: Path) -> None:
    (folder / "citygate.yaml").write_text("version: 1\ngateway: {id: gw, city: milano}\nbufer: {}\n")
    ended = citygate("check", "-c", str(folder), "--json")
    assert ended.code == 3
    [problem] = ended.json["problems"]
    assert set(problem) == KEYS
    assert (problem["line"], problem["column"], problem["path"]) == (3, 1, "bufer")
    text = citygate("check", "-c", str(folder))
    assert text.code == 3
    assert "citygate.yaml:3:1: error:" in text.err + text.out


def test_a_missing_file_is_a_problem_with_its_name(citygate: Command, tmp_path: Path) -> None:
    ended = citygate("check", "-c", str(tmp_path / "nowhere"))
    assert ended.code == 3
    assert "nowhere" in ended.err + ended.out


def test_the_config_as_it_counts_has_what_the_environment_says(
    citygate: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITYGATE__GATEWAY__ID", "gw-9")
    ended = citygate("check", "-c", str(folder), "--effective")
    assert "  id: gw-9" in ended.out
    assert "# environment CITYGATE__GATEWAY__ID\n" in ended.out
    rows = citygate("check", "-c", str(folder), "--effective", "--json").json["effective"]
    assert [(its["value"], its["file"]) for its in rows if its["path"] == "gateway.id"] == [
        ("gw-9", "environment CITYGATE__GATEWAY__ID")
    ]
