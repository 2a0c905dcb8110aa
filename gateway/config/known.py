"""What a box knows by name, put into its schemas: device types with their points, entity types with their attributes, cities."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.sdk.template import Template

Schema = dict[str, Any]
NULL: Schema = {"type": "null"}


@dataclass(frozen=True, slots=True)
class EntityNames:
    """What an editor offers for entities of one type.

    Attributes:
        attributes: that a point can be mapped to, members of structured ones as `current.L1`.
        constants: that a value can be given for.
    """

    about: str = ""
    attributes: Sequence[str] = ()
    constants: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """The names that go into a schema; where there are none it takes any.

    Attributes:
        templates: by driver and name; None for one that has errors.
        types: entity types by name, own ones included.
        profiles: city profiles, as `use:` takes them.
    """

    templates: Mapping[str, Mapping[str, Template | None]] = field(default_factory=dict)
    types: Mapping[str, EntityNames] = field(default_factory=dict)
    profiles: Sequence[str] = ()


def choice(texts: Mapping[str, str]) -> Schema:
    """One of these names, each with what an editor says of it; any text when there are none."""
    told = {"enumDescriptions": list(texts.values())} if any(texts.values()) else {}
    return {"type": "string", "enum": list(texts), **told} if texts else {"type": "string"}


def template_choice(templates: Mapping[str, Template | None]) -> Schema:
    """A device type by name."""
    return choice({name: its.description if its else "" for name, its in sorted(templates.items())})


def or_null(schema: Schema) -> Schema:
    """The same, or nothing; the description stays outside, where editors look for it."""
    about = _told(schema)
    return {**about, "anyOf": [{key: value for key, value in schema.items() if key not in about}, NULL]}


def _told(schema: Schema) -> Schema:
    return {key: schema[key] for key in ("description", "markdownDescription", "default") if key in schema}


def know_types(definitions: Schema, types: Mapping[str, EntityNames]) -> None:
    """An entity's type is one of these, its attributes are those of its type."""
    mapping = definitions.get("EntityMapping")
    if not types or mapping is None:
        return
    properties = mapping["properties"]
    texts = {name: its.about for name, its in sorted(types.items())}
    properties["type"] = or_null({**_told(properties["type"]), **choice(texts)})
    for name, its in types.items():
        of_type = {"attributes": _only(name, its.attributes), "static": _only(name, its.constants)}
        definitions[_type_key(name)] = {"properties": of_type}
    mapping["allOf"] = [
        {"if": _is("type", name), "then": {"$ref": f"#/$defs/{_type_key(name)}"}} for name in sorted(types)
    ]


def _only(entity_type: str, names: Sequence[str]) -> Schema:
    refused = f"{entity_type} has no such attribute; `citygate models show {entity_type}` lists them"
    return {"type": "object", "propertyNames": {"enum": list(names), "errorMessage": refused}}


def know_templates(device: Schema, templates: Mapping[str, Template | None], definitions: Schema, prefix: str) -> None:
    """What a device of each type can name: its points, and the attributes of its entity.

    Args:
        prefix: of definitions, for a template that means something else with another driver.
    """
    rules = [
        {"if": _is("template", name), "then": {"$ref": _device_type(name, template, definitions, prefix)}}
        for name, template in sorted(templates.items())
        if template
    ]
    device |= {"allOf": rules} if rules else {}


def _device_type(name: str, template: Template, definitions: Schema, prefix: str) -> str:
    """The reference of the keys of a device of this type."""
    key = f"device {name}".replace("/", ":").replace(" ", ".")
    made = dict(_of_template(key, template, definitions))
    if any(definitions.get(part, its) != its for part, its in made.items()):
        key = f"{prefix}.{key}"
        made = dict(_of_template(key, template, definitions))
    definitions |= made
    return f"#/$defs/{key}"


def _of_template(key: str, template: Template, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """Definitions by name."""
    point: Schema = {"$ref": f"#/$defs/{key}.point"}
    sub = {"additionalProperties": {"properties": {"point": or_null(point)}}}
    long = {"point": or_null(point), "longitude": or_null(point), "latitude": or_null(point), "sub": sub}
    source: Schema = {"anyOf": [point, {"type": "object", "properties": long}, NULL]}
    mapping: Schema = {
        "properties": {
            "attributes": {"additionalProperties": source},
            "more": {"additionalProperties": {"$ref": f"#/$defs/{key}.mapping"}},
        }
    }
    type_key = _type_key(template.entity.type or "")
    as_template = {"else": {"$ref": f"#/$defs/{type_key}"}} if type_key in definitions else {}
    by_point = {"type": "object", "propertyNames": point}
    entity = {"allOf": [{"$ref": f"#/$defs/{key}.mapping"}], "if": {"required": ["type"]}, **as_template}
    yield f"{key}.point", choice({name: its.description or its.quantity for name, its in template.points.items()})
    yield f"{key}.mapping", mapping
    yield key, {"properties": {"calibrate": by_point, "report": by_point, "entity": entity}}


def _type_key(name: str) -> str:
    return f"type.{name.replace('/', ':')}"


def _is(key: str, value: str) -> Schema:
    return {"properties": {key: {"const": value}}, "required": [key]}


def know_profiles(definitions: Schema, profiles: Sequence[str]) -> None:
    """A broker with a city profile: the address may come from there, and null takes a key of the profile away."""
    broker = definitions["BrokerConfig"]
    properties = broker["properties"]
    if profiles:
        properties["use"] = or_null(
            {"description": properties["use"]["description"], **choice(dict.fromkeys(profiles, ""))}
        )
    over = {key: value if key == "use" else or_null(value) for key, value in properties.items()}
    definitions["BrokerOfCity"] = {key: value for key, value in broker.items() if key != "required"} | {
        "properties": over
    }
    definitions["Broker"] = {
        "if": {"properties": {"use": {"type": "string"}}, "required": ["use"]},
        "then": {"$ref": "#/$defs/BrokerOfCity"},
        "else": {"$ref": "#/$defs/BrokerConfig"},
    }
