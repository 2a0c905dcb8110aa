"""Verbs of devices: decode."""

import argparse
import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from gateway.cli.status_text import shown_value
from gateway.cli.terminal import say, say_json, table
from gateway.cli.verbs import Verbs
from gateway.config.explain import known_or_near
from gateway.config.templates import Templates, template_names
from gateway.config.tree import Place, Scalar, Source
from gateway.http.outcome import FINE, PROBLEM, UnknownName
from gateway.http.shapes import reading_rows
from gateway.registry import DriverUnavailable, Registry
from gateway.sdk.driver import Driver
from gateway.sdk.errors import ConfigError, FrameError, Problem
from gateway.sdk.quantities import units
from gateway.sdk.template import Template

MAX_FRAME_BYTES = 64 * 1024


def add_verbs(verbs: Verbs) -> None:
    """decode."""
    decode_verb = verbs.add(
        "decode",
        decode,
        config=False,
        help="a captured frame or payload → values → units, no hardware",
        about="Decode a captured frame or payload as the driver would: no hardware, no config, no network.",
        examples=(
            "citygate decode nova/sds011 'aa c0 06 00 06 00 58 d9 3d ab'",
            "citygate decode nova/sds011 aac00600060058d93dab --json | jq '.[0].value'",
        ),
    )
    decode_verb.add_argument("template", metavar="TEMPLATE", help="device type, as in eastron/sdm120")
    decode_verb.add_argument("hex", metavar="HEX", help="the bytes in hexadecimal; blanks, colons and 0x do not matter")
    decode_verb.add_argument(
        "--context", metavar="JSON", default="{}", help="what the bytes do not say, as in '{\"port\": 85}'"
    )
    decode_verb.add_argument(
        "--driver", metavar="NAME", help="which driver's template, if several have one of this name"
    )
    decode_verb.add_argument(
        "--templates",
        metavar="DIR",
        type=Path,
        default=Path("templates"),
        help="folder of own templates (default: ./templates)",
    )


def decode(given: argparse.Namespace) -> int:
    """`citygate decode`."""
    frame = _bytes(given.hex)
    context = {"received_at": datetime.now(UTC), **_context(given.context)}
    driver, template = find_template(given.template, given.templates, Registry(), only=given.driver)
    try:
        readings = driver.decode(template, frame, context)
    except FrameError as error:
        if given.json:
            say_json({"error": str(error)})
            return PROBLEM
        raise
    rows = reading_rows(template.points, readings)
    if given.json:
        say_json(rows)
    else:
        for line in reading_lines(rows):
            say(line)
    return FINE if any(row["quality"] != "bad" for row in rows) else PROBLEM


def find_template(
    name: str, folder: Path, registry: Registry, *, only: str | None = None
) -> tuple[Driver[Any], Template]:
    """The template of this name, own ones first, with its driver.

    Raises:
        UnknownName: no driver has it, or several do.
        ConfigError: the template's own file is wrong.
    """
    problems: list[Problem] = []
    found: list[tuple[Driver[Any], Template]] = []
    known: list[str] = []
    for driver in _drivers(registry, only):
        templates = Templates(folder, problems)
        known += {*template_names(folder), *template_names(driver.templates)}
        if templates.file(driver, name) is None:
            continue
        loaded = templates.find(driver, Scalar(name, Place(Source("TEMPLATE", ()), 0, 0)), ())
        if loaded.template is not None:
            found.append((driver, loaded.template))
    if len(found) == 1:
        return found[0]
    if found:
        drivers = ", ".join(driver.name for driver, _ in found)
        raise UnknownName(f"{name} is a template of several drivers ({drivers}); add --driver NAME")
    if problems:
        raise ConfigError(tuple(problems))
    raise UnknownName(f"no template {name}; {known_or_near(name, known, 'there are')}")


def _drivers(registry: Registry, only: str | None) -> list[Driver[Any]]:
    """All that can be imported, or the one that was asked for."""
    if only is not None:
        if only not in registry.names():
            raise UnknownName(f"no driver {only}; {known_or_near(only, registry.names(), 'there are')}")
        return [registry.driver(only)]
    drivers: list[Driver[Any]] = []
    for name in registry.names():
        with contextlib.suppress(DriverUnavailable):
            drivers.append(registry.driver(name))
    return drivers


def _bytes(text: str) -> bytes:
    digits = re.sub(r"0x|[\s:,_-]", "", text.strip(), flags=re.IGNORECASE)
    try:
        frame = bytes.fromhex(digits)
    except ValueError:
        odd = " (an odd number of digits)" if re.fullmatch(r"[0-9a-fA-F]*", digits) else ""
        raise UnknownName(f"{text[:80]!r} is not hexadecimal{odd}; write it as in 'aa c0 06 00'") from None
    if not frame or len(frame) > MAX_FRAME_BYTES:
        raise UnknownName(f"{len(frame)} bytes; a frame has 1 to {MAX_FRAME_BYTES}")
    return frame


def _context(text: str) -> dict[str, Any]:
    try:
        context = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UnknownName(f"--context is not JSON: {error}") from None
    if not isinstance(context, dict):
        raise UnknownName("--context is not a JSON object")
    if isinstance(context.get("received_at"), str):
        try:
            context["received_at"] = datetime.fromisoformat(context["received_at"]).astimezone(UTC)
        except ValueError as error:
            raise UnknownName(f"--context received_at: {error}") from None
    return context


def reading_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Readings for people: point, value with unit symbol, what is wrong."""
    shown = []
    for row in rows:
        symbol = units()[row["unit"]].symbol if row["unit"] in units() else row["unit"]
        wrong = "" if row["quality"] == "good" else f"{row['quality']}: {row['reason']}"
        shown.append((row["point"], shown_value({**row, "symbol": symbol}), row["quantity"], wrong))
    return table(shown, right=frozenset((1,)))
