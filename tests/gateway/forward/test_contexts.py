"""A context that a broker cannot fetch: what is sent with it waits, nothing else does; nothing is lost, doubled or blamed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.forward.auth import Way
from gateway.forward.broker import ContextMissing, Outcome, Streak
from gateway.forward.contexts import Contexts
from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth, Health
from gateway.models.refresh import served_at
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.testing import ManualClock
from tests.gateway.forward.raw import Raw, as_json, http, problem
from tests.gateway.forward.scene import AIR, MemoryLog, RealClock, measured, measured_only, tables
from tests.support.broker_contexts import JSON_LD
from tests.support.broker_profiles import Profile, Scorpio, Stellio
from tests.support.strict_broker import Behaviour, StrictBroker

WEATHER = "https://raw.githubusercontent.com/smart-data-models/dataModel.Weather/master/context.jsonld"
AIR_AT, WEATHER_AT = served_at(AIR), served_at(WEATHER)
LINGER_S = 0.02
FAST = ForwardSettings(
    linger_s=LINGER_S,
    gather_s=0.05,
    held_every_s=0.05,
    records_within_s=0.3,
    look_s=0.05,
    learn_s=1.0,
    unseen_s=5.0,
    retry_first_s=0.2,
    retry_quick_s=0.2,
    retry_cap_s=0.2,
)
AIRS, MASTS = ("air-1", "air-2"), ("met-1", "met-2")


def mappings() -> dict[str, Any]:
    """Two devices whose entities need one context, and two that need another."""
    masts = {name: tuple(replace(table, context=WEATHER) for table in of) for name, of in tables(*MASTS).items()}
    return {**tables(*AIRS), **masts}


class NoHistory(Stellio):
    """Everything goes as state, in order."""

    def behaviour(self) -> Behaviour:
        return replace(super().behaviour(), temporal=False, records=False)


PRODUCTS: dict[str, Callable[[], Profile]] = {
    "scorpio": lambda: Scorpio(silence_s=0.02, look_s=0.05, tenant_s=0.0, cache_s=0.0, batch_s=None),
    "stellio": lambda: Stellio(cache_s=0.0),
    "no history": lambda: NoHistory(cache_s=0.0),
}


class City:
    """A broker, a box, and what its devices measured."""

    def __init__(self, profile: Profile, settings: ForwardSettings = FAST, silent: str = "") -> None:
        self.mappings = mappings()
        if silent:  # a device that says nothing meanwhile, with a context of its own
            self.mappings |= {"box": tuple(replace(table, context=silent) for table in tables("box")["box"])}
        self.strict, self.log, self.settings = StrictBroker(profile=profile), MemoryLog(), settings
        self.contexts = profile.contexts
        self.health = BrokerHealth()
        self.served: list[tuple[str, str, str, Any]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.strict.serve() as url:
            broker = NgsiLdBroker(NgsiLdSettings(url=url), Way())
            forwarder = Forwarder(
                "city",
                broker,
                self.mappings,
                log=self.log,
                health=self.health,
                clock=RealClock(),
                settings=self.settings,
            )
            task = asyncio.create_task(forwarder.run())
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def put(self, at_s: int, *devices: str) -> None:
        for device in devices:
            self.served += self.log.put(device, at_s, no2=float(at_s))

    def there(self, *devices: str) -> bool:
        """Whether the newest value of these is current."""
        newest = {entity: value for entity, _, _, value in self.served}
        return all(
            self.strict.current(entity, "no2") == value
            for entity, value in newest.items()
            if entity.rpartition(":")[2] in devices
        )

    @property
    def refused_for_contexts(self) -> int:
        return sum("503" in told for told in self.strict.refusals)

    def whole(self) -> bool:
        """The history has every point once."""
        if self.strict.behaviour.records and self.strict.behaviour.temporal:
            points = self.strict.temporal_history()
        else:
            points = self.strict.history()
        return sorted(measured_only(points), key=str) == sorted(self.served, key=str)


@pytest.mark.parametrize("product", PRODUCTS)
async def test_a_missing_context_is_one_missing_context(product: str) -> None:
    city = City(PRODUCTS[product]())
    city.contexts.away(WEATHER_AT)
    async with city.running():
        for at_s in range(5):
            city.put(at_s, *AIRS, *MASTS)
            await city.strict.until(lambda: city.there(*AIRS))
        await city.strict.until(lambda: bool(city.health.contexts) and city.health.later > 0)
        assert city.health.state == "ok"
        assert city.health.dead == 0
        assert city.health.refusing == []
        [row] = city.health.contexts
        assert (row["context"], row["entities"]) == (WEATHER_AT, 2)
        assert "contexts:" in row["remedy"]
        assert not any(city.strict.state(entity) for entity, *_ in city.served if "met" in entity)
        await city.strict.until(lambda: city.log.settled)  # it waits on the card, not in the log

        city.contexts.serve(WEATHER_AT)
        await city.strict.until(lambda: city.there(*AIRS, *MASTS) and city.whole())
        await city.strict.until(lambda: city.health.contexts == [] and city.health.later == 0)
        city.put(9, *AIRS, *MASTS)
        await city.strict.until(city.whole)
    assert city.strict.backwards == []
    assert city.health.dead == 0


@pytest.mark.parametrize("product", PRODUCTS)
async def test_it_is_asked_for_by_one_small_read_less_and_less_often(product: str) -> None:
    city = City(PRODUCTS[product](), replace(FAST, retry_first_s=0.5, retry_quick_s=0.5, retry_cap_s=0.5))
    city.contexts.away(WEATHER_AT)
    async with city.running():
        city.put(0, *AIRS, *MASTS)
        await city.strict.until(lambda: bool(city.health.contexts) and city.there(*AIRS))
        await asyncio.sleep(0.1)
        asked, bodies = city.refused_for_contexts, len(city.strict.bodies)
        for at_s in range(1, 21):
            city.put(at_s, *MASTS)
            await asyncio.sleep(0.02)
        assert city.refused_for_contexts - asked <= 8  # 0.4 s by waits of 0 to 0.5 s, not 20 sets of 2 entities
        assert len(city.strict.bodies) == bodies  # nothing is sent in vain
        city.contexts.serve(WEATHER_AT)
        await city.strict.until(city.whole)
    assert city.strict.backwards == []


@pytest.mark.parametrize("product", PRODUCTS)
async def test_without_any_context_the_broker_is_as_if_it_were_away(product: str) -> None:
    city = City(PRODUCTS[product]())
    for address in (AIR_AT, WEATHER_AT):
        city.contexts.away(address)
    async with city.running():
        for at_s in range(5):
            city.put(at_s, *AIRS, *MASTS)
        await city.strict.until(lambda: city.health.state == "down" and len(city.health.contexts) == 2)
        assert "cannot fetch" in city.health.reason
        assert "contexts:" in city.health.remedy
        held = len(city.log.held.table)
        for at_s in range(5, 9):
            city.put(at_s, *AIRS, *MASTS)
            await asyncio.sleep(0.05)
        assert len(city.log.held.table) == held  # the log keeps it
        assert city.health.dead == 0
        city.contexts.serve(AIR_AT)
        await city.strict.until(lambda: city.there(*AIRS) and city.health.state == "ok")
        city.contexts.serve(WEATHER_AT)
        await city.strict.until(city.whole)
    assert city.strict.backwards == []


@pytest.mark.parametrize("product", PRODUCTS)
async def test_a_context_that_is_seldom_used_does_not_hide_that_none_is_there(product: str) -> None:
    device = AIR.replace("Environment", "Device")
    city = City(PRODUCTS[product](), silent=device)
    city.contexts.offline = True
    for address in (AIR_AT, WEATHER_AT, served_at(device)):
        city.contexts.away(address)
    async with city.running():
        city.put(0, *AIRS, *MASTS)
        await city.strict.until(lambda: city.health.state == "down" and len(city.health.contexts) == 3)
        held = len(city.log.held.table)
        for at_s in range(1, 5):
            city.put(at_s, *AIRS, *MASTS)
            await asyncio.sleep(0.05)
        assert len(city.log.held.table) == held
        for address in (AIR_AT, WEATHER_AT):
            city.contexts.serve(address)
        city.contexts.offline = False
        await city.strict.until(city.whole)
        city.contexts.serve(served_at(device))
        await city.strict.until(lambda: city.health.contexts == [] and city.health.state == "ok")
    assert city.strict.backwards == []


@pytest.mark.parametrize("product", PRODUCTS)
async def test_one_that_goes_and_comes_does_not_lead_the_state_back(product: str) -> None:
    city = City(PRODUCTS[product]())
    async with city.running():
        for at_s in range(12):
            if at_s % 4 == 2:
                city.contexts.away(WEATHER_AT)
            if at_s % 4 == 0:
                city.contexts.serve(WEATHER_AT)
            city.put(at_s, *AIRS, *MASTS)
            await asyncio.sleep(0.06)
        city.contexts.serve(WEATHER_AT)
        await city.strict.until(city.whole)
        assert city.there(*AIRS, *MASTS)
    assert city.strict.backwards == []
    assert city.health.dead == 0


@pytest.mark.parametrize("product", ["scorpio", "stellio"])
async def test_the_past_of_an_earlier_run_waits_for_its_context_alone(product: str) -> None:
    """What the history holds is asked before the past goes: that read needs the context too."""
    city = City(PRODUCTS[product]())
    city.contexts.away(WEATHER_AT)
    for at_s in range(4):
        city.put(at_s, *MASTS, *AIRS)
    city.log.first_seq = 1 << 40
    async with city.running():
        expected = {item for item in city.served if "air" in item[0]}
        await city.strict.until(lambda: expected <= city.strict.points().keys())
        assert city.health.state == "ok"
        city.contexts.serve(WEATHER_AT)
        await city.strict.until(city.whole)
    assert city.strict.backwards == []


# each kind of request by itself

MISSING = problem("LdContextNotAvailable", 503)
ENTITIES = [measured("air-1", no2=1.0), measured("air-2", no2=2.0)]
IDS = [entity.id for entity in ENTITIES]
MAST = replace(measured("met-1", no2=3.0), context=WEATHER)


def listed(*ids: str | None, key: str = "entityId", error: str = "error") -> list[dict[str, Any]]:
    return [{key: one, error: MISSING} for one in ids]


NOT_THERE = {
    "whole": as_json(503, MISSING),
    "gateway time-out": as_json(504, problem("LdContextNotAvailable", 504)),
    "bare name": as_json(503, {"type": "LdContextNotAvailable", "title": "no context"}),
    "each of 207": as_json(207, {"success": [], "errors": listed(*IDS)}),
    "each, Scorpio's": as_json(503, {"errors": listed(*IDS, key="id", error="ProblemDetails")}),
    "each without a name": as_json(503, {"errors": listed(None, None, key="id", error="ProblemDetails")}),
}


async def kinds(broker: NgsiLdBroker) -> AsyncIterator[tuple[str, Outcome | BrokerUnavailable | None]]:
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "state": lambda: broker.state(ENTITIES),
        "history": lambda: broker.history(ENTITIES[:1]),
        "read back": lambda: broker.read_back(ENTITIES),
        "history back": lambda: broker.history_back(ENTITIES),
        "history newest": lambda: broker.history_newest(ENTITIES),
    }
    for name, call in calls.items():
        try:
            found = await call()
        except BrokerUnavailable as fault:
            yield name, fault
        else:
            yield name, found if isinstance(found, Outcome) else None


@contextlib.asynccontextmanager
async def broker_at(url: str, *used: str) -> AsyncIterator[NgsiLdBroker]:
    broker = NgsiLdBroker(NgsiLdSettings(url))
    broker.traffic.contexts.used = dict.fromkeys(used or (AIR, WEATHER), 1)
    broker._batches.greeted = True
    yield broker
    await broker.close()


@pytest.mark.parametrize("answer", NOT_THERE)
async def test_the_state_waits_for_its_context_and_is_not_asked_again(answer: str) -> None:
    raw = Raw(NOT_THERE[answer])
    async with raw.serve() as url, broker_at(url) as broker:
        for _ in range(3):
            outcome = await broker.state(ENTITIES)
            assert set(outcome.later) == outcome.absent == set(IDS)
            assert (outcome.fault, outcome.refused, outcome.doubtful) == (None, {}, frozenset())
        assert len(raw.requests) == 1


async def test_no_kind_of_request_is_made_while_it_is_missing() -> None:
    raw = Raw(as_json(503, MISSING))
    async with raw.serve() as url, broker_at(url) as broker:
        async for name, found in kinds(broker):
            if name in ("state", "history"):
                assert isinstance(found, Outcome)
                assert found.absent == set(found.later)
                assert found.fault is None
            elif name == "read back":
                assert found is None  # told by the state, which is not sent
            else:
                assert isinstance(found, ContextMissing)
                assert "contexts:" in found.remedy
        assert len(raw.requests) == 1
        assert broker.traffic.contexts.away(AIR)
        assert not broker.traffic.contexts.away(WEATHER)


@pytest.mark.parametrize("kind", ["history", "read back", "history back", "history newest"])
async def test_each_kind_by_itself_marks_the_context(kind: str) -> None:
    raw = Raw(as_json(503, MISSING))
    async with raw.serve() as url, broker_at(url) as broker:
        broker._contexts.used = {AIR: 1, WEATHER: 1}
        with contextlib.suppress(ContextMissing):
            match kind:
                case "history":
                    await broker.history(ENTITIES[:1])
                case "read back":
                    await broker.read_back(ENTITIES)
                case "history back":
                    await broker.history_back(ENTITIES)
                case _:
                    await broker.history_newest(ENTITIES)
        assert broker.traffic.contexts.away(AIR)
        assert len(raw.requests) == 1


async def test_an_entity_whose_context_alone_is_missing_in_a_207_does_not_take_others_with_it() -> None:
    mixed = {"success": [IDS[0]], "errors": listed(IDS[1])}
    async with Raw(as_json(207, mixed)).serve() as url, broker_at(url) as broker:
        outcome = await broker.state(ENTITIES)
    assert outcome.accepted == {IDS[0]}
    assert set(outcome.later) == outcome.absent == {IDS[1]}


async def test_other_errors_beside_it_keep_their_verdict() -> None:
    errors = [*listed(IDS[1]), {"entityId": IDS[0], "error": problem()}]
    async with Raw(as_json(207, {"success": [], "errors": errors})).serve() as url, broker_at(url) as broker:
        outcome = await broker.state(ENTITIES)
    assert set(outcome.refused) == {IDS[0]}
    assert outcome.absent == {IDS[1]}


async def test_other_contexts_go_on_in_the_same_call() -> None:
    strict = StrictBroker(profile=Stellio(cache_s=0.0))
    strict.profile.contexts.away(AIR_AT)
    many = [measured(f"air-{n}", no2=1.0) for n in range(60)]
    async with strict.serve() as url, broker_at(url) as broker:
        outcome = await broker.state([*many, MAST])
        assert outcome.accepted == {MAST.id}
        assert len(outcome.absent) == 60
        assert len(strict.requests) == 2  # of the larger ones but the first
        assert (await broker.state([MAST])).accepted == {MAST.id}


async def test_what_could_not_be_read_back_is_not_sent_before_it_was() -> None:
    """Else an older value could replace a newer one: the context came back between the two."""
    strict = StrictBroker(profile=Scorpio(cache_s=0.0, tenant_s=0.0, batch_s=None))
    strict.profile.contexts.away(AIR_AT)
    async with strict.serve() as url, broker_at(url) as broker:
        assert await broker.read_back(ENTITIES) == {}
        strict.profile.contexts.serve(AIR_AT)
        broker.traffic.contexts.found(AIR)
        outcome = await broker.state(ENTITIES)
        assert outcome.absent == set(IDS)
        assert strict.bodies == []
        assert await broker.read_back(ENTITIES) == {}
        assert (await broker.state(ENTITIES)).accepted == set(IDS)


async def test_without_any_context_every_kind_is_a_fault_of_the_broker() -> None:
    raw = Raw(as_json(503, MISSING))
    async with raw.serve() as url, broker_at(url, AIR) as broker:
        async for name, found in kinds(broker):
            fault = found.fault if isinstance(found, Outcome) else found
            assert isinstance(fault, BrokerUnavailable), name
            assert not isinstance(fault, ContextMissing), name
            assert AIR_AT in str(fault)
            assert "contexts:" in fault.remedy


async def test_a_broker_without_the_core_context_is_told_as_such() -> None:
    async with Raw(as_json(503, MISSING)).serve() as url, broker_at(url) as broker:
        with pytest.raises(BrokerUnavailable, match="core context") as caught:
            await broker.probe()
        assert "application/ld+json" in caught.value.remedy
        assert not broker.traffic.contexts.away(AIR)


@pytest.mark.parametrize(
    ("answer", "again", "away"),
    [
        (as_json(200, []), True, False),
        (as_json(503, MISSING), False, True),
        (http(403), True, False),  # cannot be told: the next request tells
        (as_json(404, problem("NonexistentTenant", 404)), True, False),
    ],
)
async def test_one_read_tells_whether_it_is_there_again(answer: bytes, again: bool, away: bool) -> None:
    raw = Raw(as_json(503, MISSING))
    async with raw.serve() as url, broker_at(url, AIR) as broker:
        contexts = broker.traffic.contexts
        contexts.now_s = (clock := ManualClock()).monotonic_s
        await broker.state(ENTITIES)
        assert not await contexts.look()  # not yet
        assert len(raw.requests) == 1
        raw.answer = answer
        clock.advance(61)
        assert await contexts.look() == again
        assert contexts.away(AIR) == away
        assert not await contexts.look()
        assert [what.partition("?")[0] for what in raw.requests] == [
            "POST /ngsi-ld/v1/entityOperations/upsert",
            "GET /ngsi-ld/v1/entities",
        ]


@pytest.mark.parametrize("kind", ["state", "history", "read back", "history back"])
async def test_whatever_is_carried_out_with_it_tells_that_it_is_there(kind: str) -> None:
    raw = Raw(as_json(503, MISSING))
    async with raw.serve() as url, broker_at(url) as broker:
        contexts = broker.traffic.contexts
        contexts.now_s = (clock := ManualClock()).monotonic_s
        await broker.state(ENTITIES)
        raw.answer = http(403)  # who could be asked for it alone does not tell
        clock.advance(61)
        assert await contexts.look()
        assert contexts.rows(clock.now())
        raw.answer = http(204) if kind in ("state", "history") else as_json(200, [])
        match kind:
            case "state":
                await broker.state(ENTITIES)
            case "history":
                await broker.history(ENTITIES[:1])
            case "read back":
                await broker.read_back(ENTITIES)
            case _:
                await broker.history_back(ENTITIES)
        assert contexts.rows(clock.now()) == []


async def test_a_broker_that_does_not_answer_tells_nothing_of_a_context() -> None:
    raw = Raw(as_json(503, MISSING))
    async with raw.serve() as url, broker_at(url) as broker:
        contexts = broker.traffic.contexts
        contexts.now_s = (clock := ManualClock()).monotonic_s
        await broker.state(ENTITIES)
        raw.answer = http(502, b"<html>bad gateway</html>", kind="text/html")
        clock.advance(61)
        with pytest.raises(BrokerUnavailable):
            await contexts.look()
        assert contexts.away(AIR)


def known(clock: ManualClock) -> Contexts:
    return Contexts(used={AIR: 2, WEATHER: 1}, now_s=clock.monotonic_s)


async def test_waits_grow_and_the_beginning_is_kept_until_it_serves() -> None:
    clock, asked = ManualClock(), []
    contexts = known(clock)

    async def ask(context: str) -> bool | None:
        if context == WEATHER:
            return True
        asked.append(clock.monotonic_s() - began_s)
        return served

    served: bool | None = False
    began_s = clock.monotonic_s()
    contexts.ask = ask
    contexts.missed(AIR, "why")
    since = contexts.rows(clock.now())[0]["since"]
    for _ in range(4000):
        clock.advance(1.0)
        await contexts.look()
    assert len([at for at in asked if at < 400]) > 80  # at most 5 s apart for 300 s of waits
    assert len([at for at in asked if at > 3000]) < 80  # then up to 60 s
    served = None  # nobody can tell: tried once, and missed again
    clock.advance(61)
    assert await contexts.look()
    assert not contexts.away(AIR)
    assert contexts.rows(clock.now())[0]["since"][:19] == since[:19]  # still shown
    assert not await contexts.look()
    contexts.missed(AIR, "again")
    assert contexts.away(AIR)
    [row] = contexts.rows(clock.now())
    assert (row["since"][:19], row["reason"], row["entities"]) == (since[:19], "again", 2)
    contexts.found(AIR)
    assert contexts.rows(clock.now()) == []
    contexts.missed(AIR, "anew")
    assert contexts.rows(clock.now())[0]["since"][:19] > since[:19]


async def test_others_are_asked_for_until_one_serves_and_anew_when_another_goes() -> None:
    clock, asked = ManualClock(), list[str]()
    there = {"c", "d"}
    contexts = Contexts(used=dict.fromkeys("abcd", 1), now_s=clock.monotonic_s)

    async def ask(context: str) -> bool | None:
        asked.append(context)
        return context in there

    async def looks(count: int) -> list[str]:
        asked.clear()
        for _ in range(count):
            clock.advance(61)
            await contexts.look()
        return asked

    contexts.ask = ask
    assert await looks(3) == []
    contexts.missed("a", "")
    assert await looks(3) == ["a", "b", "c", "a", "b", "a", "b"]  # those that serve are left alone
    assert not contexts.all_away
    there -= {"c", "d"}
    contexts.missed("c", "")
    assert sorted(set(await looks(1))) == ["a", "b", "c", "d"]
    assert contexts.all_away
    contexts.found("d")
    assert await looks(1) == ["a", "b", "c"]


def test_all_away_are_those_in_use() -> None:
    contexts = known(ManualClock())
    assert not contexts.all_away
    contexts.missed(AIR, "")
    contexts.missed("https://else.example", "")
    assert not contexts.all_away
    contexts.missed(WEATHER, "")
    assert contexts.all_away
    contexts.found(AIR)
    assert not contexts.all_away


def test_it_is_no_config_fault() -> None:
    streak = Streak(2)
    for _ in range(9):
        streak.note(Outcome(later={"a": "", "b": ""}, absent=frozenset("ab")))
    assert not streak.begun
    for entity in "aba":
        streak.note(Outcome(later={"a": "", "b": ""}, absent=frozenset("ab") - {entity}))
    assert streak.config_fault


@pytest.mark.parametrize(
    ("context", "prefix", "address"),
    [
        (AIR, "", "https://smart-data-models.github.io/dataModel.Environment/context.jsonld"),
        (AIR, "https://city.example/c", "https://city.example/c/dataModel.Environment/context.jsonld"),
        (AIR, "https://city.example/c/", "https://city.example/c/dataModel.Environment/context.jsonld"),
        (AIR + "?v=2", "https://city.example/c", AIR + "?v=2"),
        ("https://own.example/context.jsonld", "https://city.example/c", "https://own.example/context.jsonld"),
        ("https://uri.synchronicity-iot.eu/ns/data-models", "", "https://uri.synchronicity-iot.eu/ns/data-models"),
        (
            "https://uri.synchronicity-iot.eu/ns/data-models",
            "https://city.example/c",
            "https://city.example/c/synchronicity/context.jsonld",
        ),
    ],
)
async def test_where_the_broker_is_told_to_find_it(context: str, prefix: str, address: str) -> None:
    assert served_at(context, prefix) == address
    assert Contexts(prefix=prefix).address(context) == address
    strict = StrictBroker()
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url, contexts=prefix))
        assert (await broker.state([replace(ENTITIES[0], context=context)])).accepted
        await broker.close()
    assert {value.context for value in strict.stored} == {address}


@pytest.mark.parametrize("product", ["scorpio", "stellio"])
async def test_the_default_addresses_are_taken_by_every_product(product: str) -> None:
    strict = StrictBroker(profile=PRODUCTS[product]())
    async with strict.serve() as url, broker_at(url) as broker:
        assert (await broker.state([*ENTITIES, MAST])).accepted == {*IDS, MAST.id}
    assert set(strict.profile.contexts.fetched) == {AIR_AT, WEATHER_AT}
    assert {strict.profile.contexts.fetch(url) for url in (AIR_AT, WEATHER_AT)} == {JSON_LD}


def test_the_box_says_so_and_how_many_wait() -> None:
    health = Health(ManualClock())
    record = health.broker("milano", "ngsi-ld")
    row = {"context": AIR_AT, "since": "", "entities": 1, "reason": "503 no", "remedy": "contexts:"}
    record.contexts = [row, {**row, "context": WEATHER_AT, "entities": 7}]
    assert health.bad() == [
        f"broker milano: cannot fetch {AIR_AT} (entities waiting: 1): 503 no; contexts:",
        f"broker milano: cannot fetch {WEATHER_AT} (entities waiting: 7): 503 no; contexts:",
    ]
