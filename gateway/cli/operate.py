"""Verbs of the running box: run, status."""

import argparse
import asyncio
from typing import Any

from gateway.cli import box
from gateway.cli.status_text import status_text
from gateway.cli.terminal import say, say_json
from gateway.cli.verbs import Verbs
from gateway.http.outcome import FINE, PROBLEM


def add_verbs(verbs: Verbs) -> None:
    """run, status."""
    run_verb = verbs.add(
        "run",
        run,
        help="run the gateway until stopped",
        about="Run the gateway in the foreground until SIGTERM or Ctrl-C. It starts degraded: no broker, port, network or "
        "clock is needed to start. Ends with 3 when the config is invalid at start.",
        examples=("citygate run", "citygate run -c ./my-box"),
    )
    run_verb.add_argument("--debug", action="store_true", help="more events in the journal")
    verbs.add(
        "status",
        status,
        help="how links, devices, brokers, log and clock are",
        about="Show how everything is, from the running daemon. Ends with 1 when anything is bad.",
        examples=("citygate status", "citygate status --json | jq .brokers"),
    )


def run(given: argparse.Namespace) -> int:
    """`citygate run`."""
    from gateway.daemon import serve
    from gateway.journal import set_up

    set_up(debug=given.debug)
    asyncio.run(serve(given.config))
    return FINE


def status(given: argparse.Namespace) -> int:
    """`citygate status`."""
    found: dict[str, Any] = box.ask(given.config, "status")
    if given.json:
        say_json(found)
    else:
        say(status_text(found))
    return PROBLEM if anything_bad(found) else FINE


def anything_bad(found: dict[str, Any]) -> bool:
    """Whether a link, device or broker needs somebody."""
    links = found.get("links", {}).values()
    devices = (device for link in links for device in link.get("devices", {}).values())
    return (
        any(link["state"] in ("down", "off") for link in links)
        or any(device["state"] == "bad" for device in devices)
        or any(broker["state"] not in ("ok", "starting") for broker in found.get("brokers", {}).values())
        or bool(found.get("gateway", {}).get("ready"))
    )
