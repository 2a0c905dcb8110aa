"""What a broker with a history does not take as current state: shown with its words, held while it may still become current,
once in the history in the end. The others go on."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.health import BrokerHealth
from tests.gateway.forward.scene import entity_id, measured_only
from tests.gateway.forward.test_two_lanes import FAST, Box, assert_exact
from tests.support.strict_broker import StrictBroker

TEMPORAL = replace(FAST, history="temporal", records=True)
AIR, BAD = entity_id("air-0"), entity_id("air-1")
STATIC = 'air-1".*"location"'  # static attributes go as state alone
SCENES = {
    "a static attribute": (STATIC, 400),
    "a static attribute for now": (STATIC, 503),
    "a static attribute that makes it fail": (STATIC, 500),
    "a static attribute by conflict": (STATIC, 409),
    "the entity": ('air-1"', 400),
    "one attribute as state": ('air-1".*"location".*"pm25"', 400),
}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(8):
        while not condition():  # noqa: ASYNC110 - of other tasks
            await asyncio.sleep(0.01)


def refused(health: BrokerHealth) -> list[str]:
    return [row["entity"] for row in health.refusing]


async def told(box: Box, health: BrokerHealth) -> None:
    """Wait until the refusal is shown; who is only put off is so when that lasts."""
    async with asyncio.timeout(8):
        while refused(health) != [BAD]:
            await asyncio.sleep(0.05)
            box.clock.leap(1.0)


@pytest.mark.parametrize(("scene", "newer"), [*((scene, False) for scene in SCENES), ("a static attribute", True)])
async def test_what_is_refused_as_state_is_shown_until_it_is_taken_and_goes_once_to_the_history(
    box: Box, scene: str, newer: bool
) -> None:
    strict = StrictBroker()
    pattern, status = SCENES[scene]
    strict.behaviour.verdicts = {pattern: status}
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        for n in range(3):
            for device in ("air-0", "air-1"):
                await box.put(device, n, no2=n, pm25=n)
            await strict.until(lambda n=n: strict.current(AIR, "no2") == n)
        await told(box, health)
        [row] = health.refusing
        assert f"refused by rule {status}" in row["reason"]
        assert row["reason"].startswith("put off: ") is (status != 400)
        assert row["device"] == "air-1"
        await until(lambda: health.later > 0 and box.settled)  # nothing waits in the log
        assert strict.state(BAD) == {}
        strict.behaviour.verdicts = {}
        if newer:
            await box.put("air-1", 9, no2=9, pm25=9)
        assert box.log is not None
        dead = [piece.id for piece in box.log.held.pieces("city") if piece.next_try_at is None]
        assert not dead or scene == "the entity"  # refused as history too
        await box.log.held.requeue(dead, box.clock.now())
        async with asyncio.timeout(8):
            while health.refusing or health.later:
                box.clock.leap(10.0)
                await asyncio.sleep(0.05)
    assert strict.current(BAD, "no2") == (9 if newer else 2)
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_what_can_no_longer_become_current_goes_to_the_history_while_the_entity_is_refused(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.verdicts = {STATIC: 400}
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        for n in range(3):
            await box.put("air-0", n, no2=n)
            await box.put("air-1", n, no2=n)
            await strict.until(lambda n=n: health.later > 0 or n == 0)
            box.clock.leap(70.0)

        def past() -> Counter[Any]:
            return Counter(p for p in measured_only(strict.temporal_history()) if p[0] == BAD)

        async with asyncio.timeout(8):
            while len(past()) < 2:
                box.clock.leap(5.0)
                await asyncio.sleep(0.05)
        assert sorted(value for _, _, _, value in past()) == [0, 1]
        assert refused(health) == [BAD]
        await until(lambda: health.later > 0)
        strict.behaviour.verdicts = {}
        async with asyncio.timeout(8):
            while health.refusing or health.later:
                box.clock.leap(10.0)
                await asyncio.sleep(0.05)
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_after_a_restart_what_is_refused_is_found_again(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.verdicts = {STATIC: 400}
    async with strict.serve() as url:
        async with box.running(url, TEMPORAL) as health:
            await box.put("air-0", 0, no2=0)
            await box.put("air-1", 0, no2=0)
            await until(lambda: refused(health) == [BAD] and health.later)
        async with box.running(url, TEMPORAL) as health:
            await until(lambda: refused(health) == [BAD])
            strict.behaviour.verdicts = {}
            async with asyncio.timeout(8):
                while health.refusing or health.later or not box.settled:
                    box.clock.leap(10.0)
                    await asyncio.sleep(0.05)
    strict.refusals.clear()
    assert_exact(strict, box)


async def test_with_latest_only_it_is_shown_and_nothing_is_held(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.verdicts = {STATIC: 400}
    async with strict.serve() as url, box.running(url, replace(TEMPORAL, history="latest-only")) as health:
        for n in range(2):
            await box.put("air-0", n, no2=n)
            await box.put("air-1", n, no2=n)
            await strict.until(lambda n=n: strict.current(AIR, "no2") == n)
        await until(lambda: refused(health) == [BAD] and box.settled)
        assert (health.later, health.dead) == (0, 0)
        strict.behaviour.verdicts = {}
        box.clock.leap(40.0)
        await until(lambda: not health.refusing)
    assert strict.current(BAD, "no2") == 1


async def test_one_that_does_not_record_by_itself_gets_the_history_at_once(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.records = False
    strict.behaviour.verdicts = {STATIC: 400}
    async with strict.serve() as url, box.running(url, replace(TEMPORAL, records=False)) as health:
        await box.put("air-0", 0, no2=0)
        await box.put("air-1", 0, no2=0)
        await until(lambda: refused(health) == [BAD] and box.settled)
        assert health.later == 0
        strict.behaviour.verdicts = {}
        box.clock.leap(40.0)
        await until(lambda: not health.refusing)
    strict.refusals.clear()
    assert_exact(strict, box)
