"""A context that a broker cannot fetch: what is sent with it waits, nothing else does; nothing is lost, doubled or blamed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.forward.auth import Way
from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth
from gateway.models.refresh import served_at
from tests.gateway.forward.scene import AIR, MemoryLog, RealClock, measured_only, tables
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

    def __init__(self, profile: Profile, settings: ForwardSettings = FAST) -> None:
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
                mappings(),
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
