"""What a kind of broker must be able to do, and what becomes of the entities handed to it."""

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from gateway.claims import AHEAD
from gateway.forward.contexts import Contexts
from gateway.harmonise.entity import Attribute, Entity
from gateway.sdk.driver import Clock
from gateway.sdk.errors import BrokerUnavailable


class LoginFailed(BrokerUnavailable):
    """The broker or its token endpoint does not accept our login: never an entity's fault."""


class InDoubt(BrokerUnavailable):
    """The connection failed after the request may have been received: it may have been carried out."""


class NotOffered(BrokerUnavailable):
    """404, 405 or 501: whoever answers does not know this request. What a probe settled may no longer hold."""


class ReadRefused(BrokerUnavailable):
    """The broker works but does not let us read this."""


class ContextMissing(BrokerUnavailable):
    """The broker works but cannot fetch the context that this needs."""


class BatchRefused(Exception):
    """A request refused whole: the culprit is one of several entities, or unknown. `bisect` finds it.

    Args:
        suspects: ids that the answer names; empty when it names none.
        permanent: False when a single entity that still fails may be fine later (an answer of 5xx, 413).
    """

    def __init__(self, reason: str, *, suspects: frozenset[str] = frozenset(), permanent: bool = True) -> None:
        self.reason = reason
        self.suspects = suspects
        self.permanent = permanent
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each entity of one call; every id is in exactly one of the three.

    Attributes:
        refused: id -> reason; sending it again as it is would be refused again.
        later: id -> reason; not done, try again.
        doubtful: those of `later` that may have been carried out all the same: read back before sending again.
        fault: set when the broker itself failed on the way, so that all of `later` waits for the broker.
        created: those of `accepted` that may not have been there before, as far as the answer tells.
        absent: those of `later` that wait for their context: no fault of theirs, and read back before sending again.
    """

    accepted: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    later: Mapping[str, str] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()
    fault: BrokerUnavailable | None = None
    created: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            self.accepted | other.accepted,
            {**self.refused, **other.refused},
            {**self.later, **other.later},
            self.doubtful | other.doubtful,
            self.fault or other.fault,
            self.created | other.created,
            self.absent | other.absent,
        )


def unavailable(entities: Sequence[Entity], fault: BrokerUnavailable, *, sent: bool = True) -> Outcome:
    """All of `entities` later, because the broker failed; in doubt when the failed request held them."""
    ids = [entity.id for entity in entities]
    doubtful = frozenset(ids) if sent and isinstance(fault, InDoubt) else frozenset()
    return Outcome(later=dict.fromkeys(ids, str(fault)), doubtful=doubtful, fault=fault)


def waiting(entities: Iterable[Entity], reason: str) -> Outcome:
    """All of `entities` later, because their context is missing."""
    ids = frozenset(entity.id for entity in entities)
    return Outcome(later=dict.fromkeys(ids, reason), absent=ids)


@dataclass(frozen=True, slots=True)
class Probe:
    """What reading alone told about a broker.

    Attributes:
        readable: current entities may be read back.
        temporal: there is a temporal API that may be read; None when that shows only after the first write.
        forbidden: what was said when the temporal API may not be read; "" = it may, or is not there.
        sure: a context broker said so itself. Else somebody on the way may have: it is asked again.
        product: "scorpio", "stellio", "orion-ld", "orion", as far as it reveals itself; "" when it does not.
        version: as the product writes it, "" when it does not tell.
        date: the broker's clock by its `Date` header.
    """

    readable: bool
    temporal: bool | None
    sure: bool = True
    forbidden: str = ""
    product: str = ""
    version: str = ""
    date: datetime | None = None


@dataclass(slots=True)
class Traffic:
    """What went over the wire since the start.

    Attributes:
        sent_bytes, received_bytes: requests and answers with their headers; without TLS, TCP and IP.
        batch: entities a request, as learned; may be set before the first request to what was learned before.
        faults: requests that no broker answered, or that it failed at: it may have been restarted.
        warning: what status must say although it works, "" for nothing.
        waits: for what a request waits before it goes out, "" for nothing.
        before: awaited before each request that sends values, with the number of readings that these were made of.
        contexts: those that the broker cannot fetch now.
    """

    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    batch: int = 0
    warning: str = ""
    waits: str = ""
    faults: int = 0
    contexts: Contexts = field(default_factory=Contexts, compare=False)
    before: Callable[[int], Awaitable[None]] | None = None

    async def sends(self, entities: Sequence[Entity]) -> None:
        """A request with these is about to go out."""
        if self.before is not None:
            await self.before(sum(entity.readings for entity in entities))


class BatchSize:
    """Entities a request: finds where a broker takes most entities a second, and stays near it.

    Time per batch may grow with its square (Scorpio: 25 entities in 0.1 s, 500 in 51 s), so a neighbouring size is tried
    for a few batches and only kept when it pays; a request that takes long is answered by a smaller one at once. What was
    learned holds for a while: a broker that was slow yesterday is tried again.

    Args:
        start: entities to begin with.
        usual: up to here a larger size is kept when it is as good, as each request costs bytes; default `start`.
    """

    RUNGS = (1, 2, 5, 10, 15, 25, 50, 100, 200)
    SAMPLES = 4  # batches before a verdict
    PAYS = 1.15
    LONG_S = 5.0
    SLOW = 3.0  # times what it usually takes, and
    SLOW_S = 0.3  # so much more: it got slow
    HOLDS_S = 900.0  # then what was learned of another size is no longer believed

    def __init__(self, start: int, usual: int | None = None, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._usual = _rung(start if usual is None else usual)
        self._home = self._rung = _rung(start)  # the size that pays, and the one that is used: another one on trial
        self._of = self._home  # what the trial is compared with
        self._rates: dict[int, tuple[float, float]] = {}  # rung -> entities a second, when that was measured
        self._samples = 0
        self._sampled = self._home
        self._slow = 0  # answers in a row that took too long

    @property
    def size(self) -> int:
        """Entities the next request may have."""
        return self.RUNGS[self._rung]

    @property
    def learned(self) -> int:
        """The size that pays, without what is on trial."""
        return self.RUNGS[self._home]

    def took(self, entities: int, seconds: float, waiting: int) -> None:
        """A request worked.

        Args:
            waiting: entities that there were to send. A batch tells of its own size alone, and only when it was full, or
                all that there was.
        """
        if entities != min(self.size, waiting):
            return
        if seconds > self.LONG_S and entities > 1:
            self.failed(entities, waiting)
            return
        rung, usual_s = _rung(entities), self._usual_s(entities)
        self._slow = self._slow + 1 if seconds > max(self.SLOW * usual_s, usual_s + self.SLOW_S) else 0
        if self._slow:
            if rung and self._slow > 1:  # one alone is a hiccup on the way
                self._rates.clear()  # it is another broker now
                self._move(rung - 1)
            return
        self._learn(rung, entities / max(seconds, 1e-6))
        if self._rung != self._home:
            self._try(rung)
        elif self._samples >= self.SAMPLES:
            self._samples = 0
            self._look_around(rung, waiting)

    def failed(self, entities: int, waiting: int) -> None:
        """A request of so many was too large, or not answered in time; `waiting` as above."""
        if entities != min(self.size, waiting):
            return
        if entities == 1:
            self._rates.clear()  # it is not the size: larger ones are tried as soon as something works
        else:
            smaller = _rung(entities - 1)
            self._rates[smaller + 1] = 0.0, self._now_s()
            self._move(smaller)

    def _learn(self, rung: int, rate: float) -> None:
        if rung != self._sampled:
            self._samples, self._sampled = 0, rung
        best = self._known(rung) if self._samples else None  # what disturbs a request only makes it longer
        self._rates[rung] = max(rate, best or 0.0), self._now_s()
        self._samples += 1

    def _usual_s(self, entities: int) -> float:
        """What so many usually take."""
        rate = self._known(_rung(entities))
        return entities / rate if rate else math.inf

    def _try(self, rung: int) -> None:
        """A size is on trial: it is kept when it pays, left when it does not or when there is not so much to send."""
        here, of = self._known(rung) or 0.0, self._known(self._of) or 0.0
        if rung != self._rung or 2 * here < of:
            self._move(self._home)
        elif self._samples >= self.SAMPLES:
            pays = 1.0 if self._of < rung <= self._usual else self.PAYS
            self._move(rung if here > pays * of else self._home)

    def _look_around(self, rung: int, waiting: int) -> None:
        """Put a neighbour on trial that is unknown, or was better than this."""
        here = self._known(rung) or 0.0
        up = rung + 1 if rung == self._rung and rung + 1 < len(self.RUNGS) and waiting >= self.RUNGS[rung + 1] else None
        for other in (up, rung - 1 if rung else None):
            if other is None:
                continue
            known = self._known(other)
            if known is None or known > self.PAYS * here:
                self._rates.pop(other, None)
                self._rung, self._of, self._samples = other, rung, 0
                return

    def _move(self, rung: int) -> None:
        self._home = self._rung = rung
        self._samples = self._slow = 0

    def _known(self, rung: int) -> float | None:
        """Entities a second; None when that is not known, or no longer."""
        rate, at_s = self._rates.get(rung, (0.0, -math.inf))
        return rate if self._now_s() - at_s < self.HOLDS_S else None


def _rung(entities: int) -> int:
    """The largest size that so many fill."""
    return max(n for n, size in enumerate(BatchSize.RUNGS) if size <= max(1, entities))


Point = tuple[
    str, str, datetime
]  # entity id, attribute key, observedAt: what tells one point of a history from another


class Broker(Protocol):
    """One context broker. Nothing is raised for what the other end does except `BrokerUnavailable`."""

    @property
    def traffic(self) -> Traffic:
        """Requests and bytes so far."""

    async def probe(self) -> Probe:
        """Find out by reads alone what the broker can do. Raises `BrokerUnavailable`."""

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        """Set current values; every id at most once. Requests go one after the other."""

    async def history(self, instances: Sequence[Entity]) -> Outcome:
        """Add past values of one entity in one request, without touching its current ones."""

    async def read_back(self, entities: Sequence[Entity]) -> Mapping[str, Mapping[str, datetime | None]]:
        """`observedAt` of the current attributes, None where one has none, by entity id; an id that is not there has no item.

        Raises:
            ReadRefused: reading is not allowed, or not offered.
            BrokerUnavailable: anything else.
        """

    async def history_back(self, instances: Sequence[Entity]) -> frozenset[Point]:
        """Which points the broker's history holds between the oldest and the newest of these; may hold others too.

        Raises: as `read_back`.
        """

    async def history_newest(
        self,
        entities: Sequence[Entity],
        *,
        since: datetime | None = None,
        attributes: Sequence[str] = (),
        last: int = 1,
    ) -> Mapping[str, Sequence[tuple[str, datetime]]]:
        """The newest points of each attribute that the broker's history holds, by entity id; repeats kept.

        Args:
            entities: all of one type and context.
            since: older ones are not asked for.
            attributes: their names; none: all.
            last: so many of each.

        Raises: as `read_back`.
        """

    async def close(self) -> None:
        """Give connections back."""


class Over:
    """What stands over a broker and changes some of what goes through it: the rest passes."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def traffic(self) -> Traffic:
        return self._broker.traffic

    async def probe(self) -> Probe:
        return await self._broker.probe()

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        return await self._broker.state(entities)

    async def history(self, instances: Sequence[Entity]) -> Outcome:
        return await self._broker.history(instances)

    async def read_back(self, entities: Sequence[Entity]) -> Mapping[str, Mapping[str, datetime | None]]:
        return await self._broker.read_back(entities)

    async def history_back(self, instances: Sequence[Entity]) -> frozenset[Point]:
        return await self._broker.history_back(instances)

    async def history_newest(
        self,
        entities: Sequence[Entity],
        *,
        since: datetime | None = None,
        attributes: Sequence[str] = (),
        last: int = 1,
    ) -> Mapping[str, Sequence[tuple[str, datetime]]]:
        return await self._broker.history_newest(entities, since=since, attributes=attributes, last=last)

    async def close(self) -> None:
        await self._broker.close()


class Accepted:
    """The newest `observedAt` that a broker holds of each attribute: what keeps its state from running backwards.

    Except one that lies in the future by now: a clock ran ahead, ours or another's, and was set back.

    Args:
        first: what it held when an earlier forwarder of this run first asked.
    """

    def __init__(self, clock: Clock, first: Mapping[str, Mapping[str, datetime]] | None = None) -> None:
        self._clock = clock
        self._times: dict[str, dict[str, datetime]] = {}
        self._first: dict[str, Mapping[str, datetime]] = dict(first or {})

    def knows(self, entity_id: str) -> bool:
        """Whether anything was noted of this entity since it was last doubted."""
        return entity_id in self._times

    def note(self, entity_id: str, times: Mapping[str, datetime]) -> None:
        """The broker holds these; an older time never replaces a newer one."""
        known = self._times.setdefault(entity_id, {})
        for name, at in times.items():
            if name not in known or at > known[name] or self._in_future(known[name]):
                known[name] = at

    def read_back(self, entity_id: str, times: Mapping[str, datetime | None]) -> dict[str, datetime]:
        """What the broker says that it holds, as far as that is believed: somebody's wrong clock must not keep true values out."""
        held = {name: at for name, at in times.items() if at is not None and not self._in_future(at)}
        self._first.setdefault(entity_id, held)
        self.note(entity_id, held)
        return held

    def first(self, entity_id: str) -> Mapping[str, datetime] | None:
        """What it held when it was first asked in this run: what is newer it had never got as state; None: not asked."""
        return self._first.get(entity_id)

    @property
    def firsts(self) -> Mapping[str, Mapping[str, datetime]]:
        """The same of every entity that was asked for."""
        return self._first

    def doubt(self, entity_id: str) -> None:
        """A request may have been carried out: ask the broker before the next one."""
        self._times.pop(entity_id, None)

    def holds(self, entity_id: str, key: str, at: datetime) -> bool:
        """Whether the broker's current value of an attribute is exactly of this time."""
        return self._times.get(entity_id, {}).get(key) == at

    def newer(self, entity: Entity) -> Entity | None:
        """The entity without what is not newer than the broker's; None when nothing measured is left."""
        known = self._times.get(entity.id)
        if not known:
            return entity
        kept: dict[str, Attribute] = {}
        measured = dropped = 0
        for name, attribute in entity.attributes.items():
            at = attribute.observed_at
            if at is not None:
                if name in known and at <= known[name] and not self._in_future(known[name]):
                    dropped += 1
                    continue
                measured += 1
            kept[name] = attribute
        if not dropped:
            return entity
        return replace(entity, attributes=kept) if measured else None

    def _in_future(self, at: datetime) -> bool:
        return at > self._clock.now() + AHEAD


def observed(entity: Entity) -> dict[str, datetime]:
    """`observedAt` of every attribute that has one."""
    return {name: a.observed_at for name, a in entity.attributes.items() if a.observed_at is not None}


SUSPICIOUS = 3  # batches refused whole, without an acceptance between: the config is at fault, not the entities


class Streak:
    """Batches refused or put off whole since something was last accepted, and the entities that are known to be bad.

    Args:
        entities: how many different entities there are to send; the only one there is may stand for all.
    """

    def __init__(self, entities: int) -> None:
        self.entities = entities
        self._batches = 0
        self._ids: set[str] = set()
        self._bad: set[tuple[str, str]] = set()  # way, entity: one may be taken as history and refused as state

    @property
    def begun(self) -> bool:
        """Whether the last batch was refused or put off whole."""
        return self._batches > 0

    @property
    def config_fault(self) -> bool:
        """Three batches refused or put off whole that are not one bad entity among others."""
        return self._batches >= SUSPICIOUS and len(self._ids) >= min(2, self.entities)

    @property
    def one_bad(self) -> bool:
        """Three batches refused whole, all of one entity although there are others."""
        return self._batches >= SUSPICIOUS and not self.config_fault

    def note(self, outcome: Outcome, way: str = "past") -> None:
        """Count one batch. One that holds nothing but entities known to be bad tells nothing new."""
        failed = (outcome.refused.keys() | outcome.later.keys()) - outcome.absent
        if outcome.accepted:
            self._bad -= {(way, entity_id) for entity_id in outcome.accepted}
            self.clear(failed if outcome.fault is None else outcome.refused)
        elif outcome.fault is None and not {(way, entity_id) for entity_id in failed} <= self._bad:
            self._batches += 1
            self._ids |= failed

    def clear(self, bad: Iterable[str] = ()) -> None:
        """Something was accepted, or the verdict was drawn: these are bad by themselves, until accepted in the same way."""
        self._batches = 0
        self._ids.clear()
        self._bad |= {(way, entity_id) for entity_id in bad for way in ("state", "past")}  # `bad` can be walked once


Send = Callable[[Sequence[Entity]], Awaitable[Outcome]]


async def bisect(entities: Sequence[Entity], send: Send) -> Outcome:
    """Send a batch; when it is refused whole, find the culprits by halves so that all others arrive.

    Named suspects are set apart first. A failure of the broker itself ends the search: what is not done is later.
    """
    total = Outcome()
    waiting: list[Sequence[Entity]] = [entities]
    while waiting:
        batch = waiting.pop()
        try:
            total += await send(batch)
        except BatchRefused as error:
            if len(batch) > 1:
                waiting.extend(_split(batch, error.suspects))
            else:
                reason = {batch[0].id: error.reason}
                total += Outcome(refused=reason) if error.permanent else Outcome(later=reason)
        except BrokerUnavailable as fault:
            total += unavailable(batch, fault)
            for rest in waiting:
                total += unavailable(rest, fault, sent=False)
            break
    return total


def _split(batch: Sequence[Entity], suspects: frozenset[str]) -> list[Sequence[Entity]]:
    named = [entity for entity in batch if entity.id in suspects]
    others = [entity for entity in batch if entity.id not in suspects]
    if named and others:
        return [named, others]  # taken from the end: the innocent go first
    half = len(batch) // 2
    return [batch[half:], batch[:half]]
