"""One broker, served for ever: turns of the way of sending, outage, resume. It never ends on a fault of the broker and never
waits for another broker."""

import contextlib
import random
from collections import Counter
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from gateway.backoff import Backoff, Breaker
from gateway.forward.aside import Aside, Held
from gateway.forward.broker import Accepted, Broker, Outcome, Streak
from gateway.forward.feeds import Feeds, Recipes, Source
from gateway.forward.pace import Pace
from gateway.forward.probing import Probing
from gateway.forward.recording import Recording
from gateway.forward.refusals import Refusals
from gateway.forward.settings import ForwardSettings
from gateway.forward.standing import Standing
from gateway.forward.state_lane import StateLane
from gateway.forward.statics import Statics, statics_of
from gateway.forward.updates import Sent, Told, instant
from gateway.forward.usage import Usage
from gateway.forward.verdicts import Shared
from gateway.forward.ways import Common, Greeting, Way
from gateway.health import BrokerHealth, BrokerState
from gateway.journal import event
from gateway.sdk.driver import Clock
from gateway.sdk.errors import BrokerUnavailable, LogError
from gateway.sdk.reading import ReadingSet

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping

SHOW_EVERY_S = 0.2
ASK_TIME_EVERY_S = 10.0


def _backoff(settings: ForwardSettings, rng: random.Random | None) -> Backoff:
    return Backoff(
        settings.retry_first_s,
        settings.retry_cap_s,
        quick_cap_s=settings.retry_quick_s,
        quick_for_s=settings.retry_quick_for_s,
        rng=rng,
    )


def _breaker(settings: ForwardSettings, rng: random.Random | None) -> Breaker:
    return Breaker(_backoff(settings, rng))


def _used(mappings: "MappingOf[str, Sequence[Mapping]]") -> dict[str, int]:
    """How many entities are sent with each context."""
    context_of = {table.entity_id: table.context for tables in mappings.values() for table in tables}
    return dict(Counter(context_of.values()))


def recording_of(settings: ForwardSettings) -> Recording:
    """What is known beforehand of a broker's history."""
    recording = Recording(settings.records, forgets=settings.records is None)
    recording.named(settings.product)
    return recording


class Log(Source, Protocol):
    """What the forwarder asks of the log beside the lanes."""

    @property
    def held(self) -> Held: ...
    async def wait(self, consumer: str, after: int | None = None) -> None: ...
    def backlog(self, consumer: str) -> tuple[int, datetime | None]: ...
    def driver_state(self, device: str) -> MappingOf[str, bytes]: ...
    async def append(self, readings: ReadingSet) -> object: ...


class Forwarder:
    """Forwards to one broker. `run` never returns and raises only for our own bugs.

    Args:
        before: what an earlier one told the same broker in this run.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        mappings: "MappingOf[str, Sequence[Mapping]]",
        *,
        log: Log,
        health: BrokerHealth,
        clock: Clock,
        settings: ForwardSettings | None = None,
        recipes: Recipes = lambda device: (),
        rng: random.Random | None = None,
        before: Told | None = None,
    ) -> None:
        settings = settings or ForwardSettings()
        broker = self._statics = Statics(name, broker, statics_of(mappings), log=log, clock=clock, city=settings.city)
        feeds = Feeds(name, log, mappings, recipes=recipes, max_readings=settings.max_readings)
        feeds.more = self._more
        recording = recording_of(settings)
        contexts = broker.traffic.contexts
        self._used = contexts.used = _used(mappings)
        self._devices = feeds.devices
        contexts.backoff = lambda: _backoff(settings, rng)
        self.name = name
        self._broker = broker
        self._log = log
        self._health = health
        self._clock = clock
        self._settings = settings
        self._breaker = _breaker(settings, rng)
        self._shared = of = Shared(
            broker=broker,
            feeds=feeds,
            aside=Aside(name, log.held, clock, every_s=settings.gather_s, contexts=contexts),
            clock=clock,
            accepted=Accepted(clock, None if before is None else before.first),
            sent=Sent() if before is None else before.sent,
            streak=Streak(len(self._devices)),
        )
        self._common = Common(
            name=name,
            of=of,
            state=StateLane(
                broker,
                feeds,
                accepted=of.accepted,
                sent=of.sent,
                clock=clock,
                doubted=None if before is None else before.doubted,
            ),
            log=log,
            settings=settings,
            pace=Pace(clock, settings.rate_per_s),
            probing=Probing(broker, clock, settings),
            standing=Standing(name, health, clock),
            refusals=Refusals(name, clock, self._devices),
            usage=Usage(name, broker.traffic, log, clock, recording, city=settings.city),
            past_breaker=_breaker(settings, rng),
            look_breaker=_breaker(settings, rng),
            show=self.show,
            recording=recording,
            ahead=False,
            started_s=clock.monotonic_s(),
        )
        broker.traffic.before = self._common.pace.before
        self._way: Way = Greeting(self._common)
        self._show_due_s = 0.0
        self._time_due_s = 0.0

    def _more(self, tables: "Sequence[Mapping]") -> None:
        """A device that is gone is still owed: its entities are sent like any other."""
        self._statics.add(statics_of({tables[0].device: tables}))
        for table in tables:
            self._used[table.context] = self._used.get(table.context, 0) + 1
            if table.entity_id not in self._devices:
                self._devices[table.entity_id] = table.device
                self._shared.streak.entities += 1

    async def run(self) -> None:
        """Serve until cancelled."""
        usage = self._common.usage
        self._common.ahead = usage.recall() in ("temporal", "latest-only")
        newest = self._log.first_seq + self._log.given
        self._shared.feeds.sent_before = usage.sent_upto if usage.sent_upto <= newest else 0  # of another log
        try:
            while True:
                await self._turn()
                if usage.due:
                    await self._note()
        finally:
            with contextlib.suppress(LogError):  # told by the log itself
                await self._note()
            await self._broker.close()

    def told(self) -> Told | None:
        """What the next one is to know, when this one has ended; None when that is not all that was sent as current."""
        of = self._shared
        if not self._log.first_seq or not self._way.end():  # numbers are still to change, as the file is not open
            return None
        return Told(of.sent, self._common.state.doubted, of.accepted.firsts)

    async def _note(self) -> None:
        await self._common.usage.note(self._way.kept_mode, self._sent_upto())
        await self._statics.note()

    def _sent_upto(self) -> int:
        """Up to here all was sent, as is known for sure; 0: numbers are still to change, as the file is not open."""
        if not self._log.first_seq:
            return 0
        feeds, open_seq = self._shared.feeds, self._way.open_seq
        upto = max(feeds.accepted_upto, feeds.sent_before)  # what an earlier run noted holds, read again or not
        return upto if open_seq is None else min(upto, open_seq - 1)

    async def _turn(self) -> None:
        """One step; whatever the broker does wrong ends in a wait."""
        if self._clock.monotonic_s() >= self._show_due_s:
            self.show()
        part_fault = self._way.fault
        try:
            await self._ask_time()
            contexts = self._broker.traffic.contexts
            if await contexts.look():
                self._common.state.hurry()
            if contexts.all_away:  # the log keeps what comes, nothing is set aside
                raise contexts.fault()
            came = await self._step()
            if came is not None and not isinstance(came, Outcome):
                await self._go_on(came)
                came = None
        except BrokerUnavailable as fault:
            came = Outcome(fault=fault)
        except LogError as error:  # shown by the log's own status; what it holds is tried again
            event("forward_waits_for_log", broker=self.name, reason=str(error))
            await self._clock.sleep(self._settings.held_every_s)
            return
        if came is not None:
            await self._judge(came)
        elif part_fault is not None:
            self._part_works()

    async def _step(self) -> Outcome | Way | None:
        probing, mode = self._common.probing, self._way.mode
        if mode is not None and probing.due and self._breaker.closed:
            await probing.again(mode)
            self._common.recording.named(probing.product)
            return None
        return await self._way.turn()

    async def _go_on(self, way: Way) -> None:
        """Take another way."""
        was, self._way = self._way, way
        if way.mode != was.mode:
            self._common.probing.wanted = None
            self._health.history = way.mode or ""
            await self._common.usage.note(way.kept_mode)
        if was.mode is None:
            self._up()

    def _part_works(self) -> None:
        """What failed of the history does no longer, although nothing was sent."""
        if self._way.fault is None and self._breaker.closed and not self._shared.streak.config_fault:
            self._up()

    async def _ask_time(self) -> None:
        """While nobody vouches for our time nothing is sent, so no answer would tell the broker's: it is asked again."""
        trust = getattr(self._clock, "trust", None)
        now_s = self._clock.monotonic_s()
        if self._way.mode is None or trust is None or trust.trusted or now_s < self._time_due_s:
            return
        self._time_due_s = now_s + ASK_TIME_EVERY_S
        await self._broker.probe()

    # outage and resume

    async def _judge(self, outcome: Outcome) -> None:
        self._common.standing.count(outcome)
        if outcome.fault is not None:
            self._statics.failed()
            await self._wait(outcome.fault)
        elif not self._shared.streak.config_fault:
            self._up()
        elif outcome.later and not outcome.refused:
            await self._wait(BrokerUnavailable(next(iter(outcome.later.values()))), BrokerState.DOWN)
        else:
            reason = next(iter(outcome.refused.values()), "every entity is refused")
            await self._wait(BrokerUnavailable(reason), BrokerState.CONFIG_FAULT)

    async def _wait(self, fault: BrokerUnavailable, state: BrokerState | None = None) -> None:
        wait_s = self._breaker.failed(self._clock.monotonic_s(), fault.retry_after_s)
        self._common.standing.fails(fault, state)
        self._common.standing.try_in(wait_s)
        self.show()
        await self._clock.sleep(wait_s)

    def _up(self) -> None:
        common = self._common
        if not self._breaker.closed:
            common.state.hurry()
            if self._way.mode is not None:
                common.probing.soon()
        self._breaker.worked()
        if self._way.fault is not None:
            common.standing.fails(self._way.fault, of="history: ")
            breakers, now_s = (common.past_breaker, common.look_breaker), self._clock.monotonic_s()
            common.standing.try_in(max(breaker.wait_s(now_s) for breaker in breakers))
        else:
            warnings = self._broker.traffic.warning, common.pace.warning, common.probing.warning
            common.standing.works("; ".join(filter(None, warnings)))

    def show(self) -> None:
        """Write the health record as it is at this moment; also asked for by who shows it."""
        self._show_due_s = self._clock.monotonic_s() + SHOW_EVERY_S
        health, traffic, of, common = self._health, self._broker.traffic, self._shared, self._common
        health.requests, health.batch, health.month_bytes = traffic.requests, traffic.batch, common.usage.month_bytes()
        health.sent_bytes, health.received_bytes = traffic.sent_bytes, traffic.received_bytes
        health.backlog, health.oldest_unsent_at = self._log.backlog(self.name)
        common.pace.look(health.backlog)
        health.later, health.dead = of.aside.counts()
        health.refusing = common.refusals.now(of.aside.dead() if health.dead else {})
        health.waiting = dict(of.feeds.complete.missing)
        health.contexts = traffic.contexts.rows(self._clock.now())
        counts = self._way.counts
        if counts is not None:
            health.late, health.skipped, health.unseen = counts.late, counts.skipped, counts.unseen
            health.backlog += counts.unknown  # read, but nobody knows yet whether the city has it
            oldest = None if counts.unknown_us is None else instant(counts.unknown_us)
            health.oldest_unsent_at = min(filter(None, (health.oldest_unsent_at, oldest)), default=None)
        if health.state == BrokerState.STARTING:
            health.reason = traffic.waits
        health.records = common.recording.shown if self._way.mode == "temporal" else ""
