"""LoRaWAN frames against the vectors of two other implementations, damage, and any bytes."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec import lorawan
from drivers.lora.codec.lorawan import Session
from gateway.sdk.errors import FrameError

CASES = Path(__file__).parents[1] / "cases"
KEY = bytes.fromhex("44024241ed4ce9a68c6a8bc055233fd3")
APP_KEY = bytes.fromhex("ec925802ae430ca77fd3dd73cb2cc588")


def cases(*names: str) -> list[Any]:
    files = [file for name in names for file in sorted(CASES.glob(name))]
    return [
        pytest.param(case, id=f"{file.stem}: {case['name']}")
        for file in files
        for case in json.loads(file.read_text())["cases"]
    ]


def expected(case: dict[str, Any]) -> dict[str, Any]:
    return {name: said["value"] for name, said in case["expect"].items()}


def keys(case: dict[str, Any]) -> dict[str, bytes]:
    return {k: bytes.fromhex(v) for k, v in case["context"].items() if k.endswith("key") and isinstance(v, str)}


@pytest.mark.parametrize("case", list(cases("lorawan/phy*.json")))
def test_frames_of_other_implementations_are_read_as_they_read_them(case: dict[str, Any]) -> None:
    phy, want, key = bytes.fromhex(case["input_hex"]), expected(case), keys(case)
    got: dict[str, Any] = {"mtype": lorawan.MTYPES[lorawan.mtype_of(phy)]}
    mtype = lorawan.mtype_of(phy)
    if mtype == lorawan.JOIN_REQUEST:
        got |= join_request(phy, key, want)
    elif mtype == lorawan.JOIN_ACCEPT:
        got |= join_accept(phy, key, already=case["context"].get("decrypted", False))
    elif mtype == lorawan.PROPRIETARY:
        got["mic"] = phy[-4:].hex()
        with pytest.raises(FrameError):
            lorawan.parse(phy)
    else:
        got |= data_frame(phy, key, case["context"])

    want.pop("fopts_commands", None)  # MAC commands are the network server's business; their bytes are checked
    assert {name: got[name] for name in want} == want


def join_request(phy: bytes, key: dict[str, bytes], want: dict[str, Any]) -> dict[str, Any]:
    join = lorawan.parse_join_request(phy)
    nonce: object = join.dev_nonce if isinstance(want.get("dev_nonce"), int) else f"{join.dev_nonce:04x}"
    root = key.get("app_key") or key.get("nwk_key")
    return {
        "join_eui": join.join_eui,
        "dev_eui": join.dev_eui,
        "dev_nonce": nonce,
        "mic": join.mic.hex(),
        "mic_ok": root is not None and lorawan.join_request_mic(join, root) == join.mic,
    }


def join_accept(phy: bytes, key: dict[str, bytes], *, already: bool) -> dict[str, Any]:
    clear = phy if already else lorawan.clear_join_accept(phy, key["app_key"])
    nonce = clear[3:0:-1].hex()
    return {
        "join_nonce": int(nonce, 16),
        "app_nonce": nonce,
        "net_id": clear[6:3:-1].hex(),
        "dev_addr": clear[10:6:-1].hex(),
        "rx_delay": clear[12],
        "mic": clear[-4:].hex(),
        "mic_ok": lorawan.cmac(key["app_key"], clear[:-4]) == clear[-4:],
    }


def data_frame(phy: bytes, key: dict[str, bytes], context: dict[str, Any]) -> dict[str, Any]:
    frame = lorawan.parse(phy)
    got: dict[str, Any] = {
        "dev_addr": frame.dev_addr,
        "fcnt": frame.f_cnt,
        "adr": frame.adr,
        "ack": frame.ack,
        "fport": frame.f_port,
        "fopts_hex": frame.f_opts.hex(),
        "fopts_len": len(frame.f_opts),
        "frm_payload_hex": frame.payload.hex(),
        "mic": frame.mic.hex(),
    }
    if context.get("version") == "1.1":
        mic = lorawan.data_mic_1_1(
            frame,
            key["f_nwk_s_int_key"],
            key["s_nwk_s_int_key"],
            frame.f_cnt,
            conf_f_cnt=context["conf_fcnt"],
            tx_dr=context["tx_dr"],
            tx_ch=context["tx_ch"],
        )
        network = key["nwk_s_enc_key"]
    elif "nwk_skey" in key:
        mic, network = lorawan.data_mic(frame, key["nwk_skey"], frame.f_cnt), key["nwk_skey"]
    else:
        return got
    got |= {"mic_ok": mic == frame.mic, "calculated_mic": mic.hex()}
    if "app_skey" in key:
        clear = lorawan.decrypt(frame, network, key["app_skey"], frame.f_cnt)
        got |= {"decrypted_hex": clear.hex(), "decrypted_text": clear.decode("latin-1")}
    return got


@pytest.mark.parametrize("case", cases("lorawan/session_key_derivation.json"))
def test_session_keys_come_out_of_a_join_as_elsewhere(case: dict[str, Any]) -> None:
    said, root = case["context"], keys(case)
    nonces = [bytes.fromhex(said[name])[::-1] for name in ("app_nonce", "net_id", "dev_nonce")]
    names = {"nwk_skey": (1, "app_key"), "app_skey": (2, "app_key"), "f_nwk_s_int_key": (1, "nwk_key"),
             "s_nwk_s_int_key": (3, "nwk_key"), "nwk_s_enc_key": (4, "nwk_key")}  # fmt: skip
    for name, want in expected(case).items():
        kind, which = names[name]
        assert lorawan.session_key(kind, root[which], *nonces).hex() == want, name


@pytest.mark.parametrize("case", cases("lorawan_frames.json"))
def test_damaged_frames_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        lorawan.parse(bytes.fromhex(case["input_hex"]))


def test_a_frame_heard_again_after_a_later_one_is_a_replay() -> None:
    [case] = json.loads((CASES / "lorawan_counters.json").read_text())["cases"]
    session = Session("49be7df1", KEY, APP_KEY)
    verdicts = []
    for step in case["sequence"]:
        found = lorawan.match(lorawan.parse(bytes.fromhex(step["input_hex"])), session)
        assert found is not None
        verdicts.append(found.verdict)
        if found.verdict == "new":
            session = replace(session, last=found.f_cnt)
    assert verdicts == ["new", "new", "replay"]
    assert [step["expect"]["accepted"]["value"] for step in case["sequence"]] == [v == "new" for v in verdicts]


def test_a_frame_may_hold_commands_and_nothing_else() -> None:
    frame = lorawan.parse(bytes.fromhex("40f17dbe49 02 0200 0307 aabbccdd"))
    assert (frame.f_opts, frame.f_port, frame.mic) == (b"\x03\x07", None, bytes.fromhex("aabbccdd"))


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(phy: bytes) -> None:
    with contextlib.suppress(FrameError):
        frame = lorawan.parse(phy)
        assert frame.signed + frame.mic == phy


def signed(f_cnt: int, payload: bytes = b"x", dev_addr: str = "49be7df1") -> lorawan.DataFrame:
    """An uplink with a good MIC, built field by field."""
    body = b"\x40" + bytes.fromhex(dev_addr)[::-1] + b"\x00" + (f_cnt & 0xFFFF).to_bytes(2, "little") + b"\x01"
    body += lorawan.crypt(payload, APP_KEY, lorawan.UP, dev_addr, f_cnt)
    unsigned = lorawan.parse(body + bytes(4))
    return lorawan.parse(body + lorawan.data_mic(unsigned, KEY, f_cnt))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60_000))
def test_the_upper_half_of_the_counter_is_found_over_a_rollover(last: int, gap: int) -> None:
    f_cnt = last + gap
    if f_cnt > 2**32 - 1:
        return
    found = lorawan.match(signed(f_cnt), Session("49be7df1", KEY, APP_KEY, last))
    assert found == lorawan.Match(f_cnt, "new")


@given(st.integers(0, 2**20), st.integers(0, 40_000))
def test_an_older_frame_is_never_new(last: int, back: int) -> None:
    old = max(0, last - back)
    found = lorawan.match(signed(old), Session("49be7df1", KEY, APP_KEY, last))
    assert found is not None
    assert found.verdict == ("repeat" if old == last else "replay")


@given(st.binary(min_size=1, max_size=222), st.integers(0, 2**32 - 1))
def test_encrypting_twice_gives_the_payload_back(payload: bytes, f_cnt: int) -> None:
    once = lorawan.crypt(payload, APP_KEY, lorawan.UP, "49be7df1", f_cnt)
    assert lorawan.crypt(once, APP_KEY, lorawan.UP, "49be7df1", f_cnt) == payload


def test_a_counter_starts_again_from_zero_alone_and_an_older_frame_of_a_later_window_is_a_replay() -> None:
    session = Session("49be7df1", KEY, APP_KEY, last=70_000, may_reset=True)
    assert lorawan.match(signed(65_540), session) == lorawan.Match(65_540, "replay")
    assert lorawan.match(signed(5), session) == lorawan.Match(5, "reset")


def test_a_counter_that_starts_again_is_taken_only_where_it_was_allowed() -> None:
    strict = Session("49be7df1", KEY, APP_KEY, last=5000)
    assert lorawan.match(signed(0), strict) == lorawan.Match(0, "replay")
    assert lorawan.match(signed(0), replace(strict, may_reset=True)) == lorawan.Match(0, "reset")


def test_a_counter_may_start_again_in_the_last_of_its_rounds_too() -> None:
    last = Session("49be7df1", KEY, APP_KEY, last=0xFFFF_8000, may_reset=True)
    assert lorawan.match(signed(5), last) == lorawan.Match(5, "reset")
    assert lorawan.match(signed(0xFFFE_8001), last) == lorawan.Match(0xFFFE_8001, "replay")


@given(st.integers(0, 11), st.integers(1, 255))
def test_a_changed_byte_breaks_the_mic(at: int, flip: int) -> None:
    frame = signed(7)
    phy = bytearray(frame.signed + frame.mic)
    phy[at] ^= flip
    with contextlib.suppress(FrameError):
        changed = lorawan.parse(bytes(phy))
        if changed.dev_addr == frame.dev_addr:
            assert lorawan.match(changed, Session("49be7df1", KEY, APP_KEY, 6)) is None
