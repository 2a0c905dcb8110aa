"""What the LoRa tests share: templates, links, a context whose receipts the test resolves."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from drivers.lora.config import LoraTemplate
from drivers.lora.driver import CHIRPSTACK
from drivers.lora.scan import load_templates
from gateway.sdk.driver import Context
from gateway.sdk.errors import LinkError
from gateway.sdk.reading import ReadingSet
from gateway.sdk.simulator import Faults, World
from gateway.sdk.testing import ManualClock, RecordingContext

TEMPLATES = load_templates(CHIRPSTACK.templates)
NWK, APP = "44024241ed4ce9a68c6a8bc055233fd3", "ec925802ae430ca77fd3dd73cb2cc588"


def counter_template() -> LoraTemplate:
    """A device whose payload is a number of 32 bits: each value names itself."""
    return LoraTemplate.model_validate(
        {
            "vendor": "test",
            "model": "counter",
            "points": {"count": {"quantity": "count", "unit": "C62"}},
            "codec": {"kind": "layout", "frames": [{"read": [{"type": "u32", "point": "count", "integer": True}]}]},
        }
    )


def template(codec: dict[str, Any], **points: str) -> LoraTemplate:
    """A template made for one test; points by their quantity."""
    declared = {name: {"quantity": quantity} for name, quantity in points.items()}
    return LoraTemplate.model_validate(
        {"vendor": "test", "model": "made", "name": "test/made", "points": declared, "codec": codec}
    )


class RunningClock(ManualClock):
    """Real monotonic time, real sleeps, a wall clock that stands still."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Receipt:
    def __init__(self, future: "asyncio.Future[None]") -> None:
        self._future = future

    @property
    def durable(self) -> Awaitable[None]:
        return asyncio.shield(self._future)


class HeldContext(RecordingContext):
    """Sets are durable when the test says so: `commit()`."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        super().__init__(clock=clock or RunningClock())
        self._held_open: list[asyncio.Future[None]] = []
        self.durable: list[ReadingSet] = []
        self.automatic = False

    @property
    def context(self) -> Context:
        context = super().context
        object.__setattr__(context, "emit", self._hold)
        return context

    async def _hold(self, readings: ReadingSet) -> _Receipt:
        await self._emit(readings)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held_open.append(future)
        if self.automatic:
            self.commit()
        return _Receipt(future)

    def total(self, name: str) -> int:
        """A counter over all devices of the link."""
        return sum(counts[name] for counts in self.device_counts.values())

    def commit(self, count: int | None = None) -> None:
        """Make the oldest `count` sets durable, or all."""
        for future in self._held_open[:count]:
            self.durable.append(self.sets[len(self.durable)])
            if not future.done():
                future.set_result(None)
        del self._held_open[:count]


@contextlib.asynccontextmanager
async def running(*coroutines: Any) -> AsyncIterator[list["asyncio.Task[Any]"]]:
    """Tasks that are cancelled at the end; the error of one that failed before is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], Any], *, within_s: float = 60.0) -> None:
    """Wait for a condition of a recorder, which has no event to wait for."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def supervised(run: Callable[[], Awaitable[None]]) -> None:
    """Restart a link at once whenever it fails, as the supervisor does with backoff."""
    while True:
        try:
            await run()
        except LinkError:
            await asyncio.sleep(0.05)


def world(
    served: list[tuple[str, dict[str, float]]], value: Callable[[str, str, int], float] | None = None, **extra: Any
) -> World:
    """A world that counts, fifty times as fast as the real one."""
    return World(
        value=value or (lambda device, point, n: float(n)),
        served=lambda device, values: served.append((device, values)),
        faults=Faults(extra=extra),
        sleep=lambda seconds: asyncio.sleep(seconds / 500),
    )
