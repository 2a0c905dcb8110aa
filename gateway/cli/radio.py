"""`citygate scan lora`: who is heard at a network server's broker or by a concentrator, and which template may fit."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from gateway.cli import box
from gateway.cli.terminal import colour, complain, say, say_json
from gateway.http.outcome import FINE, UNREACHABLE, UnknownName
from gateway.registry import Registry
from gateway.sdk.driver import Request, Scans

SEMTECH_PORT = 1700


def scan_lora(given: argparse.Namespace) -> int:
    """Listen and tell.

    Raises:
        LinkError: the broker is not reachable, or the address is taken.
    """
    where = str(given.where)
    driver = Registry().driver(given.server if "://" in where else "semtech-udp")
    assert isinstance(driver, Scans)
    try:
        password = Path(given.password_file).read_text().strip() if given.password_file else ""
    except OSError as error:
        raise UnknownName(f"cannot read {given.password_file}: {error.strerror}") from None
    options = {**_place(where, given.username, password), "for_s": given.for_s}
    place = {"port": SEMTECH_PORT, **options} if "host" in options else {}

    async def work() -> int:
        async with box.borrowed(given.config, {key: place[key] for key in ("host", "port") if key in place}):
            return await _listen(driver, options, as_json=given.json)

    return asyncio.run(work())


def _place(where: str, username: str, password: str) -> dict[str, Any]:
    if "://" in where:
        return {"url": where, "username": username, "password": password}
    host, colon, port = where.rpartition(":")
    return {"host": host, "port": int(port)} if colon and port.isdecimal() else {"host": where}


async def _listen(driver: Scans, options: dict[str, Any], *, as_json: bool) -> int:
    found = []
    async for event in driver.scan(options, box.driver_context(asyncio.Queue[Request]())):
        if "progress" in event:
            its = event["progress"]
            complain(f"{its['heard']} devices heard, {its['left_s']:g} s left")
        else:
            found.append(event["found"])
    if as_json:
        say_json(found)
    elif not found:
        say("nobody was heard: devices may be silent for minutes (--for 30m); range? the right broker or port?")
    for its in () if as_json else found:
        say(_line(its))
    return FINE if found else UNREACHABLE


def _line(its: dict[str, Any]) -> str:
    signal = f"{its['rssi']:g} dBm" if its["rssi"] is not None else "no signal figure"
    fits = " or ".join(its["templates"]) or "no template fits"
    return f"{its['identity']}  {its['count']}x  {signal}  port {its['f_port']}  {colour(fits, 'green')}"


def add_arguments(verb: argparse.ArgumentParser, duration: Any) -> None:
    """What `scan lora` takes beside the place."""
    lora = verb.add_argument_group(
        "lora: the place is mqtt://HOST[:PORT] of a server's broker, or HOST[:PORT] to listen at"
    )
    lora.add_argument(
        "--for", dest="for_s", metavar="TIME", type=duration, default=60.0, help="how long, as in 5m; default 60 s"
    )
    lora.add_argument("--server", choices=("chirpstack", "tts"), default="chirpstack", help="kind of network server")
    lora.add_argument("--username", default="", help="of the broker")
    lora.add_argument("--password-file", metavar="FILE", help="file with the broker's password or API key")
