"""The log as its users see it: append, read, settle, restart. Real SQLite, a manual clock."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.clock import Source
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, BootClock, a_set, counts_of, everything, opened, settle


async def test_a_set_is_read_back_from_the_head_and_from_the_file_alike(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    bad = Reading("voltage", None, NOON, Quality.BAD, Reason.TIMEOUT)
    await log.append(a_set(1))
    await log.append(ReadingSet("meter-1", (bad,)))
    from_head = await log.read("milano")
    await log.commit()
    from_file = await log.read("milano")
    assert from_head == from_file
    assert from_file is not None
    assert from_file.value == [1, 230.1, None]
    assert from_file.reason == [Reason.NONE, Reason.NONE, Reason.TIMEOUT]
    await log.close()


async def test_what_was_not_settled_is_there_after_a_restart(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(20):
        await log.append(a_set(n))
    columns = await log.read("milano", max_readings=10)
    assert columns is not None
    await log.settle("milano", columns.last)
    await log.close()

    log = await opened(tmp_path, CITY)
    await log.append(a_set(20))
    assert await everything(log, "milano") == list(range(5, 21))
    assert log.backlog("milano")[0] == 32
    await log.close()


async def test_what_everybody_settled_before_its_commit_is_never_written(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(10):
        await log.append(a_set(n))
    columns = await log.read("milano")
    assert columns is not None
    await log.settle("milano", columns.last)
    assert log.status()["head_readings"] == 20  # porto still owes
    await log.settle("porto", columns.last)
    assert log.status()["head_readings"] == 0
    await log.commit()
    assert await log.read("milano", after=0) is None
    await log.close()


async def test_consumers_go_at_their_own_speed(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(10):
        await log.append(a_set(n))
        if n == 4:
            await log.commit()
    columns = await log.read("milano")
    assert columns is not None
    await log.settle("milano", columns.last)
    assert await everything(log, "milano") == [5, 6, 7, 8, 9]
    assert await everything(log, "porto") == list(range(10))
    assert log.backlog("milano") == (10, NOON + timedelta(seconds=5))
    assert log.backlog("porto") == (20, NOON)
    await log.close()


async def test_the_oldest_of_what_is_owed_is_told_whether_it_is_in_memory_or_in_the_file(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)

    def told(name: str = "milano") -> tuple[int, int | None]:
        backlog, oldest_at = log.backlog(name)
        shown = log.status()["consumers"][name]
        assert (shown["backlog"], shown["oldest_unsent_at"] is None) == (backlog, oldest_at is None)
        return backlog, None if oldest_at is None else (oldest_at - NOON).seconds

    assert told() == (0, None)
    for n in (5, 6):
        await log.append(a_set(n))
    assert told() == (4, 5)
    await settle(log, "milano")
    assert (told(), told("porto")) == ((2, 6), (4, 5))
    await log.commit()
    assert (told(), told("porto")) == ((2, 6), (4, 5))
    columns = await log.read("porto")
    assert columns is not None
    assert await log.read("porto", after=columns.seq[0]) is not None  # ahead of its place
    assert told("porto") == (4, 5)
    for n in (7, 8):
        await log.append(a_set(n))
    assert (told(), told("porto")) == ((6, 6), (8, 5))
    await settle(log, "milano")
    assert told() == (4, 7)
    await log.commit()
    assert (told(), told("porto")) == ((4, 7), (8, 5))
    await settle(log, "milano")
    await settle(log, "porto")
    assert (told(), told("porto")) == ((2, 8), (6, 6))
    assert log.status()["consumers"]["milano"]["oldest_unsent_at"] == "2026-06-01T12:00:08Z"
    await settle(log, "porto", 3)
    assert told("porto") == (0, None)
    await log.append(a_set(9))
    assert (told(), told("porto")) == ((4, 8), (2, 9))
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert (told(), told("porto")) == ((4, 8), (2, 9))
    await log.close()


async def test_the_oldest_that_is_owed_came_when_it_was_received_and_at_its_true_time_when_that_is_known(
    tmp_path: Path,
) -> None:
    clock = BootClock("b1", NOON, -7200.0)
    log = await opened(tmp_path, CITY, clock=clock)
    await log.append(ReadingSet("d", (Reading("x", 0, clock.now()),)))
    assert log.backlog("milano") == (1, clock.now())
    await log.settle("milano", log.first_seq + 1)
    claimed = Reading("x", 1, NOON - timedelta(days=1), time_source=TimeSource.DEVICE)
    await log.append(ReadingSet("d", (claimed,)), received_s=clock.monotonic_s())
    assert log.backlog("milano") == (1, clock.now())
    await log.append(ReadingSet("d", (Reading("x", 2, clock.now()),)))
    await log.commit()
    await log.settle("milano", log.first_seq + 2)
    clock.learn(Source.KERNEL)
    await log.append(ReadingSet("d", (Reading("x", 3, clock.now()),)))
    await log.commit()
    assert await log.read("milano") is not None
    assert log.backlog("milano") == (2, NOON)
    await log.close()


@pytest.mark.parametrize("in_file", [0, 5, 8])
async def test_a_scan_gives_what_is_in_the_file_and_in_memory_whoever_has_it_and_whatever_its_time(
    tmp_path: Path, in_file: int
) -> None:
    clock = BootClock("b1", NOON)  # nobody vouches for it: a broker is not given that
    log = await opened(tmp_path, CITY, clock=clock, keep_s=3600.0)
    for n in range(8):
        await log.append(a_set(n))
        if n % 2:
            await log.settle("milano", log.first_seq + n)
        if n == in_file - 1:
            await log.commit()
    assert await log.read("milano") is None
    for start in range(8):
        found: list[int] = []
        after = log.first_seq + start
        while (columns := await log.scan(after, 3)) is not None:
            found += counts_of(log, columns)
            after = columns.last
        assert found == list(range(start, 8))
    await log.close()


async def test_a_receipt_is_durable_when_committed_and_when_settled_by_all(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    first = (await log.append(a_set(1))).durable
    assert not asyncio.ensure_future(first).done()
    await log.commit()
    await asyncio.wait_for(first, 5)
    second = (await log.append(a_set(2))).durable
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    await asyncio.wait_for(second, 5)
    await log.close()


async def test_with_commit_every_0_append_returns_when_the_set_is_on_the_card(tmp_path: Path) -> None:
    log = await opened(tmp_path, commit_every_s=0.0)
    await asyncio.wait_for(asyncio.gather(*(log.append(a_set(n)) for n in range(5))), 5)
    assert log.status()["head_readings"] == 0
    await log.close()


async def test_without_a_consumer_everything_is_kept_for_whoever_comes(tmp_path: Path) -> None:
    log = await opened(tmp_path)
    for n in range(5):
        await log.append(a_set(n))
    await log.close()
    log = await opened(tmp_path, CITY, Consumer("now", "now"), Consumer("later", NOON + timedelta(seconds=3)))
    assert await everything(log, "milano") == [0, 1, 2, 3, 4]
    assert await everything(log, "now") == []
    assert await everything(log, "later") == [3, 4]
    await log.close()


async def test_wait_ends_when_a_set_arrives(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    waiting = asyncio.create_task(log.wait("milano"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await log.append(a_set(1))
    await asyncio.wait_for(waiting, 5)
    await log.close()


async def test_sequence_numbers_are_never_used_twice(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(3):
        log = await opened(tmp_path, CITY)
        await log.append(a_set(1))
        columns = await log.read("milano")
        assert columns is not None
        seen.append(columns.last)
        await log.settle("milano", columns.last)
        await log.close()
    assert seen == [(1 << 32) + 1, (2 << 32) + 1, (3 << 32) + 1]


async def test_a_second_daemon_is_told_who_has_the_file(tmp_path: Path) -> None:
    log = await opened(tmp_path)
    with pytest.raises(LogError, match=rf"in use by another citygate \(process {os.getpid()}\)"):
        await opened(tmp_path)
    await log.close()
    await (await opened(tmp_path)).close()


async def test_last_values_and_driver_state_survive_a_restart(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(1))
    await log.append(ReadingSet("node-3", (), state={"fcnt": b"\x07"}))
    columns = await log.read("milano")
    assert columns is not None
    await log.settle("milano", columns.last)
    await log.close()
    log = await opened(tmp_path, CITY)
    assert log.driver_state("node-3") == {"fcnt": b"\x07"}
    assert log.last_values.device("meter-1")["voltage"].value == 230.1
    assert len(log.last_values.since(0)[1]) == 2
    await log.close()


async def test_a_full_head_makes_append_wait_for_the_card_and_loses_nothing(tmp_path: Path) -> None:
    settings = LogSettings(tmp_path / "buffer.db", commit_every_s=3600.0, head_bytes=4000)
    log = await Log.open(settings, clock=ManualClock(), consumers=[CITY])
    for n in range(100):
        await asyncio.wait_for(log.append(a_set(n)), 5)
        assert log.status()["head_bytes"] <= 4500
    assert await everything(log, "milano") == list(range(100))
    await log.close()


async def test_an_asked_commit_and_one_that_is_due_do_not_meet(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    for n in range(50):
        await log.append(a_set(n))
        log._committer.start()
        await asyncio.gather(log.commit(), log.append(a_set(1000 + n)), log.commit())
    assert log.status()["state"] == "ok"
    assert sorted(await everything(log, "milano")) == [*range(50), *range(1000, 1050)]
    await log.close()


WRITERS = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    from gateway.log.log import Log, LogSettings
    from gateway.sdk.reading import Reading, ReadingSet
    from gateway.sdk.testing import NOON, ManualClock

    async def write(path, n):
        log = await Log.open(LogSettings(Path(path), commit_every_s=0.0), clock=ManualClock(), consumers=[])
        while True:
            await log.append(ReadingSet("meter-1", (Reading("count", n, NOON),)))
            os.write(1, b"%d\\n" % n)  # a whole line or none, whenever it is killed
            n += 1

    for line in sys.stdin:  # forked, so that two hundred starts cost one import
        path, n = line.split()
        child = os.fork()
        if not child:
            print("pid", os.getpid(), flush=True)
            asyncio.run(write(path, int(n)))
        os.waitpid(child, 0)
        print("dead", flush=True)
    """
)


class Writers:
    """Starts writers one after the other and kills each without warning."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def killed_after(self, lines: int, path: Path, first: int) -> int:
        """Run a writer and kill it; returns the last number it had confirmed."""
        tell, told = self._process.stdin, self._process.stdout
        assert tell is not None
        assert told is not None
        print(path, first, file=tell, flush=True)
        pid = int(told.readline().removeprefix("pid "))
        confirmed = [int(told.readline()) for _ in range(lines)]
        os.kill(pid, signal.SIGKILL)
        while (line := told.readline()) != "dead\n":
            confirmed.append(int(line))
        return confirmed[-1]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def writers() -> Iterator[Writers]:
    writers = Writers()
    yield writers
    writers.close()


@pytest.mark.parametrize("half", [1, 2])
async def test_what_append_confirmed_survives_a_hundred_kill_9(writers: Writers, tmp_path: Path, half: int) -> None:
    n = 0
    for turn in range(100):
        confirmed = await asyncio.to_thread(writers.killed_after, 1 + turn * half % 25, tmp_path / "buffer.db", n)
        log = await opened(tmp_path, CITY)
        kept = await everything(log, "milano")
        await log.close()
        assert kept[: confirmed + 1] == list(range(confirmed + 1))
        n = len(kept)


THRIFTY = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    from gateway.clock import SystemClock
    from gateway.log.log import Consumer, Log, LogSettings
    from gateway.sdk.reading import Reading, ReadingSet

    async def main():
        clock = SystemClock("system")
        log = await Log.open(LogSettings(Path(sys.argv[1]), commit_every_s=0.5), clock=clock, consumers=[Consumer("milano")])
        n = 0
        while True:
            await log.append(ReadingSet("meter-1", (Reading("count", n, clock.now()),)))
            os.write(1, b"%d %d\\n" % (n, log.status()["commits"]))
            n += 1
            if n < 100:  # the city takes everything at once, then it is gone
                columns = await log.read("milano")
                await log.settle("milano", columns.last)
            await asyncio.sleep(0.02)

    asyncio.run(main())
    """
)


async def test_from_the_window_after_the_city_is_gone_on_every_reading_is_in_the_file(tmp_path: Path) -> None:
    def run_and_kill() -> tuple[int, int, int]:
        path, last, in_time, cut_commits = tmp_path / "buffer.db", 0, 140, 0
        with subprocess.Popen([sys.executable, "-c", THRIFTY, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last, commits = map(int, line.split())
                if last == 99:
                    cut_commits = commits
                if last == in_time + 60:  # 1.2 s at least, by the writer's own pace: it may be slow, as its commits are
                    break
            os.kill(process.pid, signal.SIGKILL)
            for line in process.stdout:  # what it had said by then
                last = int(line.split()[0])
        return in_time, cut_commits, last + 1  # and one that it could not say any more

    in_time, cut_commits, last = await asyncio.to_thread(run_and_kill)
    log = await opened(tmp_path, CITY)
    kept = await everything(log, "milano")
    await log.close()
    assert cut_commits <= 2  # the card rested while the city took everything
    assert kept == list(range(kept[0], kept[-1] + 1))
    assert kept[0] <= 100
    assert in_time <= kept[-1] <= last


async def test_the_newest_driver_state_of_every_device_is_there_after_a_restart_also_when_they_are_many(
    tmp_path: Path,
) -> None:
    log = await opened(tmp_path, CITY)
    for turn in range(40):
        for node in range(turn, turn + 60):
            await log.append(ReadingSet(f"node-{node}", (Reading("t", float(turn), NOON),), {"counter": bytes([turn])}))
        await log.commit()
    await log.close()

    log = await opened(tmp_path, CITY)

    assert {node: log.driver_state(f"node-{node}").get("counter") for node in range(99)} == {
        node: bytes([min(node, 39)]) for node in range(99)
    }
    await log.close()
