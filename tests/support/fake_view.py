"""A gateway as page, read API and verbs see it, without a gateway: what it says is set by the test."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.harmonise.entity import Attribute, Entity
from gateway.http.outcome import UnknownName
from gateway.http.view import Verb
from gateway.sdk.errors import CitygateError

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
ENERGY = "https://models.example/Energy/context.jsonld"
AIR = "https://models.example/Environment/context.jsonld"


def meter(number: int) -> Entity:
    """An energy measurement with one attribute."""
    voltage = Attribute("property", 230.5, unit="VLT", observed_at=NOON)
    return Entity(
        f"urn:ngsi-ld:ACMeasurement:{number}", "ACMeasurement", ENERGY, {"phaseVoltage": voltage}, f"meter-{number}"
    )


def air(number: int) -> Entity:
    """An air quality observation with two attributes."""
    pm25 = Attribute("property", 7.5, unit="GQ", observed_at=NOON)
    ref = Attribute("relationship", "urn:ngsi-ld:Device:1")
    attributes = {"pm25": pm25, "refDevice": ref}
    return Entity(f"urn:ngsi-ld:AirQualityObserved:{number}", "AirQualityObserved", AIR, attributes, f"air-{number}")


def device_status(**changes: Any) -> dict[str, Any]:
    """One device of a status."""
    point = {
        "quantity": "voltage",
        "value": 230.5,
        "unit": "VLT",
        "symbol": "V",
        "quality": "good",
        "reason": "",
        "observed_at": "2026-06-01T12:00:00Z",
        "time_source": "gateway",
    }
    return {
        "state": "ok",
        "reason": "",
        "remedy": "",
        "last_good_at": "2026-06-01T12:00:00Z",
        "last_set_at": "2026-06-01T12:00:00Z",
        "sets": 3,
        "readings": 3,
        "bad": 0,
        "undeclared": {},
        "template": "eastron/sdm120",
        "paused_until": None,
        "points": {"voltage": point},
        **changes,
    }


def status(**changes: Any) -> dict[str, Any]:
    """A status of one link, one device, one broker, all well; `changes` replace its parts."""
    link = {
        "driver": "modbus",
        "state": "ok",
        "reason": "",
        "remedy": "",
        "since": "2026-06-01T11:00:00Z",
        "restarts": 1,
        "counters": {"requests": 7},
        "devices": {"meter-12": device_status()},
    }
    broker = {
        "kind": "ngsi-ld",
        "url": "https://broker.example",
        "state": "ok",
        "reason": "",
        "remedy": "",
        "since": "2026-06-01T11:00:00Z",
        "history": "in-order",
        "backlog": 0,
        "oldest_unsent_at": None,
        "next_try_at": None,
        "last_accepted_at": "2026-06-01T12:00:00Z",
        "later": 0,
        "dead": 0,
        "accepted": 5,
        "refused": 0,
        "requests": 5,
        "sent_bytes": 500,
        "received_bytes": 100,
        "month_bytes": 600,
        "batch": 25,
        "late": 0,
        "skipped": 0,
        "records": "",
        "unseen": 0,
        "waiting": {},
    }
    gateway = {
        "id": "gw-1",
        "name": "School roof",
        "city": "milano",
        "version": "0.1.0",
        "config": "/etc/citygate",
        "started_at": "2026-06-01T11:00:00Z",
        "now": "2026-06-01T12:00:05Z",
        "ready": [],
    }
    return {
        "gateway": gateway,
        "links": {"roof": link},
        "brokers": {"milano": broker},
        "log": {"state": "ok", "size_bytes": 4096, "appended": 3},
        "clock": {"trusted": True, "source": "kernel"},
        **changes,
    }


class FakeView:
    """See `gateway.http.view.GatewayView`. `asked` keeps what the verbs were called with."""

    def __init__(self, *entities: Entity) -> None:
        self.found = list(entities)
        self.shown = status()
        self.reasons: tuple[str, ...] = ()
        self.asked: list[tuple[Any, ...]] = []
        self.error: CitygateError | None = None
        self.config_file = ""
        self.verbs: Mapping[str, Verb] = {"echo": self._echo}
        self.reloaded: dict[str, Any] = {"changed": ["roof"], "restarted": ["roof"], "warnings": []}

    def status(self) -> dict[str, Any]:
        return self.shown

    def ready(self) -> tuple[str, ...]:
        return self.reasons

    def entities(self) -> Iterable[Entity]:
        return self.found

    async def read(self, device: str) -> dict[str, Any]:
        self._note("read", device)
        row = {
            "point": "voltage",
            "quantity": "voltage",
            "value": 230.5,
            "unit": "VLT",
            "quality": "good",
            "reason": "",
            "observed_at": "2026-06-01T12:00:00Z",
        }
        return {"sent": "0104", "received": "010402", "readings": [row]}

    async def pause(self, device: str, seconds: float) -> dict[str, Any]:
        self._note("pause", device, seconds)
        return {"device": device, "until": "2026-06-01T12:30:00Z"}

    async def reload(self, *, dry_run: bool = False) -> dict[str, Any]:
        self._note("reload", dry_run) if dry_run else self._note("reload")
        return self.reloaded

    async def once(self) -> dict[str, Any]:
        self._note("once")
        return {"devices": {"meter-12": {"readings": 3, "error": ""}}, "brokers": {}}

    async def preview(self, device: str) -> dict[str, Any]:
        self._note("preview", device)
        if device != "meter-12":
            raise UnknownName(f"no device {device}; there are meter-12")
        return {"source": "last values", "brokers": {"milano": [{"id": "urn:x", "type": "T"}]}}

    async def _echo(self, given: Mapping[str, Any]) -> Any:
        await asyncio.sleep(0)
        return {"given": dict(given)}

    def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error
