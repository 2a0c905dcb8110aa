"""After a commit that failed, once or again, written after all or not: what it carried is in the file with the next one, once."""

import asyncio
import sqlite3
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Source
from gateway.log.log import Consumer, Log, TimeState
from gateway.log.segment import microseconds
from gateway.log.store import Gap
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, at_rest, everything, on_card, opened, settle
from tests.gateway.log.test_poison import FAULTS, POISON, STAGES, Faulty

GONE = Consumer("gone")


class Card(Faulty):
    """Fails at one stage, while told to; waits before statements that begin so, while told to."""

    def __init__(self) -> None:
        super().__init__()
        self.at = "nothing"
        self.reached, self.go_on = threading.Event(), threading.Event()

    def _check(self, sql: str) -> None:
        if sql.startswith(self.at):
            self.reached.set()
            self.go_on.wait(10)
        super()._check(sql)

    def hold(self, at: str) -> None:
        self.reached.clear()
        self.go_on.clear()
        self.at = at

    async def has_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)

    def release(self) -> None:
        self.at = "nothing"
        self.go_on.set()

    def refuse(self, stage: str = "BEGIN", fault: str = "full") -> None:
        self.stage, self.fault = stage, FAULTS[fault]

    def work(self) -> None:
        self.fault = None


async def refused(log: Log) -> None:
    with pytest.raises(LogError):
        await log.commit()


async def resting(*args: Any, **kwargs: Any) -> Log:
    """A log whose opening is over, with the commit that it set off."""
    log = await opened(*args, **kwargs)
    await at_rest(log)
    return log


async def poisoned(log: Log) -> None:
    """A set that is none: a gap of one reading."""
    await log.append(ReadingSet("meter-1", POISON["no time"]))


# What was carried, what came meanwhile


@pytest.mark.parametrize(
    ("stage", "fault"),  # the card's; a fault of our own that costs no piece
    [*((stage, "full") for stage in STAGES if stage != "after COMMIT"), ("BEGIN", "key"), ("COMMIT", "key")],
)
async def test_of_what_changes_while_commits_fail_the_newest_is_written_and_all_else_too(
    tmp_path: Path, stage: str, fault: str
) -> None:
    card, clock = Card(), BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, OTHER, GONE, clock=clock, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
    await log.append(ReadingSet("node", (), {"turn": b"0", "old": b"0"}))
    await log.commit()
    await log.settle("gone", log.first_seq + log.given)
    await log.set_consumers([CITY, OTHER])
    await log.commit()

    await log.settle("porto", log.first_seq)
    card.refuse(stage, fault)
    sources = (Source.BROKER, Source.KERNEL)
    for turn, source in enumerate(sources, 1):
        clock.learn(source, wrong_s=(-60.0, 0.0)[turn - 1])
        await log.append(ReadingSet(f"new-{turn}", (Reading("count", 10 + turn, clock.now()),)))
        await log.append(ReadingSet("node", (), {"turn": bytes([turn]), f"key-{turn}": b"x"}))
        await poisoned(log)
        await refused(log)
        await settle(log, "milano")
    with pytest.raises(LogError):
        await log.forget("gone")
    await settle(log, "milano")
    assert card.failed
    card.work()
    if stage in ("BEGIN", "PRAGMA page_count", "COMMIT"):  # no commit goes without them
        async with on_card(tmp_path, CITY, OTHER, clock=BootClock("b2", NOON)) as found:
            assert found.driver_state("node") == {"turn": b"0", "old": b"0"}
            assert not found.gaps
            assert "gone" in found.status()["gone"]

    await log.commit()
    for look in (on_card(tmp_path, CITY, OTHER, clock=clock), _again(log)):
        async with look as found:
            assert await everything(found, "milano") == [3, 11, 12]
            assert await everything(found, "porto") == [0, 1, 2, 3, 11, 12]
            assert found.backlog("milano")[0] == 4
            assert found.backlog("porto")[0] == 10
            state = {"turn": b"\x02", "old": b"0", "key-1": b"x", "key-2": b"x"}
            assert found.driver_state("node") == state
            assert found.status()["lost"] == {"unwritable": 2}
            assert (found.given_up("milano"), found.given_up("porto")) == (2, 2)
            assert found.status()["gone"] == {}
            assert found.status()["series"] == 4
            columns = await found.read("porto")
            assert columns is not None
            assert TimeState.UNCONFIRMED not in columns.time_state
            assert columns.time_us[-1] == microseconds(clock.true)
            assert found.statistics.of()["new-1", "count"].got == 1
            assert found.last_values.device("new-2")["count"].value == 12
    await log.close()


class _again:  # noqa: N801  a stand-in for a context manager
    """The log itself, not closed at the end."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def __aenter__(self) -> Log:
        return self._log

    async def __aexit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("then", ["works", "fails"])
async def test_what_happens_while_a_commit_writes_is_for_the_next_one(tmp_path: Path, then: str) -> None:
    card, clock = Card(), BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, OTHER, GONE, clock=clock, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
    await log.append(ReadingSet("node", (), {"turn": b"1", "first": b"1"}))
    await log.settle("gone", log.first_seq + log.given)
    await log.set_consumers([CITY, OTHER])
    await at_rest(log)
    await log.settle("porto", log.first_seq + 1)
    await poisoned(log)

    card.hold("COMMIT")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("new", (Reading("count", 4, clock.now()),), {"late": b"1"}))
    await log.append(ReadingSet("node", (), {"turn": b"2"}))
    settling = [
        asyncio.create_task(log.settle(name, log.first_seq + upto)) for name, upto in (("milano", 2), ("porto", 3))
    ]
    await poisoned(log)
    forgetting = asyncio.create_task(log.forget("gone"))
    await asyncio.sleep(0)
    if then == "fails":
        card.refuse("COMMIT")
    card.release()
    await asyncio.gather(commit, forgetting, *settling, return_exceptions=True)
    card.work()
    await log.commit()
    async with on_card(tmp_path, CITY, OTHER, clock=clock) as found:
        assert await everything(found, "milano") == [2, 3, 4]
        assert await everything(found, "porto") == [3, 4]
        assert found.driver_state("node") == {"turn": b"2", "first": b"1"}
        assert found.driver_state("new") == {"late": b"1"}
        assert found.status()["lost"] == {"unwritable": 2}
        assert found.status()["gone"] == {}
        assert found.boots.confirmed
    assert log.backlog("milano")[0] == 5
    assert log.backlog("porto")[0] == 3
    assert log.status()["lost"] == {"unwritable": 2}
    await log.close()


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("settled", [0, 2, 5])
async def test_what_was_written_though_its_commit_failed_is_there_once(
    tmp_path: Path, times: int, settled: int
) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    for n in range(3):
        await log.append(a_set(n))
    card.refuse("after COMMIT")
    for turn in range(times):
        await log.append(a_set(3 + turn, f"meter-{turn}"))
        await log.append(ReadingSet("node", (), {"turn": bytes([turn])}))
        await refused(log)
    card.work()
    count = 3 + times
    await log.append(a_set(count))
    gone = min(settled, count)
    await settle(log, "milano", gone)
    await log.commit()
    assert await everything(log, "porto") == list(range(count + 1))
    assert log.backlog("milano")[0] == 2 * (count + 1 - gone)
    assert log.backlog("porto")[0] == 2 * (count + 1)
    assert (log.status()["state"], log.status()["salvaged"]) == ("ok", "")
    async with on_card(tmp_path, CITY, OTHER) as found:
        assert await everything(found, "milano") == list(range(gone, count + 1))
        assert await everything(found, "porto") == list(range(count + 1))
        assert found.backlog("milano")[0] == 2 * (count + 1 - gone)
        assert found.backlog("porto")[0] == 2 * (count + 1)
        assert found.driver_state("node") == {"turn": bytes([times - 1])}
    await log.close()


async def test_a_set_settled_by_all_after_a_commit_in_doubt_counts_no_more(tmp_path: Path) -> None:
    """It is in the file by now, and nobody is owed it."""
    card = Card()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
    card.refuse("after COMMIT")
    await refused(log)
    card.work()
    for name in ("milano", "porto"):
        await settle(log, name, 3)
    assert log.status()["head_readings"] == 2
    await log.append(a_set(4))
    await log.commit()
    assert [log.backlog(name)[0] for name in ("milano", "porto")] == [4, 4]
    assert await everything(log, "porto") == [3, 4]
    assert (log.status()["state"], log.status()["salvaged"]) == ("ok", "")
    async with on_card(tmp_path, CITY, OTHER) as found:
        assert await everything(found, "milano") == [3, 4]
        assert found.backlog("milano")[0] == 4
    await log.close()


@pytest.mark.parametrize("last", ["BEGIN", "after COMMIT"])
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_what_was_given_up_is_counted_once_though_the_commit_that_told_it_failed_and_was_written(
    tmp_path: Path, times: int, last: str
) -> None:
    card = Card()
    log = await resting(tmp_path, CITY, OTHER, connect=card.connect, head_bytes=5000)
    await poisoned(log)
    await log.commit()
    for turn in range(times):  # added to the one before, and to a record of before them all
        await poisoned(log)
        if turn == 1:
            await log.set_consumers([OTHER, Consumer("late")])
            await at_rest(log)
        card.refuse("after COMMIT")
        await refused(log)
    for n in range(14):  # another reason; not written, or written too
        await asyncio.wait_for(log.append(a_set(n)), 5)
    card.refuse(last)
    await refused(log)
    await poisoned(log)
    await refused(log)
    lost, owed = log.status()["lost"], [log.given_up(name) for name in ("milano", "porto", "late")]
    assert (lost["unwritable"], owed[1]) == (2 + times, sum(lost.values()))
    card.work()
    await log.commit()
    async with on_card(tmp_path, CITY, OTHER) as found:
        for look in (log, found):
            assert look.status()["lost"] == lost
            assert [look.given_up(name) for name in ("milano", "porto", "late")] == owed
    await poisoned(log)  # and that is over
    await log.commit()
    async with on_card(tmp_path, CITY, OTHER) as found:
        assert found.status()["lost"] == {**lost, "unwritable": 3 + times}
    await log.close()


@pytest.mark.parametrize("stage", ["BEGIN", "after COMMIT"])
@pytest.mark.parametrize("counts", [1, 3])
async def test_what_is_purged_between_two_tries_changes_nothing_of_what_they_count(
    tmp_path: Path, stage: str, counts: int
) -> None:
    """It has its own record in the file, behind that of the first try or before it."""
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect)
    await poisoned(log)
    await log.commit()
    await log.append(a_set(0))
    readings = await log.read("milano")
    assert readings is not None
    pieces = [await log.held.hold("milano", "e", "d", readings, reason="no", at=clock.now()) for _ in range(counts)]
    await poisoned(log)
    card.refuse(stage)
    await refused(log)
    card.work()
    for piece in pieces:
        await log.held.purge([piece], clock.now())
    await poisoned(log)
    await log.commit()
    async with on_card(tmp_path, CITY, clock=clock) as found:
        for look in (log, found):
            assert look.status()["lost"] == {"unwritable": 3, "purged": 2 * counts}
            assert look.given_up("milano") == 3
    await log.close()


async def test_what_was_given_up_to_age_in_a_commit_that_was_written_though_it_failed_is_known(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    everything_counts = Consumer("all", takes=lambda device, point: True)
    log = await resting(tmp_path, CITY, everything_counts, clock=clock, connect=card.connect, max_age_s=7200.0)
    for n in range(4):
        await log.append(a_set(n))
        await log.commit()
        clock.advance(1200)
    clock.advance(4000)  # two are too old
    card.refuse("after COMMIT")
    await refused(log)
    await poisoned(log)
    card.work()
    card.hold("COMMIT")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    await poisoned(log)  # for the commit after that
    card.release()
    await commit
    assert log.status()["lost"] == {"age": 4, "unwritable": 2}
    await log.commit()
    async with on_card(tmp_path, CITY, clock=clock, max_age_s=7200.0) as found:
        for look in (log, found):
            assert await everything(look, "milano") == [2, 3]
            assert look.backlog("milano")[0] == 4
            assert look.status()["lost"] == {"age": 4, "unwritable": 2}
            assert look.given_up("milano") == 6
    assert log.backlog("all")[0] == 4
    await log.close()


async def test_what_memory_gives_up_is_counted_for_whom_it_was_owed_and_no_backlog(tmp_path: Path) -> None:
    card = Card()
    log = await resting(
        tmp_path, CITY, OTHER, Consumer("all", takes=lambda device, point: True), connect=card.connect, head_bytes=5000
    )
    await log.append(a_set(0))
    await log.commit()
    card.refuse()
    await refused(log)
    for n in range(1, 10):
        await log.append(a_set(n))
    assert log.backlog("all")[0] == 20
    await settle(log, "porto", 3)
    for n in range(10, 14):
        await asyncio.wait_for(log.append(a_set(n)), 5)
    kept = await everything(log, "milano")
    lost = 3  # nine tenths of memory stay: nine sets, then one more
    assert kept == [0, *range(1 + lost, 14)]
    assert log.backlog("all")[0] == 2 * len(kept)
    card.work()
    await log.commit()
    async with on_card(tmp_path, CITY, OTHER, Consumer("all", takes=lambda device, point: True)) as found:
        for look in (log, found):
            assert look.given_up("milano") == look.given_up("all") == look.status()["dropped"] == 2 * lost
            assert look.given_up("porto") == 2 * (lost - 2)
            assert await everything(look, "porto") == kept[1:]
            assert look.backlog("milano")[0] == 2 * len(kept)
            assert look.backlog("porto")[0] == 2 * len(kept) - 2
            assert look.backlog("all")[0] == 2 * len(kept)
    await log.close()


async def test_what_is_given_up_while_the_card_refuses_is_one_record_in_the_file_later(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect)
    card.refuse()
    await refused(log)
    first_us = microseconds(clock.now())
    await poisoned(log)
    clock.advance(60)
    await log.set_consumers([CITY, OTHER])
    await poisoned(log)
    await refused(log)
    clock.advance(60)
    await log.set_consumers([OTHER])
    await poisoned(log)
    last_us = microseconds(clock.now())
    card.work()
    clock.advance(60)
    await log.commit()
    async with on_card(tmp_path, CITY, OTHER, clock=clock) as found:
        assert found.gaps == [Gap(last_us, first_us, last_us, 3, "unwritable", {"milano": 2, "porto": 2})]
    await log.close()


async def test_a_renamed_broker_whose_commit_fails_has_its_place_under_the_new_name_alone(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
    await settle(log, "milano", 2)
    await log.commit()
    card.refuse()
    await log.set_consumers([Consumer("milan", "now", was="milano"), OTHER])
    await at_rest(log)
    assert log.status()["state"] == "bad"
    await settle(log, "milan")
    await refused(log)
    card.work()
    await log.commit()
    assert log.status()["gone"] == {}
    async with on_card(tmp_path, Consumer("milan", "now"), OTHER) as found:
        assert await everything(found, "milan") == [3]
        assert found.status()["gone"] == {}
    await log.close()


async def test_a_broker_that_comes_back_after_its_forgetting_failed_begins_where_it_is_told(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect)
    for n in range(4):
        await log.append(a_set(n))
    await settle(log, "milano", 3)
    await log.commit()
    await log.set_consumers([OTHER])
    await at_rest(log)
    card.refuse()
    with pytest.raises(LogError):
        await log.forget("milano")
    card.work()
    await log.set_consumers([Consumer("milano", "now"), OTHER])
    await log.append(a_set(4))
    await log.commit()
    assert await everything(log, "milano") == [4]
    async with on_card(tmp_path, CITY, OTHER) as found:
        assert await everything(found, "milano") == [4]
    await log.close()


# Time learned on a card that refuses


@pytest.mark.parametrize("stage", ["BEGIN", "boot", "COMMIT"])
async def test_a_time_that_is_learned_serves_the_cities_though_its_commit_fails_and_stays_as_it_was(
    tmp_path: Path, stage: str
) -> None:
    card, clock = Card(), BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    await log.append(ReadingSet("d", (Reading("count", 1, clock.now()),)))
    true_us = microseconds(clock.true)
    assert await log.read("milano") is None
    waiting = asyncio.create_task(log.wait("milano"))
    await asyncio.sleep(0)
    card.refuse(stage)
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("count", 2, clock.now()),)))
    await asyncio.wait_for(waiting, 5)
    served = await log.read("milano")
    assert served is not None
    assert (served.value, served.time_us[0]) == ([1, 2], true_us)
    assert log.boots.confirmed
    await refused(log)
    card.work()
    await log.commit()
    async with on_card(tmp_path, CITY, clock=BootClock("b2", clock.true)) as found:
        again = await found.read("milano")
        assert again is not None
        assert again.time_us == served.time_us
        assert set(again.time_state) == {TimeState.SURE}
    await log.close()


# How long it is told, how often it is tried


async def test_a_failure_is_told_since_the_first_until_a_commit_works(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect)
    for _ in range(2):
        await log.append(a_set(1))
        card.refuse()
        clock.advance(10)
        first = clock.now()
        for _ in range(3):
            await refused(log)
            told = log.status()
            assert (told["state"], told["since"]) == ("bad", first)
            assert "full" in told["reason"]
            assert "free space" in told["remedy"]
            clock.advance(10)
        card.refuse("BEGIN", "os")
        await refused(log)
        told = log.status()
        assert told["since"] == first
        assert "Input/output" in told["reason"]
        assert "card fails" in told["remedy"]
        card.work()
        await log.commit()
        told = log.status()
        assert (told["state"], told["reason"], told["remedy"], told["since"]) == ("ok", "", "", None)
    await log.close()


async def test_a_refused_commit_is_tried_again_after_5_s_and_not_before(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect, commit_every_s=10.0)
    card.refuse()
    await log.append(a_set(0))
    clock.advance(10)
    tries = []
    for n, wait_s in enumerate((0.0, 4.9, 0.1, 4.9, 0.1, 0.1), 1):
        clock.advance(wait_s)
        await log.append(a_set(n))
        await at_rest(log)
        tries.append(card.failed)
    assert tries == [1, 1, 2, 2, 3, 3]
    card.work()
    clock.advance(5)
    await log.append(a_set(7))
    await at_rest(log)
    assert log.status()["state"] == "ok"
    assert log.status()["head_readings"] == 0
    await log.close()


async def test_a_card_that_refuses_is_not_tried_with_every_set_though_memory_is_half_full(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect, head_bytes=10_000)
    card.refuse()
    tries = []
    for n, wait_s in enumerate([0.0] * 9 + [0.0, 4.9, 0.2]):  # sets of 500 bytes
        clock.advance(wait_s)
        await log.append(a_set(n))
        await at_rest(log)
        tries.append(card.failed)
    assert tries == [0] * 9 + [1, 1, 2]
    card.work()
    await log.commit()
    for n in range(12, 22):  # and when it works again nothing is left of that
        await log.append(a_set(n))
    await at_rest(log)
    assert log.status()["head_readings"] == 0
    await log.close()


async def test_a_card_that_refuses_is_not_written_to_in_a_circle(tmp_path: Path) -> None:
    """Whoever asks for a commit while one fails has to wait like everybody."""
    card = Card()
    log = await resting(tmp_path, CITY, OTHER, connect=card.connect)
    await log.append(a_set(1))
    card.refuse()
    card.hold("BEGIN")
    await log.set_consumers([CITY])
    await card.has_reached()
    for _ in range(2):
        await log.set_consumers([CITY])
    card.release()
    await at_rest(log)
    assert card.failed == 1
    card.work()
    await log.close()


async def test_a_commit_asked_for_while_one_is_written_follows_at_once(tmp_path: Path) -> None:
    card = Card()
    log = await resting(tmp_path, CITY, OTHER, connect=card.connect)
    await log.append(a_set(1))
    commits = log.status()["commits"]
    card.hold("COMMIT")
    await log.set_consumers([CITY, OTHER])
    await card.has_reached()
    await log.settle("milano", log.first_seq + 1)
    await log.set_consumers([CITY, OTHER])
    card.release()
    await at_rest(log)
    async with on_card(tmp_path, Consumer("milano", "now"), OTHER) as found:
        assert found.status()["gone"] == {}
        assert found.backlog("milano")[0] == 0
    assert log.status()["commits"] == commits + 2
    await log.close()


async def test_what_is_being_written_is_not_given_up_though_the_try_before_failed(tmp_path: Path) -> None:
    card = Card()
    log = await resting(tmp_path, CITY, connect=card.connect, head_bytes=4000)
    card.refuse()
    count = 0
    while log.status()["head_bytes"] < 3000:
        await log.append(a_set(count))
        count += 1
    await refused(log)
    card.work()
    card.hold("COMMIT")
    committing = asyncio.create_task(log.commit())
    await card.has_reached()

    async def go_on() -> None:
        for n in range(count, 2 * count):
            await log.append(a_set(n))

    going_on = asyncio.create_task(go_on())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not going_on.done()  # memory is full: it waits for the card
    card.release()
    await committing
    await asyncio.wait_for(going_on, 10)
    assert log.status()["lost"] == {}
    assert await everything(log, "milano") == list(range(2 * count))
    await log.close()


@pytest.mark.parametrize("written", [True, False])
async def test_what_a_cancelled_commit_carried_is_in_the_file_once(tmp_path: Path, written: bool) -> None:
    """Somebody cancels every task of the process, while the writer is at it."""
    card = Card()
    log = await resting(tmp_path, CITY, OTHER, connect=card.connect)
    await log.append(ReadingSet("meter-1", a_set(1).readings, {"fcnt": b"1"}))
    await settle(log, "milano")
    await poisoned(log)
    card.hold("COMMIT" if written else "BEGIN")
    committing = asyncio.create_task(log.commit())
    await card.has_reached()
    for task in asyncio.all_tasks():
        if task.get_name().startswith("log-commit"):
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    if not written:
        card.refuse()
    card.release()
    await log.progress(0) if written else await at_rest(log)
    card.work()
    await log.commit()
    async with on_card(tmp_path, CITY, OTHER) as found:
        assert await everything(found, "porto") == [1]
        assert await everything(found, "milano") == []
        assert found.driver_state("meter-1") == {"fcnt": b"1"}
        assert found.status()["lost"] == log.status()["lost"] == {"unwritable": 1}
    assert (await log.verify(-1))[1] == 2
    assert "not written" not in log.status()["reason"]
    await log.close()


# Housekeeping and driver states whose turn it was


@pytest.mark.parametrize("stage", ["BEGIN", "last_value", "statistic", "COMMIT"])
async def test_the_hourly_housekeeping_that_failed_is_made_with_the_next_commit(tmp_path: Path, stage: str) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect, commit_every_s=10.0)
    await log.append(a_set(1))
    await settle(log, "milano")
    clock.advance(3600)
    card.refuse(stage)
    await log.append(a_set(2))
    await settle(log, "milano")
    await at_rest(log)
    assert card.failed == 1
    card.work()
    clock.advance(5)
    await log.append(a_set(3))
    await settle(log, "milano")
    await at_rest(log)
    async with on_card(tmp_path, CITY, clock=clock) as found:
        assert found.last_values.device("meter-1")["count"].value == 3
        assert found.statistics.of()["meter-1", "count"].got == 3
        assert await found.scan(-1) is None
    commits = log.status()["commits"]
    clock.advance(3599)
    await log.append(a_set(4))
    await settle(log, "milano")
    await at_rest(log)
    assert log.status()["commits"] == commits  # and then an hour later
    await log.close()


async def test_statistics_of_all_hours_in_which_the_card_refused_are_in_the_file(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect)
    card.refuse("last_value")
    for n in range(6):
        await log.append(a_set(n))
        await refused(log)
        clock.advance(3600)
    card.work()
    await log.commit()
    async with on_card(tmp_path, CITY, clock=clock) as found:
        assert found.statistics.of()["meter-1", "count"].got == 6
    await log.close()


async def test_statistics_of_an_hour_that_is_in_the_file_are_not_written_again(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect)
    await log.append(a_set(0))
    card.refuse("last_value")
    await refused(log)
    card.work()
    await log.commit()
    found = sqlite3.connect(tmp_path / "buffer.db", isolation_level=None)
    for _ in range(3):
        assert len(found.execute("SELECT hour FROM statistic").fetchall()) == 1
        found.execute("DELETE FROM statistic")
        clock.advance(3600)
        await log.append(a_set(0))
        await log.commit()
    found.close()
    await log.close()


async def test_housekeeping_that_cannot_be_made_is_told_once_and_loses_no_count(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect)
    card.refuse("last_value")
    await log.append(a_set(1))
    await refused(log)
    clock.advance(3600)
    await refused(log)
    card.work()
    log.statistics.expect("meter-1", "often")  # type: ignore[arg-type]  # what is no number cannot be counted with
    clock.advance(100)
    since = clock.now()
    for n in (2, 3):
        await log.append(a_set(n))
        await log.commit()
        status = log.status()
        assert (status["state"], status["since"]) == ("bad", since)
        assert "statistics cannot be saved" in status["reason"]
        assert "readings are stored" in status["remedy"]
        clock.advance(50)
    assert await everything(log, "milano") == [1, 2, 3]
    log.statistics.expect("meter-1", 10.0)
    await log.commit()
    assert log.status()["state"] == "ok"
    async with on_card(tmp_path, CITY, clock=clock) as found:
        assert found.statistics.of()["meter-1", "count"].got == 3  # of both hours
        assert found.last_values.device("meter-1")["count"].value == 3
    await log.close()


async def test_a_driver_state_whose_commit_failed_is_written_with_the_next_try(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect, commit_every_s=10.0)
    await log.append(ReadingSet("node", (), {"fcnt": b"1"}))
    clock.advance(299)
    await log.append(ReadingSet("node", (), {"other": b"1"}))
    await at_rest(log)
    commits = log.status()["commits"]
    card.refuse()
    clock.advance(1)
    await log.append(a_set(0))
    await settle(log, "milano")
    await at_rest(log)
    assert card.failed == 1
    assert log.status()["commits"] == commits
    card.work()
    clock.advance(5)
    await log.append(ReadingSet("node", (), {"newer": b"1"}))
    await log.append(a_set(1))
    await at_rest(log)
    async with on_card(tmp_path, CITY, clock=clock) as found:
        assert found.driver_state("node") == {"fcnt": b"1", "other": b"1", "newer": b"1"}
        assert await everything(found, "milano") == [1]  # a state never goes before the set it came with
    await log.close()


async def test_a_driver_state_that_came_while_a_commit_failed_waits_its_5_minutes(tmp_path: Path) -> None:
    card, clock = Card(), ManualClock()
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect, commit_every_s=10.0)
    card.hold("COMMIT")
    await log.set_consumers([CITY])
    await card.has_reached()
    await log.append(ReadingSet("node", (), {"fcnt": b"1"}))
    card.refuse("COMMIT")
    card.release()
    await at_rest(log)
    assert card.failed == 1
    card.work()
    for after_s in (290, 10):
        clock.advance(after_s)
        await log.append(a_set(0))
        await settle(log, "milano")
        await at_rest(log)
        async with on_card(tmp_path, CITY, clock=clock) as found:
            assert found.driver_state("node") == ({} if after_s > 10 else {"fcnt": b"1"})
    await log.close()


# What was noted before the file could be opened


async def test_what_settling_and_giving_up_left_without_a_file_is_in_it_when_it_is_opened(tmp_path: Path) -> None:
    card = Late()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect, head_bytes=5000)
    for n in range(30):
        await asyncio.wait_for(log.append(a_set(n)), 5)
    await log.append(ReadingSet("node", (), {"fcnt": b"1"}))
    await refused(log)
    assert "Input/output error" in log.status()["reason"]
    [first, *_] = kept = await everything(log, "milano")
    assert kept == list(range(first, 30))
    await settle(log, "milano", 2)
    lost = log.status()["lost"]
    assert lost == {"memory": 2 * first}
    assert (log.status()["commits"], log.status()["size_bytes"]) == (0, 0)
    card.open()
    await log.commit()
    for look in (on_card(tmp_path, CITY, OTHER), _again(log)):
        async with look as found:
            assert found.status()["lost"] == lost
            assert found.given_up("porto") == 2 * first
            assert await everything(found, "milano") == kept[2:]
            assert await everything(found, "porto") == kept
            assert found.backlog("milano")[0] == 2 * len(kept) - 4
            assert found.driver_state("node") == {"fcnt": b"1"}
    await log.close()


class Late(Card):
    """A card that is not there yet."""

    def __init__(self) -> None:
        super().__init__()
        self._there = False

    def open(self) -> None:
        self._there = True

    def connect(self, path: Path) -> "Card":
        if not self._there:
            raise OSError(5, "Input/output error")
        return super().connect(path)  # type: ignore[no-any-return]


async def test_numbers_given_before_the_file_was_open_become_numbers_of_this_start(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(4):
        await log.append(a_set(n))
    await settle(log, "milano", 4)
    await settle(log, "porto", 1)
    await log.append(ReadingSet("other", (Reading("x", 1.0, NOON),), {"old": b"1", "both": b"1"}))
    await settle(log, "milano", 1)
    await log.close()

    card = Late()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect, head_bytes=5000)
    receipts = [await asyncio.wait_for(log.append(a_set(n, f"meter-{n % 3}")), 5) for n in range(10, 40)]
    await log.append(ReadingSet("other", (), {"both": b"2", "new": b"2"}))
    [first, *_] = kept = await everything(log, "porto")
    asked = [asyncio.ensure_future(receipt.durable) for receipt in receipts[-3:]]
    await settle(log, "milano", 2)
    card.open()
    await log.commit()
    assert log.first_seq == 2 << 32
    assert log.driver_state("other") == {"old": b"1", "both": b"2", "new": b"2"}
    await asyncio.wait_for(asyncio.gather(*asked), 5)
    given_up = first - 10
    for receipt in receipts[:given_up]:
        with pytest.raises(LogError, match="memory is full"):
            await receipt.durable
    for receipt in receipts[given_up:]:
        await asyncio.wait_for(receipt.durable, 5)
    assert await everything(log, "porto") == [1, 2, 3, *kept]
    assert await everything(log, "milano") == kept[2:]
    columns = await log.read("porto", max_readings=10_000)
    assert columns is not None
    assert min(columns.seq) == (1 << 32) + 2
    assert columns.last == (2 << 32) + 30
    assert {log.series[number].device for number in columns.series[:6]} == {"meter-1"}
    assert log.last_values.device("meter-0")["count"].seq == (2 << 32) + 30
    async with on_card(tmp_path, CITY, OTHER) as found:
        assert await everything(found, "porto") == [1, 2, 3, *kept]
        assert await everything(found, "milano") == kept[2:]
        assert found.first_seq == 3 << 32
        assert found.driver_state("other") == {"old": b"1", "both": b"2", "new": b"2"}
    await log.append(a_set(100))
    await settle(log, "porto", 3)
    await log.close()

    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "porto") == [*kept, 100]
    assert await everything(log, "milano") == [*kept[2:], 100]
    await log.close()


async def test_what_is_expected_of_a_device_counts_once_though_the_file_was_opened_late(tmp_path: Path) -> None:
    card, clock = Late(), ManualClock()
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    log.statistics.expect("meter-1", 10.0)
    await log.append(a_set(0))
    card.open()
    await log.commit()
    clock.advance(600)
    await log.append(a_set(600))
    await log.commit()
    found = log.statistics.of()["meter-1", "count"]
    assert (round(found.expected), found.got) == (60, 1)
    await log.close()


@pytest.mark.parametrize("kept_back", [0, 1])
async def test_claims_of_before_the_file_was_open_are_judged_when_the_time_is_known(
    tmp_path: Path, kept_back: int
) -> None:
    await (await opened(tmp_path, clock=BootClock("b1", NOON, source=Source.KERNEL))).close()
    from gateway.sdk.reading import TimeSource

    card, clock = Late(), BootClock("b2", NOON + timedelta(hours=1), -7200.0)
    log = await opened(tmp_path, CITY, clock=clock, connect=card.connect)
    claimed = NOON - timedelta(days=400 * kept_back) + timedelta(minutes=50)
    reading = Reading("count", 1, claimed, time_source=TimeSource.DEVICE)
    await log.append(ReadingSet("d", (reading,)), received_s=clock.monotonic_s())
    received_us = microseconds(clock.true)
    card.open()
    await log.commit()
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("count", 2, clock.now()),)))
    await log.commit()
    columns = await log.read("milano")
    assert columns is not None
    wanted = (microseconds(claimed), TimeSource.DEVICE) if not kept_back else (received_us, TimeSource.GATEWAY)
    assert (columns.time_us[0], columns.time_source[0]) == wanted
    async with on_card(tmp_path, CITY, clock=clock) as found:
        again = await found.read("milano")
        assert again is not None
        assert again.time_us == columns.time_us
    await log.close()
