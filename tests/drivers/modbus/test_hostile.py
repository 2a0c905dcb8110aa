"""A slave that misbehaves in every known way never makes a wrong value: it is right, or there is none and a reason."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from drivers.modbus.config import ModbusConfig
from drivers.modbus.driver import DRIVER
from gateway.sdk.driver import Context, Receipt
from gateway.sdk.errors import LinkError, PortClosed
from gateway.sdk.reading import Quality, ReadingSet, Reason
from gateway.sdk.simulator import open_pty
from gateway.sdk.streams import ByteStream, open_serial
from gateway.sdk.testing import ManualClock, RecordingContext
from tests.support import modbus_slave as slave
from tests.support.hostile_slave import HostileSlave
from tests.support.modbus_config import link, template

FAR_APART = template(
    a={"address": 0, "type": "uint64"},
    b={"address": 4, "type": "uint64"},
    c={"address": 400, "type": "uint64"},
    d={"address": 404, "type": "uint64", "table": "input"},
)
# 24 coils from 0x0300: the one read whose reply can look like its own request
COILS = template(**{f"c{n}": {"address": 0x300 + n, "table": "coil", "type": "bit"} for n in range(24)})
FUNCTIONS = {"coil": 1, "holding": 3, "input": 4}


def three_units(**its: object) -> ModbusConfig:
    kinds = {"one": FAR_APART, "two": FAR_APART, "three": COILS}
    devices = {
        name: {"template": kind, "unit_id": unit, "every": "100 ms"}
        for unit, (name, kind) in enumerate(kinds.items(), 1)
    }
    return link(devices, **its)


class Judge:
    """Compares every emitted value with what the slave meant the last request for it to bring."""

    def __init__(self, config: ModbusConfig, hostile: HostileSlave, recorder: RecordingContext) -> None:
        self._config, self._truth, self._recorder = config, hostile.truth, recorder
        self.good = self.bad = 0
        self.reasons: set[Reason] = set()

    @property
    def context(self) -> Context:
        return dataclasses.replace(self._recorder.context, emit=self._emit)

    async def _emit(self, readings: ReadingSet) -> Receipt:
        device = self._config.devices[readings.device]
        assert {r.point for r in readings.readings} == set(device.template.points)
        for reading in readings.readings:
            point = device.template.points[reading.point]
            if reading.quality is Quality.GOOD:
                truth = self._truth[device.unit_id, FUNCTIONS[point.table], point.address]
                assert reading.value == truth, f"{readings.device}.{reading.point} is {reading.value}, not {truth}"
                self.good += 1
            else:
                assert reading.value is None
                self.reasons.add(reading.reason)
                self.bad += 1
        return await self._recorder.context.emit(readings)


@pytest.mark.parametrize("wire", ["rtu", "tcp"])
async def test_ten_thousand_exchanges_with_a_hostile_slave_make_no_wrong_value(wire: str) -> None:
    await ten_thousand_exchanges(wire, seed=20261122)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("wire", ["rtu", "tcp"])
async def test_other_hostile_slaves_make_no_wrong_value_either(wire: str, seed: int) -> None:
    await ten_thousand_exchanges(wire, seed)


async def ten_thousand_exchanges(wire: str, seed: int) -> None:
    """The judge fails at the first wrong value."""
    place = {"host": "192.0.2.1"} if wire == "tcp" else {}
    config = three_units(timeout="300 ms", **place)
    hostile = HostileSlave(seed=seed, framing=wire)
    parse = slave.parse_tcp if wire == "tcp" else slave.parse_rtu
    clock = ManualClock()
    recorder = RecordingContext(clock=clock)
    judge = Judge(config, hostile, recorder)
    exchanges = 0

    @contextlib.asynccontextmanager
    async def connect(*_: object, **__: object) -> AsyncIterator[ByteStream]:
        nonlocal exchanges
        if exchanges >= 10_000:
            raise PortClosed("enough")
        line = slave.MemoryLine(clock, lambda frame: hostile.answer(parse(frame)), lambda: PortClosed("unplugged"))
        if wire == "tcp":
            line.most = hostile.segment
        line.closed_at_s = clock.monotonic_s() + 100  # somewhere in a frame, sooner or later
        try:
            yield line
        finally:
            exchanges += len(line.written)

    context = dataclasses.replace(judge.context, open_serial=connect, open_tcp=connect)
    while exchanges < 10_000:
        with contextlib.suppress(LinkError):
            await DRIVER.run(config, context)

    assert judge.good > 5_000, "the slave was meant to answer well now and then"
    assert judge.reasons >= {Reason.TIMEOUT, Reason.BAD_FRAME, Reason.REFUSED, Reason.LINK_DOWN}
    assert min(hostile.did.values()) > 50, hostile.did


async def test_three_hundred_exchanges_with_a_hostile_slave_on_a_pty_make_no_wrong_value(tmp_path: Path) -> None:
    config = link(
        {
            f"{kind}-{unit}": {"template": FAR_APART if kind == "far" else COILS, "unit_id": unit, "every": "20 ms"}
            for unit, kind in enumerate(["far", "coils"] * 12, 1)
        },
        port=str(tmp_path / "line"),
        baud_rate=115200,
        timeout="15 ms",
        quiet="90 ms",
    )
    hostile = HostileSlave(seed=7, late_s=(0.02, 0.06))
    recorder = RecordingContext()
    judge = Judge(config, hostile, recorder)
    context = dataclasses.replace(
        judge.context, open_serial=open_serial, sleep=asyncio.sleep, monotonic_s=time.monotonic
    )
    exchanges = asyncio.Semaphore(0)

    async def play() -> None:
        async with open_pty(config.port) as pty, asyncio.TaskGroup() as pieces:
            while True:
                frame = await pty.read()
                for after_s, data in hostile.answer(slave.parse_rtu(frame)):
                    pieces.create_task(later(after_s, data, pty.write))
                exchanges.release()

    async def later(after_s: float, data: bytes, write: object) -> None:
        await asyncio.sleep(after_s)
        write(data)  # type: ignore[operator]  # pty.write

    async def drive() -> None:
        await asyncio.sleep(0)
        await DRIVER.run(config, context)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(play()), tasks.create_task(drive())]
        for _ in range(300):
            await exchanges.acquire()
        for task in reversed(running):
            task.cancel()

    assert judge.good > 100
