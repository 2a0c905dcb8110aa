"""Verbs at the wire: scan, provision, solve, write, record, case."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from gateway.cli import box, radio
from gateway.cli.devices import find_template, read_code, reading_lines
from gateway.cli.terminal import colour, complain, say, say_json
from gateway.cli.verbs import Verbs, duration
from gateway.config.templates import template_names
from gateway.encode import to_json
from gateway.http.outcome import FINE, PROBLEM, UNREACHABLE, NoDaemon, UnknownName
from gateway.http.shapes import UNDECLARED, exchange_row, reading_rows
from gateway.registry import Registry
from gateway.sdk.driver import Driver, Provisions, Request, Scans, Solves, decoded
from gateway.sdk.errors import CitygateError, FrameError
from gateway.sdk.recording import exchanges, parsed

Event = dict[str, Any]


def add_verbs(verbs: Verbs) -> None:
    """scan, provision, solve, write, record, case."""
    scan_verb = verbs.add(
        "scan",
        scan,
        help="look for devices on a line; read-only",
        about="Look for devices, read-only and bounded: every unit at every speed; says what answered and which "
        "template fits. A running daemon leaves the line to it, and goes on with its devices afterwards.",
        examples=(
            "citygate scan modbus /dev/ttyUSB0",
            "citygate scan modbus /dev/ttyUSB0 --units 1-247 --baud 9600,19200 --parity N,E",
            "citygate scan modbus 192.0.2.17 --units 1-10 --json",
            "citygate scan lora mqtt://127.0.0.1:1883 --for 10m",
            "citygate scan lora 127.0.0.1:1700",
        ),
    )
    scan_verb.add_argument("driver", metavar="KIND", help="modbus or lora")
    _add_place(scan_verb)
    scan_verb.add_argument("--units", metavar="LIST", type=_numbers, help="as in 1-32,254 (the default)")
    scan_verb.add_argument("--all", action="store_true", help="go on after the first speed at which somebody answered")
    radio.add_arguments(scan_verb, duration)
    provision_verb = verbs.add(
        "provision",
        provision,
        help="give a new sensor its unit id and speed",
        about="Set unit id and baud rate of the one new device on a line, by the registers that its template declares, and "
        "read them back. Most probes are sold as unit 1: set each up alone before they share a line.",
        examples=(
            "citygate provision jxct/soil-7in1 /dev/ttyUSB0 --new-unit 7",
            "citygate provision sht20/xy-md02 /dev/ttyUSB0 --new-unit 3 --new-baud 19200",
        ),
    )
    provision_verb.add_argument("template", metavar="TEMPLATE", help="device type, as in jxct/soil-7in1")
    _add_place(provision_verb)
    provision_verb.add_argument("--unit", type=int, help="its unit id now (default: as from the factory)")
    provision_verb.add_argument("--new-unit", type=int, help="its unit id from now on")
    provision_verb.add_argument("--new-baud", type=int, help="its baud rate from now on")
    solve_verb = verbs.add(
        "solve",
        solve,
        help="which registers, read how, give the value on the display",
        about="Read the registers of one unit and list the encodings that give the value on its display: address, type, "
        "word order, scale, ready for a template.",
        examples=("citygate solve modbus /dev/ttyUSB0 --unit 1 --value 230.1 --table input --first 0 --count 100",),
    )
    solve_verb.add_argument("driver", metavar="KIND", help="modbus")
    _add_place(solve_verb)
    solve_verb.add_argument("--unit", type=int, default=1)
    solve_verb.add_argument("--value", required=True, help="as displayed, with all its digits")
    solve_verb.add_argument("--table", choices=("input", "holding"), default="input")
    solve_verb.add_argument("--first", type=int, default=0, help="first register, 0-based")
    solve_verb.add_argument("--count", type=int, default=100)
    write_verb = verbs.add(
        "write",
        write,
        help="write one point of a device and read it back",
        about="Write a point that its template declares writable and that the device's `writes:` allows; the range is "
        "checked, and what was written is read back. Off unless configured.",
        examples=("citygate write climate-3 temperature_correction -0.5 -c ./my-box",),
    )
    for name in ("device", "point", "value"):
        write_verb.add_argument(name, metavar=name.upper())
    record_verb = verbs.add(
        "record",
        record,
        help="what goes over a link's wire, with its timing",
        about="Record the raw traffic of a link of the running daemon without disturbing it, into a file of lines that "
        "`simulate --from` plays back and `case` makes a test of.",
        examples=("citygate record roof-rs485 --for 60s --to roof.rec -c ./my-box",),
    )
    record_verb.add_argument("link", metavar="LINK")
    record_verb.add_argument("--for", dest="seconds", type=duration, default=30.0, metavar="TIME", help="up to 10 min")
    record_verb.add_argument("--to", type=Path, metavar="FILE", help="default: standard output")
    case_verb = verbs.add(
        "case",
        case,
        config=False,
        help="make a test case of a recording",
        about="Turn the exchanges of a recording that a template understands into a case folder: frames.hex, config.yaml, "
        "expected.json. Look at the values before you keep it.",
        examples=("citygate case roof.rec --template eastron/sdm120 --unit 1 --to tests/drivers/modbus/cases/roof",),
    )
    case_verb.add_argument("recording", type=Path, metavar="FILE")
    case_verb.add_argument("--template", required=True, metavar="TEMPLATE")
    case_verb.add_argument("--unit", type=int, help="only this unit's frames")
    case_verb.add_argument("--to", type=Path, required=True, metavar="DIR")


def _add_place(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("where", metavar="PORT|HOST[:PORT]", help="serial port, or TCP device or gateway")
    verb.add_argument("--baud", metavar="LIST", type=_numbers, help="baud rates to try, as in 9600,19200")
    verb.add_argument("--parity", metavar="LIST", type=lambda text: text.upper().split(","), help="as in N,E")


def _numbers(text: str) -> list[int]:
    """Numbers of `1-32,254`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            found += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is no number and no range as 1-32") from None
        if len(found) > 100_000:
            raise argparse.ArgumentTypeError("that is too many")
    return found


def _place(given: argparse.Namespace) -> dict[str, Any]:
    """`port`, or `host` and `port`, with the speeds to try."""
    where = given.where
    if where.startswith(("/", "usb:")) or where.upper().startswith("COM"):
        place: dict[str, Any] = {"port": where}
    else:
        host, colon, port = where.rpartition(":")
        place = {"host": host, "port": port} if colon else {"host": where}
    return {**place, "baud_rates": given.baud, "parities": given.parity}


def _run(
    given: argparse.Namespace, events: Callable[[Any], AsyncIterator[Event]], show: Callable[[Event], None]
) -> list[Event]:
    """All events of a driver's work at a port opened here, which a running daemon leaves for that."""

    async def work() -> list[Event]:
        found = []
        place = {key: value for key, value in _place(given).items() if key in ("host", "port")}
        async with box.borrowed(given.config, place):
            async for event in events(box.driver_context(asyncio.Queue[Request]())):
                show(event)
                found.append(event)
        return found

    return asyncio.run(work())


def _driver(name: str, can: type) -> Driver[Any]:
    registry = Registry()
    driver = registry.driver(name)
    if not isinstance(driver, can):
        able = [other for other in registry.names() if other == "modbus"]
        raise UnknownName(f"driver {name} cannot do this; {', '.join(able)} can")
    return driver


def scan(given: argparse.Namespace) -> int:
    """`citygate scan`."""
    if given.driver == "lora":
        return radio.scan_lora(given)
    driver = _driver(given.driver, Scans)
    options = {**_place(given), "units": given.units, "all": given.all, "templates": _templates(driver)}
    assert isinstance(driver, Scans)
    events = _run(
        given, lambda context: driver.scan(options, context), lambda event: _show_scan(event, as_json=given.json)
    )
    found = [event["found"] for event in events if "found" in event]
    if given.json:
        say_json(found)
    elif not found:
        say("nobody answered: power? A and B swapped? another speed (--baud, --parity) or more units (--units 1-247)?")
    return FINE if found else UNREACHABLE


def _templates(driver: Driver[Any]) -> Mapping[str, Any]:
    registry = Registry()
    names = {*template_names(Path("templates")), *template_names(driver.templates)}
    return {name: find_template(name, Path("templates"), registry, only=driver.name)[1] for name in sorted(names)}


def _show_scan(event: Event, *, as_json: bool) -> None:
    if "progress" in event:
        its = event["progress"]
        speed = f"{its['baud_rate']} {its['parity']}" if "baud_rate" in its else its.get("host", "")
        complain(f"{its['done']:5} of {its['of']}: {speed}, unit {its['unit_id']}")
    elif as_json:
        return
    elif "noise" in event:
        its = event["noise"]
        say(f"{its['baud_rate']} {its['parity']}: somebody speaks, but not at this speed")
    elif "found" in event:
        its = event["found"]
        speed = f"{its['baud_rate']} {its['parity']}{its['stop_bits']}" if "baud_rate" in its else its["host"]
        said = ", ".join(its["identification"])
        fits = " or ".join(its["templates"]) or "no template fits; `citygate solve` helps to write one"
        say(f"unit {its['unit_id']} at {speed}: {colour(fits, 'green')}{f' ({said})' if said else ''}")


def provision(given: argparse.Namespace) -> int:
    """`citygate provision`."""
    driver, template = find_template(given.template, Path("templates"), Registry())
    if not isinstance(driver, Provisions):
        raise UnknownName(f"driver {driver.name} cannot set up devices")
    place = _place(given)
    options: dict[str, Any] = {
        **{key: place[key] for key in ("port", "host") if key in place},
        "template": template,
        "baud_rate": given.baud[0] if given.baud else None,
        "parity": given.parity[0] if given.parity else None,
        "unit_id": given.unit,
        "new_unit_id": given.new_unit,
        "new_baud_rate": given.new_baud,
    }

    def show(event: Event) -> None:
        for text in (event.get("step"), event.get("wait")):
            if text:
                complain(text)

    [*_, last] = _run(given, lambda context: driver.provision(options, context), show)
    if given.json:
        say_json(last["done"])
    else:
        say(f"done: {', '.join(f'{key}: {value}' for key, value in last['done'].items())}")
    return FINE


def solve(given: argparse.Namespace) -> int:
    """`citygate solve`."""
    driver = _driver(given.driver, Solves)
    options: dict[str, Any] = {
        **{key: value for key, value in _place(given).items() if value},
        "unit_id": given.unit,
        "table": given.table,
        "first": given.first,
        "count": given.count,
        "value": given.value,
    }
    assert isinstance(driver, Solves)
    events = _run(given, lambda context: driver.solve(options, context), lambda _: None)
    ways = [event["way"] for event in events if "way" in event]
    if given.json:
        say_json(ways)
    else:
        for way in ways:
            say("{" + ", ".join(f"{key}: {value}" for key, value in way.items()) + "}")
        if not ways:
            say(f"no register read here gives {given.value}; try the other --table, or other addresses")
    return FINE if ways else PROBLEM


def write(given: argparse.Namespace) -> int:
    """`citygate write`."""
    box.refuse_another(given.config)
    try:
        row = box.ask(given.config, "write", device=given.device, point=given.point, value=given.value)
    except NoDaemon:
        row = _write_here(given)
    if given.json:
        say_json(row["readings"])
    else:
        for line in reading_lines(row["readings"]):
            say(line)
    return read_code(row["readings"])


def _write_here(given: argparse.Namespace) -> dict[str, Any]:

    plan = box.make_plan(given.config, held=box.somebody_has_it)
    template = box.device_plan(plan, given.device).template

    async def work() -> dict[str, Any]:
        async with box.open_device(plan, given.device) as ask:
            return exchange_row(template, await ask(given.point, given.value))

    return asyncio.run(work())


def record(given: argparse.Namespace) -> int:
    """`citygate record`."""
    found = box.ask(given.config, "record", link=given.link, seconds=given.seconds, timeout_s=given.seconds + 10)
    text = found["recording"]
    if given.to is None and not given.json:
        say(text.rstrip())
        return FINE
    if given.to is not None:
        given.to.write_text(text)
    count = sum(1 for line in text.splitlines() if not line.startswith("#"))
    if given.json:
        say_json({"file": str(given.to) if given.to else None, "chunks": count, "recording": "" if given.to else text})
    else:
        say(f"{count} pieces in {given.to}")
    return FINE if count else PROBLEM


def case(given: argparse.Namespace) -> int:
    """`citygate case`."""
    driver, template = find_template(given.template, Path("templates"), Registry())
    try:
        chunks = parsed(given.recording.read_text(errors="replace"))
    except OSError as error:
        raise CitygateError(f"cannot read {given.recording}: {error.strerror}") from error
    lines, expected, skipped = [], dict[str, Any](), 0
    for request, reply, _ in exchanges(chunks):
        context: dict[str, Any] = {"request": request.hex()} if request else {}
        try:
            readings = decoded(driver, template, reply, context)
        except FrameError:
            skipped += 1
            continue
        if given.unit is not None and given.unit not in (reply[0], reply[6] if len(reply) > 6 else -1):
            continue  # RTU has the unit first, TCP seventh
        if readings and not set(expected) & {reading.point for reading in readings}:
            lines += ([f"> {request.hex(' ')}"] if request else []) + [f"< {reply.hex(' ')}"]
            rows = reading_rows(template, readings)
            expected |= {row["point"]: row["value"] for row in rows if row["reason"] != UNDECLARED}
    if not expected:
        raise CitygateError(f"{given.template} understands nothing of this recording ({skipped} exchanges tried)")
    given.to.mkdir(parents=True, exist_ok=True)
    remark = f"# Recorded: {given.recording.name}. Add where, when and by whom, and the licence.\n"
    (given.to / "frames.hex").write_text(remark + "\n".join(lines) + "\n")
    (given.to / "config.yaml").write_text(f"template: {given.template}\n")
    (given.to / "expected.json").write_bytes(to_json(expected, option=orjson.OPT_INDENT_2) + b"\n")
    if given.json:
        say_json({"folder": str(given.to), "points": sorted(expected), "skipped": skipped})
    else:
        say(f"{given.to}: {len(expected)} points; check the values in expected.json before you keep it")
    return FINE
