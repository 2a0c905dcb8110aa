"""One broker, served for ever: outage, resume, states that status shows."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp

from gateway.forward.auth import Way
from gateway.forward.forwarder import Forwarder, ForwardSettings
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.health import BrokerHealth
from tests.gateway.forward.scene import MemoryLog, RealClock, entity_id, measured_only, tables
from tests.support.strict_broker import StrictBroker

FAST = ForwardSettings(
    linger_s=0.02,
    gather_s=0.05,
    held_every_s=0.05,
    history="in-order",
    retry_first_s=0.05,
    retry_quick_s=0.1,
    retry_cap_s=0.1,
)
SHORT = aiohttp.ClientTimeout(total=2.0, sock_connect=0.5, sock_read=0.5)


@contextlib.asynccontextmanager
async def forwarding(url: str, log: MemoryLog, *devices: str) -> AsyncIterator[BrokerHealth]:
    """A forwarder at work; yields what status shows of it."""
    health = BrokerHealth()
    broker = NgsiLdBroker(NgsiLdSettings(url=url), Way(timeout=SHORT))
    forwarder = Forwarder("city", broker, tables(*devices), log, health, RealClock(), FAST)
    task = asyncio.create_task(forwarder.run())
    try:
        yield health
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task  # raises what ended it: it never ends by itself


async def test_live_readings_arrive_and_status_says_so() -> None:
    strict, log = StrictBroker(), MemoryLog()
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        expected = log.put("air-1", 0, no2=1.0)
        await strict.until(lambda: log.settled)
        expected |= log.put("air-1", 1, no2=2.0)
        await strict.until(lambda: log.settled)
        await strict.until(lambda: health.accepted == 2)
    assert set(measured_only(strict.history())) == expected
    assert (health.state, health.backlog, health.history) == ("ok", 0, "in-order")
    assert health.last_accepted_at is not None
    assert health.requests >= 2
    assert health.sent_bytes > 100


async def test_an_outage_loses_nothing_repeats_nothing_and_is_told() -> None:
    strict, log = StrictBroker(), MemoryLog()
    expected = set()
    async with strict.serve() as url, forwarding(url, log, "air-1", "air-2") as health:
        strict.behaviour.fault = "503"
        for n in range(20):
            expected |= log.put(f"air-{1 + n % 2}", n, no2=n)
        await strict.until(lambda: health.state == "down" and len(strict.requests) >= 3)
        assert "503" in health.reason
        assert health.next_try_at is not None
        assert health.backlog == 20
        strict.behaviour.fault = ""
        await strict.until(lambda: log.settled and health.state == "ok")
    assert sorted(measured_only(strict.history())) == sorted(expected)
    assert strict.backwards == []


async def test_a_broker_that_is_not_there_yet_is_waited_for() -> None:
    strict, log = StrictBroker(), MemoryLog()
    expected = log.put("air-1", 0, no2=1.0)
    async with strict.serve() as url:
        port = int(url.rsplit(":", 1)[1])
    async with forwarding(f"http://127.0.0.1:{port}", log, "air-1") as health:
        await strict.until(lambda: health.state == "down")
        async with strict.serve(port):
            await strict.until(lambda: log.settled)
    assert set(measured_only(strict.history())) == expected


async def test_a_page_of_a_captive_portal_is_no_success() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.put("air-1", 0, no2=1.0)
    strict.behaviour.fault = "html200"
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        await strict.until(lambda: health.state == "down" and len(strict.requests) >= 2)
        assert "captive portal" in health.reason
        assert not log.settled
        strict.behaviour.fault = ""
        await strict.until(lambda: log.settled)


async def test_one_refused_entity_does_not_hold_the_others() -> None:
    strict, log = StrictBroker(), MemoryLog()
    strict.behaviour.refuse = "air-7$"
    devices = [f"air-{n}" for n in range(50)]
    expected = set()
    async with strict.serve() as url, forwarding(url, log, *devices) as health:
        for n in range(3):
            for device in devices:
                expected |= log.put(device, n, no2=n)
        await strict.until(lambda: log.settled)
        await strict.until(lambda: health.refused == 3)
    refused = {item for item in expected if item[0] == entity_id("air-7")}
    assert set(measured_only(strict.history())) == expected - refused


async def test_a_refused_login_is_not_an_entitys_fault() -> None:
    strict, log = StrictBroker(), MemoryLog()
    log.put("air-1", 0, no2=1.0)
    strict.behaviour.token = "Bearer right"
    async with strict.serve() as url, forwarding(url, log, "air-1") as health:
        await strict.until(lambda: health.state == "login")
        assert not log.settled
        strict.behaviour.token = ""
        await strict.until(lambda: log.settled)
    assert health.refused == 0
