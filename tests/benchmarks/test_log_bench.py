"""What the log costs: CPU per reading, bytes on the card, memory behind a long backlog; beside a reference in the same run.

`make bench` prints one line each. Ratios are to be compared, not absolute times: the machine is shared.
"""

import asyncio
import os
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import ManualClock
from tests.support.powercut import Card, Connection

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1200)]
DEVICES, POINTS = 50, 4
CITY = Consumer("city")
BACKLOG = int(os.environ.get("CITYGATE_BENCH_BACKLOG", "10_000_000"))


def sets(number: int, *, every_s: float, clock: ManualClock) -> Iterator[ReadingSet]:
    """Sets of four readings on a decimal grid, as meters and air stations give them; time goes on between them."""
    for n in range(number):
        clock.advance(every_s)
        at = clock.now()
        at -= timedelta(microseconds=at.microsecond % 1000)
        k = n % 997
        readings = (
            Reading("voltage", 230.0 + k % 40 / 10, at),
            Reading("current", 1.0 + k / 1000, at),
            Reading("power", 200 + k, at),
            Reading("energy", 12345.67 + n / 100, at),
        )
        yield ReadingSet(f"meter-{n % DEVICES}", readings)


async def opened(path: Path, clock: ManualClock, **settings: Any) -> Log:
    connect = settings.pop("connect", None)
    chosen = LogSettings(path, **{"commit_every_s": 1e9, "head_bytes": 2**26, "max_size_bytes": 10**10, **settings})
    return await Log.open(chosen, clock=clock, consumers=[CITY], connect=connect)


@pytest.fixture
def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield place
    shutil.rmtree(place)


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def append_us(log: Log, clock: ManualClock, *, per_commit: int, commits: int) -> float:
    """CPU microseconds per reading, of append and commit together."""
    batches = [list(sets(per_commit // POINTS, every_s=0.01, clock=clock)) for _ in range(commits)]
    start = time.process_time()
    for batch in batches:
        for readings in batch:
            await log.append(readings)
        await log._committer.commit()
    return (time.process_time() - start) / (commits * per_commit) * 1e6


async def drain_us(log: Log, *, pages: int = 20) -> float:
    """CPU microseconds per reading read back as columns."""
    after, count, start = 0, 0, time.process_time()
    for _ in range(pages):
        columns = await log.read("city", after=after)
        if columns is None:
            break
        count += len(columns.seq)
        after = columns.last
    return (time.process_time() - start) / count * 1e6


def rows_us(folder: Path, number: int = 50_000) -> float:
    """The reference: a row per reading in plain SQLite, 1000 a transaction, written and read back."""
    db = sqlite3.connect(folder / "rows.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE reading(id INTEGER PRIMARY KEY, series INT, time_us INT, value REAL, quality INT)")
    start = time.process_time()
    for n in range(number // 1000):
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO reading(series, time_us, value, quality) VALUES(?, ?, ?, 0)",
            [(i % 200, n * 10**6 + i, i / 10) for i in range(1000)],
        )
        db.execute("COMMIT")
    cost = (time.process_time() - start) / number * 1e6
    db.close()
    return cost


async def test_cpu_per_reading_from_an_empty_log_to_a_long_backlog(folder: Path) -> None:
    clock = ManualClock()
    empty_log, long_log = await opened(folder / "empty.db", clock), await opened(folder / "long.db", clock)
    filled, before_mib = 0, 0.0
    while filled < BACKLOG:
        if filled == 100_000:  # the head has been full once: what grows from here on grows with the backlog
            before_mib = rss_mib()
        for readings in sets(5000, every_s=0.01, clock=clock):
            await long_log.append(readings)
        await long_log._committer.commit()
        filled += 5000 * POINTS
    grown_mib = rss_mib() - before_mib
    file_bytes = (folder / "long.db").stat().st_size / filled
    found: dict[str, list[float]] = {}
    for _ in range(5):  # interleaved: what disturbs the machine disturbs all alike
        for name, log in (("empty", empty_log), ("long", long_log)):
            found.setdefault(f"append 1000, {name}", []).append(
                await append_us(log, clock, per_commit=1000, commits=10)
            )
            found.setdefault(f"append 100, {name}", []).append(await append_us(log, clock, per_commit=100, commits=50))
            found.setdefault(f"drain, {name}", []).append(await drain_us(log))
        found.setdefault("reference: a row per reading", []).append(rows_us(folder))
        (folder / "rows.db").unlink()
    median = {name: statistics.median(values) for name, values in found.items()}
    reference = median["reference: a row per reading"]
    print(f"\nlog, CPU per reading; backlog {filled:,} readings, {file_bytes:.2f} B each in the file")
    for name, cost_us in median.items():
        print(f"  {name:32} {cost_us:6.2f} µs   {cost_us / reference:5.2f} x reference")
    print(f"  memory of the backlog            {grown_mib:6.1f} MiB")
    for what in ("append 1000", "append 100", "drain"):
        assert median[f"{what}, long"] < 1.5 * median[f"{what}, empty"]
    assert grown_mib < 10 or BACKLOG < 10**6
    await empty_log.close()
    await long_log.close()


@pytest.mark.parametrize("per_minute", [200, 1000])
async def test_bytes_per_reading_over_a_day_with_brokers_reachable(per_minute: int) -> None:
    card, clock = Card(f"day-{per_minute}"), ManualClock()
    log = await opened(
        Path("/card/buffer.db"), clock, connect=lambda _: Connection(card, "/card/buffer.db"), commit_every_s=15.0
    )
    start, readings_number, settled_at_s = len(card.ops), 0, clock.monotonic_s()
    every_s = 60 * POINTS / per_minute
    for readings in sets(per_minute * 60 * 24 // POINTS, every_s=every_s, clock=clock):
        await log.append(readings)
        readings_number += POINTS
        if clock.monotonic_s() - settled_at_s >= 1.0:
            settled_at_s = clock.monotonic_s()
            while (columns := await log.read("city")) is not None:
                await log.settle("city", columns.last)
        while log._committer.running is not None:
            await asyncio.shield(log._committer.running)
    written = sum(len(op.data) for op in card.ops[start:])
    syncs = sum(op.kind == "sync" for op in card.ops[start:])
    print(
        f"\nlog, {per_minute}/min, brokers reachable, 24 h: {written / readings_number:.2f} B written per reading "
        f"({written / 1e6:.2f} MB, {syncs} flushes, {log.status()['commits']} commits)"
    )
    await log.close()


async def test_bytes_per_reading_with_the_broker_away(tmp_path: Path) -> None:
    device = LoopDevice(tmp_path)
    if not device.mount():
        pytest.skip("no loop device here: " + device.reason)
    try:
        clock = ManualClock()
        log = await opened(device.folder / "buffer.db", clock)

        async def commits(number: int) -> None:
            for _ in range(number):
                for readings in sets(13, every_s=1.2, clock=clock):
                    await log.append(readings)
                await log._committer.commit()

        await commits(150)  # warmed up: the journal has its size
        device.sync()
        size, written = (device.folder / "buffer.db").stat().st_size, device.written_bytes()
        await commits(400)
        device.sync()
        readings_number = 400 * 13 * POINTS
        log._file.store._db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # type: ignore[union-attr]
        grown = (device.folder / "buffer.db").stat().st_size - size
        print(
            f"\nlog, 208/min, broker away, 15 s commits, ext4 with 4 KiB blocks: "
            f"{(device.written_bytes() - written) / readings_number:.0f} B at the block device per reading, "
            f"{grown / readings_number:.2f} B of file size"
        )
        await log.close()
    finally:
        device.unmount()


class LoopDevice:
    """An ext4 file system in a file, whose block-device counters can be read; needs root."""

    def __init__(self, folder: Path) -> None:
        self.image, self.folder = folder / "card.img", folder / "card"
        self.reason, self._device = "", ""

    def mount(self) -> bool:
        self.image.write_bytes(b"")
        os.truncate(self.image, 256 * 2**20)
        self.folder.mkdir()
        try:
            self._run("mkfs.ext4", "-q", "-b", "4096", str(self.image))
            self._device = self._run("losetup", "--find", "--show", str(self.image)).strip()
            self._run("mount", self._device, str(self.folder))
        except (OSError, subprocess.CalledProcessError) as error:
            self.reason = str(error)
            self.unmount()
            return False
        return True

    def unmount(self) -> None:
        for command in (["umount", str(self.folder)], ["losetup", "-d", self._device]):
            if self._device:
                subprocess.run(command, check=False, capture_output=True)

    def sync(self) -> None:
        self._run("sync", "-f", str(self.folder))

    def written_bytes(self) -> int:
        stat = Path(f"/sys/block/{Path(self._device).name}/stat").read_text().split()
        return int(stat[6]) * 512

    @staticmethod
    def _run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
