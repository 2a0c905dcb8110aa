"""Services that fail, fall silent or block the loop, and what the supervisor does about them."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.backoff import Backoff
from gateway.sdk.errors import ConfigError, LinkError
from gateway.sdk.testing import ManualClock
from gateway.supervisor import LagMonitor, supervise


class Scripted:
    """A service whose runs are given one after the other; it notes what it was told."""

    silent_after_s: float | None = None
    name = "link scripted"

    def __init__(self, *runs: Callable[[], Awaitable[None]]) -> None:
        self._runs = list(runs)
        self.failures: list[str] = []
        self.stops: list[str] = []
        self.progress_at_s = 0.0
        self.exhausted = asyncio.Event()

    async def run(self) -> None:
        if not self._runs:
            self.exhausted.set()
            await asyncio.Event().wait()
        await self._runs.pop(0)()

    def failed(self, error: Exception) -> None:
        self.failures.append(f"{type(error).__name__}: {error}")

    def stopped(self, error: Exception) -> None:
        self.stops.append(str(error))


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        raise error

    return run


async def forever() -> None:
    await asyncio.Event().wait()


class RecordingClock(ManualClock):
    """Notes the waits between tries."""

    def __init__(self) -> None:
        super().__init__()
        self.waits_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        await super().sleep(seconds)


@contextlib.asynccontextmanager
async def supervised(service: Scripted, clock: ManualClock) -> AsyncIterator["asyncio.Task[None]"]:
    backoff = Backoff(1.0, 8.0, rng=random.Random(7))
    task = asyncio.create_task(supervise(service, backoff=backoff, clock=clock))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_failing_service_is_restarted_with_growing_bounded_waits() -> None:
    clock = RecordingClock()
    service = Scripted(*[failing(LinkError(f"gone {n}")) for n in range(12)])

    async with supervised(service, clock):
        await asyncio.wait_for(service.exhausted.wait(), 5)

    assert service.failures == [f"LinkError: gone {n}" for n in range(12)]
    assert all(0 < wait_s <= min(2.0**n, 8.0) for n, wait_s in enumerate(clock.waits_s))
    assert max(clock.waits_s) > 4.0


async def test_any_exception_is_a_failure_and_ends_nothing_else() -> None:
    service = Scripted(failing(ZeroDivisionError("a bug")), failing(KeyError("x")))

    async with supervised(service, ManualClock()) as task:
        await asyncio.wait_for(service.exhausted.wait(), 5)
        assert not task.done()

    assert service.failures == ["ZeroDivisionError: a bug", "KeyError: 'x'"]


async def test_a_config_error_stops_the_service_for_good() -> None:
    service = Scripted(failing(ConfigError("no such register")), forever)

    async with supervised(service, ManualClock()) as task:
        await asyncio.wait_for(task, 5)

    assert service.stops == ["no such register"]
    assert service.failures == []


async def test_a_silent_service_is_restarted_although_it_never_returns() -> None:
    clock = ManualClock()
    service = Scripted(forever)
    service.silent_after_s = 0.05
    service.progress_at_s = clock.monotonic_s() - 10

    async with supervised(service, clock):
        await asyncio.wait_for(service.exhausted.wait(), 5)

    assert service.failures[0].startswith("Silent: link scripted made no progress for 0.05 s")


async def test_cancellation_passes_and_reaches_the_service() -> None:
    cancelled = asyncio.Event()

    async def run() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    service = Scripted(run)
    async with supervised(service, ManualClock()) as task:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert cancelled.is_set()
    assert service.failures == []


async def test_a_task_that_blocks_the_loop_is_named() -> None:
    named: list[str] = []
    seen = threading.Event()

    def blocked(task: str, seconds: float) -> None:
        named.append(task)
        seen.set()

    monitor = asyncio.create_task(LagMonitor(blocked, blocked_after_s=0.05).run())
    await asyncio.sleep(0.1)

    async def block() -> None:
        deadline_s = time.monotonic() + 3
        while not seen.is_set() and time.monotonic() < deadline_s:
            time.sleep(0.01)  # noqa: ASYNC251 - blocking is the point

    await asyncio.create_task(block(), name="link roof-rs485")
    monitor.cancel()
    await asyncio.gather(monitor, return_exceptions=True)

    assert named == ["link roof-rs485"]
