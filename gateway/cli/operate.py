"""Verbs of the running box: run, status, watch, reload, once, pause."""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.cli import box
from gateway.cli.outside import environment
from gateway.cli.status_text import counted, status_text, time_of
from gateway.cli.terminal import colour, complain, printable, say, say_json
from gateway.cli.verbs import Verbs, duration
from gateway.health import WELL
from gateway.http.outcome import FINE, PROBLEM, UNREACHABLE, UnknownName
from gateway.sdk.errors import ConfigError

STUCK_AFTER_S = 8.0  # `once` gives up when no broker took anything for so long
READ_ALL_WITHIN_S = 600.0


def add_verbs(verbs: Verbs) -> None:
    """run, status, watch, reload, once, pause."""
    run_verb = verbs.add(
        "run",
        run,
        help="run the gateway until stopped",
        about="Run the gateway in the foreground until SIGTERM or Ctrl-C. It starts degraded: no broker, port, network or "
        "clock is needed to start. Ends with 3 when the config is invalid at start; with --last-good it then starts with the "
        "last config that worked, and says so in status, page, metrics and journal. SIGHUP reloads.",
        examples=("citygate run", "citygate run -c ./my-box", "citygate run --last-good"),
    )
    run_verb.add_argument(
        "--last-good", action="store_true", help="start with the last config that worked when the file is wrong"
    )
    run_verb.add_argument("--debug", action="store_true", help="more events in the journal")
    status_verb = verbs.add(
        "status",
        status,
        help="how links, devices, brokers, log and clock are",
        about="Show how everything is, from the running daemon. Ends with 1 when anything is bad, 4 without a daemon. A box with "
        "many devices shows the values of those that are named.",
        examples=("citygate status", "citygate status meter-12 roof-rs485", "citygate status --json | jq .brokers"),
    )
    status_verb.add_argument("names", metavar="NAME", nargs="*", help="only these links, devices or brokers")
    watch_verb = verbs.add(
        "watch",
        watch,
        help="the status, live",
        about="Show the status again and again until Ctrl-C; with --json one status object a line.",
        examples=("citygate watch", "citygate watch --every 5s --json | jq -c .brokers"),
    )
    watch_verb.add_argument(
        "--every", dest="every_s", metavar="TIME", type=duration, default=1.0, help="how often (default: 1s)"
    )
    watch_verb.add_argument("--for", dest="seconds", metavar="TIME", type=duration, help="end after this time")
    reload_verb = verbs.add(
        "reload",
        reload,
        help="check the config, then apply what changed to the running daemon",
        about="Ask the running daemon to read its files again. Only links and brokers that changed are restarted. When anything "
        "is wrong, nothing changes: every problem is listed and the exit code is 3. With --dry-run nothing changes either: "
        "it shows old and new values, what would restart, the readings that are owed there, and what waits for a restart.",
        examples=("citygate reload --dry-run", "citygate reload"),
    )
    reload_verb.add_argument("--dry-run", action="store_true", help="only show what would change")
    verbs.add(
        "once",
        once,
        help="one full cycle: read every device, send everything",
        about="Read each device once, then wait until the brokers have taken everything that is owed to them. A running "
        "daemon does it; without one, a daemon is started for as long as it takes.",
        examples=("citygate once", "citygate once --json"),
    )
    pause_verb = verbs.add(
        "pause",
        pause,
        help="maintenance: what a device says meanwhile never reaches a city",
        about="Pause a device while it is cleaned or moved: what it says meanwhile reaches neither log nor city. It ends by "
        "itself, or with --for 0s.",
        examples=("citygate pause meter-12 --for 30m", "citygate pause meter-12 --for 0s"),
    )
    pause_verb.add_argument("device", metavar="DEVICE", help="its name in the config")
    pause_verb.add_argument(
        "--for",
        dest="seconds",
        metavar="TIME",
        type=duration,
        required=True,
        help="how long, as in 30m; 0s ends a pause",
    )


def run(given: argparse.Namespace) -> int:
    """`citygate run`."""
    from gateway.config.last_good import place_of
    from gateway.daemon import serve
    from gateway.journal import set_up
    from gateway.sdk.files import is_file

    set_up(debug=given.debug)
    told = environment()
    last_good = place_of(box.buffer_path(given.config), told)
    try:
        serve(given.config, told, last_good=last_good, fall_back=given.last_good)
    except ConfigError:
        kept = _kept(given.config, last_good)
        if not given.last_good and is_file(kept):
            complain("`citygate run --last-good` starts with the config that worked last\n")
        if not given.last_good or kept == last_good:
            raise
        serve(given.config, told, last_good=kept, fall_back=True)
    return FINE


def _kept(config: Path, expected: Path) -> Path:
    """Where the last good config is: a file that is gone, or wrong in two places, does not name the folder."""
    from gateway.config.last_good import place_of
    from gateway.config.place import last_place
    from gateway.sdk.files import is_file

    told = environment()
    before = last_place(config, told)
    return expected if before is None or is_file(expected) else place_of(before, told)


def status(given: argparse.Namespace) -> int:
    """`citygate status`."""
    found: dict[str, Any] = only(box.ask(given.config, "status"), given.names)
    if given.json:
        say_json(found)
    else:
        say(status_text(found, values=True if given.names else None))
    return PROBLEM if anything_bad(found) else FINE


def only(found: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The status of these links, devices and brokers; all of it without names. Raises UnknownName."""
    if not names:
        return found
    links: dict[str, Any] = {}
    for name, link in found["links"].items():
        devices = {device: its for device, its in link["devices"].items() if name in names or device in names}
        if devices or name in names:
            links[name] = {**link, "devices": devices}
    brokers = {name: broker for name, broker in found["brokers"].items() if name in names}
    known = {*links, *brokers, *(device for link in links.values() for device in link["devices"])}
    for name in names:
        if name not in known:
            raise UnknownName(f"no link, device or broker {name}")
    shown = {key: found[key] for key in found if key not in ("log", "clock")}
    return {**shown, "gateway": {**found["gateway"], "ready": []}, "links": links, "brokers": brokers}


def anything_bad(found: Mapping[str, Any]) -> bool:
    """Whether a link, device or broker needs somebody, or the box says that it does not do all of its work."""
    links = found.get("links", {}).values()
    devices = [device for link in links for device in link.get("devices", {}).values()]
    return (
        any(link["state"] in ("down", "off") for link in links)
        or any(device["state"] == "bad" for device in devices)
        or any(broker["state"] not in WELL for broker in found.get("brokers", {}).values())
        or any(device.get("refused_by") for device in devices)
        or any(broker.get("refusing") or broker.get("contexts") for broker in found.get("brokers", {}).values())
        or bool(found.get("gateway", {}).get("ready"))
    )


def watch(given: argparse.Namespace) -> int:
    """`citygate watch`."""
    deadline_s = time.monotonic() + given.seconds if given.seconds is not None else float("inf")
    on_screen = sys.stdout.isatty() and not given.json
    try:
        while True:
            found = box.ask(given.config, "status")
            if given.json:
                say_json(found, line=True)
            elif on_screen:
                say("\033[H\033[J" + "\n".join(fitted(status_text(found).splitlines())))
            else:
                say(status_text(found) + "\n")
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return PROBLEM if anything_bad(found) else FINE
            time.sleep(min(given.every_s, left_s))
    except KeyboardInterrupt:
        return FINE


def fitted(lines: list[str]) -> list[str]:
    """As many as the terminal has, the last one kept: it says what needs somebody."""
    rows = shutil.get_terminal_size((100, 40)).lines - 1
    return lines if len(lines) <= rows else [*lines[: rows - 2], "…", lines[-1]]


def reload(given: argparse.Namespace) -> int:
    """`citygate reload`."""
    box.refuse_another(given.config)
    found: dict[str, Any] = box.ask(given.config, "reload", dry_run=given.dry_run)
    if given.json:
        say_json(found)
        return FINE
    for warning in found.get("warnings", ()):
        place = f"{warning['file']}:{warning['line']}:{warning['column']}" if warning["line"] else warning["file"]
        complain(f"{place}: {warning['severity']}: {warning['message']}")
    for change in found.get("changed", ()):
        say(printable(str(change)))
    for line in _consequences(found, dry_run=given.dry_run):
        say(line)
    return FINE


def _consequences(found: Mapping[str, Any], *, dry_run: bool) -> Iterator[str]:
    """What a reload has done, or would do."""
    restarts = found.get("restarts", {})
    parts = [f"{part.removesuffix('s')} {name}" for part, names in restarts.items() for name in names]
    named = ", ".join(parts or found.get("restarted", ()))
    if named:
        yield f"{'would restart' if dry_run else 'restarted'}: {named}"
    yield from _concerned(found.get("owed", {}))
    for fate in found.get("becomes", ()):
        yield f"{fate['of']}: {fate['text']}"
    if found.get("waiting"):
        yield f"waits for a restart of the daemon (`systemctl restart citygate`): {', '.join(found['waiting'])}"
    if not found.get("changed") and not named:
        yield "nothing changed"
    elif dry_run:
        yield "nothing was applied; `citygate reload` applies it"


def _concerned(owed: Mapping[str, Any]) -> Iterator[str]:
    """The readings not sent yet that a change concerns."""
    for broker, count in owed.get("brokers", {}).items():
        yield f"broker {broker}: {counted(count, 'reading')} still to be sent"
    least = "" if owed.get("all_counted", True) else "at least "
    for device, brokers in owed.get("devices", {}).items():
        said = ", ".join(f"{least}{counted(count, 'reading')} to {broker}" for broker, count in brokers.items())
        yield f"device {device}: still to be sent: {said}"


def once(given: argparse.Namespace) -> int:
    """`citygate once`."""

    box.refuse_another(given.config)
    box.make_plan(given.config)  # a config that is wrong is told with its places, not by a daemon's last words
    with box.some_daemon(given.config):
        devices = box.ask(given.config, "once", timeout_s=READ_ALL_WITHIN_S)["devices"]
        brokers, left = _sent(given)
    found = {"devices": devices, "brokers": brokers}
    if given.json:
        say_json(found)
    else:
        _show_once(found, left)
    return _once_code(found, left)


def _sent(given: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The brokers' records once they took all that was owed after the cycle, and those that did not: nothing moved there for some time.

    What comes later counts for nobody: beside a daemon at work something always does, and a broker that is away is owed ever more.
    """
    asked_at: datetime | None = None
    before: dict[str, Any] = {}
    since_s = time.monotonic()
    while True:
        status: dict[str, Any] = box.ask(given.config, "status")
        brokers: dict[str, Any] = status["brokers"]
        asked_at = asked_at or time_of(status["gateway"].get("now"))
        left = [name for name, broker in brokers.items() if _still_owed(broker, asked_at)]
        if any(_moved(before.get(name), brokers[name]) for name in left):
            since_s = time.monotonic()
        if not left or time.monotonic() - since_s > STUCK_AFTER_S:
            return brokers, left
        before = brokers
        time.sleep(0.2)


def _still_owed(broker: Mapping[str, Any], asked_at: datetime | None) -> bool:
    oldest_at = time_of(broker["oldest_unsent_at"])
    return bool(broker["backlog"]) and not (oldest_at and asked_at and oldest_at > asked_at)


def _moved(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    return before is None or before["oldest_unsent_at"] != now["oldest_unsent_at"] or before["backlog"] > now["backlog"]


def _show_once(found: Mapping[str, Any], left: Sequence[str]) -> None:
    rows = [
        (colour("✗", "red") if device["error"] or not device["readings"] else colour("●", "green"), name,
         printable(device["error"]) or f"{counted(device['readings'], 'reading')}")
        for name, device in found["devices"].items()
    ]  # fmt: skip
    for mark, name, text in rows:
        say(f"{mark} {name}  {text}")
    for name, broker in found["brokers"].items():
        owed = f", {counted(broker['backlog'], 'reading')} still owed" if name in left else ""
        say(f"{name}: {broker['state']}, accepted {broker['accepted']}, refused {broker['refused']}{owed}")
    if not found["brokers"]:
        say("no broker is configured: nothing was sent")


def _once_code(found: Mapping[str, Any], left: Sequence[str]) -> int:
    silent = [device for device in found["devices"].values() if device["error"] or not device["readings"]]
    if silent or left:
        return UNREACHABLE
    return PROBLEM if any(broker["refused"] for broker in found["brokers"].values()) else FINE


def pause(given: argparse.Namespace) -> int:
    """`citygate pause`."""
    box.refuse_another(given.config)
    found: dict[str, Any] = box.ask(given.config, "pause", device=given.device, seconds=given.seconds)
    if given.json:
        say_json(found)
    elif given.seconds:
        say(f"{found['device']} is paused until {found['until']}; it ends by itself")
    else:
        say(f"{found['device']} is not paused any more")
    return FINE
