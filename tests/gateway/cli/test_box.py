"""Where the command looks for the daemon: also with secrets in the file, fragments, and while the file is broken."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import box
from gateway.cli.box import buffer_path, control_socket, log_place
from gateway.config.place import note_place
from gateway.environment import Environment
from gateway.sdk.errors import LinkError
from tests.support.fake_view import FakeView

HEAD = "version: 1\ngateway: {id: gw, city: milano}\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "buffer: {path: /data/b.db}\n",
        HEAD + "buffer:\n  commit_every: 5 s\n  path: /data/b.db  # on the disk\n",
        HEAD + "http: {token: !secret page}\nbuffer: {commit_every: 5 s, path: '/data/b.db'}\n",
        HEAD + "buffer:\n  path: /data/b.db\nlinks: {a: [}\n",
        HEAD + 'links: &x {a: *y}\nbuffer: {max_size: 1 GB, path: "/data/b.db"}\n',
        HEAD + "buffer:\n  max_size: 1 GB\n  path: /data/b.db\n\tbad tab\n",
    ],
)
def test_the_buffer_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "citygate.yaml").write_text(text)
    assert buffer_path(tmp_path) == Path("/data/b.db")
    assert buffer_path(tmp_path / "citygate.yaml") == Path("/data/b.db")


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        "- a list",
        "3",
        "buffer: 3",
        "buffer: [path]",
        "buffer:\n  max_size: 1 GB\nlinks: {path: /x}\n: [",
        "\x00",
    ],
)
def test_else_it_is_the_default(tmp_path: Path, text: str) -> None:
    (tmp_path / "citygate.yaml").write_text(text)
    assert buffer_path(tmp_path) == Path("/var/lib/citygate/buffer.db")
    assert buffer_path(tmp_path / "nowhere") == Path("/var/lib/citygate/buffer.db")


def test_a_fragment_and_the_environment_may_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "citygate.yaml").write_text(HEAD)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "disk.yaml").write_text("buffer: {path: /mnt/b.db}\n")
    assert buffer_path(tmp_path) == Path("/mnt/b.db")
    monkeypatch.setenv("CITYGATE__BUFFER__PATH", "/env/b.db")
    assert buffer_path(tmp_path) == Path("/env/b.db")


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose file names a/, and whose daemon last noted b/ for itself; there is a log in both, and in c/."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "citygate.yaml").write_text(HEAD + f"buffer: {{path: {tmp_path}/a/b.db}}\n")
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.db").touch()
    note_place(tmp_path, tmp_path / "b" / "b.db", Environment())
    return tmp_path


def listening(folder: Path, *, backlog: int = 9) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "control.sock"))
    server.listen(backlog)
    return server


def test_the_daemon_is_sought_where_it_noted_to_be_then_where_the_file_says(noted: Path) -> None:
    with listening(noted / "a"):
        assert control_socket(noted) == noted / "a" / "control.sock"
        with listening(noted / "b"):
            assert control_socket(noted) == noted / "b" / "control.sock"
        # a daemon that was killed leaves its socket behind
        assert control_socket(noted) == noted / "a" / "control.sock"
    assert control_socket(noted) == noted / "a" / "control.sock"


def test_a_daemon_that_has_no_time_is_there_all_the_same(noted: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(listening(noted / "b", backlog=0))
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(noted / "b" / "control.sock"))
        assert control_socket(noted) == noted / "b" / "control.sock"


def test_without_a_daemon_the_log_is_where_it_was_last_unless_this_shell_says_another(
    noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert log_place(noted) == noted / "b" / "b.db"
    monkeypatch.setenv("CITYGATE__BUFFER__PATH", f"{noted}/c/b.db")
    assert log_place(noted) == noted / "c" / "b.db"
    monkeypatch.setenv("CITYGATE__BUFFER__PATH", f"{noted}/none/b.db")
    assert log_place(noted) == noted / "b" / "b.db"
    (noted / "b" / "b.db").unlink()
    assert log_place(noted) == noted / "none" / "b.db"


async def test_a_wire_is_borrowed_again_and_again_while_it_is_needed_and_given_back(
    daemon: FakeView, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box, "LEND_S", 0.03)
    asked: list[Mapping[str, Any]] = []
    thrice = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def lend(given: Mapping[str, Any]) -> Any:
        asked.append(given)
        if len(asked) == 3:
            loop.call_soon_threadsafe(thrice.set)
        return {"link": "roof"}

    daemon.verbs = {"lend": lend}

    async def work(ends: Exception) -> None:
        async with box.borrowed(folder, {"port": "/dev/ttyS0"}):
            await thrice.wait()
            raise ends

    with pytest.raises(LinkError, match="no answer"):
        await work(LinkError("no answer"))
    assert {given["port"] for given in asked} == {"/dev/ttyS0"}
    assert all(given["seconds"] == 0.03 for given in asked[:-1])
    assert asked[-1]["seconds"] == 0


async def test_a_port_that_is_busy_says_why_the_daemon_was_not_asked(daemon: FakeView, folder: Path) -> None:
    async def work() -> None:
        async with box.borrowed(folder, {"port": "/dev/ttyS0"}):
            raise LinkError("port is taken")

    with pytest.raises(LinkError, match="port is taken; this daemon has no verb lend"):
        await work()


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("CITYGATE__buffer__Path", "/env/b.db", "/env/b.db"),
        ("CITYGATE__BUFFER", "{path: /env/b.db}", "/env/b.db"),
        ("CITYGATE__BUFFER", "{max_size: 1 GB}", "/var/lib/citygate/buffer.db"),
        ("CITYGATE__BUFFER__PATH", "{path: /env/b.db}", "/data/b.db"),
        ("CITYGATE__BUFFER__PATH", "", "/data/b.db"),
        ("CITYGATE__BUFFER__PATH", "null", "/var/lib/citygate/buffer.db"),
        ("CITYGATE__HTTP__LISTEN", "", "/data/b.db"),
    ],
)
def test_a_variable_says_it_in_any_form_that_the_daemon_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, found: str
) -> None:
    (tmp_path / "citygate.yaml").write_text(HEAD + "buffer: {path: /data/b.db}\n")
    monkeypatch.setenv(name, text)
    assert buffer_path(tmp_path) == Path(found)


def test_what_variables_add_take_away_and_rename_counts_for_who_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "citygate.yaml").write_text(
        HEAD + "links: {roof-1: {devices: {m-1: {}, m-2: {}}}}\nbrokers: {porto: {was: lisboa}, sul: {}, milano: {}}\n"
    )
    plain = box.names(tmp_path)
    told = {
        "BROKERS__SINTRA__URL": "http://a.example",
        "BROKERS__SUL": "null",
        "BROKERS__Milano__WAS": "roma",
        "LINKS__ROOF_1__DEVICES__M_2__UNIT_ID": "2",
        "LINKS__ROOF_1__DEVICES__M-3": "{was: m-0}",
        "LINKS__AIR": "{devices: {air-1: {}}}",
        "BUFFER__PATH": "x",
    }
    for name, text in told.items():
        monkeypatch.setenv(f"CITYGATE__{name}", text)

    assert plain == ({"porto": "lisboa", "sul": "", "milano": ""}, {"m-1": "", "m-2": ""})
    assert box.names(tmp_path) == (
        {"porto": "lisboa", "milano": "roma", "sintra": ""},
        {"m-1": "", "m-2": "", "m-3": "m-0", "air-1": ""},
    )
    monkeypatch.setenv("CITYGATE__LINKS", "{")
    for name in ("LINKS__AIR", "LINKS__ROOF_1__DEVICES__M_2__UNIT_ID", "LINKS__ROOF_1__DEVICES__M-3"):
        monkeypatch.delenv(f"CITYGATE__{name}")
    assert box.names(tmp_path) is None, "nobody knows who is gone"
