"""Modbus units of one link on a pty or TCP, from the template's register map. Writes its own bytes.

Faults by name in `Faults.extra`: `bad_crc`: devices whose replies carry a wrong CRC; `exception`: device -> code to
answer with; `split_s`: pause between the bytes of a reply.
"""

import asyncio
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

from gateway.sdk.config import LinkConfig
from gateway.sdk.simulator import World, open_pty, serve_tcp

_FUNCTIONS = {1: "coil", 2: "discrete", 3: "holding", 4: "input"}
_FORMATS = {
    "uint16": ">H", "int16": ">h", "uint32": ">I", "int32": ">i", "uint64": ">Q", "int64": ">q",
    "float32": ">f", "float64": ">d",
}  # fmt: skip


def crc(data: bytes) -> bytes:
    """CRC-16 of RTU bit by bit, low byte first, as the specification's appendix B describes it."""
    register = 0xFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            carry = register & 1
            register >>= 1
            if carry:
                register ^= 0xA001
    return bytes((register & 0xFF, register >> 8))


class _Place:
    """One point in the register map of one device."""

    def __init__(self, name: str, point: Any) -> None:
        self.name, self.point = name, point
        self.start = point.address
        self.served = 0
        kind = point.type
        if kind == "bit":
            self.words = 1
        elif kind == "string":
            self.words = point.words
        else:
            self.words = int("".join(filter(str.isdigit, kind))) // 16

    @property
    def end(self) -> int:
        return int(self.start + self.words)

    def registers(self, value: float) -> tuple[list[int], float]:
        """The registers (or the bit) for a value, and the value they stand for."""
        point = self.point
        if point.type == "bit":
            return [int(bool(value))], float(bool(value))
        if point.type == "string":
            text = f"{value:g}"[: 2 * self.words].encode().ljust(2 * self.words, b"\0")
            return self._in_order(text, words=False), value
        if point.type in ("float32", "float64"):
            data = struct.pack(_FORMATS[point.type], (value - point.offset) / point.scale)
            exact = struct.unpack(_FORMATS[point.type], data)[0] * point.scale + point.offset
            return self._in_order(data), exact
        if point.enum:
            raw = list(point.enum)[round(value) % len(point.enum)]
        elif point.bits:
            raw = round(value) % (1 << point.bits[1])
        else:
            raw = self._clamped(round((value - point.offset) / point.scale))
        exact = float(raw) if point.bits or point.enum else raw * point.scale + point.offset
        return self._in_order(self._packed(raw << point.bits[0] if point.bits else raw)), exact

    def _clamped(self, raw: int) -> int:
        bits = 16 * self.words
        low, high = {
            "u": (0, 2**bits - 1),
            "i": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
            "b": (0, 10 ** (bits // 4) - 1),
            "s": (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1),
        }[self.point.type[0]]
        raw = low + (raw - low) % (high - low + 1)  # wraps, as a counter does
        return int(raw + 1 if raw in self.point.invalid else raw)

    def _packed(self, raw: int) -> bytes:
        kind, size = self.point.type, 2 * self.words
        if kind.startswith("bcd"):
            return bytes.fromhex(str(raw).zfill(2 * size))
        if kind.startswith("signmag"):
            return (abs(raw) | ((1 << (8 * size - 1)) if raw < 0 else 0)).to_bytes(size, "big")
        return struct.pack(_FORMATS[kind], raw)

    def _in_order(self, data: bytes, *, words: bool = True) -> list[int]:
        order: Literal["big", "little"] = self.point.byte_order
        registers = [int.from_bytes(data[i : i + 2], order) for i in range(0, len(data), 2)]
        return registers[::-1] if words and self.point.word_order == "little" else registers


class _Unit:
    """One simulated device."""

    def __init__(self, name: str, device: Any, world: World) -> None:
        self.name, self._world = name, world
        self.unit_id = device.unit_id
        self._places: dict[str, list[_Place]] = {}
        for point, its in device.template.points.items():
            self._places.setdefault(its.table, []).append(_Place(point, its))

    def answer(self, pdu: bytes) -> tuple[bytes, dict[str, float]]:
        """Reply PDU, and the values in it."""
        function = pdu[0]
        forced = self._world.faults.extra.get("exception", {}).get(self.name)
        if forced is not None:
            return bytes((function | 0x80, forced)), {}
        if function not in _FUNCTIONS or len(pdu) != 5:
            return bytes((function | 0x80, 1)), {}
        table = _FUNCTIONS[function]
        address, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        if not 1 <= count <= (2000 if function < 3 else 125):
            return bytes((function | 0x80, 3)), {}
        places = self._places.get(table, [])
        if not places or address < min(p.start for p in places) or address + count > max(p.end for p in places):
            return bytes((function | 0x80, 2)), {}
        registers, values = self._registers(places, address, count)
        if function < 3:
            packed = bytearray((count + 7) // 8)
            for place, bit in enumerate(registers):
                packed[place // 8] |= bit << place % 8
            return bytes((function, len(packed))) + packed, values
        return bytes((function, 2 * count)) + struct.pack(f">{count}H", *registers), values

    def _registers(self, places: list[_Place], address: int, count: int) -> tuple[list[int], dict[str, float]]:
        registers = [0] * count
        values: dict[str, float] = {}
        for place in places:
            if place.end <= address or place.start >= address + count:
                continue
            value = self._world.value(self.name, place.name, place.served)
            words, exact = place.registers(value)
            for offset, word in enumerate(words):
                if address <= place.start + offset < address + count:
                    registers[place.start + offset - address] |= word
            if address <= place.start and place.end <= address + count:
                place.served += 1
                values[place.name] = exact
        return registers, values


class ModbusSimulator:
    """Plays all units of one link where its config expects them: a pty linked at `port:`, or a TCP server."""

    name = "modbus"

    async def run(self, config: LinkConfig, world: World) -> None:
        """Answer until cancelled."""
        its: Any = config
        units = {device.unit_id: _Unit(name, device, world) for name, device in its.devices.items()}
        line = _Line(units, world)
        if its.host:
            async with serve_tcp(its.host, int(its.port or 502), line.tcp_session):
                await asyncio.Event().wait()
        async with open_pty(its.port) as pty:
            buffer = b""
            while True:
                buffer = (buffer + await pty.read())[-4096:]
                buffer = await line.rtu_turn(buffer, pty.write)


class _Line:
    """Requests in, replies out, for all units of the link."""

    def __init__(self, units: dict[int, _Unit], world: World) -> None:
        self._units, self._world = units, world

    async def rtu_turn(self, buffer: bytes, write: Callable[[bytes], None]) -> bytes:
        """Answer what is whole in `buffer`; returns what is left."""
        while len(buffer) >= 8:
            size = 9 + buffer[6] if buffer[1] in (15, 16) else 8
            if len(buffer) < size:
                return buffer
            frame = buffer[:size]
            if crc(frame[:-2]) != frame[-2:]:
                buffer = buffer[1:]
                continue
            buffer = buffer[size:]
            unit = self._units.get(frame[0])
            if unit is not None and await self._awake(unit):
                pdu, values = unit.answer(frame[1:-2])
                body = frame[:1] + pdu
                check = crc(body)
                if unit.name in self._world.faults.extra.get("bad_crc", ()):
                    check, values = bytes((check[0] ^ 0x55, check[1])), {}
                await self._send(body + check, write)
                self._tell(unit, values)
        return buffer

    async def tcp_session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; a silent unit delays nobody, as in a gateway with a queue per unit."""
        while True:
            head = await reader.readexactly(7)
            body = await reader.readexactly(int.from_bytes(head[4:6], "big") - 1)
            unit = self._units.get(head[6])
            if unit is None:
                pdu, values = bytes((body[0] | 0x80, 11)), dict[str, float]()
            elif not await self._awake(unit):
                continue
            else:
                pdu, values = unit.answer(body)
            writer.write(head[:4] + (len(pdu) + 1).to_bytes(2, "big") + head[6:] + pdu)
            if unit is not None:
                self._tell(unit, values)
            await writer.drain()

    async def _awake(self, unit: _Unit) -> bool:
        faults = self._world.faults
        if unit.name in faults.silent:
            return False
        if late_s := faults.late_s.get(unit.name, 0.0):
            await self._world.sleep(late_s)
        return True

    async def _send(self, frame: bytes, write: Callable[[bytes], None]) -> None:
        pause_s = self._world.faults.extra.get("split_s", 0.0)
        for piece in _pieces(frame, 1 if pause_s else len(frame)):
            write(piece)
            if pause_s:
                await self._world.sleep(pause_s)

    def _tell(self, unit: _Unit, values: dict[str, float]) -> None:
        if values:
            self._world.served(unit.name, values)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


SIMULATOR = ModbusSimulator()
