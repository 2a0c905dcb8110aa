"""Verb doctor: what on this box, around its config, would keep the gateway from doing its work; reads only."""

import argparse
import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway.cli import box
from gateway.cli.at_daemon import AtDaemon
from gateway.cli.status_text import counted
from gateway.cli.terminal import colour, printable, say, say_json
from gateway.cli.verbs import Verbs
from gateway.http.outcome import FINE, PROBLEM, UNREACHABLE, NoDaemon, Refused
from gateway.http.who import user
from gateway.reach import REACH_WITHIN_S, SKEW_WARN_S, Finding, State, lacking_secret, look_at, reach
from gateway.sdk.errors import ConfigError
from gateway.sdk.libraries import lacking

if TYPE_CHECKING:
    from gateway.plan import LinkPlan, Plan

LOOK_WITHIN_S = 90.0  # at all brokers, by the daemon
FREE_WARN_BYTES = 200_000_000
SERIAL_GROUP = "dialout"

DAEMON_SAYS: dict[str, State] = {"ok": "ok", "paused": "ok", "bad": "warn"}  # of a link that it has open
SIGNS: dict[State, tuple[str, str]] = {
    "ok": ("●", "green"),
    "warn": ("!", "yellow"),
    "bad": ("✗", "red"),
    "unreachable": ("✗", "red"),
}


def add_verbs(verbs: Verbs) -> None:
    """doctor."""
    verbs.add(
        "doctor",
        doctor,
        help="clock, disk, ports, names, certificates, brokers: what would keep the box from working",
        about="Look at this box and at what its config names, and say what would keep the gateway from working and what to do. "
        "Reads only: opens no port, sends no reading. Ends with 1 when something on the box is wrong, with 4 when only "
        "something elsewhere cannot be reached.",
        examples=("citygate doctor", "citygate doctor --json | jq '.[] | select(.state != \"ok\")'"),
    )


def doctor(given: argparse.Namespace) -> int:
    """`citygate doctor`."""
    found = asyncio.run(_gather(given.config, quiet=given.json))
    if given.json:
        say_json([asdict(finding) for finding in found])
    states = {finding.state for finding in found}
    return PROBLEM if "bad" in states else UNREACHABLE if "unreachable" in states else FINE


def findings(config: Path) -> list[dict[str, str]]:
    """All that is found, as `--json` prints it."""
    return [asdict(finding) for finding in asyncio.run(_gather(config, quiet=True))]


async def _gather(config: Path, *, quiet: bool) -> list[Finding]:
    found = []
    async for finding in look(config):
        found.append(finding)
        if not quiet:
            for line in lines_of(finding):
                say(line)
    return found


def lines_of(finding: Finding) -> list[str]:
    """A finding for people."""
    sign, name = SIGNS[finding.state]
    lines = [f"{colour(sign, name)} {finding.check:12} {printable(finding.message)}"]
    return [*lines, f"{'':14} → {printable(finding.remedy)}"] if finding.remedy else lines


async def look(config: Path) -> AsyncIterator[Finding]:
    """All checks, those of the box first."""
    at_daemon = AtDaemon(config)
    plan, finding = await asyncio.to_thread(_config, config, at_daemon)
    yield finding
    running, status, of_daemon = await _daemon(config)
    yield _clock(plan, status.get("clock", {}))
    for finding in _power():
        yield finding
    yield of_daemon
    if plan is None:
        return
    for finding in await asyncio.to_thread(_secrets, plan, at_daemon):
        yield finding
    buffer = status.get("log", {}).get("path") or plan.config.buffer.path
    for finding in _disk(Path(buffer), plan.config.buffer.max_size_bytes, ours=not running):
        yield finding
    links = status.get("links", {})
    for link in plan.links.values():
        async for finding in _link(link, running=running, told=links.get(link.name)):
            yield finding
    async for finding in _brokers(config, plan, by_daemon=bool(status)):
        yield finding


def _config(config: Path, at_daemon: AtDaemon) -> tuple["Plan | None", Finding]:
    try:
        plan = box.make_plan(config, held=at_daemon.held)
    except ConfigError as error:
        wrong = [problem for problem in error.problems if problem.severity == "error"]
        finding = Finding(
            "config",
            "bad",
            f"{config}: {counted(len(wrong), 'error')}",
            "`citygate check` lists each with its place",
        )
        if any(problem.code != "missing-secret" for problem in wrong):
            return None, finding
        return box.make_plan(config, held=box.somebody_has_it), finding  # all the rest can be looked at
    sizes = ((len(plan.links), "link"), (len(plan.devices), "device"), (len(plan.brokers), "broker"))
    said = f"{config}: {', '.join(counted(count, noun) for count, noun in sizes)}"
    if plan.warnings:
        warnings = counted(len(plan.warnings), "warning")
        return plan, Finding("config", "warn", f"{said}, {warnings}", "`citygate check` lists them with their places")
    return plan, Finding("config", "ok", said)


def _secrets(plan: "Plan", at_daemon: AtDaemon) -> list[Finding]:
    """Those that the daemon alone has, or has otherwise than they are now."""
    return [
        Finding("secrets", "ok" if its["state"] == "ok" else "warn", f"{name}: {its['said']}")
        for name, its in at_daemon.secrets_of(plan).items()
        if its["said"]
    ]


async def _daemon(config: Path) -> tuple[bool, Mapping[str, Any], Finding]:
    """Whether one runs, its status when it is that of this config, and what it says of itself."""
    from gateway.http.control import ask

    theirs: list[Path] = []
    try:
        status = await ask(box.control_socket(config), "status", timeout_s=REACH_WITHIN_S, heard=theirs.append)
    except NoDaemon:
        start = "`systemctl start citygate`, or `citygate run` by hand"
        return False, {}, Finding("daemon", "warn", "does not run", start)
    except Refused as error:
        return True, {}, Finding("daemon", "bad", str(error), error.remedy)
    for file in theirs:
        if box.is_other(config, file):
            said = f"runs {file}, not {box.main_file_of(config)}: its word on that does not count here"
            return True, {}, Finding("daemon", "warn", said, f"`citygate doctor -c {file}` asks it")
    reasons = status["gateway"].get("ready") or []
    if reasons:
        said = f"runs, but: {'; '.join(reasons[:3])}"
        return True, status, Finding("daemon", "warn", said, "`citygate status` has the rest")
    return True, status, Finding("daemon", "ok", f"runs, version {status['gateway'].get('version', '')}, all is well")


async def _brokers(config: Path, plan: "Plan", *, by_daemon: bool) -> AsyncIterator[Finding]:
    """Looked at by the daemon, where there is one: it has the logins, and its way out is the one that counts."""
    from gateway.http.control import ask

    told: dict[str, list[dict[str, Any]]] = {}
    if by_daemon and plan.brokers:
        try:
            told = await ask(box.control_socket(config), "reach", timeout_s=LOOK_WITHIN_S)
        except (NoDaemon, Refused) as error:
            yield Finding("daemon", "warn", f"did not look at the brokers: {error}", "looked at from here instead")
    for name, broker in plan.brokers.items():
        if name in told:
            for row in told[name]:
                yield Finding(**row)
            continue
        async for finding in look_at(name, broker, lacking_secret(plan, name)):
            yield finding


def _clock(plan: "Plan | None", told: Mapping[str, Any]) -> Finding:
    """The daemon may have a source of its own, and knows by how much the system's clock is wrong."""
    from gateway.clock import BUILT_AT, rtc_s, synchronised

    now = datetime.now(UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if told.get("state") == "ok":
        correction_s = told.get("correction_s") or 0.0
        way = "behind" if correction_s > 0 else "ahead"
        differs = f"; the system's is {abs(correction_s):.0f} s {way}" if abs(correction_s) > SKEW_WARN_S else ""
        now += timedelta(seconds=correction_s)
        return Finding(
            "clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC, as the daemon has it from {told.get('source')}{differs}"
        )
    if now < BUILT_AT:
        return Finding("clock", "bad", f"{shown} is before this software was made", "set it; start a time service")
    if plan is not None and plan.config.clock.trust == "system":
        return Finding("clock", "ok", f"{shown}, taken at the system's word (clock: {{trust: system}})")
    if synchronised():
        return Finding("clock", "ok", f"{shown}, kept by the kernel's time service")
    remedy = "`timedatectl set-ntp true`, a GNSS, or a hardware clock; until then readings are held back"
    if rtc_s() is not None:
        return Finding("clock", "warn", f"{shown}, from the hardware clock; no time service", remedy.partition(";")[0])
    return Finding("clock", "bad", f"{shown}, but nobody confirms it", remedy)


def _power(root: Path = Path("/")) -> Iterator[Finding]:
    """Only where the board tells: bits 0 and 16 of the Raspberry Pi's throttle word are under-voltage now and since boot."""
    try:
        word = int((root / "sys/devices/platform/soc/soc:firmware/get_throttled").read_text(), 16)
    except (OSError, ValueError):
        return
    if word & 0x1:
        yield Finding(
            "power", "bad", "the supply voltage is too low now", "a stronger supply, a shorter or thicker cable"
        )
    elif word & 0x10000:
        yield Finding(
            "power", "warn", "the supply voltage was too low since boot", "a stronger supply, a shorter cable"
        )
    else:
        yield Finding("power", "ok", "no under-voltage since boot")


def _disk(buffer: Path, max_size_bytes: int, root: Path = Path("/"), *, ours: bool = True) -> Iterator[Finding]:
    folder = buffer.parent
    if not os.path.isdir(folder):
        yield Finding(
            "disk", "bad", f"{folder} does not exist", f"`sudo install -d -o citygate -g citygate -m 750 {folder}`"
        )
        return
    if ours and not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "disk", "warn", f"{folder} is not writable for user {user()}", "fine when the daemon runs as another user"
        )
    usage = shutil.disk_usage(folder)
    have = buffer.stat().st_size if _exists(buffer) else 0
    said = f"{folder}: {usage.free / 1e9:.1f} GB free"
    kind, device = _mount(folder, root)
    if kind in ("tmpfs", "ramfs", "overlay"):
        yield Finding(
            "disk",
            "warn",
            f"{folder} is on {kind}: its content may not survive a power cut",
            "put buffer.path on a disk or card",
        )
    if usage.free + have < min(max_size_bytes, usage.total):
        yield Finding(
            "disk",
            "warn",
            f"{said}, less than buffer.max_size ({max_size_bytes / 1e9:.1f} GB)",
            "lower buffer.max_size or make room",
        )
    elif usage.free < FREE_WARN_BYTES:
        yield Finding("disk", "bad", said, "make room")
    else:
        yield Finding("disk", "ok", said)
    yield from _wear(device, root)


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.exists()
    return False


def _mount(folder: Path, root: Path) -> tuple[str, str]:
    """(file system, device) that the folder is on, by the longest mount point above it."""
    best = ("", "", "")
    with contextlib.suppress(OSError):
        for line in (root / "proc/mounts").read_text().splitlines():
            device, point, kind, *_ = line.split()
            if folder.resolve().is_relative_to(point) and len(point) >= len(best[0]):
                best = (point, kind, device)
    return best[1], best[2]


def _wear(device: str, root: Path) -> Iterator[Finding]:
    """eMMC tells how worn it is (JEDEC 84-B51, EXT_CSD 268 and 269, in steps of 10 %); SD cards do not."""
    name = Path(device).name.partition("p")[0]
    try:
        words = (root / "sys/block" / name / "device/life_time").read_text().split()
        worst = max(int(word, 16) for word in words)
    except (OSError, ValueError):
        return
    if worst >= 0x0A:
        yield Finding("wear", "bad", f"{name} is past 90 % of its life", "replace it; take its buffer.db along")
    elif worst >= 0x08:
        yield Finding(
            "wear", "warn", f"{name} has used {(worst - 1) * 10} to {worst * 10} % of its life", "plan a replacement"
        )
    elif worst:
        yield Finding("wear", "ok", f"{name} has used at most {worst * 10} % of its life")


async def _link(link: "LinkPlan", *, running: bool, told: Mapping[str, Any] | None = None) -> AsyncIterator[Finding]:
    """One link; what the daemon tells of one at work counts more than what another user sees from outside."""
    if link.config is None:
        yield Finding(link.name, "bad", link.fault, link.remedy)
        return
    fault, remedy = lacking(link.config)
    if fault:
        yield Finding(link.name, "bad", fault, remedy)
        return
    host, port = getattr(link.config, "host", None), getattr(link.config, "port", None)
    url = getattr(link.config, "url", None)
    parts = urlsplit(str(url or ""))
    if told is not None and told.get("state") in DAEMON_SAYS:
        where = f"{parts.scheme}://{parts.hostname}" if url else f"{host}:{port}" if host else str(port or link.name)
        said = f"{where} is in use by the daemon, link {told['state']}"
        reason = f": {told['reason']}" if told.get("reason") else ""
        yield Finding(link.name, DAEMON_SAYS[told["state"]], said + reason, told.get("remedy") or "")
    elif url:
        yield await reach(link.name, parts.hostname or "", parts.port or {"mqtts": 8883}.get(parts.scheme, 1883))
    elif host:
        yield await reach(link.name, str(host), int(port or 502))
    elif port:
        for finding in serial_port(link.name, Path(str(port)), running=running):
            yield finding


def serial_port(name: str, port: Path, *, running: bool) -> Iterator[Finding]:
    """A serial port by its path: there, ours, free."""
    if not port.exists():
        there = sorted(str(path) for path in Path("/dev/serial/by-id").glob("*")) or ["none"]
        yield Finding(
            name, "bad", f"{port} does not exist", f"plug it in, or correct the path; there are: {', '.join(there)}"
        )
        return
    if not port.is_char_device():
        yield Finding(name, "bad", f"{port} is not a serial port", "correct the path")
        return
    if not os.access(port, os.R_OK | os.W_OK):
        yield Finding(
            name,
            "bad",
            f"{port}: no permission for user {user()}",
            f"`sudo usermod -aG {SERIAL_GROUP} {user()}`, then log in again",
        )
        return
    holders = sorted({holder for holder in _holders(port) if holder != os.getpid()})
    if holders and not running:
        names = ", ".join(f"{_comm(pid)} ({pid})" for pid in holders)
        yield Finding(
            name,
            "bad",
            f"{port} is held by {names}",
            "stop it; ModemManager: `sudo systemctl disable --now ModemManager`",
        )
    else:
        yield Finding(name, "ok", f"{port}{' is in use by the daemon' if holders else ' can be opened'}")


def _holders(port: Path) -> Iterator[int]:
    """Processes that have the port open, as far as we may look."""
    target = os.path.realpath(port)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.path.realpath(link) == target for link in (process / "fd").iterdir()):
                yield int(process.name)


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "?"
