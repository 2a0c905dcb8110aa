"""Events of ChirpStack and The Things Stack against the examples of their documentation, and any JSON."""

import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec import chirpstack, tts
from drivers.lora.codec.payload import flatten
from drivers.lora.codec.uplink import Notice, Status, Uplink
from gateway.sdk.errors import FrameError

CASES = Path(__file__).parents[1] / "cases"
DECODERS = {"chirpstack_v4": chirpstack.decode, "chirpstack_v3": chirpstack.decode, "tts_v3": tts.decode}


def cases() -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}: {case['name']}")
        for name in DECODERS
        for case in json.loads((CASES / f"{name}.json").read_text())["cases"]
    ]


def seen(event: Uplink | Status | Notice) -> dict[str, Any]:
    """The event in the words of the vectors."""
    if isinstance(event, Notice):
        return {"event": event.event, "dev_eui": event.dev_eui}
    if isinstance(event, Status):
        return {
            "event": "status",
            "dev_eui": event.dev_eui,
            "margin": event.margin_db,
            "battery_level": event.battery_percent,
        }
    return {
        "event": "up",
        "dev_eui": event.dev_eui,
        "fcnt": event.f_cnt,
        "fport": event.f_port or 0,
        "payload_hex": event.payload.hex(),
        "rssi": event.rssi,
        "snr": event.snr,
        "gateway_id": event.gateway,
        "frequency": event.frequency_hz,
        "spreading_factor": event.spreading_factor,
        **flatten(event.decoded)[0],
    }


@pytest.mark.parametrize(("name", "case"), cases())
def test_documented_messages_say_what_their_documentation_says(name: str, case: dict[str, Any]) -> None:
    event = DECODERS[name](case["context"]["topic"], case["input_text"].encode())
    got = seen(event)
    for field, said in case["expect"].items():
        want = said["value"]
        if field in ("time", "received_at") and not isinstance(event, Notice):
            assert event.time == datetime.fromisoformat(want), field
        elif field in got:
            assert got[field] == ((want or "").lower() if field == "dev_eui" else want), field
        else:
            # a device is known by its DevEUI; notices only go to status as text
            assert field == "device_id" or isinstance(event, Notice | Status), f"{field} is not read"


def test_zero_fields_that_protobuf_leaves_out_are_zero() -> None:
    body = {"deduplicationId": "a", "deviceInfo": {"devEui": "0101010101010101"}, "fPort": 1}
    event = chirpstack.decode("application/1/device/0101010101010101/event/up", json.dumps(body).encode())
    assert isinstance(event, Uplink)
    assert (event.f_cnt, event.payload) == (0, b"")


def test_base64_euis_of_the_v3_marshaler_are_read() -> None:
    body = {
        "devEUI": "AgICAgICAgI=",
        "fPort": 1,
        "data": "qg==",
        "rxInfo": [{"gatewayID": "AwMDAwMDAwM=", "rssi": -57}],
    }
    event = chirpstack.decode("application/1/device/0202020202020202/event/up", json.dumps(body).encode())
    assert isinstance(event, Uplink)
    assert (event.dev_eui, event.gateway) == ("02" * 8, "03" * 8)


@pytest.mark.parametrize(("raw", "percent"), [(0, None), (255, None), (1, 0.0), (254, 100.0)])
def test_the_v3_battery_is_a_level_only_between_its_sentinels(raw: int, percent: float | None) -> None:
    body = {"devEUI": "0202020202020202", "battery": raw, "margin": 6}
    event = chirpstack.decode("application/1/device/0202020202020202/status", json.dumps(body).encode())
    assert isinstance(event, Status)
    assert event.battery_percent == percent


def test_the_best_of_several_gateways_is_reported() -> None:
    heard = [{"gatewayId": f"{n:016x}", "rssi": rssi, "snr": n} for n, rssi in enumerate((-100, -40, -80))]
    body = {"deduplicationId": "a", "deviceInfo": {"devEui": "0101010101010101"}, "rxInfo": heard}
    event = chirpstack.decode("application/1/device/x/event/up", json.dumps(body).encode())
    assert isinstance(event, Uplink)
    assert (event.rssi, event.snr, event.copies) == (-40, 1, 3)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[]", b"1", b'{"fCnt": NaN}', b"[" * 100_000, b'{"devEUI": "0101010101010101", "data": "!"}',
     b'{"devEUI": "0101010101010101", "fCnt": -1}', b'{"devEUI": "0101010101010101", "fCnt": "many"}',
     b'{"devEUI": 7}', b" " * 300_000],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_what_is_no_event_is_refused(body: bytes) -> None:
    for decode in (chirpstack.decode, tts.decode):
        with pytest.raises(FrameError):
            decode("application/1/device/x/event/up", body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
CHIRPSTACK = ["deduplicationId", "time", "deviceInfo", "devAddr", "fCnt", "fPort", "data", "rxInfo", "txInfo", "object",
              "batteryLevel", "battery", "margin"]  # fmt: skip
UPLINK = [
    "f_cnt",
    "f_port",
    "frm_payload",
    "decoded_payload",
    "rx_metadata",
    "settings",
    "received_at",
    "session_key_id",
]


@given(st.dictionaries(st.sampled_from(CHIRPSTACK), JSON), st.sampled_from(["up", "status", "log", "x"]))
def test_any_fields_of_a_chirpstack_event_are_read_or_refused(fields: dict[str, Any], event: str) -> None:
    body = {**fields, "devEUI": "0202020202020202"}
    with contextlib.suppress(FrameError):
        chirpstack.decode(f"application/1/device/x/event/{event}", json.dumps(body).encode())


@given(st.dictionaries(st.sampled_from(UPLINK), JSON))
def test_any_fields_of_a_tts_uplink_are_read_or_refused(fields: dict[str, Any]) -> None:
    ids = {"device_id": "d", "dev_eui": "0202020202020202"}
    with contextlib.suppress(FrameError):
        tts.decode("v3/a/devices/d/up", json.dumps({"end_device_ids": ids, "uplink_message": fields}).encode())
