"""The ways of sending, one object each. A way takes turns until it gives another, which goes on from there.

Greeting ──► InOrder ◄──► TwoLanes
    └────────────────────────┘
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

from gateway.backoff import Breaker
from gateway.forward.aside import Aside
from gateway.forward.broker import Broker, LoginFailed, NotOffered, Outcome, Probe, ReadRefused, Streak
from gateway.forward.feeds import Feeds
from gateway.forward.history_lane import LATE, InOrderLane, PastLane
from gateway.forward.pace import Lane, Pace
from gateway.forward.probing import Mode, Probing, mode_of
from gateway.forward.recording import Recording
from gateway.forward.refusals import Refusals
from gateway.forward.settings import ForwardSettings
from gateway.forward.standing import Standing
from gateway.forward.state_lane import StateLane
from gateway.forward.usage import Usage
from gateway.forward.verdicts import LaneCounts, Shared
from gateway.forward.verify import Unseen
from gateway.journal import event
from gateway.sdk.driver import Clock
from gateway.sdk.errors import BrokerUnavailable

READINGS_AHEAD = 20_000  # while a config fault lasts, so much is read to find an entity that is accepted


class Arrivals(Protocol):
    """What a way asks of the log beside its lanes."""

    async def wait(self, consumer: str, after: int | None = None) -> None: ...
    def backlog(self, consumer: str) -> tuple[int, datetime | None]: ...


class Way(Protocol):
    """One way of sending.

    Attributes:
        mode: as it is shown; None while it is not known.
        kept_mode: what the next run of this box has to know of it.
        counts: what its history lane did.
        open_seq: number of the oldest set that was read and is not done; None when there is none.
        fault: why a part of it does not work, when the broker does.
    """

    @property
    def mode(self) -> Mode | None: ...
    @property
    def kept_mode(self) -> str: ...
    @property
    def counts(self) -> LaneCounts | None: ...
    @property
    def open_seq(self) -> int | None: ...
    @property
    def fault(self) -> BrokerUnavailable | None: ...
    def end(self) -> bool:
        """It takes no more turns: what it sent as current is among what was sent; whether that is all of it."""

    async def turn(self) -> "Outcome | Way | None":
        """One step: what became of a request, or the way to go on by; None when there is nothing to say.

        Raises:
            BrokerUnavailable: the broker failed.
            LogError: the log refuses.
        """


@dataclass(slots=True, kw_only=True)
class Common:
    """What the ways of sending to one broker have in common.

    Attributes:
        recording: whether the broker records by itself what becomes current.
        ahead: an earlier run sent the state ahead of what the log still holds.
        show: brings the shown figures up to date; called before a long wait.
    """

    name: str
    of: Shared
    state: StateLane
    log: Arrivals
    settings: ForwardSettings
    pace: Pace
    probing: Probing
    standing: Standing
    refusals: Refusals
    usage: Usage
    past_breaker: Breaker
    look_breaker: Breaker
    show: Callable[[], None]
    recording: Recording
    ahead: bool
    started_s: float
    state_due_s: float = 0.0
    held_due_s: float = 0.0
    tries: int = 0

    @property
    def clock(self) -> Clock:
        return self.of.clock

    @property
    def broker(self) -> Broker:
        return self.of.broker

    @property
    def aside(self) -> Aside:
        return self.of.aside

    @property
    def feeds(self) -> Feeds:
        return self.of.feeds

    @property
    def streak(self) -> Streak:
        return self.of.streak

    def sent_past(self, outcome: Outcome) -> Outcome:
        """What became of a request of the history."""
        self.refusals.note("past", outcome)
        return outcome

    async def retry_held(self, lane: InOrderLane | PastLane) -> bool:
        """Put held updates whose time has come into a lane; whether there were any."""
        now_s = self.clock.monotonic_s()
        if now_s < self.held_due_s:
            return False
        self.held_due_s = now_s + self.settings.held_every_s
        # in the lane before the card is asked: if it refuses, they are there all the same
        await lane.put_first(await self.aside.retry(self.feeds))
        await self.aside.write()
        return not lane.idle

    async def arrival(self, after: int | None, *, soon: bool) -> bool:
        """Wait until the log has something behind `after`, or something else may be due; whether it was the log."""
        within_s = self.settings.held_every_s * (1 if soon else 5)
        waiting = asyncio.ensure_future(self.log.wait(self.name, after))
        try:
            done, _ = await asyncio.wait({waiting}, timeout=within_s)
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})  # awaited by itself, its end could not be told from ours
        if done:
            waiting.result()
        return bool(done)

    async def rest(self, lane: Lane | None = None) -> None:
        """Wait a little; no longer than until a lane may send again."""
        wait_s = min(0.2, self.settings.linger_s or 0.2)
        if lane is not None:
            wait_s = min(wait_s, max(0.01, self.pace.next_s(lane) - self.clock.monotonic_s()))
        await self.clock.sleep(wait_s)

    def went(self, outcome: Outcome, lane: Lane) -> Outcome | None:
        """What became of what a lane sent; None when it had to wait: that says nothing of the broker."""
        return None if outcome == Outcome() and not self.pace.ready(lane) else outcome

    # what the two ways with a state lane share

    def sweep_is_due(self) -> bool:
        """Whether there is something new of what is true now."""
        return self.clock.monotonic_s() >= self.state_due_s and self.state.changed()

    async def sweep(self) -> Outcome | None:
        """Send what is true now; while the config is at fault one entity, as a probe."""
        streak = self.streak
        self.state_due_s = self.clock.monotonic_s() + self.settings.linger_s
        self.tries += 1
        outcome = await self.state.send(
            1 if streak.config_fault else None, skip=self.tries, fits=partial(self.pace.fits, "state")
        )
        if self.state.cut:
            self.state_due_s = self.pace.next_s("state")  # the rest goes as soon as it may
        streak.note(outcome, "state")
        self.refusals.note("state", outcome)
        self.aside.taken(outcome.accepted)
        if streak.begun and not streak.one_bad:
            self.state.hurry()  # the verdict is open: no entity is set aside yet
            self.state_due_s += self.settings.linger_s
        return self.went(outcome, "state")


async def _fill(common: Common, lane: InOrderLane) -> bool:
    """Read on; at the tail wait for something, and then for more of it."""
    common.show()
    if not await common.arrival(lane.position, soon=not common.aside.empty):
        return False
    if common.log.backlog(common.name)[0] < common.settings.max_readings:
        await common.clock.sleep(common.settings.linger_s)
    return await lane.fill()


class Greeting:
    """Ask the broker how the past can be sent. Where its tenant is made by the first write, send the oldest values first."""

    mode = None
    kept_mode = ""
    counts = None
    open_seq = None  # of what its lane reads nothing counts as sent
    fault = None

    def __init__(self, common: Common) -> None:
        self._common = common
        self._lane: InOrderLane | None = None

    def end(self) -> bool:
        return self._lane is None  # else one of its requests may be without an answer

    async def turn(self) -> "Outcome | Way | None":
        common, wanted = self._common, self._common.settings.history
        try:
            probe = await common.broker.probe()
        except ReadRefused as fault:
            if wanted == "auto":
                raise LoginFailed(f"{fault}; allow it, or set history: of this broker") from fault
            probe = Probe(readable=False, temporal=None)  # the operator said how
        if wanted == "auto" and probe.temporal is None:
            return await self._greet()
        mode = mode_of(wanted, probe)
        common.probing.later(probe)
        common.recording.named(common.probing.product)
        event("history_mode", broker=common.name, mode=mode, readable=probe.readable, product=probe.product)
        if mode == "temporal":
            await common.aside.again(LATE)  # of an earlier run, which found no history
        if mode == "in-order":
            return self._in_order()
        await common.aside.let_go()
        return _two_lanes(common, mode)

    async def _greet(self) -> Outcome | None:
        """The oldest values suit every mode."""
        common = self._common
        lane = self._lane = self._lane or InOrderLane(common.of, remember=True, ahead=common.ahead)
        # what is held may be the oldest, and all that the log has may wait for it
        if lane.idle and not await common.retry_held(lane) and not await _fill(common, lane):
            return None
        outcome = await lane.send(most=1)
        common.refusals.note("past", outcome)
        return outcome

    def _in_order(self) -> "InOrder":
        """What was read is not read again."""
        if self._lane is None:
            return InOrder(self._common, InOrderLane(self._common.of, ahead=self._common.ahead))
        self._lane.forget()
        return InOrder(self._common, self._lane)


class InOrder:
    """Everything goes out as current state, in order; the broker's history is what its state once was."""

    mode: Mode = "in-order"
    fault = None

    def __init__(self, common: Common, lane: InOrderLane) -> None:
        self._common = common
        self._lane = lane
        common.feeds.look_for_missing()

    @property
    def kept_mode(self) -> str:
        return "temporal" if self._lane.ahead else self.mode

    @property
    def counts(self) -> LaneCounts:
        return self._lane.counts

    @property
    def open_seq(self) -> int | None:
        return self._lane.open_seq

    def end(self) -> bool:
        return False  # of what is sent in order nothing is noted

    async def turn(self) -> "Outcome | Way | None":
        common, lane = self._common, self._lane
        if lane.idle:
            return await self._read_on()
        if common.streak.config_fault:
            return await self._try_one()
        if not common.pace.ready("both"):
            await common.rest("both")
            return None
        outcome = await lane.send(fits=partial(common.pace.fits, "both"))
        return common.went(common.sent_past(outcome), "both")

    async def _read_on(self) -> "Way | None":
        common, lane = self._common, self._lane
        await lane.settle()
        if common.probing.wanted == "temporal" and await self._may_end():
            event("history_mode", broker=common.name, mode="temporal", product="")
            return _two_lanes(common, "temporal")
        if await common.retry_held(lane):
            return None
        was_ahead = lane.ahead
        if not await _fill(common, lane) and common.log.backlog(common.name)[0] == 0:
            lane.caught_up()
        if was_ahead and not lane.ahead:
            await common.usage.note(self.kept_mode)
        return None

    async def _may_end(self) -> bool:
        """Between two stretches: nothing read is open, so nothing can go twice."""
        common = self._common
        await common.aside.write(at_once=True)
        await self._lane.settle()
        if self._lane.position is not None:
            return False
        await common.aside.again(LATE)
        return True

    async def _try_one(self) -> Outcome:
        """The config is at fault: one entity after the other, until one is accepted."""
        common, lane = self._common, self._lane
        if lane.waiting_readings < READINGS_AHEAD:
            await lane.fill()
        common.tries += 1
        outcome = await lane.send(most=1, skip=common.tries)
        common.refusals.note("past", outcome)
        return outcome


def _two_lanes(common: Common, mode: Mode) -> "Way":
    """State and history apart, from the cursor on."""
    of, pending = common.of, common.state.pending
    if mode == "latest-only":
        lane = PastLane(of, pending, recording=Recording(True, forgets=False), look=common.state.look, temporal=False)
        return TwoLanes(common, mode, lane)
    unseen = Unseen(of.broker, common.recording, of.clock, common.settings, done=of.aside.done)
    lane = PastLane(
        of,
        pending,
        recording=common.recording,
        look=common.state.look,
        unseen=unseen,
        unasked=common.state.unasked,
        put_off=common.state.put_off,
    )
    return TwoLanes(common, mode, lane)


def _without_history(common: Common, past: PastLane | None) -> InOrder:
    """The history is gone: what lies in its lane goes on in order. What is older than the state by now is held."""
    lane = InOrderLane(common.of, ahead=True)
    if past is not None:
        lane.take_over(past)
    event("history_mode", broker=common.name, mode="in-order", product="")
    return InOrder(common, lane)


class TwoLanes:
    """What is true now goes first and at once; what was goes to the history, or with `latest-only` nowhere."""

    def __init__(self, common: Common, mode: Mode, lane: PastLane) -> None:
        self.mode = mode
        self.kept_mode = mode
        self._common = common
        self._lane = lane
        self._breaker, self._looks = common.past_breaker, common.look_breaker
        self._faults: dict[Breaker, BrokerUnavailable] = {}
        for breaker in (self._breaker, self._looks):
            breaker.worked()
        self._stuck = False  # the history lane waits for the state lane

    @property
    def counts(self) -> LaneCounts:
        return self._lane.counts

    @property
    def open_seq(self) -> int | None:
        return self._lane.open_seq

    @property
    def fault(self) -> BrokerUnavailable | None:
        """Why the past cannot be sent, or else not be looked at."""
        return self._faults.get(self._breaker) or self._faults.get(self._looks)

    def end(self) -> bool:
        self._lane.note_sent()
        return True

    async def turn(self) -> "Outcome | Way | None":
        common, lane = self._common, self._lane
        if common.probing.wanted == "in-order":
            return _without_history(common, lane)
        if common.sweep_is_due() and (self._stuck or not common.of.sent.full):
            return await common.sweep()
        if self._breaker.wait_s(common.clock.monotonic_s()) > 0:
            await common.rest()
        elif await self._look():
            return None
        elif lane.idle and not await common.retry_held(lane):
            await self._read_on()
        elif lane.idle:
            return None
        elif not common.pace.ready("past"):
            await common.rest("past")
        elif self._too_early():
            await common.rest()
        else:
            return await self._send()
        return None

    async def _look(self) -> bool:
        """Look at what the history shows, when it is time; whether it was. What cannot be read keeps nothing from being sent."""
        if self._looks.wait_s(self._common.clock.monotonic_s()) > 0:
            return False
        try:
            looked = await self._lane.look()
        except BrokerUnavailable as fault:
            self._failed(fault, self._looks)
            return True
        if looked:
            self._worked(self._looks)
        return looked

    async def _read_on(self) -> None:
        lane = self._lane
        self._stuck = not await lane.fill()
        if self._stuck:
            await lane.settle()
            self._forget_passed()
            await self._wait()

    def _forget_passed(self) -> None:
        """Nothing is owed: what the log dropped before the history lane passed it is not waited for."""
        common = self._common
        if common.log.backlog(common.name)[0] == 0 and common.aside.counts()[0] == 0:
            common.of.sent.clear()

    async def _wait(self) -> None:
        """Until the log has something, a sweep is due or a held item may be."""
        common, clock = self._common, self._common.clock
        common.show()
        if common.state.changed():
            await clock.sleep(max(0.01, common.state_due_s - clock.monotonic_s()))
        elif await common.arrival(self._lane.position, soon=True):
            await clock.sleep(0.01)

    def _too_early(self) -> bool:
        """What an earlier run sent as current shows in the broker's history only after a while."""
        common = self._common
        since_s = common.clock.monotonic_s() - common.started_s
        if common.recording.verified or not common.recording.by_itself:
            return False
        return self._lane.of_earlier_run and since_s < common.settings.records_within_s

    async def _send(self) -> Outcome | None:
        common = self._common
        asked_s = common.clock.monotonic_s()
        try:
            outcome = await self._lane.send(partial(common.pace.fits, "past"))
        except BrokerUnavailable as fault_of_read:
            outcome = Outcome(fault=fault_of_read)
        if common.went(outcome, "past") is None:
            return None
        common.pace.answered(common.clock.monotonic_s() - asked_s)
        common.sent_past(outcome)
        if outcome.fault is not None:
            self._failed(outcome.fault, self._breaker)
            return None
        self._worked(self._breaker)
        return outcome

    def _worked(self, breaker: Breaker) -> None:
        breaker.worked()
        self._faults.pop(breaker, None)

    def _failed(self, fault: BrokerUnavailable, breaker: Breaker) -> None:
        """The past waits by itself: a broker that refuses or fails only there still gets the present at once."""
        common = self._common
        wait_s = breaker.failed(common.clock.monotonic_s(), fault.retry_after_s)
        self._faults[breaker] = fault
        common.standing.fails(fault, of="history: ")
        if isinstance(fault, NotOffered):
            common.probing.soon()
        common.standing.try_in(wait_s)
