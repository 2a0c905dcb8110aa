"""What the process is told from outside: taken as it is meant, nobody stopped by what makes no sense, asked in one place."""

import ast
from io import StringIO
from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.cli.terminal import colour
from gateway.environment import NOTHING, OVERRIDES, SECRETS, Environment
from tests.gateway.daemon_scene import box
from tests.support.box import REPOSITORY

ASKS = ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "expandvars")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with nothing in it that means something to a gateway."""
    for field in Environment.model_fields.values():
        if isinstance(field.validation_alias, str):
            monkeypatch.delenv(field.validation_alias, raising=False)
    return monkeypatch


def test_nothing_is_told_where_nothing_is_set(outside: pytest.MonkeyPatch) -> None:
    assert Environment() == NOTHING
    assert NOTHING.config == Path("/etc/citygate")
    assert NOTHING.noted_in is None
    assert NOTHING.watchdog_every_s(1) is None


def test_each_variable_is_taken_as_it_is_meant(outside: pytest.MonkeyPatch) -> None:
    for name, text in {
        "CITYGATE_CONFIG": "my-box",
        "CITYGATE__HTTP__LISTEN": "",
        "CITYGATE__A": "{",
        "CITYGATE_SECRET_MILANO": "hunter2hunter2",
        "CITYGATE_HTTP_LISTEN": "x",
        "citygate__b": "x",
        "CREDENTIALS_DIRECTORY": "/run/credentials/a:b",
        "STATE_DIRECTORY": "/var/lib/a:/var/lib/b",
        "RUNTIME_DIRECTORY": "/run/a:/run/b",
        "NOTIFY_SOCKET": "@abstract",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": "7",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }.items():
        outside.setenv(name, text)

    told = Environment()

    assert told.config == Path("my-box")
    assert told.overrides == {"CITYGATE__HTTP__LISTEN": "", "CITYGATE__A": "{"}
    assert told.secret_texts == {"CITYGATE_SECRET_MILANO": "hunter2hunter2"}
    assert told.others == ("CITYGATE_HTTP_LISTEN", "citygate__b")
    assert told.credentials == Path("/run/credentials/a:b")
    assert (told.state, told.runtime) == (Path("/var/lib/a"), Path("/run/a"))
    assert (told.service_manager, told.no_color, told.terminal) == ("@abstract", "1", "dumb")
    assert (told.watchdog_every_s(7), told.watchdog_every_s(8)) == (3.0, None)
    assert told.wrong == {}
    assert "hunter2" not in repr(told)


def test_an_empty_variable_is_as_one_that_is_not_set(outside: pytest.MonkeyPatch) -> None:
    for field in Environment.model_fields.values():
        if isinstance(field.validation_alias, str) and field.validation_alias not in (OVERRIDES, SECRETS):
            outside.setenv(field.validation_alias, "")

    assert Environment() == NOTHING


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("WATCHDOG_USEC", "soon", "is no number above 0"),
        ("WATCHDOG_USEC", "0", "is no number above 0"),
        ("WATCHDOG_USEC", "-3", "is no number above 0"),
        ("WATCHDOG_USEC", "3.5", "is no number above 0"),
        ("WATCHDOG_USEC", "²", "is no number above 0"),
        ("WATCHDOG_USEC", "9" * 400, "is no number above 0"),
        ("WATCHDOG_PID", "me", "is no number above 0"),
        ("NOTIFY_SOCKET", "notify", "is no address of a Unix socket: it begins with / or @"),
        ("STATE_DIRECTORY", "state", "is no whole path"),
        ("STATE_DIRECTORY", ":/var/lib/citygate", "is no whole path"),
        ("XDG_STATE_HOME", "state", "is no whole path"),
        ("HOME", "~", "is no whole path"),
        ("RUNTIME_DIRECTORY", "run", "is no whole path"),
    ],
)
def test_what_makes_no_sense_is_told_and_left_aside(
    outside: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    outside.setenv(name, text)
    outside.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")

    told = Environment()

    assert told.wrong == {name: said}
    assert told == NOTHING.model_copy(update={"wrong": {name: said}, "credentials": Path("/run/credentials")})


def test_bytes_that_are_no_text_are_taken_as_they_are(outside: pytest.MonkeyPatch) -> None:
    for name in ("CITYGATE_CONFIG", "STATE_DIRECTORY", "CITYGATE__A", "CITYGATE_SECRET_A", "TERM", "NOTIFY_SOCKET"):
        outside.setenv(name, "/\udcff")

    told = Environment()

    assert not told.wrong
    assert told.config == told.state == Path("/\udcff")
    assert [*told.overrides.values(), *told.secret_texts.values()] == ["/\udcff"] * 2


def test_names_of_the_settings_themselves_are_no_variables(outside: pytest.MonkeyPatch) -> None:
    """A library that reads settings by their names would take them for its own, and some as JSON."""
    for name in Environment.model_fields:
        outside.setenv(name, "{")

    assert Environment() == NOTHING


def test_no_file_of_the_folder_is_read(outside: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CITYGATE_CONFIG=/elsewhere\n")
    outside.chdir(tmp_path)

    assert Environment() == NOTHING


def test_notes_are_where_systemd_says_else_in_the_users_state(outside: pytest.MonkeyPatch) -> None:
    outside.setenv("HOME", "/home/ada")
    assert Environment().noted_in == Path("/home/ada/.local/state/citygate")
    outside.setenv("XDG_STATE_HOME", "/ssd")
    assert Environment().noted_in == Path("/ssd/citygate")
    outside.setenv("STATE_DIRECTORY", "/var/lib/citygate")
    assert Environment().noted_in == Path("/var/lib/citygate")


def test_a_watchdog_that_nobody_can_feed_so_often_does_not_keep_the_box_busy(outside: pytest.MonkeyPatch) -> None:
    outside.setenv("WATCHDOG_USEC", "1")

    assert Environment().watchdog_every_s(1) == 0.1


def test_nobody_else_asks_the_environment_and_it_is_read_once_by_the_command() -> None:
    asking, reading = set(), set()
    for file in (file for package in ("gateway", "drivers") for file in (REPOSITORY / package).rglob("*.py")):
        name = str(file.relative_to(REPOSITORY))
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if any(word in text for word in (*ASKS, "Environment(")) else ():
            match node:
                case ast.Attribute(attr=asked) if asked in ASKS:
                    asking.add(name)
                case ast.ImportFrom(module="os" | "posix", names=names) if {its.name for its in names} & {*ASKS, "*"}:
                    asking.add(name)
                case ast.Call(func=ast.Name(id="Environment")):
                    reading.add(name)

    assert asking == {"gateway/environment.py"}
    assert reading == {"gateway/cli/outside.py"}


def test_the_page_lists_every_variable() -> None:
    fields = [field for field in Environment.model_fields.values() if field.description]
    rows = [f"| `{field.validation_alias}` | {field.description} |" for field in fields]

    page = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    table = page.partition("## From outside\n")[2].partition("\n## ")[0]
    assert [line for line in table.splitlines() if line.startswith("| `")] == rows


async def test_a_daemon_says_what_it_leaves_aside_and_runs(
    outside: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside.setenv("WATCHDOG_USEC", "9" * 400)
    outside.setenv("NOTIFY_SOCKET", "systemd")

    async with box(tmp_path) as its:
        await its.until(its.daemon.status)

    said = [line for line in capsys.readouterr().out.splitlines() if "variable_ignored" in line]
    assert [name in line for name, line in zip(("NOTIFY_SOCKET", "WATCHDOG_USEC"), said, strict=True)] == [True, True]


async def test_an_override_holds_at_start_at_a_reload_and_with_the_last_good_config(
    outside: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outside.setenv("CITYGATE__GATEWAY__NAME", "school roof")
    outside.setenv("STATE_DIRECTORY", str(tmp_path))
    async with box(tmp_path) as its:
        assert its.daemon.plan.config.gateway.name == "school roof"
        await its.reload(("unit_id: 1", "unit_id: 2"))
        assert its.daemon.plan.config.gateway.name == "school roof"
        await its.until(lambda: its.last_good.exists() and "unit_id: 2" in its.last_good.read_text())
    its.edit(("unit_id: 2", "unit_id: 300"))
    async with its.at_work():
        assert its.daemon.status()["config"]["using"] == "last good"
        assert its.daemon.plan.config.gateway.name == "school roof"


def test_an_override_holds_for_the_verbs(
    outside: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "citygate.yaml").write_text("version: 1\ngateway: {id: gw-1, city: milano}\nlinks: {}\n")
    outside.setenv("CITYGATE_CONFIG", str(tmp_path))
    outside.setenv("CITYGATE__HTTP__LISTN", "127.0.0.1:1")

    assert main(["check"]) == 3
    assert "environment CITYGATE__HTTP__LISTN: error: http.listn: unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "coloured"),
    [("NO_COLOR", "1", False), ("NO_COLOR", "", True), ("TERM", "dumb", False), ("TERM", "xterm", True)],
)
def test_colours_are_for_a_terminal_that_has_them(
    outside: pytest.MonkeyPatch, name: str, text: str, coloured: bool
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    outside.setenv(name, text)
    assert (colour("bad", "red", Terminal()) != "bad") is coloured
    assert colour("bad", "red", StringIO()) == "bad"
