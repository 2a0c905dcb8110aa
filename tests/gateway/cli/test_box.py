"""Where the command looks for the daemon: also with secrets in the file, fragments, and while the file is broken."""

from pathlib import Path

import pytest

from gateway.cli.box import buffer_path

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


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("CITYGATE__buffer__Path", "/env/b.db", "/env/b.db"),
        ("CITYGATE__BUFFER", "{path: /env/b.db}", "/env/b.db"),
        ("CITYGATE__BUFFER", "{max_size: 1 GB}", "/var/lib/citygate/buffer.db"),
        ("CITYGATE__BUFFER__PATH", "{path: /env/b.db}", "/data/b.db"),
        ("CITYGATE__BUFFER__PATH", "", "/data/b.db"),
        ("CITYGATE__HTTP__LISTEN", "", "/data/b.db"),
    ],
)
def test_a_variable_says_it_in_any_form_that_the_daemon_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, found: str
) -> None:
    (tmp_path / "citygate.yaml").write_text(HEAD + "buffer: {path: /data/b.db}\n")
    monkeypatch.setenv(name, text)
    assert buffer_path(tmp_path) == Path(found)
