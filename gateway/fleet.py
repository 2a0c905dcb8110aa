"""Many boxes at once: what two of them must not both have. Pure."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from gateway.config.explain import locate
from gateway.config.loader import Loaded, LoadedLink
from gateway.config.model import BrokerConfig
from gateway.config.tree import find
from gateway.harmonise.devices import MARK
from gateway.plan import BrokerPlan, Plan
from gateway.sdk.config import Claim, same_host
from gateway.sdk.errors import Problem

KeyPath = tuple[str | int, ...]
_DEFAULT_PORTS = {"http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883}
_AT_HOST = re.compile(r"(?:at|of) (\S+):[0-9]+")
_LOCAL = (".local", ".lan", ".home", ".internal", ".localdomain")


class Holding(NamedTuple):
    """Something that one box of a fleet has.

    Attributes:
        kind: what it is, with the severity when two have it; see `_KINDS`.
        what: by which two are the same.
        shown: as it is called in a message.
        problem: where it stands.
        parts: of an entity, the attributes that this box measures.
    """

    kind: str
    what: tuple[str, ...]
    shown: str
    problem: Problem
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Box:
    """One box of a fleet, as far as its files could be read.

    Attributes:
        name: as people call it: its folder or file.
        files: main file, fragments, bases.
        gateway, city: its id and city; "" when there is none.
        devices: how many it has.
    """

    name: str
    files: tuple[Path, ...]
    gateway: str
    city: str
    devices: int
    problems: tuple[Problem, ...]
    holdings: tuple[Holding, ...]


def holdings(loaded: Loaded, plan: Plan | None) -> tuple[Holding, ...]:
    """What of a box no other may have; of one with errors (`plan` None) what can be said all the same."""

    def at(path: KeyPath) -> Problem:
        return locate(Problem("", path, ""), loaded.root)

    return (*_of_gateway(loaded, at), *_of_links(loaded, at), *(_of_brokers(plan, loaded, at) if plan else ()))


At = Callable[[KeyPath], Problem]


def _of_gateway(loaded: Loaded, at: At) -> Iterator[Holding]:
    gateway = loaded.gateway
    if gateway is None:
        return
    yield Holding("gateway", (gateway.city, gateway.id), f"{gateway.id} in {gateway.city}", at(("gateway", "id")))
    yield Holding("name", (gateway.id,), gateway.id, at(("gateway", "id")))
    if gateway.location is not None:
        place = tuple(f"{its:.6f}" for its in gateway.location)
        yield Holding("location", place, f"{list(gateway.location)}", at(("gateway", "location")))


def _of_links(loaded: Loaded, at: At) -> Iterator[Holding]:
    for name, link in loaded.links.items():
        for claim in _claims(link):
            if claim.kind in ("session", "device") and _is_everybodys(claim.name) and claim.path[-1] != "address":
                yield Holding(claim.kind, (claim.name, claim.also), claim.name, at(("links", name, *claim.path)))
        url, user = (str(getattr(link.config, key, "") or "") for key in ("url", "username"))
        server = _server(url)
        if user and server and _is_everybodys(f"at {server}"):
            yield Holding("login", (server, user), f"{user} at {server}", at(("links", name, "username")))


def _claims(link: LoadedLink) -> list[Claim]:
    try:
        return list(link.config.claims()) if link.config is not None else []
    except Exception:  # noqa: BLE001  a fault of the driver, which the check of the box tells
        return []


def _of_brokers(plan: Plan, loaded: Loaded, at: At) -> Iterator[Holding]:
    for name, broker in plan.brokers.items():
        server = _server(broker.config.url)
        if not _is_everybodys(f"at {server}", private=True):
            continue
        for key, user in _users(broker.config):
            yield Holding("login", (server, user), f"{user} at {server}", at(("brokers", name, "auth", *key)))
        yield from _entities(broker, server, plan, loaded, at)


def _entities(broker: BrokerPlan, server: str, plan: Plan, loaded: Loaded, at: At) -> Iterator[Holding]:
    where = (server, urlsplit(broker.config.url).path.rstrip("/"), broker.config.tenant or "")
    for device, tables in broker.mappings.items():
        if device.startswith(MARK):  # it has the gateway's id, or the pattern that its sensors' entities have
            continue
        path: KeyPath = ("links", plan.devices[device].link, "devices", device)
        for table in tables:
            measured = frozenset(slot.key for slots in table.slots.values() for slot in slots)
            own = (*path, "entity", "id")
            place = at(own if find(loaded.root, own).missing is None else path)
            yield Holding("entity", (*where, table.entity_id), f"{table.entity_id} at {server}", place, measured)


def _users(broker: BrokerConfig) -> Iterator[tuple[KeyPath, str]]:
    auth = broker.auth
    if auth.basic is not None:
        yield ("basic", "user"), auth.basic.user
    if auth.oauth2 is not None:
        key, user = ("user", auth.oauth2.user) if auth.oauth2.user else ("client_id", auth.oauth2.client_id)
        yield ("oauth2", key), user


def _server(url: str) -> str:
    """Host and port in the one spelling in which two are compared; "" for what another driver calls a URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return ""
    return f"{same_host(parts.hostname or '')}:{port}"


def _is_everybodys(name: str, *, private: bool = False) -> bool:
    """Whether the host in it, if it has one, is the same for all boxes; each cabinet may have a 192.168.1.10 of its own.

    Args:
        private: an address of a private network is, as that of a city.
    """
    match = _AT_HOST.search(name)
    if match is None:
        return True
    host = match[1]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return private or ("." in host and not host.endswith(_LOCAL))
    return not address.is_loopback and (private or address.is_global)


class _Kind(NamedTuple):
    """What is said when two boxes have the same; `shared`: one place that all have it from is meant."""

    code: str
    severity: Literal["error", "warning"]
    shared: bool
    message: str
    remedy: str


_KINDS: dict[str, _Kind] = {
    "gateway": _Kind("fleet-gateway-id", "error", False, "{} is the id of {}",
                "one id for each box: it is in entity ids and metrics"),
    "name": _Kind("fleet-gateway-id", "warning", False, "{} is the id of {}, in two cities",
             "another id: logs, metrics and orders are told apart by it"),
    "location": _Kind("fleet-location", "warning", False, "{} is the place of {}", "copied? Else both stand there"),
    "session": _Kind("fleet-session", "error", False, "{} is that of {}: each would throw the other out",
                "another client_id, or none: the default is made from the box"),
    "device": _Kind("fleet-device", "warning", False, "{} is a device of {}: its data come twice",
               "take it out of one of them, unless both are to have it"),
    "entity": _Kind("fleet-entity", "error", False, "{} comes of {}, with {}",
               "{gateway} in the id pattern, or another name of the device"),
    "login": _Kind("fleet-login", "warning", True, "{} is the login of {}",
              "a login for each box, or one in their base: else nobody sees which box it is"),
}  # fmt: skip


Held = tuple[Box, Holding]


def collisions(boxes: Iterable[Box]) -> Iterator[Problem]:
    """What two boxes have that one alone may have; each once, at the second box, with the place of the first."""
    held: dict[tuple[str, tuple[str, ...]], list[Held]] = {}
    for box in boxes:
        for its in box.holdings:
            held.setdefault((its.kind, its.what), []).append((box, its))
    for (kind, _), rows in held.items():
        meant = _KINDS[kind].shared and len({_place(its) for _, its in rows}) == 1
        if not meant and (pair := _pair(rows)):
            one, other = pair
            yield _collision(one, other, len({box.name for box, its in rows if _apart(one, (box, its))}) - 1)


def _pair(rows: Sequence[Held]) -> tuple[Held, Held] | None:
    """Two boxes that have it; of an entity two that measure the same of it, where there are such."""
    owners: dict[str, Held] = {}
    for row in rows:
        for part in row[1].parts:
            if _apart(owners.setdefault(part, row), row):
                return owners[part], row
    return next(((rows[0], row) for row in rows if _apart(rows[0], row)), None)


def _apart(one: Held, other: Held) -> bool:
    """Whether these are two boxes; one id for both is told as such, not by what follows from it."""
    (box, its), (its_box, _) = one, other
    follows = its.kind in ("name", "entity") and (box.city, box.gateway) == (its_box.city, its_box.gateway)
    return box is not its_box and not follows


def _place(its: Holding) -> tuple[str, int, int]:
    return its.problem.file, its.problem.line, its.problem.column


def _collision(one: Held, other: Held, more: int) -> Problem:
    """
    Args:
        more: how many others have it too.
    """
    (owner, mine), (box, its) = one, other
    code, severity, _, message, remedy = _KINDS[its.kind]
    shared = its.parts & mine.parts
    if its.kind == "entity" and not shared:  # two boxes may well fill one entity, each its own attributes
        severity = "warning"
    boxes = f"{box.name} and of {owner.name} ({_told(mine)}){f' and {more} more' if more else ''}"
    text = message.format(its.shown, boxes, ", ".join(sorted(shared)) or "other attributes")
    return replace(its.problem, code=code, severity=severity, message=text, remedy=remedy)


def _told(its: Holding) -> str:
    file, line, column = _place(its)
    return f"{file}:{line}:{column}" if line else file
