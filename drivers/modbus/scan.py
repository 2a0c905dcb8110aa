"""Look for units on a line: every unit id at every speed, read-only; then say what they are."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from drivers.modbus import sunspec
from drivers.modbus.codec.blocks import Block, Field
from drivers.modbus.codec.frames import (
    Ask,
    DeviceException,
    Framing,
    RtuFraming,
    Table,
    TcpFraming,
    read_request,
)
from drivers.modbus.codec.registers import Encoding
from drivers.modbus.codec.solve import Way, solutions
from drivers.modbus.config import TCP_PORT, ModbusTemplate
from drivers.modbus.device import fields_of
from drivers.modbus.diagnosis import Evidence
from drivers.modbus.transaction import Bus, Timing
from gateway.sdk.driver import Context
from gateway.sdk.errors import CitygateError, FrameError, NoAnswer
from gateway.sdk.streams import ByteStream

BAUD_RATES = (9600, 4800, 19200, 2400, 38400, 115200, 57600)
PARITIES = ("N", "E", "O")
UNITS = (*range(1, 33), 254)
TIMEOUT_S = 0.15
IDENTIFY_TIMEOUT_S = 0.5
NOISY_PROBES = 4  # so many probes in a row that bring only noise: this is not the speed
MAX_PROBES = 20_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how fast.

    Attributes:
        port: serial port; "" on TCP.
        host, tcp_port: TCP device or gateway; "" on a line.
    """

    port: str = ""
    baud_rate: int = 9600
    parity: str = "N"
    stop_bits: int = 1
    host: str = ""
    tcp_port: int = TCP_PORT

    def open(self, context: Context) -> AbstractAsyncContextManager[ByteStream]:
        """The stream. Raises LinkError."""
        if self.host:
            return context.open_tcp(self.host, self.tcp_port)
        return context.open_serial(self.port, self.baud_rate, parity=self.parity, stop_bits=self.stop_bits)

    def bus(self, stream: ByteStream, context: Context) -> Bus:
        """One line at this speed, impatient."""
        framing: Framing = TcpFraming() if self.host else RtuFraming()
        character_s = 0.0 if self.host else (9 + (self.parity != "N") + self.stop_bits) / self.baud_rate
        return Bus(stream, framing, Timing(character_s=character_s, quiet_s=TIMEOUT_S * 2), context, Evidence())

    def described(self) -> dict[str, Any]:
        """As in the operator's file."""
        if self.host:
            return {"host": self.host, "port": self.tcp_port}
        return {"port": self.port, "baud_rate": self.baud_rate, "parity": self.parity, "stop_bits": self.stop_bits}


def places(options: Mapping[str, Any]) -> list[Place]:
    """Every place to look at. Raises CitygateError when neither port nor host is given."""
    if options.get("host"):
        return [Place(host=options["host"], tcp_port=int(options.get("port") or TCP_PORT))]
    if not options.get("port"):
        raise CitygateError("where? give a serial port or a host")
    return [
        Place(port=options["port"], baud_rate=rate, parity=parity)
        for rate in options.get("baud_rates") or BAUD_RATES
        for parity in options.get("parities") or PARITIES
    ]


async def scan(options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """Look for units.

    Args:
        options: `port` or `host` (and `port`); `units`, `baud_rates`, `parities` to look at; `templates`: name ->
            ModbusTemplate to try; `all`: go on after the first speed at which somebody answered.

    Yields:
        `{"progress": {place…, "unit_id", "done", "of"}}` now and then; `{"found": {place…, "unit_id", "identification",
        "templates": [names that fit, best first]}}`; `{"noise": {place…}}` for a speed at which somebody spoke, but
        not so.

    Raises:
        LinkError: the port cannot be opened.
    """
    where = places(options)
    units = tuple(options.get("units") or UNITS)
    of = len(where) * len(units)
    if of > MAX_PROBES:
        raise CitygateError(f"{of} probes are more than a scan does ({MAX_PROBES}); give fewer units or speeds")
    done = 0
    for place in where:
        found = False
        async with place.open(context) as stream:
            bus = place.bus(stream, context)
            noisy = 0
            for unit in units:
                done += 1
                if done % 8 == 1:
                    yield {"progress": {**place.described(), "unit_id": unit, "done": done, "of": of}}
                context.progress()
                heard = await _probe(bus, unit)
                noisy = noisy + 1 if heard == "noise" else 0
                if heard == "unit":
                    found = True
                    yield {"found": {**place.described(), "unit_id": unit, **await identify(bus, unit, options)}}
                elif noisy >= NOISY_PROBES:
                    yield {"noise": place.described()}
                    break
        if found and not options.get("all"):
            return


async def _probe(bus: Bus, unit: int) -> str:
    """`unit` when this unit says anything sound, also an exception; `noise`, or `silent`."""
    try:
        await bus.exchange(read_request(unit, "holding", 0, 1), timeout_s=TIMEOUT_S)
    except DeviceException as answer:
        return "silent" if answer.code in (10, 11) else "unit"  # a gateway answers for a unit that is not there
    except FrameError:
        return "noise"
    except NoAnswer:
        return "silent"
    return "unit"


async def identify(bus: Bus, unit: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a unit says of itself, and which templates fit."""
    templates: Mapping[str, ModbusTemplate] = options.get("templates") or {}
    said = await _identification(bus, unit)
    device = _Device(bus, unit)
    fits = []
    for name, template in templates.items():
        checks = await device.fits(template)
        if checks:
            fits.append((-checks, name))
    return {"identification": said, "templates": [name for _, name in sorted(fits)]}


class _Device:
    """One unit being looked at; asks for each block once."""

    def __init__(self, bus: Bus, unit: int) -> None:
        self._bus, self._unit = bus, unit
        self._known: dict[tuple[Table, int, int], bytes | None] = {}
        self._models: dict[int, int] | None = None
        self._looked = False

    async def fits(self, template: ModbusTemplate) -> int:
        """How many checks of the template's fingerprint hold; 0 when one does not, or when it has none."""
        checks = 0
        fingerprint = template.fingerprint
        if "sunspec" in fingerprint:
            if fingerprint["sunspec"] not in await self._sunspec():
                return 0
            checks += 10
        for block in fingerprint.get("answers", ()):
            if await self.read(block["table"], block["address"], block.get("count", 1)) is None:
                return 0
            checks += 1
        for point, (low, high) in fingerprint.get("plausible", {}).items():
            value = await self._value(template, point)
            if value is None or not low <= value <= high:
                return 0
            checks += 1
        return checks

    async def _value(self, template: ModbusTemplate, point: str) -> float | None:
        field = next(f for f in fields_of(template) if f.point == point)
        data = await self.read(field.table, field.address, field.encoding.words)
        if data is None:
            return None
        value = _decoded(field.encoding, data)
        return value if isinstance(value, int | float) else None

    async def _sunspec(self) -> dict[int, int]:
        if not self._looked:
            self._looked = True
            try:
                found = await sunspec.Search().models(self._must_read)
                self._models = found.bases if found is not None else None
            except (DeviceException, NoAnswer, FrameError):
                self._models = None
        return self._models or {}

    async def _must_read(self, table: Table, address: int, count: int) -> bytes:
        answered = await self._bus.exchange(
            read_request(self._unit, table, address, count), timeout_s=IDENTIFY_TIMEOUT_S
        )
        return answered.data

    async def read(self, table: Table, address: int, count: int) -> bytes | None:
        """Registers, or None when they cannot be had."""
        key = (table, address, count)
        if key not in self._known:
            try:
                self._known[key] = await self._must_read(table, address, count)
            except (DeviceException, NoAnswer, FrameError):
                self._known[key] = None
        return self._known[key]


def _decoded(encoding: Encoding, data: bytes) -> object:
    [(value, _)] = Block("holding", 0, encoding.words, (Field("", "holding", 0, encoding),)).values(data)
    return value


IDENTIFICATION = bytes((43, 14, 1, 0))  # function 43/14, basic objects from the first on (specification 6.21)


async def _identification(bus: Bus, unit: int) -> list[str]:
    """Vendor, product and revision, where the device knows function 43/14."""
    ask = Ask(unit, IDENTIFICATION, IDENTIFICATION[:2], 0, "device identification")
    try:
        answered = await bus.exchange(ask, timeout_s=IDENTIFY_TIMEOUT_S)
    except (DeviceException, NoAnswer, FrameError):
        return []
    return list(identification_texts(IDENTIFICATION[:1] + answered.data))


def identification_texts(pdu: bytes) -> Iterable[str]:
    """The texts of a 43/14 reply PDU; none when it is not one."""
    if len(pdu) < 7 or pdu[:2] != IDENTIFICATION[:2]:
        return
    at = 7
    for _ in range(pdu[6]):
        if at + 2 > len(pdu) or at + 2 + pdu[at + 1] > len(pdu):
            return
        yield pdu[at + 2 : at + 2 + pdu[at + 1]].decode("latin-1").strip("\0 ")
        at += 2 + pdu[at + 1]


async def solve(options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """Read registers of one unit and say which of them, read how, give the value on the display.

    Args:
        options: `port` and `baud_rate`, `parity`, or `host` and `port`; `unit_id`; `table`; `first`, `count` of the
            registers; `value`: as displayed.

    Yields:
        `{"unread": {"address", "count"}}` for registers that do not answer; `{"way": {"address", "type", …, "value"}}`.

    Raises:
        CitygateError: `value` is no number, or nothing could be read.
        LinkError: the port cannot be opened.
    """
    table: Table = options.get("table") or "input"
    first, count = int(options.get("first") or 0), int(options.get("count") or 100)
    [place, *_] = places({"baud_rates": (9600,), "parities": ("N",), **options})
    async with place.open(context) as stream:
        device = _Device(place.bus(stream, context), int(options["unit_id"]))
        runs = [run async for run in _runs(device, table, first, first + count)]
    if not any(data for _, _, data in runs):
        raise CitygateError(f"unit {options['unit_id']} gives no {table} registers {first}-{first + count - 1}")
    for address, length, data in runs:
        if data is None:
            yield {"unread": {"address": address, "count": length}}
            continue
        try:
            ways = solutions(data, address, str(options["value"]))
        except ValueError as error:
            raise CitygateError(str(error)) from error
        for way in ways:
            yield {"way": {"table": table, **described(way)}}


async def _runs(device: _Device, table: Table, first: int, end: int) -> AsyncIterator[tuple[int, int, bytes | None]]:
    """Registers in pieces, smaller where a piece is refused: (address, count, data or None)."""
    todo = [(address, min(40, end - address)) for address in range(first, end, 40)]
    held: tuple[int, bytes] | None = None
    while todo:
        address, length = todo.pop(0)
        data = await device.read(table, address, length)
        if data is not None:
            held = (held[0], held[1] + data) if held else (address, data)
            continue
        if length > 2:
            todo[:0] = [(address, length // 2), (address + length // 2, length - length // 2)]
            continue
        if held:
            yield held[0], len(held[1]) // 2, held[1]
            held = None
        yield address, length, None
    if held:
        yield held[0], len(held[1]) // 2, held[1]


def described(way: Way) -> dict[str, Any]:
    """A way as the template wants it, with the value it gives."""
    its = way.encoding
    found: dict[str, Any] = {"address": way.address, "type": its.type}
    if its.word_order != "big":
        found["word_order"] = its.word_order
    if its.byte_order != "big":
        found["byte_order"] = its.byte_order
    if its.scale != 1:
        found["scale"] = its.scale
    return {**found, "value": way.value}
