"""Modbus units of one link on a pty or TCP, from the template's register map. Writes its own bytes.

Faults by name in `Faults.extra`: `bad_crc`: devices whose replies carry a wrong CRC; `exception`: device -> code to
answer with; `split_s`: pause between the bytes of a reply; `identify`: devices that answer function 43/14;
`unhealthy`: devices whose status point reports a fault.
"""

import asyncio
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

from gateway.sdk.config import LinkConfig
from gateway.sdk.driver import OpenSerial
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

    def __init__(self, name: str, point: Any, base: int) -> None:
        self.name, self.point = name, point
        self.start = base + point.address
        self.scale = point.scale * (0.1 if point.factor is not None else 1)  # factor registers hold -1
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
            data = struct.pack(_FORMATS[point.type], (value - point.offset) / self.scale)
            exact = struct.unpack(_FORMATS[point.type], data)[0] * self.scale + point.offset
            return self._in_order(data), exact
        if point.enum:
            raw = list(point.enum)[round(value) % len(point.enum)]
        elif point.bits:
            raw = round(value) % (1 << point.bits[1])
        else:
            raw = self._clamped(round((value - point.offset) / self.scale))
        exact = float(raw) if point.bits or point.enum else raw * self.scale + point.offset
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
        self._template = device.template
        self._places: dict[str, list[_Place]] = {}
        self._fixed: dict[tuple[str, int], int] = {}  # registers that do not change by themselves
        bases = self._sunspec_map()
        for point, its in device.template.points.items():
            base = bases.get(its.model, 0)
            self._places.setdefault(its.table, []).append(_Place(point, its, base))
            if its.factor is not None:
                self._fixed[its.table, base + its.factor] = 0xFFFF  # 10 to the -1
        settings = device.template.settings
        if settings.unit_id is not None:
            self._set(settings.unit_id, device.unit_id)
        if settings.baud_rate is not None:
            rate = device.template.serial.baud_rate
            self._set(settings.baud_rate, settings.baud_rate.codes.get(rate, rate))

    def _sunspec_map(self) -> dict[int | None, int]:
        """Marker, common model, then the models of the template, as the specification orders them."""
        models = sorted({its.model for its in self._template.points.values() if its.model is not None})
        if not models:
            return {}
        self._write_words("holding", 40000, [0x5375, 0x6E53, 1, 66, *[0] * 66])
        address, bases = 40070, dict[int | None, int]()
        for model in models:
            points = [its for its in self._template.points.values() if its.model == model]
            length = max(max(its.address + 4, (its.factor or 0) + 1) for its in points) - 2
            self._write_words("holding", address, [model, length])
            bases[model] = address
            address += 2 + length
        self._write_words("holding", address, [0xFFFF, 0])
        return bases

    def _set(self, setting: Any, value: int) -> None:
        words = [value] if setting.type == "uint16" else [value >> 16, value & 0xFFFF]
        if setting.type == "float32":
            words = list(struct.unpack(">HH", struct.pack(">f", value)))
        self._write_words("holding", setting.address, words)

    def _write_words(self, table: str, address: int, words: list[int]) -> None:
        for offset, word in enumerate(words):
            self._fixed[table, address + offset] = word

    def answer(self, pdu: bytes) -> tuple[bytes, dict[str, float]]:
        """Reply PDU, and the values in it."""
        function = pdu[0]
        forced = self._world.faults.extra.get("exception", {}).get(self.name)
        if forced is not None:
            return bytes((function | 0x80, forced)), {}
        if function in _FUNCTIONS and len(pdu) == 5:
            return self._read(function, int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big"))
        if function in (5, 6, 16):
            return self._write(pdu), {}
        if pdu[:2] == b"\x2b\x0e" and self.name in self._world.faults.extra.get("identify", ()):
            return self._identification(), {}
        return bytes((function | 0x80, 1)), {}

    def _read(self, function: int, address: int, count: int) -> tuple[bytes, dict[str, float]]:
        table = _FUNCTIONS[function]
        if not 1 <= count <= (2000 if function < 3 else 125):
            return bytes((function | 0x80, 3)), {}
        places = self._places.get(table, [])
        known = [(p.start, p.end) for p in places] + [(at, at + 1) for t, at in self._fixed if t == table]
        if not any(start < address + count and end > address for start, end in known) or not (
            min(start for start, _ in known) <= address and address + count <= max(end for _, end in known)
        ):
            return bytes((function | 0x80, 2)), {}
        registers, values = self._registers(table, places, address, count)
        if function < 3:
            packed = bytearray((count + 7) // 8)
            for place, bit in enumerate(registers):
                packed[place // 8] |= bit << place % 8
            return bytes((function, len(packed))) + packed, values
        return bytes((function, 2 * count)) + struct.pack(f">{count}H", *registers), values

    def _registers(
        self, table: str, places: list[_Place], address: int, count: int
    ) -> tuple[list[int], dict[str, float]]:
        registers = [self._fixed.get((table, address + n), 0) for n in range(count)]
        values: dict[str, float] = {}
        for place in places:
            if place.end <= address or place.start >= address + count or (table, place.start) in self._fixed:
                continue
            value = self._value(place)
            words, exact = place.registers(value)
            for offset, word in enumerate(words):
                if address <= place.start + offset < address + count:
                    registers[place.start + offset - address] |= word
            if address <= place.start and place.end <= address + count:
                place.served += 1
                values[place.name] = exact
        return registers, values

    def _value(self, place: _Place) -> float:
        status = self._template.status
        if status is not None and place.name == status.point:
            return float(status.healthy) + (self.name in self._world.faults.extra.get("unhealthy", ()))
        return self._world.value(self.name, place.name, place.served)

    def _write(self, pdu: bytes) -> bytes:
        function, address = pdu[0], int.from_bytes(pdu[1:3], "big")
        table = "coil" if function == 5 else "holding"
        words = (
            [int(pdu[3:5] == b"\xff\x00")]
            if function == 5
            else [int.from_bytes(pdu[3:5], "big")]
            if function == 6
            else [int.from_bytes(pdu[at : at + 2], "big") for at in range(6, len(pdu), 2)]
        )
        writable = {at for t, at in self._fixed if t == table}
        for place in self._places.get(table, []):
            if place.point.write is not None:
                writable |= set(range(place.start, place.end))
        if not set(range(address, address + len(words))) <= writable:
            return bytes((function | 0x80, 2))
        self._write_words(table, address, words)
        setting = self._template.settings.unit_id
        if table == "holding" and setting is not None and address == setting.address:
            self.unit_id = words[-1] if setting.type != "float32" else round(struct.unpack(">f", pdu[6:10])[0])
        return pdu if function != 16 else pdu[:5]

    def _identification(self) -> bytes:
        """Function 43/14: vendor, product, revision."""
        texts = (self._template.vendor, self._template.model, "1.0")
        objects = b"".join(bytes((n, len(text))) + text.encode()[:60] for n, text in enumerate(texts))
        return b"\x2b\x0e\x01\x01\x00\x00" + bytes((len(texts),)) + objects


class ModbusSimulator:
    """Plays all units of one link where its config expects them: a pty linked at `port:`, or a TCP server."""

    name = "modbus"

    async def run(self, config: LinkConfig, world: World) -> None:
        """Answer until cancelled."""
        its: Any = config
        units = [_Unit(name, device, world) for name, device in its.devices.items()]
        line = _Line(units, world)
        if its.host:
            session = line.tcp_session if its.framing in (None, "tcp") else line.rtu_session
            async with serve_tcp(its.host, int(its.port or 502), session):
                await asyncio.Event().wait()
        async with open_pty(its.port) as pty:
            buffer = b""
            while True:
                buffer = (buffer + await pty.read())[-4096:]
                buffer = await line.rtu_turn(buffer, pty.write)

    async def run_on(self, config: LinkConfig, world: World, open_serial: OpenSerial) -> None:
        """As `run`, on a real adapter: the device's end of a wire. Raises LinkError when it is gone."""
        its: Any = config
        line = _Line([_Unit(name, device, world) for name, device in its.devices.items()], world)
        async with open_serial(
            its.port, its.baud_rate, parity=its.parity, stop_bits=its.stop_bits, data_bits=its.data_bits
        ) as port:
            buffer, sending = b"", list[bytes]()
            while True:
                buffer = await line.rtu_turn((buffer + await port.read())[-4096:], sending.append)
                await port.write(b"".join(sending))
                sending.clear()


class _Line:
    """Requests in, replies out, for all units of the link."""

    def __init__(self, units: list[_Unit], world: World) -> None:
        self._all, self._world = units, world

    def _addressed(self, unit_id: int) -> _Unit | None:
        """The unit that answers to this id now; it may have been given another one."""
        return next((unit for unit in self._all if unit.unit_id == unit_id), None)

    async def rtu_turn(self, buffer: bytes, write: Callable[[bytes], None]) -> bytes:
        """Answer what is whole in `buffer`; returns what is left."""
        while len(buffer) >= 7:
            size = 9 + buffer[6] if buffer[1] in (15, 16) else 7 if buffer[1] == 43 else 8
            if len(buffer) < size:
                return buffer
            frame = buffer[:size]
            if crc(frame[:-2]) != frame[-2:]:
                buffer = buffer[1:]
                continue
            buffer = buffer[size:]
            unit = self._addressed(frame[0])
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
            unit = self._addressed(head[6])
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

    async def rtu_session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to a serial server that passes the line's bytes on as they are."""
        buffer = b""
        while data := await reader.read(4096):
            buffer = await self.rtu_turn((buffer + data)[-4096:], writer.write)

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
