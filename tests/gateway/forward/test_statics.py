"""Static attributes go when the broker needs them, not with every update: first what decides it, by hand; then a box at work."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.forward.batches import json_bytes
from gateway.forward.broker import Outcome, ReadRefused
from gateway.forward.feeds import Feeds
from gateway.forward.statics import ALL_AGAIN_S, REST_S, Statics, statics_of
from gateway.harmonise.compile import Mapping as Table
from gateway.harmonise.dialects import ngsi_ld
from gateway.harmonise.entity import Attribute, Entity, harmonise
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.errors import BrokerUnavailable, LogError
from gateway.sdk.reading import ReadingSet
from gateway.sdk.testing import ManualClock
from tests.gateway.forward.scene import LOCATION, START, MemoryLog, entity_id, measured, slot, table, tables
from tests.gateway.forward.test_two_lanes import FAST, Box
from tests.gateway.forward.test_verdicts import Scripted
from tests.support.broker_profiles import Scorpio
from tests.support.strict_broker import StrictBroker

A, B, C = (entity_id(f"air-{n}") for n in range(1, 4))
SAMPLE = Path(__file__).parents[3] / "config" / "citygate.example.yaml"
DAY_S, HOUR_S = ALL_AGAIN_S, 3600.0
AT = {"no2": START}
WHOLE = {**AT, "location": None}


class Kept:
    """What the log keeps, by place and key; a value is bounded as in the log."""

    def __init__(self) -> None:
        self.state: dict[str, dict[str, bytes]] = {}
        self.notes = 0
        self.refuses = False

    def driver_state(self, device: str) -> Mapping[str, bytes]:
        return self.state.get(device, {})

    async def append(self, readings: ReadingSet) -> None:
        if self.refuses:
            raise LogError("database or disk is full")
        assert readings.state is not None
        assert all(len(value) <= 4096 for value in readings.state.values())
        self.state.setdefault(readings.device, {}).update(readings.state)
        self.notes += 1


class Run:
    """One run of the box: what it sends to a broker that lives on."""

    def __init__(self, kept: Kept | None = None, clock: ManualClock | None = None, **static: Any) -> None:
        self.kept = kept or Kept()
        self.clock = clock or ManualClock(START)
        self.broker = Scripted()
        of = {device: [with_static(device, **static)] for device in ("air-1", "air-2", "air-3")}
        self.statics = Statics("city", self.broker, statics_of(of), log=self.kept, clock=self.clock)

    async def goes(self, *ids: str, answer: Outcome | None = None) -> list[set[str]]:
        """Send a value of each; what each entity then carries, request by request, in one list."""
        before = len(self.broker.sent)
        if answer is not None:
            self.broker.answers.append(answer)
        await self.statics.state([measured(entity.rpartition(":")[2], no2=1) for entity in ids])
        return [set(entity.attributes) for _, entities in self.broker.sent[before:] for entity in entities]

    async def again(self, **static: Any) -> "Run":
        """The next run, after a stop."""
        await self.statics.note()
        return Run(self.kept, self.clock, **static)


def with_static(device: str, **static: Any) -> Table:
    made = table(device)
    return replace(made, static={**made.static, **{name: Attribute("property", v) for name, v in static.items()}})


FULL, LEAN = {"no2", "location"}, {"no2"}


def accepted(*ids: str, created: tuple[str, ...] = (), **more: Any) -> Outcome:
    return Outcome(accepted=frozenset(ids), created=frozenset(created), **more)


async def test_they_go_with_the_first_value_that_is_accepted_and_no_more() -> None:
    run = Run()
    assert await run.goes(A, B) == [FULL, FULL]
    assert await run.goes(A, B, C) == [LEAN, LEAN, FULL]
    assert await run.goes(A, B, C) == [LEAN, LEAN, LEAN]
    assert run.broker.sent[0][1][0].attributes["location"].value == LOCATION


@pytest.mark.parametrize(
    "lost",
    [
        Outcome(refused={A: "no"}, accepted=frozenset({B})),
        Outcome(later={A: "not now"}, accepted=frozenset({B})),
        Outcome(later={A: "lost"}, doubtful=frozenset({A}), accepted=frozenset({B})),
        Outcome(later={A: "lost"}, accepted=frozenset({B}), fault=BrokerUnavailable("gone")),
    ],
    ids=["refused", "later", "doubtful", "fault"],
)
async def test_what_was_not_accepted_was_not_sent(lost: Outcome) -> None:
    run = Run()
    assert await run.goes(A, B, answer=lost) == [FULL, FULL]
    assert await run.goes(A, B) == [FULL, LEAN]
    assert await run.goes(A, B, answer=lost) == [LEAN, LEAN]
    assert await run.goes(A, B) == [LEAN, LEAN]  # the broker has them from before


async def test_an_entity_without_any_is_left_as_it_is() -> None:
    run = Run()
    other = measured("other", no2=1)
    assert (await run.statics.state([other])).accepted == {other.id}
    assert await run.statics.read_back([other]) == {}
    await run.statics.state([other])
    assert [entities for _, entities in run.broker.sent] == [[other], [other]]
    assert statics_of({"air-1": [replace(table("air-1"), static={})]}) == {}


async def test_the_past_is_sent_as_it_is() -> None:
    run = Run()
    entity = measured("air-1", no2=1)
    await run.statics.history([entity])
    assert run.broker.sent == [("past", [entity])]


# who is told what by whom


def test_what_several_devices_tell_of_one_entity_is_told_together() -> None:
    first = replace(
        table("a", entity=A), static={"location": Attribute("geo", LOCATION), "name": Attribute("property", "x")}
    )
    other = replace(table("b", "o3", entity=A), static={"owner": Attribute("property", "y")})
    third = replace(table("c", "co", entity=A), static={})
    found = statics_of({"a": [first], "b": [other], "c": [third], "d": [table("air-2")]})
    assert {entity: set(of.attributes) for entity, of in found.items()} == {
        A: {"location", "name", "owner"},
        B: {"location"},
    }
    assert (found[A].id, found[A].type, found[A].context) == (A, first.entity_type, first.context)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_what_one_device_measures_another_does_not_tell_as_static(order: tuple[str, str]) -> None:
    moving = replace(table("a", entity=A), slots={"place": (slot("location"),)}, static={})
    tables_of = {"a": [moving], "b": [table("b", "o3", entity=A)]}
    assert statics_of({device: tables_of[device] for device in order}) == {}


async def test_what_is_measured_goes_before_what_is_static() -> None:
    run = Run()
    moved = replace(measured("air-1"), attributes={"location": Attribute("geo", {"type": "Point"}, "", START)})
    await run.statics.state([moved])
    assert run.broker.sent == [("state", [moved])]


# gone at the broker


async def test_what_is_not_found_at_the_broker_goes_again() -> None:
    run = Run()
    await run.goes(A, B, C)
    run.broker.holds = {A: AT, B: WHOLE}  # type: ignore[dict-item]  # as a real one says of what has no time
    found = await run.statics.read_back([measured(f"air-{n}") for n in (1, 2, 3)])
    assert found == run.broker.holds
    assert await run.goes(A, B, C) == [FULL, LEAN, FULL]
    run.broker.holds = {A: {"location": None}}  # type: ignore[dict-item]
    await run.statics.read_back([measured("air-1")])
    assert await run.goes(A) == [LEAN]


async def test_a_read_that_fails_tells_nothing() -> None:
    run = Run()
    await run.goes(A)
    for fault in (BrokerUnavailable("gone"), ReadRefused("403")):
        run.broker.fault = fault
        with pytest.raises(BrokerUnavailable):
            await run.statics.read_back([measured("air-1")])
    assert await run.goes(A) == [LEAN]


async def test_what_is_found_was_not_sent_by_us_for_that() -> None:
    """Its values may be others: only an acceptance counts."""
    run = Run()
    run.broker.holds = {A: WHOLE}  # type: ignore[dict-item]
    await run.statics.read_back([measured("air-1")])
    assert await run.goes(A) == [FULL]


async def test_an_entity_that_an_update_made_anew_gets_them_at_once_and_nothing_measured_again() -> None:
    run = Run()
    await run.goes(A, B)
    assert await run.goes(A, B, C, answer=accepted(A, B, C, created=(A, C))) == [LEAN, LEAN, FULL, {"location"}]
    assert [entity.id for entity in run.broker.sent[-1][1]] == [A]
    assert await run.goes(A, B, C) == [LEAN, LEAN, LEAN]


async def test_what_follows_at_once_and_is_not_accepted_goes_with_the_next_value() -> None:
    run = Run()
    await run.goes(A, B)
    gone = BrokerUnavailable("gone")
    run.broker.answers = [accepted(A, B, created=(A, B)), Outcome(accepted=frozenset({B}), later={A: "no"}, fault=gone)]
    outcome = await run.statics.state([measured("air-1", no2=1), measured("air-2", no2=1)])
    assert outcome == accepted(A, B, created=(A, B), fault=gone)
    assert await run.goes(A, B) == [FULL, LEAN]


async def test_nothing_follows_to_a_broker_that_failed_meanwhile() -> None:
    run = Run()
    await run.goes(A, B)
    fault = BrokerUnavailable("gone")
    assert await run.goes(A, B, answer=accepted(A, created=(A,), later={B: "gone"}, fault=fault)) == [LEAN, LEAN]
    assert await run.goes(A, B) == [FULL, LEAN]


async def test_a_broker_that_calls_every_update_a_creation_is_not_believed_again() -> None:
    run = Run()
    await run.goes(A, B)
    run.broker.answers = [accepted(A, B, created=(A, B)), accepted(A, B, created=(A, B))]
    await run.goes(A, B)
    for _ in range(3):
        assert await run.goes(A, B, answer=accepted(A, B, created=(A, B))) == [LEAN, LEAN]


# again


async def test_all_go_again_once_a_day() -> None:
    run = Run()
    await run.goes(A)
    run.clock.advance(DAY_S / 2)
    await run.goes(B)
    run.clock.advance(DAY_S / 2 - 1)
    assert await run.goes(A, B) == [LEAN, LEAN]
    run.clock.advance(1)
    assert await run.goes(A, B) == [FULL, FULL]
    assert await run.goes(A, B) == [LEAN, LEAN]
    run.clock.advance(DAY_S - 1)
    assert await run.goes(A, B) == [LEAN, LEAN]


async def test_all_go_again_after_a_fault_but_faults_close_together_are_one() -> None:
    run = Run()
    await run.goes(A, B)
    run.statics.failed()
    run.statics.failed()
    assert await run.goes(A) == [FULL]
    assert await run.goes(A, B) == [LEAN, FULL]
    run.clock.advance(REST_S - 1)
    run.statics.failed()
    assert await run.goes(A, B) == [LEAN, LEAN]
    run.clock.advance(1)
    assert await run.goes(A, B) == [FULL, FULL]
    run.clock.advance(2 * REST_S)
    assert await run.goes(A, B) == [LEAN, LEAN]


async def test_an_outage_of_hours_is_one_fault() -> None:
    run = Run()
    await run.goes(A)
    for _ in range(20):
        run.clock.advance(0.7 * REST_S)  # tried more often than that
        run.statics.failed()
        assert await run.goes(A, answer=Outcome(later={A: "gone"}, fault=BrokerUnavailable("gone"))) == [FULL]
    assert await run.goes(A) == [FULL]
    run.clock.advance(REST_S)
    assert await run.goes(A) == [LEAN]


# over restarts


async def test_the_next_run_sends_what_is_new_or_has_changed() -> None:
    run = Run()
    await run.goes(A, B)
    next_run = await run.again()
    assert await next_run.goes(A, B, C) == [LEAN, LEAN, FULL]
    changed = await next_run.again(name="x")
    assert await changed.goes(A, B) == [{*FULL, "name"}] * 2
    assert await (await changed.again(name="x")).goes(A) == [LEAN]
    assert await (await changed.again(name="y")).goes(A) == [{*FULL, "name"}]


async def test_what_changed_is_not_known_even_after_a_kill_and_the_old_config_again() -> None:
    run = Run()
    await run.goes(A, B)
    changed = await run.again(name="x")
    await changed.goes(A)  # and is killed
    assert await Run(run.kept, run.clock).goes(A) == [FULL]


@pytest.mark.parametrize("what", ["id", "type", "context", "value", "unit"])
def test_all_that_matters_counts_as_a_change(what: str) -> None:
    made = table("air-1")
    unit = {"location": Attribute("geo", LOCATION, "MTR")}
    value = {"location": Attribute("geo", {**LOCATION, "coordinates": [9.159, 45.504]})}
    changed = {
        "id": replace(made, entity_id=B),
        "type": replace(made, entity_type="Device"),
        "context": replace(made, context="https://city.example/context.jsonld"),
        "value": replace(made, static=value),
        "unit": replace(made, static=unit),
    }[what]

    def kept(of: Table) -> bytes:
        return next(
            iter(
                Statics(
                    "city", Scripted(), statics_of({"air-1": [of]}), log=Kept(), clock=ManualClock()
                )._digest.values()
            )
        )

    assert kept(made) == kept(table("air-1"))
    assert kept(made) != kept(changed)


async def test_the_day_goes_on_over_restarts() -> None:
    run = Run()
    await run.goes(A)
    run.clock.advance(DAY_S - 100)
    run = await run.again()
    assert await run.goes(A) == [LEAN]
    run.clock.advance(99)
    assert await run.goes(A) == [LEAN]
    run.clock.advance(1)
    assert await run.goes(A) == [FULL]
    await run.statics.note()
    run.clock.advance(DAY_S)
    assert await Run(run.kept, run.clock).goes(A) == [FULL]


async def test_another_city_under_the_name_gets_all_of_them() -> None:
    kept, clock = Kept(), ManualClock(START)
    carried = []
    for city in ("one", "one", "two", "two", "one"):
        run = Run(kept, clock)
        of = statics_of({"air-1": [table("air-1")]})
        run.statics = Statics("city", run.broker, of, log=kept, clock=clock, city=city)
        carried += await run.goes(A)
        await run.statics.note()
    assert carried == [FULL, LEAN, FULL, LEAN, FULL]


async def test_a_clock_that_is_wrong_at_the_start_is_not_asked_before_it_is_needed() -> None:
    run = Run()
    await run.goes(A, B)
    await run.statics.note()
    run.clock.step(-10 * DAY_S)
    run = Run(run.kept, run.clock)
    await run.statics.note()
    run.clock.step(10 * DAY_S)
    run.broker.holds = {A: WHOLE}  # type: ignore[dict-item]
    await run.statics.read_back([measured("air-1"), measured("air-2")])
    assert await run.goes(A, B) == [LEAN, FULL]


async def test_a_run_that_can_note_nothing_goes_on() -> None:
    run = Run()
    await run.goes(A)
    run = await run.again(name="x")
    run.kept.refuses = True
    assert await run.goes(A) == [{*FULL, "name"}]
    run.kept.refuses = False
    run = await run.again(name="x")
    assert await run.goes(A) == [LEAN]


async def test_a_clock_that_was_set_back_knows_nothing() -> None:
    run = Run()
    await run.goes(A)
    await run.statics.note()
    run.clock.step(-1)
    assert await Run(run.kept, run.clock).goes(A) == [FULL]


@pytest.mark.parametrize("stamp", [b"", b"1234567", b"123456789", b"\xff" * 8])
async def test_a_note_that_makes_no_sense_is_none(stamp: bytes) -> None:
    run = Run()
    await run.goes(A)
    await run.statics.note()
    run.kept.state["broker city"]["statics"] = stamp
    assert await Run(run.kept, run.clock).goes(A) == [FULL]


async def test_the_card_rests_while_nothing_changes() -> None:
    run = Run()
    await run.statics.note()
    assert run.kept.notes == 0
    await run.goes(A)
    for _ in range(3):
        run.clock.advance(HOUR_S)
        await run.statics.note()
        await run.goes(A)
    assert run.kept.notes == 1
    run = await run.again()
    await run.statics.note()
    assert await run.goes(A) == [LEAN]
    await run.statics.note()
    assert run.kept.notes == 1
    run.kept.refuses = True
    await run.goes(B)
    with pytest.raises(LogError):
        await run.statics.note()
    run.kept.refuses = False
    await run.statics.note()
    assert run.kept.notes == 2


async def test_a_thousand_entities_and_more_are_kept_in_values_of_a_bounded_size() -> None:
    kept, clock = Kept(), ManualClock(START)
    ids = [entity_id(f"n{n}") for n in range(1100)]

    async def sent(count: int) -> int:
        """How many of so many entities go whole."""
        of = {f"n{n}": [table(f"n{n}")] for n in range(count)}
        broker = Scripted()
        statics = Statics("city", broker, statics_of(of), log=kept, clock=clock)
        await statics.state([measured(f"n{n}", no2=1) for n in range(count)])
        await statics.note()
        return sum("location" in entity.attributes for entity in broker.sent[0][1])

    assert [await sent(len(ids)), await sent(len(ids)), await sent(500), await sent(500)] == [1100, 0, 0, 0]
    assert sum(map(len, kept.state["broker city"].values())) == 8 + 500 * 4
    assert await sent(len(ids)) == 600


# a box at work

MODES = {
    "temporal": replace(FAST, history="temporal", records=True),
    "in-order": replace(FAST, history="in-order"),
    "latest-only": replace(FAST, history="latest-only"),
    "auto": FAST,
}
every_mode = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
AIR = entity_id("air-0")


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


class Wire(StrictBroker):
    """Tells what went over it."""

    def upserts(self) -> Iterator[dict[str, Any]]:
        """Entities of the state, one after the other."""
        for body in self.bodies:
            document = json.loads(body)
            if isinstance(document, list):
                yield from document

    def carried(self, name: str = "location") -> dict[str, int]:
        """How often it went, by device."""
        return Counter(item["id"].rpartition(":")[2] for item in self.upserts() if name in item)

    def went(self) -> int:
        """Updates that went."""
        return sum(1 for _ in self.upserts())


async def value(box: Box, strict: StrictBroker, device: str, at_s: float) -> None:
    """A value, as the broker's current one and settled."""
    await box.put(device, at_s, no2=at_s)
    await strict.until(lambda: strict.current(entity_id(device), "no2") == at_s and box.settled)


@every_mode
async def test_every_value_goes_and_the_place_once(box: Box, settings: Any) -> None:
    strict = Wire()
    async with strict.serve() as url:
        async with box.running(url, settings):
            for n in range(1, 6):
                for device in ("air-0", "air-1"):
                    await value(box, strict, device, n)
        async with box.running(url, settings):
            await value(box, strict, "air-0", 10)
    assert strict.carried() == {"air-0": 1, "air-1": 1}
    assert strict.carried("dateObserved") == {"air-0": 6, "air-1": 5}
    assert strict.current(AIR, "location") == LOCATION
    assert strict.refusals == []


@every_mode
async def test_another_config_sends_what_is_other(box: Box, settings: Any) -> None:
    strict = Wire()
    moved = dict(tables("air-0", "air-1"))
    other = {**LOCATION, "coordinates": [9.2, 45.6]}
    moved["air-1"] = (replace(moved["air-1"][0], static={"location": Attribute("geo", other)}),)
    async with strict.serve() as url:
        for n, mappings in enumerate([tables("air-0", "air-1"), moved, moved], 1):
            async with box.running(url, settings, mappings=mappings):
                await value(box, strict, "air-0", n)
                await value(box, strict, "air-1", n)
    assert strict.carried() == {"air-0": 1, "air-1": 2}
    assert strict.current(entity_id("air-1"), "location") == other


@every_mode
async def test_who_takes_the_entity_away_finds_it_whole_again(box: Box, settings: Any) -> None:
    strict = Wire()
    async with strict.serve() as url:
        async with box.running(url, settings):
            await value(box, strict, "air-0", 1)
            del strict.tenants[""].entities[AIR]
            await value(box, strict, "air-0", 2)
            await strict.until(lambda: strict.current(AIR, "location") == LOCATION)
            await value(box, strict, "air-0", 3)
        assert strict.carried() == {"air-0": 2}
        del strict.tenants[""].entities[AIR]
        async with box.running(url, settings):
            await value(box, strict, "air-0", 4)
        assert strict.current(AIR, "location") == LOCATION
        del strict.tenants[""].entities[AIR]["location"]
        async with box.running(url, settings):
            await value(box, strict, "air-0", 5)
    assert strict.current(AIR, "location") == LOCATION
    assert strict.carried() == {"air-0": 4}
    assert Counter(of for _, name, _, of in strict.history() if name == "no2") == Counter(range(1, 6))


@every_mode
async def test_after_an_outage_all_go_again(box: Box, settings: Any) -> None:
    """It came back from a backup of the day before, where there was no place yet."""
    strict = Wire()
    async with strict.serve() as url, box.running(url, settings) as health:
        await value(box, strict, "air-0", 1)
        await value(box, strict, "air-1", 1)
        strict.behaviour.fault = "503"
        await box.put("air-1", 2, no2=2)
        await strict.until(lambda: health.state == "down" and not health.reason.startswith("history"))
        for device in ("air-0", "air-1"):
            del strict.tenants[""].entities[entity_id(device)]["location"]
        strict.behaviour.fault = ""
        await value(box, strict, "air-1", 3)
        await value(box, strict, "air-0", 3)
        assert strict.current(AIR, "location") == LOCATION
        assert strict.current(entity_id("air-1"), "location") == LOCATION


@every_mode
async def test_what_the_broker_refused_is_not_there(box: Box, settings: Any) -> None:
    strict = Wire()
    strict.behaviour.refuse = "air-1$"
    async with strict.serve() as url, box.running(url, settings) as health:
        await box.put("air-1", 1, no2=1)
        await value(box, strict, "air-0", 1)
        await strict.until(lambda: health.refused > 0)
        strict.behaviour.refuse = ""
        box.clock.leap(60)
        await value(box, strict, "air-1", 2)
        await value(box, strict, "air-0", 2)
    assert strict.current(entity_id("air-1"), "location") == LOCATION
    assert strict.carried()["air-0"] == 1


@pytest.mark.parametrize("spelling", ["spec", "orion-ld-207"])
async def test_new_and_old_together_show_what_was_taken_away(box: Box, spelling: str) -> None:
    strict = Wire()
    strict.behaviour.spelling = spelling
    both = [(device, n) for n in (2, 3) for device in ("air-0", "air-1")]
    async with strict.serve() as url, box.running(url, replace(MODES["in-order"], linger_s=0.2)):
        await value(box, strict, "air-0", 1)
        await value(box, strict, "air-1", 1)
        del strict.tenants[""].entities[AIR]
        for device, n in both[:2]:
            await box.put(device, n, no2=n)
        await strict.until(lambda: box.settled and strict.current(AIR, "location") == LOCATION)
        for device, n in both[2:]:
            await value(box, strict, device, n)
    assert strict.carried()["air-0"] == 2
    assert strict.carried()["air-1"] <= 2
    assert strict.went() <= 6 + 2


async def test_a_killed_box_sends_them_once_more_and_one_that_noted_them_does_not(box: Box, tmp_path: Path) -> None:
    strict = Wire()
    settings = MODES["temporal"]
    async with strict.serve() as url:
        async with box.running(url, settings):
            await value(box, strict, "air-0", 1)
            early = await box.killed(tmp_path / "early")
            box.clock.leap(HOUR_S)
            await value(box, strict, "air-0", 2)
            await box.put("air-0", 3, no2=3)
            assert box.log is not None
            kept = box.log
            await strict.until(lambda: box.settled and "statics" in kept.driver_state("broker city"))
            late = await box.killed(tmp_path / "late")
        for left, times in ((late, 1), (early, 2)):
            async with left.running(url, settings):
                await value(left, strict, "air-0", 10 + times)
            assert strict.carried() == {"air-0": times}


async def test_at_scorpio_a_value_is_a_row_of_its_own_and_of_its_time(box: Box) -> None:
    """Its history takes a row of each attribute that it is sent."""
    strict = StrictBroker(profile=Scorpio(tenant_s=0.0, batch_s=None))
    static = {
        "location": Attribute("geo", LOCATION),
        "name": Attribute("property", "x"),
        "address": Attribute("property", {}),
    }
    mappings = {"air-0": (replace(table("air-0"), static=static),)}
    async with strict.serve() as url:
        async with box.running(url, MODES["temporal"], mappings=mappings):
            for n in range(1, 9):
                await value(box, strict, "air-0", n)
        await strict.until(lambda: sum(strict.points().values()) >= 8 * 2 + 3)
    rows = Counter(name for _, name, _, _ in strict.points().elements())
    assert rows == {"no2": 8, "dateObserved": 8, "location": 1, "name": 1, "address": 1}


async def test_an_update_of_the_sample_config_is_a_third_shorter() -> None:
    plan = make_plan(SAMPLE, Registry())
    mappings = plan.brokers["milano"].mappings
    feeds = Feeds("milano", MemoryLog(), mappings)

    def size(entity: Entity) -> int:
        return len(json_bytes(ngsi_ld(entity)))

    whole = lean = 0
    for device, of in mappings.items():
        for mapping in of:
            readings = dict.fromkeys(mapping.slots, (20.125, round(START.timestamp() * 1e6), 1))
            feed = feeds.of(mapping.entity_id, device)
            assert feed is not None
            whole += size(harmonise(mapping, readings))
            lean += size(feed.make(readings))
    assert lean < 0.65 * whole
