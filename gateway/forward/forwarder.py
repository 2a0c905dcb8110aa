"""One broker, served for ever: outage, resume, pace. It never ends on a fault of the broker and never waits for another."""

import random
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from gateway.backoff import Backoff, Breaker
from gateway.forward.broker import Accepted, Broker, LoginFailed, Outcome
from gateway.forward.history_lane import HistoryLane, Source
from gateway.health import BrokerHealth
from gateway.journal import event
from gateway.sdk.driver import Clock
from gateway.sdk.errors import BrokerUnavailable

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping

REMEDIES = {
    "login": "check auth: of this broker and its clock; the secret is read again at reload",
    "down": "nothing is lost; it is tried again by itself",
}


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How to forward to one broker.

    Attributes:
        linger_s: wait so long after the first new reading, so that one request carries many.
        retry_quick_s: while an outage is young, tries are at most this far apart.
        retry_cap_s: later on, at most this far.
    """

    linger_s: float = 1.0
    history: str = "auto"
    retry_first_s: float = 0.5
    retry_quick_s: float = 5.0
    retry_quick_for_s: float = 300.0
    retry_cap_s: float = 60.0
    max_readings: int = 5000


class Log(Source, Protocol):
    """What the forwarder asks of the log beside the lane."""

    async def wait(self, consumer: str, after: int | None = None) -> None: ...

    def backlog(self, consumer: str) -> tuple[int, datetime | None]: ...


class Forwarder:
    """Forwards to one broker. `run` never returns and raises only for our own bugs."""

    def __init__(
        self,
        name: str,
        broker: Broker,
        mappings: "MappingOf[str, Sequence[Mapping]]",
        log: Log,
        health: BrokerHealth,
        clock: Clock,
        settings: ForwardSettings | None = None,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self._broker = broker
        self._log = log
        self._health = health
        self._clock = clock
        self._settings = settings = settings or ForwardSettings()
        self._breaker = Breaker(
            Backoff(
                settings.retry_first_s,
                settings.retry_cap_s,
                quick_cap_s=settings.retry_quick_s,
                quick_for_s=settings.retry_quick_for_s,
                rng=rng,
            )
        )
        self._lane = HistoryLane(name, broker, mappings, log, Accepted(), max_readings=settings.max_readings)
        health.history = "in-order"

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                await self._turn()
        finally:
            await self._broker.close()

    async def _turn(self) -> None:
        """One read of the log or one round to the broker."""
        self._show_backlog()
        if self._lane.idle:
            await self._log.wait(self.name)
            await self._clock.sleep(self._settings.linger_s if self._at_tail() else 0)
            await self._lane.fill()
            return
        try:
            outcome = await self._lane.send()
        except BrokerUnavailable as fault:
            outcome = Outcome(fault=fault)
        await self._judge(outcome)

    async def _judge(self, outcome: Outcome) -> None:
        health, traffic = self._health, self._broker.traffic
        health.requests, health.sent_bytes = traffic.requests, traffic.sent_bytes
        health.accepted += len(outcome.accepted)
        health.refused += len(outcome.refused)
        for entity_id, reason in outcome.refused.items():
            event("entity_refused", broker=self.name, entity=entity_id, reason=reason)
        if outcome.accepted:
            health.last_accepted_at = self._clock.now()
        if outcome.fault is not None or (outcome.later and not outcome.accepted):
            await self._back_off(outcome.fault or BrokerUnavailable(next(iter(outcome.later.values()))))
        else:
            self._up()

    async def _back_off(self, fault: BrokerUnavailable) -> None:
        wait_s = self._breaker.failed(self._clock.monotonic_s(), fault.retry_after_s)
        state = "login" if isinstance(fault, LoginFailed) else "down"
        self._set_state(state, str(fault), REMEDIES[state])
        self._show_backlog()
        self._health.next_try_at = self._clock.now() + timedelta(seconds=wait_s)
        await self._clock.sleep(wait_s)

    def _up(self) -> None:
        self._breaker.worked()
        self._health.next_try_at = None
        self._set_state("ok")

    def _set_state(self, state: str, reason: str = "", remedy: str = "") -> None:
        health = self._health
        if health.state != state:
            event(f"broker_{state}", broker=self.name, reason=reason)
            health.since = self._clock.now()
        health.state, health.reason, health.remedy = state, reason, remedy

    def _at_tail(self) -> bool:
        return self._log.backlog(self.name)[0] < self._settings.max_readings

    def _show_backlog(self) -> None:
        self._health.backlog, self._health.oldest_unsent_at = self._log.backlog(self.name)
