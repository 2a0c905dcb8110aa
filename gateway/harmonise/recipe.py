"""Recipes: all that the compiler was given for one device and one city, so that readings outlive their device's place in the file.

What stands in one is named here, field by field: points, entity, calibration, place, the city's rule. No key, no login, no address
of a broker or a device is ever among them.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from gateway.config.model import CityProfile
from gateway.harmonise.compile import BareDevice, Mapping, compile_device
from gateway.models.catalogue import Catalogue
from gateway.sdk.config import Calibration, DeviceConfig
from gateway.sdk.errors import CitygateError
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point
from gateway.sdk.template import STORED, EntityMapping, Template, TemplatePoint

T = TypeVar("T")
VERSION: Final = 1
_MAGIC: Final = b"CR"
_dump = partial(json.dumps, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


class RecipeError(CitygateError):
    """A recipe that cannot be used; the message says why."""


def recipe_of(tables: Sequence[Mapping]) -> bytes:
    """The recipe of a device's tables for one city; equal tables give equal bytes."""
    given = tables[0].given
    assert given is not None  # tables come from the compiler
    device, entity = given.device, given.entity
    used = {point for table in tables for point in table.slots}
    types = {one.type for one in (entity, *entity.more.values()) if one.type}
    template = device.template
    return _packed(
        {
            "name": device.name,
            "gateway": given.gateway_id,
            "city": given.city,
            "location": device.location,
            "points": {
                name: [point.quantity, point.unit, template.points[name].range]
                for name, point in device.points.items()
                if name in used
            },
            "entity": entity.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            "calibrate": {
                name: one.model_dump(mode="json", by_alias=True, exclude_defaults=True)
                for name, one in device.config.calibrate.items()
                if name in used
            },
            "profile": _rules(given.profile, types),
            "types": given.models.own_types(types),
            "tables": {
                table.name: [table.entity_id, sorted(table.mandatory), sorted(table.static)] for table in tables
            },
        }
    )


def _rules(profile: CityProfile, types: set[str]) -> dict[str, Any]:
    """The part of a city's profile that makes these entities; what it says of brokers is none of it."""
    its = profile.model_dump(mode="json", by_alias=True, exclude_defaults=True, include={"id", "static", "provider"})
    rules = {name: rule for name, rule in profile.types.items() if name in {*types, "Device"}}
    if rules:
        its["types"] = {n: r.model_dump(mode="json", by_alias=True, exclude_defaults=True) for n, r in rules.items()}
    return its


def _packed(content: MappingOf[str, Any]) -> bytes:
    body = zlib.compress(_dump(content).encode("utf-8", "surrogatepass"), 9)
    return _MAGIC + bytes((VERSION,)) + zlib.crc32(body).to_bytes(4, "little") + body


def _unpacked(recipe: bytes) -> dict[str, Any]:
    if recipe[:2] != _MAGIC or len(recipe) < 7:
        raise RecipeError("its recipe is damaged")
    if recipe[2] != VERSION:
        raise RecipeError(f"its recipe is of another citygate (version {recipe[2]}, this one knows {VERSION})")
    if zlib.crc32(recipe[7:]) != int.from_bytes(recipe[3:7], "little"):
        raise RecipeError("its recipe is damaged")
    try:
        content: dict[str, Any] = json.loads(zlib.decompress(recipe[7:]))
    except (zlib.error, ValueError, RecursionError):
        raise RecipeError("its recipe is damaged") from None
    return content


def _taken(recipe: bytes, take: Callable[[dict[str, Any]], T]) -> T:
    """A recipe is data: whatever is wrong with it is said of the readings that need it.

    Raises:
        RecipeError: it is damaged, of another version, or not what it should be.
    """
    content = _unpacked(recipe)
    try:
        return take(content)
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"its recipe cannot be used: {type(error).__name__}: {error}") from error


def points_of(recipe: bytes) -> frozenset[str]:
    """The points that it maps. Raises RecipeError."""
    return _taken(recipe, lambda content: frozenset(content["points"].keys()))


def entities_of(recipe: bytes) -> dict[str, str]:
    """Entity ids by the name of each of the device's mappings; none of a recipe that cannot be read."""
    try:
        return _taken(recipe, lambda content: {name: str(its[0]) for name, its in content["tables"].items()})
    except RecipeError:
        return {}


def tables_of(recipe: bytes, device: str, models: Catalogue) -> tuple[Mapping, ...]:
    """The tables of a device by its recipe. Raises RecipeError.

    Args:
        device: as its readings are called in the log.
    """
    return _taken(recipe, lambda content: _compiled(content, device, models))


def _compiled(content: MappingOf[str, Any], device: str, models: Catalogue) -> tuple[Mapping, ...]:
    tables, problems = compile_device(
        _device(content),
        gateway_id=content["gateway"],
        city=content["city"],
        profile=CityProfile.model_validate(content["profile"]),
        models=models.with_index({"types": content["types"], "terms": {}}) if content["types"] else models,
    )
    wrong = [problem.message for problem in problems if problem.severity == "error"]
    if wrong:
        raise RecipeError(f"its recipe cannot be used: {wrong[0]}")
    return tuple(_as_it_was(replace(table, device=device), *content["tables"][table.name]) for table in tables)


def _as_it_was(table: Mapping, entity_id: str, mandatory: Sequence[str], static: Sequence[str]) -> Mapping:
    """The table with what other devices gave to its entity, or had from it."""
    kept = {name: table.static[name] for name in static if name in table.static}
    return replace(table, entity_id=entity_id, mandatory=frozenset(mandatory), static=kept)


def _device(content: MappingOf[str, Any]) -> BareDevice:
    given = content["points"].items()
    template = Template(
        vendor="",
        model="",
        points={
            name: TemplatePoint(quantity=quantity, unit=unit, range=None if bounds is None else tuple(bounds))
            for name, (quantity, unit, bounds) in given
        },
        entity=EntityMapping.model_validate(content["entity"], context=STORED),
    )
    points = {name: Point(name, quantity, unit or quantities()[quantity].unit) for name, (quantity, unit, _) in given}
    calibrate = {name: Calibration.model_validate(one) for name, one in content["calibrate"].items()}
    config = DeviceConfig.model_construct(template=template, entity=None, calibrate=calibrate, report={})
    location = content["location"]
    return BareDevice(content["name"], "", config, template, points, None if location is None else tuple(location))


# What a device's readings are

Kind = bytes


def kind_of(template: Template, points: MappingOf[str, Point]) -> Kind:
    """What a device's readings mean: its template, and of each point what it measures and in which unit."""
    return _packed({"template": template.name, "points": {p.name: [p.quantity, p.unit] for p in points.values()}})


def is_same_kind(old: Kind, new: Kind) -> bool:
    """Whether readings of the one may be taken for readings of the other: of one template, whose points mean what they did.

    What cannot be read says nothing.
    """
    try:
        before, now = (
            _taken(kind, lambda content: (content["template"], dict(content["points"]))) for kind in (old, new)
        )
    except RecipeError:
        return True
    return before[0] == now[0] and all(now[1].get(name) == its for name, its in before[1].items())


def kind_name(kind: Kind) -> str:
    """What people call it, and enough to tell two of one name apart."""
    try:
        template, code = _taken(kind, lambda content: (content["template"], zlib.crc32(_dump(content).encode())))
    except RecipeError:
        return "?"
    return f"{template} {code:08x}"
