"""What in the file is a secret, and hiding it wherever a part of the file is shown. The model's type decides, then the
value; the spelling of a key only where no model knows it: mistyped keys, files that cannot be parsed, comments."""

import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr

from gateway.config.secrets import NAME, hide_in_line, looks_secret
from gateway.config.tree import Items, Map, Node, Scalar, Source
from gateway.hidden import MIN_HIDDEN
from gateway.sdk.config import Secret

NAMED = re.compile(r"(?i)(?:.*_)?(?:password|secret|token)|.+_key")  # fields of drivers that do not say it by type
_WORDS = re.compile(r"(?i)pass|secret|token|bearer|credential|api.?key|app.?key|nwk.?key|private")
_SECRETS = (Secret, SecretStr, SecretBytes)


def hide(parts: Iterable[tuple[Node, Any]]) -> frozenset[str]:
    """Hide every secret of these parts of the file in its source lines; the texts of those that stand there in clear.

    Args:
        parts: node, and the model or annotation that it is to fit (None: nobody knows).
    """
    found: set[str] = set()
    for node, annotation in parts:
        for scalar in _secrets(node, annotation):
            scalar.place.source.hide(scalar.place)
            if scalar.tag != "!secret" and len(scalar.text) >= MIN_HIDDEN:
                found.add(scalar.text)
    return frozenset(found)


def shown_lines(source: Source) -> list[str]:
    """The lines of a file whose secrets were hidden, its comments too; of one that is no YAML, by the words in it."""
    lines = _without_tree(source.lines) if not source.parsed else (hide_in_line(line) for line in source.lines)
    return list(_without_pem(lines))


def _without_pem(lines: Iterable[str]) -> Iterator[str]:
    """A key in PEM is many lines, whatever stands before them."""
    inside = False
    for line in lines:
        begins = line.find("-----BEGIN ")
        first = begins if begins >= 0 else len(line) - len(line.lstrip("# \t"))
        yield line[:first] + "•" * (len(line) - first) if inside or begins >= 0 else line
        inside = (inside or begins >= 0) and "-----END " not in line


def _without_tree(lines: Iterable[str]) -> Iterator[str]:
    """What is indented below a line with a hidden value belongs to it."""
    below = -1
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if below >= 0 and (indent > below or not line.strip()):
            yield "•" * len(line)
            continue
        key, colon, _ = line.partition(":")
        hidden = hide_in_line(line)
        below = indent if colon and _WORDS.search(key) else -1
        if below >= 0 and hidden == line and "!secret" not in line:
            hidden = key + colon + "•" * (len(line) - len(key) - 1)
        yield hidden


def _secrets(node: Node, annotation: Any) -> Iterator[Scalar]:
    parts = tuple(_alternatives(annotation))
    if any(isinstance(part, type) and issubclass(part, _SECRETS) for part in parts):
        yield from _all(node)
    elif isinstance(node, Map):
        for key, entry in (*node.entries.items(), *node.dropped):
            yield from _of_key(key, entry.node, parts)
    elif isinstance(node, Items):
        inner = [
            args[0] for part in parts if (args := typing.get_args(part)) and _is(part, list, tuple, set, frozenset)
        ]
        for item in node.items:
            yield from _secrets(item, inner[0] if inner else None)
    elif node.tag == "!secret":
        if looks_secret(node.text) or not NAME.fullmatch(node.text):
            yield node
    elif looks_secret(node.text):
        yield node


def _of_key(key: str, node: Node, parts: tuple[Any, ...]) -> Iterator[Scalar]:
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    fields = [
        its.annotation for model in models for name, its in model.model_fields.items() if key in (name, its.alias)
    ]
    values = [args[1] for part in parts if _is(part, dict, Mapping) and len(args := typing.get_args(part)) == 2]
    if fields and NAMED.fullmatch(key) and any(part is str for part in _alternatives(fields[0])):
        yield from _all(node)
    elif fields or values:
        for annotation in fields or values:
            yield from _secrets(node, annotation)
    elif _WORDS.search(key) or any(_near(key, model) for model in models):
        yield from _all(node)
    else:
        yield from _secrets(node, None)


def _all(node: Node) -> Iterator[Scalar]:
    """Every text below, but the names behind `!secret`."""
    if isinstance(node, Map):
        for _, entry in (*node.entries.items(), *node.dropped):
            yield from _all(entry.node)
    elif isinstance(node, Items):
        for item in node.items:
            yield from _all(item)
    elif node.text and (node.tag != "!secret" or looks_secret(node.text) or not NAME.fullmatch(node.text)):
        yield node


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The parts of a union, without what `Annotated` adds."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _alternatives(part)
    else:
        yield annotation


def _is(annotation: Any, *kinds: type) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, kinds)


def _near(key: str, model: type[BaseModel]) -> bool:
    """Whether an unknown key is a mistyped one of those that hold secrets."""
    return bool(difflib.get_close_matches(key.lower(), _holders(model), n=1, cutoff=0.6))


@functools.cache
def _holders(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a model below which a secret may stand."""
    return tuple(its.alias or name for name, its in model.model_fields.items() if _holds(its.annotation, frozenset()))


def _holds(annotation: Any, seen: frozenset[Any]) -> bool:
    for part in _alternatives(annotation):
        if isinstance(part, type) and issubclass(part, _SECRETS):
            return True
        if isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
            inner = seen | {part}
            if any(_holds(its.annotation, inner) for its in part.model_fields.values()):
                return True
        if any(_holds(arg, seen) for arg in typing.get_args(part) if arg is not ...):
            return True
    return False
