"""What was decided before a wait holds after it: the writer is held up at chosen moments, and something else happens meanwhile."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Source
from gateway.log.held import MAX_PIECES
from gateway.log.log import Consumer, Log, TimeState
from gateway.log.store import connect_file
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, everything, lose, opened


class Held:
    """A real connection that waits before statements that begin so, while told to."""

    def __init__(self) -> None:
        self.at = "nothing"
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.refuses: OSError | None = None
        self.error: Exception | None = None

    def connect(self, path: Path) -> Any:
        if self.refuses is not None:
            raise self.refuses
        self._db = connect_file(path)
        return self

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        if sql.startswith(self.at):
            self.reached.set()
            if self.error is not None:
                raise self.error
            self.go_on.wait(10)
        return self._db.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        return self._db.executemany(sql, parameters)

    def close(self) -> None:
        self._db.close()

    def hold(self, at: str, *, error: Exception | None = None) -> None:
        """From now on; with an error the statement fails instead."""
        self.error = error
        self.reached.clear()
        self.go_on.clear()
        self.at = at

    async def has_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)

    def release(self) -> None:
        self.at = "nothing"
        self.go_on.set()


async def test_a_read_behind_the_commit_that_tells_the_time_passes_over_nothing(tmp_path: Path) -> None:
    card, clock = Held(), BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    for n in range(5):
        await log.append(a_set(n))
    await log.commit()
    card.hold("COMMIT")
    clock.learn(Source.BROKER)
    await log.append(a_set(5))  # begins the commit that stores what the time is
    await card.has_reached()
    reading = asyncio.create_task(log.read("milano"))
    waiting = asyncio.create_task(log.wait("milano"))
    await asyncio.sleep(0)
    card.release()
    columns = await reading
    assert columns is None or columns.seq[0] == log.first_seq + 1
    await asyncio.wait_for(waiting, 5)
    assert await everything(log, "milano") == [0, 1, 2, 3, 4, 5]
    await log.close()


@pytest.mark.parametrize("at", ["BEGIN", "INSERT INTO segment", "COMMIT"])
@pytest.mark.parametrize("keep_s", [0.0, 3600.0])
async def test_reads_and_settling_at_every_stage_of_a_commit_see_each_set_once(
    tmp_path: Path, at: str, keep_s: float
) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect, keep_s=keep_s)
    seen: list[int] = []
    n = 0
    for _ in range(12):
        for _ in range(3):
            await log.append(a_set(n))
            n += 1
        card.hold(at)
        commit = asyncio.create_task(log.commit())
        await card.has_reached()
        await log.append(a_set(n))
        n += 1
        reading = asyncio.create_task(log.read("milano", max_readings=4))
        if n % 8 == 0:
            await asyncio.sleep(0)
        card.release()
        columns = await reading
        assert columns is not None
        seen += columns.value[::2]  # type: ignore[arg-type]
        await log.settle("milano", columns.last)
        await commit
    while (columns := await log.read("milano")) is not None:
        seen += columns.value[::2]  # type: ignore[arg-type]
        await log.settle("milano", columns.last)
    assert seen == list(range(n))
    assert await everything(log, "porto") == list(range(n))
    assert log.backlog("porto")[0] == 2 * n
    await log.close()


async def test_a_broker_that_is_added_gets_what_was_there_whatever_is_settled_meanwhile(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
    card.hold("SELECT id FROM segment")
    adding = asyncio.create_task(log.set_consumers([CITY, OTHER]))
    await card.has_reached()
    await log.settle("milano", log.first_seq + 4)
    await log.append(a_set(4))
    card.release()
    await adding
    assert await everything(log, "porto") == [0, 1, 2, 3, 4]
    await log.close()


async def test_a_broker_that_is_added_while_the_file_cannot_be_read_gets_rather_too_much(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
        await log.commit()
    card.hold("SELECT id FROM segment", error=sqlite3.OperationalError("disk I/O error"))
    await log.set_consumers([CITY, Consumer("porto", NOON + timedelta(seconds=2)), Consumer("lisboa", "now")])
    card.release()
    await log.append(a_set(4))
    await log.commit()
    for _ in range(2):
        assert await everything(log, "porto") == [0, 1, 2, 3, 4]
        assert await everything(log, "lisboa") == [4]
        assert [log.backlog(name)[0] for name in ("milano", "porto", "lisboa")] == [10, 10, 2]
        await log.close()
        log = await opened(tmp_path, CITY, Consumer("porto", "now"), Consumer("lisboa"))
    await log.close()


async def test_a_broker_that_is_added_from_now_on_begins_at_that_moment(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, connect=card.connect)
    await log.append(a_set(0))
    card.hold("SELECT id FROM segment")
    adding = asyncio.create_task(log.set_consumers([CITY, Consumer("porto", "now")]))
    await card.has_reached()
    await log.append(a_set(1))
    card.release()
    await adding
    assert await everything(log, "porto") == [1]
    await log.close()


async def test_what_is_settled_while_the_rest_is_counted_is_counted_no_more(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
    await log.commit()
    card.hold("SELECT id FROM segment")
    settling = asyncio.create_task(log.settle("milano", log.first_seq + 1))
    await card.has_reached()
    await log.settle("milano", log.first_seq + 4)
    card.release()
    await settling
    assert log.backlog("milano") == (0, None)
    await log.close()


async def test_a_broker_that_comes_back_while_it_is_forgotten_keeps_its_place(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    for n in range(3):
        await log.append(a_set(n))
    await log.set_consumers([CITY])
    await log.commit()
    card.hold("COMMIT")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    forgetting = asyncio.create_task(log.forget("porto"))
    await asyncio.sleep(0)
    adding = asyncio.create_task(log.set_consumers([CITY, OTHER]))
    await asyncio.sleep(0)
    card.release()
    await asyncio.gather(commit, forgetting, adding)
    await log.settle("porto", log.first_seq + 2)
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "porto") == [2]
    await log.close()


async def test_a_receipt_of_before_the_file_was_open_waits_for_its_commit(tmp_path: Path) -> None:
    card = Held()
    card.refuses = OSError(5, "Input/output error")
    log = await opened(tmp_path, CITY, connect=card.connect)
    receipt = await log.append(a_set(1))
    card.refuses = None
    card.hold("INSERT INTO segment")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    durable = asyncio.ensure_future(receipt.durable)
    await asyncio.sleep(0)
    assert not durable.done()
    card.release()
    await commit
    await asyncio.wait_for(durable, 5)
    await log.close()


async def test_what_a_boot_learned_before_the_file_was_open_is_said_of_no_other_boot(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, clock=BootClock("b1", NOON, -7200.0))
    await log.append(ReadingSet("d", (Reading("n", 1, NOON - timedelta(hours=2)),)))
    await log.close()

    card, clock = Held(), BootClock("b2", NOON + timedelta(days=1), -7200.0)
    card.refuses = OSError(5, "Input/output error")
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    await log.append(ReadingSet("d", (Reading("n", 2, clock.now()),)))
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("n", 3, clock.now()),)))
    with pytest.raises(LogError):
        await log.commit()
    card.refuses = None
    await log.commit()
    assert [boot.name for boot in log.boots.rows()] == ["b1", "b2"]
    columns = await log.read("milano")
    assert columns is not None
    assert columns.time_state[0] is TimeState.ESTIMATED
    await log.close()


async def test_a_clock_that_is_set_twice_during_a_commit_leaves_every_time_true(tmp_path: Path) -> None:
    card, clock = Held(), BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)

    async def one() -> None:
        clock.advance(10)
        at = clock.now() - timedelta(seconds=clock.wrong_s)
        await log.append(ReadingSet("d", (Reading("true_s", at.timestamp(), clock.now()),)))

    await one()
    card.hold("COMMIT")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    clock.learn(Source.BROKER, 1800.0)
    await one()
    clock.learn(Source.KERNEL)
    await one()
    card.release()
    await commit
    await log.commit()
    for _ in range(2):
        columns = await log.read("milano")
        assert columns is not None
        assert columns.time_us == [int(at_s * 1e6) for at_s in columns.value]  # type: ignore[operator]
        await log.close()
        log = await opened(tmp_path, CITY, clock=BootClock("b2", NOON + timedelta(days=1), -7200.0))
    await log.close()


async def test_a_step_before_the_file_was_open_is_known_after_it(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, clock=BootClock("b1", NOON, source=Source.KERNEL))
    await log.close()
    card, clock = Held(), BootClock("b2", NOON + timedelta(days=1), -7200.0)
    card.refuses = OSError(5, "Input/output error")
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    late = ReadingSet("d", (Reading("n", 1, clock.now()),))
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("n", 0, clock.now()),)))
    card.refuses = None
    await log.commit()
    await log.append(late)
    await log.commit()
    columns = await log.read("milano")
    assert columns is not None
    assert [NOON + timedelta(days=1)] * 2 == [datetime.fromtimestamp(us / 1e6, UTC) for us in columns.time_us]
    assert set(columns.time_state) == {TimeState.SURE}
    await log.close()


async def test_a_time_learned_while_the_card_refuses_serves_the_cities_and_is_written_later(tmp_path: Path) -> None:
    card, clock = Held(), BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    await log.append(ReadingSet("d", (Reading("n", 1, clock.now()),)))
    await log.commit()
    card.hold("BEGIN IMMEDIATE", error=sqlite3.OperationalError("disk I/O error"))
    clock.learn(Source.BROKER)
    assert log.before_step() is not None  # somebody asks: the step is noticed
    with pytest.raises(LogError):
        await log.commit()
    columns = await log.read("milano")
    assert columns is not None
    assert columns.time_us == [int(NOON.timestamp() * 1e6)]
    card.release()
    await log.commit()
    await log.close()
    log = await opened(tmp_path, CITY, clock=BootClock("b2", NOON + timedelta(days=1), -7200.0))
    columns = await log.read("milano")
    assert columns is not None
    assert columns.time_us == [int(NOON.timestamp() * 1e6)]
    await log.close()


async def test_a_set_that_waited_for_room_while_the_log_was_closed_is_written_or_refused(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=4_000)
    card.hold("COMMIT")
    taken = []

    async def one(n: int) -> None:
        await log.append(a_set(n))
        taken.append(n)

    waiting = [asyncio.create_task(one(n)) for n in range(30)]
    await card.has_reached()
    closing = asyncio.create_task(log.close())
    await asyncio.sleep(0.01)
    card.release()
    await closing
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, LogError) for outcome in outcomes)
    assert any(outcomes)
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == taken
    await log.close()


async def test_a_count_that_was_overtaken_by_settling_is_not_used(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    for n in range(20):
        await log.append(a_set(n))
        await log.commit()
    card.hold("SELECT id FROM segment")
    settling = asyncio.create_task(log.settle("milano", log.first_seq + 5))
    await card.has_reached()
    await log.settle("milano", log.first_seq + 20)
    card.release()
    await settling
    assert log.backlog("milano") == (0, None)
    assert log.backlog("porto")[0] == 40
    await log.close()


async def test_of_sets_in_memory_those_whose_time_is_known_are_given_before_one_that_waits_for_its_time(
    tmp_path: Path,
) -> None:
    card, clock = Held(), BootClock("b1", NOON)
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    card.hold("BEGIN")  # what is learned is in use when it is written
    clock.learn(Source.KERNEL)
    await log.append(a_set(0))
    clock.learn(Source.NONE)
    await log.append(a_set(1))
    assert await everything(log, "milano") == [0]
    waiting = asyncio.create_task(log.wait("milano", log.first_seq + 1))
    await card.has_reached()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    card.release()
    await asyncio.wait_for(waiting, 5)
    assert await everything(log, "milano") == [0, 1]
    await log.close()


async def test_who_has_read_all_sleeps_though_it_is_kept_in_memory_for_another(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(3):
        await log.append(a_set(n))
    await log.settle("milano", log.first_seq + 1)
    for n, after in ((3, log.first_seq + 3), (4, None)):  # behind what it has read; behind its place
        waiting = asyncio.create_task(log.wait("milano", after))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        await log.append(a_set(n))
        await asyncio.wait_for(waiting, 5)
        await log.settle("milano", log.first_seq + n + 1)
    newest = log.first_seq + 5
    with pytest.raises(LogError, match="the newest is"):
        await log.settle("milano", newest + 1)
    await log.settle("milano", newest)
    assert log.backlog("milano") == (0, None)
    await log.close()


ALL = Consumer("all", takes=lambda device, point: True)


class Aging(Held):
    """A log of four stored sets, of which the next commit gives two up to age; then what is left is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()

    async def opened(self, path: Path) -> Log:
        log = await opened(path, CITY, OTHER, ALL, clock=self.clock, connect=self.connect, max_age_s=7200.0)
        for n in range(4):
            await log.append(a_set(n))
            await log.commit()
            self.clock.advance(1200)
        self.clock.advance(4000)
        return log


async def test_a_count_behind_what_was_given_up_is_made_later_when_the_file_cannot_be_read_then(tmp_path: Path) -> None:
    card = Aging()
    log = await card.opened(tmp_path)
    card.hold("SELECT id FROM segment", error=sqlite3.OperationalError("disk I/O error"))
    await log.commit()
    assert log.given_up("porto") == 4
    assert log.status()["state"] == "bad"
    card.release()
    await log.commit()
    for name in ("milano", "porto", "all"):
        assert log.backlog(name)[0] == 4
    card.clock.advance(601)
    await log.commit()
    assert log.status()["state"] == "ok"  # and that is over
    await log.close()


async def test_a_count_behind_what_was_given_up_that_was_overtaken_by_settling_is_not_used(tmp_path: Path) -> None:
    card = Aging()
    log = await card.opened(tmp_path)
    card.hold("SELECT id FROM segment")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    await log.settle("milano", log.first_seq + 4)
    await log.append(a_set(4))
    card.release()
    await commit
    assert [log.backlog(name)[0] for name in ("milano", "porto", "all")] == [2, 6, 6]
    await log.settle("milano", log.first_seq + 5)
    assert log.backlog("milano") == (0, None)
    await log.close()


async def test_what_cannot_be_counted_now_is_shown_with_all_that_is_there_and_settled_all_the_same(
    tmp_path: Path,
) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, ALL, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
        await log.commit()
    some = Consumer("all", takes=lambda device, point: point == "count")
    card.hold("SELECT id FROM segment", error=sqlite3.OperationalError("disk I/O error"))
    await log.set_consumers([CITY, some])
    await asyncio.gather(*log._lanes.counting)
    assert log.backlog("all")[0] == 8
    await log.settle("milano", log.first_seq + 1)
    card.release()
    await log.set_consumers([CITY, some])
    await asyncio.gather(*log._lanes.counting)
    assert log.backlog("all")[0] == 4
    assert await everything(log, "milano") == [1, 2, 3]
    await log.settle("milano", log.first_seq + 2)
    assert log.backlog("milano")[0] == 4
    await log.close()


async def test_a_salvage_that_finds_no_room_is_made_with_a_later_commit_and_memory_knows_the_places(
    tmp_path: Path,
) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(10):
        await log.append(a_set(n))
    await log.commit()
    lose(tmp_path, "cursor")
    (tmp_path / "buffer.db.new").mkdir()  # where the new file is to be made
    await log.settle("milano", log.first_seq + 4)
    await log.append(a_set(10))
    for _ in range(2):
        with pytest.raises(LogError):
            await log.commit()
    with pytest.raises(LogError):
        await log.read("porto")
    assert log.status()["state"] == "bad"
    (tmp_path / "buffer.db.new").rmdir()
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    for _ in range(2):
        assert await everything(log, "milano") == list(range(4, 11))
        assert await everything(log, "porto") == list(range(11))
        await log.close()
        log = await opened(tmp_path, CITY, OTHER)
    await log.close()


async def test_a_rescue_that_the_card_refuses_leaves_no_half_copy_and_is_made_later(tmp_path: Path) -> None:
    card = Held()
    log = await opened(tmp_path, CITY, connect=card.connect)
    await log.append(a_set(1))
    await log.commit()
    (tmp_path / "buffer.db").unlink()
    (tmp_path / "buffer.db.new").write_bytes(b"of an earlier one" * 1000)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    card.hold("VACUUM INTO", error=full)
    await log.append(a_set(2))
    for _ in range(2):
        with pytest.raises(LogError, match="full"):
            await log.commit()
        assert not (tmp_path / "buffer.db.new").exists()  # the next start would take it for a whole one
        assert await everything(log, "milano") == [1, 2]
    (tmp_path / "buffer.db.new").write_bytes(b"of an earlier one" * 1000)
    card.release()
    await log.commit()
    assert "rescued" in log.status()["salvaged"]
    assert log.status()["lost"] == {}
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [1, 2]
    await log.close()


# Salvage under somebody who no longer waits


async def test_a_salvage_is_told_though_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(600):
        await log.append(a_set(n, f"meter-{n % 5}"))
        if n % 10 == 9:
            await log.commit()
    assert log._file.store is not None
    log._file.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    [(root,)] = log._file.store._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'segment'").fetchall()
    with (tmp_path / "buffer.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(4096))
    log._file.store._db.execute("PRAGMA cache_size=0")
    log._file.store._db.execute("PRAGMA cache_size=2000")
    reading = asyncio.create_task(log.read("milano"))
    await asyncio.sleep(0)
    reading.cancel()
    await log.append(a_set(600))
    await log.commit()
    await log.commit()
    assert "taken over" in log.status()["salvaged"]
    assert await everything(log, "milano") == list(range(601))
    assert log.backlog("milano")[0] == 1202
    await log.close()


# Held pieces


async def _hold(log: Log, entity: str) -> int:
    columns = await log.read("milano")
    assert columns is not None
    return await log.held.hold("milano", entity, "d", columns, reason="", at=NOON, next_try_at=NOON)


async def test_pieces_held_at_one_time_drop_the_oldest_once(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    columns = await log.read("milano")
    assert columns is not None
    rows = [log.held.hold("milano", f"e{n}", "d", columns, reason="", at=NOON) for n in range(MAX_PIECES)]
    for row in rows:  # one after the other: as they are at the limit
        await row
    await asyncio.gather(*(_hold(log, f"new{n}") for n in range(4)))
    assert len(log.held.pieces()) == MAX_PIECES
    assert log.status()["dropped"] == 8
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.status()["lost"] == {"held": 8}
    assert len(log.held.pieces()) == MAX_PIECES
    await log.close()


async def test_a_piece_that_is_purged_while_it_is_tried_is_gone(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    pieces = [await _hold(log, f"e{n}") for n in range(3)]
    held = log.held
    await asyncio.gather(
        held.purge(pieces, NOON),
        held.tried(pieces[0], reason="no", at=NOON, next_try_at=NOON),
        held.requeue(pieces[1:2], NOON),
        held.release(pieces[2:]),
        held.purge(pieces, NOON),
    )
    assert held.pieces() == []
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.held.pieces() == []
    assert log.status()["lost"] == {"purged": 6}
    await log.close()


# The declared loss window


class RealClock:
    """The time of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Slow(Held):
    """A card that needs that long for a commit."""

    takes_s = 0.4

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        if sql == "COMMIT":
            time.sleep(self.takes_s)
        return super().execute(sql, parameters)


async def test_the_oldest_reading_in_memory_is_durable_within_the_declared_window(tmp_path: Path) -> None:
    clock = RealClock()
    log = await opened(tmp_path, CITY, clock=clock, connect=Slow().connect, commit_every_s=1.2)
    ages: list[float] = []

    async def one(n: int) -> None:
        begun_s = clock.monotonic_s()
        await (await log.append(a_set(n))).durable
        ages.append(clock.monotonic_s() - begun_s)

    tasks = []
    for n in range(40):
        tasks.append(asyncio.create_task(one(n)))
        await asyncio.sleep(0.1)
    await asyncio.gather(*tasks)
    commits = log.status()["commits"]
    assert max(ages) < 1.3, sorted(ages)[-5:]
    assert commits <= 20  # and not all the time either
    await log.close()


async def test_a_card_slower_than_the_window_still_gathers_for_half_of_it(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, clock=RealClock(), connect=Slow().connect, commit_every_s=0.4)
    for n in range(20):
        await log.append(a_set(n))
        await asyncio.sleep(0.1)
    assert log.status()["commits"] <= 6
    await log.close()
