"""What editors get: JSON Schemas beside the config, with the box's own templates, models and cities in them."""

import contextlib
import hashlib
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from gateway.cli.terminal import complain
from gateway.config.bases import name_in_copy
from gateway.config.edit import alone, replace_file
from gateway.config.known import EntityNames, Known, Schema
from gateway.config.last_good import own_files
from gateway.config.loader import FRAGMENTS, files_of, folders_of, shipped
from gateway.config.sample import SCHEMA_FILE
from gateway.config.templates import Templates, template_names, yaml_files
from gateway.models.catalogue import EntityType
from gateway.registry import DriverUnavailable, Registry
from gateway.sdk.driver import Driver
from gateway.sdk.errors import Problem
from gateway.sdk.files import MAX_TEXT_BYTES, read_bytes
from gateway.sdk.template import Template


class Editor:
    """The schemas of one box.

    Args:
        folder: of the config; there need not be one yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._registry = Registry()

    def file(self, *, fragment: bool = False) -> Schema:
        """Of the operator's file."""
        from gateway.config.schema import file_schema

        return self._signed(file_schema(self._drivers, self._known, fragment=fragment))

    def template(self, driver: str) -> Schema:
        """Of the templates of a driver."""
        from gateway.config.schema import template_schema

        return self._signed(template_schema(self._registry.driver(driver), self._known))

    def profile(self) -> Schema:
        """Of a city profile."""
        from gateway.config.schema import profile_schema

        return self._signed(profile_schema(self._known))

    def page(self) -> str:
        """Every key, for people."""
        from gateway.config.page import page
        from gateway.config.schema import file_schema, profile_schema

        return page(file_schema(self._drivers), profile_schema())

    def write(self) -> list[Path]:
        """All schemas that an editor can want in this folder, as it is now. Raises OSError."""
        made = {SCHEMA_FILE: self.file(fragment=self._has_base)}
        if (self.folder / FRAGMENTS).is_dir():
            made[f"{FRAGMENTS}/{SCHEMA_FILE}"] = self.file(fragment=True)
        if (self.folder / "cities").is_dir():
            made[f"cities/{SCHEMA_FILE}"] = self.profile()
        if (self.folder / "templates").is_dir():
            made |= {f"templates/{name}.schema.json": self.template(name) for name in self._readers()}
        for name, schema in made.items():
            replace_file(self.folder / name, in_lines(schema) + "\n")
        return [self.folder / name for name in made]

    def _readers(self) -> list[str]:
        """The drivers that understand an own template; all while there is none."""
        own = template_names(self.folder / "templates")
        known = self._known.templates
        return [name for name in known if any(known[name].get(template) for template in own)] or list(known)

    def refresh(self) -> None:
        """Write them anew when there are some, made of something else than there is now; what hinders that is told."""
        if self.stale() is not None:
            try:
                with alone(self.folder):
                    self.write()
            except OSError as error:
                complain(f"{error.filename} cannot be written: {error.strerror}; later: citygate schema --write")

    def stale(self) -> Problem | None:
        """A warning when an editor is told of other templates, models and keys than there are now."""
        file = self.folder / SCHEMA_FILE
        try:
            made_of = orjson.loads(read_bytes(file, MAX_TEXT_BYTES)).get("$comment")
        except OSError:
            return None  # nobody edits here, or not with a schema
        except (ValueError, AttributeError):
            made_of = None
        if made_of == self._signature():
            return None
        message = "made of other templates, models or drivers than there are now: editors complain of what is right"
        remedy = "citygate schema --write"
        return Problem("stale-schema", (), message, remedy, "warning", file=str(file), line=1, column=1)

    @cached_property
    def _drivers(self) -> dict[str, Driver[Any] | None]:
        drivers: dict[str, Driver[Any] | None] = {}
        for name in self._registry.names():
            drivers[name] = None  # its keys cannot be known here
            with contextlib.suppress(DriverUnavailable):
                drivers[name] = self._registry.driver(name)
        return drivers

    @cached_property
    def _folders(self) -> tuple[Path, ...]:
        """Its own, and those of its bases."""
        return folders_of(self.folder)

    @cached_property
    def _known(self) -> Known:
        from gateway.models.extension import extended

        catalogue = None
        for folder in reversed(self._folders):
            catalogue, _ = extended(folder / "models", catalogue)
        assert catalogue is not None
        models = {name: model for name in catalogue.names() if (model := catalogue.type(name)) is not None}
        places = (*(folder / "cities" for folder in self._folders), shipped("cities"))
        cities = {f"cities/{file.stem}" for place in places for file in yaml_files(place)}
        return Known(self._templates(), {name: _names(model) for name, model in models.items()}, sorted(cities))

    def _templates(self) -> dict[str, dict[str, Template | None]]:
        """By driver and name; own ones come before those that are shipped."""
        folders = [folder / "templates" for folder in self._folders]
        beside = Templates(folders, [])
        own = {name for folder in folders for name in template_names(folder)}
        return {
            name: {**_shipped(driver), **{its: beside.load(driver, its).template for its in own}}
            for name, driver in self._drivers.items()
            if driver
        }

    @cached_property
    def _has_base(self) -> bool:
        """Then its file need not be complete, and may take away."""
        fragments = self.folder / FRAGMENTS
        return any(file.parent != fragments for file in files_of(self.folder)[1:])

    def _signed(self, schema: Schema) -> Schema:
        return {"$schema": schema["$schema"], "$comment": self._signature(), **schema}

    def _signature(self) -> str:
        digest = hashlib.sha256(b"laid on a base" if self._has_base else b"")
        for name in self._registry.names():
            digest.update(f"{name} {self._registry.origin(name)}\n".encode())
        for file in (file for folder in self._folders for file in own_files(folder)):
            with contextlib.suppress(OSError):
                digest.update(f"{name_in_copy(file, self.folder)}\n".encode() + read_bytes(file, MAX_TEXT_BYTES))
        return f"citygate {version('citygate')}, {digest.hexdigest()[:16]}"


_SHIPPED: dict[tuple[Any, ...], dict[str, Template | None]] = {}  # what is installed stays the same while we run


def _shipped(driver: Driver[Any]) -> dict[str, Template | None]:
    """The templates of a driver; those that share a folder read it once."""
    key = driver.template_model, str(driver.templates)
    if key not in _SHIPPED:
        nowhere = Templates((), [])
        _SHIPPED[key] = {name: nowhere.load(driver, name).template for name in template_names(driver.templates)}
    return _SHIPPED[key]


def _names(model: EntityType) -> EntityNames:
    from gateway.harmonise.compile import constants, sources

    needs = ", ".join(sorted(model.mandatory))
    about = f"{model.subject} {model.version}" + (f", needs {needs}" if needs else "")
    return EntityNames(about, sources(model), constants(model))


def in_lines(schema: Schema) -> str:
    """JSON with a line for each definition, so that what changed can be seen."""
    parts = {key: orjson.dumps(value).decode() for key, value in schema.items() if key != "definitions"}
    definitions = (
        f"{orjson.dumps(key).decode()}:{orjson.dumps(value).decode()}"
        for key, value in schema.get("definitions", {}).items()
    )
    parts["definitions"] = "{\n" + ",\n".join(definitions) + "}"
    return "{" + ",\n".join(f'"{key}":{text}' for key, text in parts.items()) + "}"
