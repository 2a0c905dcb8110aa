"""Device types by name: files beside the config and those a driver ships, variants, and their samples as tests."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from gateway.config.explain import known_or_near, locate
from gateway.config.model import NAME
from gateway.config.tree import Map, Node, Place, Scalar, Source, overlay, place_problem, read_tree
from gateway.config.validate import KeyPath, validate
from gateway.intake import Intake, rules_of
from gateway.sdk.driver import Driver, decoded
from gateway.sdk.errors import FrameError, Problem
from gateway.sdk.files import is_file, listed
from gateway.sdk.quantities import quantities, unit_fits, units
from gateway.sdk.reading import Reading, Value
from gateway.sdk.template import Sample, Template


@dataclass(frozen=True, slots=True)
class LoadedTemplate:
    """A template, its file, and the tree its problems are placed in. `template` is None when it has errors."""

    template: Template | None
    file: str
    tree: Map


Shelf = dict[Any, Any]  # what several configs share, made once for all of them


class Templates:
    """Device types by name: the folders beside config and bases first, then what the driver ships. Each is read once."""

    def __init__(self, beside: Sequence[Path], problems: list[Problem], shelf: Shelf | None = None) -> None:
        self._beside = tuple(folder for folder in beside if os.path.isdir(folder))  # asks no rights
        self._problems = problems
        self._loaded: dict[tuple[str, str], LoadedTemplate] = {}
        self._shelf = {} if shelf is None else shelf

    def find(self, driver: Driver[Any], name: Scalar, path: KeyPath) -> LoadedTemplate:
        """The template a device names; a problem at the name when there is none, in its file when it is wrong."""
        key = driver.name, name.text
        if key not in self._loaded:
            self._loaded[key] = self._shelved(driver, name.text)
        loaded = self._loaded[key]
        if not loaded.file:
            known = self.names(driver)
            remedy = known_or_near(name.text, known, "there are") or "`citygate templates` lists them"
            message = f"driver {driver.name} has no template {name.text or '(empty)'}"
            self._problems.append(place_problem(Problem("unknown-template", path, message, remedy), name.place))
        return loaded

    def _shelved(self, driver: Driver[Any], name: str) -> LoadedTemplate:
        """A template with what is wrong with it, from where it stands already."""
        key = driver.name, name, tuple(map(str, self._beside))
        if key not in self._shelf:
            before = len(self._problems)
            loaded = self.load(driver, name)
            self._shelf[key] = loaded, tuple(self._problems[before:])
        else:
            loaded, found = self._shelf[key]
            self._problems += found
        return loaded

    def load(self, driver: Driver[Any], name: str) -> LoadedTemplate:
        """A template as its file says it; without a file when there is none."""
        file = self.file(driver, name)
        if file is None:
            return LoadedTemplate(None, "", _nothing())
        tree = self._read(driver, name, file, ())
        if tree is None:
            return LoadedTemplate(None, str(file), _nothing())
        template, problems = validate(driver.template_model, tree)
        problems += check_points(tree)
        self._problems += problems
        if template is not None and not any(problem.severity == "error" for problem in problems):
            return LoadedTemplate(template.model_copy(update={"name": name}), str(file), tree)
        return LoadedTemplate(None, str(file), tree)

    def _read(self, driver: Driver[Any], name: str, file: Traversable, seen: tuple[str, ...]) -> Map | None:
        """The tree of a template, laid over the one it is a variant of; None when that is not to be had."""
        before = len(self._problems)
        tree = read_tree(file, self._problems)
        if len(self._problems) > before and not tree.entries:
            return None
        base = tree.get("extends")
        if base is None:
            return tree
        own = Map({key: entry for key, entry in tree.entries.items() if key != "extends"}, tree.place)
        below = self._base(driver, name, base, (*seen, str(file)))
        return overlay(below, own) if below is not None else None

    def _base(self, driver: Driver[Any], name: str, base: Node, seen: tuple[str, ...]) -> Map | None:
        wanted = base.text if isinstance(base, Scalar) else ""
        # a file beside the config may be a variant of the one it takes the place of
        folders = (driver.templates,) if wanted == name else (*self._beside, driver.templates)
        file = _file(wanted, folders)
        if file is None or str(file) in seen:
            known = self.names(driver)
            message = f"no template {wanted or '(empty)'}" if file is None else f"{wanted} is a variant of this one"
            problem = Problem("unknown-template", ("extends",), message, known_or_near(wanted, known, "there are"))
            self._problems.append(place_problem(problem, base.place))
            return None
        return self._read(driver, wanted, file, seen)

    def file(self, driver: Driver[Any], name: str) -> Traversable | None:
        """The file of a template, or None."""
        return _file(name, (*self._beside, driver.templates))

    def names(self, driver: Driver[Any]) -> tuple[str, ...]:
        """Of all templates a driver may use: its own, and those beside the config that it can read."""
        return tuple(sorted({name for folder in (*self._beside, driver.templates) for name in template_names(folder)}))


def _file(name: str, folders: tuple[Traversable, ...]) -> Traversable | None:
    vendor, _, model = name.partition("/")
    if not (NAME.fullmatch(vendor) and NAME.fullmatch(model)):
        return None  # a template name is no path
    files = (folder.joinpath(vendor, f"{model}.yaml") for folder in folders)
    return next((file for file in files if is_file(file)), None)


def template_names(folder: Traversable) -> list[str]:
    """`vendor/model` of all templates in a folder."""
    return sorted(f"{vendor.name}/{file.name[:-5]}" for vendor in listed(folder) for file in yaml_files(vendor))


def yaml_files(folder: Traversable) -> list[Any]:
    return [file for file in listed(folder) if file.name.endswith(".yaml")]


def _nothing() -> Map:
    return Map({}, Place(Source("", []), 0, 0))


def check_points(tree: Map) -> list[Problem]:
    """Points of a template whose quantity or unit is not in the closed lists."""
    problems: list[Problem] = []
    points = tree.get("points")
    for name, entry in points.entries.items() if isinstance(points, Map) else ():
        quantity, unit = (_text(entry.node, key) for key in ("quantity", "unit"))
        known = quantities().get(quantity)
        if not quantity:
            continue  # the model says so
        if known is None:
            remedy = known_or_near(quantity, quantities())
            problem = Problem("unknown-quantity", ("points", name, "quantity"), f"no quantity {quantity}", remedy)
            problems.append(locate(problem, tree))
        elif unit and not unit_fits(known, unit):
            problems.append(locate(_unit_problem(name, quantity, unit), tree))
    return problems


def _unit_problem(point: str, quantity: str, unit: str) -> Problem:
    path = ("points", point, "unit")
    known = quantities()[quantity]
    if not known.unit:
        return Problem("wrong-unit", path, f"{quantity} has no unit", "remove the key")
    fitting = sorted(code for code in units() if unit_fits(known, code))
    remedy = f"UN/CEFACT codes for it: {', '.join(f'{code} ({units()[code].symbol})' for code in fitting[:20])}"
    return Problem("wrong-unit", path, f"{unit} is not a unit of {quantity} ({known.dimension})", remedy)


def _text(node: Node, key: str) -> str:
    value = node.get(key) if isinstance(node, Map) else None
    return value.text if isinstance(value, Scalar) else ""


# What a codec is given beside the bytes when nothing else is said.
_RECEIVED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def check_samples(driver: Driver[Any], loaded: LoadedTemplate) -> list[Problem]:
    """Decode a template's sample frames; a problem for each that does not give what it says, a warning when there is none."""
    template = loaded.template
    if template is None:
        return []
    if not template.samples:
        remedy = "add a captured frame with the values it means: it is the template's test"
        problem = Problem("no-samples", (), "the template has no sample frame", remedy, "warning")
        return [place_problem(problem, loaded.tree.place)]
    problems = []
    for index, sample in enumerate(template.samples):
        fault = _sample_fault(driver, template, sample)
        if fault:
            problem = Problem("sample-failed", ("samples", index), f"{sample.name}: {fault}")
            problems.append(locate(problem, loaded.tree))
    return problems


def _sample_fault(driver: Driver[Any], template: Template, sample: Sample) -> str:
    """What is wrong with a sample, or ""."""
    try:
        frame = bytes.fromhex(sample.hex)
    except ValueError:
        return "hex is not hexadecimal"
    context = {"received_at": _RECEIVED_AT, **sample.context}
    try:
        found = decoded(driver, template, frame, context)
    except FrameError as error:
        return f"refused: {error}"
    judged = Intake(rules_of(template)).judge(found)
    if judged.undeclared:
        return f"gives {', '.join(sorted(judged.undeclared))}, which the template does not declare"
    readings = {reading.point: reading for reading in judged.readings}
    raw = {reading.point: reading.value for reading in found}
    wrong = [
        _difference(point, readings.get(point), raw.get(point), value)
        for point, value in sample.expect.items()
        if point not in readings or not _same(readings[point].value, value)
    ]
    return "; ".join(wrong)


def _difference(point: str, reading: Reading | None, raw: Value | None, expected: Value | None) -> str:
    if reading is not None and reading.value is None and raw is not None:
        return f"{point} is {raw!r}, which the gateway drops as {reading.reason.value}; expected {expected!r}"
    return f"{point} is {None if reading is None else reading.value!r}, expected {expected!r}"


def _same(value: Value | None, expected: Value | None) -> bool:
    if isinstance(value, float) and isinstance(expected, int | float) and not isinstance(expected, bool):
        return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)  # a float32 as the data sheet rounds it
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)
