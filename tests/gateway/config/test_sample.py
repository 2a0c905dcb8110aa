"""The config that `init` writes: clean as it is, complete when everything in it is switched on."""

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from gateway.config.known import Known
from gateway.config.sample import Found, commented, look_around, uncommented
from gateway.config.schema import file_schema, key_paths
from gateway.config.templates import template_names
from gateway.config.tree import Items, Map, Node, plain_value, read_tree
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.errors import Problem

FOUND = Found(("/dev/serial/by-id/usb-FTDI_A50285BI-if00-port0",), ("hci0",))


def every_driver() -> dict[str, Any]:
    registry = Registry()
    drivers = {name: registry.driver(name) for name in registry.names()}
    names = {name: dict.fromkeys(template_names(its.templates)) for name, its in drivers.items()}
    return file_schema(drivers, Known(names))


def read(tmp_path: Path, text: str) -> Map:
    file = tmp_path / "citygate.yaml"
    file.write_text(text)
    problems: list[Problem] = []
    tree = read_tree(file, problems)
    assert problems == []
    return tree


def paths(node: Node, schema_paths: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The key paths of a file, with `*` where the schema has any name."""
    found: set[tuple[str, ...]] = set()
    for key, entry in node.entries.items() if isinstance(node, Map) else ():
        here = (*path, key) if (*path, key) in schema_paths else (*path, "*")
        found |= {here} | paths(entry.node, schema_paths, here)
    return found


def plain(node: Node) -> Any:
    if isinstance(node, Map):
        return {key: plain(entry.node) for key, entry in node.entries.items()}
    return [plain(item) for item in node.items] if isinstance(node, Items) else plain_value(node)


def test_the_written_config_is_clean(tmp_path: Path) -> None:
    text = commented(every_driver(), gateway_id="gw-1", city="milano", found=FOUND)
    read(tmp_path, text)
    assert make_plan(tmp_path, Registry()).warnings == ()


def test_it_mentions_every_key_of_the_schema_and_each_with_a_legal_value(tmp_path: Path) -> None:
    schema = every_driver()
    tree = read(tmp_path, uncommented(commented(schema, gateway_id="gw-1", city="milano", found=FOUND), all_of_it=True))

    known = key_paths(schema)
    assert known - paths(tree, known) == set()
    faults = [
        (list(error.absolute_path), error.message[:200]) for error in Draft7Validator(schema).iter_errors(plain(tree))
    ]
    assert faults == []


@pytest.mark.parametrize("found", [FOUND, Found()])
def test_it_passes_check_with_every_example_switched_on(tmp_path: Path, found: Found) -> None:
    text = commented(
        every_driver(), gateway_id="gw-1", city="milano", found=found, location=[9.1, 45.5], buffer="/x/buffer.db"
    )
    read(tmp_path, uncommented(text))
    (tmp_path / "secrets").mkdir()
    for name in re.findall(r"!secret (\w+)  #", text):
        (tmp_path / "secrets" / name).write_text("0123456789abcdef" * 2)
        (tmp_path / "secrets" / name).chmod(0o600)
    plan = make_plan(tmp_path, Registry())
    assert set(plan.links) == {f"my-{driver}" for driver in Registry().names()}
    assert set(plan.devices) == {f"my-{driver}-device" for driver in Registry().names()}
    assert plan.warnings == ()


def test_each_part_passes_check_when_it_alone_is_switched_on(tmp_path: Path) -> None:
    text = commented(every_driver(), gateway_id="gw-1", city="milano", found=FOUND, location=[9.1, 45.5])
    parts = [part for part in re.split(r"\n\n(?=## )", text)[1:] if re.search(r"(?m)^#\w+:", part)]
    assert len(parts) > 4
    for part in parts:
        read(tmp_path, text.replace(part, uncommented(part)))
        make_plan(tmp_path, Registry(), with_secrets=False)


def test_what_is_given_is_switched_on_and_stands_there_once(tmp_path: Path) -> None:
    text = commented(
        every_driver(), gateway_id="gw-1", city="milano", found=FOUND, location=[9.1, 45.5], buffer="/x/buffer.db"
    )
    read(tmp_path, text)
    config = make_plan(tmp_path, Registry()).config
    assert (config.gateway.location, config.buffer.path) == ((9.1, 45.5), "/x/buffer.db")
    assert len(re.findall(r"(?m)^#? *location: ", text.partition("\nlinks")[0].partition("#links")[0])) == 1


def test_it_names_what_is_plugged_in_and_uses_it_in_the_examples() -> None:
    text = commented(every_driver(), gateway_id="gw-1", city="milano", found=FOUND)
    assert "## Found on this box: /dev/serial/by-id/usb-FTDI_A50285BI-if00-port0" in text
    assert "## Found on this box: hci0" in text
    assert "#    port: /dev/serial/by-id/usb-FTDI_A50285BI-if00-port0" in text


def test_looking_around_finds_stable_ports_and_adapters_and_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "dev/serial/by-id").mkdir(parents=True)
    (tmp_path / "dev/serial/by-id/usb-b").touch()
    (tmp_path / "dev/serial/by-id/usb-a").touch()
    (tmp_path / "dev/ttyAMA0").touch()
    (tmp_path / "dev/ttyUSB0").touch()
    (tmp_path / "sys/class/bluetooth/hci0").mkdir(parents=True)
    (tmp_path / "sys/class/bluetooth/hci0:64").mkdir()

    assert look_around(tmp_path) == Found(
        ("/dev/serial/by-id/usb-a", "/dev/serial/by-id/usb-b", "/dev/ttyAMA0"), ("hci0",)
    )
    assert look_around(tmp_path / "nothing") == Found()
