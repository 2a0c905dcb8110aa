"""Verbs of the log: buffer status, held list|show, requeue, purge, export, verify, forget."""

import argparse
import asyncio
import csv
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.cli import box
from gateway.cli.status_text import counted, gone_lines
from gateway.cli.terminal import complain, printable, say, say_json, table
from gateway.cli.verbs import Verbs
from gateway.encode import mended
from gateway.http.outcome import FINE, PROBLEM, START, UNREACHABLE, NoDaemon, Refused
from gateway.http.who import user
from gateway.sdk.errors import CitygateError
from gateway.sdk.files import is_closed

COLUMNS = ("seq", "device", "point", "observed_at", "value", "quality", "reason", "time_source", "time_state")


def add_verbs(verbs: Verbs) -> None:
    """buffer …"""
    group = verbs.group("buffer", help="the log on the card: how it is, what is held, export, verify")
    group.add(
        "status",
        status,
        help="size, backlog, what was given up, how the points did in 24 hours",
        about="Show how the log is. Ends with 1 when it needs somebody. Works without a daemon too.",
        examples=("citygate buffer status", "citygate buffer status --json | jq .newest_gaps"),
    )
    held = group.group("held", help="what single brokers would not take")
    _choice(
        held.add(
            "list",
            held_list,
            help="later with a next try, dead letters without",
            examples=("citygate buffer held list", "citygate buffer held list --broker milano --json"),
        ),
        ids=False,
    )
    show = held.add(
        "show", held_show, help="one held piece with its readings", examples=("citygate buffer held show 12",)
    )
    show.add_argument("id", metavar="ID", type=int, help="as `buffer held list` shows it")
    _choice(
        group.add(
            "requeue",
            requeue,
            help="try held pieces again at once, dead letters too",
            about="After the cause is gone (a mapping corrected, a right granted): try held pieces again at once.",
            examples=("citygate buffer requeue 12 13", "citygate buffer requeue --broker milano"),
        )
    )
    _choice(
        group.add(
            "purge",
            purge,
            help="give held pieces up for good",
            about="Give held pieces up: their readings are deleted and counted in a gap record.",
            examples=("citygate buffer purge 12", "citygate buffer purge --broker milano --entity urn:ngsi-ld:Bin:1"),
        )
    )
    export_verb = group.add(
        "export",
        export,
        help="the readings in the log as JSON Lines or CSV",
        about="Write out all readings that are in the log, those already sent too as long as they are kept, oldest first. "
        "Works beside a running daemon.",
        examples=(
            "citygate buffer export --device meter-12 > meter-12.jsonl",
            "citygate buffer export --csv --from 2026-06-01T00:00:00Z --to 2026-06-02T00:00:00Z > day.csv",
        ),
    )
    export_verb.add_argument("--device", metavar="DEVICE", help="only this device")
    export_verb.add_argument("--point", metavar="POINT", help="only this point")
    export_verb.add_argument("--from", dest="first", metavar="TIME", help="observed at or after, RFC 3339")
    export_verb.add_argument("--to", dest="last", metavar="TIME", help="observed before, RFC 3339")
    export_verb.add_argument("--csv", action="store_true", help="CSV with a header line in place of JSON Lines")
    group.add(
        "verify",
        verify,
        help="check every segment against its checksum",
        about="Check every segment against its checksum. Ends with 1 when one is damaged; the next start, or the next time "
        "the daemon comes across it, sets the file aside and saves what is sound.",
        examples=("citygate buffer verify",),
    )
    forget_verb = group.add(
        "forget",
        forget,
        help="give up what is owed to a broker, or of a device, that was removed from the config",
        about="Give up what a broker is owed that is no longer in the config, what is held for it, and its place; or what all brokers "
        "are still owed of a device that is no longer in it. What is given up is counted in a gap record. Beside a running "
        "daemon and without one.",
        examples=("citygate buffer forget porto", "citygate buffer forget --device meter-12 --yes --json"),
    )
    which = forget_verb.add_mutually_exclusive_group(required=True)
    which.add_argument("broker", metavar="BROKER", nargs="?", help="as `citygate status` lists it as gone")
    which.add_argument("--device", metavar="DEVICE", help="as `citygate status` lists it as gone")
    forget_verb.add_argument("--yes", action="store_true", help="do not ask at a terminal")


def _choice(verb: argparse.ArgumentParser, *, ids: bool = True) -> None:
    if ids:
        verb.add_argument("ids", metavar="ID", type=int, nargs="*", help="as `buffer held list` shows them")
        verb.add_argument("--all", action="store_true", help="everything that is held")
    verb.add_argument("--broker", metavar="NAME", help="only of this broker")
    verb.add_argument("--entity", metavar="ID", help="only of this entity")
    verb.add_argument("--device", metavar="NAME", help="only of this device")


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    names = ("ids", "all", "broker", "entity", "device")
    return {name: value for name in names if (value := getattr(given, name, None))}


class Asked:
    """Whoever answers: the running daemon, else the file opened here under the same lock, until `close`."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._here: Any = None
        self._runner: asyncio.Runner | None = None

    def __enter__(self) -> "Asked":
        return self

    def __call__(self, verb: str, **arguments: Any) -> Any:
        if self._runner is None:
            try:
                return box.ask(self._config, verb, **arguments)
            except NoDaemon:
                self._open()
        if verb == "buffer-forget" and box.names(self._config) is None:
            raise CitygateError(f"{self._config} cannot be read, so nobody knows who is gone; see citygate check")
        assert self._runner is not None
        return self._runner.run(self._verbs[verb](arguments))

    def _open(self) -> None:
        path = box.log_place(self._config)
        shut = is_closed(path.parent) or (os.path.exists(path) and not os.access(path, os.W_OK, effective_ids=True))
        if shut:
            said = f"no daemon runs, and user {user()} may not work on {path}"
            raise Refused(said, UNREACHABLE, {"remedy": f"`sudo citygate …`, or {START}, then again"})
        if not os.path.exists(path):
            raise NoDaemon(f"no daemon runs, and there is no log at {path}")
        from gateway.clock import SystemClock
        from gateway.harmonise.devices import MARK
        from gateway.log import console
        from gateway.log.log import Consumer, Log, LogSettings
        from gateway.log.recipes import looking

        self._runner = asyncio.Runner()
        size_bytes = max(10**9, 2 * path.stat().st_size)
        settings = LogSettings(path, max_size_bytes=size_bytes, max_age_s=1e9, unconfirmed="mark", leave_foreign=True)

        consumers = devices = None
        if (names := box.names(self._config)) is not None:
            consumers = [Consumer(name, was=was) for name, was in names.brokers.items()]
            there = {*names.devices, *names.devices.values()}  # those too that a start of the daemon will take over
            devices = looking(there, set(names.brokers), lambda device: device.startswith(MARK))

        async def opened() -> Log:
            return await Log.open(settings, clock=SystemClock(), consumers=consumers, devices=devices)

        self._here = self._runner.run(opened())
        self._verbs = console.verbs(self._here)

    def __exit__(self, *_: object) -> None:
        if self._runner is not None:
            if self._here is not None:
                self._runner.run(self._here.close())
            self._runner.close()


def status(given: argparse.Namespace) -> int:
    """`citygate buffer status`."""
    with Asked(given.config) as ask:
        found: dict[str, Any] = ask("buffer-status")
    if given.json:
        say_json(found)
    else:
        say("\n".join(_status_text(found)))
    return FINE if found["state"] == "ok" else PROBLEM


def _status_text(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['path']}: {found['state']} {printable(found['reason'])}".rstrip()
    if found["remedy"]:
        yield f"    since {found['since']} → {found['remedy']}"
    yield f"{_size(found['size_bytes'])} of {_size(found['max_size_bytes'])}, {found['head_readings']} readings in memory"
    yield f"held: {found['held']['later']} for later, {found['held']['dead']} dead letters; given up: {_lost(found)}"
    yield from table(
        [["broker", "owed", "oldest unsent"]]
        + [[name, str(c["backlog"]), str(c["oldest_unsent_at"] or "")] for name, c in found["consumers"].items()],
        right=frozenset({1}),
    )
    yield from gone_lines(found)
    for gap in found["newest_gaps"]:
        yield f"gap: {gap['readings']} readings, {gap['reason']}, {gap['from'] or '?'} to {gap['to'] or '?'}, noted {gap['at']}"


def _lost(found: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in found["lost"].items())
    return f"{found['dropped']} readings" + (f" ({reasons})" if reasons else "")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def held_list(given: argparse.Namespace) -> int:
    """`citygate buffer held list`."""
    with Asked(given.config) as ask:
        found: list[dict[str, Any]] = ask("buffer-held-list", **_chosen(given))
    if given.json:
        say_json(found)
        return FINE
    names = ("id", "broker", "entity", "state", "reason", "readings", "tries", "next_try_at")
    for line in table([[*names]] + [[str("" if row[name] is None else row[name]) for name in names] for row in found]):
        say(line)
    return FINE


def held_show(given: argparse.Namespace) -> int:
    """`citygate buffer held show ID`."""
    with Asked(given.config) as ask:
        found: dict[str, Any] = ask("buffer-held-show", id=given.id)
    if given.json:
        say_json(found)
        return FINE
    content = found.pop("content")
    for name, value in found.items():
        say(f"{name}: {printable(str('' if value is None else value))}")
    for line in table([[row["observed_at"], row["point"], str(row["value"])] for row in content], indent="  "):
        say(line)
    return FINE


def requeue(given: argparse.Namespace) -> int:
    """`citygate buffer requeue`."""
    return _simple(given, "buffer-requeue", **_chosen(given))


def purge(given: argparse.Namespace) -> int:
    """`citygate buffer purge`."""
    return _simple(given, "buffer-purge", **_chosen(given))


def forget(given: argparse.Namespace) -> int:
    """`citygate buffer forget BROKER`, or `--device DEVICE`."""
    box.refuse_another(given.config)
    name, which = (given.device, "device") if given.device is not None else (given.broker, "consumer")
    with Asked(given.config) as ask:
        its = ask("buffer-status")["gone" if which == "consumer" else "gone_devices"].get(name)
        if its is not None and not given.yes and not _sure(name, its):
            return PROBLEM
        found: dict[str, Any] = ask("buffer-forget", **{which: name})
    if given.json:
        say_json(found)
    else:
        say(f"{printable(found['forgotten'])} is forgotten; given up: {_owed(found['readings'], found['held'])}")
    return FINE


def _owed(readings: int | None, held: int) -> str:
    known = "readings (being counted)" if readings is None else counted(readings, "reading")
    return known + (f" and {counted(held, 'held piece')}" if held else "")


def _sure(name: str, its: Mapping[str, Any]) -> bool:
    """Asked at a terminal; a script knows what it does."""
    what = f"{_owed(its['backlog'], its['later'] + its['dead'])} of {printable(name)}"
    if not sys.stdin.isatty():
        return True
    complain(f"This gives up {what}, for good. Type yes to go on: ")
    if sys.stdin.readline().strip() == "yes":
        return True
    complain("nothing was changed")
    return False


def _simple(given: argparse.Namespace, verb: str, **arguments: Any) -> int:
    box.refuse_another(given.config)
    with Asked(given.config) as ask:
        found: dict[str, Any] = ask(verb, **arguments)
    if given.json:
        say_json(found)
    else:
        say(", ".join(f"{printable(str(value))} {name}" for name, value in found.items()))
    return FINE


def export(given: argparse.Namespace) -> int:
    """`citygate buffer export`."""
    asked = {"device": given.device, "point": given.point, "from": given.first, "to": given.last}
    arguments = {name: value for name, value in asked.items() if value}
    writer = csv.DictWriter(sys.stdout, COLUMNS) if given.csv else None
    if writer is not None:
        writer.writeheader()
    with Asked(given.config) as ask:
        for page in _pages(ask, "buffer-export", arguments):
            for row in page["rows"]:
                if writer is None:
                    say_json(row, line=True)
                else:
                    writer.writerow(mended(row))
    return FINE


def verify(given: argparse.Namespace) -> int:
    """`citygate buffer verify`."""
    segments = readings = 0
    damaged: list[str] = []
    with Asked(given.config) as ask:
        for page in _pages(ask, "buffer-verify", {}):
            segments += page["segments"]
            readings += page["readings"]
            damaged += page["damaged"]
    if given.json:
        say_json({"ok": not damaged, "segments": segments, "readings": readings, "damaged": damaged})
    else:
        say(f"{segments} segments with {readings} readings are sound; {len(damaged)} problems")
        for text in damaged:
            say(f"  {printable(text)}")
    return PROBLEM if damaged else FINE


def _pages(ask: Asked, verb: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All pages of a long answer, with progress on a terminal."""
    after = -1
    on_screen = sys.stderr.isatty() and not sys.stdout.isatty()
    while True:
        page: dict[str, Any] = ask(verb, **arguments, after=after)
        yield page
        if page["next"] is None:
            break
        if page["next"] <= after:
            raise CitygateError(f"{verb} does not go on after {after}")
        after = page["next"]
        if on_screen:
            sys.stderr.write(f"\r{page['done']} of {page['total']} readings ")
    if on_screen:
        complain("")
