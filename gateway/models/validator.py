"""Entities against their official schemas: the last check before they leave. Needs jsonschema-rs; without it, our own rules."""

import importlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Protocol

from gateway.models.catalogue import AttributeSpec, Catalogue, EntityType
from gateway.models.rules import constant_fault
from gateway.sdk.files import read_text

_PUBLISHED = "https://smart-data-models.github.io"
_RAW = "https://raw.githubusercontent.com/smart-data-models"
MAX_FAULTS = 5


class _Compiled(Protocol):
    def is_valid(self, instance: Any) -> bool: ...
    def iter_errors(self, instance: Any) -> Iterator[Any]: ...


class Validator:
    """Checks key-values entities.

    Attributes:
        official: the schemas themselves are used; False = jsonschema-rs is not installed, and the catalogue's types, enums
            and bounds have to do.
    """

    def __init__(self, models: Catalogue, *, official: bool = True) -> None:
        self._models = models
        self.official = official and _jsonschema() is not None
        self._compiled: dict[tuple[str, bool], _Compiled | None] = {}

    def faults(self, body: Mapping[str, Any], context: str, *, whole: bool = True) -> list[str]:
        """What the model has against an entity; [] = valid.

        Args:
            body: key-values form.
            context: URL of its @context, which tells types of one name apart.
            whole: False for an update, where mandatory attributes may be absent because the broker has them.
        """
        model = self._model(str(body["type"]), context)
        if model is None:
            return [f"{body['type']} is not a type of the catalogue"]
        compiled = self._schema(model, whole=whole)
        if compiled is None:
            return list(_by_rules(model, body, whole=whole))
        if compiled.is_valid(body):
            return []
        found = (
            f"{'/'.join(map(str, error.instance_path)) or 'entity'}: {error.message}"
            for error in compiled.iter_errors(body)
        )
        return [text[:300] for text, _ in zip(found, range(MAX_FAULTS), strict=False)]

    def _model(self, name: str, context: str) -> EntityType | None:
        model = self._models.type(name)
        if model is not None and model.context == context:
            return model
        other = self._models.type(f"synchronicity/{name}")
        return other if other is not None and other.context == context else model

    def _schema(self, model: EntityType, *, whole: bool) -> _Compiled | None:
        key = (f"{model.origin}/{model.subject}/{model.name}", whole)
        if key not in self._compiled:
            self._compiled[key] = _compile(model, whole=whole) if self.official else None
        return self._compiled[key]


def _by_rules(model: EntityType, body: Mapping[str, Any], *, whole: bool) -> Iterator[str]:
    for name in sorted(model.mandatory - set(body)) if whole else ():
        yield f"{name} is missing"
    for name, value in body.items():
        spec = model.attributes.get(name)
        if name in ("id", "type"):
            continue
        if spec is None:
            yield f"{model.name} has no attribute {name}"
        elif spec.members and isinstance(value, dict):
            yield from (f"{name}.{m}: {fault}" for m, v in value.items() if (fault := _fault(spec.members.get(m), v)))
        elif spec.kind not in ("geo", "relationship") and (fault := _fault(spec, value)):
            yield f"{name}: {fault}"


def _fault(spec: AttributeSpec | None, value: Any) -> str:
    return "" if spec is None else constant_fault(spec, value)


@cache
def _jsonschema() -> Any:
    try:
        return importlib.import_module("jsonschema_rs")
    except ImportError:
        return None


@cache
def _registry() -> Any:
    """Everything that published schemas refer to, by the addresses they use."""
    resources: list[tuple[str, Any]] = []
    root = files("gateway.models") / "schemas"
    resources.append((f"{_PUBLISHED}/data-models/common-schema.json", _read(root / "common-schema.json")))
    for subject in root.iterdir():
        for file in subject.iterdir() if subject.is_dir() and subject.name.startswith("dataModel.") else ():
            if file.name.endswith("-schema.json"):
                content = _read(file)
                resources.append((f"{_PUBLISHED}/{subject.name}/{file.name}", content))
                resources.append((f"{_RAW}/{subject.name}/master/{file.name}", content))
    return _jsonschema().Registry(resources)


def _compile(model: EntityType, *, whole: bool) -> _Compiled | None:
    file = _file(model)
    if not file.is_file():
        return None
    schema = _read(file)
    if "2020-12" not in schema.get("$schema", "") or str(schema.get("$schemaVersion", "")) != model.version:
        return None  # the first models use older drafts; a refreshed index is newer than the shipped schema
    if not whole:
        schema = _without_required(schema)
    validator: _Compiled = _jsonschema().Draft202012Validator(schema, registry=_registry(), validate_formats=True)
    return validator


def _file(model: EntityType) -> Traversable:
    root = files("gateway.models") / "schemas" if model.origin in ("standard", "synchronicity") else Path(model.origin)
    return root / model.subject / model.name / "schema.json"


def _without_required(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without it at the top and in its parts; structured values keep what they ask of themselves."""
    out = {key: value for key, value in schema.items() if key != "required"}
    if "allOf" in out:
        out["allOf"] = [{k: v for k, v in part.items() if k != "required"} for part in out["allOf"]]
    return out


def _read(file: Traversable) -> Any:
    return json.loads(read_text(file))
