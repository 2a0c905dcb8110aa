"""A line in the field before anybody has set it up: devices with their own ids and speeds, opened at any speed."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gateway.sdk.driver import Context
from gateway.sdk.errors import PortClosed
from gateway.sdk.streams import ByteStream
from gateway.sdk.testing import ManualClock, RecordingContext
from tests.support import modbus_slave as slave


@dataclass(slots=True)
class Probe:
    """One device.

    Attributes:
        registers: (function 3 or 4, address) -> word; what is not there is refused with exception 2.
        id_register, baud_register: holding registers that set it; they take effect at once, or after `restart`.
        identification: texts of function 43/14; none: it refuses.
        stubborn: it accepts writes and forgets them.
    """

    unit_id: int = 1
    baud_rate: int = 9600
    parity: str = "N"
    registers: dict[tuple[int, int], int] = field(default_factory=dict)
    id_register: int = -1
    baud_register: int = -1
    at_once: bool = True
    identification: tuple[str, ...] = ()
    stubborn: bool = False

    def answer(self, request: slave.Request) -> bytes:
        """Reply PDU."""
        if request.function in (3, 4):
            wanted = [(request.function, request.address + n) for n in range(request.count)]
            if any(at not in self.registers for at in wanted):
                return bytes((request.function | 0x80, 2))
            return slave.words(request.function, [self.registers[at] for at in wanted])
        if request.function == 6:
            if (3, request.address) not in self.registers:
                return bytes((0x86, 2))
            if not self.stubborn:
                self.registers[3, request.address] = request.count
                if self.at_once:
                    self.restart()
            return request.pdu
        if request.function == 43 and self.identification:
            texts = b"".join(bytes((n, len(t))) + t.encode() for n, t in enumerate(self.identification))
            return b"\x2b\x0e\x01\x01\x00\x00" + bytes((len(self.identification),)) + texts
        return bytes((request.function | 0x80, 1))

    def restart(self) -> None:
        """Switched off and on: what was written takes effect."""
        self.unit_id = self.registers.get((3, self.id_register), self.unit_id)
        self.baud_rate = self.registers.get((3, self.baud_register), self.baud_rate)


class FieldLine:
    """A line with probes on it; `context` opens it at any speed."""

    def __init__(self, *probes: Probe) -> None:
        self.probes = probes
        self.clock = ManualClock()
        self.recorder = RecordingContext(clock=self.clock)
        self.opened: list[tuple[int, str]] = []
        self.requests: list[slave.Request] = []

    @property
    def context(self) -> Context:
        return dataclasses.replace(self.recorder.context, open_serial=self._open)

    @contextlib.asynccontextmanager
    async def _open(self, port: str, baud_rate: int, *, parity: str = "N", **_: object) -> AsyncIterator[ByteStream]:
        self.opened.append((baud_rate, parity))
        yield slave.MemoryLine(
            self.clock, lambda frame: self._answer(frame, baud_rate, parity), lambda: PortClosed("unplugged")
        )

    def _answer(self, frame: bytes, baud_rate: int, parity: str) -> list[tuple[float, bytes]]:
        request = slave.parse_rtu(frame)
        self.requests.append(request)
        heard = [p for p in self.probes if p.unit_id == request.unit]
        return [
            (0.02 + 0.003 * place, slave.rtu(request.unit, probe.answer(request)))
            if (probe.baud_rate, probe.parity) == (baud_rate, parity)
            else (0.02, b"\x80\xf8\x00")  # what an answer at another speed looks like
            for place, probe in enumerate(heard)
            if (probe.baud_rate, probe.parity) == (baud_rate, parity) or probe.baud_rate < baud_rate
        ]
