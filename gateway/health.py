"""State of links, devices, brokers and the box: plain records, written by who knows, shown by status, page and metrics."""

import contextlib
import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from gateway.hidden import hidden
from gateway.journal import event
from gateway.sdk.driver import Clock

MAX_REJECTIONS = 16  # kinds remembered of a link; the one not seen for longest makes room
MAX_REASON_CHARACTERS = 200
MANY = 8  # refused entities that are named one by one
ALIKE = 5  # so many in a row for one reason and nothing good: it is no noise
_VARIES = re.compile(r"\b(?:0x)?[0-9a-f]*[0-9][0-9a-f]*\b", re.IGNORECASE)  # numbers, addresses, bytes in hex


@dataclass(slots=True)
class Rejection:
    """Frames or messages that were refused for one reason.

    Attributes:
        kind: the reason without what varies (numbers, addresses, bytes).
        reason: as said of the newest.
        device: whose they were; "" when that cannot be told.
    """

    kind: str
    reason: str
    device: str
    remedy: str
    count: int
    first_at: datetime
    last_at: datetime


class Rejections:
    """What was rejected on one link, by reason and device, newest first; bounded."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Rejection] = {}
        self._in_a_row: tuple[tuple[str, str] | None, int] = (None, 0)
        self.forgotten = 0  # of kinds that had to make room

    def add(self, reason: str, device: str, remedy: str, at: datetime) -> bool:
        """Count one. Whether it is one of many in a row, all for the same reason."""
        reason, remedy = hidden(reason), hidden(remedy)
        key = _VARIES.sub("#", reason)[:MAX_REASON_CHARACTERS], device
        row = self._rows.pop(key, None)
        if row is None:
            if len(self._rows) >= MAX_REJECTIONS:
                self.forgotten += self._rows.pop(next(iter(self._rows))).count
            row = Rejection(key[0], "", device, remedy, 0, at, at)
        row.reason, row.remedy, row.last_at = reason[:MAX_REASON_CHARACTERS], remedy, at
        row.count += 1
        self._rows[key] = row
        of, count = self._in_a_row
        self._in_a_row = key, count + 1 if of == key else 1
        return self._in_a_row[1] >= ALIKE

    def good(self) -> None:
        """Something could be read."""
        self._in_a_row = None, 0

    def newest_first(self) -> list[Rejection]:
        """All kinds remembered."""
        return list(reversed(self._rows.values()))


@dataclass(slots=True)
class DeviceHealth:
    """One device as its sets show it.

    Attributes:
        state: waiting (nothing yet) | ok | bad | paused.
        paused_until: end of the pause; None when it is not paused. paused_until_s: the same on the monotonic clock.
        undeclared: fields that came but that the template does not declare, with how often.
        counters: what the driver counts for this device (`timeouts`, `latency_ms`).
    """

    state: str = "waiting"
    reason: str = ""
    remedy: str = ""
    paused_until: datetime | None = None
    paused_until_s: float | None = None
    last_good_at: datetime | None = None
    last_set_at: datetime | None = None
    sets: int = 0
    readings: int = 0
    bad: int = 0
    undeclared: dict[str, int] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class LinkHealth:
    """One link as its supervisor and driver see it.

    Attributes:
        state: starting | ok | bad | down | off | paused; bad: it is connected, and nothing of what comes can be read; off
            is not tried again before the next reload.
        rejected: what could not be read, by reason and device.
    """

    driver: str = ""
    state: str = "starting"
    reason: str = ""
    remedy: str = ""
    since: datetime | None = None
    restarts: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    rejected: Rejections = field(default_factory=Rejections)
    devices: dict[str, DeviceHealth] = field(default_factory=dict)


class BrokerState(StrEnum):
    """How it stands with a broker."""

    STARTING = "starting"  # it has not answered yet
    OK = "ok"
    DOWN = "down"
    LOGIN = "login"  # it does not accept our login
    CONFIG_FAULT = "config_fault"  # it refuses every entity
    OFF = "off"  # its secret is missing; not tried before the next reload


WELL = frozenset({BrokerState.OK, BrokerState.STARTING})  # nobody is needed


@dataclass(slots=True)
class BrokerHealth:
    """One broker as its forwarder sees it.

    Attributes:
        state: written by `set_state` alone.
        history: history mode in use.
        backlog: readings owed to it.
        later, dead: held pieces (readings of one device for one entity), as `buffer held list` shows them.
        month_bytes: both ways in this calendar month (UTC), without TCP and TLS.
        left_out: "device: attribute" -> values left out because the model does not allow them.
        batch: entities a request, as learned.
        late: updates not sent because the broker holds newer and has no temporal API (dead letters).
        skipped: updates not sent because `latest-only` is chosen.
        records: whether it records by itself what becomes current: "yes (WHY)" | "no" | "not known yet"; "" without a history.
        unseen: points that it accepted and that were never seen in its history.
        waiting: entities not sent yet, with the mandatory attributes that are still unknown.
        refusing: entities that it refused when last offered: `{entity, device, reason, since, remedy}`.
        contexts: those that it cannot fetch: `{context, since, entities, reason, remedy}`.
        given_up: readings that it will not get: dropped by a bound, from the log or from what is held.
    """

    kind: str = ""
    state: BrokerState = BrokerState.STARTING
    reason: str = ""
    remedy: str = ""
    since: datetime | None = None
    history: str = ""
    backlog: int = 0
    oldest_unsent_at: datetime | None = None
    next_try_at: datetime | None = None
    last_accepted_at: datetime | None = None
    later: int = 0
    dead: int = 0
    accepted: int = 0
    refused: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    month_bytes: int = 0
    batch: int = 0
    late: int = 0
    skipped: int = 0
    records: str = ""
    unseen: int = 0
    waiting: dict[str, list[str]] = field(default_factory=dict)
    refusing: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    given_up: int = 0


def set_state(
    record: BrokerHealth, name: str, state: BrokerState, reason: str = "", remedy: str = "", *, at: datetime
) -> None:
    """Set a broker's state, reason and remedy; one event when the state changes."""
    if record.state != state:
        event(f"broker_{state}", broker=name, reason=reason)
        record.since = at
    record.state, record.reason, record.remedy = state, reason, remedy


class Health:
    """All records of one daemon. A change of state is one event; a state that lasts is silent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_at, self._started_s = clock.now(), clock.monotonic_s()
        self.links: dict[str, LinkHealth] = {}
        self.brokers: dict[str, BrokerHealth] = {}
        self.log: dict[str, Any] = {}
        self.clock: dict[str, Any] = {}

    @property
    def started_at(self) -> datetime:
        """When this daemon started, by what is the time now: the clock of then may have known less."""
        at = self._clock.now() - timedelta(seconds=self._clock.monotonic_s() - self._started_s)
        if abs(at - self._started_at) > timedelta(seconds=1):  # else it would jitter
            self._started_at = at
        return self._started_at

    def link(self, name: str, driver: str = "") -> LinkHealth:
        """The record of a link, made at first use."""
        return self.links.setdefault(name, LinkHealth(driver=driver, since=self._clock.now()))

    def broker(self, name: str, kind: str = "") -> BrokerHealth:
        """The record of a broker, made at first use."""
        return self.brokers.setdefault(name, BrokerHealth(kind=kind, since=self._clock.now()))

    def set_state(self, record: LinkHealth, name: str, state: str, reason: str = "", remedy: str = "") -> None:
        """Set a link's state, reason and remedy; one event when the state changes."""
        if record.state != state:
            event(f"link_{state}", link=name, reason=reason)
            record.since = self._clock.now()
        record.state, record.reason, record.remedy = state, reason, remedy

    def refused_by(self) -> dict[str, dict[str, str]]:
        """Device -> broker -> why it refuses what the device sends."""
        found: dict[str, dict[str, str]] = {}
        for name, broker in self.brokers.items():
            for row in broker.refusing:
                for device in row["device"].split(", "):
                    found.setdefault(device, {})[name] = row["reason"]
        return found

    def bad(self) -> list[str]:
        """What is wrong now, one line each; empty when all is well."""
        lines = [f"link {n}: {r.state}: {r.reason}" for n, r in self.links.items() if r.state in ("bad", "down", "off")]
        lines += [
            f"device {name}: {device.reason}"
            for link in self.links.values()
            for name, device in link.devices.items()
            if device.state == "bad"
        ]
        lines += [f"broker {n}: {r.state}: {r.reason}" for n, r in self.brokers.items() if r.state not in WELL]
        lines += [
            f"broker {name}: cannot fetch {row['context']} (entities waiting: {row['entities']}): {row['reason']}; {row['remedy']}"
            for name, broker in self.brokers.items()
            if broker.state in WELL
            for row in broker.contexts
        ]
        for name, broker in self.brokers.items():
            if broker.state == BrokerState.CONFIG_FAULT:  # it says so of all
                continue
            lines += [
                f"broker {name}: refuses what device {row['device']} sends: {row['reason']}; {row['remedy']}"
                for row in broker.refusing[:MANY]
            ]
            if len(broker.refusing) > MANY:
                lines.append(f"broker {name}: refuses {len(broker.refusing) - MANY} more entities")
        return lines


def notify(address: str, state: str) -> None:
    """Tell systemd (`READY=1`, `WATCHDOG=1`, `STATUS=…`); without its address nothing. Protocol: sd_notify(3)."""
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode(errors="replace"))
