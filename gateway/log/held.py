"""Held: what one broker will not take now. *Later* with a next try, *dead letter* without; bounded, readings copied."""

import json
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, Protocol, TypeVar

from gateway.log.segment import microseconds, wall_time
from gateway.log.store import Gap, HeldRow, Store
from gateway.sdk.reading import Value

MAX_SETS: Final = 10_000
MAX_BYTES: Final = 16 * 2**20
_ROW_BYTES: Final = 200  # what a piece costs beside its readings
T = TypeVar("T")


class Job(Protocol):
    """Runs a function with the store in the writer thread."""

    def __call__(self, work: Callable[[Store], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class HeldSet:
    """The readings of one set for one entity, copied so that the cursor moves on.

    Attributes:
        readings: point, UTC microseconds, value; good ones only.
    """

    entity: str
    device: str
    readings: tuple[tuple[str, int, Value], ...]


@dataclass(frozen=True, slots=True)
class HeldItem:
    """One held set as it stands.

    Attributes:
        tries: how often it was offered.
        next_try_at: None for a dead letter.
    """

    id: int
    broker: str
    set: HeldSet
    reason: str
    first_at: datetime
    last_at: datetime
    tries: int
    next_try_at: datetime | None

    @property
    def state(self) -> Literal["later", "dead"]:
        return "dead" if self.next_try_at is None else "later"


class Held:
    """The table of held sets, bounded. What `add` was given is on the card when it returns, so the cursor may move on.

    Args:
        job: runs work in the writer thread.
        now: wall time.
    """

    def __init__(self, job: Job, now: Callable[[], datetime]) -> None:
        self._job = job
        self._now = now
        self._rows: dict[int, HeldRow] = {}
        self._waiting: dict[str, frozenset[str]] = {}
        self._size_bytes = 0

    def take(self, rows: Sequence[HeldRow]) -> None:
        """The file was opened: what it holds."""
        self._rows = {row.id: row for row in rows}
        self._changed()

    def _changed(self) -> None:
        self._waiting.clear()
        self._size_bytes = sum(row.size_bytes + _ROW_BYTES for row in self._rows.values())

    async def add(self, broker: str, sets: Sequence[HeldSet], *, reason: str, next_try_at: datetime | None) -> None:
        """Set readings aside; without `next_try_at` as dead letters.

        Raises:
            LogError: the card refuses; the cursor must not move on.
        """
        now_us, next_us = microseconds(self._now()), _optional_us(next_try_at)
        new = [
            (
                HeldRow(0, broker, held.entity, held.device, reason, now_us, now_us, 0, next_us, len(held.readings), 0),
                _pack(held),
            )
            for held in sets
        ]
        drop = self._surplus(len(new), sum(len(body) for _, body in new))
        gaps = [_gap(row, now_us, "held") for row in drop]
        numbers = await self._job(lambda store: store.add_held(new, [row.id for row in drop], gaps))
        for row in drop:
            self._rows.pop(row.id, None)
        for number, (row, body) in zip(numbers, new, strict=True):
            self._rows[number] = replace(row, id=number, size_bytes=len(body))
        self._changed()

    def _surplus(self, more: int, more_bytes: int) -> list[HeldRow]:
        """What must go so that so much fits: dead letters first, the oldest first."""
        size = self._size_bytes + more_bytes + more * _ROW_BYTES
        count = len(self._rows) + more
        if count <= MAX_SETS and size <= MAX_BYTES:
            return []
        drop = []
        for row in sorted(self._rows.values(), key=lambda row: (row.next_us is not None, row.id)):
            if count <= MAX_SETS and size <= MAX_BYTES:
                break
            drop.append(row)
            count -= 1
            size -= row.size_bytes + _ROW_BYTES
        return drop

    async def due(self, broker: str, now: datetime, limit: int = 200) -> list[HeldItem]:
        """Sets to try again now, oldest first. An entity's sets keep their order: they wait for the oldest of them."""
        now_us = microseconds(now)
        oldest: dict[str, HeldRow] = {}
        for row in self._rows.values():
            if row.broker == broker and row.next_us is not None:
                oldest.setdefault(row.entity, row)
        ready = {entity for entity, row in oldest.items() if (row.next_us or 0) <= now_us}
        rows = [
            row
            for row in self._rows.values()
            if row.broker == broker and row.next_us is not None and row.entity in ready
        ]
        return await self._items(rows[:limit])

    async def items(
        self, *, broker: str | None = None, entity: str | None = None, ids: Sequence[int] | None = None
    ) -> list[HeldItem]:
        """Sets with their readings, oldest first; those that match all that is given."""
        return await self._items(self._matching(broker, entity, ids))

    def _matching(self, broker: str | None, entity: str | None, ids: Sequence[int] | None) -> list[HeldRow]:
        return [
            row
            for row in self._rows.values()
            if broker in (None, row.broker) and entity in (None, row.entity) and (ids is None or row.id in ids)
        ]

    async def _items(self, rows: Sequence[HeldRow]) -> list[HeldItem]:
        if not rows:
            return []
        bodies = await self._job(lambda store: store.held_bodies([row.id for row in rows]))
        damaged = [row.id for row in rows if _unpack(bodies.get(row.id, b"")) is None]
        if damaged:
            await self._give_up(damaged, "damage")
        return [_item(row, bodies[row.id]) for row in rows if row.id not in damaged]

    async def accepted(self, ids: Sequence[int]) -> None:
        """The broker has taken them."""
        await self._job(lambda store: store.drop_held(ids, ()))
        for number in ids:
            self._rows.pop(number, None)
        self._changed()

    async def again(self, ids: Sequence[int], *, reason: str, next_try_at: datetime | None) -> None:
        """Offered again and not taken; without `next_try_at` they become dead letters."""
        now_us, next_us = microseconds(self._now()), _optional_us(next_try_at)
        await self._update(
            [
                replace(row, reason=reason, last_us=now_us, tries=row.tries + 1, next_us=next_us)
                for row in self._matching(None, None, ids)
            ]
        )

    async def requeue(
        self, *, broker: str | None = None, entity: str | None = None, ids: Sequence[int] | None = None
    ) -> int:
        """Try these at once, dead letters too; their tries count anew. Returns how many there were."""
        now_us = microseconds(self._now())
        rows = [replace(row, tries=0, next_us=now_us) for row in self._matching(broker, entity, ids)]
        await self._update(rows)
        return len(rows)

    async def _update(self, rows: Sequence[HeldRow]) -> None:
        await self._job(lambda store: store.update_held(rows))
        self._rows.update((row.id, row) for row in rows)
        self._changed()

    async def purge(
        self, *, broker: str | None = None, entity: str | None = None, ids: Sequence[int] | None = None
    ) -> int:
        """Give these up, counted in a gap record. Returns how many there were."""
        rows = self._matching(broker, entity, ids)
        await self._give_up([row.id for row in rows], "purged")
        return len(rows)

    async def _give_up(self, ids: Sequence[int], reason: str) -> None:
        now_us = microseconds(self._now())
        gaps = [_gap(self._rows[number], now_us, reason) for number in ids]
        await self._job(lambda store: store.drop_held(ids, gaps))
        for number in ids:
            self._rows.pop(number, None)
        self._changed()

    def waiting(self, broker: str) -> frozenset[str]:
        """Entities with sets that wait for a next try: newer ones must queue behind them."""
        found = self._waiting.get(broker)
        if found is None:
            rows = (row for row in self._rows.values() if row.broker == broker and row.next_us is not None)
            found = self._waiting[broker] = frozenset(row.entity for row in rows)
        return found

    def counts(self, broker: str) -> tuple[int, int]:
        """Sets held for later, and as dead letters."""
        rows = [row for row in self._rows.values() if row.broker == broker]
        later = sum(row.next_us is not None for row in rows)
        return later, len(rows) - later

    def rows(self) -> list[HeldRow]:
        """Every held set but for its readings, oldest first."""
        return list(self._rows.values())


def _optional_us(at: datetime | None) -> int | None:
    return None if at is None else microseconds(at)


def _pack(held: HeldSet) -> bytes:
    payload = zlib.compress(json.dumps(held.readings, separators=(",", ":")).encode("utf-8", "surrogatepass"), 6)
    return zlib.crc32(payload).to_bytes(4, "little") + payload


def _unpack(body: bytes) -> tuple[tuple[str, int, Value], ...] | None:
    if len(body) < 4 or zlib.crc32(body[4:]) != int.from_bytes(body[:4], "little"):
        return None
    return tuple((point, time_us, value) for point, time_us, value in json.loads(zlib.decompress(body[4:])))


def _gap(row: HeldRow, at_us: int, reason: str) -> Gap:
    return Gap(at_us, row.first_us, row.last_us, row.readings, reason, {row.broker: row.readings})


def _item(row: HeldRow, body: bytes) -> HeldItem:
    return HeldItem(
        row.id,
        row.broker,
        HeldSet(row.entity, row.device, _unpack(body) or ()),
        row.reason,
        wall_time(row.first_us),
        wall_time(row.last_us),
        row.tries,
        None if row.next_us is None else wall_time(row.next_us),
    )
