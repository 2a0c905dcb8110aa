"""The operator's side of LoRa links, and what a template adds to say what a payload means."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from drivers.lora.layout import Codec, LayoutCodec, layout_points
from gateway.sdk.config import (
    BaudRate,
    Claim,
    ConfigModel,
    DeviceConfig,
    Duration,
    FilePath,
    Host,
    LinkConfig,
    Secret,
    SerialPort,
    parse_host,
    same_host,
)
from gateway.sdk.template import Template

PEM_BYTES = 65_536  # of a key file that are looked at
RADIO_POINTS: dict[str, dict[str, str]] = {
    "rssi": {"quantity": "rssi", "unit": "DBM", "description": "signal of the best copy"},
    "snr": {"quantity": "snr", "unit": "2N", "description": "signal by noise of the best copy"},
    "spreading_factor": {"quantity": "spreading_factor", "unit": "C62"},
    "lost_uplinks": {
        "quantity": "count",
        "unit": "C62",
        "description": "missing before this one, by the frame counter",
    },
    "battery_level": {
        "quantity": "battery_level",
        "unit": "P1",
        "description": "as the device or its server reports it",
    },
}


def _hex_of(digits: int, what: str) -> AfterValidator:
    def check(text: str) -> str:
        plain = re.sub(r"[:\-\s]", "", text).lower()
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", plain):
            raise ValueError(f"{what} has {digits} hexadecimal digits, not {len(plain)} characters")
        return type(text)(plain)  # a secret stays one

    return AfterValidator(check)


DevEui = Annotated[str, _hex_of(16, "a DevEUI"), Field(description="16 hex digits, as printed on the device")]
DevAddr = Annotated[str, _hex_of(8, "a DevAddr"), Field(description="8 hex digits")]
Key = Annotated[Secret, _hex_of(32, "a key"), Field(description="32 hex digits; give it as !secret")]


class LoraTemplate(Template):
    """A LoRa device: what its payloads mean. Points of the radio itself are there without being declared."""

    codec: Codec

    @model_validator(mode="before")
    @classmethod
    def _with_radio_points(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("points"), Mapping):
            return {
                **data,
                "points": {**data["points"], **{k: v for k, v in RADIO_POINTS.items() if k not in data["points"]}},
            }
        return data

    @model_validator(mode="after")
    def _points_are_declared(self) -> Self:
        filled = layout_points(self.codec) if isinstance(self.codec, LayoutCodec) else set(self.codec.fields)
        if missing := sorted(filled - set(self.points)):
            raise ValueError(f"codec fills points that are not declared: {', '.join(missing)}")
        return self


_LENGTHS_M = {"mm": 0.001, "cm": 0.01, "m": 1.0}


def _parse_length_m(value: Any) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(mm|cm|m)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a length; write a number and one of mm, cm, m, as in 1.8 m")
    return float(match[1]) * _LENGTHS_M[match[2]]


Length = Annotated[
    float,
    BeforeValidator(_parse_length_m),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(mm|cm|m)$", "examples": ["1.8 m", "300 mm"]}),
]


class Container(ConfigModel):
    """Where the sensor of a container sits; it makes `fill_level` of `distance`."""

    empty_m: Length = Field(alias="empty", description="distance to the bottom of the empty container")
    full_m: Length = Field(0.0, alias="full", description="distance to the surface when it counts as full")

    @model_validator(mode="after")
    def _has_depth(self) -> Self:
        if self.empty_m <= self.full_m:
            raise ValueError("empty must be further away than full")
        return self


class LoraDevice(DeviceConfig):
    """What every LoRa device has."""

    container: Container | None = Field(None, description="for level sensors: geometry of the container")

    every_s: Annotated[Duration, Field(ge=10)] | None = Field(
        None, alias="every", description="how often it should speak; silent for three times as long is reported"
    )


class ServerDevice(LoraDevice):
    """A device that a network server knows."""

    dev_eui: DevEui = Field(description="16 hex digits, as printed on the device")


def _is_encrypted(file: str) -> bool:
    """Whether this PEM key needs a password; a file that is not here is none of the config's faults."""
    path = Path(file)
    try:
        return bool(file) and path.is_file() and b"ENCRYPTED" in path.read_bytes()[:PEM_BYTES]
    except OSError:
        return False


def mqtt_address(url: str) -> tuple[str, int]:
    """Host and port of `mqtt://host`, `mqtts://[::1]:8884`. Raises ValueError that says what is wrong."""
    try:
        scheme, netloc, *_ = parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ValueError(f"{url!r} is no address of an MQTT broker; write it as in mqtt://host:1883") from None
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        given = netloc.rpartition("]")[2].partition(":")[2]
        raise ValueError(f"{given!r} is no port; ports go from 1 to 65535") from None
    return parse_host(host), port or (8883 if scheme == "mqtts" else 1883)


def _check_mqtt_url(url: str) -> str:
    mqtt_address(url)
    return url


class MqttLink(LinkConfig):
    """A network server's MQTT broker."""

    url: Annotated[
        str,
        Field(pattern=r"^mqtts?://[^/@?#\s]+$", description="mqtt://host:1883 or mqtts://host:8883"),
        AfterValidator(_check_mqtt_url),
    ]
    username: str = Field("", description="of the broker; The Things Stack: application@tenant")
    password: Secret = Field(Secret(), description="or API key; give it as !secret")
    ca_file: FilePath = Field(
        "", description="PEM file of the authority of the broker's certificate; default: the system's"
    )
    cert_file: FilePath = Field("", description="PEM file of our own certificate, for mutual TLS")
    key_file: FilePath = Field("", description="PEM file of its key")
    key_password: Secret = Field(Secret(), description="of the key file, when it is encrypted; give it as !secret")
    client_id: str = Field(
        "",
        max_length=128,
        description="name of the persistent session; default: made from this box, the link's name and application",
    )
    receive_window: int = Field(
        1000, ge=1, le=65535, description="uplinks taken before the first is durable; MQTT 5 Receive Maximum"
    )

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file go together")
        if not self.key_password and _is_encrypted(self.key_file):
            raise ValueError(f"{self.key_file} is encrypted: give key_password, or a key without one")
        return self

    def claims(self) -> Iterator[Claim]:
        """Its session, where its name is given (the default is made from the link's), and its devices."""
        if self.client_id:
            host, port = mqtt_address(self.url)
            yield Claim("session", f"client id {self.client_id} at {same_host(host)}:{port}", ("client_id",))
        for name, device in self.devices.items():
            if isinstance(device, ServerDevice):
                yield Claim("device", f"DevEUI {device.dev_eui}", ("devices", name, "dev_eui"), within=True)


class ChirpstackLink(MqttLink):
    """ChirpStack v4 or v3, JSON marshaler."""

    driver: Literal["chirpstack"] = Field(description="chirpstack: uplinks from a ChirpStack server")
    protocol: Literal["5", "3.1.1"] = Field("5", description="MQTT version")
    application: str = Field("+", pattern=r"^[^#/]+$", description="application id; default: all")
    topic_prefix: str = Field(
        "", description="what the server puts before `application/…` (ChirpStack Gateway Mesh, v4 regions)"
    )
    devices: dict[str, ServerDevice] = Field(default={}, description="devices that the server knows, by our name")


class TtsLink(MqttLink):
    """The Things Stack v3."""

    driver: Literal["tts"] = Field(description="tts: uplinks from The Things Stack")
    protocol: Literal["5", "3.1.1"] = Field("3.1.1", description="MQTT version")
    devices: dict[str, ServerDevice] = Field(default={}, description="devices that the server knows, by our name")


class Abp(ConfigModel):
    """A session known from both sides: of an ABP device, or exported from a network server after an OTAA join."""

    dev_addr: DevAddr = Field(description="8 hex digits")
    nwk_s_key: Key = Field(description="network session key, 32 hex digits; give it as !secret")
    app_s_key: Key = Field(description="application session key, 32 hex digits; give it as !secret")
    f_cnt: int | None = Field(None, ge=0, le=2**32 - 1, description="last counter of an exported session")


class Activation(ConfigModel):
    """How the device got its keys."""

    abp: Abp = Field(description="a session known from both sides")


class RadioDevice(LoraDevice):
    """A device whose session keys we hold; LoRaWAN 1.0.x."""

    activation: Activation = Field(description="how the device got its keys")
    counter_may_reset: bool = Field(
        False, description="accept a counter that starts again at 0 after power loss; also lets old frames be replayed"
    )


class SemtechUdpLink(LinkConfig):
    """The receiving side of a packet forwarder (Semtech UDP v2)."""

    driver: Literal["semtech-udp"] = Field(description="semtech-udp: a LoRa concentrator's packet forwarder")
    host: Host = Field(
        "127.0.0.1", description="address we listen at; the protocol has no authentication: keep it local"
    )
    port: int = Field(1700, ge=1, le=65535, description="UDP port")
    gateways: tuple[DevEui, ...] = Field((), description="EUIs of concentrators we listen to; default: any")
    devices: dict[str, RadioDevice] = Field(default={}, description="devices whose keys we hold, by our name")

    def claims(self) -> Iterator[Claim]:
        """The port it listens at, and its sessions: many devices of the world share a DevAddr, none its key too."""
        yield Claim("listener", f"UDP {same_host(self.host)}:{self.port}", ("port",))
        for name, device in self.devices.items():
            abp = device.activation.abp
            path = ("devices", name, "activation", "abp", "dev_addr")
            yield Claim("device", f"DevAddr {abp.dev_addr}", path, within=True, also=abp.nwk_s_key)


class ModemDevice(LoraDevice):
    """A sender that a point-to-point modem hears."""

    address: int | None = Field(
        None, ge=0, le=65535, description="its address (RYLR); others do not tell senders apart"
    )
    f_port: int = Field(1, ge=1, le=223, description="port the payload codec is told, where the modem tells none")


class LoraModemLink(LinkConfig):
    """A point-to-point LoRa modem on a serial port, receiving."""

    driver: Literal["lora-modem"] = Field(description="lora-modem: a serial LoRa modem in receive mode")
    port: SerialPort = Field(description="path of the serial port")
    modem: Literal["rylr", "rn2483", "e5"] = Field(description="REYAX RYLR, Microchip RN2483 or Seeed LoRa-E5")
    baud_rate: BaudRate | None = Field(None, description="default: the modem's factory setting")
    setup: tuple[str, ...] = Field((), max_length=16, description="commands sent at start, e.g. AT+PARAMETER=10,7,1,7")
    devices: dict[str, ModemDevice] = Field(min_length=1, description="senders that the modem hears, by our name")

    @model_validator(mode="after")
    def _tell_apart(self) -> Self:
        if self.modem != "rylr" and len(self.devices) > 1:
            raise ValueError(f"{self.modem} does not tell senders apart: exactly one device")
        addresses = [device.address for device in self.devices.values()]
        if len(self.devices) > 1 and (None in addresses or len(set(addresses)) < len(addresses)):
            raise ValueError("several senders need an address each")
        return self

    def claims(self) -> Iterator[Claim]:
        """Its serial port, and its senders where two modems are set up alike: else they may hear different networks."""
        yield from super().claims()
        for name, device in self.devices.items():
            if self.setup and device.address is not None:
                path, network = ("devices", name, "address"), "\n".join(self.setup).upper()
                yield Claim("device", f"{self.modem} sender {device.address}", path, also=network)
