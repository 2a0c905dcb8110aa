"""What a driver's config models build on: the common part of links and devices; durations, sizes and rates with units."""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_validator,
)
from pydantic_core import core_schema

from gateway.sdk.template import EntityMapping, Template

_NUMBER_UNIT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-zA-Zµ/]*)\s*")
DURATIONS_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
SIZES_BYTES = {"B": 1, "kB": 1000, "KB": 1000, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
RATES_PER_S = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}


def _with_unit(units: dict[str, float] | dict[str, int], what: str, example: str, value: Any) -> float:
    match = _NUMBER_UNIT.fullmatch(str(value)) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"{value!r} is not a {what}; write a number and one of {', '.join(units)}, as in {example}")
    return float(match[1]) * units[match[2]]


def parse_duration_s(value: Any) -> float:
    """Seconds of `10 s`, `15 min`, `90 d`. Raises ValueError naming the units."""
    return _with_unit(DURATIONS_S, "duration", "10 s", value)


def parse_size_bytes(value: Any) -> int:
    """Bytes of `1 GB`, `64 KiB`. Raises ValueError naming the units."""
    return int(_with_unit(SIZES_BYTES, "size", "1 GB", value))


def parse_rate_per_s(value: Any) -> float:
    """Events per second of `500/s`, `30/min`. Raises ValueError naming the units."""
    return _with_unit(RATES_PER_S, "rate", "500/s", value)


def _pattern(units: Mapping[str, float]) -> str:
    return rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(units)})$"


def units_of(pattern: str) -> Mapping[str, float] | None:
    """The units of a duration, size or rate, from the pattern in its schema; None for another text."""
    return next((units for units in (DURATIONS_S, SIZES_BYTES, RATES_PER_S) if pattern == _pattern(units)), None)


def in_words(value: float, table: Mapping[str, float]) -> str:
    """A duration, size or rate as one writes it, with the largest unit that keeps it whole: 900.0 -> `15 min`."""
    whole = [unit for unit, factor in table.items() if abs(value / factor - round(value / factor)) < 1e-9]
    best = max(
        (unit for unit in whole if value >= table[unit]), key=lambda unit: table[unit], default=next(iter(table))
    )
    if value == 0 and "s" in table:
        best = "s"
    number = f"{value / table[best]:g}"
    return f"{number}{best}" if best.startswith("/") else f"{number} {best}"


BOUNDS = "x-bounds"  # in a schema: bounds of a duration, size or rate in words, as JSON Schema can bound numbers alone
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class _Written:
    """What a schema says of a value with a unit."""

    def __init__(self, units: Mapping[str, float], *examples: str) -> None:
        self._units = units
        self._examples = list(examples)

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        schema = {"type": "string", "pattern": _pattern(self._units), "examples": self._examples}
        number = handler(core)  # with the limits of the number, as Field has them
        stated = {key: in_words(number[key], self._units) for key in _LIMITS if key in number}
        words = ", ".join(f"{_LIMITS[key]} {bound}" for key, bound in stated.items())
        if stated.keys() == {"ge", "le"}:
            words = f"{stated['ge']} to {stated['le']}"
        return {**schema, BOUNDS: words} if words else schema


CONFIG_FOLDER: ContextVar[Path | None] = ContextVar("config_folder", default=None)  # of the file that is being read


def beside(folder: Path, text: str) -> str:
    """A path of the operator's file: relative ones begin at the file's own folder, `~` at a user's home.

    Raises:
        ValueError: nobody is called so, or has no home.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text}: no home folder is known for {text.split('/')[0]}; write the path in full") from None
    return text if str(path) == text and path.is_absolute() else os.path.normpath(folder.resolve() / path)


class PlacedText(str):
    """A text of a file that lies elsewhere than the config: a relative path in it begins there."""

    __slots__ = ("folder",)
    folder: Path

    @classmethod
    def at(cls, folder: Path, text: str) -> "PlacedText":
        """The text as one of a file in this folder."""
        placed = cls(text)
        placed.folder = folder
        return placed


def _file_path(text: Any) -> Any:
    folder = text.folder if isinstance(text, PlacedText) else CONFIG_FOLDER.get()
    return text if folder is None or not text or not isinstance(text, str) else beside(folder, text)


# A file on this box. Not for device nodes of the system, whose names are absolute.
FilePath = Annotated[str, BeforeValidator(_file_path)]

# In Python the field ends in its unit (`every_s`), in YAML the value carries it: use Field(alias="every").
# Defaults are written in Python units. A float that is already parsed (a default) is not validated again.
Duration = Annotated[float, BeforeValidator(parse_duration_s), _Written(DURATIONS_S, "10 s", "15 min", "90 d")]
Size = Annotated[int, BeforeValidator(parse_size_bytes), _Written(SIZES_BYTES, "64 KiB", "1 GB")]
Rate = Annotated[float, BeforeValidator(parse_rate_per_s), _Written(RATES_PER_S, "500/s", "30/min")]
_SERIAL = re.compile(r"/|usb:(?:[0-9a-f]{4}:[0-9a-f]{4}(?![0-9a-f]))?", re.IGNORECASE)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def parse_host(host: str) -> str:
    """A name or an IP address and nothing else. Raises ValueError that says what belongs where."""
    if "://" in host or "/" in host:
        raise ValueError(f"{host!r} is an address with a scheme or a path; give the name or the IP address alone")
    if "@" in host:
        raise ValueError("a login does not belong into host; give the name or the IP address alone")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    name, colon, port = host.rpartition(":")
    if colon and port.isascii() and port.isdecimal():
        raise ValueError(f"{host!r} has the port in it; write host: {name.strip('[]')} and port: {port}")
    try:
        ascii_name = host.rstrip(".").encode("idna").decode("ascii")
    except UnicodeError:
        ascii_name = ""
    numbers_only = re.fullmatch(r"[0-9.]+", ascii_name)
    if len(ascii_name) > 253 or numbers_only or not all(_LABEL.fullmatch(label) for label in ascii_name.split(".")):
        raise ValueError(f"{host!r} is neither a host name nor an IP address")
    return host


def same_host(host: str) -> str:
    """The host in the one spelling in which two are compared; nothing is looked up."""
    bare = host.removeprefix("[").removesuffix("]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return "127.0.0.1" if bare == "localhost" else bare


def parse_serial_port(port: str) -> str:
    """A path, or `usb:VID:PID[:SERIAL][@LOCATION]`. Raises ValueError that says what is meant instead."""
    if "\0" in port:
        raise ValueError("a path has no NUL character in it")
    if _SERIAL.match(port):
        return port
    if "://" in port or re.fullmatch(r"[^/\s]+:[0-9]+", port) or re.fullmatch(r"[0-9.]+", port):
        raise ValueError(f"{port!r} is no serial port; a device on the network has host: and port: with the number")
    if re.fullmatch(r"tty\w+", port):
        raise ValueError(f"{port!r} is not a whole path; write /dev/{port}, or better its name in /dev/serial/by-id")
    raise ValueError(f"{port!r} is not a whole path; a serial port is one as /dev/serial/by-id/usb-…, see `ls` there")


Host = Annotated[str, AfterValidator(parse_host)]
SerialPort = Annotated[str, AfterValidator(parse_serial_port)]
BaudRate = Annotated[int, Field(ge=50, le=4_000_000)]
Location = Annotated[
    tuple[
        Annotated[float, Field(ge=-180, le=180, description="longitude, degrees")],
        Annotated[float, Field(ge=-90, le=90, description="latitude, degrees")],
    ],
    Field(description="longitude, latitude (in this order, as in GeoJSON), degrees WGS 84"),
]


class Secret(str):
    """A password, token or key: a text that hides itself in representations and dumps. In the file it is `!secret NAME`;
    `check` warns when it stands there in clear text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'•••'"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        hidden = core_schema.plain_serializer_function_ser_schema(lambda _: "•••")
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(), serialization=hidden)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "format": "password", "writeOnly": True}


class ConfigModel(BaseModel):
    """Base of every part of the operator's file: frozen, unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=False, allow_inf_nan=False
    )


def _check_gain(gain: float) -> float:
    if gain == 0:
        raise ValueError("with a gain of 0 every value would be the offset; leave gain out, or give the factor")
    return gain


def _day(value: Any) -> Any:
    if isinstance(value, int | float):  # it would be taken for seconds since 1970
        raise ValueError(f"{value} is no day; write it as in 2026-05-01")
    if isinstance(value, str) and not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise ValueError(f"{value} is no day; write it as in 2026-05-01")
    return value


Day = Annotated[date, BeforeValidator(_day)]


class Calibration(ConfigModel):
    """Correction of one point: corrected = raw x gain + offset. The raw value is kept in the log."""

    gain: Annotated[float, AfterValidator(_check_gain)] = Field(
        1.0, description="factor on the raw value", json_schema_extra={"not": {"const": 0}}
    )
    offset: float = Field(0.0, description="added after the factor, in the point's unit")
    valid_from: Day | None = Field(
        None, description="day of the calibration (UTC); readings from before are sent as `previous` says, else raw"
    )
    valid_until: Day | None = Field(
        None, description="last day it is certified for; after it `check` warns, the gain is used on"
    )
    by: str = Field(
        "", description="who calibrated, or the number of the certificate; named in the warning when it ran out"
    )
    previous: tuple["Calibration", ...] = Field(
        (), description="earlier calibrations with their valid_from, for readings that are still to be sent"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Calibration":
        if self.valid_from and self.valid_until and self.valid_until < self.valid_from:
            raise ValueError(f"valid_until: {self.valid_until} is before valid_from, {self.valid_from}")
        if self.previous and self.valid_from is None:
            raise ValueError("valid_from is missing: beside previous ones this one would count only before their days")
        for earlier in self.previous:
            if earlier.valid_from and self.valid_from and earlier.valid_from >= self.valid_from:
                raise ValueError(f"previous: {earlier.valid_from} is not before valid_from, {self.valid_from}")
        return self


class Report(ConfigModel):
    """Thinning of one point before the log."""

    on_change: float | None = Field(
        None, ge=0, description="report when the value moved by at least this, in the point's unit"
    )
    at_least_s: Duration | None = Field(None, alias="at_least", description="report at least this often")


class DeviceConfig(ConfigModel):
    """The common part of a device; a driver adds its address."""

    template: SerializeAsAny[Template] = Field(description="device type, e.g. eastron/sdm120")
    was: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="name that it had before: what is known and owed of that goes on under this one",
    )
    location: Location | None = Field(None, description="where the device stands; default: the gateway's location")
    entity: EntityMapping | None = Field(None, description="override of the template's mapping to an entity")
    calibrate: dict[str, Calibration] = Field(default={}, description="correction by point")
    report: dict[str, Report] = Field(default={}, description="thinning by point")


class Claim(NamedTuple):
    """What only one link of a box may have; two that claim the same are an error when the config is loaded.

    Attributes:
        kind: port (a line) | listener | session (at a message broker) | device (by the address that is its own).
        name: what must differ, as people would say it: "UDP 0.0.0.0:1700".
        path: where it stands within the link, e.g. ("devices", "bin-42", "dev_eui").
        within: whether two of one link exclude each other too.
        also: what must be equal as well and is shown to nobody, e.g. the key that belongs to an address.
    """

    kind: Literal["port", "listener", "session", "device"]
    name: str
    path: tuple[str, ...]
    within: bool = False
    also: str = ""


class LinkConfig(ConfigModel):
    """The common part of a link; a driver adds port or host and its own devices."""

    driver: str = Field(description="kind of link, e.g. modbus")
    devices: Mapping[str, DeviceConfig] = Field(default={}, description="the devices on this link, by name")

    def claims(self) -> Iterator[Claim]:
        """What this link must have for itself: its serial port; a driver adds what else it takes."""
        port = getattr(self, "port", None)
        if isinstance(port, str) and (match := _SERIAL.match(port)):
            # numbers of the adapter may be written in capitals; a serial number is what it is
            yield Claim(
                "port", os.path.realpath(port) if match[0] == "/" else match[0].lower() + port[match.end() :], ("port",)
            )
