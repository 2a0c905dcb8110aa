"""The packet forwarder protocol against its own document, other implementations, and damage."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec import semtech
from gateway.sdk.errors import FrameError
from tests.fuzz.runner import NASTY_JSON

CASES = Path(__file__).parents[1] / "cases"


def cases(name: str) -> list[Any]:
    return [
        pytest.param(case, id=case["name"])
        for file in sorted(CASES.glob(name))
        for case in json.loads(file.read_text())["cases"]
    ]


@pytest.mark.parametrize("case", [c for c in cases("semtech_udp/*.json") if "input_hex" in c.values[0]])
def test_datagrams_are_split_as_other_implementations_split_them(case: dict[str, Any]) -> None:
    got = semtech.parse_datagram(bytes.fromhex(case["input_hex"]))
    want = {name: said["value"] for name, said in case["expect"].items()}
    seen: dict[str, Any] = {
        "version": 2,
        "token": int.from_bytes(got.token, "little"),
        "identifier": semtech.NAMES[got.kind],
        "gateway_mac": got.gateway,
    }
    if "rxpk_count" in want:
        seen["rxpk_count"] = len(semtech.parse_push(got.body)[0])
    if "error" in want:
        seen["error"] = json.loads(got.body)["txpk_ack"]["error"]
    assert {name: seen[name] for name in want} == want


def test_acknowledgements_echo_the_token_unchanged() -> None:
    push = semtech.parse_datagram(bytes.fromhex("027b000001020304050607087b7d"))
    assert push.ack.hex() == "027b0001"
    pull = semtech.parse_datagram(bytes.fromhex("02ff00020102030405060708"))
    assert pull.ack.hex() == "02ff0004"
    assert semtech.parse_datagram(bytes.fromhex("027b0001")).ack == b""


def test_the_documents_own_example_is_read_with_all_its_traps() -> None:
    [case] = [
        c.values[0] for c in cases("semtech_udp/packet_forwarder_protocol.json") if "three" in c.values[0]["name"]
    ]
    datagram = semtech.parse_datagram(bytes.fromhex(case["context"]["whole_datagram_hex"]))
    packets, refused, stat = semtech.parse_push(datagram.body)

    assert (refused, stat) == ([], {})
    assert [p.rssi for p in packets] == [-35, -75, -38]
    assert [p.snr for p in packets] == [5.1, None, 5.5]
    assert [p.spreading_factor for p in packets] == [7, None, 10]
    assert [len(p.phy) for p in packets] == [32, 16, 32]
    assert packets[0].frequency_hz == 866349812
    assert packets[1].phy == b"TEST_PACKET_1234"
    assert packets[0].time == datetime(2013, 3, 31, 16, 21, 17, 528002, UTC)


def test_the_gateways_own_figures_are_read() -> None:
    [case] = [
        c.values[0] for c in cases("semtech_udp/packet_forwarder_protocol.json") if "stat only" in c.values[0]["name"]
    ]
    packets, refused, stat = semtech.parse_push(case["input_text"].encode())
    assert (packets, refused) == ([], [])
    want = {name: said["value"] for name, said in case["expect"].items()}
    assert semtech.stat_time(stat["time"]) == datetime.fromisoformat(want.pop("time"))
    assert {name: stat[name] for name in want} == want


@pytest.mark.parametrize(
    "case", [c for c in cases("semtech_udp/packet_forwarder_gateway*.json") if "input_text" in c.values[0]]
)
def test_packets_with_a_bad_crc_are_refused_and_gps_time_has_no_leap_seconds(case: dict[str, Any]) -> None:
    packets, refused, _ = semtech.parse_push(case["input_text"].encode())
    want = {name: said["value"] for name, said in case["expect"].items()}
    if not want["accepted"]:
        assert (len(packets), len(refused)) == (0, 1)
        return
    [packet] = packets
    assert packet.phy.hex() == want["phy_payload_hex"]
    assert (packet.frequency_hz, packet.rssi, packet.snr) == (want["frequency"], want["rssi"], want["snr"])
    assert (packet.channel, packet.bandwidth_khz, packet.spreading_factor) == (1, 500, 12)
    assert packet.gps
    assert packet.time == datetime(1980, 1, 6, tzinfo=UTC) + timedelta(seconds=want["time_since_gps_epoch"] - 18)


@pytest.mark.parametrize("case", cases("hostile_semtech_udp.json"))
def test_damaged_datagrams_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        semtech.parse_push(semtech.parse_datagram(bytes.fromhex(case["input_hex"])).body)


def test_one_bad_packet_does_not_take_the_others_of_its_datagram_with_it() -> None:
    body = {"rxpk": [{"data": "!!"}, {"data": "AQI=", "rssi": -1}, {"stat": -1, "data": "AQI="}]}
    packets, refused, _ = semtech.parse_push(json.dumps(body).encode())
    assert ([p.phy for p in packets], len(refused)) == ([b"\x01\x02"], 2)


@pytest.mark.parametrize("listed", [{}, "", {"data": "AQI="}, [{"data": "AQI="}, 7]])
def test_packets_that_are_no_list_of_objects_are_refused_as_a_whole(listed: Any) -> None:
    with pytest.raises(FrameError, match="rxpk is no list of objects"):
        semtech.parse_push(json.dumps({"rxpk": listed, "stat": {}}).encode())


def test_a_datagram_with_too_many_packets_is_refused() -> None:
    with pytest.raises(FrameError, match="packets"):
        semtech.parse_push(json.dumps({"rxpk": [{}] * 65}).encode())


@given(st.binary(max_size=64))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        semtech.parse_push(semtech.parse_datagram(data).body)


FIELDS = ["data", "datr", "time", "tmms", "freq", "rssi", "lsnr", "rsig", "stat", "chan"]
ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.none(), max_size=2)


@given(st.dictionaries(st.sampled_from(FIELDS), ANY))
def test_any_fields_of_a_packet_are_read_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(FrameError):
        semtech.parse_packet(fields)


def packet(**fields: Any) -> semtech.Packet:
    return semtech.parse_packet({"data": "QPF9vkkAAQABqrvM3QE=", "size": 14, **fields})


@pytest.mark.parametrize("size", [13, 15, 0, -1, "many", None, True, [], 2**70])
def test_data_that_is_not_as_long_as_it_says_is_refused(size: Any) -> None:
    with pytest.raises(FrameError, match="size"):
        packet(size=size)
    assert packet(size=14.0).phy == packet().phy


@pytest.mark.parametrize("data", ["\ud800", "a\udfffb", "é", None, 7, [], {}])
def test_data_that_is_no_base64_is_refused(data: Any) -> None:
    with pytest.raises(FrameError):
        packet(data=data)


@given(
    st.dictionaries(
        st.sampled_from(["time", "tmms", "stat", "datr", "freq", "rssi", "lsnr", "rsig", "chan", "size", "data"]),
        st.sampled_from(NASTY_JSON),
    )
)
def test_hostile_fields_of_a_packet_leave_as_a_packet_or_a_refusal(fields: dict[str, Any]) -> None:
    with contextlib.suppress(FrameError):
        read = packet(**fields)
        assert read.time is None or read.time.utcoffset() == timedelta()
        assert read.spreading_factor is None or 5 <= read.spreading_factor <= 12


@pytest.mark.parametrize(("stat", "ok"), [(1, True), (0, False), (None, False), ("x", False), (1.0, True)])
def test_only_a_crc_that_was_checked_vouches_for_a_packet(stat: Any, ok: bool) -> None:
    assert packet(stat=stat).crc_ok is ok
