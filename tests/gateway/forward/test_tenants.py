"""A tenant that its first write makes: several brokers of one address make theirs one after the other, with patience."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gateway.forward.auth import Way
from gateway.forward.forwarder import Forwarder
from gateway.forward.greetings import Greetings, Turns
from gateway.forward.ngsild import WAITS_FOR_TURN, NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.scene import MemoryLog, RealClock, entity_id, measured, tables
from tests.support.broker_profiles import Scorpio, Stellio
from tests.support.strict_broker import StrictBroker

TENANT_S = 0.6
SHORT = aiohttp.ClientTimeout(total=1.2, sock_connect=0.4, sock_read=0.4)  # much less than a tenant takes
FAST = ForwardSettings(
    linger_s=0.02,
    gather_s=0.05,
    held_every_s=0.05,
    records_within_s=0.3,
    look_s=0.05,
    retry_first_s=0.05,
    retry_quick_s=0.1,
    retry_cap_s=0.1,
)
TENANTS = ("milano", "porto", "santander", "novi_sad")


def scorpio() -> Scorpio:
    return Scorpio(silence_s=0.05, look_s=0.1, tenant_s=TENANT_S, batch_s=None)


def broker(url: str, tenant: str, turns: Turns | None = None) -> NgsiLdBroker:
    return NgsiLdBroker(NgsiLdSettings(url, tenant=tenant), Way(timeout=SHORT), turns=turns)


@contextlib.asynccontextmanager
async def forwarding(
    brokers: Sequence[NgsiLdBroker], log: MemoryLog, settings: ForwardSettings = FAST
) -> AsyncIterator[list[BrokerHealth]]:
    """A forwarder for each, of one box."""
    healths = [BrokerHealth() for _ in brokers]
    tasks = [
        asyncio.create_task(
            Forwarder("city", one, tables("air-1"), log=log, health=health, clock=RealClock(), settings=settings).run()
        )
        for one, health in zip(brokers, healths, strict=True)
    ]
    try:
        yield healths
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("history", ["auto", "temporal", "in-order"])
async def test_new_tenants_of_one_address_are_made_one_after_the_other(history: str) -> None:
    strict, log, greetings = StrictBroker(profile=scorpio()), MemoryLog(), Greetings()
    log.put("air-1", 0, no2=1.0)
    async with strict.serve() as url:
        brokers = [broker(url, tenant, greetings.of(f"{url}/{n}")) for n, tenant in enumerate(TENANTS)]
        for one in brokers:
            one._http._base = url  # the path tells no two brokers apart, and is not part of this one's address
        async with forwarding(brokers, log, replace(FAST, history=history)):
            ids = "urn:ngsi-ld:AirQualityObserved:milano:gw:air-1"
            await strict.until(lambda: all(strict.state(ids, tenant) for tenant in TENANTS), timeout_s=20)
    assert isinstance(strict.profile, Scorpio)
    assert strict.profile.half_made == set()
    assert strict.backwards == []


async def test_without_turns_they_stay_half_made_and_that_is_told_with_what_to_do() -> None:
    """The imitation itself; and what a box says when another one was in between."""
    strict, log = StrictBroker(profile=scorpio()), MemoryLog()
    log.put("air-1", 0, no2=1.0)
    async with strict.serve() as url, forwarding([broker(url, tenant) for tenant in TENANTS], log) as healths:
        await strict.until(lambda: any("half made" in health.reason for health in healths))
        [told] = [health for health in healths if "half made" in health.reason][:1]
        assert told.state == "down"
        assert any(tenant in told.reason for tenant in TENANTS)
        assert "drop the database of this tenant" in told.remedy
        assert told.dead == 0


async def test_every_kind_of_request_tells_of_a_half_made_tenant() -> None:
    strict = StrictBroker(profile=scorpio())
    strict.profile.half_made.add("milano")  # type: ignore[attr-defined]
    entity = measured("air-1", no2=1.0)
    async with strict.serve() as url:
        one = broker(url, "milano")
        for outcome in (await one.state([entity]), await one.history([entity])):
            assert "half made" in str(outcome.fault)
            assert outcome.fault is not None
            assert "drop" in outcome.fault.remedy
            assert not outcome.refused
        for read in (one.probe(), one.read_back([entity]), one.history_back([entity])):
            with pytest.raises(BrokerUnavailable, match="half made") as caught:
                await read
            assert "drop" in caught.value.remedy
        await one.close()


async def test_a_first_write_has_patience_and_later_ones_have_not() -> None:
    strict = StrictBroker(profile=scorpio())
    async with strict.serve() as url:
        one = broker(url, "milano")
        entity = measured("air-1", no2=1.0)
        assert (await one.state([entity])).accepted  # it took longer than any time-out
        strict.behaviour.delay_s = 1.0
        assert "no answer in time" in str((await one.state([measured("air-1", 1, no2=2.0)])).fault)
        await one.close()


async def test_a_tenant_that_can_be_read_needs_no_patience() -> None:
    strict = StrictBroker(profile=Stellio(tenants=["milano"]))
    async with strict.serve() as url:
        one = broker(url, "milano")
        await one.probe()
        strict.behaviour.delay_s = 1.0
        assert "no answer in time" in str((await one.state([measured("air-1", no2=1.0)])).fault)
        await one.close()


async def test_a_tenant_that_is_gone_is_greeted_again() -> None:
    strict = StrictBroker(profile=scorpio())
    async with strict.serve() as url:
        one = broker(url, "milano")
        entity = measured("air-1", no2=1.0)
        assert (await one.state([entity])).accepted
        strict.tenants.clear()
        assert (await one.probe()).temporal is None
        assert (await one.state([entity])).accepted
        await one.close()


@pytest.mark.parametrize("history", ["auto", "in-order"])
async def test_what_is_held_goes_to_a_tenant_that_it_makes_though_the_rest_waits_behind_it(history: str) -> None:
    """Pieces of two entities; the first one that is sent makes the tenant, with all else of its lane unsent."""
    strict, log, clock = StrictBroker(), MemoryLog(), RealClock()
    devices = ("air-1", "air-2")
    for device in devices:
        log.put(device, 0, no2=1.0)
        log.put(device, 1, no2=2.0)
        columns = await log.read("city")
        assert columns is not None
        await log.settle("city", columns.last)
        await log.held.hold(
            "city", entity_id(device), device, columns, reason="later", at=clock.now(), next_try_at=clock.now()
        )
    for device in devices:
        log.put(device, 2, no2=3.0)
    health, expected = BrokerHealth(), {(entity_id(device), value) for device in devices for value in (1.0, 2.0, 3.0)}

    def found() -> Counter[tuple[str, Any]]:
        return Counter((id_, value) for id_, key, _, value in strict.temporal_history("milano") if key == "no2")

    async with strict.serve() as url:
        one = Forwarder(
            "city",
            broker(url, "milano"),
            tables(*devices),
            log=log,
            health=health,
            clock=clock,
            settings=replace(FAST, history=history),
        )
        task = asyncio.create_task(one.run())
        await strict.until(lambda: found().keys() == expected and not log.held.table)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert found() == Counter(expected)


async def test_one_that_hangs_does_not_stop_the_other_for_ever() -> None:
    strict, turns = StrictBroker(profile=scorpio()), Turns(within_s=0.2)
    entity = measured("air-1", no2=1.0)
    async with strict.serve() as url:
        first, second = broker(url, "milano", turns), broker(url, "porto", turns)
        strict.behaviour.fault, strict.behaviour.times = "hang", 1
        hanging = asyncio.create_task(first.state([entity]))
        await strict.until(lambda: bool(strict.requests))
        told = await second.state([entity])
        assert "another tenant" in str(told.fault)
        assert not told.doubtful  # nothing was sent
        hanging.cancel()
        await asyncio.wait([hanging])
        assert (await second.state([entity])).accepted  # the turn was given back
        await first.close()
        await second.close()


async def test_without_a_tenant_nobody_waits_for_a_turn() -> None:
    strict, turns = StrictBroker(), Turns(within_s=0.1)
    async with strict.serve() as url, turns.turn():
        one = broker(url, "", turns)
        assert (await one.state([measured("air-1", no2=1.0)])).accepted
        await one.close()


async def test_who_waits_for_its_turn_says_so() -> None:
    strict, log, turns = StrictBroker(profile=scorpio()), MemoryLog(), Turns()
    log.put("air-1", 0, no2=1.0)
    health, shown = BrokerHealth(), set[str]()
    async with strict.serve() as url:
        own = broker(url, TENANTS[0], turns)
        one = Forwarder("city", own, tables("air-1"), log=log, health=health, clock=RealClock(), settings=FAST)
        task = asyncio.create_task(one.run())
        async with turns.turn():
            while WAITS_FOR_TURN not in shown:
                await asyncio.sleep(0.01)
                one.show()  # as who asks for status does
                shown.add(health.reason)
            assert health.state == "starting"
        await strict.until(lambda: health.state == "ok" and not health.reason)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://city.example", "http://CITY.example:80/x", True),
        ("https://city.example", "https://city.example:443", True),
        ("http://localhost:9090", "http://127.0.0.1:9090/", True),
        ("http://localhost:9090", "http://[::1]:9090", True),
        ("http://[2001:DB8::0:1]:9090", "http://[2001:db8::1]:9090", True),
        ("http://city.example.", "http://city.example", True),
        ("http://127.0.0.1:9090", "http://127.0.0.2:9090", False),
        ("https://city.example", "http://city.example", False),
        ("http://city.example:1", "http://city.example:2", False),
        ("http://a.example", "http://b.example", False),
    ],
)
def test_an_address_is_host_and_port(one: str, other: str, same: bool) -> None:
    greetings = Greetings()
    assert (greetings.of(one) is greetings.of(other)) == same
