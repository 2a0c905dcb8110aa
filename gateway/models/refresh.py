"""From a folder of published schemas and contexts to the compact index that the catalogue reads."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from gateway.sdk.files import read_text

_UNITS = re.compile(r"Units:\s*'([^']*)'")
_KIND = re.compile(r"^\s*(Property|Relationship|GeoProperty|LanguageProperty)\b", re.IGNORECASE)
_KINDS = {"relationship": "relationship", "geoproperty": "geo", "languageproperty": "language"}
_CONTEXT = "https://raw.githubusercontent.com/smart-data-models/{subject}/master/context.jsonld"
_RAW = re.compile(re.escape(_CONTEXT).replace(re.escape("{subject}"), r"([A-Za-z0-9._-]+)"))
_PAGES = "https://smart-data-models.github.io/{subject}/context.jsonld"
_SYNCHRONICITY_CONTEXT = "https://uri.synchronicity-iot.eu/ns/data-models"
_COMMON = ("id", "type")


def index_folder(folder: Traversable, *, contexts: Mapping[str, str] | None = None, origin: str = "") -> dict[str, Any]:
    """Index every `<subject>/<Type>/schema.json` below a folder.

    Args:
        contexts: URL of the context by subject, where it is not that of the published models.
        origin: where the types come from, kept with them; "" = the published models.

    Returns:
        `{"types": {name: entry}, "terms": {context: {term: IRI}}}`; entry has subject, version, context, licence, required,
        attributes {name: {kind, json, enum, items, min, max, format, units, members}} where
        what is absent is unrestricted, and a kind left out is a property. A type that two subjects
        define keeps its plain name for the first and is `subject/Type` for the others.
    """
    types: dict[str, Any] = {}
    terms: dict[str, dict[str, str]] = {}
    for subject in sorted((f for f in folder.iterdir() if f.is_dir()), key=_standard_first):
        context = (contexts or {}).get(subject.name) or context_of(subject.name)
        terms[context] = _terms(subject / "context.jsonld")
        for model in sorted((f for f in subject.iterdir() if f.is_dir()), key=lambda f: f.name):
            entry = _index_schema(model / "schema.json", folder)
            if entry is not None:
                name = model.name if model.name not in types else f"{subject.name}/{model.name}"
                types[name] = {"subject": subject.name, "context": context, **entry}
                if origin:
                    types[name]["origin"] = origin
    return {"types": types, "terms": terms}


def context_of(subject: str) -> str:
    """The URL a city's broker resolves the terms of a subject with."""
    return _SYNCHRONICITY_CONTEXT if subject == "synchronicity" else _CONTEXT.format(subject=subject)


def served_at(context: str, prefix: str = "") -> str:
    """Where a broker is told to fetch a context: served as JSON-LD, which raw file hosts do not do and some brokers insist on.

    Args:
        context: its own address, which is what the catalogue knows it by.
        prefix: where a city serves those of the published models, each as `SUBJECT/context.jsonld`.
    """
    published = _RAW.fullmatch(context)
    subject = published[1] if published else "synchronicity" if context == _SYNCHRONICITY_CONTEXT else ""
    if prefix and subject:
        return f"{prefix.rstrip('/')}/{subject}/context.jsonld"
    return _PAGES.format(subject=subject) if published else context


def index_schema(schema: Mapping[str, Any], folder: Traversable) -> dict[str, Any]:
    """The entry of one schema; `$ref`s are looked up below `folder`."""
    flat = _Flat(schema, folder)
    properties: dict[str, Any] = {}
    required: set[str] = set()
    for doc, node in flat.objects(schema, schema):
        required.update(node.get("required", ()))
        for name, spec in node.get("properties", {}).items():
            entry = flat.attribute(doc, spec)
            # several parts may restrict one attribute: the later part adds to the earlier
            properties[name] = {**properties.get(name, {}), **entry}
    return {
        "version": str(schema.get("$schemaVersion", "")),
        "licence": "CC-BY-4.0",
        "required": sorted(required - set(_COMMON)),
        "attributes": {name: spec for name, spec in properties.items() if name not in _COMMON},
    }


def _standard_first(subject: Traversable) -> tuple[bool, str]:
    return not subject.name.startswith("dataModel."), subject.name


def _index_schema(file: Traversable, folder: Traversable) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        return index_schema(json.loads(read_text(file)), folder)
    except json.JSONDecodeError:
        return None  # RestrictedTrafficArea is kept as published, and was never valid JSON


def _terms(file: Traversable) -> dict[str, str]:
    if not file.is_file():
        return {}
    context = json.loads(read_text(file))["@context"]
    terms: dict[str, str] = {}
    for part in context if isinstance(context, list) else [context]:
        terms.update(expanded(part) if isinstance(part, dict) else {})
    return terms


def expanded(context: Mapping[str, Any]) -> dict[str, str]:
    """Term -> IRI of one context object; prefixes that it defines itself are resolved."""
    terms: dict[str, str] = {}
    for term, definition in context.items():
        iri = definition.get("@id") if isinstance(definition, dict) else definition
        if isinstance(iri, str) and not term.startswith("@"):
            terms[term] = iri
    return {term: _expand(iri, terms) for term, iri in terms.items()}


def _expand(iri: str, terms: Mapping[str, str]) -> str:
    prefix, colon, rest = iri.partition(":")
    if colon and not rest.startswith("//") and prefix in terms:
        return terms[prefix] + rest
    return iri


def unit_of(text: str) -> str:
    """UN/CEFACT code of what a schema writes after `Units:`; "" for what is no unit (`0 to 1`) or is ambiguous."""
    words = re.sub(r"\(.*?\)|[.]", "", text.lower()).replace("-", " ").strip()
    return _UNIT_WORDS.get(words, "")


_UNIT_WORDS = {
    word: code
    for code, words in {
        "MTR": "meter, meters, metre, metres",
        "CMT": "centimeters",
        "KMT": "kilometer",
        "MTK": "m2, square meters",
        "MTQ": "cubic meters, cubic metre",
        "MQH": "cubic meters/hour",
        "E32": "litres/hour",
        "MMT": "liters per square meter",
        "KMH": "kilometer per hour, km/h",
        "MSK": "m/s2",
        "DD": "degree",
        "KGM": "kgm, kilogram, kilograms",
        "M1": "mg/l, mg per liter",
        "NX": "parts per thousand",
        "CEL": "celsius degrees, degrees celsius, degrees centigrade",
        "KEL": "kelvin degrees",
        "A97": "hecto pascals",
        "KPA": "kpa",
        "BAR": "bar",
        "D10": "siemens per meter, siemens / m",
        "D54": "w/m2",
        "LUX": "lux",
        "LUM": "lumens",
        "HTZ": "hertz",
        "AMP": "ampere, ampers",
        "VLT": "volt, volts",
        "WTT": "watt, watts",
        "KWT": "kilowatt, kilowatts",
        "D46": "volt ampere",
        "D44": "volt ampere reactive, volts ampere reactive",
        "KVR": "kilovolt ampere reactive",
        "KWH": "kilowatt hour, kilowatts per hour",
        "C79": "kilovolt ampere hour",
        "K3": "kilovolt ampere reactive hour",
        "SEC": "second, seconds",
        "MIN": "minutes",
        "HUR": "hours",
        "P1": "p1",
    }.items()
    for word in words.split(", ")
}


_KEPT = {
    "minimum": "min",
    "exclusiveMinimum": "above",
    "maximum": "max",
    "format": "format",
    "enum": "enum",
    "pattern": "pattern",
    "minLength": "shortest",
    "maxLength": "longest",
    "minItems": "fewest",
    "uniqueItems": "unique",
}


class _Flat:
    """One schema with its references resolved from files."""

    def __init__(self, schema: Mapping[str, Any], folder: Traversable) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._root = schema

    def objects(self, doc: Any, node: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Every part of the schema that declares properties, in order, with the document it stands in."""
        if "$ref" in node:
            yield from self.objects(*self._resolve(doc, node["$ref"]))
        if "properties" in node or "required" in node:
            yield doc, node
        for part in node.get("allOf", ()):
            yield from self.objects(doc, part)

    def attribute(self, doc: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
        """One property as the index keeps it."""
        if "geojson.org" in spec.get("$ref", "") or "geometry-schema" in spec.get("$ref", ""):
            return {"kind": "geo", "json": ["object"]}
        if "$ref" in spec:
            inner = self.attribute(*self._resolve(doc, spec["$ref"]))
            return {**inner, **self.attribute(doc, {k: v for k, v in spec.items() if k != "$ref"})}
        entry: dict[str, Any] = {}
        text = str(spec.get("description", ""))
        if match := _KIND.match(text):
            entry["kind"] = _KINDS.get(match[1].lower(), "")
        if match := _UNITS.search(text):
            entry["units"] = match[1].strip()
            entry["unit"] = unit_of(match[1])
        if code := spec.get("x-unitCode"):
            entry["unit"] = code
        choices = [self.attribute(doc, part) for key in ("anyOf", "oneOf", "allOf") for part in spec.get(key, ())]
        if any("coordinates" in str(part) for part in spec.get("oneOf", ())):
            return {**entry, "kind": "geo", "json": ["object"]}
        types = spec.get("type", [])
        entry["json"] = sorted(
            {*([types] if isinstance(types, str) else types), *(j for c in choices for j in c.get("json", []))}
        )
        for key, name in _KEPT.items():
            if key in spec:
                entry[name] = spec[key]
        if isinstance(spec.get("items"), dict):
            entry["items"] = self.attribute(doc, spec["items"])
        if "properties" in spec and "object" in entry["json"]:
            entry["members"] = {name: self.attribute(doc, member) for name, member in spec["properties"].items()}
        _merge_choices(entry, choices)
        return {key: value for key, value in entry.items() if value not in ([], {}, "")}

    def _resolve(self, doc: Any, reference: str) -> tuple[Any, Any]:
        url, _, pointer = reference.partition("#")
        target = self._file(url) if url else doc
        node = target
        for key in filter(None, pointer.split("/")):
            node = node[key.replace("~1", "/").replace("~0", "~")]
        return target, node

    def _file(self, url: str) -> Any:
        if url not in self._files:
            parts = [part for part in url.split("/") if part != "master"]
            name, subject = parts[-1], parts[-2]
            places = [
                root / subject / name if subject.startswith("dataModel.") else root / name
                for root in (self._folder, files("gateway.models") / "schemas")
            ]
            if url.startswith("https://fiware.github.io/"):
                places = [files("gateway.models") / "schemas" / "synchronicity" / name]
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                raise ValueError(f"{url} is in none of the schema folders")
            self._files[url] = json.loads(read_text(file))
        return self._files[url]


def _merge_choices(entry: dict[str, Any], choices: list[dict[str, Any]]) -> None:
    """Alternatives widen: a bound holds only if every alternative has one, an enum if all are enums."""
    if not choices:
        return
    if all("enum" in choice for choice in choices):
        entry["enum"] = [value for choice in choices for value in choice["enum"]]
    # `-1 or 0..1` has -1 for "not known", which is never sent: an error is no value
    ranges = [
        choice
        for choice in choices
        if {"number", "integer"} & set(choice.get("json", ())) and (choice.get("min", 0) != choice.get("max", 1))
    ]
    for key, pick in (("min", min), ("max", max)):
        bounds = [choice[key] for choice in ranges if key in choice]
        if bounds and len(bounds) == len(ranges):
            entry[key] = pick(bounds)
    if len({tuple(choice.get("json", ())) for choice in choices}) > 1 and entry.get("kind") != "relationship":
        entry["any"] = choices  # of several types: a value must satisfy one of them whole
    items = [choice["items"] for choice in choices if "items" in choice]
    if len(items) == 1:
        entry["items"] = items[0]
