"""A city's own models: written from a short brief, checked, and read into the catalogue.

Layout, as the Smart Data Models programme takes contributions: `<subject>/context.jsonld`, `<subject>/<Type>/` with `schema.json`,
`examples/`, `doc/spec.md`, `CHANGELOG.md`, and the brief itself, `model.yaml`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.models.catalogue import AttributeSpec, Catalogue, EntityType, catalogue
from gateway.models.refresh import expanded, index_folder
from gateway.sdk.errors import Problem
from gateway.sdk.files import read_text
from gateway.sdk.quantities import units

_COMMON = "https://smart-data-models.github.io/data-models/common-schema.json#/definitions/"
_JSON = {"number": "number", "integer": "integer", "boolean": "boolean", "text": "string", "datetime": "string"}
_SCHEMA_ORG = {"number": "Number", "integer": "Number", "boolean": "Boolean", "datetime": "DateTime"}
_EXAMPLES: dict[str, Any] = {
    "number": 1.5, "integer": 1, "boolean": True, "text": "text", "datetime": "2026-06-01T12:00:00Z",
    "relationship": "urn:ngsi-ld:Thing:1", "geo": {"type": "Point", "coordinates": [9.19, 45.46]},
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewAttribute(_Part):
    """One attribute that the nearest standard type does not have."""

    type: Literal["number", "integer", "boolean", "text", "datetime", "relationship", "geo"] = "number"
    description: str = Field(min_length=1)
    unit: str = Field("", description="UN/CEFACT code")
    minimum: float | None = None
    maximum: float | None = None
    enum: tuple[str, ...] = ()
    many: bool = Field(False, description="a list of these")
    members: dict[str, "NewAttribute"] = Field(default={}, description="of a structured value")
    iri: str | None = Field(None, description="an existing term with this meaning, e.g. https://schema.org/color")
    example: Any = None


class Brief(_Part):
    """What `models new` makes a model of."""

    type: str
    description: str = Field(min_length=1)
    subject: str = Field(description="folder of the models of one subject, e.g. dataModel.Milano")
    version: str = "0.0.1"
    extends: str | None = Field(None, description="nearest standard type, whose attributes it keeps")
    context: str = Field(description="URL where context.jsonld will be found by brokers")
    vocabulary: str = Field(description="what new terms begin with, e.g. https://models.milano.example/")
    licence: str = "CC-BY-4.0"
    mandatory: tuple[str, ...] = ()
    attributes: dict[str, NewAttribute] = Field(min_length=1)
    changes: str = "First version."


def read_brief(file: Path) -> Brief:
    """The brief in a YAML file.

    Raises:
        ValueError: not YAML, or not a brief; the message names each key.
    """
    try:
        return Brief.model_validate(yaml.load(read_text(file), yaml.CSafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{file}: {faults}") from None


# naming rules


def faults(brief: Brief, models: Catalogue) -> Iterator[str]:
    """What the programme's rules, and the terms already in use, hold against a brief; errors only."""
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", brief.type):
        yield f"type {brief.type}: English, begins with a capital, letters and digits only"
    if models.type(brief.type) is not None and models.type(brief.type).origin in ("standard", "synchronicity"):  # type: ignore[union-attr]
        yield f"type {brief.type} is a published model; extend it under another name"
    if not re.fullmatch(r"(dataModel\.)?[A-Z][A-Za-z0-9]*", brief.subject):
        yield f"subject {brief.subject}: write it as in dataModel.Milano"
    elif brief.subject in {str(f.name) for f in (files("gateway.models") / "schemas").iterdir()}:
        yield f"subject {brief.subject} is the programme's own; take one of your own"
    for name, url in (("context", brief.context), ("vocabulary", brief.vocabulary)):
        if not re.fullmatch(r"https?://[^\s<>\"]+", url):
            yield f"{name} {url!r} is not a URL"
    if not brief.vocabulary.endswith(("/", "#")):
        yield "vocabulary must end in / or #, because terms are put behind it"
    base = _base(brief, models)
    if brief.extends and base is None:
        near = models.near(brief.extends)
        yield f"extends {brief.extends}: no such type" + (f"; did you mean {near}?" if near else "")
    for name, attribute in brief.attributes.items():
        yield from _attribute_faults(name, attribute, base, models)
    known = {*brief.attributes, *(base.attributes if base else ()), *_COMMON_NAMES}
    for name in brief.mandatory:
        if name not in known:
            yield f"mandatory {name}: neither the base nor this model has it"


_COMMON_NAMES = (
    "location",
    "address",
    "areaServed",
    "name",
    "description",
    "source",
    "dataProvider",
    "owner",
    "seeAlso",
)
_RESERVED = ("value", "object", "type", "id", "scope", "unitCode", "observedAt", "datasetId", "coordinates", "features")


def _attribute_faults(name: str, attribute: NewAttribute, base: EntityType | None, models: Catalogue) -> Iterator[str]:
    if not re.fullmatch(r"[a-z][A-Za-z0-9]*", name):
        yield f"{name}: English camelCase, letters and digits only"
    if name in _RESERVED or models.is_core(name):
        yield f"{name} is a word of the core context, which no other context can redefine; choose another name"
    if base is not None and name in base.attributes:
        yield f"{name}: {base.name} has it already; it is kept, so leave it out here"
    if attribute.type == "datetime" and not name.startswith("date"):
        yield f"{name}: names of dates begin with date"
    if attribute.type == "relationship" and not re.match(r"(ref|has|is|controlled)[A-Z]", name):
        yield f"{name}: names of relationships begin with ref (or a verb)"
    if attribute.unit and attribute.unit not in units():
        yield f"{name}: {attribute.unit} is not a unit code we know"
    if attribute.unit and attribute.type not in ("number", "integer"):
        yield f"{name}: only a number has a unit"
    if attribute.enum and attribute.type != "text":
        yield f"{name}: an enum is of texts"
    if attribute.example is not None:
        fault = _example_fault(attribute)
        if fault:
            yield f"{name}: example {fault}"
    for member, inner in attribute.members.items():
        yield from _attribute_faults(member, inner, None, models)


def _example_fault(attribute: NewAttribute) -> str:
    examples = attribute.example if attribute.many and isinstance(attribute.example, list) else [attribute.example]
    for example in examples:
        if attribute.enum and example not in attribute.enum:
            return f"{example!r} is not in the enum"
        number = isinstance(example, int | float) and not isinstance(example, bool)
        if attribute.type in ("number", "integer") and not attribute.members and not number:
            return f"{example!r} is not a number"
        if number and attribute.minimum is not None and example < attribute.minimum:
            return f"{example} is below the minimum"
        if number and attribute.maximum is not None and example > attribute.maximum:
            return f"{example} is above the maximum"
    return ""


# writing


def model_files(
    brief: Brief, models: Catalogue | None = None, *, context: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Every file of the model by its path below the folder of models.

    Args:
        context: the subject's context as it is, when the subject has other types already.

    Raises:
        ValueError: the brief breaks a rule; the message has all of them, one a line.
    """
    models = models or catalogue()
    found = list(faults(brief, models))
    if found:
        raise ValueError("\n".join(found))
    base = _base(brief, models)
    plain = _example(brief, base)
    home = f"{brief.subject}/{brief.type}"
    terms = _terms(brief, base, models, context or {})
    return {
        f"{brief.subject}/context.jsonld": _json_text({"@context": terms}),
        f"{home}/schema.json": _json_text(_schema(brief, base)),
        f"{home}/examples/example.json": _json_text(plain),
        f"{home}/examples/example.jsonld": _json_text({**plain, "@context": [brief.context]}),
        f"{home}/examples/example-normalized.jsonld": _json_text(_ld(brief, base, plain)),
        f"{home}/examples/example-normalized.json": _json_text(_v2(brief, base, plain)),
        f"{home}/doc/spec.md": _spec(brief, base, terms),
        f"{home}/CHANGELOG.md": f"# {brief.type}\n\n## {brief.version}\n\n{brief.changes}\n",
    }


def write_model(brief: Brief, folder: Path, brief_text: str, models: Catalogue | None = None) -> list[Path]:
    """Write the model below `folder`; the changelog keeps its earlier versions.

    Raises:
        ValueError: the brief breaks a rule, another type of the subject has a term with another meaning, or the type would
            change under a version that is there already.
    """
    context_file = folder / brief.subject / "context.jsonld"
    context = json.loads(read_text(context_file))["@context"] if context_file.exists() else {}
    written = []
    texts = model_files(brief, models, context=context)
    _refuse_change(brief, folder / brief.subject / brief.type / "schema.json", texts)
    texts[f"{brief.subject}/{brief.type}/model.yaml"] = brief_text
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.name == "CHANGELOG.md" and file.exists():
            text = _with_history(text, read_text(file), brief)
        file.write_text(text, encoding="utf-8")
        written.append(file)
    return written


def _refuse_change(brief: Brief, schema: Path, texts: Mapping[str, str]) -> None:
    """Others may rely on what a version says: another schema is another version."""
    new = texts[f"{brief.subject}/{brief.type}/schema.json"]
    if not schema.exists() or json.loads(old := read_text(schema)) == json.loads(new):
        return
    if json.loads(old).get("$schemaVersion") == brief.version:
        raise ValueError(
            f"{brief.type} {brief.version} is there already and says something else; give the brief a higher `version:` "
            "and say in `changes:` what changed"
        )


def _with_history(new: str, old: str, brief: Brief) -> str:
    history = old.partition("\n\n")[2]
    return old if f"## {brief.version}\n" in old else f"{new.rstrip()}\n\n{history}"


def _base(brief: Brief, models: Catalogue) -> EntityType | None:
    return models.type(brief.extends) if brief.extends else None


def _json_text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _terms(brief: Brief, base: EntityType | None, models: Catalogue, there: Mapping[str, Any]) -> dict[str, str]:
    terms: dict[str, str] = {brief.type: brief.vocabulary + brief.type}
    for name in base.attributes if base else _COMMON_NAMES:
        if not models.is_core(name):
            terms[name] = models.iri(base.context, name) if base else f"https://smartdatamodels.org/{name}"
    for name, attribute in brief.attributes.items():
        terms[name] = attribute.iri or brief.vocabulary + name
        terms.update({m: inner.iri or brief.vocabulary + m for m, inner in attribute.members.items()})
    for term, iri in expanded(there).items():
        if terms.get(term, iri) != iri:
            raise ValueError(
                f"{term} already means {iri} in {brief.subject}; name it otherwise, or take another subject"
            )
    return dict(sorted({**{t: str(i) for t, i in there.items()}, **terms}.items()))


def _schema(brief: Brief, base: EntityType | None) -> dict[str, Any]:
    own = {
        "type": {"type": "string", "enum": [brief.type], "description": f"Property. It has to be {brief.type}"},
        **{name: _property(attribute) for name, attribute in brief.attributes.items()},
    }
    parts, definitions, required = _base_parts(base)
    common = [{"$ref": _COMMON + part} for part in ("GSMA-Commons", "Location-Commons")]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$schemaVersion": brief.version,
        "$id": f"{brief.vocabulary.rstrip('/#')}/{brief.type}/schema.json",
        "title": f"{brief.type} schema",
        "description": brief.description,
        "license": brief.licence,
        "type": "object",
        **({"derivedFrom": f"https://smartdatamodels.org/{base.subject}/{base.name}"} if base else {}),
        **({"definitions": definitions} if definitions else {}),
        "allOf": [*common, *(part for part in parts if part not in common), {"properties": own}],
        "required": sorted({"id", "type", *required, *brief.mandatory}),
    }


def _base_parts(base: EntityType | None) -> tuple[list[Any], dict[str, Any], list[str]]:
    """What the base's schema says, without its own type."""
    if base is None:
        return [], {}, []
    file = files("gateway.models") / "schemas" / base.subject / base.name / "schema.json"
    schema = json.loads(read_text(file))
    parts = [dict(part) for part in schema.get("allOf", [])]
    if "properties" in schema:
        parts.append({"properties": dict(schema["properties"])})
    for part in parts:
        if "properties" in part:
            part["properties"] = {name: spec for name, spec in part["properties"].items() if name != "type"}
    return parts, schema.get("definitions", {}), schema.get("required", [])


def _property(attribute: NewAttribute) -> dict[str, Any]:
    kind = {"relationship": "Relationship", "geo": "GeoProperty"}.get(attribute.type, "Property")
    unit = f" Units:'{units()[attribute.unit].name}'" if attribute.unit else ""
    model = f" Model:'https://schema.org/{_SCHEMA_ORG.get(attribute.type, 'Text')}'." if kind == "Property" else ""
    single: dict[str, Any] = _shape(attribute)
    shape = {"type": "array", "items": single} if attribute.many else single
    if attribute.unit:
        shape["x-unitCode"] = attribute.unit
    return {**shape, "description": f"{kind}.{model} {attribute.description.rstrip('.')}.{unit}"}


def _shape(attribute: NewAttribute) -> dict[str, Any]:
    if attribute.members:
        members = {name: _property(inner) for name, inner in attribute.members.items()}
        return {"type": "object", "properties": members}
    if attribute.type == "relationship":
        return {"anyOf": [{"$ref": _COMMON + "EntityIdentifierType"}]}
    if attribute.type == "geo":
        return {"$ref": _COMMON + "Location-Commons/properties/location"}
    shape: dict[str, Any] = {"type": _JSON[attribute.type]}
    if attribute.type == "datetime":
        shape["format"] = "date-time"
    if attribute.enum:
        shape["enum"] = list(attribute.enum)
    for key, bound in (("minimum", attribute.minimum), ("maximum", attribute.maximum)):
        if bound is not None:
            shape[key] = bound
    return shape


def _example(brief: Brief, base: EntityType | None) -> dict[str, Any]:
    example: dict[str, Any] = {"id": f"urn:ngsi-ld:{brief.type}:city:gateway:device-1", "type": brief.type}
    inherited = base.attributes if base else {}
    for name in sorted({*(base.mandatory if base else ()), *brief.mandatory} - set(brief.attributes)):
        example[name] = _sample(inherited.get(name, _COMMON_SPECS.get(name, AttributeSpec(name, json=("string",)))))
    for name, attribute in brief.attributes.items():
        example[name] = _sample_new(attribute)
    return example


_COMMON_SPECS = {
    "location": AttributeSpec("location", kind="geo"),
    "address": AttributeSpec("address", json=("object",)),
}


def _sample_new(attribute: NewAttribute) -> Any:
    if attribute.example is not None:
        return attribute.example
    if attribute.members:
        return {name: _sample_new(inner) for name, inner in attribute.members.items()}
    sample = attribute.enum[0] if attribute.enum else _EXAMPLES[attribute.type]
    if attribute.type in ("number", "integer"):
        low = attribute.minimum if attribute.minimum is not None else min(sample, attribute.maximum or sample)
        sample = int(low) if attribute.type == "integer" else low
    return [sample] if attribute.many else sample


def _sample(spec: AttributeSpec) -> Any:
    if spec.enum:
        return spec.enum[0]
    if spec.kind == "geo":
        return _EXAMPLES["geo"]
    if spec.json == ("array",):
        return [_sample(spec.items or AttributeSpec("", json=("string",)))]
    if spec.format == "date-time":
        return _EXAMPLES["datetime"]
    if spec.kind == "relationship":
        return _EXAMPLES["relationship"]
    if {"number", "integer"} & set(spec.json):
        return spec.minimum if spec.minimum is not None else 1
    return {} if spec.json == ("object",) else "text"


def _kinds(brief: Brief, base: EntityType | None) -> dict[str, tuple[str, str, bool]]:
    """Attribute -> (kind, unit, is a date)."""
    inherited = {**_COMMON_SPECS, **(base.attributes if base else {})}
    kinds: dict[str, tuple[str, str, bool]] = {
        name: (spec.kind, spec.unit, spec.format == "date-time") for name, spec in inherited.items()
    }
    for name, attribute in brief.attributes.items():
        kind = attribute.type if attribute.type in ("relationship", "geo") else "property"
        kinds[name] = (kind, attribute.unit, attribute.type == "datetime")
    return kinds


def _ld(brief: Brief, base: EntityType | None, plain: Mapping[str, Any]) -> dict[str, Any]:
    kinds = _kinds(brief, base)
    body: dict[str, Any] = {"id": plain["id"], "type": plain["type"]}
    for name, value in plain.items():
        kind, unit, is_date = kinds.get(name, ("property", "", False))
        if name in body:
            continue
        if kind == "relationship":
            body[name] = {"type": "Relationship", "object": value}
        elif kind == "geo":
            body[name] = {"type": "GeoProperty", "value": value}
        else:
            body[name] = {"type": "Property", "value": {"@type": "DateTime", "@value": value} if is_date else value}
            if unit:
                body[name]["unitCode"] = unit
    return {**body, "@context": [brief.context]}


def _v2(brief: Brief, base: EntityType | None, plain: Mapping[str, Any]) -> dict[str, Any]:
    kinds = _kinds(brief, base)
    body: dict[str, Any] = {"id": plain["id"], "type": plain["type"]}
    names = {bool: "Boolean", int: "Number", float: "Number", str: "Text"}
    for name, value in plain.items():
        kind, unit, is_date = kinds.get(name, ("property", "", False))
        if name in body:
            continue
        text = {"relationship": "Relationship", "geo": "geo:json"}.get(kind) or names.get(
            type(value), "StructuredValue"
        )
        metadata = {"unitCode": {"type": "Text", "value": unit}} if unit else {}
        body[name] = {"type": "DateTime" if is_date else text, "value": value, "metadata": metadata}
    return body


def _spec(brief: Brief, base: EntityType | None, terms: Mapping[str, str]) -> str:
    mandatory = sorted({"id", "type", *brief.mandatory, *(base.mandatory if base else ())})
    lines = [
        f"# Entity: {brief.type}",
        "",
        f"Version {brief.version}. Licence {brief.licence}.",
        "",
        brief.description,
        "",
    ]
    if base:
        lines += [
            f"Extends {base.name} ({base.subject} {base.version}); its attributes are kept with their meaning.",
            "",
        ]
    lines += ["## Attributes", ""]
    for name, attribute in sorted(brief.attributes.items()):
        unit = f" Unit: {units()[attribute.unit].name} ({attribute.unit})." if attribute.unit else ""
        values = f" One of: {', '.join(attribute.enum)}." if attribute.enum else ""
        lines.append(
            f"- `{name}` ({attribute.type}): {attribute.description.rstrip('.')}.{unit}{values} <{terms[name]}>"
        )
    lines += ["", f"Required: {', '.join(f'`{name}`' for name in mandatory)}", ""]
    lines += [f"JSON-LD context: <{brief.context}>", "", "Examples: `../examples/`.", ""]
    return "\n".join(lines)


# reading and checking


def extended(folder: Path, base: Catalogue | None = None) -> tuple[Catalogue, tuple[Problem, ...]]:
    """The catalogue with the models in a folder (none when there is no folder), and what is wrong with them.

    A file `index.json` in the folder, made by `models refresh`, takes the place of the shipped standard types.
    """
    base = base or catalogue()
    problems: list[Problem] = []
    if not os.path.isdir(folder):  # asks no rights
        return base, ()
    try:
        index_file = folder / "index.json"
        if index_file.exists():
            base = base.with_index(json.loads(read_text(index_file)))
        contexts = _contexts(folder, problems)
        index = index_folder(_Models(folder), contexts=contexts, origin=str(folder))  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return base, (*problems, _problem(folder, f"the models in it cannot be read: {error}"))
    for name in index["types"]:
        there = base.type(name)
        if there is not None and there.origin == "standard":
            problems.append(_problem(folder, f"{name} is a standard type; an extension needs a name of its own"))
    return base.with_index(index), tuple(problems)


def _problem(file: Path, message: str, remedy: str = "see citygate models check") -> Problem:
    return Problem("model", (), message, remedy, file=str(file))


class _Models:
    """A folder of models as `index_folder` walks it: only what looks like a subject."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def iterdir(self) -> Iterator[Path]:
        return (f for f in sorted(self._folder.iterdir()) if f.is_dir() and not f.name.startswith("."))

    def __truediv__(self, name: str) -> Path:
        return self._folder / name


def _contexts(folder: Path, problems: list[Problem]) -> dict[str, str]:
    """Context URL by subject, from the briefs."""
    contexts: dict[str, str] = {}
    for file in sorted(folder.glob("*/*/model.yaml")):
        try:
            brief = read_brief(file)
        except ValueError as error:
            problems.append(_problem(file, str(error)))
            continue
        if contexts.setdefault(brief.subject, brief.context) != brief.context:
            problems.append(_problem(file, f"the models of {brief.subject} name two contexts"))
    return contexts


def check_models(folder: Path) -> list[Problem]:
    """All that is wrong with the models in a folder: rules, files out of date, examples that do not fit."""
    _, read = extended(folder)
    problems = list(read)
    for file in sorted(folder.glob("*/*/model.yaml")):
        try:
            brief = read_brief(file)
            context = json.loads((folder / brief.subject / "context.jsonld").read_text())["@context"]
            wanted = model_files(brief, context=context)
        except (OSError, ValueError, KeyError) as error:
            problems += [_problem(file, line) for line in str(error).splitlines()]
            continue
        problems += _out_of_date(folder, brief, wanted)
    return problems


def _out_of_date(folder: Path, brief: Brief, wanted: Mapping[str, str]) -> Iterator[Problem]:
    for name, text in wanted.items():
        file = folder / name
        if not file.exists():
            yield _problem(file, "is missing", "run citygate models new again")
        elif file.name == "CHANGELOG.md":
            if f"## {brief.version}\n" not in read_text(file):
                yield _problem(file, f"has no entry for version {brief.version}", "say what changed")
        elif read_text(file) != text:
            yield _problem(file, "is not what model.yaml says", "change model.yaml and run citygate models new again")
