"""When a commit is due: by the age and size of what is owed, the hour, what settling and drivers left; and never before."""

import asyncio
import fcntl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Source
from gateway.log.log import Consumer, Log
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, at_rest, everything, on_card, opened, settle
from tests.gateway.log.test_failed_commit import Card, resting


class Box:
    """A log that looks every 10 s whether a commit is due, and a clock that is moved by hand."""

    def __init__(self, log: Log, clock: ManualClock) -> None:
        self.log, self.clock, self.n = log, clock, 0

    @classmethod
    async def open(cls, path: Path, *consumers: Consumer, **settings: Any) -> "Box":
        clock = ManualClock()
        log = await opened(path, *consumers, clock=clock, **{"commit_every_s": 10.0, **settings})
        await at_rest(log)
        return cls(log, clock)

    async def commits(self, after_s: float, *settled_by: str) -> int:
        """Let time pass, a set come that these settle at once; 1 when that set off a commit, else 0.

        On a slow machine the timer may fire in that moment, too: then there are two.
        """
        before = self.log.status()["commits"]
        self.clock.advance(after_s)
        await self.log.append(a_set(self.n))
        self.n += 1
        for name in settled_by:
            while (columns := await self.log.read(name)) is not None:
                await self.log.settle(name, columns.last)
        await at_rest(self.log)
        return int(self.log.status()["commits"] > before)


async def test_a_set_is_written_when_it_is_as_old_as_declared_and_not_before(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    assert await box.commits(0) == 0
    assert await box.commits(9.9) == 0
    assert await box.commits(0.1) == 1
    assert box.log.status()["head_readings"] == 0  # the young ones go with the old
    assert await box.commits(5) == 0
    assert await box.commits(9.9) == 0
    assert await box.commits(0.1) == 1
    await box.log.close()


async def test_the_age_that_counts_is_that_of_the_oldest_set_somebody_is_owed(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, OTHER)
    assert await box.commits(0, "milano", "porto") == 0
    assert await box.commits(6, "milano") == 0
    assert await box.commits(6, "milano") == 0
    assert await box.commits(4, "milano") == 1
    assert await box.commits(9, "milano", "porto") == 0
    assert await box.commits(10, "milano", "porto") == 0
    assert await box.commits(10, "milano", "porto") == 0  # the cursors wait for the minute to be over
    await box.log.close()


async def accept(log: Log, *names: str) -> None:
    """These have sent all there is."""
    for name in names:
        after = None
        while (columns := await log.read(name, after=after)) is not None:
            after = columns.last
            log.accepted(name, columns.last)


async def test_what_everybody_has_sent_is_in_no_hurry_until_the_hour_is_over(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, OTHER)
    assert await box.commits(0) == 0
    await accept(box.log, "milano", "porto")
    assert [box.log.backlog(name) for name in ("milano", "porto")] == [(0, None)] * 2
    for after_s in (1000, 1000, 1000, 590):
        assert await box.commits(after_s) == 0
        await accept(box.log, "milano", "porto")
    assert box.log.status()["head_readings"] == 5 * len(a_set(0).readings)
    assert await box.commits(10) == 1
    assert box.log.status()["head_readings"] == 0
    await box.log.close()


async def test_what_one_has_not_sent_yet_is_written_when_it_is_of_age_and_the_rest_with_it(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, OTHER)
    assert await box.commits(0) == 0
    await accept(box.log, "milano")
    assert await box.commits(9.9) == 0
    assert await box.commits(0.1) == 1
    await accept(box.log, "milano", "porto")
    assert await box.commits(0) == 0
    await accept(box.log, "milano", "porto")
    assert await box.commits(10) == 0  # this one is the first that nobody has sent
    assert await box.commits(9.9) == 0
    assert await box.commits(0.1) == 1
    assert box.log.status()["head_readings"] == 0
    await box.log.close()


async def test_a_receipt_that_is_waited_for_does_not_wait_for_the_hour(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    receipt = await box.log.append(a_set(90))
    await accept(box.log, "milano")
    assert await box.commits(10) == 0
    await accept(box.log, "milano")
    durable = asyncio.ensure_future(receipt.durable)
    assert await box.commits(10) == 1
    await durable
    receipt = await box.log.append(a_set(91))
    await accept(box.log, "milano")
    asyncio.ensure_future(receipt.durable).cancel()
    await asyncio.sleep(0)
    assert await box.commits(10) == 0  # nobody waits any more
    await box.log.close()


async def test_half_of_memory_is_enough_of_what_is_only_sent(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, head_bytes=10_000)
    for _ in range(9):
        assert await box.commits(0) == 0
        await accept(box.log, "milano")
    assert await box.commits(0) == 1
    await box.log.close()


async def test_where_each_set_is_written_what_is_sent_is_too(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, commit_every_s=0.0)
    for n in range(3):
        appending = asyncio.create_task(log.append(a_set(n)))
        await asyncio.sleep(0)
        await accept(log, "milano")
        async with asyncio.timeout(5):
            await appending
    assert log.status()["head_readings"] == 0
    await log.close()


async def test_who_comes_anew_has_sent_nothing(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    assert await box.commits(0) == 0
    await accept(box.log, "milano")
    await box.log.set_consumers([CITY, OTHER])
    await at_rest(box.log)
    assert box.log.accepted_upto("milano") == box.log.first_seq + 1
    assert await box.commits(10) == 1
    await box.log.close()


async def test_at_half_of_memory_a_commit_begins_early(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, head_bytes=10_000)
    counts = [await box.commits(0) for _ in range(22)]
    assert counts == ([0] * 9 + [1]) * 2 + [0] * 2  # ten sets of 500 bytes
    assert box.log.status()["head_bytes"] == 1000
    await box.log.close()


async def test_below_half_of_memory_a_set_has_its_age(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, head_bytes=10_000)
    assert [await box.commits(1)] + [await box.commits(0) for _ in range(7)] == [0] * 8  # 40 % of it
    assert await box.commits(9) == 0
    assert await box.commits(1) == 1
    await box.log.close()


async def test_an_age_below_a_second_is_kept_too(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, commit_every_s=0.5)
    for _ in range(2):
        assert await box.commits(0) == 0
        assert await box.commits(0.5) == 1
    await box.log.close()


async def test_without_consumers_sets_are_written_when_they_are_of_age(tmp_path: Path) -> None:
    box = await Box.open(tmp_path)
    assert await box.commits(0) == 0
    assert await box.commits(10) == 1
    await box.log.close()


class Slow(Card):
    """A commit takes so long by the clock of the test."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock, self.takes_s = clock, 0.0

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        if sql == "COMMIT":
            self._clock.advance(self.takes_s)
        return super().execute(sql, parameters)


async def test_a_commit_begins_so_early_that_one_as_slow_as_the_slowest_of_late_ends_in_time(tmp_path: Path) -> None:
    clock = ManualClock()
    card = Slow(clock)
    log = await resting(tmp_path, CITY, clock=clock, connect=card.connect, commit_every_s=100.0)
    box = Box(log, clock)
    # half as much again is left for it, at most half of all; what was slow is forgotten slowly
    for age_s, takes_s in ((100, 20), (70, 0), (71.5, 0), (72.9, 40), (50, 0), (50, 0)):
        card.takes_s = takes_s
        assert await box.commits(0) == 0
        assert await box.commits(age_s - 0.1) == 0, age_s
        assert await box.commits(0.2) == 1, age_s
    await log.close()


@pytest.mark.parametrize(("after_s", "commits"), [(59.9, 0), (60.0, 1)])
@pytest.mark.parametrize("taken", [2, 4])
async def test_a_place_that_moved_over_stored_sets_is_on_the_card_after_a_minute(
    tmp_path: Path, taken: int, after_s: float, commits: int
) -> None:
    box = await Box.open(tmp_path, CITY, OTHER)
    log = box.log
    for _ in range(4):
        await box.commits(0)
    assert await box.commits(10) == 1
    await settle(log, "milano", 1)
    box.clock.advance(30)
    await settle(log, "milano", taken - 1)
    await at_rest(log)
    box.clock.advance(after_s - 30)
    await log.append(ReadingSet("node", (Reading("x", 1, NOON),)))
    await at_rest(log)
    async with on_card(tmp_path, CITY, OTHER, clock=box.clock) as found:
        assert await everything(found, "milano") == list(range(taken * commits, 5))
        assert found.backlog("porto")[0] == 10
    await log.close()


async def test_a_place_whose_commit_failed_is_written_with_the_next_try(tmp_path: Path) -> None:
    card = Card()
    box = await Box.open(tmp_path, CITY, OTHER, connect=card.connect)
    await box.commits(0)
    assert await box.commits(10) == 1
    await settle(box.log, "milano", 2)
    card.refuse()
    assert await box.commits(60, "milano", "porto") == 0
    assert card.failed == 1
    card.work()
    assert await box.commits(4.9, "milano", "porto") == 0
    assert await box.commits(0.1, "milano", "porto") == 1
    async with on_card(tmp_path, CITY, clock=box.clock) as found:
        assert await everything(found, "milano") == []
    assert await box.commits(120, "milano", "porto") == 0  # nothing is left to be written
    await box.log.close()


async def test_a_city_that_takes_all_from_memory_costs_one_commit_an_hour(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    counts = [await box.commits(300, "milano") for _ in range(24)]
    assert counts == ([0] * 11 + [1]) * 2
    async with on_card(tmp_path, CITY, clock=box.clock) as found:
        assert await found.scan(-1) is None
        assert found.last_values.device("meter-1")["count"].value == 23
        assert found.statistics.of()["meter-1", "count"].got == 24
        assert found.backlog("milano")[0] == 0
    await box.log.close()


async def test_at_the_start_only_what_waits_is_written_and_the_rest_an_hour_later(tmp_path: Path) -> None:
    card = Card()
    card.refuse("DELETE FROM last_value")
    box = await Box.open(tmp_path, CITY, connect=card.connect)
    await box.commits(3599, "milano")
    assert card.failed == 0
    await box.commits(10, "milano")
    assert card.failed == 1
    card.work()
    await box.log.close()


@pytest.mark.parametrize(("after_s", "commits"), [(299.9, 0), (300.0, 1)])
async def test_a_driver_state_is_written_5_minutes_after_the_first_that_is_not(
    tmp_path: Path, after_s: float, commits: int
) -> None:
    box = await Box.open(tmp_path, CITY)
    log = box.log
    await log.append(ReadingSet("node", (), {"fcnt": b"1"}))
    box.clock.advance(200)
    await log.append(ReadingSet("node", (), {"fcnt": b"2"}))
    assert await box.commits(after_s - 200, "milano") == commits
    async with on_card(tmp_path, CITY, clock=box.clock) as found:
        assert found.driver_state("node") == ({"fcnt": b"2"} if commits else {})
    if commits:  # and then as long again
        await log.append(ReadingSet("node", (), {"fcnt": b"3"}))
        assert await box.commits(299.9, "milano") == 0
    await log.close()


async def test_a_driver_state_goes_with_the_next_sets_and_costs_no_commit_then(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    await box.log.append(ReadingSet("node", (), {"fcnt": b"1"}))
    assert await box.commits(0) == 0
    assert await box.commits(10) == 1
    async with on_card(tmp_path, CITY, clock=box.clock) as found:
        assert found.driver_state("node") == {"fcnt": b"1"}
    await settle(box.log, "milano", 2)
    assert await box.commits(60, "milano") == 1  # the place
    assert await box.commits(400, "milano") == 0
    await box.log.close()


async def test_a_state_never_goes_before_the_set_it_came_with(tmp_path: Path) -> None:
    """A source that sends again what was not durable would be refused it."""
    box = await Box.open(tmp_path, CITY, commit_every_s=2000.0)
    await box.log.append(ReadingSet("node", (Reading("count", 100, NOON),), {"fcnt": b"1"}))
    for _ in range(3):
        await box.log.set_consumers([CITY])  # asks for a commit, though no set is of age
        await at_rest(box.log)
        async with on_card(tmp_path, CITY, clock=box.clock) as found:
            assert (await everything(found, "milano"), found.driver_state("node")) == ([100], {"fcnt": b"1"})
        await box.log.append(ReadingSet("other", (), {"fcnt": b"1"}))
    await box.log.close()


async def test_young_sets_stay_in_memory_when_something_else_is_written(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    await box.commits(0)
    await box.log.set_consumers([CITY])
    await at_rest(box.log)
    assert box.log.status()["head_readings"] == 2
    box.clock.advance(10)
    await box.log.set_consumers([CITY])
    await at_rest(box.log)
    assert box.log.status()["head_readings"] == 0
    await box.log.close()


async def test_what_is_learned_of_the_time_is_written_at_once(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -1800.0)
    log = await opened(tmp_path, CITY, clock=clock)
    await log.append(ReadingSet("d", (Reading("count", 1, clock.now()),)))
    await log.commit()
    commits = log.status()["commits"]
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("count", 2, clock.now()),)))
    await at_rest(log)
    assert log.status()["commits"] == commits + 1
    async with on_card(tmp_path, CITY, clock=BootClock("b2", NOON)) as found:
        columns = await found.read("milano")
        assert columns is not None
        assert columns.value == [1]
    await log.close()


async def test_more_than_fits_one_deletion_is_pruned_by_commits_that_follow_each_other(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    log = box.log
    for n in range(210):  # a segment each
        await log.append(a_set(n))
        await log.commit()
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    before = log.status()["commits"]
    assert await box.commits(60, "milano")
    assert log.status()["commits"] >= before + 2
    assert await log.scan(-1) is None
    assert log.status()["size_bytes"] < 200_000
    assert await box.commits(120, "milano") == 0
    await log.close()


async def test_what_a_commit_that_was_asked_for_leaves_to_prune_goes_with_the_next_look(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    log = box.log
    for n in range(210):
        box.clock.step(60.0)  # a segment for each clock
        await log.append(a_set(n))
    await log.commit()
    before = log.status()["size_bytes"]
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    await log.commit()
    assert await log.scan(-1) is not None
    assert await box.commits(10, "milano") == 1
    assert await log.scan(-1) is None
    assert 0 < log.status()["size_bytes"] < before
    await log.close()


# By the timer alone


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.005)


async def test_a_set_that_nobody_follows_is_written_by_the_timer(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY, commit_every_s=0.05)
    for _ in range(3):
        await box.commits(0)
        commits = box.log.status()["commits"]
        box.clock.advance(0.06)
        await until(lambda commits=commits: box.log.status()["commits"] > commits)  # type: ignore[misc]
        assert box.log.status()["head_readings"] == 0
    await settle(box.log, "milano", 3)
    commits = box.log.status()["commits"]
    box.clock.advance(60)
    await until(lambda: box.log.status()["commits"] > commits)  # the place, with no set behind it
    async with on_card(tmp_path, CITY, clock=box.clock) as found:
        assert found.backlog("milano")[0] == 0
    await box.log.close()


async def test_the_timer_alone_learns_the_time_and_keeps_house(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, -1800.0)
    log = await opened(tmp_path, CITY, clock=clock, commit_every_s=0.05)
    await log.append(ReadingSet("d", (Reading("count", 1, clock.now()),)))
    assert await log.read("milano") is None
    clock.learn(Source.KERNEL)
    await asyncio.wait_for(log.wait("milano"), 5)
    assert log.boots.confirmed
    await settle(log, "milano")
    await at_rest(log)
    commits = log.status()["commits"]
    clock.advance(3600)
    await until(lambda: log.status()["commits"] > commits)
    async with on_card(tmp_path, CITY, clock=clock) as found:
        assert found.last_values.device("d")["count"].value == 1
    await log.close()


async def test_a_card_that_works_again_is_noticed_by_the_timer_though_nothing_comes(tmp_path: Path) -> None:
    """Whether a commit had failed, or a look at the file while there was nothing to write."""
    card = Card()
    box = await Box.open(tmp_path, CITY, connect=card.connect, commit_every_s=0.05)
    idle = await opened(tmp_path / "idle", CITY, commit_every_s=0.05)
    await at_rest(idle)
    card.refuse()
    await box.commits(0)
    box.clock.advance(0.06)
    lock = tmp_path / "idle/buffer.db.lock"
    lock.unlink()
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await until(lambda: idle.status()["state"] == "bad")
        assert "in use by another citygate" in idle.status()["reason"]
        await until(lambda: box.log.status()["state"] == "bad")
    card.work()
    await until(lambda: box.log.status()["state"] == idle.status()["state"] == "ok")  # after 5 s
    assert box.log.status()["head_readings"] == 0
    await idle.close()
    await box.log.close()


async def test_what_was_sent_and_may_be_nowhere_else_is_due_as_before(tmp_path: Path) -> None:
    box = await Box.open(tmp_path, CITY)
    for upto, commits in ((0, 1), (None, 0)):  # nothing of it is sure, all of it is
        assert await box.commits(0) == 0
        columns = await box.log.read("milano")
        assert columns is not None
        box.log.accepted("milano", columns.last, upto)
        assert box.log.backlog("milano")[0] == 0
        assert await box.commits(10.0, "milano") == commits
    await box.log.close()


class Asked(ManualClock):
    """Counts how often somebody asks how much time has passed."""

    times = 0

    def monotonic_s(self) -> float:
        self.times += 1
        return super().monotonic_s()


@pytest.mark.parametrize(("every_s", "sets"), [(0.0, 0), (10.0, 1), (0.2, 50)])
async def test_between_two_looks_passes_the_time_in_which_a_set_comes_of_age(
    tmp_path: Path, every_s: float, sets: int
) -> None:
    clock = Asked()
    log = await opened(tmp_path, CITY, clock=clock, commit_every_s=every_s)
    for n in range(sets):
        clock.advance(every_s)  # whoever comes after the time of a look looks, and the next one is set anew
        await log.append(a_set(n))
        if sets > 1:
            await settle(log, "milano")
    await at_rest(log)
    before = clock.times
    await asyncio.sleep(0.25)
    assert clock.times - before < 20
    await log.close()
