"""For tests of the forwarder: a mapping made by hand, a log in memory, entities whose values name themselves."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from gateway.harmonise.compile import Mapping, Slot
from gateway.harmonise.entity import Attribute, Entity
from gateway.log.held import HeldPiece
from gateway.log.last_values import LastValue
from gateway.log.segment import Columns, Series, TimeState
from gateway.sdk.reading import Quality, ReadingSet, Reason, TimeSource, Value

AIR = "https://raw.githubusercontent.com/smart-data-models/dataModel.Environment/master/context.jsonld"
START = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
LOCATION = {"type": "Point", "coordinates": [9.159, 45.503]}


def slot(key: str, unit: str = "GQ") -> Slot:
    """A point taken as it is."""
    return Slot(key, "", "property", unit, lambda raw: raw)


def entity_id(device: str) -> str:
    return f"urn:ngsi-ld:AirQualityObserved:milano:gw:{device}"


def table(device: str, *points: str, mandatory: frozenset[str] = frozenset(), entity: str = "") -> Mapping:
    """A mapping that takes each point as the attribute of its name."""
    return Mapping(
        device=device,
        entity_id=entity or entity_id(device),
        entity_type="AirQualityObserved",
        context=AIR,
        mandatory=mandatory,
        slots={point: (slot(point),) for point in points or ("no2", "pm25")},
        static={"location": Attribute("geo", LOCATION)},
        times=(("dateObserved", lambda at: at),),
    )


def tables(*devices: str, points: tuple[str, ...] = ("no2", "pm25")) -> dict[str, tuple[Mapping, ...]]:
    return {device: (table(device, *points),) for device in devices}


def measured(device: str, at_s: float = 0.0, **values: Value) -> Entity:
    """An entity as harmonising makes it, without going through it."""
    at = START + timedelta(seconds=at_s)
    attributes = {name: Attribute("property", value, "GQ", at) for name, value in values.items()}
    return Entity(entity_id(device), "AirQualityObserved", AIR, attributes, device)


def wire(at_s: float) -> str:
    """The wire time so many seconds after `START`."""
    return (START + timedelta(seconds=at_s)).isoformat().replace("+00:00", "Z")


class MemoryLog:
    """What a forwarder asks of the log, over a list. `lost_cursor` makes it a log after a kill -9."""

    def __init__(self) -> None:
        self.series: dict[int, Series] = {}
        self.rows: list[tuple[int, int, int, Value | None]] = []
        self.cursor = 0
        self.sent_upto = 0
        self.given = 0
        self.held = MemoryHeld()
        self.first_seq = 0
        self._seq = 1 << 32
        self._arrival = asyncio.Event()

    def put(self, device: str, at_s: float, /, **values: Value | None) -> set[tuple[str, str, str, Value]]:
        """Append one set; returns what a broker must hold of it."""
        self._seq += 1
        for point, value in values.items():
            known = [s.id for s in self.series.values() if (s.device, s.point) == (device, point)]
            number = known[0] if known else len(self.series) + 1
            self.series[number] = Series(number, device, point)
            time_us = round((START + timedelta(seconds=at_s)).timestamp() * 1e6)
            self.rows.append((self._seq, number, time_us, value))
        self._arrival.set()
        return {(entity_id(device), p, wire(at_s), v) for p, v in values.items() if v is not None}

    @property
    def last_values(self) -> "MemoryLog":
        return self

    def since(self, mark: int) -> tuple[int, list[int]]:
        new = dict.fromkeys(row[1] for row in self.rows[mark:] if row[3] is not None)
        return len(self.rows), list(new)

    def good(self, series: int) -> LastValue | None:
        rows = [row for row in self.rows if row[1] == series and row[3] is not None]
        if not rows:
            return None
        seq, _, time_us, value = max(rows, key=lambda row: row[2])
        return LastValue(time_us, value, Quality.GOOD, Reason.NONE, TimeSource.GATEWAY, seq)

    async def read(self, consumer: str, *, after: int | None = None, max_readings: int = 2000) -> Columns | None:
        after = self.cursor if after is None else after
        rows = [row for row in self.rows if row[0] > after]
        end = max_readings
        while end < len(rows) and rows[end][0] == rows[end - 1][0]:
            end += 1
        rows = rows[:end]
        if not rows:
            return None
        columns = Columns(last=rows[-1][0])
        for seq, number, time_us, value in rows:
            columns.seq.append(seq)
            columns.series.append(number)
            columns.time_us.append(time_us)
            columns.value.append(value)
            columns.quality.append(Quality.BAD if value is None else Quality.GOOD)
            columns.reason.append(Reason.TIMEOUT if value is None else Reason.NONE)
            columns.time_source.append(TimeSource.GATEWAY)
            columns.time_state.append(TimeState.SURE)
        return columns

    async def settle(self, consumer: str, upto: int) -> None:
        self.cursor = max(self.cursor, upto)
        self._arrival.set()

    def accepted_upto(self, consumer: str) -> int:
        return max(self.cursor, self.sent_upto)

    def accepted(self, consumer: str, upto: int, sure: int | None = None) -> None:
        self.sent_upto = max(self.sent_upto, upto)

    async def wait(self, consumer: str, after: int | None = None) -> None:
        while await self.read(consumer, after=after, max_readings=1) is None:
            self._arrival.clear()
            await self._arrival.wait()

    def backlog(self, consumer: str) -> tuple[int, datetime | None]:
        owed = [row for row in self.rows if row[0] > max(self.cursor, self.sent_upto)]
        oldest = min((row[2] for row in owed), default=None)
        return len(owed), None if oldest is None else datetime.fromtimestamp(oldest / 1e6, UTC)

    def driver_state(self, device: str) -> dict[str, bytes]:
        return {}

    async def append(self, readings: ReadingSet) -> None:
        assert readings.state
        assert not readings.readings

    @property
    def settled(self) -> bool:
        return not self.rows or self.cursor >= self.rows[-1][0]


class MemoryHeld:
    """The table of held pieces, in memory."""

    def __init__(self) -> None:
        self.table: dict[int, tuple[HeldPiece, Columns]] = {}

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
        if joins:
            old, columns = self.table[joins]
            for name in ("seq", "series", "time_us", "value", "quality", "reason", "time_source", "time_state"):
                getattr(columns, name).extend(getattr(readings, name))
            self.table[joins] = (replace(old, readings=old.readings + len(readings.seq)), columns)
            return joins
        number = max(self.table, default=0) + 1
        state: Literal["dead", "later"] = "dead" if next_try_at is None else "later"
        count = len(readings.seq)
        piece = HeldPiece(number, broker, entity, device, state, reason, at, at, tries, next_try_at, count)
        self.table[number] = (piece, readings)
        return number

    def pieces(
        self, broker: str | None = None, *, entity: str | None = None, device: str | None = None
    ) -> list[HeldPiece]:
        return [piece for piece, _ in self.table.values()]

    def count(self, broker: str) -> tuple[int, int]:
        later = sum(piece.next_try_at is not None for piece in self.pieces())
        return later, len(self.table) - later

    async def readings(self, piece: int) -> Columns:
        return self.table[piece][1]

    async def tried(
        self, piece: int, *, reason: str, at: datetime, next_try_at: datetime | None, offered: bool = True
    ) -> None:
        old, columns = self.table[piece]
        tries = old.tries + offered
        self.table[piece] = (replace(old, reason=reason, next_try_at=next_try_at, tries=tries), columns)

    async def requeue(self, pieces: Sequence[int], at: datetime) -> int:
        for number in pieces:
            piece, columns = self.table[number]
            self.table[number] = (replace(piece, next_try_at=at, state="later", tries=0), columns)
        return len(pieces)

    async def release(self, pieces: Sequence[int]) -> None:
        for number in pieces:
            del self.table[number]


class RealClock:
    """The box's own time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class LeapClock(RealClock):
    """The box's own time, which can be let pass in one leap: waits of hours are over, those of a sleep go on."""

    def __init__(self) -> None:
        self.leapt_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.leapt_s)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.leapt_s

    def leap(self, seconds: float) -> None:
        self.leapt_s += seconds


def measured_only(history: list[tuple[str, str, str | None, Any]]) -> list[tuple[str, str, str | None, Any]]:
    """Without what is derived or static."""
    return [item for item in history if item[1] not in ("location", "dateObserved")]


def dumps(document: Any) -> bytes:
    return json.dumps(document).encode()
