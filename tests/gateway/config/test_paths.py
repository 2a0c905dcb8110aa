"""Paths of the operator's file: relative ones begin at the file's folder, whoever reads it from wherever; `~` is a home."""

from pathlib import Path

import pytest

from gateway.cli import box
from gateway.environment import Environment
from gateway.http.shapes import socket_path
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.errors import ConfigError

CONFIG = """\
version: 1
gateway: {{id: gw, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {path}}}
links:
  lora: {{driver: chirpstack, url: "mqtts://127.0.0.1:1", ca_file: tls/ca.pem, devices: {{}}}}
  plant: {{driver: modbus, host: 127.0.0.1, port: 802, tls: {{ca: ca.pem, certificate: box.pem}}, devices: {{m: {{template: eastron/sdm120, unit_id: 1, every: 10 s}}}}}}
brokers:
  porto: {{url: "https://porto.example", tls: {{ca: tls/ca.pem, certificate: ../own.pem, key: ~/own.key}}}}
  milano: {{url: "https://milano.example", tls: {{ca: /etc/ca.pem}}}}
"""


@pytest.mark.parametrize("given", ["absolute", "relative", "folder", "dot"])
def test_relative_paths_begin_at_the_folder_of_the_file_wherever_the_command_stands(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, folder, elsewhere = tmp_path / "home", tmp_path / "box", tmp_path / "elsewhere"
    for each in (home, folder / "conf.d", elsewhere):
        each.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (folder / "citygate.yaml").write_text(CONFIG.format(path="state/buffer.db"))
    monkeypatch.chdir(folder if given == "dot" else elsewhere)
    path = {
        "absolute": folder / "citygate.yaml",
        "relative": Path("../box/citygate.yaml"),
        "folder": Path("../box"),
        "dot": Path(),
    }[given]
    config = make_plan(path, Registry()).config
    assert config.buffer.path == str(folder / "state" / "buffer.db") == str(box.buffer_path(path))
    assert box.control_socket(path) == socket_path(Path(config.buffer.path))
    tls = config.brokers["porto"].tls
    assert (tls.ca, tls.certificate, tls.key) == (
        str(folder / "tls/ca.pem"),
        str(tmp_path / "own.pem"),
        str(home / "own.key"),
    )
    assert config.brokers["milano"].tls.ca == "/etc/ca.pem"
    assert config.links["lora"].ca_file == str(folder / "tls/ca.pem")  # type: ignore[attr-defined]
    of_plant = config.links["plant"].tls  # type: ignore[attr-defined]
    assert (of_plant.ca, of_plant.certificate, of_plant.key) == (str(folder / "ca.pem"), str(folder / "box.pem"), "")


def test_a_home_that_nobody_has_is_an_error_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "citygate.yaml"
    file.write_text(CONFIG.format(path="~nobody-of-that-name/buffer.db"))
    with pytest.raises(ConfigError) as found:
        make_plan(file, Registry())
    [problem] = found.value.problems
    assert (problem.line, problem.path) == (3, ("buffer", "path"))
    assert "no home folder is known for ~nobody-of-that-name" in problem.message


def test_the_variable_that_overrides_it_begins_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "citygate.yaml"
    file.write_text(CONFIG.format(path="/elsewhere/buffer.db"))
    monkeypatch.setenv("CITYGATE__BUFFER__PATH", "mine.db")
    assert (
        make_plan(file, Registry(), environment=Environment()).config.buffer.path
        == str(tmp_path / "mine.db")
        == str(box.buffer_path(file))
    )
