"""Drivers by entry point: foreign, broken and doubled packages."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.registry import DriverUnavailable, Registry

DRIVER_CODE = """
from pathlib import Path
from gateway.sdk.config import LinkConfig
from gateway.sdk.driver import SDK_VERSION
from gateway.sdk.template import Template
class D:
 name, sdk_version, config_model, template_model, templates = "odd", SDK_VERSION, LinkConfig, Template, Path(".")
 async def run(self, config, context): ...
 def decode(self, template, frame, context): ...
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for packages made up by a test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("made_up"):
            del sys.modules[name]


def package(folder: Path, name: str, driver: str, code: str, module: str = "") -> None:
    """A distribution that offers one driver."""
    module = module or name
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[citygate.drivers]\n{driver} = {module}:DRIVER\n")
    (folder / f"{module}.py").write_text(code)
    importlib.invalidate_caches()


def test_our_own_drivers_are_on_offer_and_nothing_is_imported_for_the_list() -> None:
    loaded = {name for name in sys.modules if name.startswith("drivers.")}

    assert {"modbus", "serial"} <= set(Registry().names())
    assert {name for name in sys.modules if name.startswith("drivers.")} == loaded


def test_an_unknown_name_is_told_apart_from_a_broken_package() -> None:
    with pytest.raises(DriverUnavailable) as caught:
        Registry().driver("modbsu")

    assert caught.value.unknown
    assert "modbus" in caught.value.remedy


def test_a_package_that_fails_to_import_is_named_with_its_error(packages: Path) -> None:
    package(packages, "made_up_broken", "broken", "1 / 0")

    with pytest.raises(DriverUnavailable, match=r"made_up_broken 1.0 cannot be imported: ZeroDivisionError") as caught:
        Registry().driver("broken")

    assert not caught.value.unknown
    assert "install" in caught.value.remedy


def test_two_packages_that_claim_one_name_are_both_named(packages: Path) -> None:
    package(packages, "made_up_one", "twice", "DRIVER = 1")
    package(packages, "made_up_two", "twice", "DRIVER = 2")

    with pytest.raises(DriverUnavailable, match=r"made_up_(one|two) 1.0 and made_up_(one|two) 1.0") as caught:
        Registry().driver("twice")

    assert caught.value.remedy == "uninstall one of them"


def test_a_driver_for_another_sdk_is_refused(packages: Path) -> None:
    package(packages, "made_up_old", "old", "class DRIVER:\n    name = 'old'\n    sdk_version = 0\n")

    with pytest.raises(DriverUnavailable, match="SDK version 0"):
        Registry().driver("old")


def test_a_package_that_stands_on_the_path_twice_is_one(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (packages / folder).mkdir()
        package(packages / folder, "made_up_same", "same", DRIVER_CODE + "\nDRIVER = D()")
        monkeypatch.syspath_prepend(str(packages / folder))

    assert Registry().driver("same").name == "odd"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('no')", "Odd: no"),
        ("class Odd(Exception):\n def __str__(self): return 1 / 0\nraise Odd", "Odd"),
        ("DRIVER = None", "SDK version None"),
        (
            DRIVER_CODE + "\n @property\n def templates(self): raise KeyError('where')\nDRIVER = D()",
            "templates cannot be had",
        ),
        (DRIVER_CODE + "\n templates = 7\nDRIVER = D()", "templates cannot be had"),
        (DRIVER_CODE + "\n config_model = dict\nDRIVER = D()", "config_model is not"),
        (DRIVER_CODE + "\n run = None\nDRIVER = D()", "run is not"),
    ],
)
def test_what_is_no_driver_is_said_whatever_it_does(packages: Path, code: str, says: str) -> None:
    package(packages, "made_up_odd", "odd", code)

    with pytest.raises(DriverUnavailable, match=says):
        Registry().driver("odd")
