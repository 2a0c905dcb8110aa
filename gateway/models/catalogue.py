"""The city data models: types, attributes, enums and terms, from an index of the published schemas; and extensions."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal

import orjson
import yaml

from gateway.models.refresh import expanded

CORE_CONTEXT = "https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context.jsonld"
DEFAULT_VOCABULARY = "https://uri.etsi.org/ngsi-ld/default-context/"

Kind = Literal["property", "relationship", "geo", "language"]


@dataclass(frozen=True, slots=True)
class AttributeSpec:
    """What a model says of one attribute, or of one member of a structured one.

    Attributes:
        json: JSON types the schema allows; empty = it does not say.
        enum: the closed list of values; empty = open.
        items: of an array; None = unrestricted.
        members: of a structured value (`activePower` has `L1`), by name.
        unit: UN/CEFACT code in which it is sent; "" = in the unit of its point.
        minimum: of a number; one that the schema excludes is moved up by the smallest step there is.
        format, pattern, lengths: of a text: `date-time`, `uri`, …; regular expression; shortest and longest.
        fewest, unique: of an array.
        alternatives: of several JSON types; a value must satisfy one of them.
    """

    name: str
    kind: Kind = "property"
    json: tuple[str, ...] = ()
    enum: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    items: "AttributeSpec | None" = None
    members: Mapping[str, "AttributeSpec"] = field(default_factory=dict)
    unit: str = ""
    units_text: str = ""
    format: str = ""
    pattern: str = ""
    lengths: tuple[int, int | None] = (0, None)
    fewest: int = 0
    unique: bool = False
    alternatives: tuple["AttributeSpec", ...] = ()


@dataclass(frozen=True)
class EntityType:
    """One type of the catalogue.

    Attributes:
        name: as in `type`, without subject.
        context: URL of the subject's @context.
        mandatory: attributes the schema requires, beside id and type.
        origin: `standard`, `synchronicity`, or the folder of an extension.
    """

    name: str
    subject: str
    version: str
    context: str
    licence: str
    mandatory: frozenset[str]
    origin: str
    _entries: Mapping[str, Mapping[str, Any]]
    _units: Mapping[str, str]

    @cached_property
    def attributes(self) -> Mapping[str, AttributeSpec]:
        """All attributes by name, `location` and the common ones included."""
        return {name: _attribute(name, entry, self._unit(name, entry)) for name, entry in self._entries.items()}

    def near(self, name: str) -> str:
        """The attribute that was probably meant, or ""."""
        return near(name, self._entries)

    def _unit(self, attribute: str, entry: Mapping[str, Any]) -> str:
        """What we settled for this type, else what its schema says, else what we settled for the name."""
        settled = self._units.get(f"{self.name}.{attribute}")
        unit: str = settled or entry.get("unit") or self._units.get(attribute, "")
        return unit


@dataclass(frozen=True)
class Catalogue:
    """Types by name (`AirQualityObserved`; `synchronicity/EVChargingStation` where a standard type took the plain name)."""

    _index: Mapping[str, Any]
    _units: Mapping[str, str]
    _core: Mapping[str, str]
    _types: dict[str, EntityType] = field(default_factory=dict, compare=False)  # what was asked for so far

    def names(self) -> tuple[str, ...]:
        """Every type."""
        return tuple(self._index["types"])

    def type(self, name: str) -> EntityType | None:
        """The type, or None when the catalogue has none of this name."""
        if name not in self._types:
            entry = self._index["types"].get(name)
            if entry is None:
                return None
            self._types[name] = _entity_type(name, entry, self._units)
        return self._types[name]

    def attribute_names(self) -> frozenset[str]:
        """The attributes of all types."""
        return frozenset(name for entry in self._index["types"].values() for name in entry["attributes"])

    def near(self, name: str) -> str:
        """The type that was probably meant, or ""."""
        return near(name, self._index["types"])

    def iri(self, context: str, term: str) -> str:
        """What a term means under a context: the core context wins, an unknown term falls to the default vocabulary."""
        if term in self._core:
            return self._core[term]
        iri: str = self._index["terms"].get(context, {}).get(term, DEFAULT_VOCABULARY + term)
        return iri

    def is_core(self, term: str) -> bool:
        """Whether the core context defines the term, so that no other context can."""
        return term in self._core

    def with_index(self, index: Mapping[str, Any]) -> "Catalogue":
        """A catalogue that also has the types and terms of another index; a type of the same name is replaced."""
        both = {part: {**self._index[part], **index[part]} for part in ("types", "terms")}
        return Catalogue(both, self._units, self._core)

    def own_types(self, names: Iterable[str]) -> dict[str, Any]:
        """Of these types the entries of those that are not shipped with the gateway, as `with_index` takes them."""
        shipped = catalogue()._index["types"]
        entries = {name: self._index["types"].get(name) for name in names}
        return {name: entry for name, entry in entries.items() if entry and entry != shipped.get(name)}

    def contexts(self) -> dict[str, dict[str, str]]:
        """By subject, what its context says: term -> IRI."""
        of = {str(entry["subject"]): entry["context"] for entry in self._index["types"].values()}
        return {subject: dict(self._index["terms"].get(context, {})) for subject, context in of.items()}

    def knows_context(self, context: str) -> bool:
        """Whether the terms of this context are known offline."""
        return context in self._index["terms"]


def near(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, or ""."""
    by_lower = {word.lower(): word for word in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else ""


@cache
def catalogue() -> Catalogue:
    """The types shipped with the gateway."""
    package = files("gateway.models")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    core = orjson.loads((package / "contexts" / "ngsi-ld-core-context-v1.9.jsonld").read_bytes())["@context"]
    return Catalogue(
        _index=orjson.loads((package / "index.json").read_bytes()),
        _units=yaml.load((package / "attribute_units.yaml").read_text(encoding="utf-8"), loader),
        _core=expanded(core),
    )


def _entity_type(name: str, entry: Mapping[str, Any], units: Mapping[str, str]) -> EntityType:
    subject = str(entry["subject"])
    return EntityType(
        name=name.rpartition("/")[2],
        subject=subject,
        version=entry["version"],
        context=entry["context"],
        licence=entry["licence"],
        mandatory=frozenset(entry["required"]),
        origin=entry.get("origin") or ("standard" if subject.startswith("dataModel.") else subject),
        _entries=entry["attributes"],
        _units=units,
    )


def _attribute(name: str, entry: Mapping[str, Any], unit: str = "") -> AttributeSpec:
    items = entry.get("items")
    return AttributeSpec(
        name=name,
        kind=entry.get("kind", "property"),
        json=tuple(entry.get("json", ())),
        enum=tuple(entry.get("enum", ())),
        minimum=math.nextafter(entry["above"], math.inf) if "above" in entry else entry.get("min"),
        maximum=entry.get("max"),
        items=None if items is None else _attribute("", items),
        members={n: _attribute(n, member, unit) for n, member in entry.get("members", {}).items()},
        unit=unit or entry.get("unit", ""),
        units_text=entry.get("units", ""),
        format=entry.get("format", ""),
        pattern=entry.get("pattern", ""),
        lengths=(entry.get("shortest", 0), entry.get("longest")),
        fewest=entry.get("fewest", 0),
        unique=bool(entry.get("unique", False)),
        alternatives=tuple(_attribute(name, choice) for choice in entry.get("any", ())),
    )
