"""Lines of point-to-point modems: documented lines, cut anywhere, and any bytes."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec.modem import MODEMS, Answer, Heard, LoraE5, Rylr, e5_signal
from gateway.sdk.errors import FrameError

CASES = Path(__file__).parents[1] / "cases" / "lora_modems"
FILES = {"rylr": "rylr.json", "rn2483": "rn2483.json", "e5": "lora_e5.json"}


def cases() -> list[Any]:
    return [
        pytest.param(modem, case, id=f"{modem}: {case['name']}")
        for modem, file in FILES.items()
        for case in json.loads((CASES / file).read_text())["cases"]
    ]


@pytest.mark.parametrize(("modem", "case"), cases())
def test_documented_lines_are_read(modem: str, case: dict[str, Any]) -> None:
    [said] = MODEMS[modem]().feed(case["input_text"].encode())
    want = {name: value["value"] for name, value in case["expect"].items()}
    if "expect_error" in case:
        assert isinstance(said, FrameError)
    elif isinstance(said, Heard):
        got = {
            "address": said.address, "length": len(said.payload), "text": said.payload.decode("latin-1"), "rssi": said.rssi,
            "snr": said.snr, "fport": said.f_port, "payload_hex": said.payload.hex(),
        }  # fmt: skip
        assert {name: got[name] for name in want} == want
    elif "rssi" in want:
        assert e5_signal(case["input_text"]) == (want["rssi"], want["snr"])
    else:
        assert isinstance(said, Answer)
        assert said.status == {"timeout_or_error": "timeout"}.get(
            want.get("status", "error"), want.get("status", "error")
        )


PAYLOADS = st.binary(max_size=240)


@given(st.lists(PAYLOADS, max_size=3), st.lists(st.integers(0, 900), max_size=4))
def test_a_rylr_payload_may_hold_commas_and_line_ends(payloads: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(b"+RCV=7,%d,%s,-90,8\r\n" % (len(p), p) for p in payloads)
    edges = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    modem = Rylr()
    found = [said for a, b in itertools.pairwise(edges) for said in modem.feed(wire[a:b])]
    assert found == [Heard(p, address=7, rssi=-90.0, snr=8.0) for p in payloads]


@given(st.sampled_from(sorted(MODEMS)), st.lists(st.binary(max_size=80), max_size=10))
def test_any_bytes_are_read_or_refused_and_the_next_line_is_read(modem: str, chunks: list[bytes]) -> None:
    good = {"rylr": b"+RCV=1,2,hi,-5,6\r\n", "rn2483": b"radio_rx  6869\r\n", "e5": b'+TEST: RX "6869"\r\n'}[modem]
    reader = MODEMS[modem]()
    for chunk in chunks:
        list(reader.feed(chunk))
    said = [s for _ in range(40) for s in reader.feed(b"\r\n" + good)]
    assert isinstance(said[-1], Heard)
    assert said[-1].payload == b"hi"


def test_signal_and_payload_of_an_e5_belong_together() -> None:
    reader = MODEMS["e5"]()
    said = list(reader.feed(b'+TEST: LEN:2, RSSI:-50, SNR:10\r\n+TEST: RX "AABB"\r\n+TEST: RX "CC"\r\n'))
    assert said[1] == Heard(b"\xaa\xbb", rssi=-50.0, snr=10.0)
    assert said[2] == Heard(b"\xcc")


@pytest.mark.parametrize(
    "line", ['+TEST: RX "48 65 6C 6c 6f"', '+TEST: RX "48656C6C6F"', '+MSG: PORT: 8; RX: "48 65 6C 6C 6F"']
)
def test_an_e5_may_print_spaces_between_bytes(line: str) -> None:
    [said] = MODEMS["e5"]().feed(line.encode() + b"\r\n")
    assert isinstance(said, Heard)
    assert said.payload == b"Hello"


@pytest.mark.parametrize("line", ['+TEST: RX "48 6"', '+MSG: PORT: 8; RX: "4z"', '+TEST: RX "48'])
def test_a_packet_of_an_e5_that_cannot_be_read_is_refused_not_passed_over(line: str) -> None:
    [said] = MODEMS["e5"]().feed(line.encode() + b"\r\n")
    assert isinstance(said, FrameError)
    assert said.message == "the packet's hex digits cannot be read"


@given(st.binary(min_size=1, max_size=60), st.integers(0, 59), st.integers(1, 59), st.sampled_from(["", " "]))
def test_an_e5_packet_that_lost_bytes_on_the_line_is_none(payload: bytes, at: int, lost: int, gap: str) -> None:
    left = payload[:at] + payload[at + lost :]
    lines = f'+TEST: LEN:{len(payload)}, RSSI:-50, SNR:10\r\n+TEST: RX "{left.hex(gap) if gap else left.hex()}"\r\n'
    said = list(LoraE5().feed(lines.encode()))[-1]
    if left == payload:
        assert said == Heard(payload, rssi=-50.0, snr=10.0)
    else:
        assert isinstance(said, FrameError)


@pytest.mark.parametrize("broken", ['+TEST: RX "AAB', "+TEST: RX AABB", '+TEST: RX "AA"'])
def test_an_e5_packet_never_takes_the_signal_of_one_that_was_lost(broken: str) -> None:
    reader = LoraE5()
    said = list(reader.feed(f'+TEST: LEN:2, RSSI:-50, SNR:10\r\n{broken}\r\n+TEST: RX "CC"\r\n'.encode()))
    assert isinstance(said[1], FrameError)
    assert said[2] == Heard(b"\xcc")
