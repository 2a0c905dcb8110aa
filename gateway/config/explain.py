"""Problem -> file:line:column, source line, caret, "did you mean", remedy; and a pydantic error -> Problem."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from gateway.config.secrets import SENSITIVE, hide_in_line
from gateway.config.tree import NO_BLANK, Found, Items, Map, Node, Scalar, find, is_surprise, place_problem
from gateway.sdk.config import in_words, units_of
from gateway.sdk.errors import Problem

NUMBER_ERRORS = frozenset(
    f"{kind}_{what}"
    for kind in ("int", "float", "bool", "decimal")
    for what in ("type", "parsing", "from_float", "parsing_size")
)
_RANGE_ERRORS = frozenset(
    ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "multiple_of")
)
_SHAPE_ERRORS = {
    "string_type": "a text",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "dataclass_type": "a map",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "none_required": "nothing",
}
_JOINED = re.compile(r"([A-Za-z_][\w-]*):(?!//)(\S+)")
_LENGTH_ERRORS = frozenset(("too_short", "too_long", "string_too_short", "string_too_long"))


def text(problem: Problem) -> str:
    """One problem as a compiler shows it, several lines."""
    place = problem.file or "config"
    if problem.line:
        place += f":{problem.line}:{problem.column}"
    where = ".".join(map(str, problem.path))
    head = f"{place}: {problem.severity}: {where + ': ' if where else ''}{problem.message} [{problem.code}]"
    lines = [head]
    if problem.source.strip():
        shown = hide_in_line(problem.source.expandtabs(1).rstrip())
        width = min(problem.width, max(len(shown) - problem.column + 1, 1))
        lines += (
            [f"    {shown[:160]}", f"    {' ' * (problem.column - 1)}{'^' * width}"] if problem.column < 160 else []
        )
    if problem.remedy:
        lines.append(f"    → {problem.remedy}")
    return "\n".join(lines)


def as_json(problem: Problem) -> dict[str, Any]:
    """The shape of `check --json`: {code, severity, file, line, column, path, message, remedy}."""
    return {
        "code": problem.code,
        "severity": problem.severity,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": ".".join(map(str, problem.path)),
        "message": problem.message,
        "remedy": problem.remedy,
    }


def report(problems: Iterable[Problem]) -> dict[str, Any]:
    """The object that `check --json` prints; `ok` is false when there is an error, warnings alone are fine."""
    listed = in_order(problems)
    return {"ok": not any(p.severity == "error" for p in listed), "problems": [as_json(p) for p in listed]}


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """By file and place, each once."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=lambda p: (p.file, p.line, p.column, p.code, p.message)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean every?`, or "" when nothing is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]}?" if near else ""


def known_or_near(word: str, known: Iterable[str], what: str = "known") -> str:
    """The near one, else all of them."""
    known = tuple(known)
    listed = ", ".join(sorted(known)[:40]) + (", …" if len(known) > 40 else "")
    return did_you_mean(word, known) or (f"{what}: {listed}" if known else "")


def locate(problem: Problem, root: Node) -> Problem:
    """The problem with its place in the tree, from its path."""
    found = find(root, problem.path)
    value = problem.at == "value" and found.missing is None and not isinstance(found.node, Map)
    return place_problem(problem, found.node.place if value else found.key)


def from_pydantic(
    errors: Sequence[ErrorDetails], model: type[BaseModel], root: Node, prefix: tuple[str, ...] = ()
) -> list[Problem]:
    """Validation errors of `model` on the tree `root` as placed problems; the alternatives of a union are one problem."""
    groups: dict[tuple[Any, ...], list[ErrorDetails]] = {}
    for error in errors:
        found = find(root, error["loc"])
        alone = error["type"] in ("missing", "extra_forbidden")
        groups.setdefault((found.path, found.missing if alone else None, alone), []).append(error)
    return [_problem(group, model, root, prefix) for group in groups.values()]


def _problem(group: list[ErrorDetails], model: type[BaseModel], root: Node, prefix: tuple[str, ...]) -> Problem:
    error = group[0]
    found = _blamed(error, root) or find(root, error["loc"])
    schema = _schema_at(model, found.path)
    code, message, remedy, at_key = _describe(error, found, model, schema)
    for other in group[1:]:
        also = _describe(other, found, model, schema)[1]
        message += f"; or: {also}" if also not in message else ""
    path = (*prefix, *found.path)
    if error["type"] == "missing" and found.missing is not None:
        path = (*path, found.missing)
    place = found.key if at_key or isinstance(found.node, Map) else found.node.place
    return place_problem(
        Problem(code=code, path=path, message=message, remedy=remedy, at="key" if at_key else "value"), place
    )


_BLAME = re.compile(r"(?:Value error, )?([^\s:]+): .+", re.DOTALL)


def _blamed(error: ErrorDetails, root: Node) -> Found | None:
    """What a check of a whole map blames: it may begin its message with the path, `devices.meter-12.unit_id: …`."""
    match = _BLAME.fullmatch(error["msg"]) if error["type"] in ("value_error", "assertion_error") else None
    if not match:
        return None
    node = find(root, error["loc"])
    rest, parts = match[1], list(node.path)
    inner: Node = node.node
    while rest:
        keys = (
            [key for key in inner.entries if rest == key or rest.startswith(f"{key}.")]
            if isinstance(inner, Map)
            else []
        )
        if not keys:
            return None
        key = max(keys, key=len)  # a name may have dots in it
        parts.append(key)
        inner, rest = inner.entries[key].node, rest[len(key) + 1 :]  # type: ignore[union-attr]
    return find(root, tuple(parts))


def _describe(
    error: ErrorDetails, found: Found, model: type[BaseModel], schema: Mapping[str, Any]
) -> tuple[str, str, str, bool]:
    """(code, message, remedy, point at the key)."""
    kind, context = error["type"], error.get("ctx", {})
    meaning = _meaning(schema)
    shown = _shown(found)
    if kind == "extra_forbidden":
        word = str(found.path[-1])
        parent = _schema_at(model, found.path[:-1])
        return "unknown-key", "unknown key", known_or_near(word, _keys(parent), "keys here"), True
    if kind == "missing":
        if found.missing is None:
            return "missing-key", "a value is missing", meaning, True
        described = _meaning(_schema_at(model, (*found.path, found.missing)))
        return "missing-key", f"missing key {found.missing}", described, True
    if isinstance(found.node, Scalar) and is_surprise(found.node) and kind in NUMBER_ERRORS:
        return "yaml-surprise", *_surprise(found.node.text, kind), False
    if isinstance(found.node, Scalar) and found.node.plain and not found.node.text:
        return "missing-value", "no value after the key", meaning or "give one or remove the key", True
    if kind in NUMBER_ERRORS:
        wanted = (
            "true or false" if kind.startswith("bool") else "a whole number" if kind.startswith("int") else "a number"
        )
        bare = shown.strip('"')
        remedy = f"write {bare.replace(',', '.')}" if re.fullmatch(r"[-+]?[0-9]+,[0-9]+", bare) else meaning
        return "wrong-type", f"{shown} is not {wanted}", remedy, False
    if kind in ("list_type", "tuple_type") and isinstance(found.node, Scalar) and found.node.text:
        bare = shown.strip('"') if "," in shown else shown  # the quotes stand around all of them
        return "wrong-type", f"{shown} instead of a list", f"write [{bare}]", False
    if _SHAPE_ERRORS.get(kind) == "a map" and isinstance(found.node, Scalar) and (joined := _JOINED.fullmatch(shown)):
        return "missing-blank", NO_BLANK, f"write {joined[1]}: {joined[2]}", False
    if kind in _SHAPE_ERRORS:
        return "wrong-type", f"{shown} instead of {_SHAPE_ERRORS[kind]}", meaning, isinstance(found.node, Map)
    if kind in _RANGE_ERRORS:
        return "out-of-range", f"{shown} is outside {_bounds(schema, context)}", meaning, False
    if kind in ("literal_error", "enum"):
        known = _choices(schema) or [str(context.get("expected", ""))]
        word = found.node.text if isinstance(found.node, Scalar) and shown != "the secret" else ""
        remedy = meaning if len(known) == 1 else did_you_mean(word, known)  # of a single choice nothing is near
        return "unknown-choice", f"{shown} is not one of {', '.join(known)}", remedy, False
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return "unknown-choice", f"{shown} is not one of {context.get('expected_tags', '')}", meaning, False
    if kind == "string_pattern_mismatch":
        return "wrong-form", f"{shown} has not the form {context.get('pattern', '')}", meaning, False
    if kind in _LENGTH_ERRORS:
        return "wrong-length", _length(kind, context), meaning, isinstance(found.node, Map)
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "timezone_aware":
        message = f"{shown} has no zone; write it as in 2026-06-01T00:00:00Z"
    elif kind.startswith("date"):
        message = f"{shown} is not a time; write it as in 2026-06-01T00:00:00Z"
    dotted = ".".join(map(str, found.path[len(error["loc"]) :]))
    message = message.removeprefix(f"{dotted}: ") if dotted else message
    whole = isinstance(found.node, Map)  # a check of several keys says what to do in its message
    return "invalid-value", message, "" if whole else meaning, whole


def _meaning(schema: Mapping[str, Any]) -> str:
    """What a key is for; of a part of the file, what it needs (its description is for developers)."""
    if schema.get("description") or "properties" not in schema:
        return str(schema.get("description", ""))
    needed = ", ".join(schema.get("required", ()))
    return f"it needs {needed}" if needed else f"keys: {', '.join(list(schema['properties'])[:12])}"


def _length(kind: str, context: Mapping[str, Any]) -> str:
    what = "characters" if kind.startswith("string") else "entries"
    bound = f"at most {context['max_length']}" if "max_length" in context else f"at least {context.get('min_length')}"
    have = f", not {context['actual_length']}" if context.get("actual_length") is not None else ""
    return f"{bound} {what}{have}"


def _surprise(written: str, kind: str) -> tuple[str, str]:
    """(message, remedy) for a text that YAML 1.1 and 1.2 read differently."""
    if kind.startswith("bool"):
        return f"{written} is not true or false: YAML versions disagree about it", "write true or false"
    remedy = "write the decimal number, without leading zeros, underscores and colons"
    return f"{written} is no plain number: YAML versions disagree about its value", remedy


def _shown(found: Found) -> str:
    node = found.node
    if isinstance(node, Map):
        return "a map"
    if isinstance(node, Items):
        return "a list"
    if node.tag == "!secret" or (found.path and SENSITIVE.match(str(found.path[-1]))):
        return "the secret"
    text = node.text if len(node.text) <= 80 else node.text[:79] + "…"
    return text if node.plain and text.isprintable() and text else json.dumps(text, ensure_ascii=False)


def _bounds(schema: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    lows, highs = [], []
    table = next((its for part in _alternatives(schema) if (its := units_of(str(part.get("pattern", ""))))), None)

    def said(bound: float) -> str:
        return in_words(bound, table) if table else f"{bound:g}"

    for part in _alternatives(schema):
        if "minimum" in part or "exclusiveMinimum" in part:
            lows.append(said(part["minimum"]) if "minimum" in part else f"above {said(part['exclusiveMinimum'])}")
        if "maximum" in part or "exclusiveMaximum" in part:
            highs.append(said(part["maximum"]) if "maximum" in part else f"below {said(part['exclusiveMaximum'])}")
    if lows and highs:
        return f"{lows[0]}–{highs[0]}"
    if lows or highs:
        return f"what is allowed: {'at least' if lows and lows[0][0] != 'a' else ''} {(lows or highs)[0]}".replace(
            "  ", " "
        )
    limits = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    stated = [f"{words} {said(context[key])}" for key, words in limits.items() if key in context]
    return f"what is allowed: {', '.join(stated)}" if stated else "the finite numbers"


def _choices(schema: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for part in _alternatives(schema):
        found += [str(value) for value in part.get("enum", ())]
        if "const" in part:
            found.append(str(part["const"]))
    return found


def _keys(schema: Mapping[str, Any]) -> list[str]:
    return [key for part in _alternatives(schema) for key in part.get("properties", {})]


_schemas: dict[type[BaseModel], dict[str, Any]] = {}


def _schema_at(model: type[BaseModel], path: tuple[str | int, ...]) -> Mapping[str, Any]:
    """The JSON schema of what stands at a path, with description and bounds; {} where the model says nothing.

    Only asked when there is an error to explain: making a schema takes milliseconds.
    """
    if model not in _schemas:
        try:
            _schemas[model] = model.model_json_schema(by_alias=True)
        except Exception:  # noqa: BLE001 - a driver's own type may have no schema; the message is then poorer
            _schemas[model] = {}
    root = _schemas[model]
    schema: Mapping[str, Any] = _resolve({key: value for key, value in root.items() if key != "description"}, root)
    for part in path:
        schema = _resolve(_child(schema, part, root), root)
    return schema


def _child(schema: Mapping[str, Any], part: str | int, root: Mapping[str, Any]) -> Mapping[str, Any]:
    for option in _alternatives(schema):
        option = _resolve(option, root)
        if isinstance(part, int):
            prefix = option.get("prefixItems", ())
            if part < len(prefix):
                return dict(prefix[part])
            if isinstance(option.get("items"), dict):
                return dict(option["items"])
        elif part in option.get("properties", {}):
            return dict(option["properties"][part])
        elif isinstance(option.get("additionalProperties"), dict):
            return dict(option["additionalProperties"])
        elif option.get("patternProperties"):
            return dict(next(iter(option["patternProperties"].values())))
    return {}


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references, here and in the alternatives; what stands beside a reference wins."""
    for _ in range(8):
        if "$ref" not in schema:
            break
        target = root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {})
        if "properties" in target:  # its description is a docstring, for developers
            target = {key: value for key, value in target.items() if key != "description"}
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    resolved = dict(schema)
    for word in ("anyOf", "oneOf"):
        if word in resolved:
            resolved[word] = [_resolve(option, root) if "$ref" in option else option for option in resolved[word]]
    return resolved
