"""Simulator and driver at two ends of a real pty and a real socket: what is served is what is read."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from drivers.modbus.config import ModbusConfig
from drivers.modbus.driver import DRIVER
from drivers.modbus.simulator import SIMULATOR
from gateway.sdk.driver import Context, Receipt, Request
from gateway.sdk.errors import CitygateError
from gateway.sdk.reading import ReadingSet, Value
from gateway.sdk.simulator import Faults, World
from gateway.sdk.streams import open_serial, open_tcp
from gateway.sdk.testing import RecordingContext
from tests.drivers.modbus.test_templates import NAMES
from tests.support.box import free_port
from tests.support.modbus_config import link, shipped


class Bench:
    """Simulator and driver of one link, both at work."""

    def __init__(self, config: ModbusConfig) -> None:
        self.config = config
        self.served: dict[str, dict[str, float]] = {}
        self.world = World(value=lambda d, p, n: 10 + n + len(p) / 4, served=self._serve, faults=Faults())
        self.recorder = RecordingContext()
        self._more = asyncio.Event()

    def _serve(self, device: str, values: dict[str, float]) -> None:
        self.served.setdefault(device, {}).update(values)

    async def _emit(self, readings: ReadingSet) -> Receipt:
        receipt = await self.recorder.context.emit(readings)
        self._more.set()
        return receipt

    @property
    def context(self) -> Context:
        return dataclasses.replace(
            self.recorder.context,
            emit=self._emit,
            open_serial=open_serial,
            open_tcp=open_tcp,
            sleep=asyncio.sleep,
            monotonic_s=time.monotonic,
        )

    async def set_of(self, device: str, seen: int = 0) -> ReadingSet:
        """A set of this device beyond the first `seen`."""
        async with asyncio.timeout(60):
            while len(sets := [s for s in self.recorder.sets if s.device == device]) <= seen:
                self._more.clear()
                await self._more.wait()
        return sets[-1]

    async def ask(self, request: Request) -> dict[str, object]:
        self.recorder.requests.put(request)
        async with asyncio.timeout(60):
            exchange = await request.reply
        return {r.point: r.value for r in exchange.readings}


@contextlib.asynccontextmanager
async def bench(config: ModbusConfig) -> AsyncIterator[Bench]:
    its = Bench(config)
    async with asyncio.TaskGroup() as tasks:
        simulator = tasks.create_task(SIMULATOR.run(config, its.world))
        await asyncio.sleep(0)
        while config.host and not await listening(config):  # noqa: ASYNC110  # a socket's other end sets no event
            await asyncio.sleep(0.01)
        driver = tasks.create_task(DRIVER.run(config, its.context))
        try:
            yield its
        finally:
            driver.cancel()
            simulator.cancel()


async def listening(config: ModbusConfig) -> bool:
    try:
        _, writer = await asyncio.open_connection(config.host, config.tcp_port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def all_devices() -> dict[str, dict[str, object]]:
    return {
        name.replace("/", "-"): {"template": shipped(name), "unit_id": unit, "every": "2 s"}
        for unit, name in enumerate(NAMES, 1)
    }


@pytest.mark.parametrize("place", ["pty", "tcp", "rtu over tcp"])
async def test_every_shipped_device_is_read_as_served(place: str, tmp_path: Path) -> None:
    where: dict[str, object] = {"port": str(tmp_path / "line"), "baud_rate": 115200}
    if place != "pty":
        where = {"host": "127.0.0.1", "port": free_port()}
    if place == "rtu over tcp":
        where["framing"] = "rtu"
    async with bench(link(all_devices(), **where)) as its:
        for device in its.config.devices:
            readings = await its.set_of(device)
            assert len(readings.values()) == len(readings.readings), [r for r in readings.readings if r.value is None]
            for reading in readings.readings:
                if not isinstance(reading.value, str):  # an enum's text stands for its number
                    assert reading.value == pytest.approx(its.served[device][reading.point], rel=1e-6), reading.point


async def test_a_write_is_allowed_checked_and_read_back(tmp_path: Path) -> None:
    devices = {
        "climate": {
            "template": shipped("sht20/xy-md02"),
            "unit_id": 1,
            "every": "1 s",
            "writes": ["temperature_correction"],
        }
    }
    async with bench(link(devices, port=str(tmp_path / "line"), baud_rate=115200)) as its:
        got = await its.ask(Request("write", "climate", "temperature_correction", "-1.5"))
        assert got == {"temperature_correction": -1.5}
        assert (await its.ask(Request("read", "climate")))["temperature_correction"] == -1.5

        refused: list[tuple[str, Value, str]] = [
            ("temperature_correction", 11, "outside -10 to 10"),
            ("temperature_correction", 0.05, "step"),
            ("temperature_correction", "warm", "outside"),
            ("humidity_correction", 1, "writing is off"),
            ("temperature", 1, "cannot be written"),
            ("colour", 1, "no point colour"),
        ]
        for point, value, why in refused:
            with pytest.raises(CitygateError, match=why):
                await its.ask(Request("write", "climate", point, value))


async def test_a_silent_device_turns_bad_and_returns(tmp_path: Path) -> None:
    devices = {"meter": {"template": shipped("eastron/sdm120"), "unit_id": 1, "every": "100 ms"}}
    config = link(devices, port=str(tmp_path / "line"), baud_rate=115200, timeout="50 ms")
    async with bench(config) as its:
        assert (await its.set_of("meter")).values()
        its.world.faults.silent.add("meter")
        while (readings := await its.set_of("meter", len(its.recorder.sets))).values():
            pass
        assert {r.reason.value for r in readings.readings} == {"timeout"}
        its.world.faults.silent.clear()
        got = await its.ask(Request("read", "meter"))
        assert None not in got.values()
