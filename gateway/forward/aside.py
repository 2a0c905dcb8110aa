"""What one broker will not take now, set aside so that the cursor moves on: gathered first, so that the card is written seldom."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from gateway.claims import AHEAD_US, EARLIEST_US, latest_us
from gateway.forward.contexts import Contexts
from gateway.forward.feeds import Feeds
from gateway.forward.updates import Feed, Update
from gateway.log.held import HeldPiece
from gateway.log.segment import Columns, TimeState, microseconds
from gateway.sdk.driver import Clock
from gateway.sdk.reading import Quality, Reason, TimeSource

GATHER_S = 10.0  # below the usual commit interval: what is settled by then is never written to the card
GATHER_SETS = 500
JOINING = 6  # so many times longer is gathered what all joins waiting pieces: these are written anew each time
LATER_S = (30.0, 120.0, 600.0, 3600.0)  # waits between the tries of a piece; then every hour
FUTURE_AGAIN_S = 86_400.0  # what lies in the future is looked at again after this at the latest
INCOMPLETE_S = 60.0  # how often an entity without its mandatory attributes is looked at again
CONTEXT_AGAIN_S = 1.0  # once its context is there; until then it is left alone
BEHIND = "waits for older sets of this entity"  # where these are gone, it goes on without having been on the card
BEHIND_S = 1.0
UNTAKEN = "waits for the current value to be taken"  # as soon as it is, such a piece is looked at again
TRIES = 30  # about a day; then it is a dead letter
FUTURE = "its time is ahead of this box's clock"  # such a piece waits for itself: nothing waits behind it
_FUTURE_BEFORE = "its time lies in the future"  # as an earlier citygate called it, which believed what others claimed


_Group = tuple[str, str, bool, bool]  # entity, device, dead, ahead of the clock


class Held(Protocol):
    """The log's table of held pieces."""

    async def hold(
        self,
        broker: str,
        entity: str,
        device: str,
        readings: Columns,
        *,
        reason: str,
        at: datetime,
        next_try_at: datetime | None = None,
        tries: int = 1,
        joins: int = 0,
    ) -> int: ...
    def pieces(
        self, broker: str | None = None, *, entity: str | None = None, device: str | None = None
    ) -> list[HeldPiece]: ...
    def count(self, broker: str) -> tuple[int, int]: ...
    async def readings(self, piece: int) -> Columns: ...
    async def tried(
        self, piece: int, *, reason: str, at: datetime, next_try_at: datetime | None, offered: bool = True
    ) -> None: ...
    async def release(self, pieces: Sequence[int]) -> None: ...
    async def requeue(self, pieces: Sequence[int], at: datetime) -> int: ...


@dataclass(slots=True)
class _Gathered:
    """Updates of one entity from one device that share a verdict."""

    updates: list[Update]
    reason: str
    wait_s: float | None
    offered: bool = False


@dataclass(slots=True)
class _Tried:
    """A piece that is in a lane again: how many of its updates are without verdict, and the worst of the verdicts.

    Attributes:
        offered: the broker itself put it off, or refused it: only that is a try.
    """

    left: int
    tries: int
    reason: str = ""
    dead: bool = False
    wait_s: float = 0.0
    offered: bool = False


class Aside:
    """Updates set aside for one broker: *later* with a next try, *dead letters* without.

    Args:
        every_s: what is gathered goes to the card at the latest after this; until then the cursor must not pass it.
        contexts: those that the broker misses.
    """

    def __init__(
        self, broker: str, held: Held, clock: Clock, *, every_s: float = GATHER_S, contexts: Contexts | None = None
    ) -> None:
        self._broker = broker
        self._held = held
        self._clock = clock
        self._every_s = every_s
        self._contexts = contexts or Contexts()
        self._gathered: dict[_Group, _Gathered] = {}
        self._sets = 0
        self._since_s: float | None = None
        self._due_s = 0.0
        self._tried: dict[int, _Tried] = {}
        self._waiting: set[str] = set()
        self._resting: set[int] = set()  # pieces that are sent and are to be seen yet: nothing waits behind them
        self._taken: set[str] = set()  # entities whose current value was taken after all
        self._on_card: set[tuple[str, int, int]] | None = None
        self._look()

    @property
    def empty(self) -> bool:
        """Nothing is gathered: the cursor may move."""
        return not self._gathered

    @property
    def oldest_seq(self) -> int | None:
        """Number of the oldest set in the log of which anything is gathered."""
        return min((u.seq for of in self._gathered.values() for u in of.updates if u.seq), default=None)

    def renumber(self, feeds: Feeds, first: int, more: int) -> None:
        """The log's numbers from there on have grown."""
        for gathered in self._gathered.values():
            for update in gathered.updates:
                feeds.renumber(update, first, more)

    def waiting(self, entity_id: str) -> bool:
        """Whether older updates of this entity wait for a later try: then newer ones join them."""
        return entity_id in self._waiting

    def rests(self, update: Update) -> None:
        """It was sent and is to be seen in the history: until then its piece stays, but nothing waits behind it."""
        self._resting.add(update.held)
        self._look()

    def taken(self, entity_ids: Set[str]) -> None:
        """The broker has taken the current values of these: what waited for that waits no longer."""
        self._taken |= entity_ids & self._waiting

    def counts(self) -> tuple[int, int]:
        """Pieces held for later, and as dead letters: those that `buffer held list` shows, no others."""
        return self._held.count(self._broker)

    def dead(self) -> dict[str, HeldPiece]:
        """The newest dead letter of each entity."""
        return {piece.entity: piece for piece in self._held.pieces(self._broker) if piece.next_try_at is None}

    def put(self, update: Update, reason: str, wait_s: float | None, *, offered: bool = False) -> None:
        """Set an update aside; without `wait_s` as a dead letter.

        Args:
            offered: the broker had it and put it off. What waits for a value, its time or its turn has not been tried.
        """
        if update.held:
            self._verdict(update, reason, wait_s, offered=offered)
            return
        future = reason == FUTURE
        key = (*update.feed.key, wait_s is None, future)
        gathered = self._gathered.setdefault(key, _Gathered([], reason, wait_s))
        gathered.updates.append(update)
        gathered.offered = gathered.offered or offered
        if wait_s is None:
            gathered.reason = reason
        elif wait_s > (gathered.wait_s or 0.0):  # those that only queue behind do not shorten the wait
            gathered.reason, gathered.wait_s = reason, wait_s
        self._sets += 1
        if wait_s is not None and not future:
            self._waiting.add(update.entity_id)
        if self._since_s is None:
            self._since_s = self._clock.monotonic_s()
            self._due_s = self._since_s + self._every_s

    def done(self, update: Update) -> None:
        """The broker has it."""
        if update.held:
            self._verdict(update, "", None)

    def _verdict(self, update: Update, reason: str, wait_s: float | None, *, offered: bool = False) -> None:
        piece = self._tried.get(update.held)
        if piece is None:
            return
        piece.left -= 1
        if reason:
            piece.reason = reason
            piece.offered = piece.offered or offered
            piece.dead = piece.dead or wait_s is None
            piece.wait_s = max(piece.wait_s, wait_s or 0.0)

    async def recall(self) -> None:
        """Learn which points are held since an earlier run: the log may be read again from before them.

        Raises:
            LogError: they cannot be read.
        """
        if self._on_card is None:
            found = set()
            for piece in self._held.pieces(self._broker):
                columns = await self._held.readings(piece.id)
                found |= {(piece.entity, *point) for point in zip(columns.series, columns.time_us, strict=True)}
            self._on_card = found

    @property
    def has_points(self) -> bool:
        """Whether any point was held when this was last learned."""
        return bool(self._on_card)

    def holds(self, entity_id: str, series: int, time_us: int) -> bool:
        """Whether a point was held when this was last learned."""
        return self._on_card is not None and (entity_id, series, time_us) in self._on_card

    async def again(self, reason: str) -> None:
        """What became a dead letter for this reason is tried again: it holds no longer."""
        pieces = [p.id for p in self._held.pieces(self._broker) if p.next_try_at is None and p.reason == reason]
        if pieces:  # without a card there are none
            await self._held.requeue(pieces, self._clock.now())
            self._look()

    async def write(self, *, at_once: bool = False) -> None:
        """Write the verdicts on what was tried again, and what is gathered when it is time.

        Raises:
            LogError: the card refuses; then the cursor must stay.
        """
        if self._tried:
            await self._write_verdicts()
        if self._since_s is None:
            return
        now_s = self._clock.monotonic_s()
        if not (at_once or self._sets >= GATHER_SETS):
            if now_s < self._due_s:
                return
            if now_s < self._since_s + JOINING * self._every_s and self._joining().keys() == self._gathered.keys():
                self._due_s = now_s + self._every_s
                return
        await self._flush()

    def _joining(self) -> dict[_Group, int]:
        """What was gathered that becomes part of a piece: of the newest, when it waits for a like reason and was no try yet."""
        newest = {
            (p.entity, p.device): p for p in self._held.pieces(self._broker) if p.next_try_at and p.reason != FUTURE
        }
        found = {}
        for key, gathered in self._gathered.items():
            piece = None if key[2] else newest.get(key[:2])
            if piece is None or piece.tries or piece.id in self._tried or piece.id in self._resting:
                continue
            if gathered.reason in (BEHIND, piece.reason):
                found[key] = piece.id
        return found

    async def let_go(self) -> None:
        """The lane that had them is no more: pieces without a verdict are due again, and the log is read again.

        Raises:
            LogError: the card refuses.
        """
        await self.write()
        self._tried.clear()
        for key, gathered in list(self._gathered.items()):
            again = [update for update in gathered.updates if update.seq]
            self._sets -= len(again)
            gathered.updates = [update for update in gathered.updates if not update.seq]
            if not gathered.updates:
                del self._gathered[key]
        if not self._gathered:
            self._since_s = None
        self._look()

    async def _write_verdicts(self) -> None:
        now = self._clock.now()
        there = {piece.id for piece in self._held.pieces(self._broker)}  # one may have been purged meanwhile
        for number, piece in [item for item in self._tried.items() if item[1].left <= 0]:
            if number not in there:
                pass
            elif not piece.reason:
                await self._held.release([number])
            else:
                dead, wait_s = piece.dead, piece.wait_s
                if piece.offered:
                    wait_s = max(wait_s, LATER_S[min(piece.tries, len(LATER_S) - 1)])
                    dead = dead or piece.tries >= TRIES
                next_try_at = None if dead else now + timedelta(seconds=wait_s)
                await self._held.tried(
                    number, reason=piece.reason, at=now, next_try_at=next_try_at, offered=piece.offered
                )
            del self._tried[number]
            self._resting.discard(number)
        self._look()

    async def _flush(self) -> None:
        now, joining = self._clock.now(), self._joining()
        for key, gathered in list(self._gathered.items()):
            entity_id, device, _, _ = key
            next_try_at = None if gathered.wait_s is None else now + timedelta(seconds=gathered.wait_s)
            await self._held.hold(
                self._broker,
                entity_id,
                device,
                _columns(gathered.updates),
                reason=gathered.reason,
                at=now,
                next_try_at=next_try_at,
                tries=int(gathered.offered),
                joins=joining.get(key, 0),
            )
            del self._gathered[key]
        self._sets, self._since_s = 0, None
        self._look()

    def _look(self) -> None:
        gathered = {entity for entity, _, dead, future in self._gathered if not dead and not future}
        self._waiting = self._on_card_later() | gathered

    def _on_card_later(self) -> set[str]:
        """Entities of which pieces wait for a later try, and newer updates behind them."""
        pieces = self._held.pieces(self._broker)
        return {
            p.entity for p in pieces if p.next_try_at is not None and p.reason != FUTURE and p.id not in self._resting
        }

    async def retry(self, feeds: Feeds) -> list[Update]:
        """What is to be tried again now; the verdict on pieces that cannot be yet, or ever."""
        latest, updates = latest_us(self._clock.now()), []
        for piece, columns in await self._due(feeds):
            told = feeds.of_piece(piece.entity, piece.device)
            fault = next((feed.fault for feed in told if feed.fault), "")
            if not told or fault:
                self._give_up(piece, fault or "no longer sent to this broker")
            elif not in_time(piece, columns, latest):
                self._put_off(piece, FUTURE, FUTURE_AGAIN_S)
            elif any(feeds.complete.lacks(feed) for feed in told):
                self._put_off(piece, "waits for mandatory attributes", INCOMPLETE_S)
            elif again := [update for feed in told for update in feeds.updates(feed, columns)]:
                for update in again:
                    update.held, update.seq = piece.id, 0
                self._tried[piece.id] = _Tried(len(again), piece.tries)
                updates += again
            else:
                self._give_up(piece, "the mapping takes none of it")
        return updates + self._behind_nothing()

    def _behind_nothing(self) -> list[Update]:
        """What was gathered only to keep the order of its entity, where nothing older waits any more."""
        if not self._gathered:
            return []
        free = self._waiting - self._on_card_later()
        free -= {key[0] for key, of in self._gathered.items() if not (key[2] or key[3] or of.reason == BEHIND)}
        found = [key for key in self._gathered if key[0] in free and not (key[2] or key[3])]
        updates = [update for key in found for update in self._gathered.pop(key).updates]
        self._sets -= len(updates)
        if not self._gathered:
            self._since_s = None
        if found:
            self._look()
        return updates

    async def _due(self, feeds: Feeds) -> list[tuple[HeldPiece, Columns]]:
        """The oldest piece of each entity where its time has come: an entity's sets keep their order.

        One that is ahead of the clock stands outside of that order. One whose context is missing is not touched.
        """
        self._look()
        now = self._clock.now()
        oldest: dict[str, HeldPiece] = {}
        ready = []
        for piece in self._held.pieces(self._broker):
            if piece.next_try_at is None or piece.id in self._resting:
                continue
            if piece.reason != FUTURE:
                oldest.setdefault(piece.entity, piece)
            elif piece.next_try_at <= now:
                ready.append(piece)
        ready += [
            p
            for p in oldest.values()
            if p.reason == _FUTURE_BEFORE
            or (p.reason == UNTAKEN and p.entity in self._taken)
            or (p.next_try_at is not None and p.next_try_at <= now)
        ]
        self._taken -= {p.entity for p in ready}
        return [
            (p, await self._held.readings(p.id))
            for p in ready
            if p.id not in self._tried and not self._lacks_context(feeds.of(p.entity, p.device))
        ]

    def _lacks_context(self, feed: Feed | None) -> bool:
        return feed is not None and self._contexts.away(feed.context)

    def _give_up(self, piece: HeldPiece, reason: str) -> None:
        """A piece that cannot be tried any more becomes a dead letter."""
        self._tried[piece.id] = _Tried(0, piece.tries, reason, dead=True)

    def _put_off(self, piece: HeldPiece, reason: str, wait_s: float) -> None:
        """A piece that cannot be tried yet."""
        self._tried[piece.id] = _Tried(0, piece.tries, reason, wait_s=wait_s)


def in_time(piece: HeldPiece, columns: Columns, latest_us: int) -> bool:
    """Whether held readings may be sent now by their times.

    What an earlier citygate held under a time that cannot be gets that of its reception, as far as known: it was there.
    """
    times, held_us = columns.time_us, microseconds(piece.first_at)
    joined_us = microseconds(piece.last_at)  # what joined it came later; the clock may have been set back since
    for i, time_us in enumerate(times):
        ahead = time_us > latest_us and time_us > joined_us + AHEAD_US and piece.reason != FUTURE
        if time_us < EARLIEST_US or ahead:
            times[i] = held_us
    return max(times, default=0) <= latest_us


def _columns(updates: Sequence[Update]) -> Columns:
    """Readings as they go into a piece. Their times are true already, so they stand as absolute."""
    columns = Columns(len(updates))
    for n, update in enumerate(updates, 1):
        for value, time_us, number in update.readings.values():
            columns.seq.append(n)
            columns.series.append(number)
            columns.time_us.append(time_us)
            columns.value.append(value)
            columns.quality.append(Quality.GOOD)
            columns.reason.append(Reason.NONE)
            columns.time_source.append(TimeSource.NETWORK)
            columns.time_state.append(TimeState.SURE)
    return columns
