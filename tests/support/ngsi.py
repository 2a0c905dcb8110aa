"""Judges for entities, without the product's own code: official schemas with format checks, JSON-LD expansion offline.

And a device to compile in one line.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from pyld import jsonld
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from gateway.config.model import CityProfile
from gateway.harmonise.compile import Mapping as Table
from gateway.harmonise.compile import compile_device
from gateway.sdk.config import DeviceConfig
from gateway.sdk.errors import Problem
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point
from gateway.sdk.template import Template

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "gateway" / "models" / "schemas"
CORE = ROOT / "gateway" / "models" / "contexts" / "ngsi-ld-core-context-v1.9.jsonld"
CORE_URL = "https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context-v1.9.jsonld"
EXAMPLES = ROOT / "tests" / "data" / "ngsi" / "examples"


def schema_errors(entity: Mapping[str, Any], type_name: str = "") -> list[str]:
    """What the official schema of the entity's type says against a key-values entity; [] = valid."""
    return [
        f"{'/'.join(map(str, e.path))}: {e.message}"
        for e in _validator(type_name or entity["type"]).iter_errors(entity)
    ]


@cache
def _validator(type_name: str) -> jsonschema.Draft202012Validator:
    [file] = SCHEMAS.glob(f"dataModel.*/{type_name}/schema.json")
    schema = json.loads(file.read_text())
    return jsonschema.Draft202012Validator(
        schema,
        registry=Registry(retrieve=_retrieve),  # type: ignore[call-arg]  # attrs field of a private name
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def _retrieve(uri: str) -> Resource[Any]:
    parts = [part for part in uri.split("/") if part != "master"]
    file = SCHEMAS / parts[-1] if parts[-1] == "common-schema.json" else SCHEMAS / parts[-2] / parts[-1]
    return Resource.from_contents(json.loads(file.read_text()), default_specification=DRAFT202012)


def expand(entity: Mapping[str, Any], context: str) -> dict[str, Any]:
    """The entity as JSON-LD sees it: every name as an IRI. The core context comes last and wins, as at a broker."""
    document = {**entity, "@context": [context, CORE_URL]}
    [expanded] = jsonld.expand(document, {"documentLoader": _load, "processingMode": "json-ld-1.1"})
    return dict(expanded)


@cache
def _document(url: str) -> Any:
    if url == CORE_URL:
        return json.loads(CORE.read_text())
    if url.startswith("https://w3id.org/security/"):
        return {"@context": {}}  # of signed entities, which we do not send
    subject = url.removeprefix("https://raw.githubusercontent.com/smart-data-models/").partition("/")[0]
    return json.loads((SCHEMAS / subject / "context.jsonld").read_text())


def _load(url: str, _options: Any) -> dict[str, Any]:
    return {"contextUrl": None, "documentUrl": url, "document": _document(url), "contentType": "application/ld+json"}


@dataclass(frozen=True)
class Device:
    """As gateway.plan.DevicePlan, without a driver."""

    name: str
    link: str
    config: DeviceConfig
    template: Template
    points: Mapping[str, Point]
    location: tuple[float, float] | None


def device(
    points: Mapping[str, Any],
    mapping: Mapping[str, Any],
    *,
    location: tuple[float, float] | None = (9.159, 45.503),
    name: str = "dev-1",
    **config: Any,
) -> Device:
    """A device with these points (quantity, or {quantity, unit, …}) and this default mapping."""
    template = Template.model_validate(
        {
            "vendor": "Acme",
            "model": "T-1",
            "name": "acme/t1",
            "points": {p: {"quantity": q} if isinstance(q, str) else q for p, q in points.items()},
            "entity": mapping,
        }
    )
    made = {p: Point(p, t.quantity, t.unit or quantities()[t.quantity].unit) for p, t in template.points.items()}
    return Device(name, "roof", DeviceConfig.model_validate({"template": template, **config}), template, made, location)


def compiled(plan: Device, profile: CityProfile | None = None) -> tuple[tuple[Table, ...], tuple[Problem, ...]]:
    """The device's tables and problems for one city."""
    return compile_device(plan, gateway_id="gw-1", city="milano", profile=profile or CityProfile())
