"""Verbs of the operator's file: init, schema, check."""

import argparse
import os
import re
import socket
from pathlib import Path
from typing import Any

import orjson

from gateway.cli.terminal import complain, say, say_json, table
from gateway.cli.verbs import Verbs
from gateway.config import explain
from gateway.http.outcome import CONFIG, FINE, PROBLEM
from gateway.sdk.errors import ConfigError, Problem


def add_verbs(verbs: Verbs) -> None:
    """init, schema, check."""
    init_verb = verbs.add(
        "init",
        init,
        help="write a commented config for this box, with a schema for the editor beside it",
        about="Write citygate.yaml with every setting there is, explained, and the serial ports and adapters found on this "
        "box. An existing file is never touched.",
        examples=("citygate init -c ./my-box --id gw-bovisa-017 --city milano", "citygate init --stdout"),
    )
    init_verb.add_argument(
        "--id", metavar="ID", help="name of this box in ids, logs and metrics (default: gw-HOSTNAME)"
    )
    init_verb.add_argument("--city", metavar="CITY", default="my-city", help="name of the city in entity ids")
    init_verb.add_argument("--stdout", action="store_true", help="print the config, write nothing")
    schema_verb = verbs.add(
        "schema",
        schema,
        help="JSON Schema of the config, for editors",
        about="Print the JSON Schema of the config: key names, meanings, defaults, template names, shapes by driver. An "
        "editor with a YAML language server takes it by the first line that `citygate init` writes. Texts after "
        "!secret need its setting yaml.customTags: ['!secret scalar'].",
        examples=(
            "citygate schema > citygate.schema.json",
            "citygate schema --fragment",
            "citygate schema --template modbus",
        ),
    )
    which = schema_verb.add_mutually_exclusive_group()
    which.add_argument("--fragment", action="store_true", help="of a file in conf.d/, which need not be complete")
    which.add_argument("--template", metavar="DRIVER", help="of this driver's templates")
    which.add_argument("--profile", action="store_true", help="of a city profile")
    check_verb = verbs.add(
        "check",
        check,
        help="find every problem of a config, with place and remedy; no network",
        about="Read config, templates and mappings as `run` would, and list every problem with its place and remedy. "
        "Touches no network and no port. Warnings alone end with 0.",
        examples=("citygate check", "citygate check -c ./my-box --no-secrets", "citygate check --json | jq .problems"),
    )
    check_verb.add_argument("--no-secrets", action="store_true", help="do not look up secrets (on a laptop, in CI)")


def check(given: argparse.Namespace) -> int:
    """`citygate check`."""
    from gateway.plan import make_plan
    from gateway.registry import Registry

    problems: tuple[Problem, ...]
    devices: dict[str, Any] = {}
    try:
        plan = make_plan(given.config, Registry(), with_secrets=not given.no_secrets)
        problems = plan.warnings
        devices = {name: _device(plan, name) for name in plan.devices}
    except ConfigError as error:
        problems = error.problems
    found = explain.report(problems)
    if given.json:
        say_json({**found, "devices": devices})
    else:
        for problem in explain.in_order(problems):
            complain(explain.text(problem))
        for line in table([_row(name, device) for name, device in devices.items()]):
            say(line)
        say(_summary(problems))
    return FINE if found["ok"] else CONFIG


def _device(plan: Any, name: str) -> dict[str, Any]:
    """What a device is made of: which template file was used, and which of its points no attribute takes."""
    device = plan.devices[name]
    tables = plan.read_api.get(name, ())
    unused = [point for point in device.points if all(point in its.unused for its in tables)]
    return {
        "link": device.link,
        "template": device.template.name,
        "file": device.template_file,
        "entities": [its.entity_id for its in tables],
        "unmapped": unused,
    }


def _row(name: str, device: dict[str, Any]) -> list[str]:
    unmapped = f"not sent: {', '.join(device['unmapped'])}" if device["unmapped"] else ""
    return [name, device["template"], device["file"], unmapped]


def _summary(problems: tuple[Problem, ...]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    counted = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(counted) if counted else "fine: no problem found"


def schema(given: argparse.Namespace) -> int:
    """`citygate schema`."""
    from gateway.config.schema import profile_schema, template_schema
    from gateway.registry import Registry

    if given.template:
        made = template_schema(Registry().driver(given.template))
    elif given.profile:
        made = profile_schema()
    else:
        made = _file_schema(given.config, fragment=given.fragment)
    say(_pretty(made))
    return FINE


def init(given: argparse.Namespace) -> int:
    """`citygate init`."""
    from gateway.config.loader import config_files
    from gateway.config.sample import SCHEMA_FILE, commented, look_around

    made = _file_schema(given.config, fragment=False)
    text = commented(made, gateway_id=given.id or _hostname(), city=given.city, found=look_around())
    if given.stdout:
        say(text.rstrip("\n"))
        return FINE
    folder = given.config.parent if given.config.suffix in (".yaml", ".yml") else given.config
    folder.mkdir(parents=True, exist_ok=True)
    file, _ = config_files(given.config)
    if file.exists():
        complain(f"{file} is there already and stays as it is; `citygate init --stdout` prints a new one")
        return PROBLEM
    _write(file.with_name(SCHEMA_FILE), _pretty(made) + "\n")
    _write(file, text)
    if given.json:
        say_json({"config": str(file), "schema": str(file.with_name(SCHEMA_FILE))})
    else:
        say(f"{file} is written; next: put your devices into it, then `citygate check -c {given.config}`")
    return FINE


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, file)


def _hostname() -> str:
    name = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname().partition(".")[0]).strip("-")
    return f"gw-{name[:48] or 'box'}"


def _pretty(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _file_schema(config: Path, *, fragment: bool) -> dict[str, Any]:
    from gateway.config.loader import config_files
    from gateway.config.schema import file_schema
    from gateway.config.templates import template_names
    from gateway.registry import DriverUnavailable, Registry

    registry = Registry()
    own = template_names(config_files(config)[0].parent / "templates")
    drivers: dict[str, Any] = {}
    for name in registry.names():
        try:
            drivers[name] = registry.driver(name)
        except DriverUnavailable:
            drivers[name] = None  # its keys cannot be known here
    names = {name: sorted({*own, *template_names(its.templates)}) for name, its in drivers.items() if its}
    return file_schema(drivers, names, fragment=fragment)
