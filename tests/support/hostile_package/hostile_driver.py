"""A third party's driver that does one thing wrong per link, and one that does all well; found by its entry point."""

import asyncio
import itertools
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gateway.sdk.config import DeviceConfig, LinkConfig
from gateway.sdk.driver import SDK_VERSION, Context
from gateway.sdk.errors import ConfigError, FrameError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.template import Template

EVERY_S = 0.05


class HostileLink(LinkConfig):
    """A link that misbehaves."""

    driver: Literal["hostile"]
    does: str = Field(description="what it does")
    told: str = Field("", description="file in which the healthy one keeps how many sets it handed over")
    devices: dict[str, DeviceConfig] = Field(min_length=1, description="the devices by name")


def a_set(device: str, value: Any, *, point: Any = "t", at: Any = None, **changes: Any) -> ReadingSet:
    """One reading in a set."""
    reading = Reading(point, value, at or datetime.now(UTC), **changes)
    return ReadingSet(device, (reading,))


async def well(device: str, context: Context, config: HostileLink) -> None:
    """A counter that never skips a number."""
    for count in itertools.count():
        await context.emit(a_set(device, float(count % 1000) / 20))
        Path(config.told).write_text(str(count + 1))
        await context.sleep(EVERY_S)


def hands_over(make: Callable[[str], ReadingSet]) -> Callable[[str, Context, HostileLink], Awaitable[None]]:
    async def work(device: str, context: Context, config: HostileLink) -> None:
        while True:
            await context.emit(make(device))
            await context.sleep(EVERY_S)

    return work


async def crash(device: str, context: Context, config: HostileLink) -> None:
    raise ZeroDivisionError("a bug of mine")


async def crash_base(device: str, context: Context, config: HostileLink) -> None:
    raise BaseException("more than an exception")


async def returns(device: str, context: Context, config: HostileLink) -> None:
    await context.emit(a_set(device, 1.0))


async def cancels(device: str, context: Context, config: HostileLink) -> None:
    await context.emit(a_set(device, 1.0))
    raise asyncio.CancelledError


async def ignores_cancel(device: str, context: Context, config: HostileLink) -> None:
    while True:
        try:
            await context.emit(a_set(device, 1.0))
            await asyncio.sleep(0.01)
        except BaseException:  # noqa: BLE001, S112 - as careless code does
            continue


async def blocks(device: str, context: Context, config: HostileLink) -> None:
    while True:
        await context.emit(a_set(device, 1.0))
        try:
            time.sleep(60)  # noqa: ASYNC251 - blocking is the point
        except Exception:  # noqa: BLE001, S112 - as careless code does
            continue


async def leaks(device: str, context: Context, config: HostileLink) -> None:
    async def left_behind() -> None:
        while True:
            await context.emit(a_set(device, 77.0))
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(left_behind()) for _ in range(10)]
    await asyncio.sleep(0.2)
    raise RuntimeError(f"{len(tasks)} tasks left behind")


async def floods(device: str, context: Context, config: HostileLink) -> None:
    while True:
        await context.emit(a_set(device, 1.0))


async def exits(device: str, context: Context, config: HostileLink) -> None:
    await context.emit(a_set(device, 1.0))
    sys.exit(3)


async def exits_in_a_task(device: str, context: Context, config: HostileLink) -> None:
    async def leave() -> None:
        sys.exit(3)

    task = asyncio.create_task(leave())
    await asyncio.sleep(3600)
    await task


async def exits_in_a_callback(device: str, context: Context, config: HostileLink) -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(3600)


async def rejects(device: str, context: Context, config: HostileLink) -> None:
    for n in itertools.count():
        context.reject(FrameError(f"version {n}, expected 1 \ud800", frame=b"x" * 100_000), device=device)
        await context.sleep(EVERY_S)


async def endless_names(device: str, context: Context, config: HostileLink) -> None:
    for n in itertools.count():
        context.count(f"counter {n} \ud800" * 100)
        context.count(f"counter {n}", device=device)
        context.note(device, f"remark \ud800 {n}" * 10_000, "")
        await context.sleep(EVERY_S)


async def unknown_device(device: str, context: Context, config: HostileLink) -> None:
    while True:
        context.count("x", device="nobody")
        context.note("nobody", "x", "y")
        await context.emit(a_set("nobody", 1.0))
        await context.sleep(EVERY_S)


async def big_state(device: str, context: Context, config: HostileLink) -> None:
    for n in itertools.count():
        await context.emit(ReadingSet(device, a_set(device, 2.0).readings, {f"k{n}": b"x" * 50_000_000}))
        await context.sleep(EVERY_S)


async def offers_time(device: str, context: Context, config: HostileLink) -> None:
    while True:
        context.offer_time(datetime(2040, 1, 1), 0.0)
        context.offer_time(datetime.max.replace(tzinfo=UTC), math.nan)
        await context.emit(a_set(device, 3.0))
        await context.sleep(EVERY_S)


async def never_times(device: str, context: Context, config: HostileLink) -> None:
    while True:
        for seconds in (math.nan, -math.inf, math.inf):
            try:
                await asyncio.wait_for(context.sleep(seconds), EVERY_S)
            except (ValueError, TimeoutError):
                continue
        await context.emit(a_set(device, 1.0))


async def blocks_threads(device: str, context: Context, config: HostileLink) -> None:
    await context.emit(a_set(device, 1.0))
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 3600) for _ in range(100)))


async def stops_the_loop(device: str, context: Context, config: HostileLink) -> None:
    await context.emit(a_set(device, 1.0))
    asyncio.get_running_loop().stop()
    await asyncio.sleep(3600)


async def cancels_everybody(device: str, context: Context, config: HostileLink) -> None:
    await context.emit(a_set(device, 1.0))
    await asyncio.sleep(0.5)
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(3600)


CANCELS_EVERYBODY = {"cancels_everybody": cancels_everybody}


async def raises_an_odd_error(device: str, context: Context, config: HostileLink) -> None:
    raise ConfigError(())


MISDEEDS: dict[str, Callable[[str, Context, HostileLink], Awaitable[None]]] = {
    "naive_time": hands_over(lambda device: a_set(device, 1.0, at=datetime(2026, 6, 1, 12, 0))),
    "no_time": hands_over(lambda device: a_set(device, 1.0, at="yesterday")),
    "year_1": hands_over(lambda device: a_set(device, 1.0, at=datetime.min.replace(tzinfo=UTC))),
    "future": hands_over(lambda device: a_set(device, 1.0, at=datetime.now(UTC) + timedelta(days=4000))),
    "surrogate": hands_over(lambda device: a_set(device, "half \ud83d", point="text")),
    "surrogate_point": hands_over(lambda device: a_set(device, 1.0, point="t\ud800")),
    "nan": hands_over(lambda device: a_set(device, math.nan)),
    "undeclared": hands_over(lambda device: a_set(device, 1.0, point="secret")),
    "plain_quality": hands_over(lambda device: a_set(device, 1.0, quality="good", reason="?", time_source="moon")),
    "huge_number": hands_over(lambda device: a_set(device, 10**400)),
    "no_set": hands_over(lambda device: None),  # type: ignore[arg-type, return-value]
    "no_readings": hands_over(lambda device: ReadingSet(device, (None, 7))),  # type: ignore[arg-type]
    "crash": crash,
    "crash_base": crash_base,
    "returns": returns,
    "cancels": cancels,
    "ignores_cancel": ignores_cancel,
    "blocks": blocks,
    "leaks": leaks,
    "floods": floods,
    "exits": exits,
    "exits_in_a_task": exits_in_a_task,
    "exits_in_a_callback": exits_in_a_callback,
    "rejects": rejects,
    "endless_names": endless_names,
    "unknown_device": unknown_device,
    "big_state": big_state,
    "offers_time": offers_time,
    "never_times": never_times,
    "blocks_threads": blocks_threads,
    "stops_the_loop": stops_the_loop,
    "raises_an_odd_error": raises_an_odd_error,
}


class HostileDriver:
    """See the module."""

    name = "hostile"
    sdk_version = SDK_VERSION
    config_model = HostileLink
    template_model = Template

    @property
    def templates(self) -> Path:
        return Path(__file__).parent / "templates"

    async def run(self, config: HostileLink, context: Context) -> None:
        [device] = config.devices
        await {"well": well, **CANCELS_EVERYBODY, **MISDEEDS}[config.does](device, context, config)

    def decode(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> tuple[Reading, ...]:
        raise KeyError("no such key")


DRIVER = HostileDriver()
