"""Put a device into the operator's file: only lines are added, comments and layout stay."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gateway.config.loader import config_files
from gateway.config.tree import LOADER, Place, Scalar, Source, is_surprise, plain_value
from gateway.sdk.errors import ConfigError

_SAFE = re.compile(r"[A-Za-z/][\w./+@-]*(?::[\w./+@-]+)*|[0-9]+(?:\.[0-9]+)? ?[A-Za-z/]+")
_NOWHERE = Place(Source("", []), 0, 0)


def put_device(
    config: Path, link: str, device: str, settings: Mapping[str, Any], link_settings: Mapping[str, Any] | None = None
) -> Path:
    """Add a device to a link and write the file, whole or not at all.

    Args:
        config: as given to `-c`.
        settings: keys of the device.
        link_settings: keys of the link (driver, port, …) if it is new.

    Returns:
        The file that was written: the one that has the link's devices, else the main file.

    Raises:
        ConfigError: there is such a device, no such link, or the file has a form that cannot be added to.
    """
    main, fragments = config_files(config)
    files = {file: file.read_text(encoding="utf-8") for file in (main, *fragments)}
    if any(_at(text, ("links", link, "devices", device)) for text in files.values()):
        raise ConfigError(f"link {link} has a device {device} already")
    home = next((file for file, text in files.items() if _at(text, ("links", link, "devices"))), None)
    home = home or next((file for file, text in files.items() if _at(text, ("links", link))), None)
    if home is None and link_settings is None:
        raise ConfigError(f"there is no link {link}")
    file = home or main
    _replace(file, with_device(files[file], link, device, settings, link_settings))
    return file


def with_device(
    text: str, link: str, device: str, settings: Mapping[str, Any], link_settings: Mapping[str, Any] | None = None
) -> str:
    """The text of one file with the device in it.

    Raises:
        ConfigError: the text cannot be added to without harm.
    """
    wanted: dict[str, Any] = {device: dict(settings)}
    above = {("links", link, "devices"): {}, ("links", link): dict(link_settings or {}), ("links",): {}}
    for path in (*above, ()):
        node = _at(text, path)
        if isinstance(node, yaml.MappingNode) or (node is None and not path):
            changed = _inserted(text, node, wanted, root=not path)
            _check(text, changed, link, device, settings)
            return changed
        if node is not None and path:
            break  # something else than a map stands there
        if path:
            wanted = {path[-1]: {**above[path], **wanted}}
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


def _at(text: str, path: tuple[str, ...]) -> yaml.Node | None:
    """The node at a path, or None."""
    try:
        node = yaml.compose(text, Loader=LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(f"the file is not YAML: {error}") from error
    for key in path:
        values = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for name, value in values if name.value == key), None)
    return node


def _inserted(text: str, node: yaml.MappingNode | None, wanted: Mapping[str, Any], *, root: bool) -> str:
    lines = text.splitlines()
    if node is None or (root and not node.flow_style) or not (node.value or node.flow_style):
        return _joined([*lines, *_block(wanted, 0)])
    if node.flow_style:
        return _in_flow(text, node, wanted)
    indent = node.value[0][0].start_mark.column
    after = _last_line(node) + 1
    return _joined([*lines[:after], *_block(wanted, indent), *lines[after:]])


def _in_flow(text: str, node: yaml.MappingNode, wanted: Mapping[str, Any]) -> str:
    """Behind the last value; before the brace there may be a comment."""
    written = in_yaml(wanted)[1:-1]
    if not node.value:
        at = node.start_mark.index + 1
        return f"{text[:at]}{written}{text[at:]}"
    at = node.value[-1][1].end_mark.index
    return f"{text[:at]}, {written}{text[at:]}"


def _last_line(node: yaml.Node) -> int:
    """0-based line in which a node ends; the end mark of a block stands after its trailing comments."""
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode) and node.value and not node.flow_style:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    mark = node.end_mark
    return mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else mark.line


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


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _check(old: str, new: str, link: str, device: str, settings: Mapping[str, Any]) -> None:
    """Refuse to have changed anything but what was asked for."""
    try:
        before, after = yaml.load(old, LOADER) or {}, yaml.load(new, LOADER)
        added = after["links"][link]["devices"].pop(device, None)
        for path in (("links", link, "devices"), ("links", link), ("links",)):
            if _in(before, path) is None:
                _in(after, path[:-1]).pop(path[-1], None)
        same = before == after and set(added or {}) == set(settings)
    except (yaml.YAMLError, RecursionError, LookupError, TypeError, AttributeError):
        same = False
    if not same:
        raise ConfigError(f"{device} cannot be put into this file without changing other parts; add it by hand")


def _in(data: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _replace(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    shutil.copymode(file, new)
    os.replace(new, file)
