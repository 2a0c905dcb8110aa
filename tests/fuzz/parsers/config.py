"""The operator's file: any bytes become a checked config or problems with a place, and what is a token is shown in none of them."""

import functools
import io
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from gateway.config.explain import as_json, text
from gateway.config.hiding import hide, shown_lines
from gateway.config.loader import load
from gateway.config.model import Config
from gateway.config.secrets import without_secrets
from gateway.config.tree import read_tree
from gateway.plan import find_driver, make_plan
from gateway.registry import Registry
from gateway.sdk.errors import ConfigError, Problem
from tests.fuzz.runner import Parser, mutate_bytes

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJndyJ9.c2lnbmF0dXJl"
HEAD = "version: 1\ngateway: {id: gw-1, city: milano, location: [9.159, 45.503]}\n"
BROKER = "brokers:\n  milano:\n    url: https://b.example\n"
TEXTS = (
    HEAD
    + "links:\n  roof:\n    driver: modbus\n    port: /dev/ttyAMA0\n    devices:\n"
    + "      m: {template: eastron/sdm120, unit_id: 1, every: 10 s, report: {voltage: {on_change: 0.5}}}\n",
    HEAD
    + "links:\n  lora:\n    driver: chirpstack\n    url: mqtt://127.0.0.1\n    client_id: roof\n"
    + f"    password: {TOKEN}\n    devices:\n      b: {{template: elsys/ers-co2, dev_eui: 24e124713d123456}}\n",
    HEAD + BROKER + f"    auth: {{bearer: {TOKEN}}}\n    send: ['*']\nbuffer: {{max_size: 1 GB, max_age: 90 d}}\n",
    HEAD + BROKER + f'    auth: {{header: {{name: X-A, value: "{TOKEN}"}}}}\n    rate: 500/s\nx-a: &a {{b: [1, .5]}}\nx-c: *a\n',
    HEAD + BROKER + "    use: cities/milano\n    auth:\n      oauth2:\n        token_url: https://idm.example/t\n"
    + f"        client_id: gw\n        client_secret: |\n          {TOKEN}\n",
    HEAD + f"x-all: &all {{bearer: {TOKEN}}}\n{BROKER}    auth:\n      <<: *all\n      baerer: {TOKEN}\n# {TOKEN}\n",
    HEAD + f"http:\n  listen: 127.0.0.1:8580\n  token: !secret {TOKEN}\n{BROKER}    from: now\n",
)  # fmt: skip
PIECES = (
    "&a ", "*a", "*all", "!secret ", "!!int ", "!!binary |\n", "<<: ", "<<: *all\n", "|\n", ">-\n  ", "? ", "- ", "{", "}", "[", "]", ": ", ",",
    "---\n", "...\n", "%YAML 1.1\n", "\t", "#", "'", '"', "\\", ".nan", ".inf", "1_000", "0o17", "0x1F", "1e999", "12:30", "NO", "null", "~",
    "-1", "99999999999999999999", "9" * 5000, "10 s", "1 GB", "\x00", "\x85", "\u2028", "\ufeff", "🙂", "\\ud800", '"\\uD800"', "a" * 70, "''",
    "x-", "links", "brokers", "template", "null:", "{a: {a: {a: {a: ", "[" * 40, "? [1]\n: 2\n", "usb:0403:6001", "http://u:p@h", "/dev/../x", "cities/..",
)  # fmt: skip


def mutate(random: Random, seed: bytes) -> bytes:
    """Lines moved, repeated, indented, keys and values exchanged; pieces of YAML put in; now and then any bytes."""
    if random.random() < 0.15:
        return mutate_bytes(random, seed)
    lines = seed.decode().splitlines(keepends=True)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines))
        line = lines[at]
        match random.randrange(7):
            case 0:
                del lines[at : at + random.randint(0, 1)]
            case 1:
                lines.insert(random.randint(0, len(lines)), line)
            case 2:
                lines[at] = " " * random.randint(1, 4) + line
            case 3:
                lines[at] = line[random.randint(0, 4) :]
            case 4:
                other = random.choice(random.choice(TEXTS).splitlines(keepends=True))
                lines[at] = line.partition(":")[0] + ":" + other.partition(":")[2]
            case _:
                column = random.randint(0, len(line))
                lines[at] = line[:column] + random.choice(PIECES) + line[column + random.randint(0, 3) :]
        if not lines:
            break
    return "".join(lines).encode("utf-8", "surrogatepass")


class _InMemory:
    """As much of a file as `read_tree` wants."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)

    def __str__(self) -> str:
        return "citygate.yaml"


def _tree(case: bytes) -> Any:
    problems: list[Problem] = []
    tree: Any = read_tree(_InMemory(case), problems)  # type: ignore[arg-type]
    hide([(tree, Config)])
    _shown(case, [without_secrets(problem, ()) for problem in problems], shown_lines(tree.place.source))
    return tree if not problems else _refused(problems)


@functools.cache
def _beside() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    folder = tempfile.TemporaryDirectory()
    return Path(folder.name) / "citygate.yaml", folder


REGISTRY = Registry()


def _whole(case: bytes) -> Any:
    """Read, hidden, checked with the drivers; one case in eight compiled as well."""
    file = _beside()[0]
    file.write_bytes(case)
    loaded = load(file, lambda name: find_driver(REGISTRY, name))
    shown = [line for source in loaded.sources.values() for line in shown_lines(source)]
    _shown(case, list(loaded.problems), shown)
    if sum(case) % 8:
        return loaded if not any(its.severity == "error" for its in loaded.problems) else _refused(loaded.problems)
    try:
        return make_plan(file, REGISTRY)
    except ConfigError as error:
        _shown(case, list(error.problems), [])
        raise


def _refused(problems: Any) -> Any:
    raise ConfigError(tuple(problems))


def _shown(case: bytes, problems: list[Problem], lines: list[str]) -> None:
    """What is said can be said (on a terminal, as JSON), has a place in the file, and has no token in it."""
    said = [*lines]
    for problem in problems:
        said += [text(problem), *(its for its in as_json(problem).values() if isinstance(its, str))]
        assert problem.line <= len(case.decode("utf-8", "replace").splitlines()) + 1
    "\n".join(said).encode()
    assert not any(TOKEN in line for line in said)


PARSERS = {
    "config tree": Parser(tuple(map(str.encode, TEXTS)), _tree, (ConfigError,), mutate),
    "config": Parser(
        tuple(map(str.encode, (TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[4].replace("    use: cities/milano\n", "")))), _whole, (ConfigError,), mutate
    ),
}  # fmt: skip
