"""Whatever a commit meets: nothing pending is lost, the log says so meanwhile, and one piece that cannot be written stays one."""

import asyncio
import sqlite3
import struct
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Source
from gateway.log.log import Consumer, Log
from gateway.log.segment import Columns
from gateway.log.store import connect_file
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, everything, opened

FAULTS: dict[str, Callable[[], Exception]] = {
    "text": lambda: UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    "type": lambda: TypeError("can't subtract offset-naive and offset-aware datetimes"),
    "large": lambda: OverflowError("Python int too large to convert to SQLite INTEGER"),
    "memory": lambda: MemoryError(),
    "struct": lambda: struct.error("required argument is not a float"),
    "deep": lambda: RecursionError("maximum recursion depth exceeded"),
    "binding": lambda: sqlite3.InterfaceError("Error binding parameter 0 - probably unsupported type."),
    "blob": lambda: sqlite3.DataError("string or blob too big"),
    "full": lambda: _sqlite("database or disk is full", sqlite3.SQLITE_FULL),
    "busy": lambda: _sqlite("database is locked", sqlite3.SQLITE_BUSY),
    "key": lambda: KeyError("temperature"),
    "bug": lambda: AssertionError(),
    "os": lambda: OSError(5, "Input/output error"),
}
STAGES = ("BEGIN", "INSERT INTO record(", "INSERT INTO segment", "INSERT OR REPLACE INTO cursor", "state", "boot", "last_value", "statistic", "PRAGMA page_count", "COMMIT", "after COMMIT")  # fmt: skip


def _sqlite(text: str, code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class Faulty:
    """A real connection that fails at one stage of a transaction, while told to."""

    def __init__(self) -> None:
        self.stage = ""
        self.fault: Callable[[], Exception] | None = None
        self.failed = 0

    def connect(self, path: Path) -> Any:
        self._db = connect_file(path)
        return self

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def _check(self, sql: str) -> None:
        if self.fault is None or "SELECT" in sql:
            return
        if sql.startswith(self.stage) or (self.stage.islower() and f" {self.stage}" in sql.replace("(", " ")):
            self.failed += 1
            raise self.fault()

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        self._check(sql)
        result = self._db.execute(sql, parameters)
        if sql == "COMMIT":
            self._check("after COMMIT")
        return result

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        rows = list(parameters)
        if rows:
            self._check(sql)
        return self._db.executemany(sql, rows)

    def close(self) -> None:
        self._db.close()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", FAULTS)
async def test_nothing_pending_is_lost_over_any_exception_at_any_stage_of_a_commit(
    tmp_path: Path, name: str, stage: str
) -> None:
    card, clock = Faulty(), BootClock("b1", NOON, -1800.0)
    log = await opened(tmp_path, CITY, OTHER, Consumer("gone"), clock=clock, connect=card.connect, head_bytes=3000)
    await log.append(a_set(1))
    await log.commit()
    await log.settle("gone", log.first_seq + 1)
    await log.set_consumers([CITY, OTHER])
    await log.commit()
    await log.settle("milano", log.first_seq + 1)
    card.stage, card.fault = stage, FAULTS[name]
    clock.learn(Source.KERNEL)
    for n in range(2, 5):  # series, states, a boot, statistics; nobody has settled any
        await log.append(a_set(n, f"meter-{n}"))
        await log.append(ReadingSet("node", (), {f"fcnt-{n}": bytes([n])}))
    for _ in range(2):
        with pytest.raises(LogError):
            await log.commit()
        told = log.status()
        assert told["state"] == "bad"
        assert told["reason"]
        assert told["remedy"]
        assert told["since"]
    assert card.failed
    await log.settle("milano", log.first_seq + 2)
    await log.append(a_set(5, "late"))
    with pytest.raises(LogError):
        await log.forget("gone")

    card.fault = None
    await log.commit()
    assert log.status()["state"] == "ok"
    assert not log.gaps
    assert log.boots.confirmed
    left = await everything(log, "milano")
    assert left == [3, 4, 5]
    assert await everything(log, "porto") == [1, 2, 3, 4, 5]
    await log.close()

    log = await opened(tmp_path, CITY, OTHER, clock=clock)
    assert await everything(log, "milano") == left
    assert await everything(log, "porto") == [1, 2, 3, 4, 5]
    assert log.driver_state("node") == {f"fcnt-{n}": bytes([n]) for n in range(2, 5)}
    assert log.boots.confirmed
    assert log.last_values.device("late")["count"].value == 5
    assert log.statistics.of()["late", "count"].got == 1
    assert log.status()["gone"] == {}
    assert log.status()["state"] == "ok"
    await log.close()


@pytest.mark.parametrize("stage", ["BEGIN", "INSERT INTO segment", "gap", "COMMIT"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_gap_of_a_full_memory_is_counted_once_whatever_fails_meanwhile(
    tmp_path: Path, name: str, stage: str
) -> None:
    card = Faulty()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=5000)
    card.stage, card.fault = "BEGIN", FAULTS[name]
    for n in range(40):
        await asyncio.wait_for(log.append(a_set(n)), 5)
        if n % 4 == 0:
            with pytest.raises(LogError):
                await log.commit()
        if n == 30:
            card.stage = stage
    kept = await everything(log, "milano")
    assert kept == list(range(kept[0], 40))
    told = log.status()
    assert told["state"] == "bad"
    assert told["lost"] == {"memory": kept[0] * 2}
    card.fault = None
    await log.commit()
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["lost"] == {"memory": kept[0] * 2}
    assert await everything(log, "milano") == kept
    await log.close()


# One piece that cannot be written


class Odd(float):
    """As some libraries hand over numbers."""


class Strange:
    """Nothing that anybody knows."""


def _reading(**changes: Any) -> Reading:
    return Reading(**{"point": "count", "value": 1, "observed_at": NOON, **changes})


POISON: dict[str, Any] = {
    "a list": (_reading(value=[1]),),
    "an object": (_reading(value=Strange()),),
    "a kind of float": (_reading(value=Odd(1.5)),),
    "bytes": (_reading(value=b"12"),),
    "naive": (_reading(observed_at=datetime(2026, 6, 1)),),
    "naive behind a good one": (_reading(), _reading(point="voltage", observed_at=datetime(2026, 6, 1))),
    "no time": (_reading(observed_at=None),),
    "time as text": (_reading(observed_at="2026-06-01T12:00:00Z"),),
    "quality of another kind": (_reading(quality="excellent"),),
    "reason of another kind": (_reading(value=None, quality=Quality.BAD, reason="because"),),
    "source of another kind": (_reading(time_source="moon"),),
    "no reading": (None,),
    "no tuple": 5,
    "a point that is none": (_reading(point=Strange()),),
    "a point of bytes": (_reading(point=b"count"),),
    "a point that cannot be hashed": (_reading(point=["count"]),),
}


@pytest.mark.parametrize("kind", POISON)
@pytest.mark.parametrize("first", [False, True])
async def test_a_set_that_cannot_be_written_costs_itself_and_is_counted(tmp_path: Path, kind: str, first: bool) -> None:
    log = await opened(tmp_path, CITY)
    if not first:
        await log.append(a_set(0))
    receipt = await log.append(ReadingSet("meter-1", POISON[kind]))
    durable = asyncio.ensure_future(receipt.durable)
    await log.append(a_set(1))
    await log.append(a_set(2, "neighbour"))
    await log.append(ReadingSet("node", (), {"fcnt": b"\x07"}))
    await log.commit()
    with pytest.raises(LogError):
        await asyncio.wait_for(durable, 5)
    with pytest.raises(LogError):
        await receipt.durable
    told = log.status()
    assert told["state"] == "bad"
    assert told["remedy"]
    assert told["head_readings"] == told["head_bytes"] == 0
    assert told["lost"] == {"unwritable": {"no tuple": 0, "naive behind a good one": 2}.get(kind, 1)}
    await log.append(a_set(3))
    await log.commit()
    wanted = [0, 1, 2, 3][first:]
    assert await everything(log, "milano") == wanted
    assert log.backlog("milano")[0] == 2 * len(wanted)
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == wanted
    assert log.last_values.device("meter-1")["count"].value == 3
    assert log.gaps[-1].reason == "unwritable"
    assert log.driver_state("node") == {"fcnt": b"\x07"}
    await log.close()


async def test_of_a_set_that_is_none_nothing_stays_but_who_sent_it_and_what_is_wrong(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(0))
    naive = _reading(point="voltage", observed_at=datetime(2026, 6, 1))
    receipt = await log.append(
        ReadingSet("meter-1", (_reading(value=7, observed_at=NOON + timedelta(minutes=1)), naive))
    )
    assert "a set of meter-1: TypeError: " in log.status()["reason"]
    with pytest.raises(LogError, match="TypeError: can't compare"):
        await receipt.durable
    assert 7 not in [last.value for last in log.last_values.device("meter-1").values()]
    device: Any = ["x" * 200]
    await log.append(ReadingSet(device, a_set(1).readings))
    assert f"a set of {str(device)[:100]}: TypeError: " in log.status()["reason"]
    assert log.status()["lost"] == {"unwritable": 4}
    await log.commit()
    assert await everything(log, "milano") == [0]
    await log.close()


async def test_a_name_that_cannot_be_written_is_given_up_again_when_it_comes_again_and_is_in_no_memory(
    tmp_path: Path,
) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(0))
    for turn in range(1, 4):
        await log.append(ReadingSet("meter-1", POISON["a point of bytes"], {"\ud800": b"1", "fcnt": bytes([turn])}))
        await log.commit()
        assert log.status()["lost"] == {"unwritable": turn}
        assert log.status()["series"] == 2
        assert log.last_values.device("meter-1").keys() == {"count", "voltage"}
        assert log.driver_state("meter-1") == {"fcnt": bytes([turn])}
    await log.append(a_set(1))
    await log.commit()
    for _ in range(2):
        assert await everything(log, "milano") == [0, 1]
        await log.close()
        log = await opened(tmp_path, CITY)
    await log.close()


@pytest.mark.parametrize("place", range(3))
async def test_a_poisoned_set_leaves_memory_wherever_it_stands_and_is_counted_for_whom_it_was_owed(
    tmp_path: Path, place: int
) -> None:
    log = await opened(tmp_path, CITY, OTHER, Consumer("all", takes=lambda device, point: True))
    for n in range(3):
        await log.append(ReadingSet("d", POISON["a list"]) if n == place else a_set(n))
    await log.settle("milano", log.first_seq + 2)
    assert log.backlog("all")[0] == 5
    for _ in range(2):
        await log.commit()
        assert (log.status()["head_readings"], log.status()["head_bytes"]) == (0, 0)
        assert "cannot be written: 1 sets" in log.status()["reason"]
        assert log.status()["lost"] == {"unwritable": 1}
        assert (log.given_up("milano"), log.given_up("porto")) == (int(place == 2), 1)
        assert (log.backlog("milano")[0], log.backlog("porto")[0]) == (2 * (place != 2), 4)
        assert log.backlog("all")[0] == 4
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "porto") == [n for n in range(3) if n != place]
    assert (log.given_up("milano"), log.given_up("porto")) == (int(place == 2), 1)
    await log.close()


@pytest.mark.parametrize(
    "poison", [ReadingSet("d", POISON["a list"]), ReadingSet("node", (), {"\ud800": b"1"})], ids=["set", "state"]
)
async def test_what_cannot_be_written_after_a_commit_that_was_written_though_it_failed_costs_itself(
    tmp_path: Path, poison: ReadingSet
) -> None:
    card = Faulty()
    log = await opened(tmp_path, CITY, connect=card.connect)
    for n in range(2):
        await log.append(a_set(n))
    card.stage, card.fault = "after COMMIT", FAULTS["full"]
    with pytest.raises(LogError):
        await log.commit()
    card.fault = None
    await log.append(poison)
    await log.commit()
    assert log.status()["head_readings"] == 0
    assert "given up" in log.status()["reason"]
    await log.append(a_set(2))
    await log.commit()
    for _ in range(2):
        assert await everything(log, "milano") == [0, 1, 2]
        assert log.backlog("milano")[0] == 6
        await log.close()
        log = await opened(tmp_path, CITY)
    await log.close()


async def test_with_commit_every_0_a_poisoned_set_holds_nobody(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, commit_every_s=0.0)
    await asyncio.wait_for(log.append(ReadingSet("d", POISON["a list"])), 5)
    await asyncio.wait_for(log.append(a_set(1)), 5)
    assert log.status()["head_readings"] == 0
    assert await everything(log, "milano") == [1]
    await log.close()


@pytest.mark.parametrize(
    "state",
    [
        {"k": bytes(50_000_000)},
        {"k": "text"},
        {"k": None},
        {5: b""},
        {str(n): b"" for n in range(2000)},
        {"\ud800": b"1"},
    ],
    ids=["50 MB", "text", "none", "number", "many", "surrogate"],
)
async def test_driver_state_that_cannot_be_kept_costs_itself(tmp_path: Path, state: Any) -> None:
    log = await opened(tmp_path, CITY, max_size_bytes=600_000)
    await log.append(ReadingSet("hostile", a_set(1).readings, state))
    await log.append(ReadingSet("node", a_set(2).readings, {"fcnt": b"1"}))
    await log.commit()
    assert log.status()["state"] == "bad"
    assert log.status()["remedy"]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [1, 2]
    assert log.driver_state("node") == {"fcnt": b"1"}
    assert len(log.driver_state("hostile")) <= 1000
    await log.close()


async def test_what_could_not_be_written_is_told_for_a_while_and_no_longer(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, clock=clock)
    for poison in (ReadingSet("d", POISON["a list"]), ReadingSet("d", (), {"k": bytes(9000)})):
        await log.append(poison)
        await log.commit()
        assert log.status()["state"] == "bad"
        assert log.status()["since"] == clock.now()
        clock.advance(601)
        await log.commit()
        assert log.status()["state"] == "ok"
    await log.close()


async def test_a_name_that_cannot_be_written_costs_its_cursor_alone(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, Consumer("\ud800"))
    await log.append(a_set(1))
    await log.commit()
    assert log.status()["state"] == "bad"
    assert await everything(log, "\ud800") == await everything(log, "milano") == [1]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [1]
    await log.close()


async def test_a_last_value_that_cannot_be_written_costs_itself(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.append(ReadingSet("meter-2", POISON["an object"]))
    columns = await log.read("milano")
    assert columns is not None
    await log.settle("milano", columns.last)  # it never comes into a segment
    await log.commit()
    assert log.status()["state"] == "bad"
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.last_values.device("meter-1")["count"].value == 1
    await log.close()


# Held pieces


async def _columns(log: Log) -> Columns:
    await log.append(a_set(1))
    columns = await log.read("milano")
    assert columns is not None
    return columns


async def test_what_a_broker_said_is_kept_whatever_is_in_it(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    columns = await _columns(log)
    piece = await log.held.hold("milano", "e", "d", columns, reason="\ud83d" + "x" * 10**6, at=NOON, next_try_at=NOON)
    await log.held.tried(piece, reason="half \udc00 of it", at=NOON, next_try_at=None)
    await log.close()
    log = await opened(tmp_path, CITY)
    [held] = log.held.pieces()
    assert held.reason == "half ? of it"
    await log.close()


async def test_a_piece_that_cannot_be_written_is_given_up_and_counted_so_that_its_broker_goes_on(
    tmp_path: Path,
) -> None:
    log = await opened(tmp_path, CITY)
    columns = await _columns(log)
    assert await log.held.hold("milano", "\ud800", "d", columns, reason="", at=NOON) == 0
    columns.value[0] = Strange()  # type: ignore[call-overload]
    assert await log.held.hold("milano", "e", "d", columns, reason="", at=NOON) == 0
    assert log.held.pieces() == []
    assert log.status()["dropped"] == 4
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["lost"] == {"unwritable": 4}
    await log.close()


@pytest.mark.parametrize("name", FAULTS)
async def test_a_card_that_refuses_a_piece_keeps_the_cursor_where_it_is(tmp_path: Path, name: str) -> None:
    card = Faulty()
    log = await opened(tmp_path, CITY, connect=card.connect)
    columns = await _columns(log)
    card.stage, card.fault = "INSERT INTO held", FAULTS[name]
    with pytest.raises(LogError):
        await log.held.hold("milano", "e", "d", columns, reason="", at=NOON)
    card.fault = None
    piece = await log.held.hold("milano", "e", "d", columns, reason="", at=NOON)
    assert [held.id for held in log.held.pieces()] == [piece]
    await log.close()


async def test_a_held_piece_whose_bits_have_changed_is_given_up_and_the_others_are_read(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    columns = await _columns(log)
    bad, good = [await log.held.hold("milano", e, "d", columns, reason="", at=NOON, next_try_at=NOON) for e in "ab"]
    await log.close()
    db = sqlite3.connect(tmp_path / "buffer.db")
    with db:
        db.execute("UPDATE held SET body = substr(body, 1, length(body) - 1) || x'ff' WHERE id = ?", (bad,))
    db.close()
    log = await opened(tmp_path, CITY)
    assert (await log.held.readings(bad)).seq == []
    assert len((await log.held.readings(good)).seq) == 2
    assert [piece.id for piece in log.held.pieces()] == [good]
    assert log.status()["lost"] == {"damage": 2}
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["lost"] == {"damage": 2}
    await log.close()


# Files written before


@pytest.mark.parametrize(
    "reading",
    [
        _reading(point="t", value="\ud800\udc00 half \ud83d"),
        _reading(observed_at=datetime(9999, 12, 31, 23, 59, 59, tzinfo=NOON.tzinfo), time_source=TimeSource.DEVICE),
        _reading(observed_at=datetime(1, 1, 1, tzinfo=NOON.tzinfo), time_source=TimeSource.NETWORK),
        _reading(point="t\ud800", value=1),
    ],
    ids=["surrogate", "last moment", "first moment", "surrogate in a name"],
)
@pytest.mark.parametrize("wrong_s", [0.0, -7200.0, 7200.0])
async def test_odd_things_in_an_older_file_never_stop_it(tmp_path: Path, reading: Reading, wrong_s: float) -> None:
    clock = BootClock("b1", NOON, wrong_s, Source.KERNEL if not wrong_s else Source.NONE)
    log = await opened(tmp_path, CITY, clock=clock)
    gateway = Reading("g", 1, clock.now())
    await log.append(ReadingSet("d", (reading, gateway)))
    await log.append(a_set(1))
    await log.close()
    clock.learn(Source.KERNEL)
    log = await opened(tmp_path, CITY, clock=clock)
    await log.append(a_set(2))
    await log.commit()
    assert 2 in await everything(log, "milano")
    columns = await log.read("milano")
    assert columns is not None
    for value in columns.value:
        assert not isinstance(value, str) or value.encode()
    assert all(series.point.encode() for series in log.series.values())
    log.backlog("milano")
    await log.close()


async def test_codes_of_a_newer_citygate_are_read_as_not_available(tmp_path: Path) -> None:
    import zlib

    log = await opened(tmp_path, CITY)
    await log.append(ReadingSet("d", (Reading("count", None, NOON, Quality.BAD, Reason.TIMEOUT),)))
    await log.commit()
    await log.append(a_set(1))
    await log.close()
    db = sqlite3.connect(tmp_path / "buffer.db")
    for table in ("segment", "last_value"):
        for number, body in db.execute(f"SELECT id, body FROM {table}").fetchall():
            if body[-1] != 2 | 1 << 2:
                continue
            changed = body[:-1] + bytes([3 | 30 << 2])
            changed = changed[:3] + zlib.crc32(changed[7:]).to_bytes(4, "little") + changed[7:]
            with db:
                db.execute(f"UPDATE {table} SET body = ? WHERE id = ?", (changed, number))
    db.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["state"] == "ok"
    columns = await log.read("milano")
    assert columns is not None
    assert columns.quality[0] is Quality.BAD
    assert columns.reason[0] is Reason.NOT_AVAILABLE
    assert await everything(log, "milano") == [1]
    await log.close()


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE gap SET owed = 'no json'",
        "UPDATE gap SET owed = '[1]'",
        "UPDATE statistic SET body = x'00ff'",
        "UPDATE last_value SET body = x'00ff'",
        "DELETE FROM record; DELETE FROM record_copy",
        "UPDATE cursor SET seq = -5",
        "UPDATE state SET value = 17",
        "UPDATE boot SET up_us = 'long'",
        "UPDATE gap SET readings = 'many'",
        "UPDATE held SET tries = NULL WHERE 0",
    ],
)
async def test_rows_that_cannot_be_understood_never_stop_it(tmp_path: Path, spoil: str) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(3):
        await log.append(a_set(n))
    await log.append(ReadingSet("node", (), {"fcnt": b"1"}))
    await log.held.hold("milano", "e", "d", await _columns(log), reason="", at=NOON)
    await log.held.purge([1], NOON)
    await log.close()
    db = sqlite3.connect(tmp_path / "buffer.db")
    with db:
        for statement in spoil.split(";"):
            db.execute(statement)
    db.close()
    log = await opened(tmp_path, CITY)
    await log.append(a_set(7))
    await log.commit()
    while (columns := await log.read("milano")) is not None:
        assert [log.series[number].device for number in columns.series]
        await log.settle("milano", columns.last)
    await log.append(a_set(8))
    assert await everything(log, "milano") == [8]
    assert len(log.held.pieces()) <= 1
    await log.close()


async def test_a_commit_that_is_cancelled_is_known_to_be_in_doubt(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(20):
        await log.append(a_set(n))
        await log.append(ReadingSet("node", (), {"n": str(n).encode()}))
        waiting = asyncio.create_task(log.commit())
        for _ in range(n % 5):
            await asyncio.sleep(0)
        waiting.cancel()
    await log.commit()
    assert log.status()["state"] == "ok"
    assert await everything(log, "milano") == list(range(20))
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == list(range(20))
    assert log.driver_state("node") == {"n": b"19"}
    assert not log.gaps
    await log.close()


async def test_a_set_larger_than_memory_does_not_stop_a_box_whose_card_refuses(tmp_path: Path) -> None:
    card = Faulty()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=2000)
    card.stage, card.fault = "BEGIN", FAULTS["full"]
    for n in range(3):
        wide = tuple(Reading(f"p{k}", k, NOON + timedelta(seconds=n)) for k in range(50))
        await asyncio.wait_for(log.append(ReadingSet("d", wide)), 5)
        with pytest.raises(LogError):
            await log.commit()
    assert log.status()["lost"] == {"memory": 100}
    card.fault = None
    await log.commit()
    await log.close()
