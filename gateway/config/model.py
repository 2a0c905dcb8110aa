"""The operator's file, except what drivers add: its keys are our API and live long."""

import contextlib
import ipaddress
import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, WithJsonSchema, model_validator

from gateway.config.auth import AuthConfig, TlsConfig, Url
from gateway.sdk.config import ConfigModel, Duration, FilePath, LinkConfig, Location, Rate, Secret, Size

VERSION = 1

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # goes into entity ids, metrics and file names as it is

Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]


def _check_url(url: str) -> str:
    match = re.fullmatch(r"([a-z]+)://([^/?#\s@]+@)?([^/?#\s@:${}<>]+|\[[0-9a-fA-F:.]+\])(:[0-9]+)?(/[^?#\s]*)?", url)
    if not match or match[1] not in ("http", "https"):
        raise ValueError(f"{url!r} is not an address of a broker; write it as in https://broker.example:1026")
    if match[4] and not 1 <= int(match[4][1:]) <= 65535:
        raise ValueError(f"{match[4][1:]} is no port; ports go from 1 to 65535")
    if match[2]:
        raise ValueError("a login in the address would be shown in logs; remove it")
    return url.rstrip("/")


_HOST = r"([^/?#\s@:${}<>]+|\[[0-9a-fA-F:.]+\])"
_ADDRESS = {"type": "string", "pattern": rf"^https?://{_HOST}(:[0-9]+)?(/[^?#\s]*)?$"}  # what an editor can check
HttpUrl = Annotated[str, AfterValidator(_check_url), WithJsonSchema(_ADDRESS)]


_LISTEN = r"(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]+):([0-9]{1,5})"


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8580`, `[::1]:8580`. Raises ValueError."""
    match = re.fullmatch(_LISTEN, listen)
    if not match or int(match[2]) > 65535:
        raise ValueError(f"{listen!r} is not host:port; write it as in 127.0.0.1:8580")
    return match[1].strip("[]"), int(match[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _check_listen(listen: str) -> str:
    parse_listen(listen)
    return listen


def parse_time(value: Any) -> datetime:
    """A time with zone, `2026-06-01T00:00:00Z`. Raises ValueError."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value} is not a time; write it as in 2026-06-01T00:00:00Z") from None
    if time.tzinfo is None:
        raise ValueError(f"{value} has no zone; write it as in 2026-06-01T00:00:00Z")
    return time


Time = Annotated[datetime, BeforeValidator(parse_time), WithJsonSchema({"type": "string", "format": "date-time"})]


FileName = Annotated[str, Field(min_length=1)]


class GatewayConfig(ConfigModel):
    """This box."""

    id: Name = Field(description="this box, in entity ids, logs and metrics; unique in the city, never changed")
    name: str = Field("", description="for people, e.g. Bovisa school roof")
    location: Location | None = Field(None, description="longitude, latitude; where devices without their own stand")
    city: Name = Field(description="part of the entity ids, unless a broker's city profile gives another")


class BufferConfig(ConfigModel):
    """The log on disk: what is kept until every broker has it."""

    path: FilePath = Field(
        "/var/lib/citygate/buffer.db",
        min_length=1,
        description="database file; its folder must exist",
    )
    commit_every_s: Annotated[Duration, Field(ge=0, le=3600)] = Field(
        15.0, alias="commit_every", description="declared loss window at a power cut; 0 s commits each set"
    )
    max_size_bytes: Annotated[Size, Field(ge=1_000_000)] = Field(
        10**9, alias="max_size", description="bound of the file; beyond it the oldest readings go first, counted"
    )
    max_age_s: Annotated[Duration, Field(ge=60)] = Field(
        90 * 86400.0, alias="max_age", description="readings older than this are dropped, counted"
    )
    keep_s: Annotated[Duration, Field(ge=0)] = Field(
        0.0, alias="keep", description="how long settled readings stay (the log is a queue, not a historian)"
    )


class BrokerConfig(ConfigModel):
    """A city's context broker."""

    kind: Literal["ngsi-ld"] = Field(
        "ngsi-ld", description="what it speaks: NGSI-LD alone, so give the address of an NGSI-LD broker"
    )
    use: str | None = Field(
        None, description="city profile, e.g. cities/milano; what it gives, this entry may override"
    )
    url: HttpUrl = Field(description="address without /ngsi-ld/…, e.g. https://broker.milano.example")
    was: Name | None = Field(
        None, description="name that it had before: its place and all that is owed to it go on under this one"
    )
    tenant: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,50}$", description="sent as NGSILD-Tenant")
    preset: Literal["auto", "orion-ld", "scorpio", "stellio"] = Field(
        "auto", description="where to begin with batch sizes and history; the rest is learned"
    )
    contexts: HttpUrl | None = Field(
        None,
        description="where the broker finds the contexts of the published models, as SUBJECT/context.jsonld; default: where they are published",
    )
    auth: AuthConfig = Field(AuthConfig(), description="how to log in")
    tls: TlsConfig = Field(TlsConfig(), description="whom to trust, and our certificate")
    proxy: Url | None = Field(None, description="HTTP proxy on the way, e.g. http://proxy.example:3128")
    timeout_s: Annotated[Duration, Field(ge=1, le=600)] = Field(
        30.0, alias="timeout", description="longest silence within one request"
    )
    send: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("*",), description="devices to send, by name or glob"
    )
    start: Literal["oldest", "now"] | Time = Field(
        "oldest", alias="from", description="where a new broker starts: oldest, now, or a time with zone"
    )
    history: Literal["auto", "temporal", "in-order", "latest-only"] = Field(
        "auto", description="how the past is sent; auto asks the broker"
    )
    linger_s: Annotated[Duration, Field(ge=0, le=3600)] = Field(
        1.0, alias="linger", description="changes are gathered this long before they are sent"
    )
    rate_per_s: Annotated[Rate, Field(gt=0)] | None = Field(
        None, alias="rate", description="most readings sent, by time, all together; without it what the broker takes"
    )
    check: Literal["always", "sampled", "off"] = Field(
        "always",
        description="check what leaves against the official schema; what does not fit is held, with the reason",
    )


class PublishConfig(ConfigModel):
    """What the city's users are told about the data."""

    licence: str = Field("", description="SPDX name, e.g. CC-BY-4.0")
    provider: str = Field("", description="who provides the data")
    contact: str = Field("", description="mail address for questions")
    devices_s: Annotated[Duration, Field(ge=0)] = Field(
        900.0,
        alias="devices",
        description="how often the box and its sensors tell how they are, as Device entities; 0 s never",
    )


def _check_token(token: Secret) -> Secret:
    if not re.fullmatch(r"[\x21-\x7e]{8,256}", token):
        raise ValueError("a token has 8 to 256 printable ASCII characters without blanks")
    return token


class HttpConfig(ConfigModel):
    """Local page, read API, metrics and health."""

    listen: Annotated[
        str, AfterValidator(_check_listen), WithJsonSchema({"type": "string", "pattern": f"^{_LISTEN}$"})
    ] = Field("127.0.0.1:8580", description="host:port; port 0 takes a free one; beyond loopback it needs a token")
    token: Annotated[Secret, AfterValidator(_check_token)] | None = Field(
        None, description="who asks by TCP must know it: as bearer token, or as the password of any user; use !secret"
    )

    @model_validator(mode="after")
    def _guarded(self) -> "HttpConfig":
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"{self.listen} can be reached from outside: add token: !secret NAME, or listen on 127.0.0.1"
            )
        return self

    @property
    def host(self) -> str:
        return parse_listen(self.listen)[0]

    @property
    def port(self) -> int:
        return parse_listen(self.listen)[1]


class ClockConfig(ConfigModel):
    """Whose word is taken for the time."""

    trust: Literal["auto", "system"] = Field(
        "auto", description="auto asks for a time source; system takes the system's word (containers, tests)"
    )
    unconfirmed: Literal["hold", "mark"] = Field(
        "hold", description="readings whose time is not known yet: hold them back, or send them marked, as history only"
    )


class Config(ConfigModel):
    """The operator's file."""

    version: Literal[1] = Field(description="of this file's format")
    base: FileName | tuple[FileName, ...] = Field(
        (), description="file that many boxes share, or several, the later ones win; what stands here wins over them"
    )
    gateway: GatewayConfig
    buffer: BufferConfig = BufferConfig()
    links: dict[str, SerializeAsAny[LinkConfig]] = Field(default={}, description="physical links by name")
    brokers: dict[Name, BrokerConfig] = Field(default={}, description="context brokers by name; none: read API only")
    publish: PublishConfig = PublishConfig()
    http: HttpConfig = HttpConfig()
    clock: ClockConfig = ClockConfig()


def _check_pattern(pattern: str) -> str:
    names = re.findall(r"\{([^{}]*)\}", pattern)
    unknown = sorted(set(names) - set(ID_PARTS))
    if unknown:
        raise ValueError(
            f"{{{unknown[0]}}} is not known in an id pattern; there are {', '.join(f'{{{n}}}' for n in ID_PARTS)}"
        )
    if "device" not in names:
        raise ValueError("without {device} all devices would be one entity")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:@!$*+,/{}-]+", pattern):
        raise ValueError(f"{pattern!r} is not a URI of letters, digits and . _ ~ : @ ! $ * + , / -")
    return pattern


ID_PARTS = ("Type", "city", "gateway", "device", "name")
IdPattern = Annotated[str, AfterValidator(_check_pattern)]


class TypeRule(ConfigModel):
    """What a city wants of one entity type."""

    context: str | None = Field(None, description="@context address of the model version this city uses")
    id: IdPattern | None = Field(None, description="id pattern for this type")
    static: dict[str, Any] = Field(default={}, description="extra attributes of this type: constant values")


class CityProfile(ConfigModel):
    """What a city asks of all that send to it; a file `cities/<name>.yaml` that the city can hand out."""

    city: str = Field("", description="name in entity ids; default: the gateway's")
    description: str = Field("", description="for people: whose profile this is")
    broker: dict[str, Any] = Field(default={}, description="keys of a broker entry, e.g. kind, url, tenant")
    contexts: HttpUrl | None = Field(None, description="contexts: of a broker entry, for all brokers of the city")
    id: IdPattern | None = Field(None, description="id pattern of {Type}, {city}, {gateway}, {device}")
    types: dict[str, TypeRule] = Field(default={}, description="rules by entity type")
    static: dict[str, Any] = Field(default={}, description="extra attributes of every entity: constant values")
    licence: str = Field("", description="SPDX name of the licence of the data, e.g. CC-BY-4.0")
    provider: str = Field("", description="who provides the data: dataProvider of each entity whose type has it")
