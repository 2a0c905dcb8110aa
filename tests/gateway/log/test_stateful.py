"""The log against a plain model: a list of sets and one number per consumer, whatever is done in whatever order."""

import asyncio
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.clock import Source
from gateway.log.log import Columns, Consumer, Log, LogSettings, TimeState
from gateway.log.segment import microseconds
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import BootClock

NAMES = st.sampled_from(("milano", "porto", "athens"))


class LogAgainstModel(RuleBasedStateMachine):
    """Sets are numbered by us; a set's readings carry its number and the true time at which it was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.runner = asyncio.Runner()
        self.clock = BootClock("boot-0", NOON, source=Source.KERNEL)
        self.boots = 0
        self.consumers: dict[str, Consumer] = {}
        self.taken: list[int] = []  # true time of each set, by our number
        self.owed: dict[str, list[int]] = {}  # to those who are there
        self.done: dict[str, int] = {}  # below this a consumer is done, those who were removed too
        self.unclaimed: list[int] = []  # emitted while nobody was there: kept for whoever comes
        self.unsure = 0  # sets of boots that never learned the time
        self.durable = 0
        self.held: dict[int, list[int]] = {}
        self.log: Log | None = None

    def run(self, work: Any) -> Any:
        """Do it, and what it set off behind it: the same steps must always lead to the same state."""

        async def to_rest() -> Any:
            result = await work
            while self.log is not None and self.log._committer.running is not None:
                await asyncio.shield(self.log._committer.running)
            return result

        return self.runner.run(to_rest())

    async def _open(self) -> Log:
        chosen = LogSettings(self.folder / "buffer.db", commit_every_s=1e9)
        return await Log.open(chosen, clock=self.clock, consumers=list(self.consumers.values()))

    @initialize()
    def start(self) -> None:
        self.log = self.run(self._open())

    @rule(number=st.integers(1, 6), device=st.sampled_from(("a", "b")), wait_s=st.sampled_from((0.0, 1.0, 2000.0)))
    def emit(self, number: int, device: str, wait_s: float) -> None:
        for _ in range(number):
            self.clock.advance(wait_s + 0.001)
            true_us = microseconds(self.clock.true)
            readings = (Reading("n", len(self.taken), self.clock.now()), Reading("t", true_us, self.clock.now()))
            assert self.log is not None
            self.run(self.log.append(ReadingSet(device, readings)))
            for owed in self.owed.values():
                owed.append(len(self.taken))
            if not self.owed:
                self.unclaimed.append(len(self.taken))
            self.taken.append(true_us)

    @rule()
    def commit(self) -> None:
        assert self.log is not None
        self.run(self.log.commit())
        self.durable = len(self.taken)

    async def _read(self, name: str, after: int | None = None, most: int = 10**6) -> Columns | None:
        assert self.log is not None
        return await self.log.read(name, after=after, max_readings=most)

    @precondition(lambda self: self.consumers)
    @rule(data=st.data(), most=st.integers(1, 30))
    def read_and_settle(self, data: st.DataObject, most: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.consumers)))
        columns = self.run(self._read(name, most=most))
        if columns is None:
            return
        numbers = [v for v, s in zip(columns.value, columns.series, strict=True) if self._point(s) == "n"]
        assert numbers == self.owed[name][: len(numbers)]
        keep = data.draw(st.integers(1, len(numbers)))  # settle a part of it
        assert self.log is not None
        self.run(self.log.settle(name, sorted(set(columns.seq))[keep - 1]))
        self._settled(name, keep)

    def _settled(self, name: str, count: int) -> None:
        self.done[name] = self.owed[name][count - 1] + 1
        del self.owed[name][:count]

    @precondition(lambda self: self.consumers)
    @rule(name=NAMES, later=st.booleans())
    def hold(self, name: str, later: bool) -> None:
        columns = self.run(self._read(name, most=1)) if name in self.consumers else None
        if columns is None:
            return
        numbers = [v for v, s in zip(columns.value, columns.series, strict=True) if self._point(s) == "n"]
        now = self.clock.now()
        next_at = now + timedelta(minutes=1) if later else None
        assert self.log is not None
        held = self.log.held.hold(name, "e", "d", columns, reason="refused", at=now, next_try_at=next_at)
        self.held[self.run(held)] = numbers
        self.run(self.log.settle(name, columns.last))
        self._settled(name, len(numbers))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        piece = data.draw(st.sampled_from(sorted(self.held)))
        assert self.log is not None
        self.run(self.log.held.release([piece]))
        del self.held[piece]

    @rule(name=NAMES, start=st.sampled_from(("oldest", "now")))
    def add(self, name: str, start: Any) -> None:
        """A new broker, or one that comes back: it goes on where it was."""
        if name in self.consumers:
            return
        assert self.log is not None
        there = self._there()
        assert set(self.unclaimed) <= set(there)
        self.consumers[name] = Consumer(name, start)
        self.run(self.log.set_consumers(list(self.consumers.values())))
        first = self.done.setdefault(name, len(self.taken) if start == "now" else 0)
        self.owed[name] = [number for number in there if number >= first]
        self.unclaimed = []

    def _there(self) -> list[int]:
        """All sets that the log has, settled or not."""
        numbers: list[int] = []
        after = -1
        assert self.log is not None
        while (columns := self.run(self.log.scan(after))) is not None:
            numbers += columns.value[::2]
            after = columns.last
        return numbers

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.consumers)))
        del self.consumers[name], self.owed[name]
        assert self.log is not None
        self.run(self.log.set_consumers(list(self.consumers.values())))

    @rule(reboot=st.booleans(), synchronised=st.booleans(), wrong_s=st.sampled_from((-86400.0, 5000.0)))
    def restart(self, reboot: bool, synchronised: bool, wrong_s: float) -> None:
        assert self.log is not None
        self.run(self.log.close())
        self.durable = len(self.taken)
        if reboot:
            if not self.log.boots.confirmed:
                self.unsure = len(self.taken)
            self.boots += 1
            true = self.clock.true + timedelta(seconds=60)
            source, off_s = (Source.KERNEL, 0.0) if synchronised else (Source.NONE, wrong_s)
            self.clock = BootClock(f"boot-{self.boots}", true, off_s, source)
        self.log = self.run(self._open())

    @rule()
    def kill(self) -> None:
        """Without warning: what was committed and owed is still owed, no other set appears."""
        assert self.log is not None
        self.run(killed(self.log))
        self.log = None
        self.log = self.run(self._open())
        for name in self.consumers:
            there = self._owed_now(name)
            assert {number for number in self.owed[name] if number < self.durable} <= set(there)
            self.owed[name] = there
            self.done[name] = there[0] if there else len(self.taken)
        self.unclaimed = [number for number in self.unclaimed if number < self.durable]

    def _owed_now(self, name: str) -> list[int]:
        """By the cursor on the card; what is held back for its time is in it."""
        numbers: list[int] = []
        assert self.log is not None
        after = self.log._lanes.places()[name]
        while (columns := self.run(self.log.scan(after))) is not None:
            numbers += columns.value[::2]
            after = columns.last
        return numbers

    @rule()
    def synchronise(self) -> None:
        """The clock is set right, if it was not."""
        if self.clock.trust.trusted:
            return
        self.clock.learn(Source.KERNEL)
        self.emit(1, "a", 0.0)
        self.commit()

    @invariant()
    def everybody_is_owed_exactly_the_rest(self) -> None:
        if self.log is None:
            return
        for name in self.consumers:
            self._check(name)
        assert sorted(piece.id for piece in self.log.held.pieces()) == sorted(self.held)

    def _check(self, name: str) -> None:
        assert self.log is not None
        numbers: list[int] = []
        after: int | None = None
        while (columns := self.run(self._read(name, after, 7))) is not None:
            for i in range(0, len(columns.seq), 2):
                n, true_us = columns.value[i], columns.value[i + 1]
                assert isinstance(n, int)
                numbers.append(n)
                assert true_us == self.taken[n]
                if columns.time_state[i] is TimeState.SURE:
                    assert abs(columns.time_us[i] - self.taken[n]) <= 1000
                else:
                    assert columns.time_state[i] is TimeState.ESTIMATED
                    assert n < self.unsure
            after = columns.last
        assert numbers == self.owed[name][: len(numbers)]
        if self.log.boots.confirmed:
            assert numbers == self.owed[name]
            assert self.log.backlog(name)[0] == 2 * len(numbers)

    def _point(self, series: int) -> str:
        assert self.log is not None
        return self.log.series[series].point

    def teardown(self) -> None:
        if self.log is not None:
            self.run(self.log.close())
        self.runner.close()
        shutil.rmtree(self.folder)


async def killed(log: Log) -> None:
    """End a log as kill -9 does: nothing more is written."""
    log._condition.closed = True
    log._committer.disarm()
    await log._file.close()


LogAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestLogAgainstModel = LogAgainstModel.TestCase
