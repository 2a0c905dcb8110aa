"""Verbs of the operator's file: init, schema, check."""

import argparse
import contextlib
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import box, fleet, owed
from gateway.cli.at_daemon import AtDaemon
from gateway.cli.terminal import complain, printable, say, say_json, table
from gateway.cli.verbs import Verbs
from gateway.config import explain
from gateway.config.sample import SCHEMA_FILE
from gateway.environment import DEFAULT_CONFIG
from gateway.http.outcome import CONFIG, FINE, PROBLEM
from gateway.sdk.errors import CitygateError, ConfigError, Problem

if TYPE_CHECKING:
    from gateway.cli.editor import Editor


def add_verbs(verbs: Verbs) -> None:
    """init, schema, check."""
    init_verb = verbs.add(
        "init",
        init,
        help="write a commented config for this box, with a schema for the editor beside it",
        about="Write citygate.yaml with every setting there is, explained, and the serial ports and adapters found on this "
        "box. In a folder of your own the readings are kept beside it; without --location a terminal is asked for it. "
        "An existing file is never touched.",
        examples=(
            "citygate init -c ./my-box --id gw-bovisa-017 --city milano --location 45.503,9.159",
            "citygate init --stdout",
        ),
    )
    init_verb.add_argument(
        "--id", metavar="ID", help="name of this box in ids, logs and metrics (default: gw-HOSTNAME)"
    )
    init_verb.add_argument("--city", metavar="CITY", default="my-city", help="name of the city in entity ids")
    init_verb.add_argument(
        "--location", metavar="LAT,LON", type=latitude_longitude, help="where the box stands, as in 45.503,9.159"
    )
    init_verb.add_argument("--stdout", action="store_true", help="print the config, write nothing")
    schema_verb = verbs.add(
        "schema",
        schema,
        help="JSON Schema of the config, for editors",
        about="Print the JSON Schema of the config: key names, meanings, defaults, templates with their points, entity types "
        "with their attributes, shapes by driver. An editor with a YAML language server takes it by the first line that "
        "`citygate init` writes. `--write` writes it anew beside the config, and in conf.d/, templates/ and cities/ those of "
        "their files; `check` says when it is time. Texts after !secret need its setting yaml.customTags: ['!secret scalar'].",
        examples=(
            "citygate schema --write -c ./my-box",
            "citygate schema --fragment",
            "citygate schema --template modbus",
            "citygate schema --page | less",
        ),
    )
    which = schema_verb.add_mutually_exclusive_group()
    which.add_argument("--fragment", action="store_true", help="of a file in conf.d/, which need not be complete")
    which.add_argument("--template", metavar="DRIVER", help="of this driver's templates")
    which.add_argument("--profile", action="store_true", help="of a city profile")
    which.add_argument("--page", action="store_true", help="every key as a page for people (Markdown), no schema")
    which.add_argument("--write", action="store_true", help="write them beside the config, as `init` does")
    check_verb = verbs.add(
        "check",
        check,
        help="find every problem of a config, with place and remedy; no network",
        about="Read config, templates and mappings as `run` would, and list every problem with its place and remedy. "
        "Touches no network and no port. Warnings alone end with 0.",
        examples=(
            "citygate check",
            "citygate check -c ./my-box --no-secrets",
            "citygate check --effective",
            "citygate check --json | jq .problems",
            "citygate check ./boxes",
        ),
    )
    check_verb.add_argument(
        "--effective",
        action="store_true",
        help="show the config as it counts, each value with the file and line that gave it",
    )
    check_verb.set_defaults(no_config=check_verb.get_default("config"))
    check_verb.add_argument(
        "boxes",
        metavar="DIR|FILE",
        nargs="*",
        type=Path,
        help="many boxes at once, instead of -c: every box below these folders, and what two of them must not both have",
    )
    check_verb.add_argument("--no-secrets", action="store_true", help="do not look up secrets (on a laptop, in CI)")


def check(given: argparse.Namespace) -> int:
    """`citygate check`."""
    if given.boxes:
        return fleet.check(given)
    from gateway.cli.editor import Editor
    from gateway.config import effective
    from gateway.config.bases import tidy
    from gateway.config.loader import files_of

    problems: tuple[Problem, ...]
    devices: dict[str, Any] = {}
    secrets: dict[str, Any] = {}
    fates: list[dict[str, Any]] = []
    try:
        at_daemon = AtDaemon(given.config)
        plan = box.make_plan(given.config, with_secrets=not given.no_secrets, held=at_daemon.held)
        problems, holds = tuple(of_check(problem) for problem in plan.warnings), plan.found
        devices = {name: _device(plan, name) for name in plan.devices}
        if not given.no_secrets:
            secrets = at_daemon.secrets_of(plan)
        fates = owed.becomes(given.config, plan)
    except ConfigError as error:
        problems, holds = error.problems, error.found
    stale = Editor(main_file(given.config).parent).stale()
    problems = (*problems, stale) if stale else problems
    found = explain.report(problems)
    files = [str(tidy(file)) for file in files_of(given.config)]
    shown = effective.lines(box.loaded(given.config, with_secrets=False)) if given.effective else ()
    if given.json:
        rows = {"effective": [effective.as_json(line) for line in shown]} if given.effective else {}
        say_json(
            {**found, "found": holds, "files": files, "devices": devices, "secrets": secrets, "becomes": fates, **rows}
        )
    elif given.effective:
        for problem in explain.in_order(problems):
            complain(explain.text(problem))
        for row in effective.text(shown):
            say(row)
    else:
        for problem in explain.in_order(problems):
            complain(explain.text(problem))
        for line in table([_row(name, device) for name, device in devices.items()]):
            say(line)
        for name, secret in secrets.items():
            if secret["said"]:
                say(f"secret {name}: {secret['said']}")
        for fate in fates:
            say(f"{fate['of']}: {printable(fate['text'])}")
        say(f"{holds}: {summary(problems)}")
    return FINE if found["ok"] else CONFIG


def of_check(problem: Problem) -> Problem:
    """A daemon starts without a driver that cannot be had; who checks wants all of the file to work."""
    return replace(problem, severity="error") if problem.code == "driver-unavailable" else problem


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


def summary(problems: tuple[Problem, ...]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    counted = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(counted) if counted else "fine: no problem found"


def schema(given: argparse.Namespace) -> int:
    """`citygate schema`."""
    from gateway.cli.editor import Editor, in_lines

    editor = Editor(main_file(given.config).parent)
    if given.write:
        from gateway.config.edit import alone

        with writing(editor.folder), alone(editor.folder):
            written = editor.write()
        if given.json:
            say_json({"files": [str(file) for file in written]})
        else:
            say(f"written: {', '.join(map(str, written))}")
        return FINE
    if given.page:
        text = editor.page()
        say_json({"page": text}) if given.json else say(text)
        return FINE
    if given.template:
        made = editor.template(given.template)
    elif given.profile:
        made = editor.profile()
    else:
        made = editor.file(fragment=given.fragment)
    say(in_lines(made))
    return FINE


def init(given: argparse.Namespace) -> int:
    """`citygate init`."""
    if given.stdout:
        say(new_config(given.config, name=given.id, city=given.city, location=given.location)[0].rstrip("\n"))
        return FINE
    file = main_file(given.config)
    if os.path.lexists(file):  # also a link to a place that is not mounted now
        complain(f"{file} is there already and stays as it is; `citygate init --stdout` prints a new one")
        return PROBLEM
    location = given.location or _asked_location(given)
    write_new(given.config, *new_config(given.config, name=given.id, city=given.city, location=location))
    if given.json:
        say_json({"config": str(file), "schema": str(file.with_name(SCHEMA_FILE))})
        return FINE
    where = "" if given.config == Path(DEFAULT_CONFIG) else f" -c {shlex.quote(str(given.config))}"
    say(f"{file} is written; next:")
    if location is None:
        say("  location: in it, under gateway: entities need to know where they are")
    say(
        f"  citygate add{where} LINK DEVICE TEMPLATE --link port=PORT   a device; `citygate templates` lists what is known"
    )
    say(f"  citygate check{where}")
    say(f"  citygate run{where}")
    return FINE


def new_config(
    config: Path, *, name: str | None = None, city: str = "my-city", location: list[float] | None = None
) -> tuple[str, "Editor"]:
    """The text of a config for this box, and the schemas it was made from."""
    from gateway.cli.editor import Editor
    from gateway.config.sample import commented, look_around

    folder = main_file(config).parent.absolute()
    editor = Editor(folder)
    buffer = "" if folder == Path(DEFAULT_CONFIG) else str(folder / "buffer.db")
    text = commented(
        editor.file(), gateway_id=name or _hostname(), city=city, found=look_around(), location=location, buffer=buffer
    )
    return text, editor


def write_new(config: Path, text: str, editor: "Editor") -> None:
    """A config where there was none, with its schema for the editor.

    Raises:
        CitygateError: somebody else was quicker, or it cannot be written.
    """
    from gateway.config.edit import alone, replace_file

    file = main_file(config)
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with alone(file.parent):
            if os.path.lexists(file):
                raise CitygateError(f"{file} has been written meanwhile and stays as it is; try again")
            editor.write()
            replace_file(file, text)


def main_file(config: Path) -> Path:
    """The file that `-c` means, also where there is nothing yet."""
    from gateway.config.loader import MAIN_FILE

    return config if config.suffix in (".yaml", ".yml") and not config.is_dir() else config / MAIN_FILE


def latitude_longitude(text: str) -> list[float]:
    """`45.503,9.159`, as maps give it, the way the file has it: longitude first."""
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAT,LON, as in 45.503,9.159") from None
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise argparse.ArgumentTypeError(f"{text!r}: latitude is within ±90, longitude within ±180, as in 45.503,9.159")
    return [longitude, latitude]


def _asked_location(given: argparse.Namespace) -> list[float] | None:
    """The answer of the person at the terminal; None when there is none."""
    while not given.json and sys.stdin.isatty():
        sys.stderr.write("Where does the box stand? LAT,LON as maps give it, as in 45.503,9.159 (empty: later): ")
        sys.stderr.flush()
        text = sys.stdin.readline().strip()
        if not text:
            return None
        try:
            return latitude_longitude(text)
        except argparse.ArgumentTypeError as error:
            complain(str(error))
    return None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A folder that cannot be written is an error with a remedy, not a traceback."""
    try:
        yield
    except OSError as error:
        remedy = "sudo, or -c with a folder of your own"
        raise CitygateError(f"{folder} cannot be written: {error.strerror or error}; {remedy}") from error


def _hostname() -> str:
    name = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname().partition(".")[0]).strip("-")
    return f"gw-{name[:48] or 'box'}"
