"""Held: what one broker will not take now. *Later* with a next try, *dead letter* without; bounded, readings copied."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeVar

from gateway.log.isolate import REASON
from gateway.log.refusal import of_the_file
from gateway.log.segment import Columns, DamagedSegment, Entry, Stamp, entries_of, microseconds, wall_time
from gateway.log.store import Gap, HeldRow, Names, Store
from gateway.sdk.errors import LogError

MAX_PIECES: Final = 2000
MAX_BYTES: Final = 16 * 2**20
MAX_JOINED: Final = (
    500  # readings of a piece that others join: with so many a piece the bound is the bytes, not the pieces
)
MAX_REASON: Final = 1000  # characters; what a broker says can be a page
DROPPED: Final = "held"  # reasons in gap records: the table was full, or somebody said so
PURGED: Final = "purged"
FORGOTTEN: Final = "forgotten"  # with the place of a removed broker
WANTED: Final = frozenset({PURGED, FORGOTTEN})
_ROW_BYTES: Final = 200  # what a piece costs beside its readings
T = TypeVar("T")


class Job(Protocol):
    """Runs a function with the store in the writer thread."""

    def __call__(self, work: Callable[[Store], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class HeldPiece:
    """Readings of one device that one broker did not take as part of one entity.

    Attributes:
        state: `later` has a `next_try_at`, `dead` none.
        tries: how often it was offered.
        readings: how many there are; `Held.readings` fetches them.
    """

    id: int
    broker: str
    entity: str
    device: str
    state: Literal["later", "dead"]
    reason: str
    first_at: datetime
    last_at: datetime
    tries: int
    next_try_at: datetime | None
    readings: int


class Held:
    """The table of held pieces. A piece is on the card when `hold` returns, so the cursor may move on.

    One change after the other: what is decided on a row still holds when it is written.
    """

    def __init__(
        self,
        job: Job,
        stamp: Callable[[], Stamp],
        gave_up: Callable[[Sequence[Gap]], object],
        names: Callable[[Columns], Names],
    ) -> None:
        self._rows: dict[int, HeldRow] = {}
        self._job = job
        self._stamp = stamp
        self._gave_up = gave_up
        self._names = names
        self._one_at_a_time = asyncio.Lock()

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
    ) -> int:
        """Set readings aside; without `next_try_at` as a dead letter. Returns the piece's id.

        Args:
            joins: a piece for later, of the same device and entity, that they become part of if it has room: its next try
                is theirs.

        A piece that cannot be written although others can is given up, counted in a gap record; its id is 0.

        Raises:
            LogError: the card refuses; the cursor must not move on.
        """
        if not readings.seq:
            raise LogError(f"nothing to hold for {entity}")
        next_us = None if next_try_at is None else microseconds(next_try_at)
        at_us = microseconds(at)
        new = HeldRow(0, broker, entity, device, _plain(reason), at_us, at_us, tries, next_us, len(readings.seq), 0)
        async with self._one_at_a_time:
            need_bytes, joined = len(readings.seq) * 16 + _ROW_BYTES, self._rows.get(joins)
            drop = self._surplus(need_bytes, more=0)
            if joined is None or joined in drop or not _has_room(joined, new):
                drop = self._surplus(need_bytes, more=1)
            else:
                readings.seq = [seq + joined.readings for seq in readings.seq]  # the next of its sets
                new = replace(joined, last_us=at_us, readings=joined.readings + new.readings)
            names = self._names(readings)
            entries = entries_of(readings, self._stamp())
            gaps = [_gap(gone, at_us, DROPPED) for gone in drop]
            row, gaps = await self._job(lambda store: _put_or_count(store, new, entries, drop, gaps, names))
            for gone in drop:
                self._rows.pop(gone.id, None)
            if row is not None:
                self._rows[row.id] = row
            if gaps:
                self._gave_up(gaps)
            return row.id if row is not None else 0

    def _surplus(self, need_bytes: int, *, more: int) -> list[HeldRow]:
        """What must go so that so many bytes and pieces more fit: dead letters first, the oldest first."""
        size = sum(row.size_bytes + _ROW_BYTES for row in self._rows.values()) + need_bytes
        count = len(self._rows) + more
        drop = []
        for row in sorted(self._rows.values(), key=lambda row: (row.next_us is not None, row.id)):
            if count <= MAX_PIECES and size <= MAX_BYTES:
                break
            drop.append(row)
            count -= 1
            size -= row.size_bytes + _ROW_BYTES
        return drop

    def pieces(
        self, broker: str | None = None, *, entity: str | None = None, device: str | None = None
    ) -> list[HeldPiece]:
        """All pieces that match, oldest first."""
        return [
            _piece(row)
            for row in self._rows.values()
            if broker in (None, row.broker) and entity in (None, row.entity) and device in (None, row.device)
        ]

    def count(self, broker: str) -> tuple[int, int]:
        """How many pieces are held for later, and as dead letters."""
        rows = [row for row in self._rows.values() if row.broker == broker]
        later = sum(row.next_us is not None for row in rows)
        return later, len(rows) - later

    def due(self, broker: str, now: datetime, limit: int = 100) -> list[HeldPiece]:
        """Pieces whose next try has come, the longest waiting first."""
        now_us = microseconds(now)
        rows = [r for r in self._rows.values() if r.broker == broker and r.next_us is not None and r.next_us <= now_us]
        rows.sort(key=lambda row: row.next_us or 0)
        return [_piece(row) for row in rows[:limit]]

    def next_try_at(self, broker: str) -> datetime | None:
        """When the next piece is due."""
        times = [r.next_us for r in self._rows.values() if r.broker == broker and r.next_us is not None]
        return wall_time(min(times)) if times else None

    async def readings(self, piece: int) -> Columns:
        """The readings of a piece, as they were when it was held; none when they cannot be read any more: it is given up."""
        try:
            return await self._job(lambda store: store.held_readings(piece))
        except DamagedSegment:
            await self._give_up([piece], self._rows[piece].last_us if piece in self._rows else 0, "damage")
            return Columns(0)

    async def tried(
        self, piece: int, *, reason: str, at: datetime, next_try_at: datetime | None, offered: bool = True
    ) -> None:
        """Not taken, or not `offered` yet; without `next_try_at` it becomes a dead letter."""
        next_us = None if next_try_at is None else microseconds(next_try_at)
        last_us, said = microseconds(at), _plain(reason)
        await self._update(
            [piece], lambda row: replace(row, reason=said, last_us=last_us, tries=row.tries + offered, next_us=next_us)
        )

    async def requeue(self, pieces: Sequence[int], at: datetime) -> int:
        """Try these at once, dead letters too; the count of tries starts again. Returns how many there were."""
        at_us = microseconds(at)
        return await self._update(pieces, lambda row: replace(row, tries=0, next_us=at_us))

    async def _update(self, pieces: Sequence[int], change: Callable[[HeldRow], HeldRow]) -> int:
        """Change those that are still there; returns how many."""
        async with self._one_at_a_time:
            rows = [change(self._rows[number]) for number in pieces if number in self._rows]

            def work(store: Store) -> None:
                for row in rows:
                    store.put_held(row, (), ())

            await self._job(work)
            self._rows.update((row.id, row) for row in rows)
            return len(rows)

    async def release(self, pieces: Sequence[int]) -> None:
        """The broker has taken them."""
        async with self._one_at_a_time:
            await self._job(lambda store: store.drop_held(pieces))
            for number in pieces:
                self._rows.pop(number, None)

    async def purge(self, pieces: Sequence[int], at: datetime) -> int:
        """Give them up, counted in a gap record. Returns how many there were."""
        return await self._give_up(pieces, microseconds(at), PURGED)

    async def forget(self, broker: str, at: datetime) -> int:
        """Give up all that is held for a removed one, counted in a gap record. Returns how many pieces there were."""
        pieces = [row.id for row in self._rows.values() if row.broker == broker]
        return await self._give_up(pieces, microseconds(at), FORGOTTEN) if pieces else 0

    async def forget_device(self, device: str, at: datetime) -> int:
        """The same of a device, for all brokers."""
        pieces = [row.id for row in self._rows.values() if row.device == device]
        return await self._give_up(pieces, microseconds(at), FORGOTTEN) if pieces else 0

    def renamed(self, old: str, new: str) -> None:
        """A broker has another name from now on; in the file with the next commit."""
        self._rows = {
            number: replace(row, broker=new) if row.broker == old else row for number, row in self._rows.items()
        }

    async def _give_up(self, pieces: Sequence[int], at_us: int, reason: str) -> int:
        async with self._one_at_a_time:
            rows = [self._rows[number] for number in pieces if number in self._rows]
            gaps = [_gap(row, at_us, reason) for row in rows]
            await self._job(lambda store: store.drop_held([row.id for row in rows], gaps))
            for row in rows:
                self._rows.pop(row.id, None)
            if gaps:
                self._gave_up(gaps)
            return len(rows)

    def rows(self) -> list[HeldRow]:
        """All pieces, as they are stored."""
        return list(self._rows.values())

    def take(self, rows: Sequence[HeldRow]) -> None:
        """The file was opened late or anew, or pieces are called otherwise: what there is."""
        self._rows = {row.id: row for row in rows}

    def to_json(self) -> list[dict[str, Any]]:
        """What `buffer held list` shows."""
        return [
            {
                "id": piece.id,
                "broker": piece.broker,
                "entity": piece.entity,
                "device": piece.device,
                "state": piece.state,
                "reason": piece.reason,
                "first_at": piece.first_at,
                "last_at": piece.last_at,
                "tries": piece.tries,
                "next_try_at": piece.next_try_at,
                "readings": piece.readings,
            }
            for piece in self.pieces()
        ]


def _put_or_count(
    store: Store, row: HeldRow, entries: Sequence[Entry], drop: Sequence[HeldRow], gaps: Sequence[Gap], names: Names
) -> tuple[HeldRow | None, list[Gap]]:
    """Write a piece; one that cannot be written although another can is counted as given up: then None. With all gaps."""
    try:
        return _put(store, row, entries, drop, gaps, names), list(gaps)
    except Exception as error:
        if of_the_file(error) or not store.can_hold():
            raise
    count = sum(len(entry.readings) for entry in entries)
    lost = Gap(row.last_us, row.last_us, row.last_us, count, REASON, {row.broker: count})
    store.drop_held([gone.id for gone in drop], [*gaps, lost])
    return None, [*gaps, lost]


def _has_room(piece: HeldRow, new: HeldRow) -> bool:
    """Whether a piece for later can take in what is new of its device and entity."""
    same = (piece.broker, piece.entity, piece.device) == (new.broker, new.entity, new.device)
    return same and None not in (piece.next_us, new.next_us) and piece.readings + new.readings <= MAX_JOINED


def _plain(text: str) -> str:
    """What a broker said, as text that can be stored: it may be long, and hold halves of characters."""
    return text[:MAX_REASON].encode("utf-8", "replace").decode()


def _put(
    store: Store, row: HeldRow, entries: Sequence[Entry], drop: Sequence[HeldRow], gaps: Sequence[Gap], names: Names
) -> HeldRow:
    number = store.put_held(row, entries, [gone.id for gone in drop], gaps, names)
    return replace(row, id=number, size_bytes=store.held_size(number))


def _gap(row: HeldRow, at_us: int, reason: str) -> Gap:
    return Gap(at_us, row.first_us, row.last_us, row.readings, reason, {row.broker: row.readings})


def _piece(row: HeldRow) -> HeldPiece:
    return HeldPiece(
        row.id,
        row.broker,
        row.entity,
        row.device,
        "dead" if row.next_us is None else "later",
        row.reason,
        wall_time(row.first_us),
        wall_time(row.last_us),
        row.tries,
        None if row.next_us is None else wall_time(row.next_us),
        row.readings,
    )
