"""The Modbus driver on a line in memory, on which time is a number."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

import pytest

from drivers.modbus.config import ModbusConfig
from drivers.modbus.driver import DRIVER
from gateway.sdk.errors import LinkError, PortClosed
from gateway.sdk.reading import Reason, Value
from gateway.sdk.streams import ByteStream
from gateway.sdk.testing import ManualClock, RecordingContext
from tests.support import modbus_slave as slave

Answer = Callable[[slave.Request], list[tuple[float, bytes]]]


def served(request: slave.Request) -> list[tuple[float, bytes]]:
    """Register n holds 100 * unit + n."""
    values = [100 * request.unit + request.address + n for n in range(request.count)]
    return [(0.02, slave.rtu(request.unit, slave.words(request.function, values)))]


class Bench:
    """A driver running on a line in memory, stopped after some sets or when the line closes."""

    def __init__(self, config: ModbusConfig, answer: Answer) -> None:
        parse = slave.parse_tcp if config.wire == "tcp" else slave.parse_rtu
        self.asked: list[slave.Request] = []
        self.connected = self.runs = 0

        def reply(frame: bytes) -> list[tuple[float, bytes]]:
            request = parse(frame)
            self.asked.append(request)
            return answer(request)

        self.config = config
        self.clock = ManualClock()
        self.line = slave.MemoryLine(self.clock, reply, lambda: PortClosed("the line is gone"))
        self.recorder = RecordingContext(self.line, self.clock)

    async def run_for(self, seconds: float) -> None:
        self.line.closed_at_s = self.clock.monotonic_s() + seconds
        context = dataclasses.replace(self.recorder.context, open_tcp=self._connect)
        while self.clock.monotonic_s() < self.line.closed_at_s:
            with pytest.raises(LinkError):
                await DRIVER.run(self.config, context)
            self.runs += 1
            self.clock.advance(1.0)  # as a supervisor would

    @contextlib.asynccontextmanager
    async def _connect(self, *_: object, **__: object) -> AsyncIterator[ByteStream]:
        """Over TCP a line that is closed stays closed."""
        if self.line.closed_at_s is not None and self.clock.monotonic_s() >= self.line.closed_at_s:
            raise LinkError("cannot connect")
        self.connected += 1
        self.line.reopened()
        yield self.line

    def sets(self, device: str) -> list[dict[str, Value]]:
        return [s.values() for s in self.recorder.sets if s.device == device]

    def reasons(self, device: str) -> list[Reason]:
        return [s.readings[0].reason for s in self.recorder.sets if s.device == device]
