"""JSON Schema of the operator's file and of templates, for editors: hover texts, defaults, names, shapes by driver."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from gateway.config.facts import facts, words
from gateway.config.known import (
    NULL,
    Known,
    Schema,
    choice,
    know_profiles,
    know_templates,
    know_types,
    or_null,
    template_choice,
)
from gateway.config.loader import ASIDE
from gateway.config.model import NAME, BrokerConfig, CityProfile, Config
from gateway.sdk.config import in_words, units_of
from gateway.sdk.driver import Driver
from gateway.sdk.quantities import quantities, units
from gateway.sdk.template import Template

_A_NAME = {"pattern": f"^{NAME.pattern}$", "title": "NAME", "description": "letters, digits, - _ and ., at most 64"}
DIALECT = "http://json-schema.org/draft-07/schema#"  # what the YAML language servers of the editors know


def file_schema(
    drivers: Mapping[str, Driver[Any] | None], known: Known | None = None, *, fragment: bool = False
) -> Schema:
    """Schema of `citygate.yaml`.

    Args:
        drivers: by name; None for one that cannot be had here (then its links take any keys).
        fragment: of a file in `conf.d/`, which need not be complete.
    """
    known = known or Known()
    schema = _tidy(Config.model_json_schema(by_alias=True))
    definitions: Schema = schema.setdefault("$defs", {})
    shapes = [
        _shape(name, driver, known.templates.get(name, {}), definitions, fragment)
        for name, driver in drivers.items()
        if driver
    ]
    know_types(definitions, known.types)
    know_profiles(definitions, known.profiles)
    for name, templates in known.templates.items():
        for key in [key for key in definitions if key.startswith(f"{name}.")]:
            if _is_device(definitions[key]):
                know_templates(definitions[key], templates, definitions, name)
    driver_names = {"enum": sorted(drivers), "description": "kind of link"}
    definitions["Link"] = {
        "type": "object",
        "properties": {"driver": driver_names},
        **({} if fragment else {"required": ["driver"]}),
        "allOf": [*shapes, *(_any_device(definitions, drivers) if fragment else ())],
    }
    for part, definition in (("links", "Link"), ("brokers", "Broker")):
        schema["properties"][part] = {
            "type": "object",
            "description": schema["properties"][part]["description"],
            "additionalProperties": {"$ref": f"#/$defs/{definition}"},
            "propertyNames": _A_NAME,
        }
    for unused in ("LinkConfig", "DeviceConfig", "Template"):
        definitions.pop(unused, None)
    schema["patternProperties"] = {f"^{ASIDE}": {"description": "left alone: a place for anchors"}}
    if fragment:
        _all_optional(schema)
    title = "citygate conf.d fragment" if fragment else "citygate.yaml"
    made = _draft_07({"$schema": DIALECT, "title": title, **_without(schema, "title")})
    if fragment:
        made = _with_nulls(made)
    return made


def template_schema(driver: Driver[Any], known: Known | None = None) -> Schema:
    """Schema of a template for this driver; quantities and units are the closed lists."""
    known = known or Known()
    schema = _tidy(driver.template_model.model_json_schema(by_alias=True))
    definitions: Schema = schema.setdefault("$defs", {})
    know_types(definitions, known.types)
    measured = choice({name: its.meaning for name, its in sorted(quantities().items())})
    codes = {code: f"{its.symbol}, {its.name}" for code, its in sorted(units().items())}
    for definition in definitions.values():
        properties = definition.get("properties", {})
        if "quantity" in properties and "unit" in properties:
            properties["quantity"] |= measured
            properties["unit"] |= choice({"": "that of the quantity", **codes})
    needed: Schema = {"required": schema.pop("required", []), "properties": _needed(schema, definitions)}
    schema["properties"].pop("name", None)
    schema["properties"]["points"].pop("minProperties", None)
    schema["properties"]["extends"] = {
        "description": "vendor/model of the template this one is a variant of: only the differences are written",
        **template_choice(known.templates.get(driver.name, {})),
    }
    schema |= {"if": {"required": ["extends"]}, "else": needed}
    title = f"template of driver {driver.name}"
    made: Schema = _with_nulls(_draft_07({"$schema": DIALECT, "title": title, **_without(schema, "title")}))
    return made


def _needed(schema: Schema, definitions: Schema) -> Schema:
    """What the points and other named parts of a template must have, taken out of it: a variant says only what differs."""
    needed: Schema = {}
    for key, child in schema["properties"].items():
        more = child.get("additionalProperties")
        definition = definitions.get(str(more.get("$ref", "")).rpartition("/")[2]) if isinstance(more, dict) else None
        if definition and (required := definition.pop("required", None)):
            needed[key] = {"additionalProperties": {"required": required}}
    return needed


def profile_schema(known: Known | None = None) -> Schema:
    """Schema of a city profile `cities/<name>.yaml`."""
    types = known.types if known else {}
    schema = _tidy(CityProfile.model_json_schema(by_alias=True))
    definitions: Schema = schema.setdefault("$defs", {})
    broker = _tidy(BrokerConfig.model_json_schema(by_alias=True))
    definitions |= broker.pop("$defs", {}) | {"BrokerConfig": _without(broker, "required")}
    properties = schema["properties"]
    properties["broker"] |= {"allOf": [{"$ref": "#/$defs/BrokerConfig"}]}
    properties["broker"].pop("additionalProperties")
    if types:
        rule = properties["types"].pop("additionalProperties")
        properties["types"] |= {"properties": dict.fromkeys(sorted(types), rule), "additionalProperties": False}
        constants = sorted({name for its in types.values() for name in its.constants})
        properties["static"]["propertyNames"] = {"enum": constants}
    return _draft_07({"$schema": DIALECT, "title": "city profile", **_without(schema, "title")})


def key_paths(
    schema: Schema, defs: Schema | None = None, path: tuple[str, ...] = (), seen: frozenset[str] = frozenset()
) -> set[tuple[str, ...]]:
    """Paths of all keys that a schema knows; `*` stands for any name. Not into templates."""
    defs = schema.get("definitions", {}) if defs is None else defs
    found: set[tuple[str, ...]] = set()
    reference = str(schema.get("$ref", ""))
    if reference and reference not in seen:
        found |= key_paths(defs[reference.rpartition("/")[2]], defs, path, seen | {reference})
    for word in ("anyOf", "allOf", "oneOf"):
        for option in schema.get(word, ()):
            found |= key_paths(option, defs, path, seen)
    if "then" in schema:
        found |= key_paths(schema["then"], defs, path, seen)
    for key, child in schema.get("properties", {}).items():
        found |= {(*path, key)} | key_paths(child, defs, (*path, key), seen)
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        found |= key_paths(more, defs, (*path, "*"), seen)
    for child in schema.get("patternProperties", {}).values() if path else ():
        found |= key_paths(child, defs, (*path, "*"), seen)
    return found


def _shape(
    name: str, driver: Driver[Any], templates: Mapping[str, Template | None], definitions: Schema, fragment: bool
) -> Schema:
    """The keys of one driver's links, as `if driver is … then`."""
    schema = driver.config_model.model_json_schema(by_alias=True)
    _template_names(schema, templates)
    link = _prefixed(_tidy(schema), name, definitions)
    link.setdefault("properties", {})["driver"] = {"const": name, "description": _text(driver.config_model)}
    if isinstance(devices := link["properties"].get("devices"), dict):
        devices["propertyNames"] = _A_NAME
    if fragment:
        _all_optional(link)
    definitions[f"{name}.link"] = {**link, "title": f"{name} link"}
    if fragment:  # a device's keys may be spread over files too
        for key, definition in definitions.items():
            if key.startswith(f"{name}."):
                definition.pop("required", None)
    condition = {"properties": {"driver": {"const": name}}, "required": ["driver"]}
    return {"if": condition, "then": {"$ref": f"#/$defs/{name}.link"}}


def _any_device(definitions: Schema, drivers: Mapping[str, Any]) -> list[Schema]:
    """For a link whose driver stands in another file: its devices are those of some driver."""
    links = [definitions.get(f"{name}.link", {}) for name in drivers]
    devices = [link.get("properties", {}).get("devices", {}).get("additionalProperties") for link in links]
    known = {"additionalProperties": {"anyOf": devices}} if all(devices) else {}  # else a driver cannot be had here
    rule = {"properties": {"devices": {"type": "object", **known}}}
    return [{"if": {"not": {"required": ["driver"]}}, "then": rule}]


def _text(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _template_names(schema: Schema, templates: Mapping[str, Template | None]) -> None:
    """In the file a template is a name: the whole description of the device type is in its own file."""
    for definition in [schema, *schema.get("$defs", {}).values()]:
        if _is_device(definition):
            properties = definition["properties"]
            description = properties["template"].get("description", "device type")
            properties["template"] = {"description": description, **template_choice(templates)}


def _is_device(definition: Schema) -> bool:
    return {"template", "location"} <= set(definition.get("properties", {}))


def _prefixed(schema: Schema, name: str, definitions: Schema) -> Schema:
    """Move a driver's definitions, as far as they are used, under names of its own; what all drivers share stays where it is."""
    own: Schema = schema.pop("$defs", {})

    def renamed(node: Any) -> Any:
        if isinstance(node, dict):
            changed = {key: renamed(value) for key, value in node.items()}
            if "$ref" in changed:
                local = str(changed["$ref"]).rpartition("/")[2]
                if definitions.get(local) == own[local]:
                    return changed
                changed["$ref"] = f"#/$defs/{name}.{local}"
                if f"{name}.{local}" not in definitions:
                    definitions[f"{name}.{local}"] = {}  # a definition may refer to itself
                    definitions[f"{name}.{local}"] = renamed(own[local])
            return changed
        return [renamed(item) for item in node] if isinstance(node, list) else node

    result: Schema = renamed(schema)
    return result


def _all_optional(schema: Schema) -> None:
    schema.pop("required", None)
    for definition in schema.get("$defs", {}).values():
        definition.pop("required", None)


def _tidy(schema: Schema) -> Schema:
    """As the file is written: defaults with units, texts that look like numbers, short forms; no titles made of names."""
    for definition in [schema, *schema.get("$defs", {}).values()]:
        properties, needed = definition.get("properties", {}), definition.get("required", ())
        definition["title"] = words(definition.get("title", ""))
        definition["properties"] = {key: _written(child, needed=key in needed) for key, child in properties.items()}
        if not properties:
            definition.pop("properties")
    tidied: Schema = _walk(schema, _loosened)
    return tidied


def _walk(node: Any, change: Callable[[Schema], Schema]) -> Any:
    if isinstance(node, dict):
        return change({key: _walk(value, change) for key, value in node.items()})
    return [_walk(item, change) for item in node] if isinstance(node, list) else node


def _written(child: Schema, *, needed: bool) -> Schema:
    """A property with its default as one writes it: `15 s` for 15.0."""
    child = _without(child, "title")
    default = child.get("default")
    options = [child, *child.get("anyOf", ())]
    patterns = [option["pattern"] for option in options if "pattern" in option]
    table = units_of(patterns[0]) if patterns else None
    if table and isinstance(default, int | float) and not isinstance(default, bool):
        child["default"] = in_words(default, table)
    misfit = child.get("type") == "string" and not isinstance(child.get("default"), str)
    if default is None or child.get("writeOnly") or isinstance(default, dict) or misfit:
        child.pop("default", None)
    if said := facts(child, needed=needed):  # for editors; alternatives are told behind the description of their key
        told = "\n\n".join(filter(None, (child.get("description"), said)))
        child["markdownDescription"] = told
        if "anyOf" in child:
            child["anyOf"][0]["markdownDescription"] = f"\n{said}"
    for option in options:
        if option.get("type") == "string":
            for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
                option.pop(bound, None)
    return child


def _loosened(node: Schema) -> Schema:
    """A text may look like a number or a flag, as it is taken as written; an attribute may be a point's name alone."""
    if node.get("writeOnly"):  # a secret: what stands in the file is its name
        loose = {key: value for key, value in node.items() if key not in ("minLength", "maxLength", "pattern")}
        return {**loose, "type": ["string", "number", "boolean"]}
    if node.get("type") == "string" and not {"enum", "const", "format"} & set(node) and _may_be_digits(node):
        node["type"] = ["string", "number", "boolean"]
    return node


def _may_be_digits(node: Schema) -> bool:
    pattern = node.get("pattern")
    return pattern is None or any(re.search(pattern, "1" * length) for length in range(1, 65))


def _with_nulls(node: Any) -> Any:
    """Every key may be `null`, which takes away what a base or the template of a variant has; not in lists and conditions.

    The types themselves take it, since around alternatives an editor underlines more than what is wrong; but those whose
    names are listed, which it completes for one type alone.
    """
    if isinstance(node, list):
        return [_with_nulls(item) for item in node]
    if not isinstance(node, dict):
        return node
    left = ("if", "not", "else", "items", "propertyNames", "oneOf")
    changed = {key: value if key in left else _with_nulls(value) for key, value in node.items()}
    options, names, kind = changed.get("anyOf"), changed.get("enum"), changed.get("type")
    if isinstance(options, list) and NULL not in options:
        changed["anyOf"] = [*options, NULL]
    if isinstance(names, list):
        changed["enum"] = [*names, None]
    if changed.get("propertyNames", _A_NAME) != _A_NAME:
        return or_null(changed)
    if isinstance(kind, str | list) and "const" not in changed and kind != "null":
        changed["type"] = [*([kind] if isinstance(kind, str) else kind), "null"]
    return changed


def _without(schema: Schema, key: str) -> Schema:
    return {name: value for name, value in schema.items() if name != key}


def _draft_07(schema: Schema) -> Schema:
    """Draft 7 spelling: `definitions`, lists of items, and nothing beside `$ref` (it would be ignored)."""

    def change(node: Schema) -> Schema:
        if "prefixItems" in node:
            node["items"] = node.pop("prefixItems")
        if "$ref" in node:
            node["$ref"] = str(node["$ref"]).replace("#/$defs/", "#/definitions/")
            if len(node) > 1:
                rest = _without(node, "$ref")
                return {**rest, "allOf": [{"$ref": node["$ref"]}, *rest.get("allOf", ())]}
        return node

    changed: Schema = _walk(schema, change)
    if "$defs" in changed:
        changed["definitions"] = changed.pop("$defs")
    return _used(changed)


def _used(schema: Schema) -> Schema:
    """Without definitions that nothing refers to."""
    definitions = schema.get("definitions", {})
    wanted: set[str] = set()
    todo: list[Any] = [_without(schema, "definitions")]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name in definitions and name not in wanted:
                wanted.add(name)
                todo.append(definitions[name])
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return {**schema, "definitions": {name: definitions[name] for name in sorted(wanted)}}
