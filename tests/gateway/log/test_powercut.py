"""Power cuts at any operation: what was confirmed is there, whole, and nothing is half there."""

import hashlib
import marshal
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gateway.log.boots import Boot, Boots
from gateway.log.retention import Retention
from gateway.log.salvage import finish, salvage
from gateway.log.segment import Columns, Entry, Stamp, microseconds
from gateway.log.store import MIGRATIONS, Batch, Gap, HeldRow, Store
from gateway.sdk.reading import Quality, Reading, Reason
from gateway.sdk.testing import NOON
from tests.support.powercut import MODES, Card, Connection, Op, Platter, put_files, recorded_calls

CUTS = 2_000
PATH = "/card/buffer.db"
TABLES = (
    "newer_state",
    "start",
    "record",
    "record_copy",
    "boot",
    "segment",
    "cursor",
    "last_value",
    "state",
    "held",
    "gap",
    "statistic",
)
_cards = count()


@dataclass
class Scene:
    """A writer at work on a card, and what the file held after each confirmed step."""

    psow: str = "psow=0"
    replace: dict[str, str] = field(default_factory=dict)
    seed: int = 1
    max_size_bytes: int = 128 * 4096  # small, so that retention and the journal's return to its start are in it

    def __post_init__(self) -> None:
        self.card = Card(f"card-{next(_cards)}")
        self.states: list[str] = [dump_of([])]
        self.chance = random.Random(self.seed)
        self.seq = 0
        self.store: Store | None = None

    def connect(self, _: Path) -> Any:
        return Connection(self.card, PATH, psow=self.psow, replace=self.replace)

    def confirm(self) -> None:
        """The step is done: whoever asked was told so."""
        assert self.store is not None
        self.card.ack(len(self.states))
        self.states.append(dump(self.store._db))

    def open(self) -> None:
        self.store = Store(Path(PATH), self.max_size_bytes, self.connect)
        self.confirm()
        loaded = self.store.load("boot-1", microseconds(NOON))
        self.store.boots = Boots(loaded.boots, loaded.boot)
        self.store.now_us = lambda: microseconds(NOON)
        self.seq = max(self.seq, loaded.start << 32)
        self.confirm()

    def close(self) -> None:
        assert self.store is not None
        self.store.close()

    def sets(self, number: int) -> list[Entry]:
        found = []
        for _ in range(number):
            self.seq += self.chance.choice((1, 1, 1, 3))
            device = self.chance.randrange(6)
            at = NOON + timedelta(seconds=self.seq & 0xFFFF, milliseconds=self.chance.randrange(1000))
            digits = self.chance.choice((1, 2, 17))
            readings = tuple(Reading("", round(self.chance.uniform(-20, 40), digits), at) for _ in range(4))
            if self.chance.random() < 0.1:
                readings = (*readings[:3], Reading("", None, at, Quality.BAD, Reason.TIMEOUT))
            found.append(Entry(self.seq, tuple(range(device * 4, device * 4 + 4)), readings, STAMP, 0.0, 0))
        return found

    def work(self, steps: int) -> None:
        """All that the log asks of the store, in a random order."""
        assert self.store is not None
        store, chance = self.store, self.chance
        store.commit(Batch(series={n: (f"device-{n // 4}", f"point_{n % 4}") for n in range(24)}))
        self.confirm()
        held: list[int] = []
        settled = 0
        for _ in range(steps):
            what = chance.random()
            if what < 0.6:
                entries = self.sets(chance.choice((3, 12, 50, 400)))
                batch = Batch(entries=entries, settled=settled, prune=True, now_us=microseconds(NOON))
                if chance.random() < 0.25:
                    settled = max(settled, chance.randint(settled, settled + (self.seq - settled) // 8))
                    batch.cursors = {"milano": settled, "porto": self.seq}
                store.commit(batch, Retention(1e9, 0.0, {"milano": settled}))
            elif what < 0.7:
                store.commit(
                    Batch(
                        last_values=self.sets(20),
                        statistics={self.seq: chance.randbytes(900)},
                        states={("node", str(chance.randrange(5))): chance.randbytes(8)},
                        up_us=self.seq,
                        boots=[Boot(1, "boot-1", 5, 6)],
                        gaps=[Gap(self.seq, None, None, 1, f"test {self.seq}", {})],
                    )
                )
            elif what < 0.85:
                entries = self.sets(3)
                row = HeldRow(0, "milano", "e", "d", "refused", 1, 2, 1, 5, 12, 0)
                held.append(store.put_held(row, entries, held[:1] if len(held) > 4 else []))
                held = held[-5:]
            elif held:
                store.drop_held([held.pop()])
            else:
                continue
            self.confirm()


STAMP = Stamp(1, microseconds(NOON) - 10**9, 6)


def dump_of(rows: list[Any]) -> str:
    return hashlib.sha256(marshal.dumps(rows, 2)).hexdigest()


def dump(db: Any) -> str:
    """All that the tables hold, as a digest; an absent table counts as an empty one."""
    rows = []
    for table in TABLES:
        try:
            found = db.execute(f"SELECT * FROM {table}").fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            continue
        rows += [(table, *row) for row in found]
    return dump_of(rows)


@dataclass
class Verdict:
    cuts: int = 0
    lost: int = 0
    damaged: int = 0
    examples: list[str] = field(default_factory=list)


def judge(scene: Scene, cuts: int, folder: Path, modes: tuple[str, ...] = MODES, seed: int = 7) -> Verdict:
    """Cut at random operations, look at what is there by the product's own eyes: stdlib's SQLite and the store."""
    chance, verdict = random.Random(seed), Verdict()
    places = sorted(chance.randrange(1, len(scene.card.ops) + 1) for _ in range(cuts))
    platter, done = Platter(), 0
    for number, place in enumerate(places):
        for op in scene.card.ops[done:place]:
            platter.play(op)
        done = place
        mode = modes[number % len(modes)]
        put_files(folder, platter.crash(mode, chance))
        verdict.cuts += 1
        expected = scene.states[platter.acked : platter.acked + 2]
        try:
            found, complaint = look(folder / "buffer.db", scene, deep=number % 8 == 0)
        except (sqlite3.DatabaseError, AssertionError) as error:
            verdict.damaged += 1
            verdict.examples.append(f"{mode} at {place}: {error!r}")
            continue
        if complaint:
            verdict.damaged += 1
            verdict.examples.append(f"{mode} at {place}: {complaint}")
        elif found not in expected:
            verdict.lost += 1
            where = scene.states.index(found) if found in scene.states else "no step"
            verdict.examples.append(f"{mode} at {place}: state of {where}, confirmed {platter.acked}")
    return verdict


def look(path: Path, scene: Scene, *, deep: bool) -> tuple[str, str]:
    """Digest of what is there, and what is wrong with it."""
    store = Store(path, scene.max_size_bytes)
    try:
        found = dump(store._db)
        wrong = "; ".join(store.quick_check())
        if deep and not wrong:
            loaded = store.load("boot-2", microseconds(NOON))
            newest = max([loaded.last, *loaded.cursors.values()])
            if newest >= loaded.start << 32:
                wrong = f"number {newest} could be given again by start {loaded.start}"
            columns = Columns(0)
            while (more := store.read(columns.last, 10**6)) is not None:
                columns = more
            scene.seq = max(newest, loaded.start << 32)
            store.commit(Batch(entries=scene.sets(2)))
    finally:
        store.close()
    return found, wrong


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder in memory: thousands of files are laid out there."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield place
    shutil.rmtree(place)


def recorded(steps: int = 90, **settings: Any) -> Scene:
    scene = Scene(**settings)
    scene.open()
    scene.work(steps // 2)
    scene.close()
    scene.open()
    scene.work(steps // 2)
    return scene


def test_the_simulator_condemns_a_journal_that_is_not_synced(folder: Path) -> None:
    scene = recorded(replace={"PRAGMA synchronous=FULL": "PRAGMA synchronous=NORMAL"})
    assert judge(scene, 150, folder).lost >= 20


def test_the_simulator_condemns_trust_in_neighbouring_bytes(folder: Path) -> None:
    verdict = judge(recorded(psow="psow=1"), 150, folder, modes=("garble",))
    assert verdict.lost + verdict.damaged >= 20


def test_the_simulator_acquits_sqlite_as_it_is_known_to_be_safe(folder: Path) -> None:
    replace = {
        "PRAGMA journal_mode=WAL": "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL": "PRAGMA synchronous=EXTRA",
    }
    verdict = judge(recorded(replace=replace), 100, folder)
    assert (verdict.lost, verdict.damaged) == (0, 0), verdict.examples[:3]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_power_cut_loses_or_damages_what_was_confirmed(folder: Path, seed: int) -> None:
    scene = recorded(seed=seed)
    assert scene.store is not None
    assert {"size", "test"} <= {gap.reason.split()[0] for gap in scene.store.gaps()}  # retention was at work
    verdict = judge(scene, CUTS // 2, folder, seed=seed)
    assert verdict.cuts == CUTS // 2
    assert (verdict.lost, verdict.damaged) == (0, 0), verdict.examples[:3]


def test_no_power_cut_in_a_migration_loses_what_was_confirmed(folder: Path) -> None:
    scene = Scene()
    db = scene.connect(Path(PATH))
    db.execute("PRAGMA page_size=4096")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("BEGIN IMMEDIATE")
    for statement in MIGRATIONS[0].split(";"):
        db.execute(statement)
    db.execute("PRAGMA application_id=0x63697479")
    db.execute("PRAGMA user_version=1")
    db.execute("INSERT INTO start VALUES(1, 1, 5)")
    db.execute("INSERT INTO state VALUES('node', 'counter', x'07')")
    db.execute("COMMIT")
    scene.card.ack(1)
    scene.states.append(dump(db))
    db.close()
    scene.open()
    verdict = judge(scene, 150, folder)
    assert (verdict.lost, verdict.damaged) == (0, 0), verdict.examples[:3]


def traced(script: str, folder: Path, tmp_path: Path) -> tuple[list[Op], list[str]]:
    """Operations and lines of a process that works in `folder`, as the kernel saw them."""
    trace = tmp_path / "trace"
    calls = "openat,pwrite64,pwritev,write,fsync,fdatasync,ftruncate,fallocate,rename,unlink,close"
    subprocess.run(
        [
            "strace",
            "-e",
            f"trace={calls}",
            "-xx",
            "-s",
            "100000",
            "-o",
            str(trace),
            sys.executable,
            "-c",
            script,
            str(folder),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    ops, lines = recorded_calls(trace, folder)
    return ops, [line.decode() for line in lines]


WORK = """
import os, sys
from pathlib import Path
from tests.gateway.log.test_powercut import Scene, dump
from gateway.log.store import Store, connect_file
scene = Scene()
path = Path(sys.argv[1]) / "buffer.db"
scene.connect = lambda _: connect_file(path)
scene.confirm = lambda: os.write(1, dump(scene.store._db).encode() + b"\\n")
scene.open()
scene.work(40)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace records the system calls")
def test_no_power_cut_of_the_real_writer_loses_what_was_confirmed(folder: Path, tmp_path: Path) -> None:
    work = folder / "work"
    work.mkdir()
    scene = Scene()
    scene.card.ops, lines = traced(WORK, work, tmp_path)
    scene.states += lines
    shutil.rmtree(work)
    verdict = judge(scene, 300, folder)
    assert len(lines) > 30
    assert (verdict.lost, verdict.damaged) == (0, 0), verdict.examples[:3]


SALVAGE = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from tests.gateway.log.test_powercut import Scene, segments, wreck
from gateway.log.store import connect_file
from gateway.log.salvage import salvage
path = Path(sys.argv[1]) / "buffer.db"
scene = Scene()
scene.connect = lambda _: connect_file(path)
scene.open()
scene.work(30)
scene.close()
wreck(path)
os.write(1, b"wrecked\\n")
salvage(path, 10**9, datetime(2026, 6, 1, tzinfo=UTC), keeps=False)
os.write(1, segments(path).encode() + b"\\n")
"""


def wreck(path: Path) -> None:
    """The card forgets the page of the tables' names."""
    handle = os.open(path, os.O_RDWR)
    os.pwrite(handle, bytes(4096), 0)
    os.fsync(handle)
    os.close(handle)


def segments(path: Path) -> str:
    store = Store(path, 10**9)
    found = dump_of([store._db.execute("SELECT id, span, body FROM segment").fetchall(), store.load("b", 0).series])
    store.close()
    return found


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace records the system calls")
def test_a_power_cut_in_a_salvage_loses_nothing_that_could_be_salvaged(folder: Path, tmp_path: Path) -> None:
    work = folder / "work"
    work.mkdir()
    ops, (_, saved) = traced(SALVAGE, work, tmp_path)
    shutil.rmtree(work)
    chance, platter = random.Random(3), Platter()
    outcomes = set()
    for number, op in enumerate(ops):
        platter.play(op)
        if platter.acked == 0 or number % 3:
            continue
        put_files(folder, platter.crash(MODES[number // 3 % len(MODES)], chance))
        path = folder / "buffer.db"
        finish(path)
        try:
            found = segments(path)
            outcomes.add("done")
        except sqlite3.DatabaseError:
            salvage(path, 10**9, NOON, keeps=False)
            found = segments(path)
            outcomes.add("again")
        assert found == saved, f"after operation {number}, {op.kind} {op.file}"
    assert outcomes == {"done", "again"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_power_cut_of_twenty_thousand_loses_what_was_confirmed(folder: Path) -> None:
    for seed in range(10):
        verdict = judge(recorded(seed=seed + 100), 2_000, folder, seed=seed)
        assert (verdict.lost, verdict.damaged) == (0, 0), verdict.examples[:3]
