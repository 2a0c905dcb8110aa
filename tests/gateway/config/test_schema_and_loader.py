"""Each key with each kind of value: what the loader refuses is underlined by the schema, and nothing else is."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, ValidationError

from gateway.config.known import Known
from gateway.config.schema import file_schema, key_paths
from gateway.config.templates import Templates
from gateway.config.tree import read_tree
from gateway.plan import make_plan
from gateway.sdk.errors import ConfigError, Problem
from tests.gateway.config.test_schema import plain
from tests.support.bench_driver import TEMPLATES, BenchDriver, BenchRegistry

Path_ = tuple[str, ...]
VALUES = (
    "", "null", "true", "NO", "0", "1", "-1", "1.5", "1.0", "012", "0x1F", "1_000", "12:30", ".nan", ".inf", "1e400", "99999999999999999999",
    "abc", "a b", "é", '""', "10 s", "10s", "10 S", "0 s", "1 GB", "500/s", "2026-05-01", "2026-05-01T00:00:00Z", "https://b.example",
    "https://b.example/x?y=1", "mqtt://b.example", "127.0.0.1:8580", "oldest", "[]", "[1, 2]", "[9.1, 45.5]", "[a]", "{}", "{a: 1}",
    "0123456789abcdef", "pm10", "acme/air", "cities/milano",
)  # fmt: skip
KINDS = ("", "null", "true", "1", "abc", "[]", "[a]", "{zz: 1}")  # what may stand where a map belongs
NAMES = {
    "links": "l",
    "devices": "d",
    "brokers": "b",
    "calibrate": "pm10",
    "report": "pm10",
    "attributes": "pm10",
    "sub": "s",
    "more": "m",
}
DEVICE = ("links", "l", "devices", "d")
FIXED = {("version",): "1", ("links", "l", "driver"): "bench", (*DEVICE, "template"): "acme/air"}
SECRETS = {"password", "bearer", "value", "client_secret", "token", "key"}  # what is said of them is hidden
NAMING = {"point", "longitude", "latitude", "use", "base"}  # tried in tests/gateway/cli/test_editor.py

# what a schema cannot say: of a text that looks like a number its form, of an endless number anything, of a text with a unit its bounds
PATTERNED = {"id", "city", "was", "tenant", "dev_eui", "header", "name"}
NUMBERS = {"true", "0", "1", "-1", "1.5", "1.0", "0x1F", "99999999999999999999"}
ENDLESS = {".nan", ".inf", "1e400"}
BOUNDED = {("timeout", "0 s"), ("every", "0 s"), ("max_age", "0 s"), ("max_age", "10 s"), ("max_age", "10s")}
FLAGS = {"enabled", "verify"}


def bench_schema() -> dict[str, Any]:
    driver, found = BenchDriver(), Templates([TEMPLATES], [])
    templates = {name: found.load(driver, name).template for name in found.names(driver)}
    return file_schema({"bench": driver}, Known({"bench": templates}))


SCHEMA = bench_schema()
VALIDATOR = Draft7Validator(SCHEMA, format_checker=Draft7Validator.FORMAT_CHECKER)
KEYS = sorted(
    tuple(NAMES[path[n - 1]] if part == "*" else part for n, part in enumerate(path)) for path in key_paths(SCHEMA)
)
MAPS = [path for path in KEYS if any(other[: len(path)] == path and other != path for other in KEYS)]
VALUED = [path for path in KEYS if path not in MAPS and path not in FIXED and path[-1] not in SECRETS | NAMING]


def cannot_be_said(path: Path_, value: str) -> bool:
    """Where the schema is more lenient than the loader."""
    taken_away = path[0] == "brokers" and value in ("", "null")  # null takes a key of the city profile away
    as_number = path[-1] in PATTERNED and value in NUMBERS
    return value in ENDLESS or as_number or taken_away or (path[-1], value) in BOUNDED


def text(given: dict[Path_, str]) -> str:
    tree: dict[str, Any] = {}
    for path, value in {**given, **FIXED}.items():
        at = tree
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = value
    return "\n".join(_lines(tree, 0)) + "\n"


def _lines(tree: dict[str, Any], indent: int) -> Iterator[str]:
    for key, value in tree.items():
        yield f"{' ' * indent}{key}:" + ("" if isinstance(value, dict) else f" {value}")
        if isinstance(value, dict):
            yield from _lines(value, indent + 2)


def loader_says(folder: Path, given: dict[Path_, str]) -> set[Path_]:
    """Paths of the problems."""
    (folder / "citygate.yaml").write_text(text(given))
    problems: tuple[Problem, ...] = ()
    try:
        make_plan(folder, BenchRegistry())
    except ConfigError as error:
        problems = error.problems
    return {tuple(map(str, problem.path)) for problem in problems if problem.severity == "error"}


def schema_says(folder: Path) -> set[Path_]:
    """Paths of what would be underlined in the same file."""
    tree = plain(read_tree(folder / "citygate.yaml", []))
    errors = itertools.chain.from_iterable(map(_all, VALIDATOR.iter_errors(tree)))
    return {tuple(map(str, error.absolute_path)) for error in errors}


def _all(error: ValidationError) -> Iterator[ValidationError]:
    yield error
    for each in error.context or ():
        yield from _all(each)


def at_or_below(found: set[Path_], path: Path_) -> bool:
    return any(its[: len(path)] == path for its in found)


def differences(folder: Path, given: dict[Path_, str]) -> Iterable[tuple[str, Path_, str]]:
    loader, schema = loader_says(folder, given), schema_says(folder)
    for path, value in given.items():
        refused, underlined = at_or_below(loader, path), at_or_below(schema, path)
        if refused and not underlined and not cannot_be_said(path, value):
            yield "not underlined", path, value
        if underlined and not refused and not (path[-1] in FLAGS and value in ("0", "1", "1.0")):
            yield "a false alarm", path, value


def test_each_key_with_each_value(tmp_path: Path) -> None:
    assert len(VALUED) > 50
    found = [
        difference
        for turn in range(len(VALUES))
        for difference in differences(
            tmp_path, {path: VALUES[(turn + n) % len(VALUES)] for n, path in enumerate(VALUED)}
        )
    ]
    assert found == []


@pytest.mark.parametrize("depth", sorted({len(path) for path in MAPS}))
def test_each_map_as_something_else(tmp_path: Path, depth: int) -> None:
    maps = [path for path in MAPS if len(path) == depth and not any(fixed[:depth] == path for fixed in FIXED)]
    for turn in range(len(KINDS) if maps else 0):
        given = {path: KINDS[(turn + n) % len(KINDS)] for n, path in enumerate(maps)}
        assert list(differences(tmp_path, given)) == []


def test_an_unknown_key_in_each_map(tmp_path: Path) -> None:
    named = {"calibrate", "report", "attributes", "sub", "more", "links", "devices", "brokers", "translate", "static"}
    given = {(*path, "zz"): "1" for path in [(), *MAPS] if not path or path[-1] not in named}
    loader, schema = loader_says(tmp_path, given), schema_says(tmp_path)
    assert {path for path in given if path not in loader} == set()
    assert {path[:-1] for path in given} - schema == set()


def test_each_key_that_must_be_given(tmp_path: Path) -> None:
    """One value in each map, so that it is there, and nothing of what it needs."""
    given = {("gateway", "name"): "x", ("brokers", "b", "linger"): "1 s", ("brokers", "b", "auth", "basic"): "{}"}
    assert {path[:-1] for path in loader_says(tmp_path, given)} - schema_says(tmp_path) == set()
    assert schema_says(tmp_path) == {("gateway",), ("brokers", "b"), ("brokers", "b", "auth", "basic")}
