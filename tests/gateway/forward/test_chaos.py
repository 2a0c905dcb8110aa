"""Faults, restarts and live data in random order, both ways of sending: what is served is in the history once, whatever happens.

Each seed plays the same again, as far as time allows. `slow` plays hundreds more.
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
from tests.gateway.forward.products import City, Ticks, city
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
    unseen_s=2.0,
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
                            while await log.read("city") is not None:  # noqa: ASYNC110 - of another task, without an event
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


# at products that forget, with boxes that are killed


@dataclass
class ProductPlay:
    """One random play at one product, for one or two boxes on a tenant, others writing beside them or not.

    A fault that no request meets cannot be noticed: what the broker forgets is always met by every box that runs. What a
    box sent before it was killed, and the broker forgot, is lost to two faults.
    """

    seed: int
    told: list[str] = field(default_factory=list)

    async def run(self, folder: Path, ticks: Ticks) -> str:
        rng = random.Random(self.seed)
        product = rng.choice(("scorpio", "scorpio", "stellio", "plain", "orion-ld", "no record"))
        boxes, busy = rng.choice((1, 2)), rng.random() < 0.4
        preset = product if product in ("scorpio", "stellio") and rng.random() < 0.3 else "auto"
        self.told.append(f"seed {self.seed}: {product}, preset {preset}, {boxes} boxes, busy: {busy}")
        tenant = "milano" if boxes == 2 else ""
        async with city(folder, product, ticks=ticks, boxes=boxes, busy=busy, tenant=tenant, preset=preset) as at:
            for _ in range(12):
                await at.live(rng.randrange(1, 7))
                step = rng.choice((self._net, self._net, self._stop, self._kill, self._quiet, self._forget, self._mend))
                await step(at, rng)
            await self._mend(at, rng)
            await at.live(6)
            faults = await at.seen()
            return faults and "\n".join([*self.told, faults])

    async def _net(self, at: City, rng: random.Random) -> None:
        at.strict.behaviour.fault, at.strict.behaviour.path = rng.choice(FAULTS[:5]), rng.choice(PATHS)
        self.told.append(f"fault {at.strict.behaviour.fault!r} {at.strict.behaviour.path}")

    async def _mend(self, at: City, rng: random.Random) -> None:
        at.strict.behaviour.fault = ""
        await at.start(box for box in at.boxes if not box.running)
        self.told.append("all is well")

    async def _stop(self, at: City, rng: random.Random) -> None:
        box = rng.choice(at.boxes)
        self.told.append(f"{box.devices[0]} is {'stopped' if box.running else 'started'}")
        await (box.stop() if box.running else at.start([box]))

    async def _kill(self, at: City, rng: random.Random) -> None:
        box = rng.choice(at.boxes)
        if box.running:
            self.told.append(f"{box.devices[0]} is killed")
            await box.kill()

    async def _forget(self, at: City, rng: random.Random) -> None:
        """The broker ends, or its database does; each box that runs meets it."""
        self.told.append(restart := rng.choice(("restart", "database")))
        if restart == "restart":
            await at.strict.stop()
        at.strict.database_away(restart == "database")
        async with asyncio.timeout(60.0):
            while any(box.running and box.health.state == "ok" for box in at.boxes):
                await at.live(1)
        await at.live(rng.randrange(16))
        at.strict.database_back()
        if restart == "restart":
            await at.strict.start()

    async def _quiet(self, at: City, rng: random.Random) -> None:
        self.told.append("silence")
        await at.quiet()


async def play_products(folder: Path, seeds: range) -> None:
    abreast, ticks = asyncio.Semaphore(24), Ticks()

    async def one(seed: int) -> str:
        async with abreast:
            return await ProductPlay(seed).run(folder / str(seed), ticks)

    async with ticks.run():
        for faults in await asyncio.gather(*(one(seed) for seed in seeds)):
            assert faults == ""


async def test_whatever_happens_at_a_product_each_value_is_in_its_history_once(tmp_path: Path) -> None:
    await play_products(tmp_path, range(8))


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_whatever_happens_at_a_product_five_hundred_times(tmp_path: Path) -> None:
    await play_products(tmp_path, range(1000, 1500))
