"""Config, templates and models -> one checked Plan, or every problem at once. `run`, `check` and `preview` start here."""

import os
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from gateway.config.advice import advise
from gateway.config.explain import in_order, locate
from gateway.config.loader import Loaded, LoadedLink, NoDriver, load
from gateway.config.model import NAME, BrokerConfig, CityProfile, Config
from gateway.config.secrets import Held, without_secrets
from gateway.config.templates import LoadedTemplate, Shelf, Templates, check_samples
from gateway.config.tree import Map, Place, Scalar, Source, find
from gateway.config.validate import validate
from gateway.environment import NOTHING, Environment
from gateway.harmonise.compile import Mapping as EntityTable
from gateway.harmonise.compile import Slot, compile_device, joined, merged
from gateway.harmonise.devices import MARK, box_table, sensor_table
from gateway.models.catalogue import Catalogue, catalogue, near
from gateway.models.extension import extended
from gateway.registry import DriverUnavailable
from gateway.sdk.config import Calibration, DeviceConfig, LinkConfig
from gateway.sdk.driver import Driver
from gateway.sdk.errors import ConfigError, Problem
from gateway.sdk.libraries import lacking
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point
from gateway.sdk.template import EntityMapping, Template

Tables = Mapping[str, tuple[EntityTable, ...]]


class Drivers(Protocol):
    """What a plan needs of the registry."""

    def driver(self, name: str) -> Driver[Any]:
        """Raises DriverUnavailable."""

    def names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class DevicePlan:
    """One device: what it is, what it gives, where it stands.

    Attributes:
        template_file: the file its template was read from.
        location: longitude, latitude; the gateway's when it has none of its own.
    """

    name: str
    link: str
    config: DeviceConfig
    template: Template
    points: Mapping[str, Point]
    location: tuple[float, float] | None
    template_file: str = ""


@dataclass(frozen=True)
class LinkPlan:
    """One link. With a `fault` its driver or a secret cannot be had: it stays off, all else runs."""

    name: str
    driver_name: str
    driver: Driver[Any] | None
    config: LinkConfig | None
    devices: Mapping[str, DevicePlan]
    fault: str = ""
    remedy: str = ""
    device_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrokerPlan:
    """One broker with the tables from which its entities are made, by device. With a `fault` it stays off, all else runs."""

    name: str
    config: BrokerConfig
    profile: CityProfile
    mappings: Tables
    fault: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything the daemon needs, checked.

    Attributes:
        devices: of all links that have a driver, by name.
        read_api: tables for the embedded read API, without any city's profile.
        files: main file and fragments.
        models: the catalogue with the operator's extensions.
        secrets: the texts of all secrets in it, to be hidden wherever something is shown.
        secret_texts: those that `!secret` named, by name.
        secret_places: where these were found; none of one that is remembered alone.
        untold: path -> name of secrets whose text is not known here: nobody can log in with them.
        found: how many links, devices and brokers there are.
    """

    config: Config
    links: Mapping[str, LinkPlan]
    devices: Mapping[str, DevicePlan]
    brokers: Mapping[str, BrokerPlan]
    read_api: Tables
    warnings: tuple[Problem, ...] = ()
    files: tuple[Path, ...] = ()
    models: Catalogue = field(default_factory=catalogue)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)
    secret_texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_places: Mapping[str, str] = field(default_factory=dict)
    untold: Mapping[tuple[str | int, ...], str] = field(default_factory=dict)
    found: str = ""


def make_plan(
    path: Path,
    registry: Drivers,
    *,
    with_secrets: bool = True,
    degraded: bool = False,
    home: Path | None = None,
    remembered: Mapping[str, str] | None = None,
    held: Held | None = None,
    environment: Environment = NOTHING,
) -> Plan:
    """Read and check the operator's file.

    Args:
        path: file or folder, as given to `-c`.
        with_secrets: False checks without looking secrets up (laptop, CI).
        degraded: a broker or link whose secret is missing stays off, and that is a warning; else it is an error.
        home, remembered, held, environment: see `gateway.config.loader.load`.

    Raises:
        ConfigError: carries every problem, warnings too, in order of file and line.
    """
    loaded = load(
        path,
        lambda name: find_driver(registry, name),
        with_secrets=with_secrets,
        home=home,
        remembered=remembered,
        held=held,
        environment=environment,
    )
    return plan_of(loaded, degraded=degraded)


def plan_of(loaded: Loaded, *, degraded: bool = False, shelf: Shelf | None = None) -> Plan:
    """The plan of files that were read.

    Args:
        degraded: see `make_plan`.
        shelf: what was made for other configs and is made once for all.

    Raises:
        ConfigError: as `make_plan`.
    """
    if degraded:
        loaded, off = _without_what_lacks_a_secret(loaded)
    else:
        off = {}
    problems = [*loaded.problems, *advise(loaded), *_unavailable(loaded)]
    # of a gateway that is not known yet, nothing can be said to be missing
    location = loaded.gateway.location if loaded.gateway else (0.0, 0.0)
    links = {name: _link_plan(link, location, off.get(("links", name), "")) for name, link in loaded.links.items()}
    devices = {name: device for link in links.values() for name, device in link.devices.items()}
    models, found = _models(loaded.folders, {} if shelf is None else shelf)
    problems += [*found, *_unknown_types(loaded, models)]
    checked = devices | _rough_devices(loaded, location)
    if same := _named_like_the_box(loaded):
        problems.append(same)
        checked.pop(str(same.path[-1]), None)  # all that follows is one mistake
    profiles = {broker: profile for broker, (profile, _) in loaded.profiles.items()}
    compiled: list[tuple[CityProfile, Tables]] = []  # brokers of one profile (most have none) share their tables
    for profile in (CityProfile(), *profiles.values()):
        if all(profile != known for known, _ in compiled):
            compiled.append((profile, _compile(checked, loaded, profile, models, problems)))
    tables = {broker: next(its for known, its in compiled if known == profile) for broker, profile in profiles.items()}
    read_api = compiled[0][1]
    ordered = in_order(without_secrets(problem, loaded.secrets) for problem in problems)
    if loaded.config is None or any(problem.severity == "error" for problem in ordered):
        raise ConfigError(ordered, loaded.found)
    brokers = {
        name: BrokerPlan(
            name, _at(config, profiles[name]), profiles[name], _sent(config, tables[name]), *_off(off, "brokers", name)
        )
        for name, config in loaded.config.brokers.items()
    }
    return Plan(
        loaded.config,
        links,
        devices,
        brokers,
        read_api,
        ordered,
        loaded.files,
        models,
        loaded.secrets,
        loaded.texts,
        loaded.places,
        loaded.untold,
        loaded.found,
    )


def _models(folders: tuple[Path, ...], shelf: Shelf) -> tuple[Catalogue, tuple[Problem, ...]]:
    """The catalogue with the operator's extensions, the nearest last."""
    own = tuple(models for folder in reversed(folders) if os.path.isdir(models := folder / "models"))
    if own not in shelf:
        made = catalogue()
        problems: list[Problem] = []
        for folder in own:
            made, found = extended(folder, made)
            problems += found
        shelf[own] = made, tuple(problems)
    known: tuple[Catalogue, tuple[Problem, ...]] = shelf[own]
    return known


SECRET_REMEDY = "put it there, then `citygate reload`"
_Off = Mapping[tuple[str, str], str]  # (links or brokers, name) -> why


def _without_what_lacks_a_secret(loaded: Loaded) -> tuple[Loaded, _Off]:
    """One city's secret that is missing stops that city, not the box: such a problem is a warning."""
    if loaded.config is None:
        return loaded, {}
    off: dict[tuple[str, str], str] = {}
    problems: list[Problem] = []
    for problem in loaded.problems:
        part, name = (*map(str, problem.path[:2]), "", "")[:2]
        if problem.code == "missing-secret" and problem.severity == "error" and part in ("links", "brokers"):
            off.setdefault((part, name), problem.message)
            said = f"{problem.message}; {part.removesuffix('s')} {name} stays off, all else runs"
            problem = replace(problem, severity="warning", message=said, remedy=SECRET_REMEDY)
        problems.append(problem)
    return replace(loaded, problems=tuple(problems)), off


def _off(off: _Off, part: str, name: str) -> tuple[str, str]:
    """Fault and remedy of a part."""
    fault = off.get((part, name), "")
    return fault, SECRET_REMEDY if fault else ""


def _unavailable(loaded: Loaded) -> list[Problem]:
    """Drivers that cannot work on this box. A daemon runs on without them, so here they are warnings."""
    problems: list[Problem] = []
    for name, link in loaded.links.items():
        fault, remedy = (link.fault, link.remedy) if link.fault else lacking(link.config)
        path = ("links", name, "driver")
        if fault:
            problems.append(locate(Problem("driver-unavailable", path, fault, remedy, severity="warning"), loaded.root))
    return problems


def _rough_devices(loaded: Loaded, location: tuple[float, float] | None) -> dict[str, DevicePlan]:
    """Devices of links that have errors, as far as their mapping can be checked all the same."""
    rough: dict[str, DevicePlan] = {}
    for link in loaded.links.values():
        for name, its in link.templates.items() if link.config is None else ():
            node = find(loaded.root, ("links", link.name, "devices", name)).node
            if its.template is None or not isinstance(node, Map) or not NAME.fullmatch(name):
                continue
            common = {key: entry for key, entry in node.entries.items() if key in DeviceConfig.model_fields}
            config, _ = validate(DeviceConfig, Map(common, node.place), given={("template",): its.template})
            if config is not None:
                rough[name] = _device_plan(name, link, config, location)
    return rough


def _unknown_types(loaded: Loaded, models: Catalogue) -> list[Problem]:
    """Rules of a city profile for entity types that do not exist: they would silently do nothing."""
    problems: list[Problem] = []
    for profile, tree in loaded.profiles.values():
        problems += [locate(problem, tree) for problem in _doubtful_rules(profile, models)]
        for name in profile.types:
            if models.type(name) is None:
                near = models.near(name)
                remedy = f"did you mean {near}?" if near else "see citygate models search"
                problem = Problem(
                    "mapping-type", ("types", name), f"{name} is not a type of the catalogue", remedy, at="key"
                )
                problems.append(locate(problem, tree))
    return problems


def _doubtful_rules(profile: CityProfile, models: Catalogue) -> Iterator[Problem]:
    """What of a profile would do nothing, or make one entity of two."""
    known = models.attribute_names() if profile.static else frozenset()
    for name in profile.static:
        if name not in known:
            yield _no_attribute(
                ("static", name), f"no type of the catalogue has an attribute {name}", near(name, known)
            )
    for type_name, rule in profile.types.items():
        model = models.type(type_name)
        for name in rule.static if model else ():
            if name not in model.attributes:  # type: ignore[union-attr]  # asked before
                where = ("types", type_name, "static", name)
                yield _no_attribute(where, f"{type_name} has no attribute {name}", model.near(name))  # type: ignore[union-attr]
    patterns: dict[tuple[str, ...], str | None] = {
        ("id",): profile.id,
        **{("types", name, "id"): rule.id for name, rule in profile.types.items()},
    }
    for path, pattern in patterns.items():
        if pattern and "{gateway}" not in pattern:
            message = "without {gateway}, devices of one name on two boxes are one entity"
            yield Problem("shared-id", path, message, "add {gateway}, or give no name twice in the city", "warning")


def _no_attribute(path: tuple[str, ...], message: str, likely: str) -> Problem:
    remedy = f"did you mean {likely}?" if likely else "an extension model may add it; else leave it out"
    return Problem("mapping-attribute", path, message, remedy, at="key")


def _named_like_the_box(loaded: Loaded) -> Problem | None:
    """A device with the gateway's own name: both would be told about as one Device entity."""
    if loaded.gateway is None or (loaded.config is not None and not loaded.config.publish.devices_s):
        return None
    link = next((link.name for link in loaded.links.values() if loaded.gateway.id in link.devices), "")
    path = ("links", link, "devices", loaded.gateway.id)
    remedy = "give the device another name; the gateway's is in ids that exist already"
    problem = Problem("duplicate-device", path, f"{loaded.gateway.id} is the gateway's own id", remedy, at="key")
    return locate(problem, loaded.root) if link else None


def find_driver(registry: Drivers, name: str) -> Driver[Any] | NoDriver:
    """The driver of this name, or why there is none."""
    try:
        return registry.driver(name)
    except DriverUnavailable as error:
        return NoDriver(str(error), error.remedy, error.unknown, registry.names())


def _link_plan(link: LoadedLink, location: tuple[float, float] | None, off: str = "") -> LinkPlan:
    configs: Mapping[str, DeviceConfig] = getattr(link.config, "devices", {})
    devices = {
        name: _device_plan(name, link, config, location)
        for name, config in configs.items()
        if name in link.templates and NAME.fullmatch(name)
    }
    fault, remedy = (off, SECRET_REMEDY) if off else (link.fault, link.remedy)
    return LinkPlan(link.name, link.driver_name, link.driver, link.config, devices, fault, remedy, link.devices)


def _device_plan(name: str, link: LoadedLink, config: DeviceConfig, location: tuple[float, float] | None) -> DevicePlan:
    template, file = config.template, link.templates[name].file
    return DevicePlan(name, link.name, config, template, _points(template), config.location or location, file)


def _at(config: BrokerConfig, profile: CityProfile) -> BrokerConfig:
    """A broker of its city: what the entry says comes first."""
    return config if config.contexts else config.model_copy(update={"contexts": profile.contexts})


def _points(template: Template) -> dict[str, Point]:
    """Its points, in the quantity's canonical unit where the template names none."""
    return {
        name: Point(name, point.quantity, point.unit or quantities()[point.quantity].unit)
        for name, point in template.points.items()
    }


def _compile(
    devices: Mapping[str, DevicePlan],
    loaded: Loaded,
    profile: CityProfile,
    models: Catalogue,
    problems: list[Problem],
) -> dict[str, tuple[EntityTable, ...]]:
    """The tables of all devices for one profile; what is wrong with a mapping goes to `problems`."""
    gateway = loaded.gateway
    gateway_id, city = (gateway.id, gateway.city) if gateway else ("gateway", "city")
    if loaded.config is not None and loaded.config.publish.provider and not profile.provider:
        profile = profile.model_copy(update={"provider": loaded.config.publish.provider})
    tables: dict[str, tuple[EntityTable, ...]] = {}
    for name, device in devices.items():
        tables[name], found = compile_device(
            device, gateway_id=gateway_id, city=profile.city or city, profile=profile, models=models
        )
        problems += [_place(problem, device, loaded) for problem in found]
    if loaded.config is not None and loaded.config.publish.devices_s:
        tables.update(_told(devices, tables, loaded, profile, models, problems))
    tables, found = joined(tables)
    problems += [
        _place(problem, devices[str(problem.path[3])], loaded) for problem in found if problem.path[3] in devices
    ]
    return tables


def _told(
    devices: Mapping[str, DevicePlan],
    tables: Tables,
    loaded: Loaded,
    profile: CityProfile,
    models: Catalogue,
    problems: list[Problem],
) -> Iterator[tuple[str, tuple[EntityTable, ...]]]:
    """The Device entities of the box and its sensors, under names that no device can have."""
    gateway = loaded.config.gateway  # type: ignore[union-attr]  # asked before
    city = profile.city or gateway.city
    for name, device in devices.items():
        driver = loaded.links[device.link].driver_name
        its, found = sensor_table(
            device, tables[name], driver=driver, gateway_id=gateway.id, city=city, profile=profile, models=models
        )
        problems += [_place(problem, device, loaded) for problem in found]
        yield MARK + name, its
    box, found = box_table(
        devices,
        gateway_id=gateway.id,
        name=gateway.name,
        location=gateway.location,
        version=version("citygate"),
        city=city,
        profile=profile,
        models=models,
    )
    problems += [locate(_with_path(problem, ("gateway",)), loaded.root) for problem in found]
    yield MARK, box


def _place(problem: Problem, device: DevicePlan, loaded: Loaded) -> Problem:
    """A mapping's problem where it was written: in the device, else in the template's file, else at the device's name."""
    own: tuple[str | int, ...] = ("links", device.link, "devices", device.name)
    inside = problem.path[len(own) :] if problem.path[: len(own)] == own else problem.path
    if find(loaded.root, (*own, *inside)).missing is None:
        return locate(_with_path(problem, (*own, *inside)), loaded.root)
    template = loaded.links[device.link].templates[device.name].tree
    if len(inside) > 1 and find(template, inside).missing is None:
        return locate(_with_path(problem, inside), template)
    return locate(_with_path(problem, own), loaded.root)


def _with_path(problem: Problem, path: tuple[str | int, ...]) -> Problem:
    return Problem(problem.code, path, problem.message, problem.remedy, problem.severity, problem.at)


def _sent(config: BrokerConfig, tables: Tables) -> dict[str, tuple[EntityTable, ...]]:
    """The tables of the devices a broker gets; of what the box tells about them, the same; and the box's own."""
    sent = {
        device: table
        for device, table in tables.items()
        if device == MARK or any(fnmatchcase(device.removeprefix(MARK), glob) for glob in config.send)
    }
    if MARK in sent:
        kept_from_it = {its.entity_id for device in tables.keys() - sent.keys() for its in tables[device]}
        sent[MARK] = tuple(_without_assets(table, kept_from_it) for table in sent[MARK])
    return sent


def _without_assets(table: EntityTable, ids: Set[str]) -> EntityTable:
    """The box as one city knows it: with the sensors that are sent to it."""
    assets = table.static.get("controlledAsset")
    if assets is None or ids.isdisjoint(assets.value):
        return table
    static = {name: its for name, its in table.static.items() if name != "controlledAsset"}
    if left := [asset for asset in assets.value if asset not in ids]:
        static["controlledAsset"] = assets._replace(value=left)
    return replace(table, static=static)


def check_template(driver: Driver[Any], name: str, *beside: Path) -> tuple[LoadedTemplate, tuple[Problem, ...]]:
    """A template with all that is wrong with it: its file, its sample frames, its default mapping.

    Args:
        beside: folders of own templates, which come first.
    """
    problems: list[Problem] = []
    asked = Scalar(name, Place(Source("", []), 0, 0))
    loaded = Templates(beside, problems).find(driver, asked, ())
    if loaded.template is None:
        return loaded, in_order(problems)
    problems += check_samples(driver, loaded)
    config = DeviceConfig.model_construct(template=loaded.template)
    device = DevicePlan("device", "link", config, loaded.template, _points(loaded.template), (0.0, 0.0), loaded.file)
    _, found = compile_device(device, gateway_id="gateway", city="city", profile=CityProfile())
    problems += [locate(_with_path(problem, problem.path[4:]), loaded.tree) for problem in found]
    return loaded, in_order(problems)


@dataclass(frozen=True)
class Difference:
    """What a new plan changes.

    Attributes:
        links, brokers: to be stopped, started or restarted; sorted. A device whose mapping alone changed restarts no link.
        devices: those that came, went or changed in any way.
        restart: parts of the file that only a restart of the daemon applies, e.g. `buffer`.
        said: one line for each change, for people.
    """

    links: tuple[str, ...]
    brokers: tuple[str, ...]
    devices: tuple[str, ...]
    restart: tuple[str, ...]
    said: tuple[str, ...]


def difference(old: Plan, new: Plan) -> Difference:
    """What has to be restarted to get from one plan to the other; all else stays connected."""
    links = _differing(_keys(old.links, _wire), _keys(new.links, _wire))
    brokers = _differing(_broker_keys(old), _broker_keys(new))
    devices = _differing(_keys(old.devices, _whole), _keys(new.devices, _whole))
    parts = ("buffer", "http", "clock")
    restart = tuple(part for part in parts if getattr(old.config, part) != getattr(new.config, part))
    said = (
        *_lines("link", links, old.links, new.links),
        *_lines("device", devices, old.devices, new.devices),
        *_lines("broker", brokers, old.brokers, new.brokers),
        *(f"{part}: changed, applied when the daemon is restarted" for part in restart),
    )
    return Difference(links, brokers, devices, restart, said)


def _keys(parts: Mapping[str, Any], key: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: key(part) for name, part in parts.items()}


_FOR_PEOPLE: dict[str, Any] = {
    "description": "",
    "requirements": (),
    "caveats": (),
    "samples": (),
    "sources": (),
    "needs": {},
}


def _wire(link: LinkPlan) -> Any:
    """What a link's driver sees of the file: all but where its devices stand and what becomes of their readings."""
    if link.config is None:
        return link.driver_name, link.fault, None
    unmapped = {
        name: device.model_copy(
            update={
                "entity": None,
                "location": None,
                "calibrate": {},
                "was": None,
                "template": _read(device.template),
            }
        )
        for name, device in link.config.devices.items()
    }
    return link.driver_name, link.fault, link.config.model_copy(update={"devices": unmapped})


def _read(template: Template) -> Template:
    """What a template says to the driver."""
    points = {name: point.model_copy(update={"description": ""}) for name, point in template.points.items()}
    return template.model_copy(update={**_FOR_PEOPLE, "entity": None, "points": points})


def _whole(device: DevicePlan) -> Any:
    return device.link, device.config, device.location


# of a broker's entry, what shows in its tables, and what counts only for one that the log does not know yet
_NOT_ITS_LANES = {"use": None, "send": ("*",), "start": "oldest", "was": None}


def _broker_keys(plan: Plan) -> dict[str, Any]:
    """What a broker's lanes are made of. Tables hold functions, which never compare equal: what these are made of does."""
    return {
        name: (
            broker.config.model_copy(update=_NOT_ITS_LANES),
            broker.fault,
            {device: tuple(map(_plain, tables)) for device, tables in broker.mappings.items()},
            {device: _laws(plan.devices[device], plan.models) for device in broker.mappings if device in plan.devices},
            {
                name: (its.config.was, its.template.name)
                for name, its in plan.devices.items()
                if name in broker.mappings
            },
        )
        for name, broker in plan.brokers.items()
    }


def _plain(table: EntityTable) -> Any:
    """A table without its functions."""
    slots = {point: tuple(map(_plain_slot, slots)) for point, slots in table.slots.items()}
    times = tuple(name for name, _ in table.times)
    return table.entity_id, table.entity_type, table.context, table.mandatory, table.static, slots, times


def _plain_slot(slot: Slot) -> Any:
    sub = tuple((point, _plain_slot(its)) for point, its in slot.sub_slots)
    return slot.key, slot.member, slot.kind, slot.unit, slot.allows, slot.dataset_id, slot.sub, sub


def _laws(device: DevicePlan, models: Catalogue) -> Any:
    """What the functions in a device's tables are made of."""
    entity = merged(device.template.entity, device.config.entity)
    calibrated = {name: _correction(its) for name, its in device.config.calibrate.items()}
    corrected = {name: its for name, its in calibrated.items() if its != _correction(Calibration())}
    return [_law(part, models) for part in (entity, *entity.more.values())], device.points, corrected


def _law(entity: EntityMapping, models: Catalogue) -> Any:
    attributes = {name: source for name, source in entity.attributes.items() if source is not None}
    return models.type(entity.type or ""), attributes, entity.period_s


def _correction(calibration: Calibration) -> Any:
    earlier = tuple(map(_correction, calibration.previous))
    return calibration.gain, calibration.offset, calibration.valid_from, earlier


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name for name in {*old, *new} if old.get(name) != new.get(name)))


def _lines(kind: str, names: tuple[str, ...], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    words = {(True, True): "changed", (False, True): "new", (True, False): "gone"}
    return [f"{kind} {name}: {words[name in old, name in new]}" for name in names]
