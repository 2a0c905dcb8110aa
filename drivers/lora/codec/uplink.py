"""What all inputs give: one uplink of one device, whoever received it; and what a server says beside uplinks."""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.sdk.errors import FrameError

MAX_MESSAGE_BYTES = 256 * 1024
MAX_DEPTH = 64  # objects and lists in each other; what reads a tree further on may recurse
MAX_NOTICE = 400  # characters of an error that a server reports
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


class NoJson(FrameError):
    """A body that is no JSON at all: the server writes another format."""


def key_of(*parts: object) -> bytes:
    """8 bytes that stand for an identity."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def parse_object(body: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        NoJson: not UTF-8, not JSON, or NaN in it.
        FrameError: too large, nested too deep, or no object.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise FrameError(f"message of {len(body)} bytes, at most {MAX_MESSAGE_BYTES}", frame=body)
    try:
        parsed = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise FrameError(f"nested deeper than {MAX_DEPTH}", frame=body) from None
    except ValueError as error:  # the same words for all: what comes again and again is counted as one
        at = getattr(error, "pos", getattr(error, "start", 0))  # of bad JSON, of bad UTF-8
        raise NoJson("not JSON", frame=body, offset=at) from None
    if not isinstance(parsed, dict):
        raise FrameError(f"a JSON object expected, not {type(parsed).__name__}", frame=body)
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and too_deep(parsed):
        raise FrameError(f"nested deeper than {MAX_DEPTH}", frame=body)
    return parsed


def too_deep(tree: Any) -> bool:
    """Whether more than `MAX_DEPTH` objects and lists are in each other."""
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def parse_time(text: Any) -> datetime | None:
    """An RFC 3339 time in UTC, nanoseconds cut to microseconds; None when it is none."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo is not None else None
    except (ValueError, OverflowError):  # Go's zero time in a zone east of Greenwich lies before the year 1
        return None


def hex_eui(value: Any, digits: int = 16) -> str:
    """A hexadecimal identifier in lower case; "" when it is none."""
    text = str(value).lower() if isinstance(value, str) else ""
    return text if len(text) == digits and all(c in "0123456789abcdef" for c in text) else ""


_DECIMAL = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)


def number(value: Any) -> float | None:
    """A finite JSON number, or None. Also one written as a string: protobuf JSON allows both."""
    if isinstance(value, str):
        value = float(value) if _DECIMAL.fullmatch(value) else None
    return value if type(value) in (int, float) and abs(value) < 1e15 else None


def whole(value: Any, low: int, high: int) -> int | None:
    """A whole number within bounds, or None; 3.0 is 3."""
    if type(value) is int:
        return value if low <= value <= high else None
    found = number(value)
    return int(found) if found is not None and low <= found <= high and found == int(found) else None


def from_base64(data: Any, body: bytes, what: str) -> bytes:
    """Bytes of a base64 text; none for a missing one.

    Raises:
        FrameError: it is no base64.
    """
    if data is None:
        return b""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise FrameError(f"{what} is no base64", frame=body) from None


def hex_or_base64(value: Any, digits: int) -> str:
    """An identifier in hexadecimal, or in base64 as the protobuf-JSON marshaler of ChirpStack v3 writes it; "" when it is
    none."""
    if found := hex_eui(value, digits):
        return found
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) * 2 == digits else ""


def best_copy(heard: list[dict[str, Any]], rssi: str = "rssi") -> dict[str, Any]:
    """The copy received loudest; one that tells no `rssi` counts least. Empty when there is none."""
    if len(heard) == 1:
        return heard[0]
    none = float("-inf")
    return max(heard, key=lambda copy: none if (dbm := number(copy.get(rssi))) is None else dbm, default={})


def plain(value: Any) -> str:
    """A server's own word in a message of ours: short, on one line, encodable."""
    text = " ".join(str(value)[:MAX_NOTICE].split())
    return text.encode("utf-8", "replace").decode()


def table(value: Any) -> dict[str, Any]:
    """The object itself, or an empty one."""
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
