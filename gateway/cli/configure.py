"""Verbs of the operator's file: init, schema, check, add."""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from gateway.cli import box
from gateway.cli.terminal import complain, say, say_json, table
from gateway.cli.verbs import Verbs
from gateway.config import explain
from gateway.http.outcome import CONFIG, FINE, PROBLEM, UNREACHABLE, NoDaemon, UnknownName
from gateway.sdk.errors import CitygateError, ConfigError, Problem


def add_verbs(verbs: Verbs) -> None:
    """init, schema, check, add."""
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
    add_verb = verbs.add(
        "add",
        add,
        help="put a device into the config: tested live first, comments kept",
        about="Check the config as it would be, read the device once, then write it: only lines are added. A device that does "
        "not answer is not written unless --save-anyway says so. A daemon that runs on the link keeps its port: then the "
        "device is written without the test, and `citygate reload` and `citygate read` follow.",
        examples=(
            "citygate add roof-rs485 meter-14 eastron/sdm120 unit_id=3 every='10 s'",
            "citygate add air-uart air-2 nova/sds011 --link driver=serial --link port=/dev/ttyAMA0",
            "citygate add roof-rs485 meter-15 eastron/sdm120 unit_id=4 report.voltage.on_change=0.5 --save-anyway",
        ),
    )
    add_verb.add_argument("link_name", metavar="LINK", help="the link it hangs on")
    add_verb.add_argument("device", metavar="DEVICE", help="its name, new in the whole config")
    add_verb.add_argument("template", metavar="TEMPLATE", help="device type, as in eastron/sdm120")
    add_verb.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="its keys, as in unit_id=3; dots go deeper")
    add_verb.add_argument(
        "--link", metavar="KEY=VALUE", action="append", default=[], help="a key of the link, if that is new"
    )
    add_verb.add_argument("--save-anyway", action="store_true", help="write it even if it does not answer")
    add_verb.add_argument("--no-test", action="store_true", help="do not try to read it")


def check(given: argparse.Namespace) -> int:
    """`citygate check`."""

    problems: tuple[Problem, ...]
    devices: dict[str, Any] = {}
    try:
        plan = box.make_plan(given.config, with_secrets=not given.no_secrets)
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
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file, _ = config_files(given.config)
    if file.exists():
        complain(f"{file} is there already and stays as it is; `citygate init --stdout` prints a new one")
        return PROBLEM
    with _writing(folder):
        _write(file.with_name(SCHEMA_FILE), _pretty(made) + "\n")
        _write(file, text)
    if given.json:
        say_json({"config": str(file), "schema": str(file.with_name(SCHEMA_FILE))})
    else:
        say(f"{file} is written; next: put your devices into it, then `citygate check -c {given.config}`")
    return FINE


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A folder that cannot be written is an error with a remedy, not a traceback."""
    try:
        yield
    except OSError as error:
        remedy = "sudo, or -c with a folder of your own"
        raise CitygateError(f"{folder} cannot be written: {error.strerror or error}; {remedy}") from error


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


def add(given: argparse.Namespace) -> int:
    """`citygate add`."""
    import tempfile

    from gateway.config.edit import put_device

    settings = {"template": given.template, **_settings(given.settings)}
    link = _settings(given.link) or None
    with tempfile.TemporaryDirectory(prefix="citygate-add-") as name:
        trial = _copy(given.config, Path(name))
        put_device(trial, given.link_name, given.device, settings, link)
        try:
            plan = box.make_plan(trial)
        except ConfigError as error:
            shown = str(trial.parent), str(_main_file(given.config).parent)
            raise ConfigError(tuple(replace(p, file=p.file.replace(*shown)) for p in error.problems)) from None
        tested = not given.no_test and _is_free(given.config, given.link_name)
        code = _try(plan, given) if tested else FINE
    if code != FINE and not given.save_anyway:
        complain(f"{given.device} is not written; --save-anyway writes it all the same")
        return code
    with _writing(_main_file(given.config).parent):
        file = put_device(given.config, given.link_name, given.device, settings, link)
    if given.json:
        say_json({"device": given.device, "file": str(file), "tested": tested, "answered": tested and code == FINE})
    else:
        say(
            f"{given.device} is in {file}{'' if tested else ', untested'}; a running daemon takes it up with `citygate reload`"
        )
    return FINE


def _settings(pairs: list[str]) -> dict[str, Any]:
    """`a=1 b.c=x` as nested keys; a value is a number, flag or list only when it is written as one."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UnknownName(f"{pair!r} is not KEY=VALUE, as in unit_id=3")
        *above, last = key.split(".")
        inner = found
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = _value(pair, text)
    return found


def _value(pair: str, text: str) -> Any:
    if text.startswith(("[", "{")):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise UnknownName(f"{pair!r}: what begins with a bracket is JSON, as in location=[9.1,45.5]") from None
    if re.fullmatch(r"-?(?:0|[1-9][0-9]{0,17})", text):
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def _main_file(config: Path) -> Path:
    from gateway.config.loader import config_files

    return config_files(config)[0]


def _copy(config: Path, folder: Path) -> Path:
    """The config in a folder of its own: its YAML files as copies, all else linked. Returns its main file."""
    from gateway.config.loader import FRAGMENTS, config_files

    main, fragments = config_files(config)
    if not main.is_file():
        raise ConfigError(f"{main} is not there; `citygate init` writes one")
    (folder / FRAGMENTS).mkdir()
    for file in (main, *fragments):
        try:
            shutil.copyfile(file, folder / file.relative_to(main.parent))
        except OSError as error:
            raise CitygateError(f"{file} cannot be read: {error.strerror or error}") from error
    for other in main.parent.iterdir():
        if not (folder / other.name).exists():
            (folder / other.name).symlink_to(other.resolve())
    return folder / main.name


def _is_free(config: Path, link: str) -> bool:
    """Whether no daemon holds the link's port."""
    from gateway.cli import box

    try:
        return link not in box.ask(config, "status").get("links", {})
    except NoDaemon:
        return True


def _try(plan: Any, given: argparse.Namespace) -> int:
    """Read the new device once and show what it says."""
    from gateway.cli import box
    from gateway.cli.devices import read_code, reading_lines
    from gateway.http.shapes import reading_rows

    async def read() -> Any:
        async with box.open_device(plan, given.device) as read_once:
            return await read_once()

    try:
        exchange = asyncio.run(read())
    except CitygateError as error:
        complain(f"{given.device}: {error}")
        return UNREACHABLE
    rows = reading_rows(box.device_plan(plan, given.device).template, exchange.readings)
    if not given.json:
        for line in reading_lines(rows):
            say(line)
    return FINE if any(row["quality"] == "good" for row in rows) else read_code(rows) or PROBLEM
