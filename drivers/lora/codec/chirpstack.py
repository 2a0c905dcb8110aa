"""Events of ChirpStack v4 and v3 in JSON over MQTT. Source: ChirpStack documentation, "Events"; LoRa App Server, "MQTT".

Protobuf JSON leaves out zero values: no fCnt means 0, no data an empty payload.
"""

import base64
import binascii
from typing import Any

from drivers.lora.codec.uplink import (
    Event,
    Notice,
    Status,
    Uplink,
    hex_eui,
    key_of,
    number,
    parse_object,
    parse_time,
    table,
    tables,
    whole,
)
from gateway.sdk.errors import FrameError

EXTERNAL_POWER, UNKNOWN_BATTERY = 0, 255  # v3 status: 1..254 is the level, not a percentage


def decode(topic: str, body: bytes) -> Event:
    """Decode one event.

    Args:
        topic: `application/ID/device/EUI/event/EVENT`, or the older `application/ID/device/EUI/EVENT`.

    Raises:
        FrameError: not JSON, no DevEUI, or a payload that is no base64.
    """
    event = topic.rsplit("/", 1)[-1]
    said = parse_object(body)
    info = table(said.get("deviceInfo"))
    dev_eui = _eui(info.get("devEui", said.get("devEUI", said.get("devEui"))))
    if not dev_eui:
        raise FrameError("no DevEUI in the event", frame=body)
    if event in ("up", "rx"):
        return _uplink(said, dev_eui, body)
    if event == "status":
        return _status(said, dev_eui)
    text = " ".join(str(said[key])[:200] for key in ("level", "code", "type", "description", "error") if key in said)
    return Notice(event, dev_eui, text)


def _uplink(said: dict[str, Any], dev_eui: str, body: bytes) -> Uplink:
    f_cnt = whole(said.get("fCnt", 0), 0, 2**32 - 1)
    if f_cnt is None:
        raise FrameError("fCnt is no 32-bit counter", frame=body)
    heard = tables(said.get("rxInfo"))
    best = max(heard, key=_strength, default={})
    data = said.get("data")
    lora = table(table(table(said.get("txInfo")).get("modulation")).get("lora"))
    identity = said.get("deduplicationId") or (dev_eui, f_cnt, data, best.get("time"), said.get("time"))
    return Uplink(
        key=key_of(identity),
        dev_eui=dev_eui,
        dev_addr=hex_eui(said.get("devAddr"), 8),
        f_port=whole(said.get("fPort"), 0, 255),
        f_cnt=f_cnt,
        payload=_base64(data, body),
        decoded=said.get("object"),
        time=parse_time(said.get("time")) or parse_time(best.get("time")),
        rssi=number(best.get("rssi", 0 if best else None)),
        snr=number(best.get("snr", best.get("loRaSNR", 0 if best else None))),
        spreading_factor=whole(lora.get("spreadingFactor"), 5, 12),
        frequency_hz=whole(table(said.get("txInfo")).get("frequency"), 0, 10**10),
        gateway=_eui(best.get("gatewayId", best.get("gatewayID"))),
        copies=max(1, len(heard)),
    )


def _strength(heard: dict[str, Any]) -> float:
    return number(heard.get("rssi")) or -999.0


def _status(said: dict[str, Any], dev_eui: str) -> Status:
    percent, external = number(said.get("batteryLevel")), bool(said.get("externalPowerSource"))
    if percent is None and (level := whole(said.get("battery"), 0, 255)) is not None:
        external = level == EXTERNAL_POWER
        percent = None if level in (EXTERNAL_POWER, UNKNOWN_BATTERY) else (level - 1) / 253 * 100
    if said.get("batteryLevelUnavailable") or external:
        percent = None
    at = parse_time(said.get("time"))
    identity = said.get("deduplicationId") or (dev_eui, "status", at, percent, said.get("margin"))
    return Status(key_of(identity), dev_eui, at, percent, number(said.get("margin")), external)


def _eui(value: Any) -> str:
    """A v4 hex EUI, or one in base64 as the protobuf-JSON marshaler of v3 writes it."""
    if eui := hex_eui(value):
        return eui
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) == 8 else ""


def _base64(data: Any, body: bytes) -> bytes:
    if data is None:
        return b""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise FrameError("data is no base64", frame=body) from None
