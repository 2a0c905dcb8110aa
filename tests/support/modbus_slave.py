"""The other end of a Modbus line, under test control: own bytes, own CRC, a clock moved by hand. No product code.

`MemoryLine` is a byte stream on which time is a number: waiting moves the clock to the next byte that comes, so ten
thousand exchanges with timeouts take seconds.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class MovableClock(Protocol):
    def monotonic_s(self) -> float: ...

    def advance(self, seconds: float) -> None: ...


def crc16(data: bytes) -> bytes:
    """Bit by bit, low byte first."""
    register = 0xFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ 0xA001 if register & 1 else register >> 1
    return register.to_bytes(2, "little")


def rtu(unit: int, pdu: bytes) -> bytes:
    body = bytes((unit,)) + pdu
    return body + crc16(body)


def tcp(number: int, unit: int, pdu: bytes) -> bytes:
    return number.to_bytes(2, "big") + b"\0\0" + (len(pdu) + 1).to_bytes(2, "big") + bytes((unit,)) + pdu


@dataclass(frozen=True, slots=True)
class Request:
    """What the master asked, taken apart by the slave."""

    number: int
    unit: int
    pdu: bytes

    @property
    def function(self) -> int:
        return self.pdu[0]

    @property
    def address(self) -> int:
        return int.from_bytes(self.pdu[1:3], "big")

    @property
    def count(self) -> int:
        return int.from_bytes(self.pdu[3:5], "big")


def parse_rtu(frame: bytes) -> Request:
    """A request as the master wrote it; it must be sound, whatever the slave then does."""
    assert crc16(frame[:-2]) == frame[-2:], frame.hex(" ")
    return Request(0, frame[0], frame[1:-2])


def parse_tcp(frame: bytes) -> Request:
    assert frame[2:4] == b"\0\0", frame.hex(" ")
    assert int.from_bytes(frame[4:6], "big") == len(frame) - 6, frame.hex(" ")
    return Request(int.from_bytes(frame[:2], "big"), frame[6], frame[7:])


def words(function: int, values: list[int]) -> bytes:
    """Reply PDU of a register read."""
    return bytes((function, 2 * len(values))) + b"".join(value.to_bytes(2, "big") for value in values)


@dataclass(slots=True)
class MemoryLine:
    """A line in memory.

    Attributes:
        answer: called with each frame the master writes; returns (seconds from now, bytes) pieces that come back.
        written: (when, frame) the master sent.
        closed_at_s: from then on the port is gone; reads and writes raise what `gone` makes.
        most: how many bytes the next read hands over at most; the rest stays for the one after.
    """

    clock: MovableClock
    answer: Callable[[bytes], list[tuple[float, bytes]]]
    gone: Callable[[], Exception]
    written: list[tuple[float, bytes]] = field(default_factory=list)
    closed_at_s: float | None = None
    most: Callable[[], int] = lambda: 1 << 20
    age_s: float = 0.0
    age_doubt_s: float = 0.0
    hangs_up_at_s: float | None = None
    _coming: list[tuple[float, int, bytes]] = field(default_factory=list)
    _count: int = 0

    def hang_up(self, after_s: float) -> None:
        """The other end closes this connection, with all that is under way on it."""
        self.hangs_up_at_s = self.clock.monotonic_s() + after_s

    def reopened(self) -> None:
        """A new connection."""
        self.hangs_up_at_s = None
        self._coming.clear()

    def send(self, after_s: float, data: bytes) -> None:
        """Bytes that arrive `after_s` from now."""
        self._count += 1
        heapq.heappush(self._coming, (self.clock.monotonic_s() + after_s, self._count, data))

    async def write(self, data: bytes) -> None:
        self._check()
        self.written.append((self.clock.monotonic_s(), data))
        for after_s, piece in self.answer(data):
            self.send(after_s, piece)

    async def read(self) -> bytes:
        data = await self.read_within(1e9)
        assert data, "waiting for ever"
        return data

    async def read_within(self, timeout_s: float) -> bytes:
        until_s = self.clock.monotonic_s() + timeout_s
        comes_s = self._coming[0][0] if self._coming else float("inf")
        if self.hangs_up_at_s is not None and self.hangs_up_at_s <= min(until_s, comes_s):
            self._move_to(self.hangs_up_at_s)
            raise self.gone()
        if self.closed_at_s is not None and self.closed_at_s <= min(until_s, comes_s):
            self._move_to(self.closed_at_s)
            raise self.gone()
        if comes_s > until_s:
            self._move_to(until_s)
            return b""
        self._move_to(comes_s)
        data = self.discard()
        most = self.most()
        if data[most:]:
            heapq.heappush(self._coming, (self.clock.monotonic_s(), 0, data[most:]))
        return data[:most]

    def discard(self) -> bytes:
        data = b""
        while self._coming and self._coming[0][0] <= self.clock.monotonic_s():
            data += heapq.heappop(self._coming)[2]
        return data

    def _move_to(self, at_s: float) -> None:
        self.clock.advance(max(0.0, at_s - self.clock.monotonic_s()))

    def _check(self) -> None:
        if self.closed_at_s is not None and self.closed_at_s <= self.clock.monotonic_s():
            raise self.gone()
