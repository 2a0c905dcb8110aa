"""Forwarding: how fast a backlog drains to a sink that answers at once, and what live data waits meanwhile.

`make bench` prints the figures; only ratios within one run compare. BENCH_READINGS sets the size of the backlog.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.reading import Reading, ReadingSet
from tests.benchmarks.sink import Sink
from tests.gateway.forward.scene import RealClock, tables

READINGS = int(os.environ.get("BENCH_READINGS", "1000000"))
POINTS = tuple(f"v{n}" for n in range(10))
DEVICES = tuple(f"unit-{n}" for n in range(50))
FAST = ForwardSettings(linger_s=1.0, rate_per_s=1e9, records=True, records_within_s=0.1)


class TimedSink(Sink):
    """Reads requests, answers 204 (200 and `[]` to a GET), notes when a live value came and in which order.

    Args:
        history_s: an answer to a request of the history comes so late.
    """

    def __init__(self, live_at: dict[float, float], order: list[str], history_s: float) -> None:
        super().__init__()
        self._live_at = live_at
        self._order = order
        self._history_s = history_s

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]")
            return
        past = b"/temporal/" in head[:200]
        if past:
            self._order.append("history")
        elif b'"live"' in body:
            self._note(body)
        answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        if past and self._history_s:
            asyncio.get_running_loop().call_later(self._history_s, self._transport.write, answer)
        else:
            self._transport.write(answer)

    def _note(self, body: bytes) -> None:
        for entity in json.loads(body):
            if "live" in entity:
                value = entity["live"]["value"]
                self._live_at.setdefault(value, time.monotonic())
                self._order.append(f"live {value}")


@contextlib.asynccontextmanager
async def sink(live_at: dict[float, float], order: list[str], history_s: float = 0.0) -> AsyncIterator[str]:
    """Yields its address."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TimedSink(live_at, order, history_s), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def backlog(folder: Path, readings: int) -> LogSettings:
    """A file with so many readings of 50 units with 10 values each, 1 s apart."""
    settings = LogSettings(folder / "buffer.db", commit_every_s=3600.0, head_bytes=64 * 2**20)
    log = await Log.open(settings, clock=RealClock(), consumers=[Consumer("city")])
    start = datetime.now(UTC) - timedelta(seconds=readings / 500 + 60)
    for n in range(readings // 500):
        at = start + timedelta(seconds=n)
        for device in DEVICES:
            await log.append(ReadingSet(device, tuple(Reading(p, n + 0.5, at) for p in POINTS)))
    await log.close()
    return settings


async def drain(folder: Path, history: str, readings: int) -> dict[str, float]:
    settings = await backlog(folder, readings)
    live_at: dict[float, float] = {}
    put_at: dict[float, float] = {}
    async with sink(live_at, []) as url:
        log = await Log.open(settings, clock=RealClock(), consumers=[Consumer("city")])
        mappings = tables(*DEVICES, points=POINTS) | tables("probe", points=("live",))
        health = BrokerHealth()
        broker = NgsiLdBroker(NgsiLdSettings(url, batch_entities=50))
        forwarder = Forwarder(
            "city", broker, mappings, log=log, health=health, clock=RealClock(), settings=replace(FAST, history=history)
        )
        started_s, cpu_s = time.monotonic(), time.process_time()
        task = asyncio.create_task(forwarder.run())
        stop = asyncio.Event()

        async def live() -> None:
            n = 0
            while not stop.is_set():
                put_at[float(n)] = time.monotonic()
                await log.append(ReadingSet("probe", (Reading("live", float(n), datetime.now(UTC)),)))
                n += 1
                await asyncio.sleep(0.1)

        pulse = asyncio.create_task(live())
        while log.backlog("city")[0] > 100 and not task.done():  # noqa: ASYNC110 - of another task
            await asyncio.sleep(0.05)
        took_s, cpu_s = time.monotonic() - started_s, time.process_time() - cpu_s
        stop.set()
        await pulse
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await log.close()
    late = sorted(live_at[n] - put_at[n] for n in live_at if n in put_at)
    return {
        "readings_per_s": readings / took_s,
        "cpu_us": cpu_s / readings * 1e6,
        "live_p50_s": late[len(late) // 2] if late else float("nan"),
        "live_p99_s": late[int(len(late) * 0.99)] if late else float("nan"),
        "requests": health.requests,
    }


@pytest.mark.bench
@pytest.mark.timeout(600)
@pytest.mark.parametrize("history", ["in-order", "temporal"])
async def test_drain(tmp_path: Path, history: str) -> None:
    found = await drain(tmp_path, history, READINGS)
    print(
        f"\ndrain {history}: {READINGS} readings at {found['readings_per_s']:.0f}/s, {found['cpu_us']:.1f} µs CPU each, "
        f"{found['requests']:.0f} requests; live p50 {found['live_p50_s']:.2f} s, p99 {found['live_p99_s']:.2f} s"
    )
    assert found["readings_per_s"] > 5000  # aim: 30,000 on a quiet machine
