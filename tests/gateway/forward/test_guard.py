"""After a start: what an earlier run may have sent, and what others sent meanwhile, is never overwritten by something older, and
nothing stands twice in the history. With the real log, on which an earlier run left readings that nobody got."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from tests.gateway.forward.scene import entity_id, measured, measured_only, wire
from tests.gateway.forward.test_two_lanes import FAST, Box, assert_exact
from tests.support.strict_broker import StrictBroker

TEMPORAL = replace(FAST, history="temporal", records=True)
IN_ORDER = replace(FAST, history="in-order")
LATEST = replace(FAST, history="latest-only")
CURRENT = "v1/entities"  # reads of the current state, no others
AIR = entity_id("air-0")


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


async def unsent(box: Box, strict: StrictBroker, url: str, *sets: tuple[float, dict[str, float]]) -> None:
    """A run of which nothing arrived."""
    strict.behaviour.fault = "503"
    async with box.running(url, TEMPORAL) as health:
        for at_s, values in sets:
            await box.put("air-0", at_s, **values)
        await strict.until(lambda: health.state == "down")
    strict.behaviour.fault = ""


async def others_sent(url: str, at_s: float, **values: float) -> None:
    """The broker's current values, from another way."""
    broker = NgsiLdBroker(NgsiLdSettings(url))
    assert (await broker.state([measured("air-0", at_s, **values)])).accepted
    await broker.close()


def vias(strict: StrictBroker) -> dict[tuple[str, float], list[str]]:
    """How each value came, by attribute and value."""
    found: dict[tuple[str, float], list[str]] = {}
    for value in strict.stored:
        if value.attribute in ("no2", "pm25"):
            found.setdefault((value.attribute, value.value), []).append(value.via)
    return found


@pytest.mark.parametrize("refusal", ["403", "405", "501", "404"])
async def test_where_reading_back_is_refused_an_earlier_run_never_becomes_current(box: Box, refusal: str) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        await unsent(box, strict, url, (50, {"no2": 50, "pm25": 50}))
        await others_sent(url, 100, no2=100)
        strict.behaviour.fault, strict.behaviour.path = refusal, CURRENT
        async with box.running(url, TEMPORAL):
            await strict.until(lambda: box.settled)
            await box.put("air-0", 60, pm25=60)
            await box.put("air-0", 101, no2=101)
            await strict.until(lambda: box.settled and strict.current(AIR, "no2") == 101)
    assert vias(strict) == {
        ("no2", 100): ["state"],
        ("no2", 50): ["temporal"],
        ("pm25", 50): ["temporal"],
        ("pm25", 60): ["state"],
        ("no2", 101): ["state"],
    }
    assert strict.backwards == []


@pytest.mark.parametrize("fault", ["500", "503", "401", "429", "html200", "reset"])
async def test_where_reading_back_fails_for_a_while_nothing_becomes_current_before_it_works(
    box: Box, fault: str
) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        await unsent(box, strict, url, (50, {"no2": 50}))
        await others_sent(url, 100, no2=100)
        async with box.running(url, TEMPORAL) as health:
            await strict.until(lambda: health.history == "temporal")
        # the probe of the next run may read; what follows may not
        strict.behaviour.fault, strict.behaviour.path = "", CURRENT
        box.expected.add((AIR, "no2", wire(100), 100))
        async with box.running(url, replace(TEMPORAL, linger_s=0.3)) as health:
            await strict.until(lambda: health.history == "temporal")
            strict.behaviour.fault = fault
            await box.put("air-0", 60, pm25=60)
            await strict.until(lambda: health.state in ("down", "login"))
            assert ("pm25", 60) not in vias(strict)
            strict.behaviour.fault = ""
            await strict.until(lambda: box.settled and health.state == "ok")
    assert vias(strict)["no2", 50] == ["temporal"]
    assert_exact(strict, box)


@pytest.mark.parametrize("settings", [TEMPORAL, IN_ORDER, LATEST], ids=["temporal", "in-order", "latest-only"])
async def test_the_guard_is_of_each_attribute(box: Box, settings: object) -> None:
    """Another way sent one attribute newer, one older; of the other nothing is known."""
    strict = StrictBroker()
    async with strict.serve() as url:
        await unsent(box, strict, url, (50, {"no2": 50, "pm25": 50}))
        await others_sent(url, 100, no2=100)
        await others_sent(url, 10, pm25=10)
        async with box.running(url, settings):  # type: ignore[arg-type]  # of parametrize
            await strict.until(lambda: box.settled)
            await strict.until(lambda: strict.current(AIR, "pm25") == 50)
    assert strict.current(AIR, "no2") == 100
    assert vias(strict)["pm25", 50] == ["state"]
    assert vias(strict).get(("no2", 50), []) == (["temporal"] if settings is TEMPORAL else [])
    assert strict.backwards == []


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("settings", [TEMPORAL, LATEST], ids=["temporal", "latest-only"])
async def test_a_value_of_now_does_not_take_an_older_attribute_along(
    box: Box, settings: object, readable: bool
) -> None:
    """What the earlier run left of one attribute goes in the same update as the first value of this run of another."""
    strict = StrictBroker()
    async with strict.serve() as url:
        await unsent(box, strict, url, (50, {"no2": 50}))
        await others_sent(url, 100, no2=100)
        strict.behaviour.fault, strict.behaviour.path = "" if readable else "403", CURRENT
        async with box.running(url, settings):  # type: ignore[arg-type]  # of parametrize
            await box.put("air-0", 200, pm25=200)
            await strict.until(lambda: box.settled and strict.current(AIR, "pm25") == 200)
    assert strict.current(AIR, "no2") == 100
    assert strict.backwards == []


@pytest.mark.parametrize("settings", [TEMPORAL, IN_ORDER], ids=["temporal", "in-order"])
async def test_a_kill_after_all_was_sent_repeats_nothing(box: Box, tmp_path: Path, settings: object) -> None:
    strict = StrictBroker()
    strict.behaviour.records_after_s = 0.2
    async with strict.serve() as url:
        strict.behaviour.fault = "503"
        async with box.running(url, settings) as health:  # type: ignore[arg-type]  # of parametrize
            for n in range(8):
                await box.put("air-0", n, no2=n, pm25=n)
                await box.put("air-1", n, no2=n)
            await strict.until(lambda: health.state == "down")
            left = await box.killed(tmp_path / "left")
            strict.behaviour.fault = ""
            await strict.until(lambda: box.settled)
        async with left.running(url, settings) as health:  # type: ignore[arg-type]  # of parametrize
            for n in (20, 21, 22):  # the past of both runs goes in one request
                await left.put("air-0", n, no2=n)
            await strict.until(lambda: left.settled)
            assert (health.dead, health.late) == (0, 0)
        await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(left.expected))
    assert_exact(strict, left)


async def test_a_kill_in_the_middle_of_an_entitys_past_repeats_only_what_was_not_taken(
    box: Box, tmp_path: Path
) -> None:
    """The history holds some attributes of some sets: what is left of each set goes, no more."""
    strict = StrictBroker()
    async with strict.serve() as url:
        strict.behaviour.fault = "503"
        async with box.running(url, TEMPORAL) as health:
            for n in range(5):
                await box.put("air-0", n, no2=n, pm25=n)
            await box.put("air-0", 9, no2=9)
            await strict.until(lambda: health.state == "down")
            left = await box.killed(tmp_path / "left")
        strict.behaviour.fault = ""
        broker = NgsiLdBroker(NgsiLdSettings(url))
        await broker.history([measured("air-0", 1, no2=1), measured("air-0", 2, no2=2, pm25=2)])
        await broker.close()
        async with left.running(url, TEMPORAL):
            await strict.until(lambda: left.settled)
    assert_exact(strict, left)


async def test_what_an_earlier_run_sent_shows_late_and_is_waited_for(box: Box, tmp_path: Path) -> None:
    """The broker records what became current only after a while: it is not asked before that while is over."""
    strict = StrictBroker()
    strict.behaviour.records_after_s = 0.5
    async with strict.serve() as url:
        async with box.running(url, replace(TEMPORAL, records_within_s=1.0)) as health:
            await strict.until(lambda: health.history == "temporal")
            for n in range(4):
                await box.put("air-0", n, no2=n)
                left = await box.killed(tmp_path / f"left-{n}")
                await strict.until(lambda n=n: strict.current(AIR, "no2") == n)
        async with left.running(url, replace(TEMPORAL, records_within_s=1.0)):
            await left.put("air-0", 10, no2=10)
            await strict.until(lambda: strict.current(AIR, "no2") == 10)
            assert not left.settled  # the present did not wait
            await strict.until(lambda: left.settled)
        await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(left.expected))
    assert_exact(strict, left)


@pytest.mark.parametrize("path", ["upsert", "temporal"])
async def test_an_answer_that_is_lost_is_asked_about_before_anything_of_that_entity_goes_again(
    box: Box, path: str
) -> None:
    """Taken, the answer lost, and a newer value there meanwhile: both stand once, the newer one is current."""
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        await strict.until(lambda: health.history == "temporal")
        await box.put("air-0", 10, no2=10)
        await strict.until(lambda: box.settled)
        strict.behaviour.fault, strict.behaviour.path, strict.behaviour.times = "hang_stored", path, 1
        await box.put("air-0", 5, no2=5)  # late: into the history
        await box.put("air-0", 11, no2=11, pm25=11)
        await strict.until(lambda: strict.behaviour.times == 0)
        await box.put("air-0", 12, no2=12)
        await strict.until(lambda: box.settled and health.state == "ok")
    assert_exact(strict, box)
    assert strict.current(AIR, "no2") == 12


async def test_what_is_in_doubt_when_the_box_stops_is_asked_about_by_the_next_run(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.records_after_s = 0.3
    async with strict.serve() as url:
        async with box.running(url, TEMPORAL) as health:
            await strict.until(lambda: health.history == "temporal")
            strict.behaviour.fault, strict.behaviour.path = "reset_stored", "upsert"
            await box.put("air-0", 1, no2=1, pm25=1)
            await strict.until(lambda: strict.current(AIR, "no2") == 1)
        strict.behaviour.fault = ""
        async with box.running(url, TEMPORAL):
            await box.put("air-0", 2, no2=2)
            await strict.until(lambda: box.settled)
        await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(box.expected))
    assert_exact(strict, box)


@pytest.mark.parametrize("held", ["state", "history"])
async def test_a_requeued_dead_letter_is_never_put_over_something_newer(box: Box, held: str) -> None:
    """It was refused; newer values came; it is tried again by hand, in the same run or in the next."""
    strict = StrictBroker()
    settings = IN_ORDER if held == "state" else TEMPORAL
    async with strict.serve() as url:
        async with box.running(url, settings) as health:
            await box.put("air-1", 1, no2=1)
            strict.behaviour.refuse = "air-0$"
            await box.put("air-0", 1, no2=1)
            await strict.until(lambda: health.dead + health.later == 1 and box.settled)
            strict.behaviour.refuse = ""
            box.clock.leap(40)
            await box.put("air-0", 2, no2=2)
            await strict.until(lambda: strict.current(AIR, "no2") == 2)
        for n in (3, 4):
            async with box.running(url, settings) as health:
                assert box.log is not None
                pieces = [piece.id for piece in box.log.held.pieces("city")]
                await box.log.held.requeue(pieces, datetime.now(UTC))
                await box.put("air-0", n, no2=n)
                await strict.until(lambda: box.settled and health.later == 0)
    found = Counter(measured_only(strict.temporal_history()))
    assert max(found.values()) == 1
    assert strict.current(AIR, "no2") == 4
    assert strict.backwards == []
    if held == "state":
        assert health.dead == 1  # it cannot go any more, and says why
        assert (AIR, "no2", wire(1), 1) not in found
    else:
        assert set(found) == box.expected
        assert health.dead == 0


async def test_a_value_that_comes_while_the_broker_is_asked_waits_for_the_answer_and_is_the_one_that_goes(
    box: Box,
) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        await unsent(box, strict, url, (50, {"no2": 50}))
        await others_sent(url, 55, no2=55)
        strict.behaviour.fault, strict.behaviour.path, strict.behaviour.delay_s = "slow", CURRENT, 0.3
        async with box.running(url, TEMPORAL):
            asked = len(strict.requests)
            await box.put("air-0", 51, no2=51)
            await strict.until(lambda: len(strict.requests) > asked)
            await box.put("air-0", 60, no2=60)
            await strict.until(lambda: box.settled)
            await asyncio.sleep(0)
    box.expected.add((AIR, "no2", wire(55), 55))
    assert strict.current(AIR, "no2") == 60
    assert_exact(strict, box)


@pytest.mark.parametrize("read", ["works", "fails at first", "is refused"])
async def test_while_an_answer_is_lost_the_history_does_not_overtake_the_question(box: Box, read: str) -> None:
    """A newer value takes the place of the one in doubt, before the broker was asked about it."""
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, replace(TEMPORAL, linger_s=0.4)) as health:
        await strict.until(lambda: health.history == "temporal")
        await box.put("air-0", 10, no2=10, pm25=10)
        await strict.until(lambda: box.settled)
        strict.behaviour.fault, strict.behaviour.path = "reset_stored", "upsert"
        await box.put("air-0", 11, no2=11, pm25=11)
        await strict.until(lambda: strict.current(AIR, "no2") == 11)
        await box.put("air-0", 12, no2=12)
        strict.behaviour.fault, strict.behaviour.path = {
            "works": ("", ""),
            "fails at first": ("500", CURRENT),
            "is refused": ("403", CURRENT),
        }[read]
        if read == "fails at first":
            await strict.until(lambda: health.reason.startswith("500"))
            strict.behaviour.fault = ""
        await strict.until(lambda: box.settled and strict.current(AIR, "no2") == 12)
    found = Counter(measured_only(strict.temporal_history()))
    assert set(found) == box.expected
    if read != "is refused":  # who lets nobody ask gets it again
        assert_exact(strict, box)


@pytest.mark.parametrize("refusal", ["500", "reset", "401"])
async def test_a_doubt_about_the_history_lasts_until_the_question_is_answered(box: Box, refusal: str) -> None:
    strict = StrictBroker()
    async with strict.serve() as url, box.running(url, TEMPORAL) as health:
        await box.put("air-0", 10, no2=10)
        await strict.until(lambda: box.settled)
        strict.behaviour.fault, strict.behaviour.path = "reset_stored", "temporal"
        await box.put("air-0", 5, no2=5)
        await strict.until(lambda: (AIR, "no2", wire(5), 5) in strict.history())
        strict.behaviour.fault = refusal
        asked = len(strict.requests)
        await strict.until(lambda: len(strict.requests) > asked + 2)
        strict.behaviour.fault = ""
        await strict.until(lambda: box.settled and health.state == "ok")
    assert_exact(strict, box)


@pytest.mark.parametrize("settings", [TEMPORAL, IN_ORDER], ids=["temporal", "in-order"])
async def test_what_is_known_of_a_broker_is_not_asked_again(box: Box, settings: object) -> None:
    strict = StrictBroker()

    def reads() -> int:
        return sum(method == "GET" for _, method, _, _ in strict.requests)

    async with strict.serve() as url, box.running(url, settings) as health:  # type: ignore[arg-type]  # of parametrize
        await box.put("air-0", 0, no2=0, pm25=0)
        await strict.until(lambda: box.settled and bool(health.history))
        asked = reads()
        for n in range(1, 6):
            await box.put("air-0", n, no2=n)
            await strict.until(lambda: box.settled)
        assert reads() == asked
        if settings is TEMPORAL:
            strict.behaviour.fault, strict.behaviour.path, strict.behaviour.times = "reset_stored", "temporal", 1
            await box.put("air-0", 2.5, no2=2.5)
            await strict.until(lambda: box.settled and health.state == "ok")
            asked = reads()
            for late_s in (0.5, 1.5, 3.5):
                await box.put("air-0", late_s, no2=late_s)
                await strict.until(lambda: box.settled)
            assert reads() == asked  # the doubt is over
    assert_exact(strict, box)


async def test_a_broker_that_was_replaced_gets_all_of_an_entity_with_its_first_value(box: Box) -> None:
    old, new = StrictBroker(), StrictBroker()
    async with old.serve() as url, box.running(url, TEMPORAL):
        await box.put("air-0", 1, no2=1, pm25=1)
        await old.until(lambda: box.settled)
    async with new.serve() as url, box.running(url, TEMPORAL):
        await box.put("air-0", 2, pm25=2)
        await new.until(lambda: box.settled and new.current(AIR, "pm25") == 2)
        assert new.current(AIR, "no2") == 1
        assert new.current(AIR, "location") is not None


@pytest.mark.parametrize("settings", [TEMPORAL, IN_ORDER], ids=["temporal", "in-order"])
async def test_a_time_of_the_far_future_at_the_broker_keeps_no_true_value_out(box: Box, settings: object) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        await others_sent(url, 86400.0 * 365 * 20, no2=99)
        async with box.running(url, settings) as health:  # type: ignore[arg-type]  # of parametrize
            for n in range(3):
                await box.put("air-0", n, no2=n)
                await strict.until(lambda: box.settled)
            await strict.until(lambda: strict.current(AIR, "no2") == 2)
            assert (health.dead, health.late) == (0, 0)
    assert box.expected <= set(measured_only(strict.history()))
