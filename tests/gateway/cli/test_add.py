"""add: checked, tested live, then written with comments kept; what does not answer or is wrong is not written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command
from tests.support.box import Process, eventually, free_port
from tests.support.fake_view import FakeView

HEAD = """\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {folder}/buffer.db}}  # here
links:
  plant:  # behind the wall
    driver: modbus
    host: 127.0.0.1
    port: {port}
    timeout: 300 ms
    devices:
      meter-1: {{template: eastron/sdm120, unit_id: 1, every: 1 s}}
"""
SECOND = "      meter-2: {template: eastron/sdm120, unit_id: 2, every: 1 s}\n"


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "box").mkdir()
    text = HEAD.format(folder=tmp_path / "box", port=free_port())
    (tmp_path / "box" / "citygate.yaml").write_text(text)
    (tmp_path / "played.yaml").write_text(text + SECOND)
    return tmp_path / "box"


@pytest.fixture
def played(box: Path) -> Iterator[Path]:
    """Both meters are there, only the first is in the config."""
    process = Process(box.parent / "simulate.log", "-m", "gateway", "simulate", "-c", str(box.parent / "played.yaml"))
    eventually("simulator", lambda: "playing" in process.text(), within_s=60)
    yield box
    process.end()


def text_of(box: Path) -> str:
    return (box / "citygate.yaml").read_text()


def test_a_device_that_answers_is_shown_and_written(citygate: Command, played: Path) -> None:
    before = text_of(played)
    ended = citygate("add", "plant", "meter-2", "eastron/sdm120", "unit_id=2", "every=1 s", "-c", str(played))
    assert ended.code == 0, ended.err
    assert "voltage" in ended.out
    assert text_of(played) == before + (
        "      meter-2:\n        template: eastron/sdm120\n        unit_id: 2\n        every: 1 s\n"
    )
    assert citygate("read", "meter-2", "-c", str(played)).code == 0


def test_a_device_that_does_not_answer_is_written_only_if_told_so(citygate: Command, played: Path) -> None:
    before = text_of(played)
    arguments = ("add", "plant", "meter-3", "eastron/sdm120", "unit_id=3", "-c", str(played))
    ended = citygate(*arguments)
    assert ended.code == 4
    assert "--save-anyway" in ended.err
    assert text_of(played) == before
    saved = citygate(*arguments, "--save-anyway", "--json").json
    assert (saved["tested"], saved["answered"]) == (True, False)
    assert "meter-3" in text_of(played)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("plant", "meter-2", "eastron/sdm120", "unit_id=300"), 3, "box/citygate.yaml:14:18: error"),
        (("plant", "meter-2", "eastron/sdm12", "unit_id=2"), 3, "did you mean eastron/sdm120?"),
        (("plant", "meter-1", "eastron/sdm120", "unit_id=2"), 3, "already"),
        (("attic", "meter-2", "eastron/sdm120", "unit_id=2"), 3, "no link attic"),
        (("plant", "meter-2", "eastron/sdm120", "unit_id"), 2, "is not KEY=VALUE"),
        (("plant", "meter-2", "eastron/sdm120", "location=[9.1"), 2, "is JSON"),
    ],
)
def test_what_is_wrong_is_explained_in_the_file_it_would_stand_in_and_not_written(
    citygate: Command, box: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    before = text_of(box)
    ended = citygate("add", *arguments, "-c", str(box))
    assert ended.code == code
    assert said in ended.err
    assert text_of(box) == before


def test_a_new_link_is_written_with_its_first_device(citygate: Command, box: Path) -> None:
    arguments = ("air", "air-1", "nova/sds011", "--link", "driver=serial", "--link", f"port={box}/none")
    assert citygate("add", *arguments, "-c", str(box)).code == 4
    assert citygate("add", *arguments, "--no-test", "-c", str(box)).code == 0
    assert text_of(box).endswith(
        f"  air:\n    driver: serial\n    port: {box}/none\n    devices:\n      air-1:\n        template: nova/sds011\n"
    )


def test_a_port_that_the_daemon_holds_is_not_tried(citygate: Command, daemon: FakeView, folder: Path) -> None:
    [name, *_] = daemon.status()["links"]
    with (folder / "citygate.yaml").open("a") as file:
        file.write(f"links: {{{name}: {{driver: serial, port: /dev/ttyAMA9, devices: {{}}}}}}\n")
    ended = citygate("add", name, "air-9", "nova/sds011", "location=[9.1,45.5]", "-c", str(folder))
    assert ended.code == 0, ended.err
    assert "untested" in ended.out
