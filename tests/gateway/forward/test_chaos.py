"""Faults, restarts and live data in random order, both ways of sending: what is served is in the history once, whatever happens.

A failing seed fails again by itself: `-k` with its number. `slow` plays two hundred more.
"""

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.forward.auth import Way
from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.reading import Reading, ReadingSet
from tests.gateway.forward.scene import START, RealClock, entity_id, measured_only, tables, wire
from tests.support.strict_broker import StrictBroker

DEVICES = tuple(f"air-{n}" for n in range(5))
FAULTS = ("", "", "503", "reset", "reset_stored", "hang_stored", "truncated", "html200", "500", "429")
PATHS = ("", "upsert", "temporal")
SETTINGS = ForwardSettings(
    linger_s=0.05,
    rate_per_s=1e6,
    records_within_s=1.5,
    look_s=0.05,
    learn_s=1.0,
    unseen_s=1.0,
    gather_s=0.1,
    held_every_s=0.1,
    retry_first_s=0.2,
    retry_quick_s=0.3,
    retry_cap_s=0.3,
)
TIMEOUT = aiohttp.ClientTimeout(total=3.0, sock_connect=1.0, sock_read=1.0)
RUNS = 3
ABREAST = 6


@dataclass
class Play:
    """One random play, and what came of it."""

    seed: int
    strict: StrictBroker = field(default_factory=StrictBroker)
    expected: set[Any] = field(default_factory=set)
    at_s: int = 0

    async def run(self, folder: Path) -> None:
        rng = random.Random(self.seed)
        behaviour = self.strict.behaviour
        behaviour.records_after_s = 0.2
        behaviour.temporal = rng.random() < 0.7
        async with self.strict.serve() as url:
            for turn in range(RUNS):
                async with self._box(folder, url) as log:
                    await self._live(log, rng)
                    if turn == RUNS - 1:
                        behaviour.fault = ""
                        async with asyncio.timeout(30.0):
                            while log.backlog("city")[0]:  # noqa: ASYNC110 - of another task, without an event
                                await asyncio.sleep(0.05)
            wanted = len(self.expected)
            with contextlib.suppress(TimeoutError):
                await self.strict.until(lambda: len(self._found()) >= wanted, timeout_s=3.0)

    @contextlib.asynccontextmanager
    async def _box(self, folder: Path, url: str) -> Any:
        settings = LogSettings(folder / "buffer.db", commit_every_s=3600.0)
        log = await Log.open(settings, clock=RealClock(), consumers=[Consumer("city")])
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(timeout=TIMEOUT))
        forwarder = Forwarder(
            "city", broker, tables(*DEVICES), log=log, health=BrokerHealth(), clock=RealClock(), settings=SETTINGS
        )
        task = asyncio.create_task(forwarder.run())
        try:
            yield log
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await log.close()

    async def _live(self, log: Log, rng: random.Random) -> None:
        for _ in range(rng.randrange(5, 30)):
            if rng.random() < 0.3:
                self.strict.behaviour.fault, self.strict.behaviour.path = rng.choice(FAULTS), rng.choice(PATHS)
            at = START + timedelta(seconds=self.at_s)
            for device in DEVICES:
                points = [point for point in ("no2", "pm25") if rng.random() < 0.6]
                if points:
                    await log.append(ReadingSet(device, tuple(Reading(p, self.at_s, at) for p in points)))
                    self.expected |= {(entity_id(device), point, wire(self.at_s), self.at_s) for point in points}
            self.at_s += 1
            await asyncio.sleep(rng.random() * 0.04)  # the sensors' own pace

    def _found(self) -> list[Any]:
        return measured_only(self.strict.temporal_history())

    def judge(self) -> None:
        found = Counter(self._found())
        assert {point: n for point, n in found.items() if n > 1} == {}, self.seed
        assert self.expected - found.keys() == set(), self.seed
        assert found.keys() - self.expected == set(), self.seed
        assert self.strict.backwards == [], self.seed


async def play_all(folder: Path, seeds: range) -> None:
    abreast = asyncio.Semaphore(ABREAST)

    async def one(seed: int) -> Play:
        async with abreast:
            play = Play(seed)
            await play.run(folder / str(seed))
            return play

    for play in await asyncio.gather(*(one(seed) for seed in seeds)):
        play.judge()


async def test_whatever_happens_each_value_is_in_the_history_once(tmp_path: Path) -> None:
    await play_all(tmp_path, range(6))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_whatever_happens_two_hundred_times(tmp_path: Path) -> None:
    await play_all(tmp_path, range(100, 300))
