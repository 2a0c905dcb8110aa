"""add: checked, tested live, then written with comments kept; what does not answer or is wrong is not written."""

import contextlib
import os
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command
from tests.support.box import Process, eventually, free_port
from tests.support.fake_view import FakeView
from tests.support.modbus_slave import rtu

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


def test_a_device_goes_onto_the_link_of_a_base_that_lies_elsewhere(citygate: Command, box: Path) -> None:
    base = box.parent / "fleet" / "base.yaml"
    base.parent.mkdir()
    base.write_text(text_of(box).replace("id: gw-1, ", ""))
    before = base.read_text()
    (box / "citygate.yaml").write_text("base: ../fleet/base.yaml\ngateway: {id: gw-1}\n")
    device = ("plant", "meter-2", "eastron/sdm120", "unit_id=2", "every=1 s")
    options = ("--no-test", "-c", str(box))
    refused = citygate("add", *device, "report.voltag.on_change=1", *options)
    assert refused.code == 3
    assert f"{box}/citygate.yaml:10:18: error: links.plant.devices.meter-2.report.voltag" in refused.err
    assert f"{base}:3:1: warning: buffer" in refused.err, "each in its file, as the operator has it"
    ended = citygate("add", *device, *options)
    assert ended.code == 0, ended.err
    assert text_of(box).splitlines()[2:6] == ["links:", "  plant:", "    devices:", "      meter-2:"]
    assert base.read_text() == before
    assert list(citygate("check", "-c", str(box), "--json").json["devices"]) == ["meter-1", "meter-2"]


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


SERIAL = """\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {folder}/buffer.db}}
http: {{token: !secret token}}  # of the page
links:
  roof: {{driver: modbus, port: {port}, timeout: 50 ms, devices: {{{devices}}}}}
"""
OLD = "old: {template: eastron/sdm120, unit_id: 1, every: 1 s}"
Said = Callable[[bytes, bytes], list[bytes]]  # request, good reply -> what comes over the line


@contextlib.contextmanager
def line(said: Said) -> Iterator[str]:
    """A serial line with somebody at its other end; its port."""
    master, slave = os.openpty()
    tty.setraw(slave)
    ended = threading.Event()

    def answer() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                asked = os.read(master, 256)
                words = int.from_bytes(asked[4:6], "big")
                good = rtu(asked[0], bytes((asked[1], 2 * words)) + struct.pack(">f", 50.0) * (words // 2))
                for piece in said(asked, good):
                    os.write(master, piece)
                    time.sleep(0.02)  # as far apart as a second frame would be

    thread = threading.Thread(target=answer, name="line", daemon=True)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        ended.set()
        os.write(slave, bytes(8))
        thread.join(5)
        os.close(slave)
        os.close(master)


def on_serial(tmp_path: Path, port: str, devices: str = "") -> Path:
    (tmp_path / "citygate.yaml").write_text(SERIAL.format(folder=tmp_path, port=port, devices=devices))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("0123456789abcdef")
    (tmp_path / "secrets" / "token").chmod(0o600)
    return tmp_path


NOISE = b"\x80\xff\x00\x03\xe0" * 3


@pytest.mark.parametrize(
    ("said", "devices", "words", "remedy"),
    [
        (lambda asked, good: [], "", "all units are silent", "A and B swapped"),
        (lambda asked, good: [NOISE], "", "noise instead of answers", "baud rate"),
        (lambda asked, good: [asked], "", "our own requests come back (echo), and nothing else", "set echo: true"),
        (lambda asked, good: [good, good], "", "two units answer as 2", "another unit id"),
        (
            lambda asked, good: [good if asked[0] == 1 else NOISE],
            OLD,
            "its answers are damaged",
            "two units with id 2?",
        ),
        (lambda asked, good: [good] * (asked[0] == 1), OLD, "it is silent while others answer", "is its unit id 2"),
    ],
    ids=["silence", "noise", "echo", "two of one id", "collision", "silent alone"],
)
def test_what_is_wrong_on_the_line_is_told_in_two_lines_and_nothing_is_written(
    citygate: Command, tmp_path: Path, said: Said, devices: str, words: str, remedy: str
) -> None:
    with line(said) as port:
        box = on_serial(tmp_path, port, devices)
        before = (box / "citygate.yaml").read_bytes()
        ended = citygate("add", "roof", "meter-2", "eastron/sdm120", "unit_id=2", "-c", str(box))
    assert ended.code in (1, 4)
    about = [its for its in ended.err.splitlines() if "warning" not in its and "/dev/pts" not in its]
    wrong = next(number for number, its in enumerate(about) if its.startswith("meter-2: "))
    assert words in about[wrong]
    assert remedy in about[wrong + 1]
    assert "--save-anyway" in about[wrong + 2]
    assert "timeout" not in ended.out
    assert (box / "citygate.yaml").read_bytes() == before


def test_an_echo_beside_good_answers_is_told_and_the_device_written(citygate: Command, tmp_path: Path) -> None:
    with line(lambda asked, good: [asked, good]) as port:
        box = on_serial(tmp_path, port)
        ended = citygate("add", "roof", "meter-2", "eastron/sdm120", "unit_id=2", "-c", str(box))
    assert ended.code == 0
    assert "set echo: true" in ended.err
    assert "devices: {meter-2: {template: eastron/sdm120, unit_id: 2}}" in (box / "citygate.yaml").read_text()


def test_it_warns_as_check_does_of_what_is_new(citygate: Command, tmp_path: Path) -> None:
    box = on_serial(tmp_path, "/dev/ttyUSB0", OLD)
    new = ("air", "air-1", "nova/sds011", "--link", "port=/dev/ttyUSB1", "--no-test", "-c", str(box))
    ended = citygate("add", *new)
    assert ended.code == 0
    assert f"{box}/citygate.yaml:" in ended.err
    assert "links.air.port: /dev/ttyUSB1 may be another adapter" in ended.err
    assert "ttyUSB0" not in ended.err
    assert "2 warnings of what was there before" in ended.err


def test_what_is_missing_is_told_in_the_words_of_the_command(citygate: Command, box: Path) -> None:
    before = text_of(box)
    ended = citygate("add", "plant", "meter-2", "eastron/sdm120", "-c", str(box))
    assert ended.code == 3
    assert "in this command: unit_id=…" in ended.err
    ended = citygate("add", "air", "air-1", "nova/sds011", "--link", "driver=serial", "-c", str(box))
    assert ended.code == 3
    assert "in this command: --link port=…" in ended.err
    assert text_of(box) == before


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """Somebody at the terminal who types this."""

    @contextlib.contextmanager
    def types(text: str) -> Iterator[None]:
        master, slave = os.openpty()
        os.write(master, text.encode())
        with open(slave) as terminal, monkeypatch.context() as patch:
            patch.setattr("sys.stdin", terminal)
            yield
        os.close(master)

    return types


def test_a_person_is_asked_for_what_is_missing(
    citygate: Command, box: Path, person: Callable[[str], AbstractContextManager[None]]
) -> None:
    with person("3\n"):
        ended = citygate("add", "plant", "meter-3", "eastron/sdm120", "--no-test", "-c", str(box))
    assert ended.code == 0, ended.err
    assert "unit_id (address on the line" in ended.err
    assert text_of(box).endswith("      meter-3:\n        template: eastron/sdm120\n        unit_id: 3\n")
    before = text_of(box)
    with person("\n"):
        assert citygate("add", "air", "air-1", "nova/sds011", "--no-test", "-c", str(box)).code == 2
    assert text_of(box) == before
    with person(f"{box}/none\n"):
        assert citygate("add", "air", "air-1", "nova/sds011", "--no-test", "-c", str(box)).code == 0
    assert f"  air:\n    driver: serial\n    port: {box}/none\n" in text_of(box)


def test_the_first_device_of_an_empty_box_is_one_command(citygate: Command, tmp_path: Path) -> None:
    box = tmp_path / "new"
    command = ("add", "air", "air-1", "nova/sds011", "--link", f"port={tmp_path}/none", "-c", str(box))
    assert citygate(*command, "--location", "45.5,9.1").code == 4
    assert not box.exists()  # it did not answer: nothing is left behind
    assert citygate(*command, "--no-test").code == 3  # nobody said where it stands
    assert not box.exists()
    assert citygate(*command, "--no-test", "--location", "45.5,9.1").code == 0
    checked = citygate("check", "-c", str(box), "--json").json
    assert (checked["problems"], list(checked["devices"])) == ([], ["air-1"])
    assert f"  path: {box}/buffer.db" in text_of(box)
    assert (box / "citygate.schema.json").exists()


def test_what_is_wrong_is_never_told_as_of_the_copy_that_was_tried(citygate: Command, box: Path) -> None:
    new = ("add", "plant", "meter-2", "eastron/sdm120", "unit_id=2", "--no-test", "-c", str(box))
    ended = citygate(*new, "--link", "baud_rate=9600")
    assert (ended.code, f"its keys are changed in {box}/citygate.yaml" in ended.err) == (3, True)
    (box / "citygate.yaml").write_text("\ufeff" + text_of(box))
    ended = citygate(*new)
    assert (ended.code, f"{box}/citygate.yaml:1:1: error" in ended.err) == (3, True)


def test_a_secret_that_this_person_has_not_is_no_hindrance(citygate: Command, box: Path) -> None:
    broker = 'brokers: {milano: {url: "http://127.0.0.1:9", auth: {bearer: !secret milano}}}\n'
    (box / "citygate.yaml").write_text(broker + text_of(box))
    ended = citygate("add", "plant", "meter-2", "eastron/sdm120", "unit_id=2", "--no-test", "-c", str(box))
    assert ended.code == 0, ended.err
    assert "of what was there before" in ended.err
    assert "meter-2" in text_of(box)


@pytest.mark.parametrize("verb", ["add", "init"])
def test_a_link_to_a_place_that_is_away_stays(citygate: Command, tmp_path: Path, verb: str) -> None:
    file = tmp_path / "citygate.yaml"
    file.symlink_to(tmp_path / "not-mounted" / "box.yaml")
    device = ("air", "air-1", "nova/sds011", "--link", "port=/dev/ttyAMA0", "--no-test")
    ended = citygate(verb, *(device if verb == "add" else ()), "--location", "45.5,9.1", "-c", str(tmp_path))
    assert (ended.code, f"{file} " in ended.err) == (1, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["citygate.yaml"]
    assert file.is_symlink()
