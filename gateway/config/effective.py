"""The config as it counts, files laid on each other, each value with the place that gave it; secrets are hidden."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from gateway.config.bases import BASE
from gateway.config.edit import in_yaml
from gateway.config.loader import ASIDE, Loaded
from gateway.config.secrets import hide_tokens, redacted
from gateway.config.tree import Items, Map, Node, Place


@dataclass(frozen=True, slots=True)
class Line:
    """One value, or the key of a map (then `value` is "").

    Attributes:
        value: as it may be shown, in YAML.
        place: of the value; of a map, of its key.
    """

    path: tuple[str, ...]
    value: str
    place: Place


def lines(loaded: Loaded) -> tuple[Line, ...]:
    """Every value of the merged config, in the order of its keys."""
    own = {key: entry for key, entry in loaded.root.entries.items() if key != BASE and not key.startswith(ASIDE)}
    found = _lines(Map(own, loaded.root.place), ())
    return tuple(replace(line, value=hide_tokens(redacted(line.value, loaded.secrets))) for line in found)


def _lines(node: Map, path: tuple[str, ...]) -> Iterator[Line]:
    for key, entry in node.entries.items():
        if isinstance(entry.node, Map) and entry.node.entries:
            yield Line((*path, key), "", entry.key)
            yield from _lines(entry.node, (*path, key))
        else:
            yield Line((*path, key), _written(entry.node), entry.node.place)


def _written(node: Node) -> str:
    """In one line. A secret is as its source line has it by now: a name, or dots."""
    if isinstance(node, Map):
        return f"{{{', '.join(f'{in_yaml(key)}: {_written(entry.node)}' for key, entry in node.entries.items())}}}"
    if isinstance(node, Items):
        return f"[{', '.join(map(_written, node.items))}]"
    place, source = node.place, node.place.source.lines
    if place.lines == 1 and 0 < place.line <= len(source):
        return source[place.line - 1][place.column - 1 : place.column - 1 + place.width]
    return f"{node.tag} •••" if node.tag else in_yaml(node.text)


def as_json(line: Line) -> dict[str, Any]:
    """One value for `--json`."""
    place = line.place
    where = {"file": place.source.name, "line": place.line, "column": place.column}
    return {"path": ".".join(line.path), "value": line.value, **where}


def text(found: Iterable[Line]) -> Iterator[str]:
    """As YAML that could be a config by itself, with the places as comments."""
    rows = [
        (f"{'  ' * (len(line.path) - 1)}{in_yaml(line.path[-1])}:{' ' if line.value else ''}{line.value}", line)
        for line in found
    ]
    width = min(max((len(row) for row, line in rows if line.value), default=0), 80)
    for row, line in rows:
        yield f"{row.ljust(width)}  # {line.place}" if line.value else row
