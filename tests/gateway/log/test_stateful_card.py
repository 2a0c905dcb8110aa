"""The log on a small card that refuses at times, against an exact model: what is owed, lost and on the card is all there was."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.log.log import Consumer, Log
from gateway.sdk.driver import Receipt
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import ManualClock
from tests.gateway.log.scene import at_rest, on_card, opened
from tests.gateway.log.test_failed_commit import Card
from tests.gateway.log.test_poison import POISON, STAGES

NAMES = ("milano", "porto", "athens")
MAX_AGE_S, HEAD_BYTES = 7200.0, 12_000


class LogOnACard(RuleBasedStateMachine):
    """Sets are numbered by us and of one reading; of a name's owed sets it holds what no bound took."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.runner = asyncio.Runner()
        self.clock, self.card = ManualClock(), Card()
        self.taken = 0
        self.names: dict[str, str] = dict.fromkeys(NAMES[:2], "oldest")
        self.owed: dict[str, list[int]] = {name: [] for name in self.names}
        self.lost: dict[str, int] = dict.fromkeys(self.names, 0)  # of a name, since it is there
        self.states: dict[str, bytes] = {}
        self.spoilt = 0
        self.receipts: dict[int, Receipt] = {}
        self.found: tuple[int, dict[str, int], dict[str, bytes], set[int]] = (
            0,
            {},
            {},
            set(),
        )  # by the last whole commit
        self.renamed = 0

    def run(self, work: Any) -> Any:
        async def to_rest() -> Any:
            result = await work
            await at_rest(self.log)
            return result

        return self.runner.run(to_rest())

    def consumers(self) -> list[Consumer]:
        return [Consumer(name, was=was if was in NAMES else "") for name, was in self.names.items()]

    def settings(self) -> dict[str, Any]:
        return {
            "clock": self.clock,
            "connect": self.card.connect,
            "max_age_s": MAX_AGE_S,
            "keep_s": self.keep_s,
            "head_bytes": HEAD_BYTES,
            "max_size_bytes": 1,  # the smallest there is: 128 pages
        }

    @initialize(keep_s=st.sampled_from((0.0, 3600.0)))
    def start(self, keep_s: float) -> None:
        self.keep_s = keep_s
        self.log: Log = self.runner.run(opened(self.folder, *self.consumers(), **self.settings()))

    # What comes and goes

    @rule(number=st.integers(1, 4), bytes_each=st.sampled_from((1, 1, 3000)))
    def emit(self, number: int, bytes_each: int) -> None:
        for _ in range(number):
            value = f"{self.taken:06}" + "x" * bytes_each
            at = self.clock.now()
            work = asyncio.wait_for(self.log.append(ReadingSet("d", (Reading("n", value, at),))), 5)
            self.receipts[self.taken] = self.run(work)
            for owed in self.owed.values():
                owed.append(self.taken)
            self.taken += 1
        self.bounds()

    @rule(key=st.sampled_from("ab"), value=st.binary(max_size=2))
    def state(self, key: str, value: bytes) -> None:
        self.run(self.log.append(ReadingSet("node", (), {key: value})))
        self.states[key] = value

    @rule()
    def spoil(self) -> None:
        self.run(self.log.append(ReadingSet("d", POISON["no time"])))
        self.spoilt += 1
        for name in self.lost:
            self.lost[name] += 1

    @rule(name=st.sampled_from(NAMES), most=st.integers(1, 9))
    def settle(self, name: str, most: int) -> None:
        if name not in self.owed:
            return
        columns = self.run(self.log.read(name, max_readings=most))
        if columns is None:
            return
        numbers = [int(value[:6]) for value in columns.value]
        assert numbers == self.owed[name][: len(numbers)]
        self.run(self.log.settle(name, columns.last))
        del self.owed[name][: len(numbers)]

    @rule(by_s=st.sampled_from((1.0, 1000.0, 5000.0)))
    def wait(self, by_s: float) -> None:
        self.clock.advance(by_s)

    # Commits

    @precondition(lambda self: self.card.fault is None)
    @rule()
    def commit(self) -> None:
        self.run(self.log.commit())
        assert self.log.status()["state"] == "ok" or self.log.gaps
        assert self.log.status()["head_readings"] == 0
        self.bounds()
        there = {number for owed in self.owed.values() for number in owed}
        self.found = self.taken, {name: len(owed) for name, owed in self.owed.items()}, dict(self.states), there

    @rule(stage=st.sampled_from(STAGES[:-1]), fault=st.sampled_from(("full", "key", "os")), times=st.integers(1, 2))
    def fail(self, stage: str, fault: str, times: int) -> None:
        self.card.refuse(stage, fault)
        for _ in range(times):
            try:
                self.run(self.log.commit())
            except LogError:
                assert self.log.status()["state"] == "bad"
            else:  # nothing of that kind was to be written
                self.card.work()
                self.commit()
                self.card.refuse(stage, fault)
        self.bounds()

    @rule()
    def works(self) -> None:
        self.card.work()

    # Who is there

    @precondition(lambda self: self.card.fault is None)
    @rule(name=st.sampled_from(NAMES))
    def rename(self, name: str) -> None:
        free = [other for other in NAMES if other not in self.names]
        if name not in self.names or not free:
            return
        self.commit()
        [new] = free
        self.names = {new if n == name else n: name if n == name else "" for n in self.names}
        self.run(self.log.set_consumers(self.consumers()))
        self.owed[new] = self.owed.pop(name)
        self.lost[new] = 0  # what was lost under the old name is told under that
        self.lost.pop(name)
        self.lost[new] = self.log.given_up(new)
        self.commit()

    @precondition(lambda self: self.card.fault is None)
    @rule()
    def restart(self) -> None:
        self.commit()
        self.runner.run(self.log.close())
        self.receipts.clear()
        self.log = self.runner.run(opened(self.folder, *self.consumers(), **self.settings()))
        self.commit()

    # What must be true

    def bounds(self) -> None:
        """What bounds took since: told by the log, and no longer owed; nothing else is gone."""
        there = {name: self.there(name) for name in self.owed}
        for name, numbers in there.items():
            gone = [number for number in self.owed[name] if number not in set(numbers)]
            assert numbers == [number for number in self.owed[name] if number not in set(gone)]
            self.lost[name] += len(gone)
            self.owed[name] = numbers
            for number in gone:
                assert all(number not in other for other in there.values())

    def there(self, name: str) -> list[int]:
        async def read() -> list[int]:
            numbers: list[int] = []
            after: int | None = None
            while (columns := await self.log.read(name, after=after, max_readings=5)) is not None:
                numbers += [int(str(value)[:6]) for value in columns.value]
                after = columns.last
            return numbers

        return self.runner.run(read())

    @invariant()
    def everybody_is_owed_exactly_the_rest(self) -> None:
        self.bounds()
        told = self.log.status()
        for name, owed in self.owed.items():
            assert self.log.backlog(name)[0] == len(owed)
            assert told["consumers"][name]["backlog"] == len(owed)
            assert (self.log.backlog(name)[1] is None) == (not owed)
            assert self.log.given_up(name) == self.lost[name]
        assert dict(self.log.driver_state("node")) == self.states
        assert told["head_readings"] >= 0
        assert told["head_bytes"] >= 0
        assert told["lost"].get("unwritable", 0) == self.spoilt
        assert told["dropped"] >= max(self.lost.values())

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def cut_the_power_in_a_copy(self, data: st.DataObject) -> None:
        """What is on the card is what the last commit that worked left, or newer, never something between."""
        _, owed, states, there = self.found

        async def look() -> None:
            ageless = {
                **self.settings(),
                "connect": None,
                "max_age_s": 100 * MAX_AGE_S,
            }  # what is on the card, not what is too old
            async with on_card(self.folder, *self.consumers(), **ageless) as found:
                for name in owed.keys() & self.owed.keys():
                    numbers = [int(str(value)[:6]) for value in await _values(found, name)]
                    assert numbers == sorted(set(numbers))
                    # what it was owed then and is owed now was not lost
                    assert {n for n in self.owed[name] if n in there} <= set(numbers)
                    assert found.backlog(name)[0] == len(numbers)
                if self.card.fault is not None and self.card.stage in ("BEGIN", "COMMIT"):
                    assert dict(found.driver_state("node")) == states or self.states != states

        self.runner.run(look())

    @precondition(lambda self: self.receipts)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.receipts)))
        owed = any(number in numbers for numbers in self.owed.values())

        async def told() -> str:
            future = asyncio.ensure_future(self.receipts[number].durable)
            await asyncio.sleep(0)
            if not future.done():
                future.cancel()
                return "open"
            return "failed" if future.exception() else "durable"

        answer = self.runner.run(told())
        if not owed:
            assert answer != "open"
        elif number < self.found[0]:
            assert answer == "durable"

    def teardown(self) -> None:
        self.card.work()
        if hasattr(self, "log"):
            self.runner.run(self.log.close())
        self.runner.close()
        shutil.rmtree(self.folder)


async def _values(log: Log, name: str) -> list[object]:
    values: list[object] = []
    after: int | None = None
    while (columns := await log.read(name, after=after)) is not None:
        values += columns.value
        after = columns.last
    return values


LogOnACard.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLogOnACard = LogOnACard.TestCase
