"""What a schema says of a key, in the operator's words: what kind of value, its default and its bounds."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config.edit import in_yaml
from gateway.sdk.config import BOUNDS, DURATIONS_S, RATES_PER_S, SIZES_BYTES, units_of

Schema = Mapping[str, Any]

MAX_CHOICES = 8
_WITH_UNITS = {id(DURATIONS_S): "duration", id(SIZES_BYTES): "size", id(RATES_PER_S): "rate"}
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "map",
}


def flat(schema: Schema, definitions: Schema) -> Schema:
    """References followed; of alternatives the first that is more than null, long forms before short ones."""
    merged: dict[str, Any] = dict(schema)
    for reference in [schema, *schema.get("allOf", ())]:
        if "$ref" in reference:
            target = flat(definitions[str(reference["$ref"]).rpartition("/")[2]], definitions)
            merged = {**target, **{key: value for key, value in merged.items() if key not in ("$ref", "allOf")}}
    options = [flat(option, definitions) for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    options = [option for option in options if "required" not in option or "properties" in option]
    if options and "properties" not in merged:
        best = next((option for option in options if option.get("properties")), options[0])
        merged = {**best, **{key: value for key, value in merged.items() if key != "anyOf"}}
    return merged


def kind(schema: Schema, definitions: Schema | None = None) -> str:
    """`duration`, `true or false`, `auto, system`; without definitions what is referred to is a map."""
    if schema.get("anyOf"):
        kinds = [kind(option, definitions) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema or "allOf" in schema:
        return "map" if definitions is None else kind(flat(schema, definitions), definitions)
    if schema.get("writeOnly"):
        return "secret"
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return ", ".join(f"`{value}`" for value in values if value != "") if len(values) <= MAX_CHOICES else "name"
    table = units_of(str(schema.get("pattern", "")))
    if table is not None:
        return _WITH_UNITS[id(table)]
    if schema.get("format") in ("date", "date-time"):
        return "day" if schema["format"] == "date" else "time"
    if isinstance(schema.get("items"), dict):
        return f"list of {kind(schema['items'], definitions)}"
    if isinstance(schema.get("items"), list) or "prefixItems" in schema:
        return "place"
    word = schema.get("type", "object" if "properties" in schema else "")
    return _KINDS.get("string" if isinstance(word, list) else word, "any value")


def bounds(schema: Schema) -> str:
    """`50 to 4000000`, `at least 1 MB`; "" when there are none."""
    return "; ".join(dict.fromkeys(filter(None, map(_bounds, [schema, *schema.get("anyOf", ())]))))


def _bounds(schema: Schema) -> str:
    if BOUNDS in schema:
        return str(schema[BOUNDS])
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']:.15g} to {schema['maximum']:.15g}"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join(f"{word} {schema[key]:.15g}" for key, word in limits.items() if key in schema)


def facts(schema: Schema, *, needed: bool) -> str:
    """`duration · default `15 s` · 0 s to 1 h`."""
    what = kind(schema)
    found = [what] if "map" not in what and "`" not in what and what != "name" else []
    found += ["must be given"] if needed else []
    found += [f"default `{default(schema)}`"] if default(schema) else []
    return " · ".join([*found, *filter(None, [bounds(schema)])])


def default(schema: Schema) -> str:
    """As one writes it; "" when there is none that says something."""
    value = schema.get("default")
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value in (None, "", []) or isinstance(value, dict) else in_yaml(value)


def words(name: str) -> str:
    """`AttributeMapping` -> `attribute mapping`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.removesuffix("Config")).lower()


def nested(schema: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """The maps inside a key's value: ("", map), or a name's place and the map of one of them."""
    inner = flat(schema, definitions)
    if inner.get("properties"):
        yield "", inner
    member = inner.get("additionalProperties")
    if isinstance(member, dict) and (its := flat(member, definitions)).get("properties"):
        yield "NAME", its
