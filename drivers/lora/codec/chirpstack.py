"""Events of ChirpStack v4 and v3 in JSON over MQTT. Source: ChirpStack documentation, "Events"; LoRa App Server, "MQTT".

Protobuf JSON leaves out zero values: no fCnt means 0, no data an empty payload. A signal that is not told is no signal of
0 dBm. Of v3 both marshalers are read: `json_v3`, and `json` with identifiers in base64 and the decoded object as text.
"""

from typing import Any

from drivers.lora.codec.uplink import (
    Event,
    Notice,
    Status,
    Uplink,
    best_copy,
    from_base64,
    hex_or_base64,
    key_of,
    number,
    parse_object,
    parse_time,
    plain,
    table,
    tables,
    whole,
)
from gateway.sdk.errors import FrameError, foreign

EVENTS = ("up", "rx", "status", "join", "ack", "txack", "error", "log", "location", "integration")
_EUI_KEYS = ("devEUI", "devEui", "DevEUI")  # v3, its `json` marshaler, its joins
EXTERNAL_POWER, UNKNOWN_BATTERY = 0, 255  # v3 status: 1..254 is the level, not a percentage


def decode(topic: str, body: bytes) -> Event:
    """Decode one event.

    Args:
        topic: `application/ID/device/EUI/event/EVENT`, or the older `application/ID/device/EUI/EVENT`.

    Raises:
        FrameError: not JSON, no DevEUI, or a payload that is no base64.
    """
    with foreign("event of ChirpStack", body):
        return _decode(topic.rsplit("/", 1)[-1], body)


def _decode(event: str, body: bytes) -> Event:
    said = parse_object(body)
    info = table(said.get("deviceInfo"))
    dev_eui = hex_or_base64(info.get("devEui"), 16) or _older_eui(said)
    if not dev_eui:
        raise FrameError("no DevEUI in the event", frame=body)
    if event in ("up", "rx"):
        return _uplink(said, dev_eui, body)
    if event == "status":
        return _status(said, dev_eui)
    text = " ".join(plain(said[key]) for key in ("level", "code", "type", "description", "error") if key in said)
    return Notice(event if event in EVENTS else "other", dev_eui, text)


def _older_eui(said: dict[str, Any]) -> str:
    return next((eui for key in _EUI_KEYS if (eui := hex_or_base64(said.get(key), 16))), "")


def _uplink(said: dict[str, Any], dev_eui: str, body: bytes) -> Uplink:
    f_cnt = whole(said.get("fCnt", 0), 0, 2**32 - 1)
    if f_cnt is None:
        raise FrameError("fCnt is no 32-bit counter", frame=body)
    heard = tables(said.get("rxInfo"))
    best = best_copy(heard)
    data = said.get("data")
    sent = table(said.get("txInfo"))
    lora = table(table(sent.get("modulation")).get("lora")) or table(sent.get("loRaModulationInfo"))
    published = said.get("publishedAt")  # v3: when the server had it; gateways without GPS tell no time
    identity = said.get("deduplicationId") or (dev_eui, f_cnt, data, best.get("time"), said.get("time") or published)
    times = (said.get("time"), best.get("time"), *(copy.get("time") for copy in heard), published)
    return Uplink(
        key=key_of(identity),
        dev_eui=dev_eui,
        dev_addr=hex_or_base64(said.get("devAddr"), 8),
        f_port=whole(said.get("fPort"), 0, 255),
        f_cnt=f_cnt,
        payload=from_base64(data, body, "data"),
        decoded=_object(said),
        time=next((at for told in times if (at := parse_time(told)) is not None), None),
        rssi=number(best.get("rssi")),
        snr=number(best.get("snr", best.get("loRaSNR"))),
        spreading_factor=whole(lora.get("spreadingFactor"), 5, 12),
        frequency_hz=whole(sent.get("frequency"), 0, 10**10),
        gateway=hex_or_base64(best.get("gatewayId", best.get("gatewayID")), 16),
        copies=max(1, len(heard)),
    )


def _object(said: dict[str, Any]) -> Any:
    """What the server's codec made of the payload; the `json` marshaler of v3 writes it as JSON in a text."""
    text = said.get("objectJSON")
    if not isinstance(text, str) or not text:
        return said.get("object")
    try:
        return parse_object(text.encode("utf-8", "surrogatepass"))
    except FrameError:
        return None  # "null" when there is no codec; the payload may be read all the same


def _status(said: dict[str, Any], dev_eui: str) -> Status:
    percent, external = number(said.get("batteryLevel")), bool(said.get("externalPowerSource"))
    if percent is None and (level := whole(said.get("battery"), 0, 255)) is not None:
        external = level == EXTERNAL_POWER
        percent = None if level in (EXTERNAL_POWER, UNKNOWN_BATTERY) else (level - 1) / 253 * 100
    if said.get("batteryLevelUnavailable") or external:
        percent = None
    at = parse_time(said.get("time")) or parse_time(said.get("publishedAt"))
    identity = said.get("deduplicationId") or (dev_eui, "status", at, percent, said.get("margin"))
    return Status(key_of(identity), dev_eui, at, percent, number(said.get("margin")), external)
