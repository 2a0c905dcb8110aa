"""What all inputs give: one uplink of one device, whoever received it; and what a server says beside uplinks."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.sdk.errors import FrameError

MAX_MESSAGE_BYTES = 256 * 1024
TEST_PORT = 224  # LoRaWAN: port of the certification test protocol, never a measurement


@dataclass(frozen=True, slots=True)
class Uplink:
    """One uplink.

    Attributes:
        key: hash of the identity the network server gave it; equal for repeats of the same uplink. 8 bytes.
        dev_eui: 16 lower-case hex digits; "" when the source does not tell.
        dev_addr: 8 lower-case hex digits or "".
        f_port: None when the frame had none.
        f_cnt: frame counter (32 bit); None when the source has none.
        payload: decrypted application payload.
        decoded: what the server's own codec made of it; None when there is none.
        time: when the network received it; None when it does not say.
        heard_at: when it came to us, by our clock; None = now.
        rssi, snr, spreading_factor, frequency_hz: of the best copy.
        gateway: id of the gateway with the best copy.
        copies: how many gateways heard it.
        simulated: the server says that it is no real uplink.
    """

    key: bytes
    dev_eui: str = ""
    dev_addr: str = ""
    f_port: int | None = None
    f_cnt: int | None = None
    payload: bytes = b""
    decoded: Any = None
    time: datetime | None = None
    heard_at: datetime | None = None
    rssi: float | None = None
    snr: float | None = None
    spreading_factor: int | None = None
    frequency_hz: int | None = None
    gateway: str = ""
    copies: int = 1
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """A device's own report of battery and link margin, as the server passes it on.

    Attributes:
        battery_percent: None when unknown or on external power.
    """

    key: bytes
    dev_eui: str
    time: datetime | None
    battery_percent: float | None
    margin_db: float | None
    external_power: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """Something else about a device: a join, an error of the server."""

    event: str
    dev_eui: str
    text: str = ""


Event = Uplink | Status | Notice


def key_of(*parts: object) -> bytes:
    """8 bytes that stand for an identity."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()


def parse_object(body: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        FrameError: too large, not UTF-8, not JSON, NaN in it, nested too deep, or no object.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise FrameError(f"message of {len(body)} bytes, at most {MAX_MESSAGE_BYTES}", frame=body)
    try:
        parsed = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {error}", frame=body) from None
    if not isinstance(parsed, dict):
        raise FrameError(f"a JSON object expected, not {type(parsed).__name__}", frame=body)
    return parsed


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def parse_time(text: Any) -> datetime | None:
    """An RFC 3339 time in UTC, nanoseconds cut to microseconds; None when it is none."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.astimezone(UTC) if at.tzinfo is not None else None


def hex_eui(value: Any, digits: int = 16) -> str:
    """A hexadecimal identifier in lower case; "" when it is none."""
    text = str(value).lower() if isinstance(value, str) else ""
    return text if len(text) == digits and all(c in "0123456789abcdef" for c in text) else ""


def number(value: Any) -> float | None:
    """A finite JSON number, or None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 else None


def whole(value: Any, low: int, high: int) -> int | None:
    """A whole number within bounds, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None


def table(value: Any) -> dict[str, Any]:
    """The object itself, or an empty one."""
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
