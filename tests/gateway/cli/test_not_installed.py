"""A library that is not installed is named with the command that installs it, by every verb that would need it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.box import free_port

BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
CONFIG = """\
version: 1
gateway: {{id: gw, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {folder}/buffer.db}}
links:
  air: {{driver: serial, port: /dev/ttyAMA9, devices: {{a-1: {{template: nova/sds011}}}}}}
  tank: {{driver: chirpstack, url: "mqtt://127.0.0.1:{port}", devices: {{t-1: {{template: dragino/ldds75, dev_eui: "0123456789abcdef", container: {{empty: 2 m, full: 1 m}}}}}}}}
  meter: {{driver: modbus, host: 127.0.0.1, port: {port}, devices: {{m-1: {{template: eastron/sdm120, unit_id: 1}}}}}}
"""
SERIAL = "pip install 'citygate[serial]'"
LORA = "pip install 'citygate[lora]'"


def citygate(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on a box where this module cannot be imported."""
    (folder / "without").mkdir()
    (folder / "without" / "sitecustomize.py").write_text(BLOCK.format(module=module))
    path = os.pathsep.join((str(folder / "without"), str(Path(__file__).parents[3])))
    return subprocess.run(
        (sys.executable, "-m", "gateway", *arguments),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "citygate.yaml").write_text(CONFIG.format(folder=tmp_path, port=free_port()))
    return tmp_path


@pytest.mark.parametrize(
    ("module", "link", "remedy"), [("serial", "air", SERIAL), ("paho", "tank", LORA), ("cryptography", "tank", LORA)]
)
def test_check_has_it_as_an_error_of_the_link_that_needs_it(box: Path, module: str, link: str, remedy: str) -> None:
    ended = citygate(box, module, "check", "-c", str(box))
    assert ended.returncode == 3, ended.stdout
    assert f"error: links.{link}.driver: " in ended.stderr
    assert remedy in ended.stderr
    assert ended.stderr.count("[driver-unavailable]") == 1  # the others can work


def test_doctor_names_it(box: Path) -> None:
    ended = citygate(box, "serial", "doctor", "-c", str(box))
    [number] = [n for n, text in enumerate(ended.stdout.splitlines()) if text.startswith("✗ air ")]
    assert "pyserial, which serial lines need, is not installed" in ended.stdout.splitlines()[number]
    assert SERIAL in ended.stdout.splitlines()[number + 1]


@pytest.mark.parametrize(
    ("module", "arguments", "remedy"),
    [
        ("serial", ("scan", "modbus", "/dev/null", "--units", "1"), SERIAL),
        ("serial", ("demo", "--for", "1s"), SERIAL),
        ("paho", ("scan", "lora", "mqtt://127.0.0.1:1", "--for", "1s"), LORA),
    ],
)
def test_scan_and_demo_end_with_it(tmp_path: Path, module: str, arguments: tuple[str, ...], remedy: str) -> None:
    ended = citygate(tmp_path, module, *arguments)
    assert ended.returncode in (1, 4)
    assert "is not installed" in ended.stderr
    assert remedy in ended.stderr
    assert "Traceback" not in ended.stderr
