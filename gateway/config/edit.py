"""Put a device into the operator's file: only lines are added, comments and layout stay."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gateway.config.loader import ASIDE, config_files, files_of
from gateway.config.tree import (
    LOADER,
    Entry,
    Items,
    Map,
    Node,
    Place,
    Scalar,
    Source,
    is_surprise,
    plain_value,
    read_tree,
    tree_of,
)
from gateway.sdk.errors import ConfigError, Problem
from gateway.sdk.files import sync_folder

_SAFE = re.compile(r"[A-Za-z/][\w./+@-]*(?::[\w./+@-]+)*|[0-9]+(?:\.[0-9]+)? ?[A-Za-z/]+")
_NOWHERE = Place(Source("", []), 0, 0)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


def put_device(
    config: Path,
    link: str,
    device: str,
    settings: Mapping[str, Any],
    link_settings: Mapping[str, Any] | None = None,
    *,
    home: Path | None = None,
) -> Path:
    """Add a device to a link and write the file, whole or not at all.

    Args:
        config: as given to `-c`.
        settings: keys of the device.
        link_settings: keys of the link (driver, port, …) if it is new.
        home: see `gateway.config.loader.load`.

    Returns:
        The file that was written: the one of this box that has the link's devices, else the main file; never a base.

    Raises:
        ConfigError: there is such a device, no such link, or the file has a form that cannot be added to.
    """
    with alone(config_files(config)[0].parent):
        return _put(config, link, device, settings, link_settings, home)


def _put(
    config: Path,
    link: str,
    device: str,
    settings: Mapping[str, Any],
    link_settings: Mapping[str, Any] | None,
    home: Path | None,
) -> Path:
    main, fragments = config_files(config)
    files = {file: _text(file) for file in files_of(config, home)}
    own = {file: files[file] for file in (main, *fragments)}
    place = next((file for file, text in own.items() if _at(text, ("links", link, "devices"))), None)
    place = place or next((file for file, text in own.items() if _at(text, ("links", link))), None)
    for file, text in own.items() if len(files) > len(own) else ():
        _refuse_taken(file, text, link, device)
    for text in files.values():
        if _at(text, ("links", link, "devices", device)):
            raise ConfigError(f"link {link} has a device {device} already")
    known = place or next((file for file, text in files.items() if _at(text, ("links", link))), None)
    if known is None and link_settings is None:
        raise ConfigError(no_link(link, link_names(config, home)))
    if known is not None and link_settings:
        raise ConfigError(f"link {link} is there already: its keys are changed in {known}, not with --link")
    file = place or main
    changed = with_device(files[file], link, device, settings, link_settings)
    if _text(file) != files[file]:  # an editor asks for no lock
        raise ConfigError(f"{file} was changed meanwhile and stays as it is; try again")
    replace_file(file, changed)
    return file


def _refuse_taken(file: Path, text: str, link: str, device: str) -> None:
    """A null that takes away what a base has is not for us to remove: all that is below it would come back."""
    for path in (("links",), ("links", link), ("links", link, "devices"), ("links", link, "devices", device)):
        part = _at(text, path)
        if part is not None and part.empty and part.end.index > part.start.index:
            raise ConfigError(f"{'.'.join(path)} is null in {file.name}: remove that line first")


def link_names(config: Path, home: Path | None = None) -> list[str]:
    """The links there are, of all files."""
    return list(dict.fromkeys(name for file in files_of(config, home) for name in _keys(_at(_text(file), ("links",)))))


def no_link(link: str, known: list[str]) -> str:
    """What to say of a link that is not in the file."""
    there = f"there are {', '.join(known)}" if known else "there is none yet"
    return f"there is no link {link} ({there}); a new one is made with --link, as in --link driver=modbus --link port=/dev/ttyUSB0"


def with_device(
    text: str, link: str, device: str, settings: Mapping[str, Any], link_settings: Mapping[str, Any] | None = None
) -> str:
    """The text of one file with the device in it.

    Raises:
        ConfigError: the text cannot be added to without harm.
    """
    before = _tree(text)
    wanted: dict[str, Any] = {device: dict(settings)}
    above = {("links", link, "devices"): {}, ("links", link): dict(link_settings or {}), ("links",): {}}
    for path in (*above, ()):
        part = _at(text, path)
        if part is not None and (part.entries is not None or part.empty):
            changed = _inserted(text, part, wanted)
            _check(before, changed, link, device, settings)
            return changed
        if part is not None and path:
            break  # something else than a map stands there
        if path:
            wanted = {path[-1]: {**above[path], **wanted}}
        elif part is None:
            return _joined(text, len(text), _block(wanted, 0))  # nothing in it but comments
    raise ConfigError("the file has no map of links by name to add to; add the device by hand")


def in_yaml(value: Any) -> str:
    """A value on one line, quoted where it could be misread."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{in_yaml(str(key))}: {in_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(in_yaml(item) for item in value)}]"
    if isinstance(value, str):
        scalar = Scalar(value, _NOWHERE)
        plain = _SAFE.fullmatch(value) and plain_value(scalar) == value and not is_surprise(scalar)
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


@dataclass(slots=True)
class _Part:
    """A value and where it stands in the text.

    Attributes:
        entries: of a map, each key with its column and value.
        items: of a list.
        target: what an alias stands for; its own marks are where the alias is.
        parent_column: of the key whose value this is.
        file_end: of the outermost value, where the file's or the document's end is.
    """

    start: Any  # the parsers of PyYAML have marks of their own each
    end: Any
    flow: bool = False
    empty: bool = False
    entries: "list[tuple[str, int, _Part]] | None" = None
    items: "list[_Part]" = field(default_factory=list)
    target: "_Part | None" = None
    parent_column: int = -2
    file_end: int = 0

    @property
    def itself(self) -> "_Part":
        """What is meant: of an alias its target."""
        return self.target or self


def _text(file: Path) -> str:
    """The file's text, its line ends as they are; ConfigError says what keeps it from being read."""
    problems: list[Problem] = []
    read_tree(file, problems)
    if problems:
        raise ConfigError(tuple(problems))
    return file.read_bytes().decode("utf-8")


def _tree(text: str) -> Map:
    problems: list[Problem] = []
    tree = tree_of(text, Source("the file", text.splitlines()), problems)
    if problems:
        raise ConfigError(tuple(problems))
    return tree


def _parts(text: str) -> _Part | None:
    """The text's outermost value; None when there is none."""
    events: Iterator[Any] = yaml.parse(text, Loader=LOADER)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            root = _part(next(events), events, {})
            end = next(events)
            root.file_end = int(end.start_mark.index) if end.explicit else len(text)
            return root
    return None


def _part(event: Any, events: Iterator[Any], anchors: dict[str, _Part]) -> _Part:
    part = _Part(event.start_mark, event.end_mark)
    if isinstance(event, yaml.AliasEvent):
        part.target = anchors.get(str(event.anchor))
        return part
    if isinstance(event, yaml.ScalarEvent):
        part.empty = event.implicit[0] and event.value in ("", "~", "null", "Null", "NULL")
    elif isinstance(event, yaml.MappingStartEvent):
        part.flow, part.entries = bool(event.flow_style), []
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            named = _part(key, events, anchors)
            value = _part(next(events), events, anchors)
            value.parent_column = key.start_mark.column
            value.end = max(value.end, named.end, key=lambda mark: int(mark.index))
            part.entries.append((getattr(key, "value", ""), key.start_mark.column, value))
        part.end = key.end_mark
    else:
        part.flow = bool(event.flow_style)
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            part.items.append(_part(item, events, anchors))
        part.end = item.end_mark
    if event.anchor:
        anchors[event.anchor] = part
    return part


def _at(text: str, path: tuple[str, ...]) -> _Part | None:
    """The part at a path, through aliases and `<<`; None when there is none."""
    part = _parts(text)
    for key in path:
        part = _member(part, key) if part else None
    return part.itself if part else None


def _member(part: _Part, key: str) -> _Part | None:
    entries = part.itself.entries or ()
    for name, _, value in entries:
        if name == key:
            return value
    merged = (inner for name, _, value in entries if name == "<<" for inner in value.itself.items or (value,))
    return next((found for inner in merged if (found := _member(inner, key))), None)


def _keys(part: _Part | None) -> list[str]:
    return [name for name, _, _ in (part.entries if part else None) or ()]


def _inserted(text: str, part: _Part, wanted: Mapping[str, Any]) -> str:
    if part.file_end and not part.flow:
        return _joined(text, part.file_end, _block(wanted, 0))
    if part.empty:  # `devices:` with nothing behind it, or a null
        text = text[: part.start.index] + text[part.end.index :] if part.end.index > part.start.index else text
        return _joined(text, _line_end(text, part.start), _block(wanted, part.parent_column + 2))
    if part.flow:
        return _in_flow(text, part, wanted)
    assert part.entries
    [(_, indent, _), *_] = part.entries
    return _joined(text, _end(text, part), _block(wanted, indent))


def _in_flow(text: str, part: _Part, wanted: Mapping[str, Any]) -> str:
    """Behind the last value; before the brace there may be a comment."""
    written = in_yaml(wanted)[1:-1]
    if not part.entries:
        at = text.index("{", part.start.index) + 1  # behind an anchor
        return f"{text[:at]}{written}{text[at:]}"
    at = part.entries[-1][2].end.index
    return f"{text[:at]}, {written}{text[at:]}"


def _end(text: str, part: _Part) -> int:
    """Where the line behind a value begins; the end mark of a block stands after its trailing comments."""
    if not part.flow and (part.entries or part.items):
        return _end(text, part.entries[-1][2] if part.entries else part.items[-1])
    if part.end.column == 0 and part.end.line > part.start.line:
        return int(part.end.index)  # a block of text ends where the next line begins
    return _line_end(text, part.end)


def _line_end(text: str, mark: yaml.Mark) -> int:
    found = _BREAK.search(text, mark.index)
    return found.end() if found else len(text)


def _block(wanted: Mapping[str, Any], indent: int, depth: int = 0) -> list[str]:
    """Maps down to the device as blocks, what is in it on one line each."""
    lines: list[str] = []
    for key, value in wanted.items():
        if isinstance(value, Mapping) and value and depth < 4 and not _small(value, key):
            lines += [f"{' ' * indent}{in_yaml(key)}:", *_block(value, indent + 2, depth + 1)]
        else:
            lines.append(f"{' ' * indent}{in_yaml(key)}: {in_yaml(value)}")
    return lines


def _small(value: Mapping[str, Any], key: str) -> bool:
    return key in ("calibrate", "report", "entity")


def _joined(text: str, at: int, lines: list[str]) -> str:
    """Lines put in at a place where a line begins, with the line ends that the text has."""
    found = _BREAK.search(text)
    end = found[0] if found else "\n"
    before = "" if not text[:at] or _BREAK.search(text[at - 1 : at]) else end
    return text[:at] + before + "".join(line + end for line in lines) + text[at:]


def _check(before: Map, text: str, link: str, device: str, settings: Mapping[str, Any]) -> None:
    """Refuse to have changed anything but what was asked for."""
    with contextlib.suppress(ConfigError):
        after = _tree(text)
        added = _member_of(after, ("links", link, "devices", device))
        for path in (("links", link, "devices", device), ("links", link, "devices"), ("links", link), ("links",)):
            if not isinstance(_member_of(before, path), Map):
                after = _without(after, path)
        empty = _emptied(before, link)
        if _same(_own(empty), _own(after)) and isinstance(added, Map) and set(added.entries) == set(settings):
            return
    raise ConfigError(f"{device} cannot be put into this file without changing other parts; add it by hand")


def _member_of(node: Node | None, path: tuple[str, ...]) -> Node | None:
    for key in path:
        node = node.get(key) if isinstance(node, Map) else None
    return node


def _without(root: Map, path: tuple[str, ...]) -> Map:
    """The tree without what stands at a path."""
    key, *deeper = path
    entries = dict(root.entries)
    if not deeper:
        entries.pop(key, None)
    elif key in entries and isinstance(inner := entries[key].node, Map):
        entries[key] = Entry(entries[key].key, _without(inner, tuple(deeper)))
    return Map(entries, root.place, root.dropped)


def _emptied(root: Map, link: str) -> Map:
    """The tree without the nulls in whose place a map may come."""
    for path in (("links", link, "devices"), ("links", link), ("links",)):
        node = _member_of(root, path)
        if isinstance(node, Scalar) and plain_value(node) is None:
            root = _without(root, path)
    return root


def _own(root: Map) -> Map:
    """What counts: the places for anchors are left alone by the loader."""
    return Map({key: entry for key, entry in root.entries.items() if not key.startswith(ASIDE)}, root.place)


def _same(one: Node, other: Node) -> bool:
    match one, other:
        case Map(), Map():
            keys = one.entries.keys() == other.entries.keys()
            return keys and all(_same(entry.node, other.entries[key].node) for key, entry in one.entries.items())
        case Items(), Items():
            return len(one.items) == len(other.items) and all(map(_same, one.items, other.items))
        case Scalar(), Scalar():
            return (one.text, one.plain, one.tag) == (other.text, other.plain, other.tag)
    return False


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other command changes the files of this config meanwhile; it is waited for. One that is killed lets go."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def replace_file(file: Path, text: str) -> None:
    """Whole or not at all, also at a power cut; owner and mode of what was there stay, and a link to the file stays one."""
    file = file.resolve()
    new = file.with_name(f".{file.name}.new")
    try:
        with new.open("w", encoding="utf-8", newline="") as out:
            if file.exists():
                _like(file, new)  # before there is anything in it to be read
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, file)
        sync_folder(file.parent)
    finally:
        new.unlink(missing_ok=True)


def _like(file: Path, new: Path) -> None:
    """The daemon's group must still be able to read it; who may not give a file away keeps the group at least."""
    was, now = file.stat(), new.stat()
    for owner in dict.fromkeys((was.st_uid, -1)):
        if (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid):
            try:
                os.chown(new, owner, was.st_gid)
            except PermissionError:
                if owner == -1:
                    raise PermissionError(
                        errno.EPERM, f"{file.name} would lose its group, which is none of yours"
                    ) from None
                continue
        break
    shutil.copymode(file, new)
