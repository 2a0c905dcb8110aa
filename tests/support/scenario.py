"""Plays a scenario of `hil/scenarios` on simulators and judges it: every value served against every value stored."""

import functools
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.support.box import REPOSITORY, Box, Process, eventually, free_port, get_json

DRAIN_WITHIN_S = 60.0
IN_FLIGHT_S = 1.0  # a set served so shortly before a kill may have been in flight

Key = tuple[str, str, float]  # device, attribute, value: each simulated value names itself


@dataclass
class Scenario:
    """One file of `hil/scenarios`."""

    title: str
    places: dict[str, str]
    config: str
    steps: list[dict[str, str]]
    expect: dict[str, Any]

    @classmethod
    def load(cls, file: Path) -> "Scenario":
        return cls(**yaml.safe_load(file.read_text()))

    def links(self) -> dict[str, Any]:
        """The links of the operator's file, places not yet filled in."""
        config = self.config
        for place in self.places:
            config = config.replace("{" + place + "}", "0")
        links: dict[str, Any] = yaml.safe_load(config)["links"]
        return links


@dataclass
class Stage:
    """A box, its simulators and a strict broker, while a scenario is played."""

    box: Box
    scenario: Scenario
    broker_url: str = ""
    in_flight_s: float = IN_FLIGHT_S  # what was served so shortly before a kill may be lost
    broker: tuple[str, ...] = ()  # arguments of the strict broker: which product it imitates
    waits: bool = True  # after a start until every device is heard; before, those that speak unasked speak to nobody
    deaf: list[tuple[float, float]] = field(default_factory=list)  # no daemon listened from, to; unix seconds
    _daemon: Process | None = None
    _simulators: dict[str, Process] = field(default_factory=dict)

    def play(self) -> None:
        """All steps, then wait until the broker has what it can get."""
        self._start_broker()
        places = {name: self._place(name, kind) for name, kind in self.scenario.places.items()}
        config = self.scenario.config
        for name, place in {
            **places,
            "box": str(self.box.folder),
            "http": str(self.box.port),
            "broker": self.broker_url,
        }.items():
            config = config.replace("{" + name + "}", place)
        self.box.write(config)
        links = yaml.safe_load(config)["links"]
        self._simulators = {link: self.box.start_simulator(link) for link in links}
        self._daemon = self.box.start_daemon()
        self._wait_for_devices()
        self.deaf.append((0.0, time.time() + IN_FLIGHT_S))
        started_s = time.monotonic()
        for step in self.scenario.steps:
            at_s = float(step["at"].removesuffix(" s"))
            time.sleep(max(0.0, started_s + at_s - time.monotonic()))
            self._do(step)
        eventually("the backlog is drained", self._is_drained, within_s=DRAIN_WITHIN_S)

    def _wait_for_devices(self) -> None:
        for link, its in self.scenario.links().items():
            for device in its["devices"]:
                eventually(f"{device} is good", functools.partial(self._is_good, link, device))

    def _is_good(self, link: str, device: str) -> bool:
        return self.box.device(link, device).get("state") == "ok"

    def _place(self, name: str, kind: str) -> str:
        return str(self.box.folder / name) if kind == "serial" else str(free_port())

    def _start_broker(self) -> None:
        broker = self.box.start("broker", "-m", "tests.support.strict_broker", "--port", "0", *self.broker)
        port = eventually("the broker prints its port", lambda: broker.text().strip())
        self.broker_url = f"http://127.0.0.1:{port}"

    def _do(self, step: dict[str, str]) -> None:
        [(subject, verb)] = [(key, value) for key, value in step.items() if key != "at"]
        match subject, verb:
            case "broker", "away":
                self._behave(fault="reset")
            case "broker", "back":
                self._behave(fault="")
            case "broker", "restart":
                self._control("restart", down_s=1.0)
            case "broker", "database":
                self._control("database", away=True)
            case "broker", "database back":
                self._control("database", away=False)
            case "daemon", "kill":
                assert self._daemon is not None
                self.deaf.append((time.time() - self.in_flight_s, 0.0))
                self._daemon.kill()
            case "daemon", "start":
                self._daemon = self.box.start_daemon()
                if self.waits:
                    self._wait_for_devices()
                self.deaf[-1] = (self.deaf[-1][0], time.time() + IN_FLIGHT_S)
            case "links", "stop":
                self._wait_for_a_pause()  # a reply that its sender never finishes was not lost by us
                for simulator in self._simulators.values():
                    simulator.end()
            case _:
                raise AssertionError(f"a scenario has no step {subject}: {verb}")

    def _wait_for_a_pause(self) -> None:
        """Until nothing was served for a moment: then no reply is on its way."""
        served, until_s = -1, time.monotonic() + 3.0
        while (now := sum(1 for _ in self.box.served())) != served and time.monotonic() < until_s:
            served = now
            time.sleep(0.12)

    def _behave(self, **behaviour: Any) -> None:
        self._control("behave", **behaviour)

    def _control(self, verb: str, **told: Any) -> None:
        body = json.dumps(told).encode()
        request = urllib.request.Request(
            f"{self.broker_url}/_strict/{verb}", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=5).close()

    def _is_drained(self) -> bool:
        brokers = (self.box.status() or {}).get("brokers", {})
        return bool(brokers) and all(its["backlog"] == 0 and its["state"] == "ok" for its in brokers.values())

    def held(self) -> dict[str, Any]:
        """All the broker has and has seen."""
        held: dict[str, Any] = get_json(f"{self.broker_url}/_strict/held")
        return held


@dataclass(frozen=True)
class Verdict:
    """What was served and not stored, stored and not served, and how often one value was stored."""

    lost: tuple[tuple[float, Key], ...]
    invented: tuple[Key, ...]
    repeated: int
    served: int


def judge(stage: Stage, stored: Counter[Key] | None = None) -> Verdict:
    """Compare value by value with all that was ever stored, or with what is said; a value is named by (device, attribute or
    member, value)."""
    attributes = _attributes(stage.scenario)
    served: dict[Key, float] = {}
    for record in stage.box.served():
        device = record["device"]
        for point, value in record["values"].items():
            if point in attributes[device]:
                served[device, attributes[device][point], _round(value)] = datetime.fromisoformat(
                    record["at"]
                ).timestamp()
    if stored is None:
        stored = Counter(
            (value["entity"].rpartition(":")[2], name, _round(number))
            for value in stage.held()["stored"]
            for name, number in _numbers(value["attribute"], value["value"])
        )
    return Verdict(
        lost=tuple(sorted((t, key) for key, t in served.items() if key not in stored)),
        invented=tuple(sorted(key for key in stored if key not in served)),
        repeated=sum(count - 1 for count in stored.values()),
        served=len(served),
    )


def recorded(stage: Stage) -> Counter[Key]:
    """How often each value stands in the history, as the temporal API serves it."""
    return Counter(
        (entity.rpartition(":")[2], name, _round(number))
        for points in stage.held()["history"].values()
        for entity, attribute, _, value in points
        for name, number in _numbers(attribute, value)
    )


def _numbers(attribute: str, value: Any) -> Iterator[tuple[str, float]]:
    """An attribute's number, or those of its members: `current.L1`."""
    if isinstance(value, dict):
        for member, inner in value.items():
            yield from _numbers(f"{attribute}.{member}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield attribute, value


def excused(stage: Stage, at_s: float) -> bool:
    """Whether nobody listened then, or a kill caught the set in flight."""
    return any(from_s <= at_s <= to_s for from_s, to_s in stage.deaf)


def _attributes(scenario: Scenario) -> dict[str, dict[str, str]]:
    """Device -> point -> attribute, from the templates as they are written."""
    found = {}
    for link in scenario.links().values():
        for device, its in link["devices"].items():
            file = REPOSITORY / "drivers" / link["driver"] / "templates" / f"{its['template']}.yaml"
            entity = yaml.safe_load(file.read_text())["entity"]
            found[device] = {point: attribute for attribute, point in entity["attributes"].items()}
    return found


def _round(value: float) -> float:
    return float(f"{value:.6g}")
