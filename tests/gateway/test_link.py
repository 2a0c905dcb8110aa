"""One link at work, with a real log: what reaches it, what health says, one-shot requests, pause."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.driver_run import MAX_REQUESTS
from gateway.health import Health
from gateway.link import LinkService
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.config import DeviceConfig, LinkConfig, Report
from gateway.sdk.driver import SDK_VERSION, Context, Exchange
from gateway.sdk.errors import Busy, FrameError, LinkError
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, no_values
from gateway.sdk.template import Template, TemplatePoint
from gateway.sdk.testing import NOON, ManualClock

TEMPLATE = Template(
    vendor="Made",
    model="up",
    points={
        "t": TemplatePoint(quantity="air_temperature"),
        "p": TemplatePoint(quantity="atmospheric_pressure", unit="KPA"),
    },
)


@dataclass
class ScriptedDriver:
    """A driver whose loop is given by the test."""

    work: Callable[[Context], Awaitable[None]]
    name: str = "scripted"
    sdk_version: int = SDK_VERSION
    config_model: type[LinkConfig] = LinkConfig
    template_model: type[Template] = Template
    templates: Any = None

    async def run(self, config: LinkConfig, context: Context) -> None:
        await self.work(context)

    def decode(self, template: Template, frame: bytes, context: Any) -> tuple[Reading, ...]:
        raise FrameError("no frames here", frame=frame)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def log(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Log]:
    log = await Log.open(LogSettings(tmp_path / "buffer.db"), clock=clock, consumers=[Consumer("city")])
    yield log
    await log.close()


def link(log: Log, clock: ManualClock, work: Callable[[Context], Awaitable[None]], **device: Any) -> LinkService:
    config = LinkConfig(driver="scripted", devices={"d": DeviceConfig(template=TEMPLATE, **device)})
    return LinkService("l", ScriptedDriver(work), config, log=log, health=Health(clock), clock=clock)


def values(**of: float) -> ReadingSet:
    return ReadingSet("d", tuple(Reading(point, value, NOON) for point, value in of.items()))


async def idle(context: Context) -> None:
    await asyncio.Event().wait()


async def logged(log: Log) -> list[Any]:
    columns = await log.read("city")
    return columns.value if columns else []


async def test_what_a_driver_emits_is_in_the_log_and_health_is_ok(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=21.5, p=101.3))

    service = link(log, clock, work)
    await service.run()

    assert await logged(log) == [21.5, 101.3]
    record = service._health.links["l"]
    assert (record.state, record.devices["d"].state, record.devices["d"].last_good_at) == ("ok", "ok", NOON)


async def test_the_plausible_range_is_that_of_the_quantity_in_the_points_unit(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(p=1013.0))  # hPa where kPa is declared
        await context.emit(values(p=101.3))

    await link(log, clock, work).run()

    assert await logged(log) == [None, 101.3]


async def test_a_device_without_any_value_is_bad_with_reason_and_remedy(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(no_values("d", ("t", "p"), Reason.TIMEOUT, observed_at=NOON))

    service = link(log, clock, work)
    await service.run()

    device = service._health.links["l"].devices["d"]
    assert (device.state, device.reason) == ("bad", "timeout")
    assert "wiring" in device.remedy


async def test_an_implausible_value_counts_as_bad_and_not_as_good(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=900.0))

    service = link(log, clock, work)
    await service.run()

    device = service._health.links["l"].devices["d"]
    assert (device.state, device.reason, device.readings, device.bad) == ("bad", "out_of_range", 0, 1)


async def test_a_drivers_remark_stays_in_status_until_it_is_taken_back(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    device = service._health.links["l"].devices["d"]
    context = service._context()

    context.note("d", "answers late", "lengthen timeout:")
    await context.emit(values(t=20.0))
    noted = (device.state, device.reason, device.remedy)
    context.note("d", "", "")
    await context.emit(values(t=20.0))

    assert noted == ("ok", "answers late", "lengthen timeout:")
    assert (device.state, device.reason, device.remedy) == ("ok", "", "")


async def test_a_thinned_reading_is_shown_but_not_logged(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=20.0))
        await context.emit(ReadingSet("d", (Reading("t", 20.4, NOON + timedelta(seconds=1)),)))

    await link(log, clock, work, report={"t": Report(on_change=1.0)}).run()

    assert await logged(log) == [20.0]
    assert log.last_values.device("d")["t"].value == 20.4


async def test_while_paused_nothing_reaches_the_log_and_it_ends_by_itself(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)

    until = service.pause("d", 60.0)
    await service.emit(values(t=99.0))
    record = service._health.links["l"].devices["d"]
    paused = (record.state, record.paused_until)
    clock.advance(61.0)
    service.end_pauses()
    await service.emit(values(t=20.0))

    assert paused == ("paused", until)
    assert await logged(log) == [20.0]
    assert (record.state, record.paused_until) == ("ok", None)


async def test_a_one_shot_request_is_answered_by_the_driver(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        request = await context.requests.get()
        request.reply.set_result(Exchange(b"\x01", b"\x02", values(t=21.0).readings))

    service = link(log, clock, work)
    running = asyncio.create_task(service.run())
    exchange = await service.request("d")
    await running

    assert exchange.received == b"\x02"


async def test_requests_are_bounded_and_time_out(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    asked = [asyncio.create_task(service.request("d", timeout_s=0.05)) for _ in range(MAX_REQUESTS)]
    await asyncio.sleep(0)

    with pytest.raises(Busy):
        await service.request("d")
    results = await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(result, LinkError) for result in results)


async def test_a_link_that_is_down_refuses_requests_with_its_reason(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    service.failed(LinkError("cannot open /dev/ttyUSB0"))

    with pytest.raises(LinkError, match="/dev/ttyUSB0"):
        await service.request("d")


async def test_quality_and_reason_reach_the_log(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=900.0))

    await link(log, clock, work).run()
    columns = await log.read("city")

    assert columns is not None
    assert (columns.quality, columns.reason) == ([Quality.BAD], [Reason.OUT_OF_RANGE])
