"""One broker, served for ever: history mode by probe, pace, outage, resume. It never ends on a fault of the broker and
never waits for another broker."""

import asyncio
import contextlib
import random
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol

from gateway.backoff import Backoff, Breaker
from gateway.config.model import BrokerConfig
from gateway.forward.aside import FUTURE, GATHER_S, Aside, Held, in_time
from gateway.forward.broker import (
    Accepted,
    Broker,
    LoginFailed,
    NotOffered,
    Outcome,
    Point,
    Probe,
    ReadRefused,
    Streak,
)
from gateway.forward.history_lane import (
    FUTURE_AGAIN_S,
    INCOMPLETE_S,
    LATE,
    InOrderLane,
    PastLane,
    Shared,
    Source,
)
from gateway.forward.refusals import Refusals
from gateway.forward.state_lane import StateLane
from gateway.forward.updates import Complete, Sent, Update, Values
from gateway.forward.updates import updates as updates_of
from gateway.harmonise.entity import Attribute, Entity
from gateway.health import BrokerHealth, BrokerState, set_state
from gateway.journal import event
from gateway.sdk.driver import Clock
from gateway.sdk.errors import BrokerUnavailable, LogError
from gateway.sdk.reading import Quality, ReadingSet

if TYPE_CHECKING:
    from gateway.harmonise.compile import Mapping

Mode = Literal["temporal", "in-order", "latest-only"]
REMEDIES = {
    BrokerState.LOGIN: "check auth: of this broker and its clock; a changed secret is read at reload",
    BrokerState.DOWN: "nothing is lost; it is tried again by itself",
    BrokerState.CONFIG_FAULT: "the broker refuses every entity: check tenant, types and the city's rules; one entity is tried again by itself",
}
NOTE_EVERY_S = 3600.0
SHOW_EVERY_S = 0.2
PROBE_CAP_S = 3600.0
ASK_TIME_EVERY_S = 10.0
READINGS_AHEAD = 20_000  # while a config fault lasts, so much is read to find an entity that is accepted


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How to forward to one broker.

    Attributes:
        linger_s: wait so long for more, so that one request carries many.
        history: `auto` asks the broker.
        rate_per_s: most readings a second; the past waits for the present.
        records: whether a broker with a temporal API records by itself what becomes current; None = look.
        records_within_s: how long that takes at most.
        gather_s: what is refused is gathered so long before it is written to the card.
        held_every_s: how often held pieces are looked at.
        probe_again_s: what somebody on the way may have said is asked again after this, then less and less often.
        unsure_s: so long a temporal API must be missed until that is believed, when the broker does not say so itself.
        retry_quick_s: while an outage is young, tries are at most this far apart.
        retry_cap_s: later on, at most this far.
    """

    linger_s: float = 1.0
    history: str = "auto"
    rate_per_s: float = 500.0
    records: bool | None = None
    records_within_s: float = 10.0
    gather_s: float = GATHER_S
    held_every_s: float = 1.0
    probe_again_s: float = 10.0
    unsure_s: float = 60.0
    retry_first_s: float = 0.5
    retry_quick_s: float = 5.0
    retry_quick_for_s: float = 300.0
    retry_cap_s: float = 60.0
    max_readings: int = 5000


def settings_of(config: BrokerConfig) -> ForwardSettings:
    """How to forward to the broker of one entry of the operator's file."""
    records = True if config.preset in ("scorpio", "stellio") else None
    return ForwardSettings(config.linger_s, config.history, config.rate_per_s, records)


def _breaker(settings: ForwardSettings, rng: random.Random | None) -> Breaker:
    backoff = Backoff(
        settings.retry_first_s,
        settings.retry_cap_s,
        quick_cap_s=settings.retry_quick_s,
        quick_for_s=settings.retry_quick_for_s,
        rng=rng,
    )
    return Breaker(backoff)


class Log(Source, Protocol):
    """What the forwarder asks of the log beside the lanes."""

    @property
    def last_values(self) -> Values: ...
    @property
    def first_seq(self) -> int: ...
    @property
    def held(self) -> Held: ...
    async def wait(self, consumer: str, after: int | None = None) -> None: ...
    def backlog(self, consumer: str) -> tuple[int, datetime | None]: ...
    def driver_state(self, device: str) -> "MappingOf[str, bytes]": ...
    async def append(self, readings: ReadingSet) -> object: ...


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
        self._breaker, self._past_breaker = (_breaker(settings, rng) for _ in range(2))
        self._past_fault: BrokerUnavailable | None = None
        self._mapping = {(m.entity_id, m.device): m for tables in mappings.values() for m in tables}
        self._mapping_of_id = {entity_id: mapping for (entity_id, _), mapping in self._mapping.items()}
        self._refusals = Refusals(name, clock, _devices(self._mapping))
        self._aside = Aside(name, log.held, clock, every_s=settings.gather_s)
        self._of = Shared(
            name,
            broker,
            mappings,
            log,
            self._aside,
            clock,
            Accepted(clock),
            Sent(),
            Complete(log.last_values, log.series),
            Streak(len(self._mapping_of_id)),
            settings.max_readings,
        )
        self._state = StateLane(
            broker,
            mappings,
            log.last_values,
            log.series,
            accepted=self._of.accepted,
            sent=self._of.sent,
            complete=self._of.complete,
            first_seq=log.first_seq,
            clock=clock,
        )
        self._mode: Mode | None = None
        self._next_mode: Mode | None = None  # taken over between two stretches of the log
        self._ahead = False  # the state was sent ahead of what the log still holds, by an earlier run
        self._probe_at_s: float | None = None  # the broker is asked again how history is to be sent
        self._probed_s = 0.0
        self._probe_wait_s = self._settings.probe_again_s
        self._unsure_since_s: float | None = None
        self._show_due_s = 0.0
        self._greeting: InOrderLane | None = None  # before the tenant exists
        self._in_order: InOrderLane | None = None
        self._past: PastLane | None = None
        self._records = settings.records
        self._sample: Point | None = None  # by which it is learned whether the broker records by itself
        self._sample_until_s = 0.0
        self._started_s = clock.monotonic_s()
        self._state_due_s = 0.0
        self._held_due_s = 0.0
        self._time_due_s = 0.0
        self._free_at_s = 0.0  # the rate is used up until then
        self._stuck = False
        self._tries = 0
        self._place = f"broker {name}"  # of what is kept in the log; no device is called so, names have no space
        self._month = "", 0
        self._counted_bytes = 0
        self._noted: dict[str, bytes] = {}
        self._note_due_s = clock.monotonic_s() + NOTE_EVERY_S
        slots = sum(len(mapping.slots) for mapping in self._mapping.values())
        self._readings_an_entity = max(1.0, slots / max(1, len(self._mapping)))

    async def run(self) -> None:
        """Serve until cancelled."""
        self._recall()
        try:
            while True:
                await self._turn()
                if self._clock.monotonic_s() >= self._note_due_s:
                    await self._note()
        finally:
            with contextlib.suppress(LogError):  # told by the log itself
                await self._note()
            await self._broker.close()

    # what outlives a restart: the batch size that was learned, the way history is sent, the bytes of this month

    def _recall(self) -> None:
        kept = self._log.driver_state(self._place)
        month, _, count = kept.get("month", b"").decode("ascii", "replace").partition(" ")
        self._month = month, int(count) if count.isdigit() else 0
        batch = kept.get("batch", b"").decode("ascii", "replace")
        self._broker.traffic.batch = int(batch) if batch.isdigit() else 0
        self._ahead = kept.get("mode", b"") in (b"temporal", b"latest-only")
        self._counted_bytes = 0

    async def _note(self) -> None:
        self._note_due_s = self._clock.monotonic_s() + NOTE_EVERY_S
        self._count_bytes()
        month, count = self._month
        state = {"month": f"{month} {count}".encode(), "batch": str(self._broker.traffic.batch).encode()}
        if self._mode is not None:
            ahead = self._in_order is not None and self._in_order.ahead
            state["mode"] = b"temporal" if ahead else self._mode.encode()
        if state != self._noted:
            self._noted = state
            await self._log.append(ReadingSet(self._place, (), state))

    def _count_bytes(self) -> None:
        traffic = self._broker.traffic
        total = traffic.sent_bytes + traffic.received_bytes
        month = self._clock.now().strftime("%Y-%m")
        count = self._month[1] if self._month[0] == month else 0
        self._month = month, count + total - self._counted_bytes
        self._counted_bytes = total

    async def _turn(self) -> None:
        """One step; whatever the broker does wrong ends in a wait."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._show_due_s:
            self.show()
        try:
            await self._ask_time()
            if self._mode is None:
                outcome = await self._choose()
            elif self._probe_at_s is not None and now_s >= self._probe_at_s and self._breaker.closed:
                outcome = await self._ask_again()
            elif self._in_order is not None:
                outcome = await self._turn_in_order(self._in_order)
            else:
                outcome = await self._turn_two_lanes()
        except BrokerUnavailable as fault:
            outcome = Outcome(fault=fault)
        except LogError as error:  # shown by the log's own status; what it holds is tried again
            event("forward_waits_for_log", broker=self.name, reason=str(error))
            await self._clock.sleep(self._settings.held_every_s)
            return
        if outcome is not None:
            await self._judge(outcome)

    async def _ask_time(self) -> None:
        """While nobody vouches for our time nothing is sent, so no answer would tell the broker's: it is asked again."""
        trust = getattr(self._clock, "trust", None)
        now_s = self._clock.monotonic_s()
        if self._mode is None or trust is None or trust.trusted or now_s < self._time_due_s:
            return
        self._time_due_s = now_s + ASK_TIME_EVERY_S
        await self._broker.probe()

    # history mode

    async def _choose(self) -> Outcome | None:
        """Ask the broker, by reads alone, how the past can be sent."""
        wanted = self._settings.history
        try:
            probe = await self._broker.probe()
        except ReadRefused as fault:
            if wanted == "auto":
                raise LoginFailed(f"{fault}; allow it, or set history: of this broker") from fault
            probe = Probe(readable=False, temporal=None)  # the operator said how
        if wanted == "auto" and probe.temporal is None:
            return await self._greet()
        mode = self._mode_of(wanted, probe)
        if mode == "in-order" and self._greeting is not None:
            self._in_order, self._greeting = self._greeting, None
            self._in_order.forget()
        await self._begin(mode)
        self._probe_later(probe)
        event("history_mode", broker=self.name, mode=mode, readable=probe.readable, product=probe.product)
        return Outcome()

    async def _begin(self, mode: Mode) -> None:
        """The lanes of a mode; they begin at the cursor."""
        if mode == "in-order":
            self._in_order = self._in_order or InOrderLane(self._of, ahead=self._ahead)
        elif mode == "latest-only":
            self._past = self._past_lane(records=True, temporal=False)
        elif self._records is not None:
            self._past = self._past_lane(records=self._records, temporal=True)
        self._mode = self._health.history = mode
        await self._note()

    def _mode_of(self, wanted: str, probe: Probe) -> Mode:
        if wanted == "auto":
            return "temporal" if probe.temporal else "in-order"
        if wanted == "temporal" and probe.temporal is False:
            raise BrokerUnavailable("history: temporal is asked for, but the broker offers no temporal API to read")
        return "in-order" if wanted == "in-order" else "latest-only" if wanted == "latest-only" else "temporal"

    async def _greet(self) -> Outcome | None:
        """The tenant is made by its first write: the oldest values, which suit every mode."""
        self._greeting = lane = self._greeting or InOrderLane(self._of, remember=True, ahead=self._ahead)
        if lane.idle and not await self._fill(lane):
            return None
        outcome = await lane.send(most=1)
        self._refusals.note("past", outcome)
        return outcome

    # what a probe settled may change: a broker is replaced, an ingress had no route yet

    def _probe_later(self, probe: Probe | None) -> None:
        """A broker's own word stands until the next outage; anything else is asked for again."""
        if self._settings.history != "auto" or (probe is not None and probe.sure):
            self._probe_at_s, self._probe_wait_s = None, self._settings.probe_again_s
            return
        self._probe_at_s = self._clock.monotonic_s() + self._probe_wait_s
        self._probe_wait_s = min(2 * self._probe_wait_s, PROBE_CAP_S)

    def _probe_soon(self) -> None:
        """After an outage, or when the way of sending is refused as such."""
        if self._settings.history == "auto" and self._mode is not None:
            self._probe_at_s = self._probed_s + 5 * self._settings.held_every_s
            self._probe_wait_s = self._settings.probe_again_s

    async def _ask_again(self) -> Outcome | None:
        """Probe once more. What it cannot tell changes nothing: the lanes will notice whether the broker is there."""
        self._probed_s = now_s = self._clock.monotonic_s()
        try:
            probe = await self._broker.probe()
        except BrokerUnavailable:
            self._probe_later(None)
            return None
        mode = self._mode if probe.temporal is None else self._mode_of("auto", probe)
        if mode == self._mode:
            self._next_mode = self._unsure_since_s = None
            self._probe_later(probe)
        elif probe.sure:
            self._next_mode, self._unsure_since_s = mode, None
            self._probe_later(probe)
        else:
            since_s = self._unsure_since_s = now_s if self._unsure_since_s is None else self._unsure_since_s
            self._next_mode = mode if now_s - since_s >= self._settings.unsure_s else None
            self._probe_wait_s = min(self._settings.probe_again_s, self._settings.unsure_s / 4)
            self._probe_later(probe)
        if self._next_mode == "in-order" and self._in_order is None:
            await self._go_in_order()
        return None

    async def _go_in_order(self) -> None:
        """The history is gone: what lies in its lane goes on in order. What is older than the state by now is held."""
        self._in_order = InOrderLane(self._of, ahead=True)
        if self._past is not None:
            self._in_order.take_over(self._past)
        self._past, self._past_fault, self._next_mode = None, None, None
        self._past_breaker.worked()
        await self._begin("in-order")
        event("history_mode", broker=self.name, mode="in-order", product="")

    async def _go_temporal(self, lane: InOrderLane) -> bool:
        """Between two stretches: nothing read is open, so nothing can go twice. Whether it could be done."""
        await self._aside.write(at_once=True)
        await lane.settle()
        if lane.position is not None:
            return False
        self._in_order, self._next_mode = None, None
        await self._aside.again(LATE)
        await self._begin("temporal")
        event("history_mode", broker=self.name, mode="temporal", product="")
        return True

    def _past_lane(self, *, records: bool, temporal: bool) -> PastLane:
        return PastLane(
            self._of, self._state.pending, records=records, temporal=temporal, first_seq=self._log.first_seq
        )

    async def _learn_records(self) -> Outcome | None:
        """Look whether what became current turns up in the history by itself; once decided, the past may flow."""
        within_s, now_s = self._settings.records_within_s, self._clock.monotonic_s()
        if self._sample is None:
            self._sample, self._sample_until_s = self._of.accepted.sample(), now_s + 3 * within_s
        if self._sample is None:  # nothing became current yet
            if not await self._pass_over_bad():
                await self._rest()
            return None
        entity_id, key, at = self._sample
        mapping = self._mapping_of_id[entity_id]
        attribute = Attribute("property", 0, "", at)
        asked = Entity(entity_id, mapping.entity_type, mapping.context, {key: attribute}, mapping.device)
        recorded = self._sample in await self._broker.history_back([asked])
        if recorded or now_s >= self._sample_until_s:
            self._records = recorded
            self._past = self._past_lane(records=recorded, temporal=True)
            event("history_recorded", broker=self.name, by_itself=recorded)
        else:
            await self._clock.sleep(min(within_s / 20, self._settings.linger_s or within_s / 20))
        return None

    async def _pass_over_bad(self) -> bool:
        """Readings without a value concern no city: devices that are all silent leave no backlog. Whether there were any."""
        columns = await self._log.read(self.name, max_readings=self._settings.max_readings)
        if columns is None or Quality.GOOD in columns.quality:
            return False
        await self._log.settle(self.name, columns.last)
        return True

    # the two ways

    async def _turn_in_order(self, lane: InOrderLane) -> Outcome | None:
        if lane.idle:
            await lane.settle()
            if self._next_mode == "temporal" and await self._go_temporal(lane):
                return None
            if await self._retry_held(lane):
                return None
            was_ahead = lane.ahead
            await self._fill(lane)
            if was_ahead and not lane.ahead:
                await self._note()
            return None
        if self._of.streak.config_fault:
            if lane.waiting_readings < READINGS_AHEAD:
                await lane.fill()
            self._tries += 1
            outcome = await lane.send(most=1, skip=self._tries)
            self._refusals.note("past", outcome)
            return outcome
        if self._ahead_of_rate():
            await self._rest()
            return None
        outcome = await lane.send()
        self._refusals.note("past", outcome)
        self._spend(len(outcome.accepted))
        return outcome

    async def _fill(self, lane: InOrderLane) -> bool:
        """Read on; at the tail wait for something, and then for more of it."""
        if await self._wait_for_work(lane.position):
            if self._log.backlog(self.name)[0] < self._settings.max_readings:
                await self._clock.sleep(self._settings.linger_s)
            return await lane.fill()
        return False

    async def _turn_two_lanes(self) -> Outcome | None:
        fault = self._of.streak.config_fault
        if self._sweep_is_due() and (self._stuck or not self._of.sent.full):
            return await self._sweep(most=1 if fault else None)
        lane = self._past
        if lane is None:
            return await self._learn_records()
        if self._past_breaker.wait_s(self._clock.monotonic_s()) > 0:
            await self._rest()
            return None
        if lane.idle and not await self._retry_held(lane):
            self._stuck = not await lane.fill()
            if self._stuck:
                await lane.settle()
                await self._wait_for_work(lane.position)
            return None
        if lane.idle:
            return None
        if self._ahead_of_rate() or self._too_early(lane):
            await self._rest()
            return None
        try:
            outcome = await lane.send()
        except BrokerUnavailable as fault_of_read:
            outcome = Outcome(fault=fault_of_read)
        self._refusals.note("past", outcome)
        self._spend(len(outcome.accepted))
        if outcome.fault is not None:
            self._past_failed(outcome.fault)
            return None
        if not self._past_breaker.closed:
            self._past_breaker.worked()
            self._past_fault = None
        return outcome

    def _past_failed(self, fault: BrokerUnavailable) -> None:
        """The past waits by itself: a broker that refuses or fails only there still gets the present at once."""
        wait_s = self._past_breaker.failed(self._clock.monotonic_s(), fault.retry_after_s)
        self._past_fault = fault
        self._show_past_fault()
        if isinstance(fault, NotOffered):
            self._probe_soon()
        self._health.next_try_at = self._clock.now() + timedelta(seconds=wait_s)

    def _show_past_fault(self) -> None:
        fault = self._past_fault
        if fault is not None:
            state = BrokerState.LOGIN if isinstance(fault, LoginFailed) else BrokerState.DOWN
            self._set_state(state, f"history: {fault}", fault.remedy or REMEDIES[state])

    def _sweep_is_due(self) -> bool:
        return self._clock.monotonic_s() >= self._state_due_s and self._state.changed()

    async def _sweep(self, most: int | None = None) -> Outcome:
        self._state_due_s = self._clock.monotonic_s() + self._settings.linger_s
        self._tries += 1
        outcome = await self._state.send(most, skip=self._tries)
        self._of.streak.note(outcome, "state")
        self._refusals.note("state", outcome)
        if self._of.streak.begun and not self._of.streak.one_bad:
            self._state.hurry()  # the verdict is open: no entity is set aside yet
            self._state_due_s += self._settings.linger_s
        self._spend(len(outcome.accepted))
        return outcome

    def _too_early(self, lane: PastLane) -> bool:
        """What an earlier run sent as current shows in the broker's history only after a while."""
        since_s = self._clock.monotonic_s() - self._started_s
        return lane.of_earlier_run and bool(self._records) and since_s < self._settings.records_within_s

    async def _retry_held(self, lane: InOrderLane | PastLane) -> bool:
        """Put held updates whose time has come into a lane; whether there were any."""
        now_s = self._clock.monotonic_s()
        if now_s < self._held_due_s:
            return False
        self._held_due_s = now_s + self._settings.held_every_s
        updates: list[Update] = []
        for piece, columns in await self._aside.due():
            mapping = self._mapping.get((piece.entity, piece.device))
            if mapping is None:
                self._aside.give_up(piece, "no longer sent to this broker")
            elif not in_time(piece, columns, self._of.latest_us()):
                self._aside.put_off(piece, FUTURE, FUTURE_AGAIN_S)
            elif self._of.complete.lacks(mapping):
                self._aside.put_off(piece, "waits for mandatory attributes", INCOMPLETE_S)
            else:
                again = list(updates_of(columns, self._log.series, {piece.device: (mapping,)}))
                for update in again:
                    update.held, update.seq = piece.id, 0
                if again:
                    self._aside.trying(piece, len(again))
                else:
                    self._aside.give_up(piece, "the mapping takes none of it")
                updates += again
        await lane.put_first(
            updates
        )  # before the card is asked: if it refuses, the pieces are in the lane all the same
        await self._aside.write()
        return not lane.idle

    # waiting and pace

    async def _wait_for_work(self, after: int | None) -> bool:
        """Until the log has something, a sweep is due or a held item may be; whether it was the log."""
        self.show()
        if self._state.changed() and self._mode != "in-order" and self._mode is not None:
            await self._clock.sleep(max(0.01, self._state_due_s - self._clock.monotonic_s()))
            return False
        soon = self._stuck or not self._aside.empty
        waiting = asyncio.ensure_future(self._log.wait(self.name, after))
        try:
            done, _ = await asyncio.wait({waiting}, timeout=self._settings.held_every_s * (1 if soon else 5))
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
        if done and self._stuck:
            await self._clock.sleep(0.01)
        return bool(done)

    def _ahead_of_rate(self) -> bool:
        return self._free_at_s > self._clock.monotonic_s() + 1.0

    def _spend(self, entities: int) -> None:
        readings = entities * self._readings_an_entity
        start_s = max(self._clock.monotonic_s(), self._free_at_s)
        self._free_at_s = start_s + readings / self._settings.rate_per_s

    async def _rest(self) -> None:
        await self._clock.sleep(min(0.2, self._settings.linger_s or 0.2))

    # verdicts

    async def _judge(self, outcome: Outcome) -> None:
        health = self._health
        health.accepted += len(outcome.accepted)
        health.refused += len(outcome.refused)
        if outcome.accepted:
            health.last_accepted_at = self._clock.now()
        if outcome.fault is not None:
            await self._back_off(outcome.fault)
        elif self._of.streak.config_fault and outcome.later and not outcome.refused:
            await self._wait(BrokerUnavailable(next(iter(outcome.later.values()))), BrokerState.DOWN)
        elif self._of.streak.config_fault:
            reason = next(iter(outcome.refused.values()), "every entity is refused")
            await self._wait(BrokerUnavailable(reason), BrokerState.CONFIG_FAULT)
        else:
            self._up()

    async def _back_off(self, fault: BrokerUnavailable) -> None:
        await self._wait(fault, BrokerState.LOGIN if isinstance(fault, LoginFailed) else BrokerState.DOWN)

    async def _wait(self, fault: BrokerUnavailable, state: BrokerState) -> None:
        wait_s = self._breaker.failed(self._clock.monotonic_s(), fault.retry_after_s)
        self._set_state(state, str(fault), fault.remedy or REMEDIES[state])
        self._health.next_try_at = self._clock.now() + timedelta(seconds=wait_s)
        self.show()
        await self._clock.sleep(wait_s)

    def _up(self) -> None:
        if not self._breaker.closed:
            self._state.hurry()
            self._probe_soon()
        self._breaker.worked()
        if self._past_fault is not None:
            self._show_past_fault()
            return
        self._health.next_try_at = None
        self._set_state(BrokerState.OK, self._broker.traffic.warning)

    def _set_state(self, state: BrokerState, reason: str = "", remedy: str = "") -> None:
        set_state(self._health, self.name, state, reason, remedy, at=self._clock.now())

    def show(self) -> None:
        """Write the health record as it is at this moment; also asked for by who shows it."""
        self._show_due_s = self._clock.monotonic_s() + SHOW_EVERY_S
        health, traffic = self._health, self._broker.traffic
        self._count_bytes()
        health.requests, health.batch, health.month_bytes = traffic.requests, traffic.batch, self._month[1]
        health.sent_bytes, health.received_bytes = traffic.sent_bytes, traffic.received_bytes
        health.backlog, health.oldest_unsent_at = self._log.backlog(self.name)
        health.later, health.dead = self._aside.counts()
        health.refusing = self._refusals.now(self._aside.dead() if health.dead else {})
        health.waiting = dict(self._of.complete.missing)
        lane = self._in_order or self._past
        if lane is not None:
            health.late, health.skipped = lane.counts.late, lane.counts.skipped


def _devices(mappings: "MappingOf[tuple[str, str], Mapping]") -> dict[str, str]:
    """The devices of each entity, by its id."""
    found: dict[str, list[str]] = {}
    for entity_id, device in mappings:
        found.setdefault(entity_id, []).append(device)
    return {entity_id: ", ".join(devices) for entity_id, devices in found.items()}
