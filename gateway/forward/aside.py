"""What one broker will not take now, set aside so that the cursor moves on: gathered first, so that the card is written seldom."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from gateway.forward.updates import Update
from gateway.log.held import HeldItem, HeldSet
from gateway.sdk.driver import Clock

GATHER_S = 10.0  # below the usual commit interval: what is settled by then is never written to the card
GATHER_SETS = 500
LATER_S = (30.0, 120.0, 600.0, 3600.0)  # waits between the tries of a set; then every hour


class Held(Protocol):
    """The log's table of held sets."""

    async def add(self, broker: str, sets: Sequence[HeldSet], *, reason: str, next_try_at: datetime | None) -> None: ...
    async def due(self, broker: str, now: datetime, limit: int = 200) -> list[HeldItem]: ...
    async def accepted(self, ids: Sequence[int]) -> None: ...
    async def again(self, ids: Sequence[int], *, reason: str, next_try_at: datetime | None) -> None: ...
    def waiting(self, broker: str) -> frozenset[str]: ...
    def counts(self, broker: str) -> tuple[int, int]: ...


class Aside:
    """Updates set aside for one broker: *later* with a next try, *dead letters* without.

    Args:
        every_s: what is gathered goes to the card at the latest after this; until then the cursor must not pass it.
    """

    def __init__(self, broker: str, held: Held, clock: Clock, *, every_s: float = GATHER_S) -> None:
        self._broker = broker
        self._held = held
        self._clock = clock
        self._every_s = every_s
        self._gathered: list[tuple[HeldSet, str, float | None]] = []
        self._gathered_later: set[str] = set()
        self._since_s: float | None = None
        self._tries: dict[int, int] = {}  # held sets that are in a lane now: how often they were offered
        self._taken: list[int] = []
        self._refused: list[tuple[int, str, float | None]] = []

    @property
    def empty(self) -> bool:
        """Nothing is gathered: the cursor may move."""
        return not self._gathered

    def waiting(self, entity_id: str) -> bool:
        """Whether older updates of this entity wait for a later try: then newer ones join them."""
        return entity_id in self._gathered_later or entity_id in self._held.waiting(self._broker)

    def counts(self) -> tuple[int, int]:
        """Sets held for later, and as dead letters; with those about to be written."""
        later, dead = self._held.counts(self._broker)
        gathered_dead = sum(wait_s is None for _, _, wait_s in self._gathered)
        return later + len(self._gathered) - gathered_dead, dead + gathered_dead

    def put(self, update: Update, reason: str, wait_s: float | None) -> None:
        """Set an update aside; without `wait_s` as a dead letter."""
        if update.held:
            tries = self._tries.pop(update.held, 0)
            longer_s = None if wait_s is None else max(wait_s, LATER_S[min(tries, len(LATER_S) - 1)])
            self._refused.append((update.held, reason, longer_s))
            return
        readings = tuple((point, time_us, value) for point, (value, time_us, _) in update.readings.items())
        held = HeldSet(update.mapping.entity_id, update.mapping.device, readings)
        self._gathered.append((held, reason, wait_s))
        if wait_s is not None:
            self._gathered_later.add(held.entity)
        if self._since_s is None:
            self._since_s = self._clock.monotonic_s()

    def done(self, update: Update) -> None:
        """The broker has it."""
        if update.held and self._tries.pop(update.held, None) is not None:
            self._taken.append(update.held)

    async def write(self) -> None:
        """Write the verdicts on what was tried again, and what is gathered when it is time.

        Raises:
            LogError: the card refuses; then the cursor must stay.
        """
        if self._taken:
            await self._held.accepted(self._taken)
            self._taken = []
        while self._refused:
            number, reason, wait_s = self._refused[0]
            await self._held.again([number], reason=reason, next_try_at=self._at(wait_s))
            self._refused.pop(0)
        if self._since_s is None:
            return
        if len(self._gathered) >= GATHER_SETS or self._clock.monotonic_s() - self._since_s >= self._every_s:
            await self._flush()

    async def _flush(self) -> None:
        while self._gathered:
            _, reason, wait_s = self._gathered[0]
            alike = [held for held, why, wait in self._gathered if (why, wait) == (reason, wait_s)]
            await self._held.add(self._broker, alike, reason=reason, next_try_at=self._at(wait_s))
            self._gathered = [item for item in self._gathered if item[1:] != (reason, wait_s)]
        self._gathered_later.clear()
        self._since_s = None

    def _at(self, wait_s: float | None) -> datetime | None:
        return None if wait_s is None else self._clock.now() + timedelta(seconds=wait_s)

    async def due(self) -> list[HeldItem]:
        """Sets whose time has come, and that are in no lane yet; those of one entity in order."""
        items = await self._held.due(self._broker, self._clock.now())
        items = [item for item in items if item.id not in self._tries]
        self._tries.update((item.id, item.tries) for item in items)
        return items

    def give_up(self, item: HeldItem, reason: str) -> None:
        """A set that cannot be tried any more becomes a dead letter."""
        self._tries.pop(item.id, None)
        self._refused.append((item.id, reason, None))

    def put_off(self, item: HeldItem, reason: str, wait_s: float) -> None:
        """A set that cannot be tried yet."""
        self._tries.pop(item.id, None)
        self._refused.append((item.id, reason, wait_s))
