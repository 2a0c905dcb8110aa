"""A YAML file as a tree in which every key and every value knows its place.

We read events instead of using a YAML constructor: it drops places, takes duplicate keys silently and turns `NO`, `12:30`
and `010` into false, 750 and 8.
"""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from gateway.sdk.errors import Problem
from gateway.sdk.files import read_bytes

MAX_FILE_BYTES = 4 << 20  # 200 devices are 40 kB
MAX_DEPTH = 32
MAX_NODES = 200_000  # with aliases expanded: an alias bomb is small on disk

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True, eq=False)
class Source:
    """A file, or an environment variable that stands for one line of it.

    Attributes:
        lines: as they may be shown: a secret is hidden in them once it is known to be one.
        parsed: whether a tree could be made of it.
    """

    name: str
    lines: list[str]
    parsed: bool = True

    def hide(self, place: "Place") -> None:
        """Dots in place of what stands there, at the same width; a block of several lines to its end."""
        for number in range(place.line, min(place.line + place.lines, len(self.lines) + 1)):
            line = self.lines[number - 1]
            first = place.column - 1 if number == place.line else len(line) - len(line.lstrip())
            last = first + place.width if place.lines == 1 else len(line)
            self.lines[number - 1] = line[:first] + "•" * (min(last, len(line)) - first) + line[last:]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: line and column from 1 (0: no line, as in an environment variable)."""

    source: Source
    line: int
    column: int
    width: int = 1
    lines: int = 1

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}" if self.line else self.source.name


@dataclass(frozen=True, slots=True, eq=False)
class Scalar:
    """A text as written. `plain`: without quotes, so that it may mean a number; `tag`: `!secret`, else ""."""

    text: str
    place: Place
    plain: bool = True
    tag: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """A list."""

    items: tuple["Node", ...]
    place: Place


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A value of a map and the place of its key."""

    key: Place
    node: "Node"


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """A map by name; `dropped`: what was given a second time."""

    entries: dict[str, Entry]
    place: Place
    dropped: tuple[tuple[str, Entry], ...] = ()

    def get(self, key: str) -> "Node | None":
        """The value of a key, or None."""
        entry = self.entries.get(key)
        return entry.node if entry else None


Node = Scalar | Items | Map


class Unreadable(Exception):
    """The file cannot be made a tree at all."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


def place_problem(problem: Problem, place: Place) -> Problem:
    """The same problem with its place and source line."""
    lines = place.source.lines
    return Problem(
        code=problem.code,
        path=problem.path,
        message=problem.message,
        remedy=problem.remedy,
        severity=problem.severity,
        at=problem.at,
        file=place.source.name,
        line=place.line,
        column=place.column,
        source=lines[place.line - 1] if 0 < place.line <= len(lines) else "",
        width=place.width,
    )


def read_tree(path: Traversable, problems: list[Problem]) -> Map:
    """The tree of a YAML file; what is wrong with it is added to `problems`. A file that cannot be read is an empty map."""
    source = Source(str(path), [])
    try:
        text = _read_text(path, source)
    except Unreadable as error:
        source.parsed = False
        problems.append(error.problem)
        return Map({}, Place(source, 1, 1))
    source.lines = text.splitlines()
    return tree_of(text, source, problems)


def tree_of(text: str, source: Source, problems: list[Problem]) -> Map:
    """The tree of a text that is already there, as `read_tree` makes it."""
    try:
        return _Builder(source, problems).build(text)
    except Unreadable as error:
        source.parsed = False
        problems.append(error.problem)
    return Map({}, Place(source, 1, 1))


def _read_text(path: Traversable, source: Source) -> str:
    def refuse(code: str, message: str, remedy: str, line: int = 0, column: int = 0) -> Unreadable:
        return Unreadable(
            Problem(code=code, path=(), message=message, remedy=remedy, file=source.name, line=line, column=column)
        )

    try:
        data = read_bytes(path, MAX_FILE_BYTES + 1)
    except OSError as error:
        raise refuse("unreadable-file", f"cannot be read: {error.strerror or error}", _READ_REMEDY) from error
    if len(data) > MAX_FILE_BYTES:
        message = f"larger than {MAX_FILE_BYTES >> 20} MiB"
        raise refuse("file-too-large", message, "split it into files in conf.d/, or is it the wrong file?")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise refuse("not-utf8", "starts with a byte order mark", "save it as UTF-8 without BOM", 1, 1)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise refuse("not-utf8", message, "save it as UTF-8", before.count(b"\n") + 1, column) from error


_READ_REMEDY = "does it exist, and may this user read it? `citygate init` writes a new one"


class _NamedText(io.StringIO):
    """Libyaml reads a text as a stream; a name keeps its messages short."""

    name = "file"


@dataclass(slots=True)
class _Open:
    """A map or list whose end has not come yet."""

    place: Place
    anchor: str | None
    is_map: bool
    entries: dict[str, Entry]
    items: list[Node]
    merged: list[tuple[Node, Place]]
    dropped: list[tuple[str, Entry]] = field(default_factory=list)
    key: tuple[str, Place] | None = None
    skip: bool = False  # the value of a key that was refused
    nodes: int = 1


class _Builder:
    """Events in, tree out. Iterative: depth is bounded by count, not by the stack."""

    def __init__(self, source: Source, problems: list[Problem]) -> None:
        self._source = source
        self._problems = problems
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._stack: list[_Open] = []
        self._root: Node | None = None
        self._documents = 0

    def build(self, text: str) -> Map:
        root = self.node(text)
        if root is None or (isinstance(root, Scalar) and not root.text and root.plain):
            return Map({}, Place(self._source, 1, 1))
        if not isinstance(root, Map):
            raise Unreadable(self._problem("wrong-type", "the file must be a map of keys and values", root.place))
        return root

    def node(self, text: str) -> Node | None:
        """Whatever the text is; None when it is empty."""
        for event in self._events(text):
            self._take(event)
        return self._root

    def _events(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(_NamedText(text), Loader=LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            raise Unreadable(self._syntax(error, line, column)) from error
        except yaml.YAMLError as error:
            raise Unreadable(self._unprintable(text, error)) from error

    def _syntax(self, error: yaml.MarkedYAMLError, line: int, column: int) -> Problem:
        lines = self._source.lines
        if line > len(lines):  # the end of the file: point at its last line
            line, column = max(len(lines), 1), (len(lines[-1]) + 1 if lines else 1)
        place = Place(self._source, line, column)
        if "\t" in (lines[line - 1] if lines else "")[: column + 1] and "cannot start any token" in str(error.problem):
            return self._problem("tab-character", "a tab where YAML wants spaces", place, "indent with spaces")
        context = f" {error.context}" if error.context else ""
        return self._problem(
            "yaml-syntax", f"{error.problem or 'not YAML'}{context}", place, _syntax_remedy(str(error.problem))
        )

    def _unprintable(self, text: str, error: yaml.YAMLError) -> Problem:
        found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
        if not found:
            return self._problem("yaml-syntax", str(error).splitlines()[0], Place(self._source, 1, 1))
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        message = f"control character U+{ord(found[0]):04X}"
        return self._problem("control-character", message, Place(self._source, line, column), "remove it")

    def _problem(self, code: str, message: str, place: Place, remedy: str = "") -> Problem:
        path = tuple(frame.key[0] for frame in self._stack if frame.key)
        return place_problem(Problem(code=code, path=path, message=message, remedy=remedy), place)

    def _place(self, event: Any, width: int | None = None) -> Place:
        start, end = event.start_mark, event.end_mark
        lines = end.line - start.line + (end.column > 0)
        if width is None:
            width = end.column - start.column if end.line == start.line else 1
        return Place(self._source, start.line + 1, start.column + 1, max(width, 1), max(lines, 1))

    def _take(self, event: Any) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    message = "a second YAML document in one file"
                    raise Unreadable(
                        self._problem("second-document", message, self._place(event), "one file, one document")
                    )
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(event, is_map=isinstance(event, yaml.MappingStartEvent))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.AliasEvent():
                self._alias(event)
            case _:
                pass

    def _open(self, event: Any, *, is_map: bool) -> None:
        place = self._place(event, 1)
        if len(self._stack) >= MAX_DEPTH:
            message = f"nested more than {MAX_DEPTH} deep"
            raise Unreadable(self._problem("too-deep", message, place, "nothing in this file needs to be so deep"))
        self._check_tag(event, place)
        self._stack.append(_Open(place, event.anchor, is_map, {}, [], []))

    def _check_tag(self, event: Any, place: Place) -> None:
        if event.tag not in (None, "!"):
            self._problems.append(
                self._problem("unknown-tag", f"unknown tag {event.tag}", place, "the only tag is !secret, on a text")
            )

    def _close(self) -> None:
        frame = self._stack.pop()
        node: Node
        if frame.is_map:
            self._merge(frame)
            node = Map(frame.entries, frame.place, tuple(frame.dropped))
        else:
            node = Items(tuple(frame.items), frame.place)
        self._finish(node, frame.anchor, frame.nodes)

    def _merge(self, frame: _Open) -> None:
        for node, place in frame.merged:  # explicit keys win, then the earlier of several
            for source in node.items if isinstance(node, Items) else (node,):
                if not isinstance(source, Map):
                    self._problems.append(self._problem("wrong-type", "<< takes a map or a list of maps", place))
                    continue
                for key, entry in source.entries.items():
                    frame.entries.setdefault(key, entry)

    def _scalar(self, event: Any) -> None:
        place = self._place(event)
        plain = event.style is None or (event.style == "" and event.implicit[0])
        tag = ""
        if event.tag == "!secret":
            tag, plain = event.tag, False
        else:
            self._check_tag(event, place)
        frame = self._stack[-1] if self._stack else None
        if frame and frame.is_map and frame.key is None:
            if event.anchor:
                self._anchors[event.anchor] = (Scalar(event.value, place, plain, tag), 1)
            self._key(frame, event.value, place)
            return
        self._finish(Scalar(event.value, place, plain, tag), event.anchor, 1)

    def _key(self, frame: _Open, key: str, place: Place) -> None:
        frame.key = (key, place)
        first = frame.entries.get(key)
        frame.skip = first is not None
        if first is not None:
            problem = self._problem(
                "duplicate-key", f"{key} stands here a second time", place, f"the first is in line {first.key.line}"
            )
            self._problems.append(problem)

    def _alias(self, event: Any) -> None:
        place = self._place(event)
        node, nodes = self._anchors.get(event.anchor, (None, 0))
        if node is None:
            message = f"*{event.anchor} stands for nothing here: no &{event.anchor} was completed before"
            raise Unreadable(
                self._problem("unknown-alias", message, place, "an anchor comes first, and not inside itself")
            )
        self._finish(node, None, nodes, place)

    def _finish(self, node: Node, anchor: str | None, nodes: int, place: Place | None = None) -> None:
        """A node is complete: keep its anchor, count it, put it where it belongs."""
        if anchor:
            self._anchors[anchor] = (node, nodes)
        if not self._stack:
            self._root = node
            return
        frame = self._stack[-1]
        frame.nodes += nodes
        if frame.nodes > MAX_NODES:
            message = f"more than {MAX_NODES} values, with aliases expanded"
            raise Unreadable(self._problem("too-many-values", message, place or node.place, "split the file"))
        if not frame.is_map:
            frame.items.append(node)
        elif frame.key is None:
            where = place or node.place
            self._problems.append(self._problem("wrong-key", "a key must be a text", where))
            frame.key, frame.skip = ("?", where), True
        else:
            key, key_place = frame.key
            frame.key = None
            if frame.skip:
                frame.dropped.append((key, Entry(key_place, node)))
            elif key == "<<":
                frame.merged.append((node, key_place))
            else:
                frame.entries[key] = Entry(key_place, node)


def _syntax_remedy(problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "is there a space after the colon before it, and is the indentation right? A text with ': ' needs quotes"
    if "unexpected end of stream" in problem:
        return "a quote is not closed"
    if "did not find expected" in problem:
        return "check brackets, commas and the indentation around this line"
    if "cannot start any token" in problem:
        return "a text that begins with @, ` or % needs quotes"
    return ""


_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SURPRISE = re.compile(
    r"y|Y|n|N|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF"
    r"|[-+]?0[0-9_]+|0o[0-7]+|[-+]?0b[01_]+|[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
)
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}


def is_surprise(scalar: Scalar) -> bool:
    """Whether YAML 1.1 and 1.2, or a human, read a different value in this plain text (`NO`, `12:30`, `010`)."""
    return scalar.plain and bool(_SURPRISE.fullmatch(scalar.text))


def plain_value(scalar: Scalar) -> str | int | float | bool | None:
    """What the text means where nothing says that it is a text: the YAML 1.2 core schema and hexadecimal numbers."""
    text = scalar.text
    if not scalar.plain or is_surprise(scalar):
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) <= 20:
        number = int(text, 16) if text.startswith("0x") else int(text)
        if -(2**63) <= number < 2**64:  # a longer one is a float everywhere behind us
            return number
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def merge(first: Map, second: Map, problems: list[Problem], path: tuple[str, ...] = ()) -> Map:
    """Two maps as one, by name at every depth. What both give is a problem that names both places; the first stays."""
    entries, dropped = dict(first.entries), [*first.dropped, *second.dropped]
    for key, entry in second.entries.items():
        mine = entries.get(key)
        if mine is None:
            entries[key] = entry
        elif isinstance(mine.node, Map) and isinstance(entry.node, Map):
            entries[key] = Entry(mine.key, merge(mine.node, entry.node, problems, (*path, key)))
        else:
            problem = Problem(
                code="duplicate-key",
                path=(*path, key),
                message=f"{key} is given in {mine.key} too",
                remedy="remove one of the two",
                at="key",
            )
            problems.append(place_problem(problem, entry.key))
            dropped.append((key, entry))
    return Map(entries, first.place, tuple(dropped))


def overlay(base: Map, over: Map) -> Map:
    """`over` laid on `base`, map by map: what `over` gives wins; an explicit null takes the key away."""
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        mine = entries.get(key)
        if mine and isinstance(entry.node, Scalar) and plain_value(entry.node) is None:
            del entries[key]  # a null for a key that is not there stays, and is found wrong
        elif mine and isinstance(mine.node, Map) and isinstance(entry.node, Map):
            entries[key] = Entry(entry.key, overlay(mine.node, entry.node))
        else:
            entries[key] = entry
    return Map(entries, over.place, over.dropped)


OVERRIDE = "CITYGATE__"


def override(root: Map, environment: Mapping[str, str], problems: list[Problem]) -> Map:
    """The tree with `CITYGATE__HTTP__LISTEN=…` and the like in place of what the files say.

    Parts are joined by two underscores; letter case and `-`, `.`, `_` do not matter where the files have the key already.
    A variable that fits no key is found when the tree is checked: unknown keys are errors. `[…]` and `{…}` are lists and
    maps, all else is one value.
    """
    for name in sorted(variable for variable in environment if variable.startswith(OVERRIDE)):
        parts = name.removeprefix(OVERRIDE).split("__")
        text, place = environment[name], Place(Source(f"environment {name}", []), 0, 0)
        value: Node = Scalar(text, place)
        if (text[:1], text[-1:]) in (("[", "]"), ("{", "}")):
            try:
                value = _Builder(Source(f"environment {name}", [text]), problems).node(text) or value
            except Unreadable as error:
                problems.append(error.problem)
        root = _put(root, parts, value, place)
    return root


def _put(node: Map, parts: list[str], value: Node, place: Place) -> Map:
    same = (key for key in node.entries if _folded(key) == _folded(parts[0]))
    key = next(same, parts[0].lower())
    old = node.get(key)
    new: Node = value
    if len(parts) > 1:
        new = _put(old if isinstance(old, Map) else Map({}, place), parts[1:], value, place)
    return Map({**node.entries, key: Entry(place, new)}, node.place, node.dropped)


def _folded(key: str) -> str:
    return re.sub(r"[-.]", "_", key).lower()


@dataclass(frozen=True, slots=True)
class Found:
    """Where a path of a validation error leads: as far as the tree goes.

    Attributes:
        path: the keys that exist.
        missing: the first key that does not; None when the path leads to its end.
    """

    path: tuple[str | int, ...]
    node: Node
    key: Place
    missing: str | int | None


def find(root: Node, location: tuple[str | int, ...]) -> Found:
    """Follow keys and indices; a part that the tree does not have (a union's tag, a missing key) is skipped."""
    node, key, path = root, root.place, []
    missing: str | int | None = None
    for part in location:
        if isinstance(node, Map) and part in node.entries:
            entry = node.entries[str(part)]
            node, key = entry.node, entry.key
        elif isinstance(node, Items) and isinstance(part, int) and 0 <= part < len(node.items):
            node = node.items[part]
            key = node.place
        else:
            missing = part
            continue
        path.append(part)
        missing = None
    return Found(tuple(path), node, key, missing)
