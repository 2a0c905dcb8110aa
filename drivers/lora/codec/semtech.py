"""Semtech UDP packet forwarder protocol, version 2, the side that receives. Source: Lora-net/packet_forwarder PROTOCOL.TXT."""

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from drivers.lora.codec.uplink import best_copy, number, parse_object, parse_time, tables, whole
from gateway.sdk.errors import FrameError, foreign

VERSION = 2
PUSH_DATA, PUSH_ACK, PULL_DATA, PULL_RESP, PULL_ACK, TX_ACK = range(6)
NAMES = ("PUSH_DATA", "PUSH_ACK", "PULL_DATA", "PULL_RESP", "PULL_ACK", "TX_ACK")
MAX_DATAGRAM_BYTES = 65_507
MAX_PACKETS = 64  # of one datagram; concentrators hold at most 16
GPS_EPOCH = datetime(1980, 1, 6, tzinfo=UTC)
LEAP_SECONDS = 18  # GPS is ahead of UTC by so much since 2017-01-01; none is announced
_DATA_RATE = re.compile(r"SF(\d{1,2})BW(\d{2,4})")


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram's header.

    Attributes:
        token: two bytes, echoed as they are.
        gateway: EUI, 16 hex digits; "" where the kind has none.
        body: JSON or b"".
    """

    kind: int
    token: bytes
    gateway: str
    body: bytes

    @property
    def ack(self) -> bytes:
        """What goes back at once; b"" when nothing does."""
        reply = {PUSH_DATA: PUSH_ACK, PULL_DATA: PULL_ACK}.get(self.kind)
        return b"" if reply is None else bytes((VERSION,)) + self.token + bytes((reply,))


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet a concentrator heard.

    Attributes:
        phy: PHYPayload.
        time: by GPS or the concentrator's host; None when it does not say. `tmst` is no clock and not used.
        gps: the time comes from GPS (`tmms`).
        crc_ok: the radio checked a CRC and it was right; a frame without one may be noise.
        snr, spreading_factor: None for FSK.
    """

    phy: bytes
    time: datetime | None
    gps: bool
    rssi: float | None
    snr: float | None
    spreading_factor: int | None
    bandwidth_khz: int | None
    frequency_hz: int | None
    channel: int | None = None
    crc_ok: bool = False


def parse_datagram(data: bytes) -> Datagram:
    """Split a datagram into header and body.

    Raises:
        FrameError: too short or long, another version, an unknown kind.
    """
    if len(data) < 4:
        raise FrameError(f"{len(data)} bytes, a datagram has at least 4", frame=data, offset=len(data))
    if len(data) > MAX_DATAGRAM_BYTES:
        raise FrameError(f"datagram of {len(data)} bytes", frame=data)
    if data[0] != VERSION:
        raise FrameError(f"protocol version {data[0]}, expected {VERSION}", frame=data, offset=0)
    kind = data[3]
    if kind >= len(NAMES):
        raise FrameError(f"unknown kind {kind}", frame=data, offset=3)
    if kind not in (PUSH_DATA, PULL_DATA, TX_ACK):
        return Datagram(kind, data[1:3], "", data[4:])
    if len(data) < 12:
        raise FrameError(f"{len(data)} bytes, {NAMES[kind]} has at least 12", frame=data, offset=len(data))
    return Datagram(kind, data[1:3], data[4:12].hex(), data[12:])


def parse_push(body: bytes) -> tuple[list[Packet], list[FrameError], dict[str, Any]]:
    """Packets of a PUSH_DATA body, the ones refused (bad CRC, no data), and the gateway's `stat` object.

    Raises:
        FrameError: the body is no JSON object, or `rxpk` no list of objects.
    """
    with foreign("PUSH_DATA", body):
        return _parse_push(body)


def _parse_push(body: bytes) -> tuple[list[Packet], list[FrameError], dict[str, Any]]:
    said = parse_object(body)
    listed = said.get("rxpk", [])
    if not isinstance(listed, list) or len(tables(listed)) != len(listed):
        raise FrameError("rxpk is no list of objects", frame=body)
    if len(listed) > MAX_PACKETS:
        raise FrameError(f"{len(listed)} packets in a datagram, at most {MAX_PACKETS}", frame=body)
    packets, refused = [], []
    for item in listed:
        try:
            packets.append(parse_packet(item))
        except FrameError as error:
            refused.append(error)
    stat = said.get("stat")
    return packets, refused, stat if isinstance(stat, dict) else {}


def parse_packet(item: dict[str, Any]) -> Packet:
    """One `rxpk` object.

    Raises:
        FrameError: the radio's CRC was wrong, `data` is no base64, or not as long as `size` says.
    """
    crc = whole(item.get("stat"), -1, 1)
    if crc == -1:
        raise FrameError("the radio's CRC was wrong")
    phy = _base64(item.get("data"))
    if "size" in item and whole(item["size"], 0, MAX_DATAGRAM_BYTES) != len(phy):
        raise FrameError(f"{len(phy)} bytes of data, size says {str(item['size'])[:20]}", frame=phy)
    rate = _DATA_RATE.fullmatch(item["datr"]) if isinstance(item.get("datr"), str) else None
    signal = best_copy(tables(item.get("rsig")), "rssic")
    gps_ms = whole(item.get("tmms"), 1, 2**53)
    frequency_mhz = number(item.get("freq"))
    return Packet(
        phy=phy,
        time=_gps_time(gps_ms) if gps_ms else parse_time(item.get("time")),
        gps=gps_ms is not None,
        rssi=number(item.get("rssi", signal.get("rssic"))),
        snr=number(item.get("lsnr", signal.get("lsnr"))),
        spreading_factor=whole(rate[1], 5, 12) if rate else None,
        bandwidth_khz=int(rate[2]) if rate else None,
        frequency_hz=round(frequency_mhz * 1e6) if frequency_mhz is not None else None,
        channel=whole(item.get("chan"), 0, 255),
        crc_ok=crc == 1,
    )


def stat_time(text: Any) -> datetime | None:
    """The time of a `stat` object, "2014-01-12 08:59:28 GMT"."""
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S GMT").replace(tzinfo=UTC)
    except (ValueError, TypeError):
        return None


def _gps_time(milliseconds: int) -> datetime | None:
    try:
        return GPS_EPOCH + timedelta(milliseconds=milliseconds, seconds=-LEAP_SECONDS)
    except OverflowError:
        return None


def _base64(text: Any) -> bytes:
    """Base64 as forwarders write it: padded or not, and `-_` mixed with `+/` as in the document's own example."""
    if not isinstance(text, str):
        raise FrameError("a packet without data")
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise FrameError("data is no base64", frame=text.encode("utf-8", "replace")) from None
