"""What the boxes of a fleet share: base files, and the box's own laid on them.

One rule: maps merge key by key; of all else the later file wins; null takes away what the base has.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from gateway.config.explain import did_you_mean
from gateway.config.tree import Entry, Items, Map, Node, Scalar, find, place_problem, plain_value, read_tree
from gateway.sdk.errors import Problem

BASE = "base"
MAX_BASES = 16
OUTSIDE = ".outside"  # in a copy of the config: the folder for what lies beside or above its own

KeyPath = tuple[str, ...]


def name_in_copy(file: Path, folder: Path) -> Path:
    """What a file of the config in `folder` is called in a copy of it, whose names lead nowhere else."""
    file, folder = file.absolute(), folder.absolute()
    inside = file.relative_to(folder) if file.is_relative_to(folder) else None
    if inside is not None and ".." not in inside.parts:
        return inside
    return Path(OUTSIDE, *("^" if part == ".." else part for part in file.parts[1:]))


def tidy(path: Path) -> Path:
    """Without what is `..` in it, where that leads to the same place."""
    short = Path(os.path.normpath(path))
    return short if os.path.realpath(short) == os.path.realpath(path) else path


@dataclass(frozen=True, slots=True)
class Home:
    """Where the operator has the config, and where it is read when that is a copy.

    A copy without a folder for what lies outside is one of the config's own folder alone.
    """

    folder: Path
    copy: Path | None = None

    def here(self, path: Path) -> Path:
        """Where a file or folder of the operator's is read."""
        if self.copy is None:
            return path
        name = name_in_copy(path, self.folder)
        return self.copy / name if name.parts[:1] != (OUTSIDE,) or (self.copy / OUTSIDE).is_dir() else path


@dataclass(frozen=True, slots=True)
class Bases:
    """What a config is laid on, the lowest first.

    Attributes:
        files: as the operator has them.
        missing: one could not be read: what it would give is nobody's fault.
    """

    files: tuple[Path, ...] = ()
    trees: tuple[Map, ...] = ()
    missing: bool = False

    def folders(self, home: Home) -> tuple[Path, ...]:
        """Where templates, profiles and models may be: beside the config, then beside its bases, the nearest first."""
        return tuple(dict.fromkeys((home.folder, *(file.parent for file in reversed(self.files)))))


def read_bases(root: Map, home: Home, own: Iterable[Path], problems: list[Problem]) -> Bases:
    """The bases that a config names, and those that they name.

    Args:
        own: main file and fragments.
    """
    reading = _Reading(home, problems, frozenset(map(os.path.realpath, own)))
    reading.of(root, ())
    return Bases(tuple(reading.files), tuple(reading.trees), reading.missing)


@dataclass
class _Reading:
    """One walk over the bases. Each file counts once, where it comes first."""

    home: Home
    problems: list[Problem]
    own: frozenset[str]
    files: list[Path] = field(default_factory=list)
    trees: list[Map] = field(default_factory=list)
    missing: bool = False
    _known: set[str] = field(default_factory=set)

    def of(self, tree: Map, above: tuple[str, ...]) -> None:
        node = tree.get(BASE)
        for index, name in enumerate(node.items if isinstance(node, Items) else (node,)):
            path: tuple[str | int, ...] = (BASE, index) if isinstance(node, Items) else (BASE,)
            if isinstance(name, Scalar) and name.text and not name.tag and "\0" not in name.text:
                self._base(name, above, path)
            elif name is not None and (above or (isinstance(name, Scalar) and name.text)):  # else the model says so
                self._add(Problem("wrong-name", path, "this is no name of a file"), name, "as in base: ../base.yaml")

    def _base(self, name: Scalar, above: tuple[str, ...], path: tuple[str | int, ...]) -> None:
        try:
            file = (name.place.source.folder or self.home.folder) / Path(name.text).expanduser()
        except RuntimeError:
            file = Path(name.text)
        here = self.home.here(file)
        real = os.path.realpath(here)
        above = (*above, os.path.realpath(name.place.source.name))
        if real in above:
            problem = Problem("base-cycle", path, f"{tidy(file)} is based on this file")
            self._add(problem, name, "a base knows nothing of what is laid on it")
        elif real in self.own:
            problem = Problem("base-cycle", path, f"{tidy(file)} is a part of this config already")
            self._add(problem, name, "a base stands outside of conf.d")
        elif real not in self._known and len(self._known) < MAX_BASES:
            self._known.add(real)
            self._read(name, file, above, path)
        elif real not in self._known:
            self._add(Problem("base-cycle", path, f"more than {MAX_BASES} bases"), name, "put some of them together")

    def _read(self, name: Scalar, file: Path, above: tuple[str, ...], path: tuple[str | int, ...]) -> None:
        found: list[Problem] = []
        folder = file.parent if file.parent != self.home.folder else None
        tree = read_tree(tidy(self.home.here(file)), found, folder)
        unread = [problem for problem in found if problem.code == "unreadable-file"]
        for problem in unread:
            remedy = "a base is a file; relative names begin at the folder of citygate.yaml, in a base at its own"
            self._add(replace(problem, path=path, message=f"{tidy(file)} {problem.message}"), name, remedy)
        self.problems += [problem for problem in found if problem not in unread]
        self.missing |= not tree.place.source.parsed
        if not tree.entries and not found:
            problem = Problem("cut-off", path, f"{tidy(file)} gives nothing", "was it emptied?", "warning")
            self.problems.append(place_problem(problem, name.place))
        self.of(tree, above)
        self.files.append(file)
        self.trees.append(tree)

    def _add(self, problem: Problem, name: Node, remedy: str) -> None:
        self.missing = True
        self.problems.append(place_problem(replace(problem, remedy=remedy), name.place))


@dataclass
class Laid:
    """One config laid on its bases.

    Attributes:
        taken: paths whose null took something away.
        new: of a link, device or broker that no base has: the names there are in its place.
    """

    problems: list[Problem]
    bases: tuple[Path, ...]
    taken: set[KeyPath] = field(default_factory=set)
    new: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict)

    def lay(self, base: Map, over: Map, path: KeyPath = ()) -> Map:
        """`over` on `base`. A null stays until it is known whether a city's profile gives the key too."""
        entries, dropped = dict(base.entries), [*base.dropped, *over.dropped]
        for key, entry in over.entries.items():
            mine, where = entries.get(key), (*path, key)
            if mine is None:
                entries[key] = entry
                self._is_new(where, tuple(base.entries))
            elif _is_empty(entry.node):
                self._empty(where, mine, entry)
            elif isinstance(mine.node, Map) and isinstance(entry.node, Map):
                entries[key] = Entry(entry.key, self.lay(mine.node, entry.node, where))
            else:
                if is_null(entry.node) and not is_null(mine.node):
                    self.taken.add(where)
                entries[key] = entry
                dropped.append((key, mine))  # a secret in it is to be hidden all the same
        return Map(entries, over.place, tuple(dropped))

    def _is_new(self, path: KeyPath, names: tuple[str, ...]) -> None:
        if names and _NAMED.fullmatch(".".join("*" if index % 2 else part for index, part in enumerate(path))):
            self.new[path] = names

    def _empty(self, path: KeyPath, mine: Entry, entry: Entry) -> None:
        """A value that was forgotten, or whose lines were commented out, is not meant to take all of the base's away."""
        remedy = f"null takes away what {mine.key} gives; without the key that stays"
        problem = Problem("missing-value", path, "no value after the key", remedy, at="key")
        self.problems.append(place_problem(problem, entry.key))

    def settle(self, root: Map, files: Map, path: KeyPath = ()) -> Map:
        """Without the nulls that have done their work; one that took nothing away is a warning.

        Args:
            files: what the files say, without variables of the environment.
        """
        entries: dict[str, Entry] = {}
        for key, entry in root.entries.items():
            where = (*path, key)
            if isinstance(entry.node, Map):
                entries[key] = Entry(entry.key, self.settle(entry.node, files, where))
            elif not is_null(entry.node) or _means_null(where):
                entries[key] = entry
            elif where not in self.taken and not _gives(files, where):
                remedy = did_you_mean(key, self.new.get(where, ())) or "the line may go"
                problem = Problem(
                    "nothing-taken", where, f"no base has {key}: null takes nothing away", remedy, "warning", "key"
                )
                self.problems.append(place_problem(problem, entry.key))
        return Map(entries, root.place, root.dropped)

    def hinted(self, problem: Problem, root: Map) -> Problem:
        """What is not complete by itself was meant for something that the base has; what does not go together came together
        from two files."""
        path = tuple(map(str, problem.path))
        if problem.code == "invalid-value" and isinstance(node := find(root, problem.path).node, Map):
            keys = {entry.key.source.name: f"{entry.key} gives {key}" for key, entry in node.entries.items()}
            if len(keys) > 1:
                hint = f"{', '.join(keys.values())}; {path[-1]}: {{KEY: null}} takes one away"
                return replace(problem, remedy=f"{problem.remedy}; {hint}" if problem.remedy else hint)
        for whole in (path[:end] for end in range(2, len(path) + 1)):
            if problem.code == "missing-key" and whole in self.new:
                near = did_you_mean(whole[-1], self.new[whole])
                hint = f"no base has {whole[-1]}{f'; {near}' if near else ''}"
                return replace(problem, remedy=f"{problem.remedy}; {hint}" if problem.remedy else hint)
        return problem

    def doubts(self, root: Map) -> Iterator[Problem]:
        """Names that are new and all but those of the base."""
        for path, names in self.new.items():
            near = next((name for name in names if _misspelt(path[-1], name)), "")
            above: Node | None = root
            for part in path[:-1]:
                above = above.get(part) if isinstance(above, Map) else None
            if near and isinstance(above, Map) and {near, path[-1]} <= above.entries.keys():
                message = f"{path[-1]} is new beside {near} ({above.entries[near].key})"
                problem = Problem("near-name", path, message, f"did you mean {near}?", "warning", "key")
                yield place_problem(problem, above.entries[path[-1]].key)


_NAMED = re.compile(r"links\.\*(?:\.devices\.\*)?|brokers\.\*")
_LAST = re.compile(r"[-_.]?(?:[0-9]+|(?<=[-_.])[A-Za-z])$")


def _misspelt(name: str, known: str) -> bool:
    """Not `meter-13` beside `meter-12`, nor `air-a` beside `air-b`."""
    if _LAST.sub("", name) == _LAST.sub("", known):
        return False
    return difflib.SequenceMatcher(None, name.lower(), known.lower()).ratio() >= 0.85


def _means_null(path: KeyPath) -> bool:
    """Where null says more than that nothing is given: an attribute of the template that is not to be sent."""
    return len(path) > 5 and path[0] == "links" and path[4] == "entity" and path[-2] == "attributes"


def _gives(tree: Map, path: KeyPath) -> bool:
    found = find(tree, path)
    return found.path == path and not is_null(found.node)


def _is_empty(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and not node.text


def is_null(node: Node) -> bool:
    """Whether `null` is written there, or `~`."""
    return isinstance(node, Scalar) and bool(node.text) and plain_value(node) is None
