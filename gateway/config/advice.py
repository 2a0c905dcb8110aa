"""Warnings: what the file may say, but will be regretted."""

import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, SecretStr

from gateway.config.doubts import doubts
from gateway.config.explain import did_you_mean, locate
from gateway.config.hiding import NAMED
from gateway.config.loader import Loaded, LoadedLink
from gateway.config.model import Config
from gateway.config.tree import Map, Scalar, find
from gateway.sdk.config import Claim, DeviceConfig, LinkConfig, Secret, same_host
from gateway.sdk.driver import SharesLine, Warns
from gateway.sdk.errors import Problem, said

LINE_FULL = 0.9  # part of a line's time taken by polls; beyond it one slow answer makes every device late
BYTES_PER_READING = 12  # on the card, segment and database pages together; a poll of few points costs more for each
RATE_FULL = 0.8  # the rest is for what was owed: an outage must be made up some day
DAY_S = 86400.0
_UNSTABLE = re.compile(r"/dev/tty(?:USB|ACM)[0-9]+")
_ADDRESSES = ("unit_id", "dev_eui", "dev_addr", "address")  # keys by which drivers tell the devices of a link apart
_BY_ID = Path("/dev/serial/by-id")

T = TypeVar("T")
PathOf = tuple[str | int, ...]


def advise(loaded: Loaded) -> tuple[Problem, ...]:
    """All warnings about a config, placed; the errors that show only when links and templates are known are among them."""
    found: list[Problem] = []
    claims = {name: _asked(link, "claims", _claims_of(link), found) for name, link in loaded.links.items()}
    for name, link in loaded.links.items():
        found += _points(loaded, link)
        found += _asked(link, "devices", _link(link, claims[name]), found)
        found += _asked(link, "shares", _load(link), found, "warning")
        found += _asked(link, "warnings", _of_driver(link), found, "warning")
    found += [*_claims(loaded, claims), *_renamed(loaded)]
    if loaded.config is not None:
        config = loaded.config
        found += [*_devices_and_brokers(loaded, config), *_buffer(loaded, config), *_rates(loaded, config)]
        found += _clear_text(loaded.config, (), loaded)
    found += doubts(loaded)
    return tuple(problem if problem.file else locate(problem, loaded.root) for problem in found)


def _renamed(loaded: Loaded) -> Iterator[Problem]:
    """Brokers and devices that cannot be what another was: that is still there, or another takes it over."""
    brokers = loaded.root.get("brokers")
    there: dict[str, PathOf] = {
        name: ("brokers", name) for name in (brokers.entries if isinstance(brokers, Map) else ())
    }
    since = "; if it was renamed long ago and this is another broker, remove the line was: it has done its work"
    remedy = "give the name that it had before, and that no broker has now"
    yield from _former_names(
        loaded, there, "broker", lambda old: (f"{old} is still a broker of this file", since), remedy
    )
    links = {device: link.name for link in loaded.links.values() for device in link.devices}
    there = {device: ("links", link, "devices", device) for device, link in links.items()}
    remedy = "was: is for a device that was renamed: the name that it had before, and that no device has now"
    yield from _former_names(
        loaded, there, "device", lambda old: (f"{old} is still a device of link {links[old]}", ""), remedy
    )


def _former_names(
    loaded: Loaded, there: Mapping[str, PathOf], kind: str, still: Callable[[str], tuple[str, str]], remedy: str
) -> Iterator[Problem]:
    """
    Args:
        there: the names of this kind, with their places.
        still: of a former name that is still in use: what to say, and what to add to the remedy.
    """
    owners: dict[str, str] = {}
    for name, place in there.items():
        path: PathOf = (*place, "was")
        found = find(loaded.root, path)
        if found.missing is not None or not isinstance(found.node, Scalar):
            continue
        old = found.node.text
        owner = owners.setdefault(old, name)
        if old == name:
            yield Problem("wrong-was", path, f"{old} is this {kind}'s own name", remedy)
        elif old in there:
            message, more = still(old)
            yield Problem("wrong-was", path, message, remedy + more)
        elif owner != name:
            yield Problem("wrong-was", path, f"{owner} takes over {old} too", remedy)


def _asked(
    link: LoadedLink,
    what: str,
    answers: Iterator[T],
    found: list[Problem],
    severity: Literal["error", "warning"] = "error",
) -> list[T]:
    """What is asked of a driver, as far as it answers; that its code broke is a problem like any other."""
    got: list[T] = []
    try:
        got.extend(answers)
    except Exception as error:  # noqa: BLE001  not our code: told, the other links are checked
        message = f"driver {link.driver_name}: its {what} fail: {type(error).__name__}: {said(error)}"
        remedy = "a fault of the driver's package: report it to its author"
        found.append(Problem("driver-fault", ("links", link.name), message, remedy, severity, "key"))
    return got


def _claims_of(link: LoadedLink) -> Iterator[Claim]:
    if link.sound is not None:
        yield from link.sound.claims()


def _link(link: LoadedLink, claims: Sequence[Claim]) -> Iterator[Problem]:
    if link.sound is None:
        return
    port = getattr(link.sound, "port", "")
    if isinstance(port, str) and _UNSTABLE.fullmatch(port):
        remedy = f"{_stable_name(port)} stays the same after a replug"
        message = f"{port} may be another adapter after a replug or a restart"
        yield Problem("unstable-port", ("links", link.name, "port"), message, remedy, "warning")
    for name, device in link.sound.devices.items():
        yield from _needs(device, ("links", link.name, "devices", name))
        yield from _expired(device, ("links", link.name, "devices", name))
    yield from _shared_addresses(link.name, link.sound, {claim.path for claim in claims if claim.within})


def _of_driver(link: LoadedLink) -> Iterator[Problem]:
    if link.sound is not None and isinstance(link.driver, Warns):
        for its in link.driver.warnings(link.sound):
            yield replace(its, path=("links", link.name, *its.path), severity="warning")


def _shared_addresses(link: str, config: LinkConfig, claimed: Container[PathOf]) -> Iterator[Problem]:
    """Two devices that answer to one address: meant for a unit read by two templates, else a copied line. What can only
    be a mistake is claimed, and an error."""
    owners: dict[tuple[str, str], str] = {}
    for name, device in config.devices.items():
        for key in _ADDRESSES:
            if ("devices", name, key) in claimed:
                continue
            address = str(getattr(device, key, None) or "").lower()
            owner = owners.setdefault((key, address), name) if address else name
            if owner != name:
                message = f"{owner} has {key} {address} too"
                remedy = "give each its own, unless they are one unit that two templates read"
                yield Problem("shared-address", ("links", link, "devices", name, key), message, remedy, "warning")


def _claims(loaded: Loaded, claims: Mapping[str, Sequence[Claim]]) -> Iterator[Problem]:
    """Two that take the same: each would keep the other out, or both would have the other's."""
    listening: list[tuple[str, str]] = []
    if loaded.config is not None and loaded.config.http.port:
        its = loaded.config.http
        listening.append((f"TCP {same_host(its.host)}:{its.port}", "http.listen"))
    owners: dict[tuple[str, str, str], tuple[str, Claim]] = {}
    for link, its_claims in claims.items():
        for claim in its_claims:
            path = ("links", link, *claim.path)
            if claim.kind == "listener":
                taken = next((owner for name, owner in listening if _same_listener(name, claim.name)), "")
                listening.append((claim.name, f"link {link}"))
                if taken:
                    message = f"{claim.name} is taken by {taken} too"
                    yield Problem("shared-listener", path, message, "another port for one of them")
                continue
            owner, its_claim = owners.setdefault((claim.kind, claim.name, claim.also), (link, claim))
            if its_claim is not claim and (owner != link or claim.within):
                code, message, remedy = _shared(claim, its_claim, owner, one_link=owner == link)
                yield Problem(code, path, message, remedy)


def _shared(claim: Claim, other: Claim, owner: str, *, one_link: bool) -> tuple[str, str, str]:
    """Code, message, remedy; `owner` is the link whose claim came first."""
    if claim.kind == "port":
        message = f"{claim.name} is the port of link {owner} too"
        return "shared-port", message, "one link for each port; put the devices together"
    if claim.kind == "session":
        message = f"{claim.name} is that of link {owner} too: each would throw the other out"
        return "shared-session", message, "another client_id, or none: the default is made from the link's name"
    device = other.path[1] if other.path[:1] == ("devices",) else "one"
    if one_link:
        message = f"{claim.name} is {device} too: only one of them would get what it sends"
        return "shared-device", message, "give each its own, or take one of them out"
    message = f"{claim.name} is {device} of link {owner} too: it would be read twice, under two names"
    return "shared-device", message, "take one of them out; what two templates read of one unit belongs on one link"


def _same_listener(one: str, other: str) -> bool:
    """Whether both cannot listen: "UDP 127.0.0.1:1700" and the same port at every address."""
    (first, port), (second, other_port) = (name.rpartition(":")[::2] for name in (one, other))
    (protocol, host), (other_protocol, other_host) = (its.split(" ", 1) for its in (first, second))
    either = {host, other_host}
    return (protocol, port) == (other_protocol, other_port) and (len(either) == 1 or bool(either & {"0.0.0.0", "::"}))


def _stable_name(port: str) -> str:
    """The path by id of a port that is plugged in here and now; else where such paths are."""
    try:
        same = [path for path in _BY_ID.iterdir() if path.resolve() == Path(port)]
    except OSError:
        same = []
    return str(same[0]) if same else f"a path in {_BY_ID}"


def _needs(device: DeviceConfig, path: PathOf) -> Iterator[Problem]:
    """What the template cannot know and its entity depends on."""
    if device.entity is not None and device.entity.model_fields_set & {"type", "attributes"}:
        return
    given = device.model_dump(by_alias=True, exclude_unset=True, exclude={"template"})
    for key, remedy in device.template.needs.items():
        found: Any = given
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            message = f"{device.template.name} needs {key} for its {device.template.entity.type}"
            yield Problem("missing-need", path, message, remedy, at="key")


def _points(loaded: Loaded, link: LoadedLink) -> Iterator[Problem]:
    """Asked of the tree, so that they show beside whatever else is wrong with the link."""
    for device, its in link.templates.items():
        for part in ("calibrate", "report") if its.template else ():
            path: PathOf = ("links", link.name, "devices", device, part)
            given = find(loaded.root, path)
            known = its.template.points  # type: ignore[union-attr]  # asked before
            for name in given.node.entries if given.missing is None and isinstance(given.node, Map) else ():
                if name not in known:
                    remedy = did_you_mean(name, known) or f"points: {', '.join(known)}"
                    message = f"{its.template.name} has no point {name}"  # type: ignore[union-attr]
                    yield Problem("unknown-point", (*path, name), message, remedy, at="key")


def _expired(device: DeviceConfig, path: PathOf) -> Iterator[Problem]:
    today = datetime.now(UTC).date()
    for point, its in device.calibrate.items():
        if its.valid_until is not None and its.valid_until < today:
            message = f"the calibration of {point}{f' by {its.by}' if its.by else ''} ran out; its gain is still used"
            where = (*path, "calibrate", point, "valid_until")
            yield Problem(
                "calibration-expired", where, message, "calibrate it again, or take valid_until out", "warning"
            )


def _load(link: LoadedLink) -> Iterator[Problem]:
    if not isinstance(link.driver, SharesLine) or link.config is None:
        return
    shares = dict(link.driver.shares(link.config))
    total = float(sum(shares.values()))
    if total > LINE_FULL:
        largest = sorted(shares, key=lambda name: -shares[name])[:3]
        message = f"polling takes {total:.0%} of the line's time; beyond {LINE_FULL:.0%} polls come late"
        remedy = f"poll less often or split the line; most is taken by {', '.join(f'{n} ({shares[n]:.0%})' for n in largest)}"
        yield Problem("overloaded-link", ("links", link.name), message, remedy, "warning", "key")


def _devices_and_brokers(loaded: Loaded, config: Config) -> Iterator[Problem]:
    devices = {name: link.name for link in loaded.links.values() for name in link.devices}
    for broker, its in config.brokers.items():
        for index, glob in enumerate(its.send):
            if devices and not any(fnmatchcase(device, glob) for device in devices):
                remedy = did_you_mean(glob, devices) or f"devices: {', '.join(sorted(devices)[:20])}"
                path: PathOf = ("brokers", broker, "send", index)
                yield Problem("unmatched-send", path, f"no device is called {glob}", remedy, "warning")
    globs = [glob for broker in config.brokers.values() for glob in broker.send]
    unsent = [device for device in devices if globs and not any(fnmatchcase(device, glob) for glob in globs)]
    if unsent:
        where: PathOf = ("links", devices[unsent[0]], "devices", unsent[0])
        named = ", ".join(unsent[:10]) + (", …" if len(unsent) > 10 else "")
        message = f"read but sent to no broker: {named}" + (f" ({len(unsent)} devices)" if len(unsent) > 1 else "")
        yield Problem("unsent-device", where, message, "add it to send: of a broker, or take it out", "warning", "key")


def readings_per_s(config: Config, globs: Sequence[str] = ("*",)) -> float:
    """What these devices give when all is well; devices that do not say how often they speak count nothing."""
    total = 0.0
    for link in config.links.values():
        for name, device in link.devices.items():
            if not any(fnmatchcase(name, glob) for glob in globs):
                continue
            period_s = getattr(device, "every_s", None) or getattr(device.template, "period_s", None)
            if isinstance(period_s, int | float) and period_s > 0:
                total += len(device.template.points) / period_s
    return total


def _rates(loaded: Loaded, config: Config) -> Iterator[Problem]:
    """A broker that may be sent less than its devices give falls behind for ever."""
    for broker, its in config.brokers.items():
        given = readings_per_s(config, its.send)
        if its.rate_per_s is not None and given > RATE_FULL * its.rate_per_s:
            path: PathOf = ("brokers", broker, "rate")
            placed = path if find(loaded.root, path).missing is None else path[:2]
            message = f"its devices give {given:.4g} readings a second, and {its.rate_per_s:.4g} may be sent"
            remedy = f"no rate:, or {math.ceil(given / RATE_FULL / 100) * 100}/s or more; or report: less of what does not change"
            yield Problem("slow-rate", placed, message, remedy, "warning", "value" if placed == path else "key")


def _buffer(loaded: Loaded, config: Config) -> Iterator[Problem]:
    rate = readings_per_s(config)
    days = config.buffer.max_size_bytes / (rate * BYTES_PER_READING * DAY_S) if rate else float("inf")
    wanted = config.buffer.max_age_s / DAY_S
    if days < wanted:
        given = find(loaded.root, ("buffer", "max_size")).missing is None
        path: PathOf = ("buffer", "max_size") if given else ("buffer",) if loaded.root.get("buffer") else ()
        message = (
            f"buffer.max_size holds about {_days(days)} of {rate:.3g} readings a second; "
            f"max_age promises {_days(wanted)} without a broker"
        )
        needed = rate * BYTES_PER_READING * config.buffer.max_age_s
        remedy = f"max_size: {_size(needed)}, a shorter max_age, or report: less of what does not change"
        yield Problem("small-buffer", path, message, remedy, "warning", "value" if given else "key")


def _days(days: float) -> str:
    return (
        f"{days:.0f} days"
        if days >= 2
        else f"{days * 24:.0f} hours"
        if days * 24 >= 2
        else f"{days * 1440:.0f} minutes"
    )


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{max(size_bytes / 1e6, 1):.0f} MB"


def _clear_text(value: Any, path: PathOf, loaded: Loaded) -> Iterator[Problem]:
    """Fields that are secrets and stand in the file as they are."""
    named = bool(path) and isinstance(value, str) and value and NAMED.fullmatch(str(path[-1]))
    if isinstance(value, SecretStr | Secret) or named:
        found = find(loaded.root, path)
        if found.missing is None and isinstance(found.node, Scalar) and not found.node.tag:
            if found.node.text.startswith("!secret"):
                message = "in quotes this is a text, no name of a secret"
                yield Problem("clear-text-secret", path, message, "write !secret NAME without quotes")
                return
            remedy = f"put it into a file in {loaded.files[0].parent / 'secrets'} and write !secret NAME"
            yield Problem("clear-text-secret", path, "a secret in clear text", remedy, "warning")
    elif isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            if name != "template":
                yield from _clear_text(getattr(value, name), (*path, info.alias or name), loaded)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _clear_text(item, (*path, str(key)), loaded)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _clear_text(item, (*path, index), loaded)
