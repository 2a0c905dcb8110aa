"""Whether a broker can be reached, who answers there and what it can do: reads only. `doctor` looks, or the daemon for it."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from gateway.sdk.errors import BrokerUnavailable

if TYPE_CHECKING:
    from gateway.config.model import BrokerConfig
    from gateway.forward.broker import Probe
    from gateway.forward.ngsild import NgsiLdBroker
    from gateway.plan import BrokerPlan, Plan

REACH_WITHIN_S = 5.0
PROBE_WITHIN_S = 20.0
CERTIFICATE_WARN_D = 21
SKEW_WARN_S = 5.0

State = Literal["ok", "warn", "bad", "unreachable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: ok, warn (works, but look), bad (on this box), unreachable (elsewhere)."""

    check: str
    state: State
    message: str
    remedy: str = ""


async def reach(name: str, host: str, port: int) -> Finding:
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


async def look_at(name: str, plan: "BrokerPlan", lacks: str = "") -> AsyncIterator[Finding]:
    """All of one broker.

    Args:
        lacks: name of a secret of its that is not known here: then nobody logs in.
    """
    config = plan.config
    target = urlsplit(config.proxy or config.url)
    port = target.port or (443 if target.scheme == "https" else 80)
    reached = await reach(name, target.hostname or "", port)
    yield reached
    if reached.state != "ok":
        return
    if target.scheme == "https" and not config.proxy:
        shown = await certificate(name, target.hostname or "", port, config)
        yield shown
        if shown.state == "unreachable":
            return
    if lacks:
        said = f"login not tried: its secret {lacks} is not to be had"
        yield Finding(name, "warn", said, "see what is said above of config and daemon")
        return
    async for finding in _probed(name, plan):
        yield finding


def lacking_secret(plan: "Plan", broker: str) -> str:
    """The name of a secret of this broker whose text is not known here; "" when there is none."""
    return next((name for path, name in plan.untold.items() if path[:2] == ("brokers", broker)), "")


async def certificate(name: str, host: str, port: int, config: "BrokerConfig | None" = None) -> Finding:
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
    told = f"{len(used)} context{'' if len(used) == 1 else 's'}"
    if used and all(served.values()):
        yield Finding(name, "ok", f"fetches {told} ({way})")
    elif used and False not in served.values():
        yield Finding(name, "ok", f"is to fetch {told} ({way}); whether it can shows with the first write")
