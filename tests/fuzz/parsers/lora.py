"""The LoRa codecs: events of network servers, datagrams of concentrators, lines of modems, frames, Cayenne payloads."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from drivers.lora.codec import cayenne, chirpstack, lorawan, modem, semtech, tts
from drivers.lora.codec.payload import Received
from drivers.lora.simulator import phy_payload
from gateway.sdk.errors import FrameError
from gateway.sdk.testing import NOON
from tests.fuzz.runner import Parser, mutate_bytes, mutate_json

CASES = Path(__file__).parents[2] / "drivers/lora/cases"
UP = "application/1/device/0202020202020202/event/up"
SESSION = lorawan.Session("49be7df1", bytes(range(16)), bytes(16), last=70_000, may_reset=True)


def _texts(name: str) -> tuple[bytes, ...]:
    return tuple(
        text.encode()
        for case in json.loads((CASES / f"{name}.json").read_text())["cases"]
        if _is_object(text := case["input_text"])
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _event(decode: Callable[[str, bytes], object]) -> Callable[[bytes], object]:
    """The first byte decides which topic it came by."""
    topics = (UP, "application/1/device/x/status", "application/1/device/x/event/log", "v3/a@t/devices/d/up")
    return lambda case: decode(topics[len(case) % 4], case)


def _datagram(case: bytes) -> object:
    datagram = semtech.parse_datagram(case)
    if datagram.kind != semtech.PUSH_DATA:
        return datagram
    packets, _, stat = semtech.parse_push(datagram.body)
    return packets, semtech.stat_time(stat.get("time"))


def _lines(kind: str) -> Callable[[bytes], object]:
    return lambda case: [said for cut in (case[:7], case[7:]) for said in modem.MODEMS[kind]().feed(cut)]


def _phy(case: bytes) -> object:
    frame = lorawan.parse(case)
    found = lorawan.match(frame, SESSION)
    return lorawan.decrypt(frame, bytes(16), bytes(16), found.f_cnt if found else 0)


# of these two one is signed for `SESSION`, the other with an unknown key and options in its header
PHYS = (
    phy_payload("49be7df1", bytes(range(16)), bytes(16), 70_001, 1, b"\1\2\3"),
    bytes.fromhex("80f17dbe4981010002010300aabbccdd"),
)
PUSH = {
    "rxpk": [
        {"tmst": 3512348611, "chan": 2, "rfch": 0, "freq": 866.349812, "stat": 1, "modu": "LORA", "datr": "SF7BW125",
         "codr": "4/6", "rssi": -35, "lsnr": 5.1, "size": 14, "data": "QPF9vkkAAQABqrvM3QE=",
         "time": "2026-06-01T12:00:00.000000Z", "tmms": 1464868818000, "rsig": [{"rssic": -36, "lsnr": 4}]}
    ],
    "stat": {"time": "2026-06-01 12:00:00 GMT", "rxnb": 2},
}  # fmt: skip
HEADER = bytes.fromhex("0212340024e124fffef00001")


def _push(random: Random, seed: bytes) -> bytes:
    return HEADER + mutate_json(random, seed[len(HEADER) :]) if random.random() < 0.9 else mutate_bytes(random, seed)


def _parser(seeds: tuple[bytes, ...], call: Callable[[bytes], Any], **more: Any) -> Parser:
    return Parser(seeds, call, (FrameError,), **more)


PARSERS = {
    "chirpstack": _parser((*_texts("chirpstack_v4"), *_texts("chirpstack_v3")), _event(chirpstack.decode), mutate=mutate_json),
    "tts": _parser(_texts("tts_v3"), _event(tts.decode), mutate=mutate_json),
    "semtech": _parser((HEADER + json.dumps(PUSH).encode(),), _datagram, mutate=_push),
    "rylr": _parser((b"+RCV=50,5,HELLO,-99,40\r\n", b"+OK\r\n", b"+ERR=4\r\n"), _lines("rylr")),
    "rn2483": _parser((b"radio_rx  48656C6C6F\r\n", b"mac_rx 3 0102\r\nok\r\n", b"radio_err\r\n"), _lines("rn2483")),
    "e5": _parser(
        (b'+TEST: LEN:5, RSSI:-106, SNR:7\r\n+TEST: RX "48 65 6C 6C 6F"\r\n', b'+MSG: PORT: 8; RX: "12345678"\r\n'), _lines("e5")
    ),
    "lorawan": _parser(PHYS, _phy),
    "cayenne": _parser(
        (bytes.fromhex("03670110056700ff018806765ff2960a0003e8"), bytes.fromhex("018e0102710102030405060708")),
        lambda case: cayenne.decode(case, {"t": "temperature_3"}, Received(NOON)),
    ),
}  # fmt: skip
