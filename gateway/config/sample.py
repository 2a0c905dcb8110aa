"""The commented config that `init` writes: made from the schema, so that it knows every key there is on this box."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config.edit import in_yaml
from gateway.config.facts import flat

Schema = Mapping[str, Any]

SCHEMA_FILE = "citygate.schema.json"
_EXAMPLES: Mapping[str, Any] = {
    "location": [9.159, 45.503],
    "baud_rate": 9600,
    "host": "192.0.2.17",
    "contexts": "https://models.example",
    "dev_addr": "01020304",
    "full": "300 mm",
    "unit_id": 1,
}
_TEMPLATES = ("eastron/sdm120", "nova/sds011", "dragino/lse01")  # which need nothing more of their user
_OWN = {"was", "report", "calibrate", "entity"}  # they name what no example can know
_INSTEAD = {"host": "port", "tls": "port", "bearer": "basic", "header": "basic", "oauth2": "basic"}
MAX_LINE = 130
_HEAD = f"""\
# yaml-language-server: $schema=./{SCHEMA_FILE}
##
## The config of this box. `citygate check` finds every mistake in it, `citygate run` runs it.
## Lines with one # are settings as they are anyway, or examples: remove the # to use them.
## Lines with ## are words, or settings that need names of yours or stand instead of others.
## Parts of it may live in files of their own in conf.d/; maps are merged by name.
## Secrets stay out of it: `!secret NAME` takes the text of the file secrets/NAME.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What is plugged into this box.

    Attributes:
        ports: paths of serial ports that stay the same after a replug.
        adapters: Bluetooth adapters, e.g. hci0.
    """

    ports: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


def look_around(root: Path = Path("/")) -> Found:
    """Serial ports and Bluetooth adapters of this box; nothing is opened."""
    by_id = sorted(str(path) for path in _listed(root / "dev/serial/by-id"))
    uarts = sorted(str(path) for pattern in ("ttyAMA[0-9]*", "ttySC[0-9]*") for path in (root / "dev").glob(pattern))
    adapters = sorted(
        path.name for path in _listed(root / "sys/class/bluetooth") if re.fullmatch(r"hci[0-9]+", path.name)
    )
    strip = len(str(root).rstrip("/"))
    return Found(tuple(path[strip:] for path in (*by_id, *uarts)), tuple(adapters))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def commented(
    schema: Schema,
    *,
    gateway_id: str,
    city: str,
    found: Found,
    location: Sequence[float] | None = None,
    buffer: str = "",
) -> str:
    """The text of a config for this box.

    Args:
        schema: of the whole file, see `schema.file_schema`.
        gateway_id, city: the two values that have no default.
        location: longitude and latitude, when they are known.
        buffer: where readings are kept, when that is not the place of a service.
    """
    writer = _Writer(schema, found)
    given: dict[str, Mapping[str, Any]] = {
        "gateway": {"id": gateway_id, "city": city, "location": location},
        "buffer": {"path": buffer},
    }
    base = f"#base: []  # {schema['properties']['base']['description']}"
    lines = [*_HEAD.splitlines(), "version: 1", base, "", "## This box."]
    lines += [
        "gateway:",
        *writer.part_given("gateway", given["gateway"]),
    ]
    for part in schema["properties"]:
        if part not in ("version", "base", "gateway", "links", "brokers"):
            lines += ["", *writer.part(part, given.get(part, {}))]
    lines += ["", *writer.links(), "", *writer.brokers()]
    return "\n".join(lines) + "\n"


def example(schema: Schema, key: str, child: Schema) -> str:
    """A value that this key can have, as one writes it."""
    return in_yaml(_Writer(schema, Found()).example(key, child))


def uncommented(text: str, *, all_of_it: bool = False) -> str:
    """The text with every setting switched on that is commented out; `all_of_it`: also where there is a choice."""
    text = re.sub(r"(?m)^##(?= {2,}\w+:)", "", text) if all_of_it else text
    return re.sub(r"(?m)^#(?!#| yaml-language-server)", "", text)


_NAMES = {"calibrate": "POINT", "report": "POINT", "attributes": "ATTRIBUTE"}
_AGAIN = {"more": "{}", "previous": "[]"}  # what is in them has the same keys again
_ORDER = {"driver": -2, "template": -1, "location": 1, "report": 2, "calibrate": 3, "entity": 4, "devices": 5}
_NO_PORT = "/dev/serial/by-id/usb-NAME"


class _Writer:
    """Lines of YAML from a schema."""

    def __init__(self, schema: Schema, found: Found) -> None:
        self._definitions: Mapping[str, Schema] = schema.get("definitions", {})
        self._schema = schema
        self._found = found
        self._device, self._devices = "my-device", 0
        self._ports = itertools.chain(found.ports, (f"{_NO_PORT}-{number}" for number in itertools.count(1)))

    def part(self, name: str, given: Mapping[str, Any]) -> list[str]:
        """A top-level part, switched off but for what is given."""
        off = "" if any(given.values()) else "#"
        return [
            f"## {self._about(self._schema['properties'][name])}",
            f"{off}{name}:",
            *self.part_given(name, given),
        ]

    def part_given(self, name: str, given: Mapping[str, Any]) -> list[str]:
        """The keys of a top-level part: what is given, then all others switched off."""
        on = {key: value for key, value in given.items() if value}
        return [*(f"  {key}: {in_yaml(value)}" for key, value in on.items()), *self.keys((name,), 2, without=tuple(on))]

    def keys(self, path: tuple[str, ...], indent: int, without: tuple[str, ...] = ()) -> list[str]:
        """The keys of the map at a path, switched off."""
        schema: Schema = self._schema
        for key in path:
            schema = self._flat(self._flat(schema)["properties"][key])
        return [f"#{line}" for line in self._map(schema, indent, without, frozenset())]

    def links(self) -> list[str]:
        """An example link for each driver."""
        lines = ["## Links: one for each serial line, network device, broker or adapter that devices hang on."]
        lines += [f"## Found on this box: {port}" for port in (*self._found.ports, *self._found.adapters)]
        lines.append("#links:")
        told: set[str] = set()  # what all drivers share is shown once
        for shape in self._definitions["Link"]["allOf"]:
            driver = shape["if"]["properties"]["driver"]["const"]
            link = self._flat(shape["then"])
            self._device = f"my-{driver}-device"
            lines += ["##", f"## {link['properties']['driver'].get('description') or driver}", f"#  my-{driver}:"]
            lines += [f"#{line}" for line in self._map(link, 4, (), frozenset(told))]
            told |= {"entity", "calibrate", "report", "was"}
        return lines

    def brokers(self) -> list[str]:
        """An example broker."""
        broker = self._flat({"$ref": "#/definitions/BrokerConfig"})
        lines = [
            "## Brokers: the cities' context brokers; without one the readings are served locally and kept.",
            "#brokers:",
            "#  my-city:",
        ]
        return [*lines, *(f"#{line}" for line in self._map(broker, 4, (), frozenset()))]

    def _map(self, schema: Schema, indent: int, without: tuple[str, ...], told: frozenset[str]) -> Iterator[str]:
        properties = schema.get("properties", {})
        for key in sorted(properties, key=lambda key: _ORDER.get(key, 0)):
            if key not in without and key not in told:
                lines = self._key(key, properties[key], indent, told)
                other = self._flat(properties.get(_INSTEAD.get(key, ""), {}))
                yield from (f"#{line}" for line in lines) if key in _OWN or _is_choice(other) else lines

    def _key(self, key: str, child: Schema, indent: int, told: frozenset[str]) -> Iterator[str]:
        about, flat = self._about(child), self._flat(child)
        member = flat.get("additionalProperties")
        inner = self._flat(member) if isinstance(member, dict) else {}
        if key in _AGAIN:
            yield _line(indent, f"{key}: {_AGAIN[key]}", about)
        elif flat.get("properties"):
            yield _line(indent, f"{key}:", about)
            yield from self._map(flat, indent + 2, (), told)
        elif inner.get("properties"):
            yield _line(indent, f"{key}:", about)
            yield f"{' ' * (indent + 2)}{self._device if key == 'devices' else _NAMES.get(key, 'NAME')}:"
            yield from self._map(inner, indent + 4, (), told)
        else:
            value = f"!secret {key}" if flat.get("writeOnly") else in_yaml(self.example(key, child))
            yield _line(indent, f"{key}: {value}", "" if key == "driver" else about)

    def example(self, key: str, child: Schema) -> Any:
        """A value that fits."""
        schema = self._flat(child)
        if key == "dev_eui":
            self._devices += 1
            return f"{0x0123456789ABCDEF + self._devices:016x}"
        if key in _EXAMPLES and not (key == "host" and schema.get("default")):
            return _EXAMPLES[key]
        if key == "port" and "serial" in str(schema.get("description", "")):
            return next(self._ports)
        if key == "adapter" and self._found.adapters:
            return self._found.adapters[0]
        if schema.get("default") not in (None, "", [], {}):
            return schema["default"]
        if "const" in schema:
            return schema["const"]
        if key == "template" and (known := [name for name in _TEMPLATES if name in schema.get("enum", ())]):
            return known[0]
        if schema.get("examples"):
            return schema["examples"][0]
        hinted = re.search(r"e\.g\. ([^\s;,)]+)", str(schema.get("description", "")))
        if hinted and "string" in _kinds(schema) and _fits(hinted[1], schema):
            return hinted[1]
        if schema.get("enum"):
            return next(value for value in schema["enum"] if value != "")
        return self._of_type(key, schema)

    def _of_type(self, key: str, schema: Schema) -> Any:
        kinds = _kinds(schema)
        if "string" in kinds:
            return self._text(key, schema)
        if "integer" in kinds or kinds[0] == "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
            return low if "integer" in kinds else float(low)
        if "boolean" in kinds:
            return False
        if "array" in kinds:
            items = schema.get("items")
            if isinstance(items, list):
                return [self._of_type(key, self._flat(item)) for item in items]
            return [self.example(key, items)] if isinstance(items, dict) and schema.get("minItems") else []
        if "object" in kinds:
            return {}
        return key

    def _text(self, key: str, schema: Schema) -> str:
        if schema.get("format") == "date":
            return "2026-01-01"
        if not schema.get("minLength") and _fits("", schema):
            return ""
        return next((text for text in (key, *_TEXTS) if _fits(text, schema)), key)

    def _about(self, child: Schema) -> str:
        own = str(child.get("description", ""))
        return own or str(self._flat(child).get("description", ""))

    def _flat(self, schema: Schema) -> Schema:
        return flat(schema, self._definitions)


_TEXTS = ("mqtt://127.0.0.1:1883", "0123456789abcdef", "00:11:22:33:44:55", "0" * 32, "1")


def _is_choice(other: Schema) -> bool:
    """Whether what a key stands instead of is there: a port that is a path, a way to log in."""
    return bool(other) and ("properties" in other or "integer" not in _kinds(other) or "anyOf" in other)


def _kinds(schema: Schema) -> list[Any]:
    kind = schema.get("type")
    return kind if isinstance(kind, list) else [kind]


def _fits(text: str, schema: Schema) -> bool:
    if "enum" in schema:
        return text in schema["enum"]
    return "pattern" not in schema or bool(re.search(schema["pattern"], text))


def _line(indent: int, setting: str, about: str) -> str:
    line = f"{' ' * indent}{setting}"
    about = " ".join(about.split())
    if not about:
        return line
    room = MAX_LINE - len(line) - 4
    return f"{line}  # {about if len(about) <= room else about[: max(room - 1, 20)] + '…'}"
