"""For tests of the daemon: a whole box in this process, its drivers moved by hand, a strict broker as its city."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.clock import Box, SystemClock, this_box
from gateway.daemon import Daemon
from gateway.environment import Environment
from gateway.sdk.driver import Context
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, Value
from tests.support.bench_driver import BenchDriver, BenchLink, BenchRegistry
from tests.support.strict_broker import StrictBroker

CONFIG = """\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.159, 45.503]}}
buffer: {{path: "{folder}/buffer.db", commit_every: 100 ms}}
publish: {{devices: 0 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:0"}}
links:
  roof:
    driver: bench
    port: /dev/serial/by-id/usb-x
    devices:
      meter-1: {{template: acme/meter, unit_id: 1}}
  air:
    driver: bench
    host: 192.0.2.1
    devices:
      air-1: {{template: acme/air}}
brokers:
  milano: {{url: "{url}", linger: 0 s}}
"""


@dataclass
class HandDriver(BenchDriver):
    """A driver whose runs are kept, and are moved by the test.

    Attributes:
        runs: link -> (config, context) of each of its runs, the newest last.
        work: what a run does; by default it waits.
    """

    runs: dict[str, list[tuple[BenchLink, Context]]] = field(default_factory=dict)
    work: dict[str, Callable[[Context], Awaitable[None]]] = field(default_factory=dict)

    async def run(self, config: BenchLink, context: Context) -> None:
        self.runs.setdefault(context.link, []).append((config, context))
        if (work := self.work.get(context.link)) is not None:
            await work(context)
        await asyncio.Event().wait()


class HandRegistry(BenchRegistry):
    """A registry whose `bench` is the hand driver."""

    def __init__(self, driver: HandDriver) -> None:
        self._hand = driver

    def driver(self, name: str) -> Any:
        return self._hand if name == "bench" else super().driver(name)


class QuickClock(SystemClock):
    """A clock that runs so many times as fast: what the box waits for between two looks comes sooner."""

    def __init__(self, times: float = 20.0) -> None:
        wall_ns, boot_ns = time.time_ns(), time.monotonic_ns()
        self._times = times

        def passed_ns() -> int:
            return int((time.monotonic_ns() - boot_ns) * times)

        its = this_box()
        box = Box(
            its.boot_id, lambda: wall_ns + passed_ns(), lambda: boot_ns + passed_ns(), its.synchronised, its.rtc_s
        )
        super().__init__("system", box)

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self._times)


class InProcess:
    """The box: its folder, config, daemon, driver and broker.

    Args:
        clock: of all its runs; default: the system's, a new one for each.
    """

    def __init__(self, folder: Path, url: str, broker: StrictBroker, clock: SystemClock | None = None) -> None:
        self.folder, self.broker, self.clock = folder, broker, clock
        self.driver = HandDriver()
        self.path = folder / "citygate.yaml"
        self.last_good = folder / "last-good.json"
        self.path.write_text(CONFIG.format(folder=folder, url=url))
        self.daemon: Daemon

    def edit(self, *changes: tuple[str, str]) -> None:
        """Change the operator's file."""
        text = self.path.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        self.path.write_text(text)

    async def reload(self, *changes: tuple[str, str]) -> dict[str, Any]:
        """Change the file and reload it; what the reload says, once the drivers that it starts are at work."""
        self.edit(*changes)
        before = self.runs()
        said = await self.daemon.reload()
        links = self.daemon.plan.links
        begun = [name for name in said["restarted"] if name in links and links[name].driver is not None]
        await self.until(lambda: all(self.runs().get(name, 0) > before.get(name, 0) for name in begun))
        return said

    def runs(self) -> Mapping[str, int]:
        """How often each link's driver was started."""
        return {name: len(runs) for name, runs in self.driver.runs.items()}

    async def emit(self, link: str, device: str, **values: Value | Reason) -> datetime:
        """What the newest run of a link hands over: values, or why there is none; their time."""
        await self.until(lambda: link in self.driver.runs)
        now = datetime.now(UTC)
        readings = tuple(
            Reading(point, None, now, Quality.BAD, value) if isinstance(value, Reason) else Reading(point, value, now)
            for point, value in values.items()
        )
        await self.driver.runs[link][-1][1].emit(ReadingSet(device, readings))
        return now

    def device(self, link: str, device: str) -> dict[str, Any]:
        """One device of the status."""
        found: dict[str, Any] = self.daemon.status()["links"][link]["devices"][device]
        return found

    def link(self, link: str) -> dict[str, Any]:
        """One link of the status."""
        found: dict[str, Any] = self.daemon.status()["links"][link]
        return found

    async def until(self, condition: Callable[[], Any], *, within_s: float = 10.0) -> None:
        """Wait until something of the box holds, which has no event to wait for."""
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """The daemon as the service starts it, from its start to a clean stop."""
        self.driver.runs.clear()
        self.daemon = Daemon(
            self.path,
            Environment(),
            registry=HandRegistry(self.driver),  # type: ignore[arg-type]
            clock=self.clock or SystemClock(trust="system"),
            last_good=self.last_good,
            fall_back=True,
        )
        task = asyncio.create_task(self.daemon.run(), name="daemon")
        try:
            links = {
                name for name, link in self.daemon.plan.links.items() if link.driver is not None and not link.fault
            }
            await self.until(lambda: task.done() or links == self.driver.runs.keys())
            yield
        finally:
            self.daemon.stop()
            await asyncio.wait_for(task, 15)


@contextlib.asynccontextmanager
async def box(folder: Path, *changes: tuple[str, str]) -> AsyncIterator[InProcess]:
    """A box at work with its broker; `changes` are made to its file first."""
    broker = StrictBroker()
    async with broker.serve() as url:
        its = InProcess(folder, url, broker)
        its.edit(*changes)
        async with its.at_work():
            yield its
