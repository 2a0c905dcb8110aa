"""Verbs of what can be added: drivers, templates."""

import argparse
from pathlib import Path
from typing import Any

from gateway.cli.terminal import complain, say, say_json, table
from gateway.cli.verbs import Verbs
from gateway.config import explain
from gateway.config.loader import folders_of
from gateway.config.templates import template_names
from gateway.http.outcome import FINE, PROBLEM, UnknownName
from gateway.plan import check_template
from gateway.registry import DriverUnavailable, Registry
from gateway.sdk.driver import Driver, Plans
from gateway.sdk.errors import Problem
from gateway.sdk.template import Template


def add_verbs(verbs: Verbs) -> None:
    """drivers, templates."""
    verbs.add(
        "drivers",
        drivers,
        config=False,
        help="the drivers that are installed, and what is wrong with those that cannot be used",
        examples=("citygate drivers", "citygate drivers --json | jq '.[].name'"),
    )
    verb = verbs.add(
        "templates",
        templates,
        help="the device types there are: list, show one, check files and sample frames",
        about="Templates of all drivers, and those in templates/ beside the config, which come first. `check` reads them, "
        "decodes their sample frames and compiles their mapping: the test of a template somebody wrote.",
        examples=(
            "citygate templates",
            "citygate templates show eastron/sdm120",
            "citygate templates check nova/sds011",
        ),
    )
    verb.add_argument("action", nargs="?", choices=("list", "show", "check"), default="list")
    verb.add_argument("names", nargs="*", metavar="TEMPLATE", help="vendor/model; default: all")
    verb.add_argument("--driver", metavar="NAME", help="of this driver only")
    verb.add_argument("--plan", action="store_true", help="show: also the requests of one poll")


def drivers(given: argparse.Namespace) -> int:
    """`citygate drivers`."""
    registry = Registry()
    rows = [_driver_row(registry, name) for name in registry.names()]
    if given.json:
        say_json(rows)
    else:
        for line in table([(row["name"], row["package"], row["fault"] or row["about"]) for row in rows]):
            say(line)
    return FINE if not any(row["fault"] for row in rows) else PROBLEM


def _driver_row(registry: Registry, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "package": registry.origin(name),
        "about": "",
        "templates": 0,
        "fault": "",
        "remedy": "",
    }
    try:
        driver = registry.driver(name)
    except DriverUnavailable as error:
        return {**row, "fault": str(error), "remedy": error.remedy}
    about = (driver.config_model.__doc__ or "").strip().partition("\n")[0]
    return {**row, "about": about, "templates": len(template_names(driver.templates))}


def templates(given: argparse.Namespace) -> int:
    """`citygate templates list|show|check`."""
    beside = [folder / "templates" for folder in folders_of(given.config)]
    chosen = _choose(given.names, beside, _drivers(given.driver))
    if given.action == "check":
        return _check(chosen, beside, as_json=given.json)
    loaded = [(driver, _load(driver, name, beside)) for driver, name in chosen]
    if given.action == "show":
        shown = [(driver, template) for driver, template in loaded if template]
        return _show(shown, as_json=given.json, with_plan=given.plan)
    rows = [_template_row(driver, template) for driver, template in loaded if template]
    if given.json:
        say_json(rows)
    else:
        drivers_of: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            drivers_of.setdefault((row["name"], row["description"]), []).append(row["driver"])
        for line in table([(name, ", ".join(its), about) for (name, about), its in drivers_of.items()]):
            say(line)
    return FINE


def _drivers(only: str | None) -> list[Driver[Any]]:
    registry = Registry()
    if only is not None:
        return [registry.driver(only)]
    found: list[Driver[Any]] = []
    for name in registry.names():
        try:
            found.append(registry.driver(name))
        except DriverUnavailable as error:
            complain(f"{error}: its templates are left out")
    return found


def _choose(names: list[str], beside: list[Path], of: list[Driver[Any]]) -> list[tuple[Driver[Any], str]]:
    """The named templates, or all, with the driver each belongs to: for a file beside the config the one that can read it."""
    own = [name for folder in beside for name in template_names(folder)]
    every: dict[str, list[Driver[Any]]] = {}
    for driver in of:
        for name in template_names(driver.templates):
            every.setdefault(name, []).append(driver)
    for name in own:
        every.setdefault(name, _readers(name, beside, of))
    for name in names:
        if name not in every:
            raise UnknownName(f"no template {name}; {explain.known_or_near(name, every, 'there are')}")
    return [(driver, name) for name in (names or sorted(every)) for driver in every[name]]


def _readers(name: str, beside: list[Path], of: list[Driver[Any]]) -> list[Driver[Any]]:
    """The drivers that understand an own template; all of them when none does, so that each says why."""
    return [driver for driver in of if _load(driver, name, beside)] or of


def _load(driver: Driver[Any], name: str, beside: list[Path]) -> Template | None:
    return check_template(driver, name, *beside)[0].template


def _template_row(driver: Driver[Any], template: Template) -> dict[str, Any]:
    return {
        "name": template.name,
        "driver": driver.name,
        "vendor": template.vendor,
        "model": template.model,
        "description": template.description,
        "points": sorted(template.points),
    }


def _check(chosen: list[tuple[Driver[Any], str]], beside: list[Path], *, as_json: bool) -> int:
    problems: list[Problem] = []
    samples = 0
    for driver, name in chosen:
        loaded, found = check_template(driver, name, *beside)
        problems += found
        samples += len(loaded.template.samples) if loaded.template else 0
    report = explain.report(problems)
    if as_json:
        say_json({**report, "templates": len(chosen), "samples": samples})
    else:
        for problem in explain.in_order(problems):
            complain(explain.text(problem))
        say(f"{len(chosen)} templates, {samples} sample frames: {'fine' if report['ok'] else 'see above'}")
    return FINE if report["ok"] else PROBLEM


def _show(shown: list[tuple[Driver[Any], Template]], *, as_json: bool, with_plan: bool) -> int:
    if as_json:
        say_json(
            [
                {"driver": driver.name, **template.model_dump(mode="json", by_alias=True)}
                | ({"plan": _plan(driver, template)} if with_plan else {})
                for driver, template in shown
            ]
        )
        return FINE
    for driver, template in shown:
        for line in [*_page(driver, template), *(f"  {line}" for line in _plan(driver, template) if with_plan)]:
            say(line)
    return FINE


def _plan(driver: Driver[Any], template: Template) -> list[str]:
    """The requests of one poll; none for a driver whose devices talk by themselves."""
    return list(driver.plan(template)) if isinstance(driver, Plans) else []


def _page(driver: Driver[Any], template: Template) -> list[str]:
    """A template as a technician reads it."""
    mapped = {source.point: name for name, source in template.entity.attributes.items() if source}
    rows = [
        (name, point.quantity, point.unit, f"→ {mapped[name]}" if name in mapped else "")
        for name, point in template.points.items()
    ]
    lines = [f"{template.name}: {template.vendor} {template.model}, driver {driver.name}", template.description]
    lines += ["", f"points (entity type {template.entity.type or 'none'}):", *table(rows, indent="  ")]
    for title, texts in (
        ("needs", (*template.needs.values(), *template.requirements)),
        ("beware", tuple(caveat.text for caveat in template.caveats)),
        ("sample frames", tuple(sample.name for sample in template.samples)),
        ("sources", template.sources),
    ):
        lines += ["", f"{title}:", *(f"  {text}" for text in texts)] if texts else []
    return [*lines, ""]
