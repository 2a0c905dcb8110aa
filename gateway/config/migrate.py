"""Old spellings of the operator's file: renamed keys are read with a warning, older versions are brought up to date.

A key is renamed here and nowhere else: models know the present only. An entry stays for at least one version.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.config.model import VERSION
from gateway.config.tree import Entry, Map, Node, Scalar, place_problem
from gateway.sdk.errors import Problem


@dataclass(frozen=True, slots=True)
class Renamed:
    """A key that has another name now. `old` is its path, `*` for any name: ("links", "*", "serial_port")."""

    old: tuple[str, ...]
    new: str


RENAMED: tuple[Renamed, ...] = ()
MIGRATIONS: Mapping[int, Callable[[Map], Map]] = {}  # version -> the tree as the next version writes it


def migrate(
    root: Map,
    problems: list[Problem],
    renamed: Sequence[Renamed] = RENAMED,
    migrations: Mapping[int, Callable[[Map], Map]] = MIGRATIONS,
    version: int = VERSION,
) -> Map:
    """The tree as the present version writes it; a warning for each old key."""
    given = root.get("version")
    written = int(given.text) if isinstance(given, Scalar) and given.text.isdecimal() else version
    for older in range(written, version) if written else ():
        root = migrations[older](root) if older in migrations else root
    if 0 < written < version and isinstance(given, Scalar):
        entry = Entry(root.entries["version"].key, Scalar(str(version), given.place))
        root = Map({**root.entries, "version": entry}, root.place, root.dropped)
    for rule in renamed:
        root = _rename(root, rule.old, rule.new, problems, ())
    return root


def _rename(node: Map, old: tuple[str, ...], new: str, problems: list[Problem], path: tuple[str, ...]) -> Map:
    entries = dict(_renamed(node, old, new, problems, path))
    return Map(entries, node.place, node.dropped)


def _renamed(
    node: Map, old: tuple[str, ...], new: str, problems: list[Problem], path: tuple[str, ...]
) -> Iterator[tuple[str, Entry]]:
    for key, entry in node.entries.items():
        if old[0] not in ("*", key):
            yield key, entry
        elif len(old) > 1:
            child: Node = entry.node
            if isinstance(child, Map):
                child = _rename(child, old[1:], new, problems, (*path, key))
            yield key, Entry(entry.key, child)
        elif new in node.entries:
            yield key, entry  # both: the old one is then an unknown key
        else:
            problem = Problem(
                "deprecated-key", (*path, key), f"{key} is called {new} now", f"write {new}", "warning", "key"
            )
            problems.append(place_problem(problem, entry.key))
            yield new, entry
