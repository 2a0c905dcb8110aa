"""Verbs of devices: decode, read, preview."""

import argparse
import asyncio
import contextlib
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from gateway.cli import box
from gateway.cli.status_text import shown_value
from gateway.cli.terminal import colour, complain, say, say_json, table
from gateway.cli.verbs import Verbs, duration
from gateway.config.explain import known_or_near
from gateway.config.templates import Templates, template_names
from gateway.config.tree import Place, Scalar, Source
from gateway.encode import to_json
from gateway.http.outcome import FINE, PROBLEM, UNREACHABLE, USAGE, NoDaemon, Refused, UnknownName
from gateway.http.shapes import UNDECLARED, exchange_row, reading_rows
from gateway.registry import DriverUnavailable, Registry
from gateway.sdk.driver import Driver, decoded
from gateway.sdk.errors import ConfigError, FrameError, Problem
from gateway.sdk.quantities import units
from gateway.sdk.template import Template

MAX_FRAME_BYTES = 64 * 1024


def add_verbs(verbs: Verbs) -> None:
    """decode, read, preview."""
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
    read_verb = verbs.add(
        "read",
        read,
        help="one real read of a device: raw bytes → values → units",
        about="Read a device once, now. A running daemon does it in the link's own queue; without one the port is opened "
        "here, under the same lock. Nothing is logged or sent. Ends with 4 when the device does not answer.",
        examples=(
            "citygate read meter-12",
            "citygate read meter-12 --repeat --every 2s",
            "citygate read meter-12 --json",
        ),
    )
    read_verb.add_argument("device", metavar="DEVICE", help="its name in the config")
    read_verb.add_argument("--repeat", action="store_true", help="again and again, until Ctrl-C")
    read_verb.add_argument(
        "--every", dest="every_s", metavar="TIME", type=duration, default=1.0, help="pause between reads (default: 1s)"
    )
    preview_verb = verbs.add(
        "preview",
        preview,
        help="the exact entity per broker, checked against its model; nothing is sent",
        about="Show the entities that a device gives, as each broker would get them. From the running daemon's last values; "
        "without a daemon, or before the first value, from the sample frames of the template. Nothing is sent.",
        examples=("citygate preview meter-12", "citygate preview meter-12 --json | jq '.milano[0].id'"),
    )
    preview_verb.add_argument("device", metavar="DEVICE", help="its name in the config")


def decode(given: argparse.Namespace) -> int:
    """`citygate decode`."""
    frame = _bytes(given.hex)
    context = {"received_at": datetime.now(UTC), **_context(given.context)}
    driver, template = find_template(given.template, given.templates, Registry(), only=given.driver)
    try:
        readings = decoded(driver, template, frame, context)
    except FrameError as error:
        rows = reading_rows(template, error.readings)
        if given.json:
            say_json({"error": str(error), "readings": rows} if rows else {"error": str(error)})
            return PROBLEM
        for line in reading_lines(rows):
            say(line)
        raise
    rows = reading_rows(template, readings)
    if given.json:
        say_json(rows)
    else:
        for line in reading_lines(rows):
            say(line)
    if readings.remark:
        complain(f"! {readings.remark}")
    elif not rows:
        complain("! nothing in it is a value of this template")
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
        templates = Templates((folder,), problems)
        known += {*template_names(folder), *template_names(driver.templates)}
        if templates.file(driver, name) is None:
            continue
        loaded = templates.find(driver, Scalar(name, Place(Source("TEMPLATE", []), 0, 0)), ())
        if loaded.template is not None:
            found.append((driver, loaded.template))
    if found and len({str(driver.templates) for driver, _ in found}) == 1:
        return found[0]  # one driver, or several that share their templates and so decode alike
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
        except (ValueError, OverflowError) as error:
            raise UnknownName(f"--context received_at: {error}") from None
    return context


_WHY = {UNDECLARED: "the template does not declare it, so it is dropped"}


def reading_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Readings for people: point, value with unit symbol, what is wrong."""
    shown = []
    for row in rows:
        symbol = units()[row["unit"]].symbol if row["unit"] in units() else row["unit"]
        wrong = "" if row["quality"] == "good" else f"{row['quality']}: {_WHY.get(row['reason'], row['reason'])}"
        shown.append((row["point"], shown_value({**row, "symbol": symbol}), row["quantity"], wrong))
    return table(shown, right=frozenset((1,)))


def read(given: argparse.Namespace) -> int:
    """`citygate read`."""
    try:
        exchange = box.ask(given.config, "read", device=given.device)
    except NoDaemon:
        return _read_here(given)
    code = _show_exchange(given, exchange)
    try:
        while given.repeat:
            time.sleep(given.every_s)
            code = _show_exchange(given, box.ask(given.config, "read", device=given.device))
    except KeyboardInterrupt:
        pass
    return code


def _read_here(given: argparse.Namespace) -> int:

    plan = box.make_plan(given.config, held=box.somebody_has_it)
    template = box.device_plan(plan, given.device).template

    async def reads() -> int:
        async with box.open_device(plan, given.device) as read_once:
            while True:
                exchange = await read_once()
                code = _show_exchange(given, exchange_row(template, exchange))
                if not given.repeat:
                    return code
                await asyncio.sleep(given.every_s)

    try:
        return asyncio.run(reads())
    except KeyboardInterrupt:
        if given.repeat:
            return FINE
        raise


def _show_exchange(given: argparse.Namespace, exchange: dict[str, Any]) -> int:
    rows: list[dict[str, Any]] = exchange["readings"]
    if given.json:
        for row in rows if given.repeat else [rows]:
            say_json(row, line=given.repeat)
    else:
        for title in ("sent", "received"):
            if exchange[title]:
                say(colour(f"{title:8}  {bytes.fromhex(exchange[title]).hex(' ')}", "dim"))
        for line in reading_lines(rows):
            say(line)
        if given.repeat:
            say()
    return read_code(rows)


def read_code(rows: list[dict[str, Any]]) -> int:
    """Exit code of a read: fine with at least one value; a device that does not answer at all is unreachable."""
    if any(row["value"] is not None for row in rows):
        return FINE
    return UNREACHABLE if any(row["reason"] in ("timeout", "link_down") for row in rows) else PROBLEM


def preview(given: argparse.Namespace) -> int:
    """`citygate preview`."""
    try:
        found = box.ask_of_this(given.config, "preview", device=given.device)
    except NoDaemon:
        found = _preview_here(given.config, given.device)
    except Refused as error:
        if error.exit_code != USAGE:
            raise
        found = _preview_here(given.config, given.device)
        complain(f"! the daemon at work does not know {given.device} yet: `citygate reload`")
    complain(f"from the {found['source']}; nothing is sent")
    for remark in found.get("remarks", ()):
        complain(f"! {remark}")
    for blank in found.get("blanks", ()):
        complain(f"  {blank}")
    if given.json:
        say_json(found["brokers"])
    else:
        say(to_json(found["brokers"], option=orjson.OPT_INDENT_2).decode())
    return PROBLEM if found.get("remarks") else FINE


def _preview_here(config: Path, name: str) -> dict[str, Any]:
    """As the daemon's own, from the template's sample."""
    from gateway.http.preview import previewed, sample_values
    from gateway.models.validator import Validator

    plan = box.make_plan(config, with_secrets=False)
    device = box.device_plan(plan, name)
    driver = plan.links[device.link].driver
    assert driver is not None  # device_plan refused it otherwise
    good = sample_values(driver, device.template, now=datetime.now(UTC))
    tables = {broker: (its.config.kind, its.mappings.get(name, ())) for broker, its in plan.brokers.items()}
    tables = tables or {"read API": ("ngsi-ld", plan.read_api.get(name, ()))}
    return previewed(f"sample frames of template {device.template.name}", good, tables, Validator(plan.models))
