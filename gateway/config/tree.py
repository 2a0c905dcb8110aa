"""A YAML file as a tree in which every key and every value knows its place.

We read events instead of using a YAML constructor: it drops places, takes duplicate keys silently and turns `NO`, `12:30`
and `010` into false, 750 and 8.
"""

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from gateway.environment import OVERRIDE
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
        whole: whether its last line has an end.
        folder: where relative paths in it begin; None: at the config's folder.
    """

    name: str
    lines: list[str]
    parsed: bool = True
    whole: bool = True
    folder: Path | None = None

    def hide(self, place: "Place") -> None:
        """Dots in place of what stands there, at the same width; a block of several lines to its end."""
        for number in range(max(place.line, 1), min(place.line + place.lines, len(self.lines) + 1)):
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
    """A text as written. `plain`: without quotes, so that it may mean a number; `tag`: `!secret` or a wrong one, else ""."""

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


def read_tree(path: Traversable, problems: list[Problem], folder: Path | None = None) -> Map:
    """The tree of a YAML file; what is wrong with it is added to `problems`. A file that cannot be read is an empty map.

    Args:
        folder: see `Source`.
    """
    source = Source(str(path), [], folder=folder)
    try:
        text = _read_text(path, source)
    except Unreadable as error:
        source.parsed = False
        problems.append(error.problem)
        return Map({}, Place(source, 1, 1))
    return tree_of(text, source, problems)


def tree_of(text: str, source: Source, problems: list[Problem]) -> Map:
    """The tree of a text that is already there, as `read_tree` makes it."""
    source.lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", text.removesuffix("\n"))  # what ends a line in YAML
    source.whole = not text or text.endswith(tuple("\n\r\x85\u2028\u2029"))
    try:
        return _Builder(source, problems).build(_without_odd_blanks(text, source, problems))
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


# What looks like a blank or like nothing, and is a letter to YAML; it comes with text copied from web pages and chats.
_ODD = "\u00a0\u00ad\u1680\u2000-\u200f\u202f\u205f\u2060\u3000\ufeff"
_ODD_BLANK = re.compile(f"[{_ODD}]")
_BEFORE_A_VALUE = re.compile(f"^[ \\t{_ODD}]*(?:[\\w./-]+[ {_ODD}]*:(?=[{_ODD}])[ {_ODD}]*)?")
_NO_WIDTH = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_CONFLICT = re.compile(r"<{7} |>{7} |\|{7} |={7}$")


def _without_odd_blanks(text: str, source: Source, problems: list[Problem]) -> str:
    """The text with true blanks where others would spoil its structure, each line with them a problem; those inside of a
    value are found later. Marks of a merge end the reading: both sides would be read."""
    if conflict := next((n for n, line in enumerate(source.lines, 1) if line.startswith(("<<<<<<< ", ">>>>>>> "))), 0):
        first = next(n for n, line in enumerate(source.lines, 1) if n == conflict or _CONFLICT.match(line))
        message, remedy = (
            "a mark of a merge that was not finished",
            "keep one of the two sides, and no line of <, = or >",
        )
        problem = Problem("merge-conflict", (), message, remedy)
        raise Unreadable(place_problem(problem, Place(source, first, 1, 7)))
    if not _ODD_BLANK.search(text):
        return text
    lines = []
    for number, line in enumerate(source.lines, 1):
        head = match[0] if (match := _BEFORE_A_VALUE.match(line)) else ""
        rest = line[len(head) :]
        if rest[:1] != "#" and (odd := _ODD_BLANK.search(head)):
            problems.append(place_problem(_odd_blank(odd[0]), Place(source, number, odd.start() + 1)))
        head = _ODD_BLANK.sub(" ", _NO_WIDTH.sub("", head))
        lines.append(head + rest)
    return "\n".join(lines) + "\n"


def _odd_blank(character: str, path: tuple[str, ...] = ()) -> Problem:
    message = f"U+{ord(character):04X}, {unicodedata.name(character).lower()}: it looks like a blank or like nothing"
    return Problem("odd-blank", path, message, "type it again here: copied text has such characters")


_READ_REMEDY = "does it exist, and may this user read it? `citygate init` writes a new one"


_QUOTES = "“”„«»‘’‚‹›"
_JOINED = re.compile(r"( *(?:- +)?)([A-Za-z_][\w-]*):(?!//)([^\s:'\"{}\[\]#][^:#]*)")
_IN_A_LINE = re.compile(r"([A-Za-z_][\w-]*):([^\s:]+)")
NO_BLANK = "no blank after the colon, so this is a text"
_AT_AN_END = re.compile(r"end of stream|<stream end>|expected ['\"]?[,\]}:]")


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
            raise Unreadable(
                self._problem(
                    "wrong-type",
                    "the file must be a map of keys and values",
                    root.place,
                    "`key: value` in each line; is it the right file?",
                )
            )
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
        at_end = line > len(lines) or (not any(lines[line:]) and column > len(lines[line - 1]))
        if line > len(lines):  # the end of the file: point at its last line
            line, column = max(len(lines), 1), (len(lines[-1]) + 1 if lines else 1)
        place = Place(self._source, line, column)
        problem = str(error.problem)
        if "tab character" in problem or (
            "\t" in (lines[line - 1] if lines else "")[: column + 1] and "cannot start any token" in problem
        ):
            return self._problem("tab-character", "a tab where YAML wants spaces", place, "indent with spaces")
        if joined := self._joined(line):
            return joined
        if at_end and (unfinished := self._unfinished(error, place)):
            return unfinished
        opened = error.context_mark
        if opened and "flow" in str(error.context) and opened.line + 1 < line:
            message = f"inside this bracket a comma is missing before line {line}, or its end"
            place = Place(self._source, opened.line + 1, opened.column + 1)
            return self._problem("yaml-syntax", message, place, "put a comma between its entries, or close it")
        context = f" {error.context}" if error.context else ""
        return self._problem(
            "yaml-syntax", f"{error.problem or 'not YAML'}{context}", place, _syntax_remedy(str(error.problem))
        )

    def _joined(self, line: int) -> Problem | None:
        """`unit_id:1` is a text to YAML, and what it complains about comes later."""
        before = [number for number in range(line, 0, -1) if self._source.lines[number - 1].strip(" \t")][:2]
        for number in before:
            if match := _JOINED.fullmatch(self._source.lines[number - 1]):
                place = Place(self._source, number, match.start(2) + 1, len(match[2]) + 1)
                return self._problem("missing-blank", NO_BLANK, place, f"write {match[2]}: {match[3].strip()}")
        return None

    def _unfinished(self, error: yaml.MarkedYAMLError, end: Place) -> Problem | None:
        """The end came too early: the file was cut off, or something is open since some line above."""
        if not _AT_AN_END.search(str(error.problem)) or not error.context_mark:
            return None
        start, path = error.context_mark, self._path()
        message = f"the file ends inside a {'quote' if 'quoted' in str(error.context) else 'bracket'}"
        place = Place(self._source, start.line + 1, start.column + 1) if start.line + 1 < end.line else end
        if found := self._found():
            message += f"; found before: {found}"
        remedy = "close what is open; was the file cut off on its way here?"
        return place_problem(Problem("unfinished-file", path, message, remedy), place)

    def _found(self) -> str:
        """How many links, devices and brokers came before the end; "" for a file that has no such things."""
        while self._stack:
            frame = self._stack[-1]
            if frame.key:
                self._finish(Map({}, frame.place), None, 0)
            self._close()
        root = self._root
        return counted(root) if isinstance(root, Map) and {"links", "brokers", "gateway"} & set(root.entries) else ""

    def _unprintable(self, text: str, error: yaml.YAMLError) -> Problem:
        found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
        if not found:
            return self._problem("yaml-syntax", str(error).splitlines()[0], Place(self._source, 1, 1))
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        message = f"control character U+{ord(found[0]):04X}"
        return self._problem("control-character", message, Place(self._source, line, column), "remove it")

    def _problem(self, code: str, message: str, place: Place, remedy: str = "") -> Problem:
        return place_problem(Problem(code=code, path=self._path(), message=message, remedy=remedy), place)

    def _path(self) -> tuple[str, ...]:
        return tuple(frame.key[0] for frame in self._stack if frame.key)

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
            node = Items(self._with_points(frame.items), frame.place)
        self._finish(node, frame.anchor, frame.nodes)

    def _with_points(self, items: list[Node]) -> tuple[Node, ...]:
        """`[9,159, 45,503]` as it was meant: two numbers."""
        pairs = list(zip(items[::2], items[1::2], strict=False))
        if len(items) != 4 or not all(_is_split(one, other) for one, other in pairs) or _is_split(items[1], items[2]):
            return tuple(items)
        return tuple(self._pointed(one, other) for one, other in pairs)

    def _pointed(self, one: Node, other: Node) -> Node:
        if not (isinstance(one, Scalar) and isinstance(other, Scalar)):
            return one
        meant, place = f"{one.text}.{other.text}", replace(one.place, width=one.place.width + other.place.width + 1)
        message = f"{one.text},{other.text} is two values to YAML"
        self._problems.append(self._problem("decimal-comma", message, place, f"write {meant}"))
        return Scalar(meant, place)

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
        if plain and event.value:
            event.value = self._typed(event.value, place)
            self._check_tabs(event, place)
        tag = ""
        if event.tag == "!secret":
            tag, plain = event.tag, False
        else:
            self._check_tag(event, place)
            tag = (event.tag or "").removeprefix("!") and event.tag
        frame = self._stack[-1] if self._stack else None
        if frame and frame.is_map and frame.key is None:
            if event.anchor:
                self._anchors[event.anchor] = (Scalar(event.value, place, plain, tag), 1)
            self._key(frame, event.value, place)
            return
        self._finish(Scalar(event.value, place, plain, tag), event.anchor, 1)

    def _typed(self, value: str, place: Place) -> str:
        """A plain text as it was meant: without what only looks like blanks and quotes, each a problem."""
        if odd := _ODD_BLANK.search(value):
            line = self._source.lines[place.line - 1]
            at = line.find(odd[0], place.column - 1) if place.lines == 1 else -1
            place = replace(place, column=at + 1, width=1) if at >= 0 else place
            self._problems.append(place_problem(_odd_blank(odd[0], self._path()), place))
            value = _ODD_BLANK.sub(" ", _NO_WIDTH.sub("", value)).strip()
        if value[:1] in _QUOTES:
            message = f"{value[0]} is a letter and no quote to YAML"
            self._problems.append(self._problem("odd-quote", message, place, """write " or ' on both sides"""))
            value = value[1:].rstrip(_QUOTES).strip()
        return value

    def _check_tabs(self, event: Any, place: Place) -> None:
        """Some readers take a tab beside a value, and others refuse the file."""
        line = self._source.lines[place.line - 1] if place.line <= len(self._source.lines) else ""
        first, last = event.start_mark.column, event.end_mark.column if place.lines == 1 else len(line)
        while first and line[first - 1] in " \t":
            first -= 1
        last += len(line[last:]) - len(line[last:].lstrip(" \t"))
        tab = line.find("\t", first, last)
        if tab >= 0:
            problem = self._problem("tab-character", "a tab beside a value: other readers of YAML refuse it",
                                    replace(place, column=tab + 1, width=1), "write a blank, or nothing at a line's end")  # fmt: skip
            self._problems.append(replace(problem, severity="warning"))

    def _key(self, frame: _Open, key: str, place: Place) -> None:
        frame.key = (key, place)
        first = frame.entries.get(key)
        frame.skip = first is not None
        if first is not None:
            problem = self._problem(
                "duplicate-key", f"{key} stands here a second time", place, f"the first is in line {first.key.line}"
            )
            self._problems.append(problem)

    def _parted(self, match: re.Match[str], place: Place, frame: _Open) -> tuple[str, Scalar]:
        """`{unit_id:1}` as it was meant."""
        key, text = match.groups()
        if "/" in key or key in frame.entries or place.lines > 1:
            return match[0], Scalar("", place)
        frame.key = key, place
        self._problems.append(self._problem("missing-blank", NO_BLANK, place, f"write {key}: {text}"))
        return key, Scalar(text, replace(place, column=place.column + len(key) + 1, width=len(text)))

    def _alias(self, event: Any) -> None:
        place = self._place(event)
        node, nodes = self._anchors.get(event.anchor, (None, 0))
        if node is None:
            message = f"*{event.anchor} stands for nothing here: no &{event.anchor} was completed before"
            raise Unreadable(
                self._problem(
                    "unknown-alias", message, place, "an anchor comes first, in the same file, and not inside itself"
                )
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
            if self._source.lines[where.line - 1].startswith("{{", where.column - 2):
                remedy = "fill the template in first, or put the text into quotes"
                raise Unreadable(self._problem("wrong-key", "{{ … }} was not filled in", where, remedy))
            self._problems.append(self._problem("wrong-key", "a key must be a text", where))
            frame.key, frame.skip = ("?", where), True
        else:
            key, key_place = frame.key
            last = next(reversed(frame.entries), "")
            if isinstance(node, Scalar) and not node.text and last:
                number = Scalar(key, key_place)
                if _is_split(frame.entries[last].node, number):  # `{gain: 1,02}`
                    frame.key = last, frame.entries[last].key
                    key_place, node = frame.key[1], self._pointed(frame.entries[last].node, number)
                    key, frame.skip = last, False
            if isinstance(node, Scalar) and not node.text and node.plain and (match := _IN_A_LINE.fullmatch(key)):
                key, node = self._parted(match, key_place, frame)
            frame.key = None
            if frame.skip:
                frame.dropped.append((key, Entry(key_place, node)))
            elif key == "<<":
                frame.merged.append((node, key_place))
            else:
                frame.entries[key] = Entry(key_place, node)


def _is_split(one: Node, other: Node) -> bool:
    """Whether two whole numbers stand at both sides of a comma without a blank."""
    if not (isinstance(one, Scalar) and isinstance(other, Scalar)) or not (one.plain and other.plain):
        return False
    near = one.place.line == other.place.line and one.place.column + one.place.width + 1 == other.place.column
    return near and bool(re.fullmatch(r"[-+]?[0-9]+", one.text)) and bool(re.fullmatch(r"[0-9]+", other.text))


def _syntax_remedy(problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "is there a space after the colon before it, and is the indentation right? A text with ': ' needs quotes"
    if "unexpected end of stream" in problem:
        return "a quote is not closed"
    if "expected alphabetic or numeric" in problem:
        return "a text that begins with * or & needs quotes"
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


def override(root: Map, variables: Mapping[str, str], problems: list[Problem]) -> Map:
    """The tree with `CITYGATE__HTTP__LISTEN=…` and the like in place of what the files say.

    Parts are joined by two underscores; letter case and `-`, `.`, `_` do not matter where the files have the key already.
    A variable that fits no key is found when the tree is checked: unknown keys are errors. `[…]` and `{…}` are lists and
    maps, `!secret NAME` names a secret, `null` takes away what the files say as it does in a box above its base; all else is one value.
    """
    names: dict[tuple[str, ...], str] = {}
    for name in sorted(variables):
        parts = name.removeprefix(OVERRIDE).split("__")
        text, source = variables[name], Source(f"environment {name}", [])
        place = Place(source, 0, 0)
        if (first := names.setdefault(tuple(map(_folded, parts)), name)) != name:
            message = f"{first} and {name} are one key"
            problems.append(place_problem(Problem("duplicate-key", (), message, "take one of them away"), place))
        value: Node = Scalar(text, place)
        shape = text.strip()
        if (shape[:1], shape[-1:]) in (("[", "]"), ("{", "}")) or re.fullmatch(r"!secret +\S+", shape):
            try:
                value = _Builder(Source(source.name, [text]), problems).node(shape) or value
            except Unreadable as error:
                problems.append(error.problem)
        root = _put(root, parts, value, place)
    return root


def _put(node: Map, parts: list[str], value: Node, place: Place) -> Map:
    same = (key for key in node.entries if _folded(key) == _folded(parts[0]))
    key = next(same, parts[0].lower())
    old = node.get(key)
    if len(parts) == 1 and old and isinstance(value, Scalar) and value.text and plain_value(value) is None:
        return Map({name: its for name, its in node.entries.items() if name != key}, node.place, node.dropped)
    if len(parts) > 1 and isinstance(old, Map):  # a map that the files have stays theirs
        inner = Entry(node.entries[key].key, _put(old, parts[1:], value, place))
    elif len(parts) > 1:
        inner = Entry(place, _put(Map({}, place), parts[1:], value, place))
    else:
        inner = Entry(place, value)
    return Map({**node.entries, key: inner}, node.place, node.dropped)


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


def counted(root: Map) -> str:
    """`2 links, 7 devices, 1 broker`."""
    links = root.get("links")
    brokers = root.get("brokers")
    nodes = [entry.node for entry in links.entries.values()] if isinstance(links, Map) else []
    devices = [its for node in nodes if isinstance(node, Map) and isinstance(its := node.get("devices"), Map)]
    numbers = {
        "link": len(nodes),
        "device": sum(len(its.entries) for its in devices),
        "broker": len(brokers.entries) if isinstance(brokers, Map) else 0,
    }
    return ", ".join(f"{number or 'no'} {word}{'' if number == 1 else 's'}" for word, number in numbers.items())
