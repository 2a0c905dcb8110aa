"""What stands in the operator's file for a Modbus link, and in a Modbus template."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema, model_validator

from drivers.modbus.codec.registers import raw_range, sentinels, words_of
from gateway.sdk.config import (
    BaudRate,
    Claim,
    ConfigModel,
    DeviceConfig,
    Duration,
    FilePath,
    Host,
    LinkConfig,
    parse_serial_port,
    same_host,
)
from gateway.sdk.template import Template, TemplateModel, TemplatePoint

MAX_ADDRESS = 0xFFFF
Address = Annotated[int, Field(ge=0, le=MAX_ADDRESS)]
MIN_FACTOR, MAX_FACTOR = 1e-15, 1e15
TCP_PORT, TLS_PORT = 502, 802
MAX_READ_WORDS, MAX_READ_BITS = 125, 2000  # application protocol 6.1-6.4


class WriteRule(TemplateModel):
    """What may be written to a point."""

    range: tuple[float, float] | None = Field(None, description="smallest and largest value, in the point's unit")
    multiple: bool = Field(False, description="with function 16 also for one register; some devices know only that")


class Setting(TemplateModel):
    """A register that holds how the device is addressed; written by `provision` only."""

    address: Address
    type: Literal["uint16", "uint32", "float32"] = "uint16"
    codes: dict[int, int] = Field(default={}, description="for a baud rate: rate: code; empty = the rate itself")
    multiple: bool = Field(False, description="with function 16 also for one register")


class Settings(TemplateModel):
    """Address and speed of the device, for `provision`."""

    unit_id: Setting | None = None
    baud_rate: Setting | None = None
    restart: bool = Field(False, description="takes effect only after the device was switched off and on")


class Status(TemplateModel):
    """A point that says whether the others can be trusted."""

    point: str
    healthy: float = Field(0, description="any other value: the other points are without value, reason device_fault")


class RegisterPoint(TemplatePoint):
    """A point and where it stands in the device. value = raw * scale + offset."""

    table: Literal["coil", "discrete", "holding", "input"] = Field("holding", description="kind of register")
    address: Address = Field(description="0-based address on the wire: 30001 in a manual is 0, or 1, see its examples")
    type: Literal[
        "bit", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
        "bcd16", "bcd32", "signmag16", "signmag32", "string",
    ] = Field("uint16", description="type of the raw value")  # fmt: skip
    words: int = Field(0, ge=0, le=125, description="registers of a string")
    word_order: Literal["big", "little"] = Field("big", description="big: most significant register first")
    byte_order: Literal["big", "little"] = Field("big", description="within a register; Modbus says big")
    bits: tuple[int, int] | None = Field(
        None, description="lowest bit and number of bits of a bitfield; that of an int type is two's complement"
    )
    signed: bool = Field(False, description="the bits are two's complement although the type is not")
    scale: float = Field(1.0, description="factor on the raw value")
    offset: float = Field(0.0, description="added after the factor")
    enum: dict[int, str] = Field(default={}, description="raw value: text")
    invalid: tuple[int | float, ...] = Field(
        default=(), description="raw values that mean: no value; compared before sign and scale"
    )
    alone: bool = Field(False, description="read with a request of its own")
    factor: Address | None = Field(
        None, description="register of the same table that holds a power of ten to multiply with"
    )
    model: int | None = Field(None, description="SunSpec model; address and factor then count from its ID register")
    rollover: float | None = Field(
        None, gt=0, description="the counter restarts from 0 at this value; the total goes on"
    )
    write: WriteRule | None = Field(None, description="may be written, where a device's config allows it")

    @property
    def size(self) -> int:
        """Registers (bits) that it takes."""
        return self.words or words_of(self.type)

    @property
    def gives(self) -> Literal["text", "flag", "number"]:
        """Kind of its values."""
        if self.type == "string" or self.enum:
            return "text"
        return "flag" if self.type == "bit" or (self.bits is not None and self.bits[1] == 1) else "number"

    @model_validator(mode="after")
    def _consistent(self) -> "RegisterPoint":
        if (self.table in ("coil", "discrete")) != (self.type == "bit"):
            raise ValueError("type bit belongs to the tables coil and discrete, and they hold nothing else")
        if (self.type == "string") != (self.words > 0):
            raise ValueError("words is the length of a string, and a string needs it")
        if self.address + self.size > MAX_ADDRESS + 1:
            raise ValueError(f"address: {self.size} registers from {self.address} on end beyond {MAX_ADDRESS}")
        self._check_order()
        self._check_bits()
        self._check_numbers()
        self._check_raw()
        self._check_rollover()
        self._check_write()
        return self

    def _check_order(self) -> None:
        if self.word_order == "little" and (self.size == 1 or self.type == "string"):
            raise ValueError("word_order: one register has no order of words, nor has a text; is byte_order meant?")
        if self.byte_order == "little" and self.type == "bit":
            raise ValueError("byte_order: a bit has none; remove it")

    def _check_bits(self) -> None:
        if self.bits is None:
            if self.signed:
                raise ValueError("signed: belongs to bits; a whole register is signed by its type, as int16")
            return
        if not re.fullmatch(r"u?int\d+", self.type):
            raise ValueError(f"bits: a {self.type} has no bit fields; take uint16, or int16 where the bits are signed")
        low, count = self.bits
        width = 16 * self.size
        if low < 0 or count < 1 or low + count > width:
            raise ValueError(
                f"bits: [lowest bit, number of bits] within the {width} bits of {self.type}, not {[low, count]}"
            )
        if self.signed and count == 1:
            raise ValueError("signed: one bit is a flag")

    def _check_numbers(self) -> None:
        if self.scale == 0:
            raise ValueError("scale: 0 makes every value the same")
        for key, number in (("scale", self.scale), ("offset", self.offset)):
            if number and not MIN_FACTOR <= abs(number) <= MAX_FACTOR:
                raise ValueError(f"{key}: {number:g} is beyond what turns a register into a measurement")
        if self.gives == "number":
            return
        for key, unused in (("scale", self.scale == 1), ("offset", not self.offset), ("factor", self.factor is None)):
            if not unused:
                raise ValueError(f"{key}: does nothing to a {self.gives}; remove it")

    def _check_raw(self) -> None:
        """Numbers that are compared with the raw value can stand there."""
        its = raw_range(self.type, self.bits, signed=self.signed)
        if self.enum and its is None:
            raise ValueError(f"enum: belongs to whole numbers, not to a {self.type}")
        for key in self.enum:
            if its is not None and not its[0] <= key <= its[1]:
                raise ValueError(f"enum: {key} is outside {its[0]} to {its[1]}, so it never comes")
        if self.invalid and self.type in ("string", "bit"):
            raise ValueError(f"invalid: a {self.type} has no number that means no value; remove it")
        try:
            sentinels(self.type, self.bits, self.invalid)
        except ValueError as error:
            field = "that field" if self.bits else "it"
            raise ValueError(
                f"invalid: {error}, so {field} never holds it; give the raw number, before scale"
            ) from None
        if self.factor is not None and self.address <= self.factor < self.address + self.size:
            raise ValueError("factor: is the register of the value itself")

    def _check_rollover(self) -> None:
        if self.rollover is None:
            return
        its = raw_range(self.type, self.bits, signed=self.signed)
        if self.gives != "number" or its is None or its[0] < 0:
            raise ValueError(
                f"rollover: a counter is an unsigned whole number (uint16, uint32, bcd32), not {self.type}"
            )
        if self.scale < 0 or self.offset:
            raise ValueError("rollover: a counter restarts from 0, so its scale is positive and it has no offset")
        most = (its[1] + 1) * self.scale
        if self.factor is None and self.rollover > most * (1 + 1e-9):
            raise ValueError(f"rollover: {self.rollover:g} is never reached, {self.type} ends at {most:g}")
        if self.factor is None and self.rollover < 2 * self.scale:
            raise ValueError("rollover: that is no counter; give the value, after scale, at which it restarts from 0")

    def _check_write(self) -> None:
        if self.write is None:
            return
        if self.table not in ("holding", "coil") or self.bits or self.factor is not None:
            raise ValueError("only whole holding registers and coils with a fixed scale can be written")
        if self.rollover is not None:
            raise ValueError("write: a running total cannot be written")
        if self.write.range is None:
            return
        low, high = self.write.range
        if self.gives == "text" or low > high:
            raise ValueError("write: range is [smallest, largest] of a number")
        its = raw_range(self.type)
        if its is not None and not self._within(its, low, high):
            raise ValueError(f"write: range reaches beyond what {self.type} can hold with this scale")

    def _within(self, raw: tuple[int, int], low: float, high: float) -> bool:
        ends = sorted(number * self.scale + self.offset for number in raw)
        slack = abs(self.scale) / 2
        return ends[0] - slack <= low and high <= ends[1] + slack


class FactorySerial(TemplateModel):
    """How the device leaves the factory; what a scan tries first."""

    baud_rate: BaudRate = 9600
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1
    unit_id: int = Field(1, ge=1, le=255)


class ReadRules(TemplateModel):
    """What the device takes in one request, and how much time it needs."""

    max_words: int = Field(MAX_READ_WORDS, ge=1, le=MAX_READ_WORDS, description="registers in one request")
    max_bits: int = Field(MAX_READ_BITS, ge=1, le=MAX_READ_BITS, description="bits in one request")
    max_hole: int = Field(16, ge=0, le=125, description="unused registers read along to save a request")
    gap_s: Duration = Field(0.0, alias="gap", description="rest after each answer, beyond the 3.5 characters of RTU")


class ModbusTemplate(Template):
    """A device type: its registers."""

    # frozen, so a dict of a narrower type is safe although dict is invariant
    points: dict[str, RegisterPoint] = Field(min_length=1, description="what it measures, by name")  # type: ignore[assignment]
    serial: FactorySerial = FactorySerial()
    read: ReadRules = ReadRules()
    status: Status | None = None
    settings: Settings = Settings()

    @property
    def models(self) -> frozenset[int]:
        """SunSpec models that its points stand in."""
        return frozenset(point.model for point in self.points.values() if point.model is not None)

    @model_validator(mode="after")
    def _points_exist(self) -> "ModbusTemplate":
        for name, point in self.points.items():
            self._check_size(name, point)
        self._check_status()
        self._check_writes()
        return self

    def _check_size(self, name: str, point: RegisterPoint) -> None:
        most = self.read.max_bits if point.type == "bit" else self.read.max_words
        if point.size > most:
            raise ValueError(f"points.{name}: {point.size} registers, but read: asks for {most} at most")

    def _check_status(self) -> None:
        if self.status is None:
            return
        point = self.points.get(self.status.point)
        if point is None:
            raise ValueError(f"status.point: {self.status.point} is none of the points")
        if point.gives == "text":
            raise ValueError(
                f"status.point: {self.status.point} is a text, and healthy is a number; leave out its enum"
            )

    def _check_writes(self) -> None:
        """What is written to one point changes no other that can be written, nor how the device is addressed."""
        taken: dict[tuple[str, int], str] = {}
        for name, its in (("unit_id", self.settings.unit_id), ("baud_rate", self.settings.baud_rate)):
            if its is not None:
                end = its.address + words_of(its.type)
                taken |= {("holding", address): f"settings.{name}" for address in range(its.address, end)}
        for name, point in self.points.items():
            if point.write is None:
                continue
            for address in range(point.address, point.address + point.size):
                owner = taken.setdefault((point.table, address), name) if point.model is None else name
                if owner != name:
                    raise ValueError(f"points.{name}.write: register {address} is {owner} too; allow one to be written")


class ModbusDevice(DeviceConfig):
    """One unit on the line."""

    template: SerializeAsAny[ModbusTemplate] = Field(description="device type, e.g. eastron/sdm120")
    unit_id: int = Field(
        ge=0, le=255, description="address on the line, 1-247 (248-255 are reserved); behind TCP also 0 and 255"
    )
    every_s: Duration = Field(60.0, alias="every", description="poll period")
    timeout_s: Duration | None = Field(None, alias="timeout", description="how long to wait for this unit's answer")
    writes: tuple[str, ...] = Field((), description="points that `citygate write` may change; none unless named here")
    rounds: dict[str, Annotated[int, Field(ge=0, le=10**6)]] = Field(
        default={},
        description="of a point with rollover: how often it had restarted when this was written; puts a total right",
    )

    @model_validator(mode="after")
    def _writable(self) -> "ModbusDevice":
        for point in self.writes:
            if point not in self.template.points or self.template.points[point].write is None:
                can = [name for name, its in self.template.points.items() if its.write is not None]
                raise ValueError(
                    f"writes: {point} cannot be written; {', '.join(can) or 'no point of this device'} can"
                )
        for point in self.rounds:
            if point not in self.template.points or self.template.points[point].rollover is None:
                raise ValueError(f"rounds: {point} is no point with rollover of {self.template.name}")
        return self


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Port = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1, "maximum": 65535}]}),
]


class Tls(ConfigModel):
    """Modbus/TCP Security: TLS with both sides' certificates."""

    ca: FilePath = Field("", description="file of the authorities to trust; default: the system's")
    certificate: FilePath = Field("", description="file of our certificate, PEM")
    key: FilePath = Field("", description="file of its key, PEM; default: in the certificate's file")
    server_name: str = Field("", description="what the device's certificate is for; default: host")

    @model_validator(mode="after")
    def _key_has_certificate(self) -> "Tls":
        if self.key and not self.certificate:
            raise ValueError("key needs certificate:")
        return self


class ModbusConfig(LinkConfig):
    """A serial line (`port: /dev/...`) or a TCP device or gateway (`host:` and `port:`)."""

    driver: Literal["modbus"]
    port: Port = Field(
        "", description="serial port: a path or usb:VID:PID[:SERIAL][@LOCATION]; with host the TCP port (default 502)"
    )
    host: Host = Field("", description="TCP device or gateway; without it the link is a serial line")
    tls: Tls | None = Field(None, description="encrypt; the default port is 802 then")
    framing: Literal["rtu", "ascii", "tcp"] | None = Field(
        None, description="default: rtu on a serial line, tcp with host"
    )
    baud_rate: BaudRate = Field(9600, description="bits per second; all units of a line have the same")
    parity: Literal["N", "E", "O"] = Field("N", description="N none, E even, O odd; default with framing ascii: E")
    data_bits: Literal[7, 8] = Field(8, description="7 or 8; default with framing ascii: 7")
    stop_bits: Literal[1, 2] = Field(1, description="1 or 2")
    timeout_s: Duration = Field(
        1.0, alias="timeout", description="how long to wait for an answer, time on the wire not counted"
    )
    quiet_s: Duration | None = Field(
        None, alias="quiet", description="a unit that did not answer is asked nothing for so long; default 3 x timeout"
    )
    gap_s: Duration = Field(0.0, alias="gap", description="rest after each answer, beyond the 3.5 characters of RTU")
    align: bool = Field(False, description="polls at full multiples of their period by the clock, instead of spread")
    echo: bool = Field(False, description="the adapter sends back what we send")
    keep_open: bool = Field(
        True,
        description="false: with host, give the connection back after each poll, to a device that serves one client",
    )
    connect_pause_s: Duration = Field(
        0.0, alias="connect_pause", description="with host: rest after each connect, before the first request"
    )
    devices: dict[str, ModbusDevice] = Field(min_length=1, description="units on the line, by name")

    @model_validator(mode="before")
    @classmethod
    def _line_of_ascii(cls, given: Any) -> Any:
        """The specification's line for ASCII is 7E1 (serial line 2.5.2), as that of RTU is 8 bits."""
        if isinstance(given, dict) and given.get("framing") == "ascii" and not given.get("host"):
            return {"data_bits": 7, "parity": "E" if given.get("data_bits") in (None, 7, "7") else "N", **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "ModbusConfig":
        if self.data_bits == 7 and (self.host or self.framing != "ascii"):
            raise ValueError("data_bits: 7 belongs to framing: ascii on a serial line; RTU needs 8")
        if self.host:
            if self.port and not (self.port.isascii() and self.port.isdecimal() and 1 <= int(self.port) <= 65535):
                raise ValueError(f"port: {self.port!r} is no TCP port (1-65535)")
        elif not self.port:
            raise ValueError("give port: for a serial line, or host: and port: for TCP")
        elif self.framing == "tcp" or self.tls is not None or not self.keep_open or self.connect_pause_s:
            raise ValueError("framing tcp, tls, keep_open and connect_pause need host:")
        else:
            self._check_path()
        for name, device in self.devices.items():
            if self.wire != "tcp" and device.unit_id == 0:
                raise ValueError(f"devices.{name}.unit_id: {device.unit_id} is outside 1–247 (0 is broadcast)")
            if device.every_s < 0.01:
                raise ValueError(f"devices.{name}.every: at least 10 ms")
        return self

    def _check_path(self) -> None:
        try:
            parse_serial_port(self.port)
        except ValueError as error:
            raise ValueError(f"port: {error}") from None

    def claims(self) -> Iterator[Claim]:
        """Its line; of a host the units, since several links may well share a gateway with different ones."""
        yield from super().claims()
        for name, device in self.devices.items() if self.host else ():
            whole = f"unit {device.unit_id} of {same_host(self.host)}:{self.tcp_port}"
            yield Claim("device", whole, ("devices", name, "unit_id"))

    @property
    def wire(self) -> Literal["rtu", "ascii", "tcp"]:
        """How frames travel."""
        return self.framing or ("tcp" if self.host else "rtu")

    @property
    def tcp_port(self) -> int:
        return int(self.port or (TLS_PORT if self.tls is not None else TCP_PORT))

    @property
    def character_s(self) -> float:
        """Time of one character on a serial line: start bit, data bits, parity, stop bits; 0 on TCP."""
        bits = 1 + self.data_bits + (self.parity != "N") + self.stop_bits
        return 0.0 if self.host else bits / self.baud_rate
