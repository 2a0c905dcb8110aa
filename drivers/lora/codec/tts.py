"""Messages of The Things Stack v3 in JSON over MQTT. Source: The Things Stack documentation, "Data formats" (Apache-2.0).

Zero and empty fields are left out (but a signal that is not told is no signal of 0 dBm: Packet Broker hides it); `frequency` is a string; `received_at` is there twice, the inner one is nearer.
"""

from typing import Any

from drivers.lora.codec.uplink import (
    Event,
    Notice,
    Uplink,
    best_copy,
    from_base64,
    hex_eui,
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

EVENTS = ("join_accept", "downlink_ack", "downlink_nack", "downlink_sent", "downlink_failed", "downlink_queued",
          "downlinks", "location_solved", "service_data")  # fmt: skip


def decode(topic: str, body: bytes) -> Event:
    """Decode one message; which kind it is, the message itself says.

    Args:
        topic: `v3/APPLICATION@TENANT/devices/DEVICE/up`; not needed to decode.

    Raises:
        FrameError: not JSON, no device, or a payload that is no base64.
    """
    with foreign("message of The Things Stack", body):
        return _decode(body)


def _decode(body: bytes) -> Event:
    said = parse_object(body)
    device = table(said.get("end_device_ids"))
    dev_eui = hex_eui(device.get("dev_eui"))
    if not device.get("device_id"):
        raise FrameError("no end_device_ids.device_id in the message", frame=body)
    if "uplink_message" in said:
        if not dev_eui:
            raise FrameError("no end_device_ids.dev_eui in the uplink", frame=body)
        return _uplink(said, table(said["uplink_message"]), device, dev_eui, body)
    event = next((name for name in EVENTS if name in said), "unknown")
    return Notice("join" if event == "join_accept" else event, dev_eui)


def _uplink(said: dict[str, Any], up: dict[str, Any], device: dict[str, Any], dev_eui: str, body: bytes) -> Uplink:
    f_cnt = whole(up.get("f_cnt", 0), 0, 2**32 - 1)
    if f_cnt is None:
        raise FrameError("f_cnt is no 32-bit counter", frame=body)
    heard = tables(up.get("rx_metadata"))
    best = best_copy(heard)
    settings = table(up.get("settings"))
    at = up.get("received_at") or said.get("received_at")
    return Uplink(
        key=key_of(dev_eui, up.get("session_key_id"), f_cnt, at),
        dev_eui=dev_eui,
        dev_addr=hex_eui(device.get("dev_addr"), 8),
        f_port=whole(up.get("f_port"), 0, 255),
        f_cnt=f_cnt,
        payload=from_base64(up.get("frm_payload"), body, "frm_payload"),
        decoded=up.get("decoded_payload"),
        time=parse_time(up.get("received_at")) or parse_time(said.get("received_at")),
        rssi=number(best.get("rssi")),
        snr=number(best.get("snr")),
        spreading_factor=whole(table(table(settings.get("data_rate")).get("lora")).get("spreading_factor"), 5, 12),
        frequency_hz=whole(settings.get("frequency"), 0, 10**11),
        gateway=plain(table(best.get("gateway_ids")).get("gateway_id", ""))[:64],
        copies=max(1, len(heard)),
        simulated=bool(said.get("simulated")),
    )
