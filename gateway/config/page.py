"""The page of every key: made from the schema, so that it cannot say something else than editor and messages."""

from collections.abc import Iterator, Mapping

from gateway.config.facts import Schema, bounds, default, flat, kind, nested
from gateway.config.sample import example

Row = tuple[str, Schema, bool]  # a key, what is said of it, whether it must be given

_HEAD = """\
# Every key of the config

Made by `citygate schema --page`, which has the drivers of your box too; `make docs` writes this file. How the config works says [config.md](config.md); the editor shows
the same while you type, `citygate init` writes all of it into a new file. All keys are there since version 0.1.0 unless their line says otherwise.

*Value*: a duration is written as `10 s`, `15 min`, `90 d`; a size as `64 KiB`, `1 GB`; a rate as `500/s`; a secret as `!secret NAME`; a place as `[longitude, latitude]`.
Capitals stand for names of yours: `NAME`, `DEVICE`, `POINT`, `ATTRIBUTE`. A default is what counts without the key; *needed*: there is none. What a change
restarts, `citygate reload --dry-run` says of your own change.
"""
# by part: what applies a change, see gateway.changes
APPLIED = {
    "version": "",
    "base": "A change restarts what the keys that it changes restart.",
    "gateway": "A change restarts the brokers whose entities it changes.",
    "buffer": "A change waits for a restart of the daemon.",
    "links": "A change restarts the link.",
    "brokers": "A change restarts the broker; `from` counts only for a broker that the log does not know yet.",
    "publish": "A change is applied at once, or restarts the brokers whose entities it changes.",
    "http": "A change waits for a restart of the daemon.",
    "clock": "A change waits for a restart of the daemon.",
    "devices": "A change restarts the link; of `location`, `entity`, `calibrate` and `was` only the brokers whose entities it changes.",
}
_NAMES = {"calibrate": "POINT", "report": "POINT", "attributes": "ATTRIBUTE", "sub": "ATTRIBUTE", "types": "TYPE"}
_OF_THIS_BOX = ("/dev/serial/by-id/usb-NAME-1",)
_AGAIN = {"more": "as `entity`", "previous": "as `calibrate.POINT`"}  # what is in them has the same keys again


def page(schema: Schema, profile: Schema) -> str:
    """Markdown.

    Args:
        schema: of the whole file, without the names of a box.
        profile: of a city profile.
    """
    book = _Book(schema)
    lines = [_HEAD]
    for part, child in schema["properties"].items():
        if part not in ("links", "brokers"):
            lines += book.section(part, book.about(child), APPLIED.get(part, ""), book.rows(part, child, schema))
    lines += book.links()
    broker = book.flat({"$ref": "#/definitions/BrokerConfig"})
    lines += book.section("brokers.NAME", "A city's context broker.", APPLIED["brokers"], book.under("", broker))
    city = _Book(profile)
    rows = [row for row in city.under("", profile) if not row[0].startswith("broker.")]
    text = "A file `cities/NAME.yaml`, taken up with `use: cities/NAME`; `broker:` takes any key of a broker."
    lines += city.section("City profiles", text, "A change restarts the brokers whose entities it changes.", rows)
    return "\n".join(lines)


class _Book:
    """Sections from a schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._definitions: Mapping[str, Schema] = schema["definitions"]

    def flat(self, schema: Schema) -> Schema:
        return flat(schema, self._definitions)

    def about(self, schema: Schema) -> str:
        text = str(schema.get("description") or self.flat(schema).get("description", ""))
        return " ".join(text.split())

    def section(self, title: str, about: str, applied: str, rows: list[Row]) -> list[str]:
        said = " ".join(filter(None, (about if about.endswith(".") else f"{about[:1].upper()}{about[1:]}.", applied)))
        table = ["| key | value | default | bounds | meaning |", "|---|---|---|---|---|"]
        return [f"## {title}", "", said, "", *table, *(self._line(*row) for row in rows), ""]

    def rows(self, key: str, child: Schema, of: Schema) -> list[Row]:
        """The keys of a part, or the part itself when it is a single value."""
        inner = self.flat(child)
        return self.under("", inner) if inner.get("properties") else [(key, child, key in of.get("required", ()))]

    def under(self, path: str, schema: Schema, without: frozenset[str] = frozenset()) -> list[Row]:
        """The keys of a map, and of the maps in it."""
        return [row for key in schema["properties"] if key not in without for row in self._key(path, key, schema)]

    def _key(self, path: str, key: str, of: Schema) -> Iterator[Row]:
        child = of["properties"][key]
        yield f"{path}{key}", child, key in of.get("required", ())
        for name, inner in nested(child, self._definitions) if key not in (*_AGAIN, "devices") else ():
            place = f".{_NAMES.get(key, name)}" if name else ""
            yield from self.under(f"{path}{key}{place}.", inner)

    def _line(self, key: str, child: Schema, needed: bool) -> str:
        told = default(child)
        name = key.rpartition(".")[2]
        what = _AGAIN.get(name) or kind(child, self._definitions)
        shown = example(self._schema, name, child) if not told and what in ("text", "whole number") else ""
        if shown not in ("", '""', "0", "1", name, *_OF_THIS_BOX):
            what += f", as in `{shown}`"
        shown = "needed" if needed else f"`{told}`" if told else ""
        cells = (f"`{key}`", what, shown, bounds(child), self.about(child))
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    def links(self) -> list[str]:
        """What all links and devices have, then the keys of each driver."""
        shapes = {rule["then"]["$ref"]: rule["if"]["properties"]["driver"]["const"] for rule in self._link_rules()}
        links = {driver: self.flat({"$ref": reference}) for reference, driver in shapes.items()}
        devices = {
            driver: self.flat(link["properties"]["devices"]["additionalProperties"]) for driver, link in links.items()
        }
        common = frozenset.intersection(*(frozenset(its["properties"]) for its in devices.values()))
        first = next(iter(devices.values()))
        shared = [row for row in self.under("", first) if row[0].partition(".")[0] in common]
        driver = ("driver", {"enum": sorted(links), "description": "kind of link"}, True)
        of_all: list[Row] = [
            driver,
            ("devices", {"type": "object", "description": "the devices on this link, by name"}, False),
        ]
        lines = self.section(
            "links.NAME",
            "What one wire, radio, adapter or server is for. Each driver has keys of its own.",
            APPLIED["links"],
            of_all,
        )
        lines += self.section("links.NAME.devices.DEVICE", "What every device has.", APPLIED["devices"], shared)
        for name, link in links.items():
            about = str(link["properties"]["driver"].get("description", ""))
            rows = self.under("", link, frozenset({"driver", "devices"}))
            rows += self.under("devices.DEVICE.", devices[name], common)
            lines += self.section(f"links.NAME with driver: {name}", about, "", rows)
        return lines

    def _link_rules(self) -> list[Schema]:
        return [rule for rule in self._definitions["Link"]["allOf"] if "$ref" in rule["then"]]
