"""Readings of a device that is no longer in the config: sent by its recipe, held when that cannot be read, and nobody waits for them."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from gateway.forward.feeds import UNMAPPED
from gateway.harmonise.compile import Mapping
from gateway.harmonise.recipe import RecipeError
from gateway.log.log import Consumer
from gateway.log.recipes import Change
from tests.gateway.forward.scene import entity_id, measured_only, tables
from tests.gateway.forward.test_two_lanes import FAST, Box, assert_exact
from tests.support.strict_broker import StrictBroker

MODES: tuple[Literal["auto", "in-order"], ...] = ("auto", "in-order")
HERE = tables("air-0", "air-1")
NOW = datetime.now(UTC)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def history(strict: StrictBroker) -> Counter[Any]:
    return Counter(measured_only(strict.temporal_history()))


def unreadable(device: str) -> tuple[Mapping, ...]:
    if device == "air-9":
        raise RecipeError("its recipe is damaged")
    return ()


@pytest.mark.parametrize("mode", MODES)
async def test_what_cannot_be_mapped_is_held_with_the_reason_and_sent_once_it_can_be(box: Box, mode: Any) -> None:
    strict, settings = StrictBroker(), replace(FAST, history=mode)
    async with strict.serve() as url, box.open() as log:
        for n in range(3):
            await box.put("air-9", n, no2=n, pm25=n + 0.5)
            await box.put("air-0", n, no2=n)
        async with box.forwarding(url, settings, mappings=HERE, recipes=unreadable) as health:
            await strict.until(lambda: health.dead == 1 and box.settled)
            [piece] = log.held.pieces("city")
            assert (piece.entity, piece.device, piece.readings) == (UNMAPPED, "air-9", 6)
            assert (piece.state, piece.reason, piece.tries) == ("dead", "its recipe is damaged", 0)
            await strict.until(lambda: strict.current(entity_id("air-0"), "no2") == 2)
            assert not strict.state(entity_id("air-9"))
            await log.held.requeue([piece.id], datetime.now(UTC))
            await strict.until(lambda: log.held.pieces("city")[0].state == "dead")
        async with box.forwarding(url, settings, mappings=HERE, recipes=lambda device: tables("air-9")[device]):
            await log.held.requeue([piece.id], log.now())
            await strict.until(lambda: not log.held.pieces("city"))
    assert_exact(strict, box)


@pytest.mark.parametrize("mode", MODES)
async def test_a_recipe_is_read_once_and_only_of_a_device_that_is_owed(box: Box, mode: Any) -> None:
    asked: list[str] = []

    def recipes(device: str) -> tuple[Mapping, ...]:
        asked.append(device)
        return tables("air-8", "air-9").get(device, ())

    strict = StrictBroker()
    async with strict.serve() as url, box.open():
        for n in range(3):
            await box.put("air-9", n, no2=n, pm25=n)
            await box.put("air-0", n, no2=n)
        async with box.forwarding(url, replace(FAST, history=mode), mappings=HERE, recipes=recipes):
            await strict.until(lambda: box.settled and strict.current(entity_id("air-9"), "no2") == 2)
    assert asked == ["air-9"]
    assert_exact(strict, box)


@pytest.mark.parametrize("mode", MODES)
async def test_of_an_attribute_that_two_devices_gave_the_newest_is_current_and_all_are_history(
    box: Box, mode: Any
) -> None:
    """One entity, told by a device that is gone and by the one in its place."""
    old = tuple(replace(table, device="old") for table in HERE["air-0"])
    strict = StrictBroker()
    async with strict.serve() as url, box.open():
        for n in range(4):
            await box.put("old" if n % 2 else "air-0", n, no2=n, pm25=n + 0.5)
        await box.put("old", 4, no2=4.0)
        box.expected = {(entity_id("air-0"), *its) for _, *its in box.expected}
        async with box.forwarding(url, replace(FAST, history=mode), mappings=HERE, recipes=lambda device: old):
            await strict.until(lambda: box.settled)
            await strict.until(lambda: history(strict).keys() == box.expected)
    assert_exact(strict, box)
    assert [strict.current(entity_id("air-0"), name) for name in ("no2", "pm25")] == [4.0, 3.5]


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_held_of_one_that_is_owed_nothing_else_is_sent_by_its_recipe(box: Box, mode: Any) -> None:
    strict, settings = StrictBroker(), replace(FAST, history=mode)
    async with strict.serve() as url, box.open() as log:
        await box.put("air-9", 0, no2=0.5)
        columns = await log.read("city")
        assert columns is not None
        await log.held.hold("city", entity_id("air-9"), "air-9", columns, reason="later", at=NOW, next_try_at=NOW)
        await log.settle("city", columns.last)
        async with box.forwarding(url, settings, mappings=HERE, recipes=lambda device: tables("air-9")[device]):
            await strict.until(lambda: not log.held.pieces("city"))
    assert_exact(strict, box)


@pytest.mark.parametrize("mode", MODES)
async def test_of_two_points_that_bear_one_name_by_now_that_of_the_device_itself_is_current(
    box: Box, mode: Any
) -> None:
    """The readings of one that was replaced go by the name of the one in its place, and nobody waits for them."""
    strict = StrictBroker()
    async with strict.serve() as url, box.open() as log:
        for n in range(3):
            await box.put("old", n, no2=n)
            await box.put("air-0", n + 0.5, no2=n + 0.5)
        box.expected = {(entity_id("air-0"), *its) for _, *its in box.expected}
        await log.set_consumers([Consumer("city")], lambda known: Change({"air-0"}, {"city"}, {}, {"old": "air-0"}))
        async with box.forwarding(url, replace(FAST, history=mode), mappings=HERE):
            await strict.until(lambda: box.settled)
            await box.put("air-0", 9, no2=9.5)
            await strict.until(lambda: history(strict).keys() == box.expected and box.settled)
    assert_exact(strict, box)
    assert strict.current(entity_id("air-0"), "no2") == 9.5


async def test_one_that_is_refused_is_not_taken_for_all_that_there_is(box: Box) -> None:
    """A device that is gone is counted among those that are to be sent."""
    strict = StrictBroker()
    strict.behaviour.refuse = "air-9$"
    settings = replace(FAST, history="in-order")
    gone = tables("air-9").get
    async with strict.serve() as url, box.open() as log:
        for n in range(5):
            await box.put("air-9", n, no2=n)
        one = {"air-0": HERE["air-0"]}
        async with box.forwarding(url, settings, mappings=one, recipes=lambda device: gone(device, ())) as health:
            await strict.until(lambda: box.settled and health.dead)
            assert health.state == "ok"
            assert {piece.entity for piece in log.held.pieces("city")} == {entity_id("air-9")}
