"""Verb doctor: what on this box, around its config, would keep the gateway from doing its work; reads only."""

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from gateway.cli import box
from gateway.cli.status_text import counted
from gateway.cli.terminal import colour, printable, say, say_json
from gateway.cli.verbs import Verbs
from gateway.http.outcome import FINE, PROBLEM, UNREACHABLE, NoDaemon, Refused
from gateway.sdk.errors import BrokerUnavailable, ConfigError
from gateway.sdk.libraries import lacking

if TYPE_CHECKING:
    from gateway.config.model import BrokerConfig
    from gateway.forward.broker import Probe
    from gateway.forward.ngsild import NgsiLdBroker
    from gateway.plan import BrokerPlan, LinkPlan, Plan

REACH_WITHIN_S = 5.0
PROBE_WITHIN_S = 20.0
CERTIFICATE_WARN_D = 21
SKEW_WARN_S = 5.0
FREE_WARN_BYTES = 200_000_000
SERIAL_GROUP = "dialout"

State = Literal["ok", "warn", "bad", "unreachable"]
SIGNS: dict[State, tuple[str, str]] = {
    "ok": ("●", "green"),
    "warn": ("!", "yellow"),
    "bad": ("✗", "red"),
    "unreachable": ("✗", "red"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: ok, warn (works, but look), bad (on this box), unreachable (elsewhere)."""

    check: str
    state: State
    message: str
    remedy: str = ""


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
    plan, finding = _config(config)
    yield finding
    yield _clock(plan)
    for finding in _power():
        yield finding
    running, finding = await _daemon(config)
    yield finding
    if plan is None:
        return
    for finding in _disk(Path(plan.config.buffer.path), plan.config.buffer.max_size_bytes):
        yield finding
    for link in plan.links.values():
        async for finding in _link(link, running=running):
            yield finding
    for name, broker in plan.brokers.items():
        async for finding in _broker(name, broker):
            yield finding


def _config(config: Path) -> tuple["Plan | None", Finding]:

    try:
        plan = box.make_plan(config)
    except ConfigError as error:
        errors = counted(sum(problem.severity == "error" for problem in error.problems), "error")
        return None, Finding("config", "bad", f"{config}: {errors}", "`citygate check` lists each with its place")
    sizes = ((len(plan.links), "link"), (len(plan.devices), "device"), (len(plan.brokers), "broker"))
    said = f"{config}: {', '.join(counted(count, noun) for count, noun in sizes)}"
    if plan.warnings:
        warnings = counted(len(plan.warnings), "warning")
        return plan, Finding("config", "warn", f"{said}, {warnings}", "`citygate check` lists them with their places")
    return plan, Finding("config", "ok", said)


async def _daemon(config: Path) -> tuple[bool, Finding]:
    """Whether it runs, and what it says of itself."""
    from gateway.http.control import ask

    try:
        status = await ask(box.control_socket(config), "status", timeout_s=REACH_WITHIN_S)
    except NoDaemon:
        start = "`systemctl start citygate`, or `citygate run` by hand"
        return False, Finding("daemon", "warn", "does not run", start)
    except Refused as error:
        return True, Finding("daemon", "bad", str(error))
    reasons = status["gateway"].get("ready") or []
    if reasons:
        return True, Finding("daemon", "warn", f"runs, but: {'; '.join(reasons[:3])}", "`citygate status` has the rest")
    return True, Finding("daemon", "ok", f"runs, version {status['gateway'].get('version', '')}, all is well")


def _clock(plan: "Plan | None") -> Finding:
    from gateway.clock import BUILT_AT, rtc_s, synchronised

    now = datetime.now(UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
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


def _disk(buffer: Path, max_size_bytes: int, root: Path = Path("/")) -> Iterator[Finding]:
    folder = buffer.parent
    if not os.path.isdir(folder):
        yield Finding(
            "disk", "bad", f"{folder} does not exist", f"`sudo install -d -o citygate -g citygate -m 750 {folder}`"
        )
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "disk", "warn", f"{folder} is not writable for user {_user()}", "fine when the daemon runs as another user"
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


async def _link(link: "LinkPlan", *, running: bool) -> AsyncIterator[Finding]:
    if link.config is None:
        yield Finding(link.name, "bad", link.fault, link.remedy)
        return
    fault, remedy = lacking(link.config)
    if fault:
        yield Finding(link.name, "bad", fault, remedy)
        return
    host, port = getattr(link.config, "host", None), getattr(link.config, "port", None)
    url = getattr(link.config, "url", None)
    if url:
        parts = urlsplit(str(url))
        yield await _reach(link.name, parts.hostname or "", parts.port or {"mqtts": 8883}.get(parts.scheme, 1883))
    elif host:
        yield await _reach(link.name, str(host), int(port or 502))
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
            f"{port}: no permission for user {_user()}",
            f"`sudo usermod -aG {SERIAL_GROUP} {_user()}`, then log in again",
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


def _user() -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


async def _reach(name: str, host: str, port: int) -> Finding:
    """A name that resolves and a port that takes a connection."""
    try:
        async with asyncio.timeout(REACH_WITHIN_S):
            _, writer = await asyncio.open_connection(host, port)
    except socket.gaierror as error:
        return Finding(
            name, "unreachable", f"{host}: {error.strerror}", "is the name right, does the box have a DNS server?"
        )
    except TimeoutError:
        return Finding(
            name,
            "unreachable",
            f"{host}:{port} does not answer within {REACH_WITHIN_S:g} s",
            "network, firewall, address?",
        )
    except OSError as error:
        return Finding(
            name,
            "unreachable",
            f"{host}:{port}: {os.strerror(error.errno) if error.errno else error}",
            "does something listen there?",
        )
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Finding(name, "ok", f"{host}:{port} takes connections")


async def _broker(name: str, plan: "BrokerPlan") -> AsyncIterator[Finding]:
    config = plan.config
    target = urlsplit(config.proxy or config.url)
    port = target.port or (443 if target.scheme == "https" else 80)
    reached = await _reach(name, target.hostname or "", port)
    yield reached
    if reached.state != "ok":
        return
    if target.scheme == "https" and not config.proxy:
        certificate = await _certificate(name, target.hostname or "", port, config)
        yield certificate
        if certificate.state == "unreachable":
            return
    async for finding in _probed(name, plan):
        yield finding


async def _certificate(name: str, host: str, port: int, config: "BrokerConfig | None" = None) -> Finding:
    """The broker's certificate as this box sees it: trusted, and for how long."""
    from gateway.forward.auth import Tls

    tls = config.tls if config is not None else None
    files = Tls(tls.ca or "", tls.certificate or "", tls.key or "") if tls is not None else Tls()
    try:
        async with asyncio.timeout(REACH_WITHIN_S):
            _, writer = await asyncio.open_connection(host, port, ssl=files.context(), server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        remedy = "the clock, the CA certificates of this box (or tls.ca), or the broker's certificate"
        return Finding(name, "unreachable", f"certificate of {host}: {error.verify_message}", remedy)
    except (OSError, TimeoutError, BrokerUnavailable) as error:
        return Finding(name, "unreachable", f"TLS with {host}: {error}", "is this an https port?")
    described = writer.get_extra_info("peercert") or {}
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(described["notAfter"])), UTC)
    left_d = (ends - datetime.now(UTC)).days
    said = f"certificate of {host} is valid until {ends:%Y-%m-%d} ({left_d} days)"
    return Finding(name, "ok", said) if left_d >= CERTIFICATE_WARN_D else Finding(name, "warn", said, "tell the city")


NAMES = {"scorpio": "Scorpio", "stellio": "Stellio", "orion-ld": "Orion-LD", "orion": "Orion"}


async def _probed(name: str, plan: "BrokerPlan") -> AsyncIterator[Finding]:
    """Logged in as the daemon does, reading alone: who answers, what it can do, how far its clock is from ours."""
    from gateway.forward.broker import LoginFailed
    from gateway.forward.ngsild import broker_of
    from gateway.forward.transport import URL_REMEDY

    broker = broker_of(plan.config)
    try:
        async with asyncio.timeout(PROBE_WITHIN_S):
            probe = await broker.probe()
            contexts = [finding async for finding in _contexts(name, plan, broker)]
    except LoginFailed as error:
        yield Finding(name, "unreachable", f"login: {error}", f"check brokers.{name}.auth and its secret")
        return
    except (BrokerUnavailable, TimeoutError) as error:
        remedy = getattr(error, "remedy", "") or URL_REMEDY
        yield Finding(name, "unreachable", str(error) or f"no answer within {PROBE_WITHIN_S:g} s", remedy)
        return
    finally:
        await broker.close()
    product = f"{NAMES.get(probe.product, probe.product)} {probe.version}".strip()
    read = "entities may be read" if probe.readable else "entities may not be read"
    yield Finding(name, "ok", f"{product or 'a broker that does not tell its name'} answers as NGSI-LD; {read}")
    yield Finding(name, "ok", f"history: {_history(plan.config, probe)}")
    for finding in contexts:
        yield finding
    skew_s = (probe.date - datetime.now(UTC)).total_seconds() if probe.date else 0.0
    if abs(skew_s) > SKEW_WARN_S:
        yield Finding(
            name, "warn", f"its clock is {skew_s:+.0f} s from ours", "one of the two is wrong; see clock above"
        )


def _history(config: "BrokerConfig", probe: "Probe") -> str:
    """How the past will be sent."""
    if config.history != "auto":
        return f"{config.history}, as history: says"
    if probe.temporal is None:
        return f"shows with the first write, which makes the tenant {config.tenant or ''}".rstrip()
    if not probe.temporal:
        return "in-order, as there is no temporal API"
    product = probe.product if config.preset == "auto" else config.preset
    records = {
        "scorpio": "it records by itself, and what it forgot is seen and sent again",
        "stellio": "it records by itself",
    }
    return f"a temporal API; {records.get(product, 'whether it records by itself is found out at work')}"


async def _contexts(name: str, plan: "BrokerPlan", broker: "NgsiLdBroker") -> AsyncIterator[Finding]:
    """Whether the broker can fetch the contexts that this box sends with: a read that finds nothing needs them too."""
    from gateway.forward.contexts import REMEDY

    known = broker.traffic.contexts
    used = sorted({table.context for tables in plan.mappings.values() for table in tables})
    served: dict[str, bool | None] = {}
    for context in used:
        served[context] = None
        with contextlib.suppress(BrokerUnavailable):
            served[context] = await known.ask(context) if known.ask is not None else None
        if served[context] is False:
            yield Finding(name, "unreachable", f"cannot fetch the context {known.address(context)}", REMEDY)
    way = f"contexts: {known.prefix}" if known.prefix else "where they are published"
    told = counted(len(used), "context")
    if used and all(served.values()):
        yield Finding(name, "ok", f"fetches {told} ({way})")
    elif used and False not in served.values():
        yield Finding(name, "ok", f"is to fetch {told} ({way}); whether it can shows with the first write")
