"""What a history lane has taken and is not done with, and the verdicts on it. The one place that judges, for both lanes."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.claims import latest_us
from gateway.forward.aside import (
    BEHIND,
    BEHIND_S,
    CONTEXT_AGAIN_S,
    FUTURE,
    FUTURE_AGAIN_S,
    INCOMPLETE_S,
    LATER_S,
    Aside,
)
from gateway.forward.broker import Accepted, Broker, Outcome, Streak
from gateway.forward.feeds import Feeds
from gateway.forward.updates import Sent, Update
from gateway.sdk.driver import Clock


@dataclass(slots=True)
class LaneCounts:
    """What a lane did since the start, in updates of entities."""

    accepted: int = 0
    refused: int = 0
    known: int = 0  # not sent: the broker held it already
    late: int = 0  # not sent: the broker holds newer, and has no temporal API
    skipped: int = 0  # not sent: latest-only
    unseen: int = 0  # points that were accepted and never seen in the history
    unknown: int = 0  # points that were read, of which nobody knows that the city has them: may be, or not any more
    unknown_us: int | None = None  # time of the oldest of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the lanes of one broker have in common."""

    broker: Broker
    feeds: Feeds
    aside: Aside
    clock: Clock
    accepted: Accepted
    sent: Sent
    streak: Streak


class Unseen(Protocol):
    """What was accepted and is not settled yet."""

    @property
    def oldest_seq(self) -> int | None: ...
    @property
    def sure(self) -> bool: ...


@dataclass(slots=True)
class Taken:
    """Updates taken from the log, until there is a verdict on each of them: then the log may be settled.

    Attributes:
        in_turns: entities are sent one at a time: one that must be tried again goes to the end. Else all go together, and
            each entity's updates in order of time.
        queues: by entity id, oldest first.
        position: all up to here was taken; None: as far as the cursor.
        open: refused, and whether the entities or the config are at fault is not known yet.
        unseen: what was accepted as state and is to be seen in the history; None: nothing is.
    """

    of: Shared
    in_turns: bool
    counts: LaneCounts = field(default_factory=LaneCounts)
    queues: dict[str, deque[Update]] = field(default_factory=dict)
    position: int | None = None
    open: list[tuple[Update, str]] = field(default_factory=list)
    unseen: Unseen | None = None

    def take_over(self, other: "Taken") -> None:
        """What another lane had taken goes on here, so that it is read but once."""
        self.queues, self.open, self.position = other.queues, other.open, other.position
        self.sort(self.queues)

    def renumber(self, first: int, more: int) -> None:
        """The numbers from there on have grown."""
        for update in [*(u for queue in self.queues.values() for u in queue), *(u for u, _ in self.open)]:
            self.of.feeds.renumber(update, first, more)

    def ready(self, update: Update) -> bool:
        """Whether an update of the log can be sent; else it is set aside."""
        why = self.must_wait(update)
        if why is not None:
            self.of.aside.put(update, *why)
        return why is None

    def put_last(self, update: Update) -> None:
        """It waits behind what is waiting of its entity."""
        self.queues.setdefault(update.entity_id, deque()).append(update)

    def put_first(self, updates: Sequence[Update]) -> None:
        """These go before what is waiting of their entities."""
        for update in reversed(updates):
            self.queues.setdefault(update.entity_id, deque()).appendleft(update)

    @property
    def open_seq(self) -> int | None:
        """Number of the oldest set in the log that was taken and is not done, or not on the card yet; None: there is none."""
        waiting = [*(u.seq for queue in self.queues.values() for u in queue), *(u.seq for u, _ in self.open)]
        return min((seq for seq in (*waiting, self.of.aside.oldest_seq) if seq), default=None)

    def still(self, updates: Sequence[Update]) -> list[Update]:
        """Those of these that are not done with."""
        mine = {id(update) for queue in self.queues.values() for update in queue} | {id(u) for u, _ in self.open}
        return [update for update in updates if id(update) in mine]

    def sort(self, entity_ids: Iterable[str]) -> None:
        """Each entity's updates in order of time."""
        for entity_id in entity_ids:
            queue = self.queues[entity_id]
            times = [update.newest_us for update in queue]
            if times != sorted(times):
                self.queues[entity_id] = deque(sorted(queue, key=lambda update: update.newest_us))

    def drop(self, entity_id: str, updates: Sequence[Update]) -> None:
        """These wait no longer."""
        queue, gone = self.queues.get(entity_id), {id(update) for update in updates}
        if queue is None:
            return
        while queue and id(queue[0]) in gone:
            gone.discard(id(queue.popleft()))
        if gone:
            queue = self.queues[entity_id] = deque(update for update in queue if id(update) not in gone)
        if not queue:
            del self.queues[entity_id]

    def done(self, entity_id: str, updates: Sequence[Update]) -> None:
        """The broker has them."""
        for update in updates:
            self.of.aside.done(update)
        self.drop(entity_id, updates)

    # verdicts

    def judged(self, batch: Sequence[Update], outcome: Outcome) -> list[Update]:
        """Draw the verdicts on what one request carried; returns what was accepted."""
        self.of.streak.note(outcome)
        accepted = []
        for update in batch:
            entity_id = update.entity_id
            if entity_id in outcome.accepted:
                accepted.append(update)
                self.counts.accepted += 1
                self.done(entity_id, [update])
            elif entity_id in outcome.refused:
                self.open.append((update, outcome.refused[entity_id]))
                self.drop(entity_id, [update])
                if self.in_turns and entity_id in self.queues:
                    self._again([entity_id])  # another entity tries next: whether it is this one alone shows at once
            elif outcome.fault is None and entity_id in outcome.absent:
                self._step_aside(entity_id, outcome.later[entity_id])
            elif outcome.fault is None:
                self._later(entity_id, outcome.later[entity_id])
        self.judge()
        return accepted

    def judge(self) -> None:
        """Refused alone among accepted ones: the entity's fault. Refused with all others, again and again: the config's."""
        refused, streak = self.open, self.of.streak
        if streak.config_fault:
            self.open = []
            self.put_first([update for update, _ in refused])
            self._again(update.entity_id for update, _ in reversed(refused))
        elif refused and (not streak.begun or streak.one_bad):
            self.open = []
            self._bury(refused)

    def _bury(self, refused: Sequence[tuple[Update, str]]) -> None:
        """Refused updates become dead letters."""
        self.of.streak.clear(update.entity_id for update, _ in refused)
        for update, reason in refused:
            self.of.aside.put(update, reason, None, offered=True)
        self.counts.refused += len(refused)

    def _later(self, entity_id: str, reason: str) -> None:
        """The broker works but not for this entity: all its waiting updates step aside, in order.

        Put off with all others, or while that is open, it stays in the log.
        """
        streak = self.of.streak
        if streak.one_bad:
            streak.clear([entity_id])
        if streak.begun:
            self._again([entity_id])
            return
        for n, update in enumerate(self.queues.pop(entity_id)):
            self.of.aside.put(update, reason, LATER_S[0], offered=n == 0)

    def _step_aside(self, entity_id: str, reason: str) -> None:
        """It waits for its context: all that waits of it makes room, in order, and has not been tried."""
        for update in self.queues.pop(entity_id, ()):
            self.of.aside.put(update, reason, CONTEXT_AGAIN_S)

    def _again(self, entity_ids: Iterable[str]) -> None:
        if not self.in_turns:
            self.sort(set(entity_ids))
            return
        for entity_id in entity_ids:
            self.queues[entity_id] = self.queues.pop(entity_id)

    def must_wait(self, update: Update) -> tuple[str, float | None] | None:
        """Why, and for how long, None: until somebody says so; None when it need not."""
        of = self.of
        if update.feed.fault:
            return update.feed.fault, None
        if of.feeds.complete.lacks(update.feed):
            return f"waits for {', '.join(of.feeds.complete.missing[update.entity_id])}", INCOMPLETE_S
        ahead_us = update.newest_us - latest_us(of.clock.now())
        if ahead_us > 0:
            return FUTURE, min(ahead_us / 1e6, FUTURE_AGAIN_S)
        if of.aside.waiting(update.entity_id):
            return BEHIND, BEHIND_S
        return None

    async def settle(self) -> None:
        """Settle what was taken when all of it is done, and what was set aside is on the card; not what is to be seen yet.

        Raises:
            LogError: the card refuses; then the cursor stays.
        """
        self.judge()
        if self.queues or self.open:
            return
        await self.of.aside.write()
        if self.position is None or not self.of.aside.empty:
            return
        waits = None if self.unseen is None else self.unseen.oldest_seq
        self.of.feeds.accepted(
            self.position, waits - 1 if waits and self.unseen and not self.unseen.sure else self.position
        )
        await self.of.feeds.settle(waits - 1 if waits else self.position)
        if not waits:
            self.position = None
