"""Events of ChirpStack and The Things Stack against the examples of their documentation, and any JSON."""

import base64
import contextlib
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec import chirpstack, tts
from drivers.lora.codec.payload import flatten
from drivers.lora.codec.uplink import Notice, Status, Uplink
from gateway.sdk.errors import FrameError
from tests.fuzz.runner import NASTY_JSON

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


NASTY = st.sampled_from(NASTY_JSON) | JSON
EXTREME_TIMES = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+00:01",
]


@pytest.mark.parametrize("at", EXTREME_TIMES)
def test_a_time_beyond_the_calendar_is_read_or_none(at: str) -> None:
    for time in (chirpstack_up(time=at).time, tts_up(received_at=at).time):
        assert time is None or time.utcoffset() == timedelta()


@pytest.mark.parametrize("name", ["deduplicationId", "time", "devAddr", "object", "rxInfo", "\udfff"])
def test_half_a_surrogate_pair_costs_at_most_the_message(name: str) -> None:
    with contextlib.suppress(FrameError):
        up = chirpstack_up(**{name: "\ud800"})
        assert len(up.key) == 8


def test_what_is_nested_deep_is_refused_before_anybody_walks_through_it() -> None:
    for deep in ("[" * 980 + "]" * 980, '{"a":' * 200 + "1" + "}" * 200, "[" * 65 + "]" * 65):
        with pytest.raises(FrameError, match="nested"):
            chirpstack.decode(UP_TOPIC, b'{"devEUI": "0202020202020202", "object": %s}' % deep.encode())
    flat = chirpstack_up(object={"a": [[n] for n in range(200)]})
    assert len(flat.decoded["a"]) == 200


@given(
    st.dictionaries(st.sampled_from(CHIRPSTACK) | st.sampled_from(["objectJSON", "DevEUI", "\ud800"]), NASTY),
    st.sampled_from(["up", "status", "log", "\ud800"]),
)
def test_hostile_fields_of_a_chirpstack_event_leave_as_an_event_or_a_refusal(
    fields: dict[str, Any], event: str
) -> None:
    body = json.dumps({**fields, "devEUI": "0202020202020202"}).encode()
    with contextlib.suppress(FrameError):
        chirpstack._decode(event, body)


@given(st.dictionaries(st.sampled_from(UPLINK), NASTY))
def test_hostile_fields_of_a_tts_uplink_leave_as_an_event_or_a_refusal(fields: dict[str, Any]) -> None:
    body = {"end_device_ids": {"device_id": "d", "dev_eui": "0202020202020202"}, "uplink_message": fields}
    with contextlib.suppress(FrameError):
        tts._decode(json.dumps(body).encode())


def test_a_fault_of_the_decoder_leaves_as_a_refusal_with_its_cause() -> None:
    with pytest.raises(FrameError, match="event of ChirpStack: AttributeError") as refused:
        chirpstack.decode(None, b"{}")  # type: ignore[arg-type]
    assert refused.value.__cause__ is not None


@pytest.mark.parametrize("decode", [chirpstack.decode, tts.decode])
def test_a_refusal_of_any_cause_has_the_message_as_it_came(decode: Callable[[str, bytes], object]) -> None:
    class Faulty(bytes):
        def decode(self, *_: object, **__: object) -> str:
            raise RuntimeError

    with pytest.raises(FrameError, match="RuntimeError") as refused:
        decode(UP_TOPIC, Faulty(b"{}"))
    assert refused.value.frame == b"{}"


UP_TOPIC = "application/1/device/0202020202020202/event/up"


def chirpstack_up(**fields: Any) -> Uplink:
    event = chirpstack.decode(UP_TOPIC, json.dumps({"devEUI": "0202020202020202", **fields}).encode())
    assert isinstance(event, Uplink)
    return event


def tts_up(**fields: Any) -> Uplink:
    ids = {"device_id": "d", "dev_eui": "0202020202020202"}
    event = tts.decode("", json.dumps({"end_device_ids": ids, "uplink_message": fields}).encode())
    assert isinstance(event, Uplink)
    return event


@pytest.mark.parametrize("copies", [[], [{}], [{"snr": None, "rssi": None}], [{"gatewayId": "0303030303030303"}] * 2])
def test_a_signal_that_is_not_told_is_no_value(copies: list[dict[str, Any]]) -> None:
    for up in (chirpstack_up(rxInfo=copies), tts_up(rx_metadata=copies)):
        assert (up.rssi, up.snr) == (None, None)


def test_the_best_copy_is_chosen_by_what_was_measured() -> None:
    copies = [
        {"snr": 9},
        {"rssi": -110, "snr": 1},
        {"rssi": -60, "snr": 2},
        {"rssi": None, "snr": 8},
        {"rssi": "loud", "snr": 7},
    ]
    for order in itertools.permutations(copies):
        for up in (chirpstack_up(rxInfo=order), tts_up(rx_metadata=order)):
            assert (up.rssi, up.snr, up.copies) == (-60, 2, 5)
    assert chirpstack_up(rxInfo=[{"rssi": -3000, "snr": 1}, {"snr": 9}]).snr == 1, "however weak, it was measured"


def test_chirpstack_v3s_other_marshaler_is_read_whole() -> None:
    eui, gateway = bytes(range(8)), bytes(range(8, 16))
    up = chirpstack_up(
        devEUI=base64.b64encode(eui).decode(),
        rxInfo=[
            {
                "gatewayID": base64.b64encode(gateway).decode(),
                "time": "2026-06-01T12:00:00Z",
                "rssi": -60,
                "loRaSNR": 7.2,
            }
        ],
        txInfo={
            "frequency": 868100000,
            "modulation": "LORA",
            "loRaModulationInfo": {"bandwidth": 125, "spreadingFactor": 9},
        },
        data="AQ==",
        objectJSON=json.dumps({"temperature": 21.5}),
        devAddr="AYmrzQ==",
    )
    assert (up.dev_eui, up.gateway, up.dev_addr) == (eui.hex(), gateway.hex(), "0189abcd")
    assert (up.spreading_factor, up.frequency_hz, up.snr, up.decoded) == (9, 868100000, 7.2, {"temperature": 21.5})
    assert up.time == datetime(2026, 6, 1, 12, tzinfo=UTC)
    for none in ("", "null", "[", "7"):
        assert chirpstack_up(objectJSON=none, data="AQ==").payload == b"\1", "its payload is still good"


_TOLD = "2026-06-01T12:00:00Z"


@pytest.mark.parametrize("unreadable", [None, "", "x", 5, "0001-01-01T00:00:00+14:00"])
@pytest.mark.parametrize("place", ["time", "best copy", "another copy", "publishedAt"])
def test_whichever_time_the_server_tells_is_taken(place: str, unreadable: Any) -> None:
    """A broker keeps messages while the box is off: without the server's time they would all be of now."""
    given = dict.fromkeys(("time", "best copy", "another copy", "publishedAt"), unreadable) | {place: _TOLD}
    up = chirpstack_up(
        time=given["time"],
        publishedAt=given["publishedAt"],
        rxInfo=[{"rssi": -60, "time": given["best copy"]}, {"rssi": -90, "time": given["another copy"]}],
    )
    assert up.time == datetime(2026, 6, 1, 12, tzinfo=UTC)
    ids = {"device_id": "d", "dev_eui": "0202020202020202"}
    both = ({"received_at": unreadable}, {"received_at": _TOLD})
    for outer, inner in (both, both[::-1]):
        said = tts.decode("", json.dumps({"end_device_ids": ids, "uplink_message": inner, **outer}).encode())
        assert isinstance(said, Uplink)
        assert said.time == up.time


@pytest.mark.parametrize("key", ["devEUI", "DevEUI", "devEui"])
@pytest.mark.parametrize("eui", ["0202020202020202", "AgICAgICAgI="])
def test_joins_of_all_versions_name_their_device(key: str, eui: str) -> None:
    event = chirpstack.decode(
        "application/1/device/x/event/join", json.dumps({key: eui, "devAddr": "00000001"}).encode()
    )
    assert event == Notice("join", "02" * 8, "")


def test_an_event_that_no_server_has_is_not_kept_by_its_name() -> None:
    for n in range(3):
        event = chirpstack.decode(f"application/1/device/x/event/made-up-{n}", b'{"devEUI": "0202020202020202"}')
        assert isinstance(event, Notice)
        assert event.event == "other"


def test_numbers_may_be_written_as_protobuf_json_allows() -> None:
    up = chirpstack_up(fCnt=3.0, fPort="2", rxInfo=[{"rssi": "-57", "snr": "7.5"}])
    assert (up.f_cnt, up.f_port, up.rssi, up.snr) == (3, 2, -57, 7.5)
    assert chirpstack_up(fPort="٣", rxInfo=[{"rssi": "1e3", "snr": "NaN"}]).rssi is None


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
