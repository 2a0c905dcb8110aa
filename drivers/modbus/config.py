"""What stands in the operator's file for a Modbus link, and in a Modbus template."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema, model_validator

from gateway.sdk.config import ConfigModel, DeviceConfig, Duration, LinkConfig
from gateway.sdk.template import Template, TemplateModel, TemplatePoint

Address = Annotated[int, Field(ge=0, le=0xFFFF)]
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
    bits: tuple[int, int] | None = Field(None, description="lowest bit and number of bits of a bitfield")
    scale: float = Field(1.0, description="factor on the raw value")
    offset: float = Field(0.0, description="added after the factor")
    enum: dict[int, str] = Field(default={}, description="raw value: text")
    invalid: tuple[float, ...] = Field(default=(), description="raw values that mean: no value")
    alone: bool = Field(False, description="read with a request of its own")
    factor: Address | None = Field(
        None, description="register of the same table that holds a power of ten to multiply with"
    )
    model: int | None = Field(None, description="SunSpec model; address and factor then count from its ID register")
    rollover: float | None = Field(
        None, gt=0, description="the counter restarts from 0 at this value; the total goes on"
    )
    write: WriteRule | None = Field(None, description="may be written, where a device's config allows it")

    @model_validator(mode="after")
    def _consistent(self) -> "RegisterPoint":
        if (self.table in ("coil", "discrete")) != (self.type == "bit"):
            raise ValueError("type bit belongs to the tables coil and discrete, and they hold nothing else")
        if (self.type == "string") != (self.words > 0):
            raise ValueError("words is the length of a string, and a string needs it")
        if self.write is not None and (self.table not in ("holding", "coil") or self.bits or self.factor is not None):
            raise ValueError("only whole holding registers and coils with a fixed scale can be written")
        if self.scale == 0:
            raise ValueError("scale 0 makes every value the same")
        if self.bits is not None and not (self.bits[0] >= 0 and 1 <= self.bits[1] <= 64 - self.bits[0]):
            raise ValueError("bits is [lowest bit, number of bits]")
        return self


class FactorySerial(TemplateModel):
    """How the device leaves the factory; what a scan tries first."""

    baud_rate: int = 9600
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1
    unit_id: int = 1


class ReadRules(TemplateModel):
    """What the device takes in one request, and how much time it needs."""

    max_words: int = Field(MAX_READ_WORDS, ge=1, le=MAX_READ_WORDS, description="registers in one request")
    max_bits: int = Field(MAX_READ_BITS, ge=1, le=MAX_READ_BITS, description="bits in one request")
    max_hole: int = Field(16, ge=0, le=125, description="unused registers read along to save a request")
    gap_s: Duration = Field(0.0, alias="gap", description="rest after each answer, beyond the 3.5 characters of RTU")


class ModbusTemplate(Template):
    """A device type: its registers."""

    # frozen, so a dict of a narrower type is safe although dict is invariant
    points: dict[str, RegisterPoint] = Field(min_length=1)  # type: ignore[assignment]
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
        if self.status is not None and self.status.point not in self.points:
            raise ValueError(f"status.point: {self.status.point} is none of the points")
        return self


class ModbusDevice(DeviceConfig):
    """One unit on the line."""

    template: SerializeAsAny[ModbusTemplate] = Field(description="device type, e.g. eastron/sdm120")
    unit_id: int = Field(ge=0, le=255, description="address on the line, 1-247; behind TCP also 0 and 255")
    every_s: Duration = Field(60.0, alias="every", description="poll period")
    timeout_s: Duration | None = Field(None, alias="timeout", description="how long to wait for this unit's answer")
    writes: tuple[str, ...] = Field((), description="points that `citygate write` may change; none unless named here")

    @model_validator(mode="after")
    def _writable(self) -> "ModbusDevice":
        for point in self.writes:
            if point not in self.template.points or self.template.points[point].write is None:
                can = [name for name, its in self.template.points.items() if its.write is not None]
                raise ValueError(
                    f"writes: {point} cannot be written; {', '.join(can) or 'no point of this device'} can"
                )
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

    ca: str = Field("", description="file of the authorities to trust; default: the system's")
    certificate: str = Field("", description="file of our certificate, PEM")
    key: str = Field("", description="file of its key, PEM; default: in the certificate's file")
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
    host: str = Field("", description="TCP device or gateway; without it the link is a serial line")
    tls: Tls | None = Field(None, description="encrypt; the default port is 802 then")
    framing: Literal["rtu", "ascii", "tcp"] | None = Field(
        None, description="default: rtu on a serial line, tcp with host"
    )
    baud_rate: int = Field(9600, ge=300, le=4_000_000, description="bits per second; all units of a line have the same")
    parity: Literal["N", "E", "O"] = Field("N", description="N none, E even, O odd")
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
    devices: dict[str, ModbusDevice] = Field(min_length=1, description="units on the line, by name")

    @model_validator(mode="after")
    def _consistent(self) -> "ModbusConfig":
        if self.host:
            if self.port and not (self.port.isdecimal() and 1 <= int(self.port) <= 65535):
                raise ValueError(f"port {self.port!r} is no TCP port (1-65535)")
        elif not self.port:
            raise ValueError("give port: for a serial line, or host: and port: for TCP")
        elif self.framing == "tcp" or self.tls is not None:
            raise ValueError("framing tcp and tls need host:")
        for name, device in self.devices.items():
            if self.wire != "tcp" and not 1 <= device.unit_id <= 247 and device.unit_id != 254:
                raise ValueError(f"devices.{name}.unit_id: {device.unit_id} is outside 1–247 (0 is broadcast)")
            if device.every_s < 0.01:
                raise ValueError(f"devices.{name}.every: at least 10 ms")
        return self

    @property
    def wire(self) -> Literal["rtu", "ascii", "tcp"]:
        """How frames travel."""
        return self.framing or ("tcp" if self.host else "rtu")

    @property
    def tcp_port(self) -> int:
        return int(self.port or (TLS_PORT if self.tls is not None else TCP_PORT))

    @property
    def character_s(self) -> float:
        """Time of one character on a serial line: start bit, 8 data bits, parity, stop bits; 0 on TCP."""
        return 0.0 if self.host else (9 + (self.parity != "N") + self.stop_bits) / self.baud_rate
