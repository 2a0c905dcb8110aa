"""A large backlog drains beside live data: the present does not wait for the past."""

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.health import BrokerHealth
from gateway.log.log import Consumer, Log
from gateway.sdk.reading import Reading, ReadingSet
from tests.benchmarks.test_forward import DEVICES, FAST, POINTS, backlog, sink
from tests.gateway.forward.scene import RealClock, tables


async def test_a_live_value_never_waits_behind_more_than_one_history_request(tmp_path: Path) -> None:
    """100,000 readings of backlog; the sink answers each request of the history only after 20 ms."""
    settings = await backlog(tmp_path, 100_000)
    order: list[str] = []
    async with sink({}, order, history_s=0.02) as url:
        log = await Log.open(settings, clock=RealClock(), consumers=[Consumer("city")])
        mappings = tables(*DEVICES, points=POINTS) | tables("probe", points=("live",))
        broker = NgsiLdBroker(NgsiLdSettings(url))
        at_once = replace(FAST, history="temporal", linger_s=0.0)
        forwarder = Forwarder(
            "city", broker, mappings, log=log, health=BrokerHealth(), clock=RealClock(), settings=at_once
        )
        task = asyncio.create_task(forwarder.run())
        for n in range(30):
            put = len(order)
            await log.append(ReadingSet("probe", (Reading("live", float(n), datetime.now(UTC)),)))
            async with asyncio.timeout(60):
                while f"live {float(n)}" not in order[put:]:  # noqa: ASYNC110 - of the sink, without an event
                    await asyncio.sleep(0.005)
            waited = order[put : order.index(f"live {float(n)}")]
            assert waited.count("history") <= 2, waited  # the one in flight, and one that had begun
        assert order.count("history") > 10
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await log.close()
