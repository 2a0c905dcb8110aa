"""The RS-485 scenarios: on a pty always, on two real adapters when `hil/bench.yaml` names them."""

import asyncio
import contextlib
import dataclasses
import os
import select
import threading
import time
import tty
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from drivers.modbus.config import ModbusConfig
from drivers.modbus.driver import DRIVER
from drivers.modbus.simulator import SIMULATOR
from gateway.sdk.config import parse_duration_s
from gateway.sdk.driver import Receipt
from gateway.sdk.reading import ReadingSet
from gateway.sdk.simulator import Faults, World
from gateway.sdk.streams import open_serial
from gateway.sdk.testing import RecordingContext
from tests.support.modbus_config import link, shipped

HERE = Path(__file__).parent
SCENARIOS = sorted((HERE / "rs485").glob("*.yaml"))


@dataclasses.dataclass
class Ends:
    """Where the simulated devices speak and where the gateway listens; the same path on a pty."""

    device: str
    gateway: str


def wired() -> tuple[Ends, list[int]]:
    """Two ptys whose far ends are soldered together: what two adapters on one wire are, without the adapters."""
    (a, device), (b, gateway) = os.openpty(), os.openpty()
    for end in (device, gateway):
        tty.setraw(end)
    return Ends(os.ttyname(device), os.ttyname(gateway)), [a, b, device, gateway]


def solder(a: int, b: int) -> None:
    """Pass bytes both ways until an end is closed."""
    with contextlib.suppress(OSError):
        while ready := select.select([a, b], [], [], 0.5)[0] or [-1]:
            for end in ready:
                if end >= 0:
                    os.write(b if end == a else a, os.read(end, 256))
                else:
                    os.fstat(a)  # raises when it is closed


@pytest.fixture(params=["pty", "two ports", "adapters"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    if request.param == "pty":
        yield Ends(str(tmp_path / "line"), str(tmp_path / "line"))
    elif request.param == "two ports":
        ports, descriptors = wired()
        wire = threading.Thread(target=solder, args=descriptors[:2])
        wire.start()
        yield ports
        for descriptor in descriptors:
            os.close(descriptor)
        wire.join()
    else:
        yield adapters()


def adapters() -> Ends:
    """Those of the bench; the test is skipped when it has none."""
    bench = HERE / "bench.yaml"
    if not bench.exists():
        pytest.skip("no hil/bench.yaml: copy bench.example.yaml and name two RS-485 adapters wired to each other")
    its = (yaml.safe_load(bench.read_text()) or {}).get("rs485") or {}
    for end in ("device", "gateway"):
        if not its.get(end):
            pytest.skip(f"hil/bench.yaml names no rs485.{end}: the adapter on the {end}'s side is missing")
    return Ends(its["device"], its["gateway"])


class Play:
    """One scenario while it is played."""

    def __init__(self, scenario: dict[str, Any], ends: Ends) -> None:
        self.scenario, self.ends = scenario, ends
        self.served: set[tuple[str, str, float]] = set()
        self.sets: list[tuple[float, ReadingSet]] = []
        self.world = World(value=lambda device, point, n: 15 + n % 40, served=self._serve, faults=Faults())
        self.started_s = 0.0

    def config(self, port: str) -> ModbusConfig:
        devices = {
            name: {**its, "template": shipped(its["template"])} for name, its in self.scenario["devices"].items()
        }
        return link(devices, port=port, **self.scenario["line"])

    def _serve(self, device: str, values: dict[str, float]) -> None:
        self.served |= {(device, point, round(value, 6)) for point, value in values.items()}

    async def _emit(self, readings: ReadingSet) -> Receipt:
        self.sets.append((time.monotonic() - self.started_s, readings))
        return await RecordingContext().context.emit(readings)

    async def run(self) -> None:
        context = dataclasses.replace(
            RecordingContext().context,
            emit=self._emit,
            open_serial=open_serial,
            sleep=asyncio.sleep,
            monotonic_s=time.monotonic,
        )
        self.started_s = time.monotonic()
        async with self._simulated(), asyncio.TaskGroup() as tasks:
            driver = tasks.create_task(DRIVER.run(self.config(self.ends.gateway), context))
            for step in self.scenario["steps"]:
                await self._at(step["at"])
                self.world.faults.silent ^= {step.get("silent") or step["back"]}
            await self._at(self.scenario["seconds"])
            driver.cancel()

    @contextlib.asynccontextmanager
    async def _simulated(self) -> AsyncIterator[None]:
        if self.ends.device == self.ends.gateway:
            speaking = asyncio.create_task(SIMULATOR.run(self.config(self.ends.device), self.world))
        else:
            speaking = asyncio.create_task(SIMULATOR.run_on(self.config(self.ends.device), self.world, open_serial))
        await asyncio.sleep(0.05)
        try:
            yield
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)

    async def _at(self, seconds: float) -> None:
        await asyncio.sleep(self.started_s + seconds - time.monotonic())

    def good(self, device: str, after_s: float, before_s: float) -> int:
        return sum(s.device == device and bool(s.values()) and after_s <= at < before_s for at, s in self.sets)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
async def test_scenario(file: Path, ends: Ends) -> None:
    scenario = yaml.safe_load(file.read_text())
    play = Play(scenario, ends)

    await play.run()

    expect = scenario["expect"]
    [silent] = [step for step in scenario["steps"] if "silent" in step]
    [back] = [step for step in scenario["steps"] if "back" in step]
    wrong = [
        (s.device, r.point, r.value)
        for _, s in play.sets
        for r in s.readings
        if isinstance(r.value, int | float) and (s.device, r.point, round(float(r.value), 6)) not in play.served
    ]
    assert len(wrong) == expect["wrong_values"], wrong
    for device in scenario["devices"]:
        if device != silent["silent"]:
            nominal = (back["at"] - silent["at"]) / parse_duration_s(scenario["devices"][device]["every"])
            assert play.good(device, silent["at"], back["at"]) >= expect["neighbours_share"] * nominal - 1, device
    reasons = {r.reason for _, s in play.sets for r in s.readings if s.device == silent["silent"] and r.value is None}
    assert expect["silent_reason"] in reasons
    assert play.good(silent["silent"], 0, silent["at"]) >= 1
